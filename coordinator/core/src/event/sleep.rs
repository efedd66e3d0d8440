//! Facts about users' terms of sleep. Kinds 60 to 69.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited.

use berth_shared::codec::CodecError;
use berth_shared::ids::UserId;
use berth_shared::time::{Millis, UnixMs};

use super::{Event, Fact, Kind, v1};

/// What is true of a cell's sleep from an event on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepFact {
    /// These are the user's terms.
    TermsSet {
        /// Whose.
        user: UserId,
        /// How long the cell stays frozen before it is stopped.
        stop_after: Millis,
        /// May it sleep although a channel of its own dials out?
        dial_out_may_sleep: bool,
    },
    /// An operator holds the cell awake.
    Held {
        /// Whose.
        user: UserId,
        /// It is not put to sleep by itself before this.
        until: UnixMs,
    },
    /// Nobody holds the cell awake any more.
    HoldEnded {
        /// Whose.
        user: UserId,
    },
}

impl SleepFact {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::TermsSet { .. } => Kind::SleepTermsSet,
            Self::Held { .. } => Kind::Held,
            Self::HoldEnded { .. } => Kind::HoldEnded,
        }
    }
}

type TermsSet = (UserId, u64, bool);
type Held = (UserId, u64);
type HoldEnded = UserId;

pub(super) fn encode(event: &Event, fact: SleepFact) -> Result<Vec<u8>, CodecError> {
    match fact {
        SleepFact::TermsSet { user, stop_after, dial_out_may_sleep } => {
            v1::put::<TermsSet>(event, (user, stop_after.0, dial_out_may_sleep))
        }
        SleepFact::Held { user, until } => v1::put::<Held>(event, (user, until.0)),
        SleepFact::HoldEnded { user } => v1::put::<HoldEnded>(event, user),
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    Some(match kind {
        Kind::SleepTermsSet => v1::take(payload, |(user, stop_after, dial_out_may_sleep): TermsSet| {
            Fact::Sleep(SleepFact::TermsSet { user, stop_after: Millis(stop_after), dial_out_may_sleep })
        }),
        Kind::Held => v1::take(payload, |(user, until): Held| {
            Fact::Sleep(SleepFact::Held { user, until: UnixMs(until) })
        }),
        Kind::HoldEnded => v1::take(payload, |user: HoldEnded| Fact::Sleep(SleepFact::HoldEnded { user })),
        _ => return None,
    })
}
