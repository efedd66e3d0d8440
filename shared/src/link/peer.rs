//! The coordinator's end of one connection.
//!
//! ```text
//!                 Join            verdict
//! Silent --------------> Judging ---------> Ending (Joined or Rejected was sent)
//!    | Hello                | verdict: welcome
//!    +--------------------->+-----------------> Live
//! ```
//!
//! Nothing is delivered before the welcome; anything out of order ends the connection.

use crate::link::{GREETING_MAX, SILENCE_MAX};
use crate::problem::Code;
use crate::time::BootMs;
use crate::wire::{CoordinatorFrame, FRAMES_VERSION_MIN, Hello, JoinRequest, NodeFrame, Versioned};

/// How many frames of an open session are taken in a second, in the long run: a heartbeat every 100 ms at the most, and
/// the ends of the commands that a coordinator sends.
pub const FRAMES_PER_S_MAX: u64 = 100;

/// How many frames may come at once: a node that was away sends the ends of 1,024 commands that waited for it.
pub const FRAMES_BURST_MAX: u64 = 2_000;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A frame came.
    Received(NodeFrame),
    /// The fleet's state machine has judged the first frame.
    Judged(Verdict),
    /// [`PeerSession::next_deadline`] has come.
    Tick,
}

/// The answer to a first frame. Whatever it needs to have stored is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A join: the node is in, this is its answer.
    Joined(CoordinatorFrame),
    /// A hello: the session is open, these frames go out first.
    Welcome(Vec<CoordinatorFrame>),
    /// No.
    Rejected {
        /// Why.
        code: Code,
        /// In words.
        detail: String,
    },
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Judge this join; report [`Event::Judged`].
    JudgeJoin(JoinRequest),
    /// Judge this hello; report [`Event::Judged`].
    JudgeHello(Hello),
    /// Send this.
    Send(CoordinatorFrame),
    /// Hand this to the fleet.
    Deliver(NodeFrame),
    /// Send what is queued, then close.
    Close {
        /// A short name for metrics and logs.
        reason: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Silent { until: BootMs },
    Judging { until: BootMs },
    Live { heard: BootMs, version: u16, room: Room },
    Ending,
}

/// How many frames may still come: filled with time, emptied by frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// Thousandths of a frame.
    milli: u64,
    at: BootMs,
}

impl Room {
    const FULL: u64 = FRAMES_BURST_MAX * 1000;

    /// The room after one more frame; `None` when there is none for it.
    fn after_frame(self, now: BootMs) -> Option<Self> {
        let filled = now.since(self.at).0.saturating_mul(FRAMES_PER_S_MAX);
        let milli = self.milli.saturating_add(filled).min(Self::FULL);
        milli.checked_sub(1000).map(|milli| Self { milli, at: now.max(self.at) })
    }
}

/// The machine. One per connection.
#[derive(Debug, Clone)]
pub struct PeerSession {
    state: State,
}

impl PeerSession {
    /// A connection that has just come in.
    pub const fn new(now: BootMs) -> Self {
        Self { state: State::Silent { until: now.after(GREETING_MAX) } }
    }

    /// When [`Event::Tick`] is due; `None` when the connection is being closed.
    pub const fn next_deadline(&self) -> Option<BootMs> {
        match self.state {
            State::Silent { until } | State::Judging { until } => Some(until),
            State::Live { heard, .. } => Some(heard.after(SILENCE_MAX)),
            State::Ending => None,
        }
    }

    /// Is the session open?
    pub const fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Takes an event in.
    pub fn step(&mut self, now: BootMs, event: Event) -> Vec<Effect> {
        match (self.state, event) {
            (State::Silent { .. }, Event::Received(NodeFrame::Join(join))) => {
                self.judging(now);
                vec![Effect::JudgeJoin(join)]
            }
            (State::Silent { .. }, Event::Received(NodeFrame::Hello(hello))) => {
                self.judging(now);
                vec![Effect::JudgeHello(hello)]
            }
            (State::Judging { .. }, Event::Judged(verdict)) => self.judged(now, verdict),
            (State::Live { version, room, .. }, Event::Received(frame)) => {
                let Some(room) = room.after_frame(now) else { return self.end("too_many_frames") };
                if frame.since() > version {
                    return self.end("frame_too_new");
                }
                match frame {
                    NodeFrame::Join(_) | NodeFrame::Hello(_) => self.end("second_greeting"),
                    frame @ (NodeFrame::Observed { .. }
                    | NodeFrame::CommandDone { .. }
                    | NodeFrame::NewKey { .. }
                    | NodeFrame::PinStored { .. }
                    | NodeFrame::Holding { .. }
                    | NodeFrame::Findings { .. }
                    | NodeFrame::Sleep { .. }
                    | NodeFrame::SnapshotTaken { .. }) => {
                        self.state = State::Live { heard: now, version, room };
                        vec![Effect::Deliver(frame)]
                    }
                    frame @ NodeFrame::Heartbeat { .. } => {
                        self.state = State::Live { heard: now, version, room };
                        vec![Effect::Send(CoordinatorFrame::Heard), Effect::Deliver(frame)]
                    }
                }
            }
            (State::Silent { .. } | State::Judging { .. }, Event::Received(_)) => self.end("frame_too_early"),
            (State::Silent { until } | State::Judging { until }, Event::Tick) if now >= until => {
                self.end("greeting_late")
            }
            (State::Live { heard, .. }, Event::Tick) if now >= heard.after(SILENCE_MAX) => self.end("silent"),
            // Early ticks; a verdict for a connection that ended meanwhile; frames behind the end.
            (State::Silent { .. } | State::Judging { .. } | State::Live { .. }, Event::Tick)
            | (State::Silent { .. } | State::Live { .. }, Event::Judged(_))
            | (State::Ending, Event::Received(_) | Event::Judged(_) | Event::Tick) => vec![],
        }
    }

    const fn judging(&mut self, now: BootMs) {
        self.state = State::Judging { until: now.after(GREETING_MAX) };
    }

    fn judged(&mut self, now: BootMs, verdict: Verdict) -> Vec<Effect> {
        match verdict {
            Verdict::Welcome(frames) => {
                // The session speaks what its welcome says.
                let version = frames.iter().find_map(|frame| match frame {
                    CoordinatorFrame::Welcome { version, .. } => Some(*version),
                    _ => None,
                });
                let version = version.unwrap_or(FRAMES_VERSION_MIN);
                let room = Room { milli: Room::FULL, at: now };
                self.state = State::Live { heard: now, version, room };
                frames.into_iter().map(Effect::Send).collect()
            }
            Verdict::Joined(frame) => {
                self.state = State::Ending;
                vec![Effect::Send(frame), Effect::Close { reason: "joined" }]
            }
            Verdict::Rejected { code, detail } => {
                self.state = State::Ending;
                vec![
                    Effect::Send(CoordinatorFrame::Rejected { code, detail }),
                    Effect::Close { reason: code.as_str() },
                ]
            }
        }
    }

    fn end(&mut self, reason: &'static str) -> Vec<Effect> {
        self.state = State::Ending;
        vec![Effect::Close { reason }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TokenId;
    use crate::secret::Secret;
    use crate::signing::PublicKey;
    use crate::time::UnixMs;
    use crate::units::Bytes;
    use crate::wire::{NodeFacts, NodeLoad};
    use proptest::prelude::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            agent_version: "1".into(),
            kernel: "6".into(),
            engine_version: "20".into(),
            memory: Bytes::gib(8),
            cpus: 2,
            disk: Bytes::gib(80),
            swap: Bytes::ZERO,
            cgroup_version: 2,
            quota_backend: "loop-ext4".into(),
        }
    }

    fn join() -> NodeFrame {
        NodeFrame::Join(JoinRequest {
            token: TokenId::from_random([1; 16]),
            secret: Secret::new("s"),
            version_min: 1,
            version_max: 2,
            wall: UnixMs(0),
            facts: facts(),
        })
    }

    fn heartbeat() -> NodeFrame {
        NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![], desired: 0 }
    }

    fn live_in(version: u16) -> PeerSession {
        let room = Room { milli: Room::FULL, at: BootMs(0) };
        PeerSession { state: State::Live { heard: BootMs(0), version, room } }
    }

    fn live() -> PeerSession {
        live_in(2)
    }

    #[test]
    fn a_join_is_judged_answered_and_the_connection_ends() {
        let mut session = PeerSession::new(BootMs(0));
        assert!(matches!(session.step(BootMs(1), Event::Received(join()))[..], [Effect::JudgeJoin(_)]));
        let rejected = Verdict::Rejected { code: Code::TokenUsed, detail: "used".into() };
        let effects = session.step(BootMs(2), Event::Judged(rejected));
        assert!(matches!(effects[..], [Effect::Send(_), Effect::Close { reason: "token_used" }]));
        assert_eq!(session.next_deadline(), None);
    }

    #[test]
    fn nothing_is_delivered_before_the_welcome() {
        let mut session = PeerSession::new(BootMs(0));
        let effects = session.step(BootMs(1), Event::Received(heartbeat()));
        assert_eq!(effects, [Effect::Close { reason: "frame_too_early" }]);
    }

    #[test]
    fn a_heartbeat_is_answered_and_a_second_greeting_ends_the_session() {
        let mut session = live();
        let effects = session.step(BootMs(1), Event::Received(heartbeat()));
        assert_eq!(effects[0], Effect::Send(CoordinatorFrame::Heard));
        assert_eq!(
            session.step(BootMs(2), Event::Received(join())),
            [Effect::Close { reason: "second_greeting" }]
        );
    }

    #[test]
    fn silence_ends_a_session_and_a_slow_greeting_too() {
        let mut session = live();
        assert_eq!(session.step(BootMs(0), Event::Tick), []);
        let late = session.next_deadline().unwrap();
        assert_eq!(session.step(late, Event::Tick), [Effect::Close { reason: "silent" }]);
        let mut silent = PeerSession::new(BootMs(0));
        let late = silent.next_deadline().unwrap();
        assert_eq!(silent.step(late, Event::Tick), [Effect::Close { reason: "greeting_late" }]);
    }

    #[test]
    fn a_frame_of_a_newer_version_than_the_welcomes_ends_the_session() {
        let newer = || NodeFrame::PinStored { key: PublicKey::from_bytes([1; 32]) };
        let effects = live_in(1).step(BootMs(1), Event::Received(newer()));
        assert_eq!(effects, [Effect::Close { reason: "frame_too_new" }]);
        assert_eq!(live_in(2).step(BootMs(1), Event::Received(newer())), [Effect::Deliver(newer())]);
    }

    #[test]
    fn a_flood_of_frames_ends_the_session_and_a_steady_stream_does_not() {
        let mut session = live();
        for _ in 0..FRAMES_BURST_MAX {
            assert!(!session.step(BootMs(1), Event::Received(heartbeat())).is_empty());
            assert!(session.is_live());
        }
        let effects = session.step(BootMs(1), Event::Received(heartbeat()));
        assert_eq!(effects, [Effect::Close { reason: "too_many_frames" }]);
        let mut session = live();
        for number in 0..10 * FRAMES_BURST_MAX {
            session.step(BootMs(number * 1000 / FRAMES_PER_S_MAX), Event::Received(heartbeat()));
            assert!(session.is_live(), "frame {number}");
        }
    }

    proptest! {
        #[test]
        fn no_second_lets_more_frames_in_than_the_burst_and_its_share(
            steps in proptest::collection::vec((0_u64..50, 1_usize..400), 1..60),
        ) {
            let mut session = live();
            let (mut now, mut taken) = (0, 0);
            for (step, frames) in steps {
                now += step;
                for _ in 0..frames {
                    session.step(BootMs(now), Event::Received(heartbeat()));
                    taken += u64::from(session.is_live());
                }
            }
            prop_assert!(taken <= FRAMES_BURST_MAX + now * FRAMES_PER_S_MAX / 1000 + 1);
        }
    }
}
