//! The node's journal: what must outlive the agent is written here before it is acted on.
//!
//! One group of records, one `fdatasync`. After [`SNAPSHOT_EVERY`] records a snapshot of everything is written into a
//! new segment and the older ones are dropped, so that the folder does not grow with the node's age.

use std::path::Path;

use berth_daemon::exit::Exit;
use berth_journal::{
    Journal, JournalError, KindId, KindVersion, NewRecord, Options, ReadError, Seq, StdStorage,
};
use berth_node_agent_core::memory::{Memory, Record, RecordError};
use berth_shared::codec::CodecError;

use crate::failpoint;

/// So many records after a snapshot the next one is written.
pub const SNAPSHOT_EVERY: u64 = 20_000;

const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

const ADVICE: &str = "move the journal folder away, have the node revoked, join it again (`join --again`) with a token to \
                      rejoin, and look at `berth cell ls`: \
                      what is on its cells' disks is kept as a snapshot before a cell begins from its newest one; \
                      containers of before are left alone, and are in the way (`not_ours`) until they are removed";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its folder cannot be made or read.
    #[error("the folder of the node's journal cannot be used")]
    Folder(#[source] std::io::Error),
    /// It cannot be opened, or is damaged.
    #[error("the node's journal cannot be opened")]
    Open(#[source] ReadError<RecordError>),
    /// It cannot be written.
    #[error("the node's journal cannot be written")]
    Append(#[source] JournalError),
    /// A write was cut off in its middle, so that nobody knows the journal's end any more.
    #[error("the node's journal was lost to a failed write")]
    Gone,
    /// What another caller was told, in words.
    #[error("the node's journal was not written: {0}")]
    Told(String),
    /// A record has no binary form: it is too large.
    #[error("a record cannot be encoded")]
    Encode(#[source] CodecError),
}

impl StoreError {
    /// The same news for somebody else.
    pub fn again(&self) -> Self {
        Self::Told(berth_daemon::exit::chain(self))
    }

    /// The exit code of an agent that cannot start for it.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Folder(_) => Exit::CantCreate,
            Self::Open(ReadError::Journal(JournalError::Locked)) => Exit::TempFail,
            Self::Open(ReadError::Journal(JournalError::Corrupt(_)) | ReadError::Refused { .. }) => {
                Exit::DataCorrupt
            }
            Self::Open(ReadError::Journal(_)) | Self::Append(_) | Self::Gone => Exit::Io,
            Self::Encode(_) | Self::Told(_) => Exit::Failure,
        }
    }

    /// Has the process to end? Where not, nothing was written and a later try may succeed.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Folder(_) | Self::Open(_) => true,
            Self::Append(error) => error.is_fatal(),
            Self::Gone => true,
            Self::Encode(_) | Self::Told(_) => false,
        }
    }
}

/// Looks at a node's journal and tells what it found. Reads only, and may run beside the agent.
pub fn verify(dir: &Path, as_json: bool) -> Exit {
    let mut memory = Memory::default();
    berth_daemon::journal::verify(dir, as_json, ADVICE, |record| {
        let read = Record::decode(record.kind.0, record.version.0, record.payload)?;
        memory.apply(read);
        Ok::<_, RecordError>(())
    })
}

/// The journal and what it adds up to.
pub struct Store {
    journal: Journal<StdStorage>,
    memory: Memory,
    since_snapshot: u64,
}

impl Store {
    /// Opens the journal, or makes it, and adds its records up.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let storage = StdStorage::open(dir).map_err(StoreError::Folder)?;
        let options = Options { segment_bytes: SEGMENT_BYTES, create: true, advice: ADVICE.to_owned() };
        let mut memory = Memory::default();
        let mut since_snapshot = 0;
        let (journal, recovery) = Journal::open(storage, options, |record| {
            let read = Record::decode(record.kind.0, record.version.0, record.payload)?;
            since_snapshot = if matches!(read, Record::Snapshot(_)) { 0 } else { since_snapshot + 1 };
            memory.apply(read);
            Ok(())
        })
        .map_err(StoreError::Open)?;
        if let Some(cut) = recovery.cut {
            tracing::warn!(
                bytes = cut.bytes,
                offset = cut.offset,
                "an unfinished write at the journal's end was cut"
            );
        }
        Ok(Self { journal, memory, since_snapshot })
    }

    /// What the records add up to.
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Writes records, in order, durably. All of them or none.
    pub fn append(&mut self, records: Vec<Record>) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        self.write(&records)?;
        self.since_snapshot += records.len() as u64;
        for record in records {
            self.memory.apply(record);
        }
        if (self.since_snapshot >= SNAPSHOT_EVERY || failpoint::SNAPSHOT_DUE.is_forced())
            && let Err(error) = self.snapshot()
        {
            // The records themselves are written: only a broken journal may fail the caller.
            if error.is_fatal() {
                return Err(error);
            }
            tracing::warn!(
                error = berth_daemon::exit::chain(&error),
                "no snapshot of the journal, tried again later"
            );
            self.since_snapshot = 0;
        }
        Ok(())
    }

    fn write(&mut self, records: &[Record]) -> Result<Seq, StoreError> {
        let encoded =
            records.iter().map(Record::encode).collect::<Result<Vec<_>, _>>().map_err(StoreError::Encode)?;
        let group: Vec<NewRecord<'_>> = encoded
            .iter()
            .map(|(kind, version, payload)| NewRecord {
                kind: KindId(*kind),
                version: KindVersion(*version),
                payload,
            })
            .collect();
        let committed = self.journal.append_group(&group).map_err(StoreError::Append)?;
        Ok(committed.last_seq)
    }

    fn snapshot(&mut self) -> Result<(), StoreError> {
        let snapshot = self.memory.snapshot();
        self.journal.rotate().map_err(StoreError::Append)?;
        failpoint::SNAPSHOT_ROTATED.reach();
        let at = self.write(&snapshot)?;
        failpoint::SNAPSHOT_WRITTEN.reach();
        self.journal.drop_segments_before(at).map_err(StoreError::Append)?;
        self.since_snapshot = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use berth_node_agent_core::memory::{Intent, IntentVerb};
    use berth_shared::ids::CellId;

    use super::*;

    fn intent(op: u64) -> Record {
        Record::Intent(Intent { cell: CellId::from_random([1; 16]), op, verb: IntentVerb::Start })
    }

    #[test]
    fn what_was_appended_is_there_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut store = Store::open(&path).unwrap();
        store.append(vec![intent(1), intent(2)]).unwrap();
        let memory = store.memory().clone();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().memory(), &memory);
    }

    #[test]
    fn a_snapshot_replaces_what_was_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut store = Store::open(&path).unwrap();
        for op in 1..50 {
            store.append(vec![intent(op)]).unwrap();
        }
        let memory = store.memory().clone();
        store.snapshot().unwrap();
        store.append(vec![intent(50)]).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.memory().cells.len(), memory.cells.len());
        assert!(store.journal.first_seq() > Seq::new(1), "older segments are dropped");
    }

    #[test]
    fn a_journal_is_verified_beside_the_agent_and_damage_ends_with_its_code() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert_eq!(verify(&path, false), Exit::NoInput);
        let mut store = Store::open(&path).unwrap();
        store.append(vec![intent(1)]).unwrap();
        store.append(vec![intent(2)]).unwrap();
        assert_eq!(verify(&path, false), Exit::Ok);
        drop(store);
        let segment = path.join("00000000000000000001.log");
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[600] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        assert_eq!(verify(&path, true), Exit::DataCorrupt);
    }

    #[test]
    fn two_agents_cannot_have_the_same_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let _store = Store::open(&path).unwrap();
        assert!(matches!(
            Store::open(&path),
            Err(StoreError::Open(ReadError::Journal(JournalError::Locked)))
        ));
    }
}
