//! Facts about keys: of nodes, of the coordinator, and who was locked out. Kinds 30 to 39, 93 and 94.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited.

use berth_shared::credential::SecretHash;
use berth_shared::ids::{NodeId, TokenId};
use berth_shared::signing::PublicKey;
use berth_shared::time::UnixMs;
use berth_shared::wire::NodeFacts;

use berth_shared::codec::CodecError;

use super::{Event, Fact, Kind, v1};

/// What is true of keys from an event on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFact {
    /// The node has a second key: good beside the present one, which it is to replace.
    NodeKeyAdded {
        /// Which node.
        node: NodeId,
        /// Its next key.
        key: PublicKey,
    },
    /// The node has said hello with its next key, which is the present one now. This one is dead for ever.
    NodeKeyRetired {
        /// Which node.
        node: NodeId,
        /// The key of before.
        key: PublicKey,
    },
    /// The node is not let in any more, with any key of today.
    NodeRevoked {
        /// Which.
        node: NodeId,
    },
    /// Two machines say that they are this node, or one came back from an old image: it is given nothing new.
    NodeLocked {
        /// Which.
        node: NodeId,
        /// The join counter that was shown.
        shown: u64,
        /// The one that was stored.
        stored: u64,
    },
    /// An operator has decided that the node may go on.
    NodeUnlocked {
        /// Which.
        node: NodeId,
        /// Is its next join counter taken, whatever it is? Not where the machine that shall go on is connected.
        any_counter: bool,
    },
    /// The token lets one machine in again as this node.
    RejoinTokenCreated {
        /// Names it.
        token: TokenId,
        /// Which node.
        node: NodeId,
        /// What is stored of its secret.
        hash: SecretHash,
        /// Worthless after this.
        expires_at: UnixMs,
    },
    /// The node has a new key and a fresh join counter, and is let in. Its keys of before are dead for ever.
    NodeRejoined {
        /// Which.
        node: NodeId,
        /// Its identity on the link.
        key: PublicKey,
        /// What it is made of.
        facts: NodeFacts,
    },
    /// The coordinator will have this key, and tells its nodes. One that was announced before and not taken is void.
    CoordinatorKeyAnnounced {
        /// Which.
        key: PublicKey,
    },
    /// The node holds the coordinator's next key.
    CoordinatorKeyStored {
        /// Which node.
        node: NodeId,
        /// Which key.
        key: PublicKey,
    },
    /// The coordinator has this key from now on.
    CoordinatorKeySwitched {
        /// Which.
        key: PublicKey,
    },
    /// An operator lets the node have another key.
    NodeKeyOrdered {
        /// Which node.
        node: NodeId,
    },
    /// Somebody said hello with a key that a rotation has replaced: an old copy of the node, or the node itself whose place
    /// was taken. It is given nothing new.
    ReplacedKeyShown {
        /// Which node.
        node: NodeId,
        /// The key that was shown.
        key: PublicKey,
    },
}

impl KeyFact {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::NodeKeyAdded { .. } => Kind::NodeKeyAdded,
            Self::NodeKeyRetired { .. } => Kind::NodeKeyRetired,
            Self::NodeRevoked { .. } => Kind::NodeRevoked,
            Self::NodeLocked { .. } => Kind::NodeLocked,
            Self::NodeUnlocked { .. } => Kind::NodeUnlocked,
            Self::RejoinTokenCreated { .. } => Kind::RejoinTokenCreated,
            Self::NodeRejoined { .. } => Kind::NodeRejoined,
            Self::CoordinatorKeyAnnounced { .. } => Kind::CoordinatorKeyAnnounced,
            Self::CoordinatorKeyStored { .. } => Kind::CoordinatorKeyStored,
            Self::CoordinatorKeySwitched { .. } => Kind::CoordinatorKeySwitched,
            Self::NodeKeyOrdered { .. } => Kind::NodeKeyOrdered,
            Self::ReplacedKeyShown { .. } => Kind::ReplacedKeyShown,
        }
    }
}

type NodeKey = (NodeId, PublicKey);
type NodeRevoked = NodeId;
type NodeLocked = (NodeId, u64, u64);
type NodeUnlocked = (NodeId, bool);
type RejoinTokenCreated = (TokenId, NodeId, SecretHash, u64);
type NodeRejoined = (NodeId, PublicKey, v1::Facts);
type CoordinatorKey = PublicKey;
type NodeKeyOrdered = NodeId;

pub(super) fn encode(event: &Event, fact: &KeyFact) -> Result<Vec<u8>, CodecError> {
    match fact.clone() {
        KeyFact::NodeKeyAdded { node, key }
        | KeyFact::NodeKeyRetired { node, key }
        | KeyFact::CoordinatorKeyStored { node, key }
        | KeyFact::ReplacedKeyShown { node, key } => v1::put::<NodeKey>(event, (node, key)),
        KeyFact::NodeKeyOrdered { node } => v1::put::<NodeKeyOrdered>(event, node),
        KeyFact::NodeRevoked { node } => v1::put::<NodeRevoked>(event, node),
        KeyFact::NodeLocked { node, shown, stored } => v1::put::<NodeLocked>(event, (node, shown, stored)),
        KeyFact::NodeUnlocked { node, any_counter } => v1::put::<NodeUnlocked>(event, (node, any_counter)),
        KeyFact::RejoinTokenCreated { token, node, hash, expires_at } => {
            v1::put::<RejoinTokenCreated>(event, (token, node, hash, expires_at.0))
        }
        KeyFact::NodeRejoined { node, key, facts } => {
            v1::put::<NodeRejoined>(event, (node, key, facts.into()))
        }
        KeyFact::CoordinatorKeyAnnounced { key } | KeyFact::CoordinatorKeySwitched { key } => {
            v1::put::<CoordinatorKey>(event, key)
        }
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    let node_key = |make: fn(NodeId, PublicKey) -> KeyFact| {
        v1::take(payload, |(node, key): NodeKey| Fact::Key(make(node, key)))
    };
    let coordinator_key =
        |make: fn(PublicKey) -> KeyFact| v1::take(payload, |key: CoordinatorKey| Fact::Key(make(key)));
    Some(match kind {
        Kind::NodeKeyAdded => node_key(|node, key| KeyFact::NodeKeyAdded { node, key }),
        Kind::NodeKeyRetired => node_key(|node, key| KeyFact::NodeKeyRetired { node, key }),
        Kind::CoordinatorKeyStored => node_key(|node, key| KeyFact::CoordinatorKeyStored { node, key }),
        Kind::ReplacedKeyShown => node_key(|node, key| KeyFact::ReplacedKeyShown { node, key }),
        Kind::NodeKeyOrdered => {
            v1::take(payload, |node: NodeKeyOrdered| Fact::Key(KeyFact::NodeKeyOrdered { node }))
        }
        Kind::NodeRevoked => v1::take(payload, |node: NodeRevoked| Fact::Key(KeyFact::NodeRevoked { node })),
        Kind::NodeLocked => v1::take(payload, |(node, shown, stored): NodeLocked| {
            Fact::Key(KeyFact::NodeLocked { node, shown, stored })
        }),
        Kind::NodeUnlocked => v1::take(payload, |(node, any_counter): NodeUnlocked| {
            Fact::Key(KeyFact::NodeUnlocked { node, any_counter })
        }),
        Kind::RejoinTokenCreated => v1::take(payload, |(token, node, hash, at): RejoinTokenCreated| {
            Fact::Key(KeyFact::RejoinTokenCreated { token, node, hash, expires_at: UnixMs(at) })
        }),
        Kind::NodeRejoined => v1::take(payload, |(node, key, facts): NodeRejoined| {
            Fact::Key(KeyFact::NodeRejoined { node, key, facts: facts.into() })
        }),
        Kind::CoordinatorKeyAnnounced => coordinator_key(|key| KeyFact::CoordinatorKeyAnnounced { key }),
        Kind::CoordinatorKeySwitched => coordinator_key(|key| KeyFact::CoordinatorKeySwitched { key }),
        _ => return None,
    })
}
