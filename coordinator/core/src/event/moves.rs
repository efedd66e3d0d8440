//! Facts about nodes that are away. Kinds 40 to 49.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited. That a user was
//! given to another node is `Assigned`, as the first time.

use berth_shared::codec::CodecError;
use berth_shared::ids::NodeId;
use berth_shared::time::Millis;

use super::{Event, Fact, Kind, v1};

/// What is true of nodes that are away from an event on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveFact {
    /// The event's actor answers for it that the machine is off.
    NodeDeclaredOff {
        /// Which.
        node: NodeId,
    },
    /// A node that was declared off has said hello.
    NodeReturned {
        /// Which.
        node: NodeId,
    },
    /// So long the node may work alone after its last contact, as far as it is known: never less than it holds.
    LeaseGiven {
        /// Which.
        node: NodeId,
        /// `None`: without end.
        autonomy: Option<Millis>,
    },
}

impl MoveFact {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::NodeDeclaredOff { .. } => Kind::NodeDeclaredOff,
            Self::NodeReturned { .. } => Kind::NodeReturned,
            Self::LeaseGiven { .. } => Kind::LeaseGiven,
        }
    }
}

type NodeDeclaredOff = NodeId;
type NodeReturned = NodeId;
type LeaseGiven = (NodeId, Option<u64>);

pub(super) fn encode(event: &Event, fact: MoveFact) -> Result<Vec<u8>, CodecError> {
    match fact {
        MoveFact::NodeDeclaredOff { node } => v1::put::<NodeDeclaredOff>(event, node),
        MoveFact::NodeReturned { node } => v1::put::<NodeReturned>(event, node),
        MoveFact::LeaseGiven { node, autonomy } => {
            v1::put::<LeaseGiven>(event, (node, autonomy.map(|Millis(ms)| ms)))
        }
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    Some(match kind {
        Kind::NodeDeclaredOff => {
            v1::take(payload, |node: NodeDeclaredOff| Fact::Move(MoveFact::NodeDeclaredOff { node }))
        }
        Kind::NodeReturned => {
            v1::take(payload, |node: NodeReturned| Fact::Move(MoveFact::NodeReturned { node }))
        }
        Kind::LeaseGiven => v1::take(payload, |(node, ms): LeaseGiven| {
            Fact::Move(MoveFact::LeaseGiven { node, autonomy: ms.map(Millis) })
        }),
        _ => return None,
    })
}
