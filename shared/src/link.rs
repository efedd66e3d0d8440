//! The link's two ends as pure state machines: what to send and when to give up, with no socket and no clock.
//!
//! [`node::NodeLink`] is the node's end: dial, hello with a stored join counter, live, back off, again.
//! [`peer::PeerSession`] is the coordinator's end of one connection: wait for the first frame, let it be judged, live.
//! [`judge_counter`] decides whether a hello may open a session.

pub mod node;
pub mod peer;

use serde::{Deserialize, Serialize};

use crate::ids::{JoinCounter, SessionNonce};
use crate::time::Millis;

/// How long a dial may take.
pub const DIAL_MAX: Millis = Millis::secs(10);

/// How long a peer may take for its first frame, or for the answer to it.
pub const GREETING_MAX: Millis = Millis::secs(10);

/// How often a node says how it is, before jitter.
pub const HEARTBEAT_EVERY: Millis = Millis::secs(5);

/// Silence after which either end takes the connection for dead: several heartbeats.
pub const SILENCE_MAX: Millis = Millis::secs(20);

/// Shortest and longest wait between two dials.
pub const REDIAL_FIRST: Millis = Millis(250);
/// See [`REDIAL_FIRST`].
pub const REDIAL_MAX: Millis = Millis::secs(30);

/// A session as a node opened it: both sides store it before they act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMark {
    /// How many sessions the node has opened.
    pub counter: JoinCounter,
    /// Drawn for this session.
    pub nonce: SessionNonce,
}

/// May a hello with this mark open a session, after the `stored` one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterVerdict {
    /// A new session: store its mark, then replace any older connection at once.
    New,
    /// The same session's hello again: its answer was lost on the way. Nothing to store.
    Again,
    /// A clone, or a machine restored from an old image.
    Replayed,
}

/// Judges a hello's mark against the stored one.
///
/// A counter that is ahead by more than one is accepted: the node then opened sessions that a restored coordinator
/// has forgotten. One that repeats counts as the same hello only with the same nonce.
pub fn judge_counter(stored: Option<SessionMark>, shown: SessionMark) -> CounterVerdict {
    match stored {
        None => CounterVerdict::New,
        Some(stored) if shown.counter > stored.counter => CounterVerdict::New,
        Some(stored) if shown == stored => CounterVerdict::Again,
        Some(_) => CounterVerdict::Replayed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(counter: u64, nonce: u8) -> SessionMark {
        SessionMark { counter: JoinCounter(counter), nonce: SessionNonce::from_random([nonce; 16]) }
    }

    #[test]
    fn counters_that_repeat_or_run_backwards_are_clones() {
        let cases = [
            (None, mark(1, 1), CounterVerdict::New),
            (Some(mark(4, 1)), mark(5, 2), CounterVerdict::New),
            (Some(mark(4, 1)), mark(9, 2), CounterVerdict::New),
            (Some(mark(4, 1)), mark(4, 1), CounterVerdict::Again),
            (Some(mark(4, 1)), mark(4, 2), CounterVerdict::Replayed),
            (Some(mark(4, 1)), mark(3, 1), CounterVerdict::Replayed),
        ];
        for (stored, shown, verdict) in cases {
            assert_eq!(judge_counter(stored, shown), verdict, "{stored:?} {shown:?}");
        }
    }
}
