//! What can be asked about keys, and why it may be refused: rotation, revocation, locks, joining again.

use berth_shared::credential::SecretHash;
use berth_shared::ids::{NodeId, NodeName, TokenId};
use berth_shared::link::SessionMark;
use berth_shared::problem::Code;
use berth_shared::signing::{PublicKey, Signature, SignatureError};
use berth_shared::time::{Millis, UnixMs};

/// How long a node may go on with its old key after its new one was accepted. It says hello with the new one within
/// seconds; one that was away goes over to it when the old one is refused.
pub const KEY_OVERLAP_MAX: Millis = Millis::minutes(24 * 60);

/// How long after a node was given another key over the link it may be given one more: a node cannot fill the journal
/// with keys.
pub const KEY_AGE_MIN: Millis = Millis::minutes(1);

/// How long a node may take to tell the key that an operator has ordered. Seconds, where it is connected; this bears a
/// restart of both ends. Whoever holds a copy of its key could take its place as long as an order stands.
pub const KEY_ORDER_MAX: Millis = Millis::minutes(60);

/// A clock that is off by more is worth a person's look (DESIGN section 4).
pub const CLOCK_OFFSET_WARNED: Millis = Millis::secs(30);

/// With clocks that are further apart nobody joins (DESIGN section 4).
pub const CLOCK_OFFSET_MAX: Millis = Millis::minutes(5);

/// How many nodes' names a refusal lists.
pub const NAMES_SHOWN_MAX: usize = 8;

/// What can be asked about keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyCommand {
    /// The node shall have another key. It is to be told so once this is written down: a key that nobody ordered is not taken.
    OrderNodeKey {
        /// Which.
        name: NodeName,
    },
    /// A node tells a new key. No events when it is known already.
    AddNodeKey {
        /// Which node, by its session.
        node: NodeId,
        /// The key that its session was opened with.
        session_key: PublicKey,
        /// The new key.
        key: PublicKey,
        /// By the new key, over [`berth_shared::signing::new_node_key`].
        proof: Signature,
    },
    /// The node is not let in any more. Its cells stay assigned to it. No events when it is so already.
    RevokeNode {
        /// Which.
        name: NodeName,
    },
    /// A hello was refused for its counter, or for a key that was replaced. No events when the node is locked already, when
    /// the hello would not be refused for that, or when an operator knows that there are copies with this key.
    LockNode {
        /// Who it said it was.
        node: NodeId,
        /// The key that the link has verified.
        key: PublicKey,
        /// The mark that was shown.
        mark: SessionMark,
    },
    /// The node may go on.
    UnlockNode {
        /// Which.
        name: NodeName,
        /// Is a session of it open? Then that machine goes on, and no counter of before is taken.
        connected: bool,
    },
    /// Lets one machine in again as a node that is revoked or locked, once.
    CreateRejoinToken {
        /// Freshly drawn.
        token: TokenId,
        /// What is stored of its secret.
        hash: SecretHash,
        /// Which node.
        name: NodeName,
        /// How long it can be used.
        ttl: Millis,
    },
    /// The coordinator has made its next key. No events when it is announced already.
    AnnounceCoordinatorKey {
        /// The key in force.
        present: PublicKey,
        /// The next one.
        next: PublicKey,
        /// One that was announced and can never be taken, since nobody holds its private half any more: this one is announced
        /// in its place, and nodes have to store it anew.
        lost: Option<PublicKey>,
    },
    /// A node says that it holds the coordinator's next key. No events when it has said so, or holds another one.
    CoordinatorKeyStored {
        /// Which node.
        node: NodeId,
        /// Which key.
        key: PublicKey,
    },
    /// The coordinator takes its next key.
    SwitchCoordinatorKey {
        /// Also when nodes have not stored it: they have to join again.
        anyway: bool,
    },
}

/// Why it was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// The node was revoked.
    #[error("node `{name}` was revoked at {at}")]
    Revoked {
        /// Which.
        name: NodeName,
        /// When.
        at: UnixMs,
    },
    /// The key was replaced.
    #[error("this key of node `{name}` was replaced by a newer one")]
    Retired {
        /// Which.
        name: NodeName,
    },
    /// The key was in use before, by whomever.
    #[error("the key was in use before")]
    Dead,
    /// The key is another node's.
    #[error("the key is that of node `{name}`")]
    Taken {
        /// Whose.
        name: NodeName,
    },
    /// The session is not of the node's present key.
    #[error("the session was not opened with the node's present key")]
    NotPresent,
    /// Whoever tells the key does not hold it.
    #[error("the new key has not signed for itself")]
    Proof(#[source] SignatureError),
    /// A key was added a moment ago.
    #[error("the last key of node `{name}` is of {since}: one a minute is taken")]
    TooSoon {
        /// Which.
        name: NodeName,
        /// Since when.
        since: UnixMs,
    },
    /// A locked node could be somebody else, who would keep the node's place with a key of their own.
    #[error(
        "node `{name}` is locked: it is given no other key before an operator has decided which machine it is"
    )]
    Locked {
        /// Which.
        name: NodeName,
    },
    /// A new key that no operator has asked for, or too long ago.
    #[error("nobody has ordered another key for node `{name}` of late: `berth node rotate-key {name}` does")]
    NotOrdered {
        /// Which.
        name: NodeName,
    },
    /// There is nothing to unlock.
    #[error("node `{name}` is not locked")]
    NotLocked {
        /// Which.
        name: NodeName,
    },
    /// Only a node that is shut out joins again.
    #[error("node `{name}` is neither locked nor revoked: revoke it first, if its machine shall join again")]
    NotShutOut {
        /// Which.
        name: NodeName,
    },
    /// No next key was announced.
    #[error("there is no next key of the coordinator: `berth coordinator-key next` makes one")]
    NoNextKey,
    /// Another one was announced.
    #[error("another next key was announced: {announced}")]
    AnotherNextKey {
        /// Which.
        announced: PublicKey,
    },
    /// Nodes would not know the coordinator any more.
    #[error("{count} nodes have not stored the next key: {names}")]
    NotStored {
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
}

impl KeyRefusal {
    /// The stable code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Revoked { .. } => Code::NodeRevoked,
            Self::Retired { .. } => Code::KeyRetired,
            Self::Dead
            | Self::Taken { .. }
            | Self::NotPresent
            | Self::Proof(_)
            | Self::TooSoon { .. }
            | Self::Locked { .. }
            | Self::NotOrdered { .. }
            | Self::NoNextKey
            | Self::AnotherNextKey { .. } => Code::KeyRefused,
            Self::NotLocked { .. } | Self::NotShutOut { .. } => Code::NodeNotLocked,
            Self::NotStored { .. } => Code::KeyNotStored,
        }
    }
}

/// How far apart two clocks are, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockVerdict {
    /// Within [`CLOCK_OFFSET_WARNED`].
    Good,
    /// A person should look.
    Warned,
    /// Beyond [`CLOCK_OFFSET_MAX`].
    Refused,
}

/// Judges a node's wall clock by the coordinator's. Neither is known to be right.
pub fn judge_clock(theirs: UnixMs, ours: UnixMs) -> ClockVerdict {
    match Millis(theirs.0.abs_diff(ours.0)) {
        offset if offset > CLOCK_OFFSET_MAX => ClockVerdict::Refused,
        offset if offset > CLOCK_OFFSET_WARNED => ClockVerdict::Warned,
        _ => ClockVerdict::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_in_both_directions() {
        let ours = UnixMs(1_000_000_000);
        let cases = [
            (0, ClockVerdict::Good),
            (30_000, ClockVerdict::Good),
            (30_001, ClockVerdict::Warned),
            (300_000, ClockVerdict::Warned),
            (300_001, ClockVerdict::Refused),
        ];
        for (offset, verdict) in cases {
            assert_eq!(judge_clock(UnixMs(ours.0 + offset), ours), verdict, "{offset} ahead");
            assert_eq!(judge_clock(UnixMs(ours.0 - offset), ours), verdict, "{offset} behind");
        }
        assert_eq!(judge_clock(UnixMs(u64::MAX), UnixMs(0)), ClockVerdict::Refused);
    }
}
