//! Tests of the whole journal. Helpers here; what is tested is in the names of the modules.
#![expect(clippy::cast_possible_truncation, reason = "small numbers made by the tests themselves")]

mod crash;
mod damage;
mod directory;
mod faults;
mod golden;
mod inspect;
mod marks;
mod torn;
mod usage;

use std::convert::Infallible;

use sha2::{Digest, Sha256};

use crate::sim::{SimDisk, SimStorage};
use crate::{
    Chain, Committed, Journal, JournalError, KindId, KindVersion, NewRecord, Options, ReadError, Record,
    Recovery, Seq, Storage,
};

/// A record as the test remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    kind: u16,
    version: u16,
    payload: Vec<u8>,
}

impl Fact {
    fn new(kind: u16, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, version: 1, payload: payload.into() }
    }

    fn as_new(&self) -> NewRecord<'_> {
        NewRecord { kind: KindId(self.kind), version: KindVersion(self.version), payload: &self.payload }
    }
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    seq: Seq,
    chain: Chain,
    fact: Fact,
}

impl From<Record<'_>> for Read {
    fn from(record: Record<'_>) -> Self {
        let fact = Fact { kind: record.kind.0, version: record.version.0, payload: record.payload.to_vec() };
        Self { seq: record.seq, chain: record.chain, fact }
    }
}

fn small_segments() -> Options {
    Options { segment_bytes: 2048, advice: "Run the restore.".to_owned(), ..Options::default() }
}

fn open<S: Storage>(storage: S, options: Options) -> Result<(Journal<S>, Recovery, Vec<Read>), JournalError> {
    let mut read = Vec::new();
    let opened = Journal::open(storage, options, |record| {
        read.push(Read::from(record));
        Ok::<_, Infallible>(())
    });
    match opened {
        Ok((journal, recovery)) => Ok((journal, recovery, read)),
        Err(ReadError::Journal(error)) => Err(error),
        Err(ReadError::Refused { source, .. }) => match source {},
    }
}

fn append<S: Storage>(journal: &mut Journal<S>, facts: &[Fact]) -> Result<Committed, JournalError> {
    let records: Vec<NewRecord<'_>> = facts.iter().map(Fact::as_new).collect();
    journal.append_group(&records)
}

fn read_from<S: Storage>(journal: &Journal<S>, seq: Seq) -> Vec<Read> {
    let mut read = Vec::new();
    journal
        .read_from(seq, |record| {
            read.push(Read::from(record));
            Ok::<_, Infallible>(())
        })
        .expect("the journal is whole");
    read
}

/// What must be read, computed without the code under test.
fn expected(facts: &[Fact]) -> Vec<Read> {
    let mut chain = [0_u8; 32];
    let mut read = Vec::new();
    for (index, fact) in facts.iter().enumerate() {
        let seq = index as u64 + 1;
        let mut hash = Sha256::new();
        hash.update(chain);
        hash.update(u32::try_from(fact.payload.len()).unwrap().to_le_bytes());
        hash.update(fact.kind.to_le_bytes());
        hash.update(fact.version.to_le_bytes());
        hash.update(seq.to_le_bytes());
        hash.update(&fact.payload);
        chain = hash.finalize().into();
        read.push(Read { seq: Seq::new(seq), chain: Chain::from_bytes(chain), fact: fact.clone() });
    }
    read
}

/// A journal of several small segments, and what is in it; the disk has been left by `close`.
fn several_segments() -> (SimDisk, Vec<Vec<Fact>>) {
    let disk = SimDisk::new(11);
    let (mut journal, ..) = open(disk.mount(), small_segments()).unwrap();
    let groups: Vec<Vec<Fact>> = (0..10_u16)
        .map(|group| {
            let records = 1 + usize::from(group % 3);
            let long = if group == 4 { 1200 } else { 30 };
            (0..records).map(|index| Fact::new(group, vec![b'a' + index as u8; long + index])).collect()
        })
        .collect();
    for group in &groups {
        append(&mut journal, group).unwrap();
    }
    journal.close().unwrap();
    assert!(segment_names(&disk).len() >= 3, "the tests need first, middle and last segments");
    (disk, groups)
}

fn segment_names(disk: &SimDisk) -> Vec<String> {
    disk.files().into_keys().filter(|name| name.ends_with(".log")).collect()
}

fn mount_and_open(disk: &SimDisk) -> Result<(Journal<SimStorage>, Recovery, Vec<Read>), JournalError> {
    open(disk.mount(), small_segments())
}
