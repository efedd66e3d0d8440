//! Facts about users' repository keys and snapshots. Kinds 70 to 79, 91 and 92.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited.

use berth_shared::cell::ImageRef;
use berth_shared::codec::CodecError;
use berth_shared::ids::{CellId, Generation, KeyId, NodeId, UserId};
use berth_shared::snapshot::{self, Retention, SnapshotId, TreeHash};
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use serde::{Deserialize, Serialize};

use super::{Event, Fact, Kind, v1};

/// What is true of a user's repository from an event on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotFact {
    /// The user's repository has this key, which lies in the key store.
    KeyMade {
        /// Whose. Not a user of today where HEADs were rebuilt from a listing.
        user: UserId,
        /// Which.
        key: KeyId,
    },
    /// The key is to be destroyed in the key store, and the user's record key with it; all that was known of the repository
    /// is forgotten.
    KeyPurged {
        /// Whose.
        user: UserId,
        /// Which.
        key: KeyId,
    },
    /// The record key of a removed user that has no repository is to be destroyed in the key store.
    RecordKeyPurged {
        /// Whose.
        user: UserId,
    },
    /// The repository's password was shown. For the audit: nothing else depends on it.
    PasswordShown {
        /// Whose.
        user: UserId,
        /// Of which key.
        key: KeyId,
    },
    /// Files of the user were looked at in its repository. For the audit: nothing else depends on it. Which files is left
    /// out, since what is in the journal stays there.
    FilesOpened {
        /// Whose.
        user: UserId,
        /// Of which key.
        key: KeyId,
        /// The snapshot, as it was asked for: digits of an id, or nothing.
        snapshot: String,
        /// What of it was shown.
        what: Opened,
    },
    /// This is how many of the user's snapshots a prune leaves.
    RetentionSet {
        /// Whose.
        user: UserId,
        /// `None`: as many as of any user's.
        retention: Option<Retention>,
    },
    /// Snapshots are gone from the repository, by the rule of retention.
    SnapshotsForgotten {
        /// Whose.
        user: UserId,
        /// How many.
        count: u64,
        /// Those of them that the history had.
        known: Vec<SnapshotId>,
    },
    /// This is the user's newest snapshot.
    HeadMoved {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: snapshot::Snapshot,
    },
    /// The repository holds this one, too. HEAD stays.
    SnapshotKept {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: snapshot::Snapshot,
    },
    /// This one is of a generation that was not in force. HEAD stays.
    SnapshotOrphaned {
        /// Whose.
        user: UserId,
        /// Who took it; `None` where it was found in a listing.
        node: Option<NodeId>,
        /// The generation in force; `None`: the user had none.
        current: Option<Generation>,
        /// Which.
        snapshot: snapshot::Snapshot,
    },
}

/// What of a user's files was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opened {
    /// The names of files.
    Names,
    /// What differs between two snapshots.
    Differences,
    /// The content of one file.
    Content,
    /// All of it.
    All,
}

impl SnapshotFact {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::KeyMade { .. } => Kind::RepositoryKeyMade,
            Self::KeyPurged { .. } => Kind::RepositoryKeyPurged,
            Self::RecordKeyPurged { .. } => Kind::RecordKeyPurged,
            Self::PasswordShown { .. } => Kind::RepositoryPasswordShown,
            Self::FilesOpened { .. } => Kind::FilesOpened,
            Self::RetentionSet { .. } => Kind::RetentionSet,
            Self::SnapshotsForgotten { .. } => Kind::SnapshotsForgotten,
            Self::HeadMoved { .. } => Kind::HeadMoved,
            Self::SnapshotKept { .. } => Kind::SnapshotKept,
            Self::SnapshotOrphaned { .. } => Kind::SnapshotOrphaned,
        }
    }

    /// Whose repository it is about.
    pub const fn user(&self) -> UserId {
        let (Self::KeyMade { user, .. }
        | Self::KeyPurged { user, .. }
        | Self::RecordKeyPurged { user }
        | Self::PasswordShown { user, .. }
        | Self::FilesOpened { user, .. }
        | Self::RetentionSet { user, .. }
        | Self::SnapshotsForgotten { user, .. }
        | Self::HeadMoved { user, .. }
        | Self::SnapshotKept { user, .. }
        | Self::SnapshotOrphaned { user, .. }) = self;
        *user
    }
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    id: SnapshotId,
    cell: CellId,
    epoch: u32,
    number: u64,
    seq: u64,
    taken_at: u64,
    bytes: u64,
    tree: TreeHash,
    image: ImageRef,
    parent: Option<SnapshotId>,
}

impl From<&snapshot::Snapshot> for Snapshot {
    fn from(of: &snapshot::Snapshot) -> Self {
        Self {
            id: of.id,
            cell: of.cell,
            epoch: of.generation.epoch,
            number: of.generation.number,
            seq: of.seq,
            taken_at: of.taken_at.0,
            bytes: of.bytes.0,
            tree: of.tree,
            image: of.image.clone(),
            parent: of.parent,
        }
    }
}

impl From<Snapshot> for snapshot::Snapshot {
    fn from(of: Snapshot) -> Self {
        Self {
            id: of.id,
            cell: of.cell,
            generation: Generation { epoch: of.epoch, number: of.number },
            seq: of.seq,
            taken_at: UnixMs(of.taken_at),
            bytes: Bytes(of.bytes),
            tree: of.tree,
            image: of.image,
            parent: of.parent,
        }
    }
}

type Key = (UserId, KeyId);
type RecordKeyPurged = UserId;
type Taken = (UserId, Snapshot);
type Files = (UserId, KeyId, String, Opened);
/// Newest, hourly, daily, weekly, monthly.
type Kept = (UserId, Option<(u16, u16, u16, u16, u16)>);
type Forgotten = (UserId, u64, Vec<SnapshotId>);
type Orphaned = (UserId, Option<NodeId>, Option<(u32, u64)>, Snapshot);

pub(super) fn encode(event: &Event, fact: &SnapshotFact) -> Result<Vec<u8>, CodecError> {
    match fact {
        SnapshotFact::KeyMade { user, key }
        | SnapshotFact::KeyPurged { user, key }
        | SnapshotFact::PasswordShown { user, key } => v1::put::<Key>(event, (*user, *key)),
        SnapshotFact::RecordKeyPurged { user } => v1::put::<RecordKeyPurged>(event, *user),
        SnapshotFact::FilesOpened { user, key, snapshot, what } => {
            v1::put::<Files>(event, (*user, *key, snapshot.clone(), *what))
        }
        SnapshotFact::RetentionSet { user, retention } => {
            let kept = retention.map(|of| (of.last, of.hourly, of.daily, of.weekly, of.monthly));
            v1::put::<Kept>(event, (*user, kept))
        }
        SnapshotFact::SnapshotsForgotten { user, count, known } => {
            v1::put::<Forgotten>(event, (*user, *count, known.clone()))
        }
        SnapshotFact::HeadMoved { user, snapshot } | SnapshotFact::SnapshotKept { user, snapshot } => {
            v1::put::<Taken>(event, (*user, snapshot.into()))
        }
        SnapshotFact::SnapshotOrphaned { user, node, current, snapshot } => {
            let current = current.map(|current| (current.epoch, current.number));
            v1::put::<Orphaned>(event, (*user, *node, current, snapshot.into()))
        }
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    let key = |make: fn(UserId, KeyId) -> SnapshotFact| {
        v1::take(payload, |(user, key): Key| Fact::Snapshot(make(user, key)))
    };
    let taken = |make: fn(UserId, snapshot::Snapshot) -> SnapshotFact| {
        v1::take(payload, |(user, snapshot): Taken| Fact::Snapshot(make(user, snapshot.into())))
    };
    Some(match kind {
        Kind::RepositoryKeyMade => key(|user, key| SnapshotFact::KeyMade { user, key }),
        Kind::RepositoryKeyPurged => key(|user, key| SnapshotFact::KeyPurged { user, key }),
        Kind::RecordKeyPurged => {
            v1::take(payload, |user: RecordKeyPurged| Fact::Snapshot(SnapshotFact::RecordKeyPurged { user }))
        }
        Kind::RepositoryPasswordShown => key(|user, key| SnapshotFact::PasswordShown { user, key }),
        Kind::FilesOpened => v1::take(payload, |(user, key, snapshot, what): Files| {
            Fact::Snapshot(SnapshotFact::FilesOpened { user, key, snapshot, what })
        }),
        Kind::RetentionSet => v1::take(payload, |(user, kept): Kept| {
            let retention = kept.map(|(last, hourly, daily, weekly, monthly)| Retention {
                last,
                hourly,
                daily,
                weekly,
                monthly,
            });
            Fact::Snapshot(SnapshotFact::RetentionSet { user, retention })
        }),
        Kind::SnapshotsForgotten => v1::take(payload, |(user, count, known): Forgotten| {
            Fact::Snapshot(SnapshotFact::SnapshotsForgotten { user, count, known })
        }),
        Kind::HeadMoved => taken(|user, snapshot| SnapshotFact::HeadMoved { user, snapshot }),
        Kind::SnapshotKept => taken(|user, snapshot| SnapshotFact::SnapshotKept { user, snapshot }),
        Kind::SnapshotOrphaned => v1::take(payload, |(user, node, current, snapshot): Orphaned| {
            let current = current.map(|(epoch, number)| Generation { epoch, number });
            Fact::Snapshot(SnapshotFact::SnapshotOrphaned { user, node, current, snapshot: snapshot.into() })
        }),
        _ => return None,
    })
}
