//! The words of the journal: what a record is and how it is named. Owned by this crate; meaning of kinds is the caller's.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::segment;

/// Place of a record in the journal. The first record has 1; 0 stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(u64);

impl Seq {
    /// Before the first record.
    pub const ZERO: Self = Self(0);
    /// The first record.
    pub const FIRST: Self = Self(1);

    /// The sequence with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sequence `count` further on; `None` behind `u64::MAX`.
    #[must_use]
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }

    /// The sequence before this one; `None` before [`Seq::ZERO`].
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// SHA-256 over all records up to a place: stands for the whole history before it. Shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain([u8; Self::BYTES]);

impl Chain {
    /// Length of a chain hash.
    pub const BYTES: usize = 32;
    /// The chain before sequence 1.
    pub const GENESIS: Self = Self([0; Self::BYTES]);

    /// The chain with these bytes, such as one taken from a checkpoint.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The chain after a record: `SHA-256(self, head, payload)`. `head` is of fixed length and holds the length of
    /// `payload`, so no two records give the same input.
    pub(crate) fn after(self, head: &[u8], payload: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(head);
        hash.update(payload);
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

/// What kind of fact a record holds. Numbers are given by the owner of the journal and never used again for
/// something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindId(pub u16);

/// Version of a kind's payload. A released (kind, version) is never edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindVersion(pub u16);

/// A record to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRecord<'a> {
    /// What kind of fact it is.
    pub kind: KindId,
    /// Version of the payload's form.
    pub version: KindVersion,
    /// The fact, at most [`PAYLOAD_BYTES_MAX`](crate::PAYLOAD_BYTES_MAX); may be empty.
    pub payload: &'a [u8],
}

/// Where a group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// First sequence of its segment: the segment's name.
    pub segment: Seq,
    /// Byte in that file.
    pub offset: u64,
}

impl At {
    /// File name of the segment.
    #[must_use]
    pub fn segment_name(&self) -> String {
        segment::name_of(self.segment)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}, byte {}", self.segment_name(), self.offset)
    }
}

/// A record that was read; whole and in its place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place.
    pub seq: Seq,
    /// Where its group starts.
    pub at: At,
    /// What kind of fact it is.
    pub kind: KindId,
    /// Version of the payload's form.
    pub version: KindVersion,
    /// The fact.
    pub payload: &'a [u8],
    /// Hash of this record and all before it.
    pub chain: Chain,
}

/// The newest record of a journal: which, and the hash that stands for it and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its sequence; [`Seq::ZERO`] in an empty journal.
    pub seq: Seq,
    /// Its chain; [`Chain::GENESIS`] in an empty journal.
    pub chain: Chain,
}

/// The place right behind a commit, and the history that ends there: enough to begin reading at it, and to know at
/// once whether a journal has that history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The newest record before the place.
    pub head: Head,
    /// First sequence of the segment.
    pub segment: Seq,
    /// Byte in that segment, behind the commit marker.
    pub end: u64,
}

impl Head {
    /// The head of a journal without records.
    pub const EMPTY: Self = Self { seq: Seq::ZERO, chain: Chain::GENESIS };
}
