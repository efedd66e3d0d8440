//! Facts about quarantines. Kinds 50 to 59.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited.

use berth_shared::codec::CodecError;
use berth_shared::ids::UserId;

use super::{Event, Fact, Kind, v1};
use crate::personal::Sealed;

/// What is true of a user's quarantine from an event on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuarantineFact {
    /// The cell is cut off: stopped, kept, nothing in or out.
    Quarantined {
        /// Whose.
        user: UserId,
        /// The operator's words.
        reason: Sealed,
    },
    /// It is not any more.
    Released {
        /// Whose.
        user: UserId,
    },
}

impl QuarantineFact {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Quarantined { .. } => Kind::Quarantined,
            Self::Released { .. } => Kind::Released,
        }
    }
}

type Quarantined = (UserId, Sealed);
type Released = UserId;

pub(super) fn encode(event: &Event, fact: &QuarantineFact) -> Result<Vec<u8>, CodecError> {
    match fact {
        QuarantineFact::Quarantined { user, reason } => {
            v1::put::<Quarantined>(event, (*user, reason.clone()))
        }
        QuarantineFact::Released { user } => v1::put::<Released>(event, *user),
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    Some(match kind {
        Kind::Quarantined => v1::take(payload, |(user, reason): Quarantined| {
            Fact::Quarantine(QuarantineFact::Quarantined { user, reason })
        }),
        Kind::Released => {
            v1::take(payload, |user: Released| Fact::Quarantine(QuarantineFact::Released { user }))
        }
        _ => return None,
    })
}
