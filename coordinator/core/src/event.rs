//! The facts of the fleet. Once in the journal they are true for ever.
//!
//! A fact is written as `(kind, version, payload)`. The payload types of each version are in a module of their own,
//! such as `v1`, made of nothing that is edited elsewhere; a released one is never changed. A new version gets new
//! payload types and is what [`Event::encode`] writes; every old one stays readable. The golden files in
//! `golden/` hold one payload of each, and a test decodes them.

mod keys;
mod moves;
mod quarantine;
mod sleep;
mod snapshots;
mod user_image;
mod v1;

use berth_shared::cell::{CellSize, ImageRef, RestPolicy, Workload};
use berth_shared::codec::CodecError;
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, Generation, NodeId, NodeName, OperatorKeyId, Slug, TokenId, UserId};
use berth_shared::link::SessionMark;
use berth_shared::signing::PublicKey;
use berth_shared::time::UnixMs;
use berth_shared::wire::NodeFacts;

use crate::actor::Actor;
use crate::personal::{Field, Sealed};

pub use keys::KeyFact;
pub use moves::MoveFact;
pub use quarantine::QuarantineFact;
pub use sleep::SleepFact;
pub use snapshots::{Opened, SnapshotFact};

/// Largest payload of an event, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 8 * 1024;

/// One fact, who caused it and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Wall clock of the decision. Not ordered: the clock may have been stepped. The journal's order counts.
    pub at: UnixMs,
    /// Who caused it.
    pub actor: Actor,
    /// What is true from now on.
    pub fact: Fact,
}

/// What is true from an event on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// There is this operator key.
    Installed {
        /// Names it.
        operator: OperatorKeyId,
        /// What is stored of it.
        hash: SecretHash,
    },
    /// Users live at `<slug>.<domain>`.
    DomainSet {
        /// A DNS name.
        domain: String,
    },
    /// There is this user. Its cell lives nowhere yet.
    UserCreated {
        /// For ever.
        user: UserId,
        /// Its home cell.
        cell: CellId,
        /// Its name.
        slug: Slug,
        /// How the cell's container is handled.
        workload: Workload,
        /// What it runs.
        image: ImageRef,
        /// Its limits.
        size: CellSize,
        /// When it sleeps.
        rest: RestPolicy,
    },
    /// The user is gone. Its cell was taken from its node before.
    UserRemoved {
        /// Who.
        user: UserId,
    },
    /// The user's cell lives on this node and on no other.
    Assigned {
        /// Whose.
        user: UserId,
        /// Where.
        node: NodeId,
        /// The fencing token: higher than any that was given for this user's name before.
        generation: Generation,
        /// Why there: one line per node that was looked at, as far as kept.
        reasons: Vec<String>,
    },
    /// The user's cell lives nowhere.
    Unassigned {
        /// Whose.
        user: UserId,
        /// The assignment that ended.
        generation: Generation,
    },
    /// A program may come in as this user.
    BearerIssued {
        /// As whom.
        user: UserId,
        /// What is stored of the token.
        hash: SecretHash,
    },
    /// None of the user's bearer tokens are good any more.
    BearersRevoked {
        /// Whose.
        user: UserId,
    },
    /// Browser sessions from before are void.
    SessionsRevoked {
        /// Whose.
        user: UserId,
        /// Sessions that began before this are void.
        valid_from: UnixMs,
    },
    /// A login link was made.
    LoginLinkIssued {
        /// For whom.
        user: UserId,
        /// Worthless after this.
        expires_at: UnixMs,
    },
    /// One node may join.
    TokenCreated {
        /// Names the token.
        token: TokenId,
        /// The name that the node will have.
        node: NodeName,
        /// What is stored of its secret.
        hash: SecretHash,
        /// Worthless after this.
        expires_at: UnixMs,
    },
    /// The token is gone.
    TokenRevoked {
        /// Which.
        token: TokenId,
    },
    /// The token let this node in.
    TokenUsed {
        /// Which.
        token: TokenId,
        /// Whom.
        node: NodeId,
    },
    /// There is this node.
    NodeJoined {
        /// For ever.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// Its identity on the link.
        key: PublicKey,
        /// What it was made of when it joined.
        facts: NodeFacts,
    },
    /// The node is gone.
    NodeRemoved {
        /// Which.
        node: NodeId,
    },
    /// The node opened this session; none with an older mark is let in any more.
    SessionOpened {
        /// Which node.
        node: NodeId,
        /// The session's mark.
        mark: SessionMark,
    },
    /// About keys.
    Key(KeyFact),
    /// About nodes that are away.
    Move(MoveFact),
    /// About quarantines.
    Quarantine(QuarantineFact),
    /// About terms of sleep.
    Sleep(SleepFact),
    /// About users' repositories.
    Snapshot(SnapshotFact),
    /// This is what the user's cell runs, from its next start on.
    ImageSet {
        /// Whose.
        user: UserId,
        /// Which image.
        image: ImageRef,
    },
}

/// What kind of fact a record holds. A number is never used for another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// [`Fact::Installed`].
    Installed = 1,
    /// [`Fact::DomainSet`].
    DomainSet = 2,
    /// [`Fact::UserCreated`].
    UserCreated = 3,
    /// [`Fact::UserRemoved`].
    UserRemoved = 4,
    /// [`Fact::Assigned`].
    Assigned = 5,
    /// [`Fact::Unassigned`].
    Unassigned = 6,
    /// [`Fact::BearerIssued`].
    BearerIssued = 7,
    /// [`Fact::BearersRevoked`].
    BearersRevoked = 8,
    /// [`Fact::SessionsRevoked`].
    SessionsRevoked = 9,
    /// [`Fact::LoginLinkIssued`].
    LoginLinkIssued = 10,
    /// [`Fact::TokenCreated`].
    TokenCreated = 11,
    /// [`Fact::TokenRevoked`].
    TokenRevoked = 12,
    /// [`Fact::TokenUsed`].
    TokenUsed = 13,
    /// [`Fact::NodeJoined`].
    NodeJoined = 14,
    /// [`Fact::NodeRemoved`].
    NodeRemoved = 15,
    /// [`Fact::SessionOpened`].
    SessionOpened = 16,
    /// [`KeyFact::NodeKeyAdded`].
    NodeKeyAdded = 30,
    /// [`KeyFact::NodeKeyRetired`].
    NodeKeyRetired = 31,
    /// [`KeyFact::NodeRevoked`].
    NodeRevoked = 32,
    /// [`KeyFact::NodeLocked`].
    NodeLocked = 33,
    /// [`KeyFact::NodeUnlocked`].
    NodeUnlocked = 34,
    /// [`KeyFact::RejoinTokenCreated`].
    RejoinTokenCreated = 35,
    /// [`KeyFact::NodeRejoined`].
    NodeRejoined = 36,
    /// [`KeyFact::CoordinatorKeyAnnounced`].
    CoordinatorKeyAnnounced = 37,
    /// [`KeyFact::CoordinatorKeyStored`].
    CoordinatorKeyStored = 38,
    /// [`KeyFact::CoordinatorKeySwitched`].
    CoordinatorKeySwitched = 39,
    /// [`MoveFact::NodeDeclaredOff`].
    NodeDeclaredOff = 40,
    /// [`MoveFact::NodeReturned`].
    NodeReturned = 41,
    /// [`MoveFact::LeaseGiven`].
    LeaseGiven = 42,
    /// [`QuarantineFact::Quarantined`].
    Quarantined = 50,
    /// [`QuarantineFact::Released`].
    Released = 51,
    /// [`SleepFact::TermsSet`].
    SleepTermsSet = 60,
    /// [`SleepFact::Held`].
    Held = 61,
    /// [`SleepFact::HoldEnded`].
    HoldEnded = 62,
    /// [`SnapshotFact::KeyMade`].
    RepositoryKeyMade = 70,
    /// [`SnapshotFact::KeyPurged`].
    RepositoryKeyPurged = 71,
    /// [`SnapshotFact::HeadMoved`].
    HeadMoved = 72,
    /// [`SnapshotFact::SnapshotKept`].
    SnapshotKept = 73,
    /// [`SnapshotFact::SnapshotOrphaned`].
    SnapshotOrphaned = 74,
    /// [`SnapshotFact::PasswordShown`].
    RepositoryPasswordShown = 75,
    /// [`SnapshotFact::FilesOpened`].
    FilesOpened = 78,
    /// [`SnapshotFact::SnapshotsForgotten`].
    SnapshotsForgotten = 79,
    /// [`Fact::ImageSet`].
    ImageSet = 90,
    /// [`SnapshotFact::RetentionSet`].
    RetentionSet = 91,
    /// [`SnapshotFact::RecordKeyPurged`].
    RecordKeyPurged = 92,
    /// [`KeyFact::NodeKeyOrdered`].
    NodeKeyOrdered = 93,
    /// [`KeyFact::ReplacedKeyShown`].
    ReplacedKeyShown = 94,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Installed,
        Self::DomainSet,
        Self::UserCreated,
        Self::UserRemoved,
        Self::Assigned,
        Self::Unassigned,
        Self::BearerIssued,
        Self::BearersRevoked,
        Self::SessionsRevoked,
        Self::LoginLinkIssued,
        Self::TokenCreated,
        Self::TokenRevoked,
        Self::TokenUsed,
        Self::NodeJoined,
        Self::NodeRemoved,
        Self::SessionOpened,
        Self::NodeKeyAdded,
        Self::NodeKeyRetired,
        Self::NodeRevoked,
        Self::NodeLocked,
        Self::NodeUnlocked,
        Self::RejoinTokenCreated,
        Self::NodeRejoined,
        Self::CoordinatorKeyAnnounced,
        Self::CoordinatorKeyStored,
        Self::CoordinatorKeySwitched,
        Self::NodeDeclaredOff,
        Self::NodeReturned,
        Self::LeaseGiven,
        Self::Quarantined,
        Self::Released,
        Self::SleepTermsSet,
        Self::Held,
        Self::HoldEnded,
        Self::RepositoryKeyMade,
        Self::RepositoryKeyPurged,
        Self::HeadMoved,
        Self::SnapshotKept,
        Self::SnapshotOrphaned,
        Self::RepositoryPasswordShown,
        Self::FilesOpened,
        Self::SnapshotsForgotten,
        Self::ImageSet,
        Self::RetentionSet,
        Self::RecordKeyPurged,
        Self::NodeKeyOrdered,
        Self::ReplacedKeyShown,
    ];

    /// The number in the journal.
    pub const fn id(self) -> u16 {
        self as u16
    }

    fn of(id: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.id() == id)
    }
}

/// An event as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Which kind: [`Kind::id`].
    pub kind: u16,
    /// Which version of the kind's payload.
    pub version: u16,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Why an event could not be written or read. While reading, it means that the journal is damaged, or was written by
/// a newer release.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// No release knows this number, or only a newer one does.
    #[error("kind {kind} is not known to this release")]
    UnknownKind {
        /// The number.
        kind: u16,
    },
    /// Only a newer release knows it.
    #[error("version {version} of kind {kind:?} is not known to this release")]
    UnknownVersion {
        /// The kind.
        kind: Kind,
        /// Its version.
        version: u16,
    },
    /// The bytes are not such a payload.
    #[error("the payload of kind {kind:?} version {version} could not be read")]
    Payload {
        /// The kind.
        kind: Kind,
        /// Its version.
        version: u16,
        /// What was wrong.
        #[source]
        source: CodecError,
    },
    /// The event is larger than [`PAYLOAD_BYTES_MAX`], or has no encoding.
    #[error("the event of kind {kind:?} could not be encoded")]
    Encode {
        /// The kind.
        kind: Kind,
        /// What was wrong.
        #[source]
        source: CodecError,
    },
}

impl Fact {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Installed { .. } => Kind::Installed,
            Self::DomainSet { .. } => Kind::DomainSet,
            Self::UserCreated { .. } => Kind::UserCreated,
            Self::UserRemoved { .. } => Kind::UserRemoved,
            Self::Assigned { .. } => Kind::Assigned,
            Self::Unassigned { .. } => Kind::Unassigned,
            Self::BearerIssued { .. } => Kind::BearerIssued,
            Self::BearersRevoked { .. } => Kind::BearersRevoked,
            Self::SessionsRevoked { .. } => Kind::SessionsRevoked,
            Self::LoginLinkIssued { .. } => Kind::LoginLinkIssued,
            Self::TokenCreated { .. } => Kind::TokenCreated,
            Self::TokenRevoked { .. } => Kind::TokenRevoked,
            Self::TokenUsed { .. } => Kind::TokenUsed,
            Self::NodeJoined { .. } => Kind::NodeJoined,
            Self::NodeRemoved { .. } => Kind::NodeRemoved,
            Self::SessionOpened { .. } => Kind::SessionOpened,
            Self::Key(fact) => fact.kind(),
            Self::Move(fact) => fact.kind(),
            Self::Quarantine(fact) => fact.kind(),
            Self::Sleep(fact) => fact.kind(),
            Self::Snapshot(fact) => fact.kind(),
            Self::ImageSet { .. } => Kind::ImageSet,
        }
    }

    /// What of it is personal: whose, which text, and the text.
    pub const fn personal(&self) -> Option<(UserId, Field, &Sealed)> {
        match self {
            Self::Quarantine(QuarantineFact::Quarantined { user, reason }) => {
                Some((*user, Field::QuarantineReason, reason))
            }
            Self::Quarantine(QuarantineFact::Released { .. })
            | Self::Installed { .. }
            | Self::DomainSet { .. }
            | Self::UserCreated { .. }
            | Self::UserRemoved { .. }
            | Self::Assigned { .. }
            | Self::Unassigned { .. }
            | Self::BearerIssued { .. }
            | Self::BearersRevoked { .. }
            | Self::SessionsRevoked { .. }
            | Self::LoginLinkIssued { .. }
            | Self::TokenCreated { .. }
            | Self::TokenRevoked { .. }
            | Self::TokenUsed { .. }
            | Self::NodeJoined { .. }
            | Self::NodeRemoved { .. }
            | Self::SessionOpened { .. }
            | Self::Key(_)
            | Self::Move(_)
            | Self::Sleep(_)
            | Self::Snapshot(_)
            | Self::ImageSet { .. } => None,
        }
    }

    /// Whose record key is to be destroyed because of it.
    pub const fn purges(&self) -> Option<UserId> {
        let Self::Snapshot(SnapshotFact::KeyPurged { user, .. } | SnapshotFact::RecordKeyPurged { user }) =
            self
        else {
            return None;
        };
        Some(*user)
    }
}

impl Event {
    /// The event as the journal holds it, in the newest version of its kind.
    ///
    /// # Errors
    /// It is too large. Nothing that [`Fleet::decide`](crate::Fleet::decide) makes is.
    pub fn encode(&self) -> Result<Encoded, EventError> {
        let kind = self.fact.kind();
        let payload = v1::encode(self).map_err(|source| EventError::Encode { kind, source })?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            let source = CodecError::TooLong { len: payload.len(), max: PAYLOAD_BYTES_MAX };
            return Err(EventError::Encode { kind, source });
        }
        Ok(Encoded { kind: kind.id(), version: v1::VERSION, payload })
    }

    /// Reads an event of any version that was ever released.
    ///
    /// # Errors
    /// The record is damaged or of a newer release; the caller knows its place and names it.
    pub fn decode(kind: u16, version: u16, payload: &[u8]) -> Result<Self, EventError> {
        let kind = Kind::of(kind).ok_or(EventError::UnknownKind { kind })?;
        match version {
            v1::VERSION => v1::decode(kind, payload)
                .or_else(|| keys::decode(kind, payload))
                .or_else(|| moves::decode(kind, payload))
                .or_else(|| quarantine::decode(kind, payload))
                .or_else(|| sleep::decode(kind, payload))
                .or_else(|| snapshots::decode(kind, payload))
                .or_else(|| user_image::decode(kind, payload))
                .ok_or(EventError::UnknownKind { kind: kind.id() })?
                .map_err(|source| EventError::Payload { kind, version, source }),
            _ => Err(EventError::UnknownVersion { kind, version }),
        }
    }
}

#[cfg(test)]
mod tests;
