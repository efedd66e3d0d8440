//! The node's end of the link.
//!
//! ```text
//!            Dial            Dialed: store mark, SendHello       Welcome
//! Waiting ----------> Dialing ---------------------> Greeting ------------> Live
//!    ^                   | failed, late                 | rejected, late, lost  | lost, silent
//!    +-------------------+------------------------------+-----------------------+
//! ```
//!
//! The mark of a session (join counter and nonce) is stored before its hello goes out. It is used again until a
//! welcome for it was seen and stored as seen, so that a crash or a lost answer in between costs nothing.

use crate::backoff::Backoff;
use crate::ids::{JoinCounter, SessionNonce};
use crate::link::{
    DIAL_MAX, GREETING_MAX, HEARTBEAT_EVERY, REDIAL_FIRST, REDIAL_MAX, SILENCE_MAX, SessionMark,
};
use crate::problem::Code;
use crate::time::{BootMs, Millis};
use crate::wire::CoordinatorFrame;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection stands and its control stream is open.
    Dialed,
    /// The dial failed.
    DialFailed,
    /// A frame came.
    Received(CoordinatorFrame),
    /// The connection ended.
    Lost,
    /// [`NodeLink::next_deadline`] has come.
    Tick,
    /// There is news that should not wait for the next heartbeat.
    News,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open a connection; report [`Event::Dialed`] or [`Event::DialFailed`].
    Dial,
    /// Write this durably before any later effect is carried out.
    Store {
        /// The session's mark.
        mark: SessionMark,
        /// A welcome for it was seen: the next session takes the next counter.
        welcomed: bool,
    },
    /// Send a hello with this mark.
    SendHello(SessionMark),
    /// Send everything that is seen.
    SendObserved,
    /// Send load and changed cells.
    SendHeartbeat,
    /// The session is open: commands may come, news may go.
    Online {
        /// How long the node may work alone after the last contact.
        autonomy: Option<Millis>,
    },
    /// Hand this to the agent.
    Deliver(CoordinatorFrame),
    /// Close the connection.
    Close,
    /// The session is over, if it was open.
    Offline,
    /// The coordinator refuses this node; it is tried again at the slowest pace. A person must look.
    Refused {
        /// Why.
        code: Code,
        /// In words.
        detail: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Waiting { until: BootMs },
    Dialing { until: BootMs },
    Greeting { until: BootMs },
    Live { heard: BootMs, heartbeat_at: BootMs, every: Millis },
}

/// The machine. One per node agent.
#[derive(Debug, Clone)]
pub struct NodeLink {
    state: State,
    backoff: Backoff,
    mark: Option<SessionMark>,
    welcomed: bool,
}

impl NodeLink {
    /// Starts with what was stored last: the newest mark and whether a welcome for it was seen.
    pub const fn new(now: BootMs, stored: Option<(SessionMark, bool)>) -> Self {
        let (mark, welcomed) = match stored {
            Some((mark, welcomed)) => (Some(mark), welcomed),
            None => (None, true),
        };
        let backoff = Backoff::new(REDIAL_FIRST, REDIAL_MAX);
        Self { state: State::Waiting { until: now }, backoff, mark, welcomed }
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> BootMs {
        match self.state {
            State::Waiting { until } | State::Dialing { until } | State::Greeting { until } => until,
            State::Live { heard, heartbeat_at, .. } => heartbeat_at.min(heard.after(SILENCE_MAX)),
        }
    }

    /// Is a session open?
    pub const fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Takes an event in. `random` is 24 fresh random bytes: 16 for a nonce, 8 for jitter.
    pub fn step(&mut self, now: BootMs, event: Event, random: [u8; 24]) -> Vec<Effect> {
        let (nonce, jitter) = split(random);
        match (&mut self.state, event) {
            (State::Waiting { until }, Event::Tick) if now >= *until => {
                self.state = State::Dialing { until: now.after(DIAL_MAX) };
                vec![Effect::Dial]
            }
            (State::Dialing { .. }, Event::Dialed) => self.greet(now, nonce),
            (State::Dialing { .. }, Event::DialFailed | Event::Lost) => self.wait(now, jitter, false),
            (State::Dialing { until } | State::Greeting { until }, Event::Tick) if now >= *until => {
                self.wait(now, jitter, true)
            }
            (State::Greeting { .. }, Event::Received(frame)) => self.greeted(now, frame, jitter),
            (State::Greeting { .. } | State::Live { .. }, Event::Lost) => self.wait(now, jitter, false),
            (State::Live { heard, .. }, Event::Received(frame)) => {
                *heard = now;
                match frame {
                    CoordinatorFrame::Heard => vec![],
                    CoordinatorFrame::Rejected { code, detail } => self.refused(now, code, detail),
                    CoordinatorFrame::Joined { .. } | CoordinatorFrame::Welcome { .. } => {
                        self.wait(now, jitter, true)
                    }
                    frame @ (CoordinatorFrame::Desired(_) | CoordinatorFrame::Command(_)) => {
                        vec![Effect::Deliver(frame)]
                    }
                }
            }
            (State::Live { heard, heartbeat_at, every }, Event::Tick) => {
                if now >= heard.after(SILENCE_MAX) {
                    return self.wait(now, jitter, true);
                }
                if now < *heartbeat_at {
                    return vec![];
                }
                *heartbeat_at = now.after(spread(*every, jitter));
                vec![Effect::SendHeartbeat]
            }
            (State::Live { heartbeat_at, every, .. }, Event::News) => {
                *heartbeat_at = now.after(spread(*every, jitter));
                vec![Effect::SendHeartbeat]
            }
            // Late reports of a connection that was given up, ticks that came early, news with nobody to tell.
            (
                State::Waiting { .. } | State::Dialing { .. } | State::Greeting { .. } | State::Live { .. },
                Event::Dialed
                | Event::DialFailed
                | Event::Received(_)
                | Event::Lost
                | Event::Tick
                | Event::News,
            ) => vec![],
        }
    }

    fn greet(&mut self, now: BootMs, nonce: SessionNonce) -> Vec<Effect> {
        let mut effects = vec![];
        let mark = match self.mark {
            Some(mark) if !self.welcomed => mark,
            last => {
                let counter = JoinCounter(last.map_or(0, |mark| mark.counter.0) + 1);
                let mark = SessionMark { counter, nonce };
                self.mark = Some(mark);
                self.welcomed = false;
                effects.push(Effect::Store { mark, welcomed: false });
                mark
            }
        };
        effects.push(Effect::SendHello(mark));
        self.state = State::Greeting { until: now.after(GREETING_MAX) };
        effects
    }

    fn greeted(&mut self, now: BootMs, frame: CoordinatorFrame, jitter: u64) -> Vec<Effect> {
        match frame {
            CoordinatorFrame::Welcome { autonomy, heartbeat, .. } => {
                let mut effects = vec![];
                if let Some(mark) = self.mark {
                    self.welcomed = true;
                    effects.push(Effect::Store { mark, welcomed: true });
                }
                self.backoff.reset();
                let every = Millis(heartbeat.0.clamp(100, HEARTBEAT_EVERY.0));
                self.state =
                    State::Live { heard: now, heartbeat_at: now.after(spread(every, jitter)), every };
                effects.extend([Effect::Online { autonomy }, Effect::SendObserved, Effect::SendHeartbeat]);
                effects
            }
            CoordinatorFrame::Rejected { code, detail } => self.refused(now, code, detail),
            CoordinatorFrame::Joined { .. }
            | CoordinatorFrame::Desired(_)
            | CoordinatorFrame::Command(_)
            | CoordinatorFrame::Heard => self.wait(now, jitter, true),
        }
    }

    fn refused(&mut self, now: BootMs, code: Code, detail: String) -> Vec<Effect> {
        let was_live = self.is_live();
        self.state = State::Waiting { until: now.after(REDIAL_MAX) };
        let mut effects = vec![Effect::Close];
        if was_live {
            effects.push(Effect::Offline);
        }
        effects.push(Effect::Refused { code, detail });
        effects
    }

    fn wait(&mut self, now: BootMs, jitter: u64, close: bool) -> Vec<Effect> {
        let was_live = self.is_live();
        self.state = State::Waiting { until: now.after(self.backoff.next(jitter)) };
        let mut effects = vec![];
        if close {
            effects.push(Effect::Close);
        }
        if was_live {
            effects.push(Effect::Offline);
        }
        effects
    }
}

/// Between three quarters of the span and the whole of it, so that a thousand nodes do not speak at once.
const fn spread(every: Millis, jitter: u64) -> Millis {
    let quarter = every.0 / 4;
    Millis(every.0 - jitter % (quarter + 1))
}

fn split(random: [u8; 24]) -> (SessionNonce, u64) {
    let mut nonce = [0; 16];
    let mut jitter = [0; 8];
    for (to, from) in nonce.iter_mut().chain(jitter.iter_mut()).zip(random) {
        *to = from;
    }
    (SessionNonce::from_random(nonce), u64::from_le_bytes(jitter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::UnixMs;

    const WELCOME: CoordinatorFrame =
        CoordinatorFrame::Welcome { version: 1, wall: UnixMs(0), autonomy: None, heartbeat: HEARTBEAT_EVERY };

    fn dialed(link: &mut NodeLink, now: BootMs) -> Vec<Effect> {
        assert_eq!(link.step(now, Event::Tick, [1; 24]), [Effect::Dial]);
        link.step(now, Event::Dialed, [2; 24])
    }

    fn hello_of(effects: &[Effect]) -> SessionMark {
        effects
            .iter()
            .find_map(|effect| if let Effect::SendHello(mark) = effect { Some(*mark) } else { None })
            .unwrap()
    }

    #[test]
    fn the_mark_is_stored_before_the_hello_goes_out() {
        let mut link = NodeLink::new(BootMs(0), None);
        let effects = dialed(&mut link, BootMs(0));
        assert!(matches!(effects[..], [Effect::Store { welcomed: false, .. }, Effect::SendHello(_)]));
        assert_eq!(hello_of(&effects).counter, JoinCounter(1));
    }

    #[test]
    fn a_hello_without_answer_is_repeated_with_the_same_mark() {
        let mut link = NodeLink::new(BootMs(0), None);
        let first = hello_of(&dialed(&mut link, BootMs(0)));
        link.step(BootMs(5), Event::Lost, [0; 24]);
        let later = link.next_deadline();
        assert_eq!(hello_of(&dialed(&mut link, later)), first);
    }

    #[test]
    fn a_welcomed_session_is_followed_by_the_next_counter_also_after_a_restart() {
        let mut link = NodeLink::new(BootMs(0), None);
        let first = hello_of(&dialed(&mut link, BootMs(0)));
        let effects = link.step(BootMs(1), Event::Received(WELCOME), [0; 24]);
        assert_eq!(effects[0], Effect::Store { mark: first, welcomed: true });
        assert!(link.is_live());
        let mut restarted = NodeLink::new(BootMs(9), Some((first, true)));
        assert_eq!(hello_of(&dialed(&mut restarted, BootMs(9))).counter, JoinCounter(2));
        let mut crashed = NodeLink::new(BootMs(9), Some((first, false)));
        assert_eq!(hello_of(&dialed(&mut crashed, BootMs(9))), first);
    }

    #[test]
    fn silence_ends_a_session_and_the_dials_slow_down() {
        let mut link = NodeLink::new(BootMs(0), None);
        dialed(&mut link, BootMs(0));
        link.step(BootMs(1), Event::Received(WELCOME), [0; 24]);
        let effects = link.step(BootMs(1).after(SILENCE_MAX), Event::Tick, [0; 24]);
        assert_eq!(effects, [Effect::Close, Effect::Offline]);
        let mut waits = vec![];
        for _ in 0..12 {
            let at = link.next_deadline();
            link.step(at, Event::Tick, [0; 24]);
            link.step(at, Event::DialFailed, [0xff; 24]);
            waits.push(link.next_deadline().since(at).0);
        }
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0] / 2), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= REDIAL_MAX.0));
        assert!(waits.last().unwrap() >= &(REDIAL_MAX.0 / 2));
    }

    #[test]
    fn a_refused_node_keeps_asking_at_the_slowest_pace() {
        let mut link = NodeLink::new(BootMs(0), None);
        dialed(&mut link, BootMs(0));
        let rejected = CoordinatorFrame::Rejected { code: Code::NodeRejected, detail: "no".into() };
        let effects = link.step(BootMs(1), Event::Received(rejected), [0; 24]);
        assert!(matches!(effects[..], [Effect::Close, Effect::Refused { .. }]));
        assert_eq!(link.next_deadline(), BootMs(1).after(REDIAL_MAX));
    }

    #[test]
    fn commands_before_the_welcome_are_not_delivered() {
        let mut link = NodeLink::new(BootMs(0), None);
        dialed(&mut link, BootMs(0));
        let desired = crate::wire::DesiredState { revision: 1, domain: "d".into(), assignments: vec![] };
        let effects = link.step(BootMs(1), Event::Received(CoordinatorFrame::Desired(desired)), [0; 24]);
        assert_eq!(effects, [Effect::Close]);
    }
}
