//! Every way the journal can fail, and what each means for the caller.

use std::{fmt, io};

use crate::format::{GROUP_BYTES_MAX, GROUP_RECORDS_MAX, PAYLOAD_BYTES_MAX};
use crate::record::{At, Chain, Seq};

/// Why the journal did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process, or another `Journal` in this one, has the directory open.
    #[error("the journal is open in another process")]
    Locked,
    /// The directory could not be locked, for another reason than somebody else's lock.
    #[error("could not lock the journal")]
    Lock(#[source] io::Error),
    /// There is no journal, and [`Options::create`](crate::Options::create) is off.
    #[error("there is no journal here")]
    Missing,
    /// The journal is damaged. Nothing was changed.
    #[error("the journal is damaged: {0}")]
    Corrupt(Box<Corruption>),
    /// A file or the directory could not be read.
    #[error("could not read {name}")]
    Read {
        /// File name in the journal's directory; `.` for the directory itself.
        name: String,
        /// What the file layer said.
        #[source]
        source: io::Error,
    },
    /// No room on the disk. The group was not appended, the journal is as before, and appends work again once
    /// there is room.
    #[error("no room to write {name}")]
    Full {
        /// File name in the journal's directory.
        name: String,
        /// What the file layer said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written, made, renamed or removed. The group was not appended; the journal is as before.
    #[error("could not write {name}")]
    Write {
        /// File name in the journal's directory.
        name: String,
        /// What the file layer said.
        #[source]
        source: io::Error,
    },
    /// What a failed write left could not be taken back. Fatal: the journal is poisoned.
    #[error("could not take back a write to {name} that failed before ({write})")]
    Undo {
        /// File name in the journal's directory.
        name: String,
        /// Why the write had failed.
        write: io::Error,
        /// Why it could not be taken back.
        #[source]
        source: io::Error,
    },
    /// Written data could not be made durable; whether it is on the disk is unknown. Fatal: the journal is poisoned
    /// and the process must end, since only a fresh start can find out what the disk holds.
    #[error("could not sync {name}")]
    Sync {
        /// File name in the journal's directory; `.` for the directory itself.
        name: String,
        /// What the file layer said.
        #[source]
        source: io::Error,
    },
    /// An earlier fatal error poisoned the journal.
    #[error("the journal is out of use since an earlier error; the process must be started again")]
    Poisoned,
    /// A group without records.
    #[error("a group needs at least one record")]
    EmptyGroup,
    /// One payload is too long.
    #[error("a payload of {bytes} bytes is longer than {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Too many records in one group.
    #[error("a group of {records} records is more than {GROUP_RECORDS_MAX}")]
    TooManyRecords {
        /// How many.
        records: usize,
    },
    /// The group is too long in bytes.
    #[error("a group of {bytes} bytes is longer than {GROUP_BYTES_MAX}")]
    GroupTooLong {
        /// Its length on disk, as [`group_bytes`](crate::group_bytes) counts.
        bytes: usize,
    },
    /// There is no sequence number left.
    #[error("the journal has used up its sequence numbers")]
    SequenceExhausted,
    /// Records before this one were dropped, or never were here.
    #[error("the journal starts at sequence {first}; {asked} is before it")]
    Dropped {
        /// What was asked for.
        asked: Seq,
        /// The oldest sequence that is here.
        first: Seq,
    },
}

impl JournalError {
    /// Must the process end? True when it is unknown what the disk holds.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Undo { .. } | Self::Sync { .. } | Self::Poisoned => true,
            Self::Locked
            | Self::Lock(_)
            | Self::Missing
            | Self::Corrupt(_)
            | Self::Read { .. }
            | Self::Full { .. }
            | Self::Write { .. }
            | Self::EmptyGroup
            | Self::PayloadTooLong { .. }
            | Self::TooManyRecords { .. }
            | Self::GroupTooLong { .. }
            | Self::SequenceExhausted
            | Self::Dropped { .. } => false,
        }
    }

    /// The damage, when that is what is wrong.
    #[must_use]
    pub fn corruption(&self) -> Option<&Corruption> {
        if let Self::Corrupt(corruption) = self { Some(corruption) } else { None }
    }

    pub(crate) fn read(name: impl Into<String>, source: io::Error) -> Self {
        Self::Read { name: name.into(), source }
    }

    pub(crate) fn sync(name: impl Into<String>, source: io::Error) -> Self {
        Self::Sync { name: name.into(), source }
    }

    /// A failed write, told apart by whether room is what was missing.
    pub(crate) fn write(name: impl Into<String>, source: io::Error) -> Self {
        let name = name.into();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::WriteZero => Self::Full { name, source },
            _ => Self::Write { name, source },
        }
    }
}

/// Why records were not read to the end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The caller refused a record.
    #[error("{at}, sequence {seq}: the record was refused by its reader")]
    Refused {
        /// Which.
        seq: Seq,
        /// Where its group starts.
        at: At,
        /// Why.
        #[source]
        source: E,
    },
}

/// Damage, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// File name of the segment.
    pub segment: String,
    /// Where in that file: start of the header, opening, record, padding or marker that is wrong.
    pub offset: u64,
    /// The sequence that was expected there.
    pub seq: Seq,
    /// What was expected and what is there.
    pub fault: Fault,
    /// Why it is not merely a write that a crash cut short.
    pub witness: Witness,
    /// What the owner of the journal says to do.
    pub advice: String,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, seq, fault, witness, advice } = self;
        write!(f, "segment {segment}, byte {offset}, sequence {seq}: {fault}; {witness}. {advice}")
    }
}

/// What was expected, and what is there instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it, for people")]
pub enum Fault {
    #[error("expected a file name of 20 digits and `.log`")]
    Name,
    #[error("expected a segment that starts at sequence {seq} or before, found none")]
    FirstSegmentMissing { seq: Seq },
    #[error("expected a segment header that fills 512 bytes, found the end of the file")]
    HeaderCut,
    #[error("expected a segment header, found its checksum wrong")]
    HeaderChecksum,
    #[error("expected the magic of a segment header")]
    HeaderMagic,
    #[error("expected the fields of a version 1 segment header")]
    HeaderFields,
    #[error("expected format version 1, found {found}, which a newer release may read")]
    FormatVersion { found: u16 },
    #[error("expected the segment that its name says, found the one that starts at sequence {found}")]
    HeaderSequence { found: Seq },
    #[error("expected a segment that starts at sequence {expected}: at least one segment is missing")]
    SegmentGap { expected: Seq },
    #[error("expected a segment that continues the chain {expected}, found one that continues {found}")]
    SegmentChain { expected: Chain, found: Chain },
    #[error("expected the rest of a group, found the end of the file")]
    EndsInside,
    #[error("expected the opening of a group, found other bytes")]
    NoOpening,
    #[error("expected the opening of a group, found its checksum wrong")]
    OpeningChecksum,
    #[error("expected the opening of a group that was written here, found the one of byte {offset}")]
    OpeningMoved { offset: u64 },
    #[error("expected the opening of a group of this segment, found one of another segment")]
    OpeningForeign { id: [u8; 16] },
    #[error("expected a group that starts at this sequence, found {found}")]
    OpeningSequence { found: Seq },
    #[error("expected a group within the limits of length and count")]
    GroupSize,
    #[error("expected a record within the bounds of its group")]
    RecordLength,
    #[error("expected a record, found its checksum wrong")]
    RecordChecksum,
    #[error("expected a record with this sequence, found {found}")]
    RecordSequence { found: Seq },
    #[error("expected a record that continues the chain of the one before it")]
    RecordChain,
    #[error("expected zeros between the last record and the commit marker")]
    Padding,
    #[error("expected a commit marker, found other bytes")]
    NoMarker,
    #[error("expected a commit marker, found its checksum wrong")]
    MarkerChecksum,
    #[error("expected the commit marker of this group, found another one")]
    MarkerMismatch,
    #[error("expected records up to sequence {synced}, found the end of the journal")]
    EndsEarly { synced: Seq },
    #[error(
        "expected the history that ended in chain {expected} at sequence {synced}, found another history"
    )]
    OtherHistory { synced: Seq, expected: Chain },
}

/// How it is known that the damaged place had been synced, so that it is not an incomplete write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Witness {
    /// Segment headers are synced before the segment gets its name; names and history are never half-written.
    #[error("this is never left by a crash")]
    NeverTorn,
    /// The segment is not the last.
    #[error("a later segment was made after it had been synced")]
    LaterSegment,
    /// A group that starts behind it was begun.
    #[error("a group at byte {offset} was written after it had been synced")]
    LaterGroup {
        /// Where that group starts.
        offset: u64,
    },
    /// The group ends before the file does.
    #[error("the file goes on at byte {offset}, behind the group, so that it had been synced")]
    FileGoesOn {
        /// Where the group ends.
        offset: u64,
    },
    /// More than one unsynced group could have left.
    #[error("the file goes on for {bytes} bytes, more than one unsynced group can be")]
    TooLong {
        /// From the damaged place to the end of the file.
        bytes: u64,
    },
    /// The `synced` file names a sequence at or behind it.
    #[error("`synced` says that all up to sequence {seq} had been synced")]
    Synced {
        /// That sequence.
        seq: Seq,
    },
    /// It was whole when something outside the journal noted its chain: a snapshot of what it adds up to.
    #[error("it was whole when its history up to sequence {seq} was noted")]
    Marked {
        /// That sequence.
        seq: Seq,
    },
    /// This process has synced it itself.
    #[error("it was whole when this process opened or wrote it")]
    Committed,
}
