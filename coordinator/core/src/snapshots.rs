//! What can be asked about users' repositories, and why it may be refused.
//!
//! A node tells of a snapshot as often as it has to until it is answered: whatever was answered once is answered the same
//! again, and nothing is written down twice.
//!
//! ```text
//!                         generation of the report        HEAD
//! Take ── of the user's home, newer than HEAD ──────────> moves, the one before goes to the history
//!      ├─ of the user's home, not newer ────────────────> stays; the snapshot goes to the history
//!      └─ any other, or taken aside ────────────────────> stays; the snapshot is an orphan
//! ```
//!
//! A sequence that no node can have come to by counting is refused ([`SEQ_AHEAD_MAX`]). A snapshot that is said to be of the
//! future is taken down as of now: its node's clock is ahead, which is no reason to do without it.
//!
//! An operator's *import* is a snapshot that no node took. It stands before all that HEAD's generation took, so that it
//! moves nothing where there is a HEAD; a node puts it in place by a restore, and what the node takes next is HEAD. Where
//! there is none it is HEAD.

use std::collections::BTreeSet;

use berth_shared::ids::{Generation, KeyId, NodeId, NodeName, Slug, UserId};
use berth_shared::problem::Code;
use berth_shared::snapshot::{Retention, Snapshot, SnapshotId};

pub use crate::event::Opened;
use crate::rebuild::Rebuilt;

/// Most snapshots that are remembered behind a user's HEAD. The repository itself lists all that it holds.
pub const HISTORY_MAX: usize = 24;

/// Most orphans of one user that one node may tell of: far more than one lease's worth of sleeps, and no node fills the
/// list with others' names. More are refused for good: they lie in the bucket all the same, and are found there by their ids.
pub const ORPHANS_PER_NODE_MAX: usize = 64;

/// How far above the highest one that was told a node's next sequence may be. A node counts one by one and writes each number
/// to its disk, also for snapshots that fail or are never told of: at one a second it would take 136 years. What it holds
/// back is a node that uses up all numbers of its generation, behind which no snapshot would ever be HEAD again.
pub const SEQ_AHEAD_MAX: u64 = 1 << 32;

/// The sequence of an import: nodes begin with 1.
pub const IMPORT_SEQ: u64 = 0;

/// What can be asked about users' repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotCommand {
    /// The user's key lies in the key store. No events when it is known already.
    AdoptKey {
        /// Whose.
        user: UserId,
        /// Which.
        key: KeyId,
    },
    /// A node tells of a snapshot. No events when it was told before.
    Take {
        /// Which node, by its session.
        node: NodeId,
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: Box<Snapshot>,
        /// It lies with the orphans, because the node could not know whether its generation was in force still.
        aside: bool,
    },
    /// A snapshot was made of data that the user brought along, under [`Fleet::imports_as`](crate::Fleet::imports_as). No
    /// events where it is known.
    Import {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: Box<Snapshot>,
    },
    /// The keys of a user that was removed are to be destroyed, its repository's where it has one and its record key. No
    /// events when they were before.
    PurgeKey {
        /// Whose.
        user: UserId,
    },
    /// Records that the repository's password is shown. The password itself comes from the key store.
    ShowPassword {
        /// Whose.
        user: UserId,
    },
    /// Records that files of the user are shown, out of its repository.
    OpenFiles {
        /// Whose.
        user: UserId,
        /// The snapshot, as it was asked for.
        snapshot: String,
        /// What of it.
        what: Opened,
    },
    /// Says how many of the user's snapshots a prune leaves. No events when it is so already.
    SetRetention {
        /// Whose.
        user: UserId,
        /// `None`: as many as of any user's.
        retention: Option<Retention>,
    },
    /// These snapshots are gone from the repository. No events where none are.
    Forget {
        /// Whose.
        user: UserId,
        /// Which.
        gone: BTreeSet<SnapshotId>,
    },
    /// Takes over what a listing of the bucket tells of a user that no journal knows.
    Rebuild(Box<Rebuilt>),
}

/// Why it was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotRefusal {
    /// No such user, now or before.
    #[error("there is no user {user}")]
    UnknownUser {
        /// Who.
        user: UserId,
    },
    /// Its key was destroyed.
    #[error("the key of {user} was purged: nothing of its repository can be read any more")]
    Purged {
        /// Whose.
        user: UserId,
    },
    /// It has another key already.
    #[error("{user} has the key {key} already")]
    HasKey {
        /// Who.
        user: UserId,
        /// Which.
        key: KeyId,
    },
    /// Its key is not made yet.
    #[error("{user} has no repository key yet")]
    NoKey {
        /// Who.
        user: UserId,
    },
    /// The user is still there.
    #[error("user `{slug}` is still there: its key is purged after it was removed")]
    StillThere {
        /// Who.
        slug: Slug,
    },
    /// Something is known of it already, so that a listing has nothing to say.
    #[error("the journal knows {user} already: HEADs are rebuilt into an empty one only")]
    Known {
        /// Who.
        user: UserId,
    },
    /// The node is locked or revoked.
    #[error("node `{name}` is {why}: it moves no HEAD")]
    Barred {
        /// Which.
        name: NodeName,
        /// How it stands.
        why: &'static str,
        /// The code of that.
        code: Code,
    },
    /// The generation in force was given to another node, or the cell is not the user's.
    #[error("node `{name}` tells of a snapshot of generation {generation}, which it never had")]
    NotItsOwn {
        /// Which.
        name: NodeName,
        /// The generation that it named.
        generation: Generation,
    },
    /// The user was given to another node meanwhile, or made anew.
    #[error("the user has moved meanwhile: import again")]
    Moved,
    /// A prune would leave nothing.
    #[error("`last` has to be 1 or more: the newest snapshot always stays")]
    KeepsNone,
    /// No node has counted so far.
    #[error(
        "node `{name}` tells of snapshot number {seq}, more than {SEQ_AHEAD_MAX} above the last one that it told of"
    )]
    TooFarAhead {
        /// Which.
        name: NodeName,
        /// What it told.
        seq: u64,
    },
    /// More than are kept.
    #[error("node `{name}` has told of {ORPHANS_PER_NODE_MAX} orphans of this user, more are not kept")]
    TooManyOrphans {
        /// Which.
        name: NodeName,
    },
}

/// HEAD was not moved, because the generation that asked for it is not the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct StaleGeneration {
    /// The one that took the snapshot.
    pub given: Generation,
    /// The one in force; `None`: the user had none.
    pub current: Option<Generation>,
}

impl StaleGeneration {
    fn text(&self) -> String {
        let given = self.given;
        if self.current == Some(given) {
            return format!(
                "HEAD does not move: the snapshot of generation {given} was taken while the node's lease was over"
            );
        }
        let current = or_none(self.current);
        format!("HEAD does not move: the snapshot is of generation {given}, in force is {current}")
    }
}

fn or_none(generation: Option<Generation>) -> String {
    generation.map_or("none".to_owned(), |generation| generation.to_string())
}

/// Where a snapshot that was taken down stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is HEAD.
    Head,
    /// It is in the history, or was until newer ones took its place.
    Kept,
}

impl SnapshotRefusal {
    /// The stable code.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownUser { .. } => Code::UnknownUser,
            Self::Purged { .. } => Code::KeyPurged,
            Self::NoKey { .. } => Code::KeyMissing,
            Self::StillThere { .. } | Self::HasKey { .. } | Self::Known { .. } => Code::UserInUse,
            Self::Barred { code, .. } => *code,
            Self::NotItsOwn { .. } | Self::Moved => Code::StaleGeneration,
            Self::KeepsNone => Code::BadRequest,
            Self::TooManyOrphans { .. } | Self::TooFarAhead { .. } => Code::TooMany,
        }
    }
}

/// Is this code the last word on a report of a snapshot? Of all others the node has to ask again.
pub const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownUser | Code::KeyPurged | Code::StaleGeneration | Code::NodeRejected | Code::TooMany
    )
}
