//! What is known of a snapshot of a cell's data: told by the node that took it, kept by the coordinator.
//!
//! The data itself lies in the user's repository. Its newest snapshot is the user's HEAD: a record of the coordinator,
//! moved by whoever holds the user's newest generation and by nobody else.

mod paths;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cell::ImageRef;
use crate::ids::{CellId, Generation};
use crate::problem::Problem;
use crate::time::UnixMs;
use crate::units::Bytes;

pub use paths::{PATHS_BYTES_MAX, PATHS_MAX, Paths, PathsError};

/// How many of a cell's snapshots a prune leaves, by the time that they were taken at. All count side by side: a snapshot
/// stays as long as one of them wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many. 1 or more: HEAD always stays.
    pub last: u16,
    /// And the newest one of each of so many hours in which there is one.
    pub hourly: u16,
    /// Of days.
    pub daily: u16,
    /// Of weeks.
    pub weekly: u16,
    /// Of months.
    pub monthly: u16,
}

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 digits of 0-9 and a-f")]
pub struct HashError;

macro_rules! hash {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes raw bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = HashError;
            fn from_str(text: &str) -> Result<Self, HashError> {
                let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| HashError)?;
                bytes.try_into().map(Self).map_err(|_| HashError)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(d).map(Self)
                }
            }
        }
    };
}

hash! {
    /// A snapshot's id in its repository: the SHA-256 of its description, as restic names it.
    SnapshotId
}
hash! {
    /// Hash over a cell's files as they were at the snapshot: paths, modes, contents, links, attributes, times.
    TreeHash
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its id in the repository.
    pub id: SnapshotId,
    /// Of which cell.
    pub cell: CellId,
    /// The assignment under which it was taken.
    pub generation: Generation,
    /// Grows with each snapshot that this generation takes. The first is 1.
    pub seq: u64,
    /// The node's wall clock when it was begun.
    pub taken_at: UnixMs,
    /// Size of the files in it.
    pub bytes: Bytes,
    /// Hash over them.
    pub tree: TreeHash,
    /// What the cell ran: its data is of this image or an older one.
    pub image: ImageRef,
    /// The snapshot before it, if it was made on top of one.
    pub parent: Option<SnapshotId>,
}

impl Snapshot {
    /// Its place among the snapshots of its user: by generation first, then by sequence.
    pub const fn place(&self) -> (Generation, u64) {
        (self.generation, self.seq)
    }
}

/// What became of a snapshot that a node has told of. All but [`Later`](Self::Later) is final: the node need not tell
/// of it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotOutcome {
    /// It is the user's HEAD, or was until a newer one came.
    Head,
    /// It is kept in the user's list, behind a newer one of the same generation: HEAD has not moved.
    Kept,
    /// The generation that took it is not in force: HEAD has not moved, the snapshot is listed as an orphan.
    Orphan {
        /// The user's generation at that time; `None`: the user had none.
        current: Option<Generation>,
    },
    /// It is not taken down and never will be.
    Refused(Problem),
    /// It is not taken down now. Tell of it again at the next session.
    Later(Problem),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_64_lower_case_digits_are_a_hash() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<SnapshotId>().unwrap().to_string(), good);
        for bad in ["", "0", &good[1..], &format!("{good}0"), &good.to_uppercase(), &"g".repeat(64)] {
            assert_eq!(bad.parse::<SnapshotId>(), Err(HashError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn hashes_survive_text_json_and_bincode(bytes: [u8; 32]) {
            let hash = TreeHash::from_bytes(bytes);
            prop_assert_eq!(hash.to_string().parse::<TreeHash>().unwrap(), hash);
            let json = serde_json::to_string(&hash).unwrap();
            prop_assert_eq!(serde_json::from_str::<TreeHash>(&json).unwrap(), hash);
            let bin = crate::codec::encode(&hash).unwrap();
            prop_assert_eq!(crate::codec::decode::<TreeHash>(&bin, 64).unwrap(), hash);
        }
    }
}
