//! A journal's folder, damaged in any way. Opening it never panics, never gives a record that was not written, and what
//! it gives is what `verify` promised.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | a good journal, its files altered, cut, exchanged, taken away |
//! | 1 | any segment, with check sums and chain made right, so that changes reach what is behind them |
//! | 2 | any files as they are |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::LazyLock;

use berth_journal::sim::SimDisk;
use berth_journal::{
    Journal, JournalError, KindId, KindVersion, NewRecord, Options, ReadError, Seq, Tail, verify,
};
use sha2::{Digest, Sha256};

use crate::input::{Input, seed};

/// Most edits of one input.
const EDITS_MAX: usize = 24;

const SECTOR: usize = 512;
const OPENING_BYTES: usize = 48;
const RECORD_HEAD_BYTES: usize = 52;
const MARKER_BYTES: usize = 80;
const SYNCED: &str = "synced";

type Files = BTreeMap<String, Vec<u8>>;

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    seq: u64,
    chain: [u8; 32],
    kind: u16,
    version: u16,
    payload: Vec<u8>,
}

/// Several small segments, and what was written into them.
static GOOD: LazyLock<(Files, Vec<Kept>)> = LazyLock::new(|| {
    let disk = SimDisk::new(11);
    let (mut journal, _) = open(&disk).expect("a new journal");
    for group in 0..8_u8 {
        let payloads: Vec<Vec<u8>> = (0..=group % 3)
            .map(|index| vec![b'a' + group; if group == 4 { 700 } else { 20 + usize::from(index) }])
            .collect();
        let records: Vec<NewRecord<'_>> = payloads
            .iter()
            .map(|payload| NewRecord { kind: KindId(group.into()), version: KindVersion(1), payload })
            .collect();
        journal.append_group(&records).expect("there is room");
    }
    journal.close().expect("nothing fails here");
    let (_, kept) = open(&disk).expect("a good journal");
    (disk.files(), kept)
});

fn options() -> Options {
    Options { segment_bytes: 2048, advice: String::new(), ..Options::default() }
}

fn open(disk: &SimDisk) -> Result<(Journal<berth_journal::sim::SimStorage>, Vec<Kept>), JournalError> {
    let mut kept = Vec::new();
    let opened = Journal::open(disk.mount(), options(), |record| {
        kept.push(Kept {
            seq: record.seq.get(),
            chain: *record.chain.as_bytes(),
            kind: record.kind.0,
            version: record.version.0,
            payload: record.payload.to_vec(),
        });
        Ok::<_, Infallible>(())
    });
    match opened {
        Ok((journal, recovery)) => {
            assert_eq!(recovery.records, kept.len() as u64);
            Ok((journal, kept))
        }
        Err(ReadError::Journal(error)) => Err(error),
        Err(ReadError::Refused { source, .. }) => match source {},
    }
}

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(3) {
        0 => altered(input),
        1 => resealed(input),
        _ => any_files(input),
    }
}

/// Edits of six bytes: what, which file, where, with what.
fn altered(mut edits: Input<'_>) {
    let (good, written) = &*GOOD;
    let mut files = good.clone();
    let names: Vec<&String> = good.keys().collect();
    for _ in 0..EDITS_MAX {
        if edits.is_empty() {
            break;
        }
        let (what, which, at, with) = (edits.byte() % 8, edits.byte(), edits.short(), edits.short());
        let name = names.get(usize::from(which) % names.len()).expect("there are files");
        let other = names.get(usize::from(with) % names.len()).expect("there are files");
        let [byte, _] = with.to_le_bytes();
        let at = usize::from(at);
        match what {
            0 => {
                if let Some(byte_there) = files.get_mut(*name).and_then(|bytes| bytes.get_mut(at)) {
                    *byte_there ^= byte;
                }
            }
            1 => files.entry((*name).clone()).or_default().truncate(at),
            2 => {
                let grown = files.entry((*name).clone()).or_default();
                grown.extend(std::iter::repeat_n(byte, at % 4096));
            }
            3 => {
                // A sector of another place.
                let from =
                    good.get(*other).and_then(|bytes| bytes.chunks(SECTOR).nth(at % 8)).unwrap_or_default();
                let to = files.entry((*name).clone()).or_default();
                let start = (at / 8 * SECTOR).min(to.len());
                to.iter_mut().skip(start).zip(from).for_each(|(to, from)| *to = *from);
            }
            4 => drop(files.remove(*name)),
            5 => {
                let (one, two) = (files.remove(*name), files.remove(*other));
                files.extend(one.map(|bytes| ((*other).clone(), bytes)));
                files.extend(two.map(|bytes| ((*name).clone(), bytes)));
            }
            6 => {
                let copy = files.get(*name).cloned().unwrap_or_default();
                files.insert(format!("{with:020}.log"), copy);
            }
            _ => {
                if let Some(bytes) = files.get_mut(*name) {
                    let end = bytes.len().min(at + usize::from(with));
                    bytes.get_mut(at..end).unwrap_or_default().fill(0);
                }
            }
        }
    }
    let knows_all = files.get(SYNCED) == good.get(SYNCED);
    let Some(read) = open_checked(&files) else { return };
    for record in &read {
        let written = written.iter().find(|written| written.seq == record.seq);
        assert_eq!(Some(record), written, "a record was read that nobody wrote");
    }
    if knows_all {
        assert_eq!(&read, written, "`synced` is whole, so all must be there");
    }
}

/// Flags, `synced` if one is wanted, and a segment.
fn resealed(mut input: Input<'_>) {
    let flags = input.byte();
    let mut files = Files::new();
    if flags & 1 != 0 {
        files.insert(SYNCED.to_owned(), synced(input.array()));
    }
    let mut bytes = input.rest().to_vec();
    let first = reseal(&mut bytes, flags);
    files.insert(format!("{first:020}.log"), bytes);
    open_checked(&files);
}

fn synced(fields: [u8; 48]) -> Vec<u8> {
    let mut bytes = b"BERTHSYN\x01\0\0\0\0\0\0\0".to_vec();
    bytes.extend(fields);
    bytes.resize(SECTOR - 4, 0);
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn number(bytes: &[u8], at: usize) -> usize {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_le_bytes);
    usize::try_from(number.unwrap_or_default()).expect("64 bits")
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = *from);
}

/// Makes the check sum at `end` right for the bytes from `start` on.
fn seal(bytes: &mut [u8], start: usize, end: usize) {
    if let Some(sealed) = bytes.get(start..end) {
        let crc = crc32fast::hash(sealed);
        set(bytes, end, &crc.to_le_bytes());
    }
}

/// Makes right what the flags ask for; returns the segment's first sequence.
fn reseal(bytes: &mut [u8], flags: u8) -> u64 {
    let (headers, openings, records, markers) =
        (flags & 2 == 0, flags & 4 == 0, flags & 8 == 0, flags & 16 == 0);
    if headers {
        seal(bytes, 0, SECTOR - 4);
    }
    let first = bytes.get(16..).and_then(|rest| rest.first_chunk()).copied().map_or(1, u64::from_le_bytes);
    let mut chain: [u8; 32] =
        bytes.get(40..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    let mut start = SECTOR;
    while start + OPENING_BYTES <= bytes.len() {
        if openings {
            seal(bytes, start, start + OPENING_BYTES - 4);
        }
        let (length, count) = (number(bytes, start + 4), number(bytes, start + 8));
        let mut at = start + OPENING_BYTES;
        for _ in 0..count.min(64) {
            let payload_end = at.saturating_add(RECORD_HEAD_BYTES).saturating_add(number(bytes, at));
            let Some(record) = bytes.get_mut(at..payload_end).filter(|_| records) else { break };
            let (head, payload) = record.split_at_mut(RECORD_HEAD_BYTES);
            let hash = Sha256::new().chain_update(chain).chain_update(head.get(..16).unwrap_or_default());
            chain = hash.chain_update(&payload).finalize().into();
            set(head, 16, &chain);
            let mut crc = crc32fast::Hasher::new();
            crc.update(head.get(..48).unwrap_or_default());
            crc.update(payload);
            set(head, 48, &crc.finalize().to_le_bytes());
            at = payload_end;
        }
        let end = start.saturating_add(length);
        if markers && length >= SECTOR && end <= bytes.len() {
            set(bytes, end - MARKER_BYTES + 44, &chain);
            seal(bytes, end - MARKER_BYTES, end - 4);
        }
        start = start.saturating_add(length.max(SECTOR));
    }
    first
}

/// `name length bytes`, as often as there is something left.
fn any_files(mut input: Input<'_>) {
    let mut files = Files::new();
    while !input.is_empty() && files.len() < 8 {
        let name = match input.byte() {
            b's' => SYNCED.to_owned(),
            b'n' => "00000000000000000001.log.new".to_owned(),
            b'x' => "1.log".to_owned(),
            number => format!("{:020}.log", u64::from(number.wrapping_sub(b'0'))),
        };
        let length = usize::from(input.short());
        files.insert(name, input.take(length).to_vec());
    }
    open_checked(&files);
}

/// Verifies and opens; gives what was read, `None` where the journal was refused.
fn open_checked(files: &Files) -> Option<Vec<Kept>> {
    let disk = SimDisk::new(5);
    files.iter().for_each(|(name, bytes)| disk.put(name, bytes.clone()));
    let verified = verify(&disk.mount(), "");
    assert_eq!(&disk.files(), files, "looking changed something");
    let opened = open(&disk);
    let (mut journal, read) = match (opened, verified) {
        (Ok(opened), Ok(verified)) => {
            let (journal, read) = opened;
            assert_eq!((verified.records, verified.head), (read.len() as u64, journal.head()));
            assert_eq!(verified.first, journal.first_seq());
            let names = disk.files();
            let cut = matches!(verified.tail, Tail::Incomplete { .. });
            let same = files
                .iter()
                .filter(|(name, _)| name.len() == 24)
                .all(|(name, bytes)| names.get(name) == Some(bytes));
            assert_eq!(same, !cut, "an unfinished group is cut, and nothing else is");
            (journal, read)
        }
        (Ok((journal, read)), Err(JournalError::Missing)) => {
            assert!(read.is_empty(), "records out of nothing");
            (journal, read)
        }
        (Err(opening), Err(verifying)) => {
            assert_eq!(opening.corruption(), verifying.corruption(), "both name the same damage");
            assert!(opening.corruption().is_some(), "{opening}");
            assert_eq!(&disk.files(), files, "a damaged journal is left as it is");
            return None;
        }
        (Ok(_), Err(error)) => panic!("opened, although verify says: {error}"),
        (Err(error), Ok(_)) => panic!("verified, although open says: {error}"),
    };
    check_chain(&read);
    go_on(&disk, &mut journal, &read);
    Some(read)
}

/// Sequences rise by one, and each chain follows from the one before, computed without the journal's code.
fn check_chain(read: &[Kept]) {
    for (before, record) in read.iter().zip(read.iter().skip(1)) {
        assert_eq!(record.seq, before.seq + 1);
        assert_eq!(record.chain, chain(before.chain, record), "record {}", record.seq);
    }
    if let Some(first) = read.first().filter(|first| first.seq == 1) {
        assert_eq!(first.chain, chain([0; 32], first));
    }
}

fn chain(before: [u8; 32], record: &Kept) -> [u8; 32] {
    let length = u32::try_from(record.payload.len()).expect("short payloads");
    Sha256::new()
        .chain_update(before)
        .chain_update(length.to_le_bytes())
        .chain_update(record.kind.to_le_bytes())
        .chain_update(record.version.to_le_bytes())
        .chain_update(record.seq.to_le_bytes())
        .chain_update(&record.payload)
        .finalize()
        .into()
}

/// A journal that was opened can be written, read, and opened again.
fn go_on(disk: &SimDisk, journal: &mut Journal<berth_journal::sim::SimStorage>, read: &[Kept]) {
    let record = NewRecord { kind: KindId(77), version: KindVersion(1), payload: b"one more" };
    let committed = match journal.append_group(&[record]) {
        Ok(committed) => committed,
        Err(JournalError::SequenceExhausted) => return,
        Err(error) => panic!("it cannot be written: {error}"),
    };
    assert_eq!(committed.last_seq, journal.head().seq);
    let mut seen = 0_u64;
    let from = journal.first_seq().max(Seq::FIRST);
    let reading = journal.read_from(from, |_| {
        seen += 1;
        Ok::<_, Infallible>(())
    });
    reading.expect("what was opened can be read");
    assert_eq!(seen, read.len() as u64 + 1);
    disk.kill();
    let (_, again) = open(disk).expect("what was written can be opened");
    assert_eq!(again.get(..read.len()), Some(read));
    assert_eq!(again.last().map(|record| record.payload.as_slice()), Some(&b"one more"[..]));
    assert_eq!(again.len(), read.len() + 1);
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let (good, _) = &*GOOD;
    let mut seeds = vec![
        seed(0, []),
        seed(0, [0, 1, 20, 2, 1, 0]),
        seed(0, [1, 2, 0, 4, 0, 0]),
        seed(0, [2, 2, 100, 0, 7, 0]),
        seed(0, [3, 1, 9, 0, 2, 0]),
        seed(0, [4, 3, 0, 0, 0, 0]),
        seed(0, [5, 0, 0, 0, 1, 0]),
        seed(0, [6, 1, 0, 0, 9, 0]),
        seed(0, [7, 2, 0, 4, 0, 2]),
        seed(2, []),
    ];
    let head = good.get(SYNCED).and_then(|bytes| bytes.get(16..64)).unwrap_or_default();
    let mut all = Vec::new();
    for (name, bytes) in good {
        let choice = if name == SYNCED { b's' } else { name.as_bytes().get(19).copied().unwrap_or_default() };
        let length = u16::try_from(bytes.len()).expect("small files").to_le_bytes();
        all.extend([&[choice][..], &length, bytes].concat());
        if name != SYNCED {
            seeds.push(seed(1, [&[0][..], bytes].concat()));
            seeds.push(seed(1, [&[1][..], head, bytes].concat()));
        }
    }
    seeds.push(seed(2, all));
    let golden = [
        include_bytes!("../../../shared/journal/golden/v1/00000000000000000001.log").as_slice(),
        include_bytes!("../../../shared/journal/golden/v1/00000000000000000005.log"),
    ];
    seeds.extend(golden.map(|bytes| seed(1, [&[0][..], bytes].concat())));
    seeds
}
