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
//!
//! A new key of the node goes through four steps, each of which may be the last before a crash:
//!
//! ```text
//! RotateKey --> made, durable on the node --> told (NewKey) --> judged good --> in force, durable --> hello with it
//!                      ^                                             |
//!                      +--- a next session tells it again -----------+--- or the old key is refused as retired
//! ```

use crate::backoff::Backoff;
use crate::ids::{JoinCounter, SessionNonce};
use crate::link::{
    DIAL_MAX, GREETING_MAX, HEARTBEAT_EVERY, REDIAL_FIRST, REDIAL_MAX, SILENCE_MAX, SessionMark,
};
use crate::problem::{Code, Problem};
use crate::signing::{PublicKey, Signature};
use crate::time::{BootMs, Millis};
use crate::wire::{CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, KEYS_SINCE, Versioned};

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
    /// A new key lies durably on the node, told of or not; `None`: it could not be made.
    KeyMade(Option<PublicKey>),
    /// There was no room to write a session's mark; no later effect was carried out.
    MarkNotStored,
    /// There was no room to write that this key is in force; no later effect was carried out.
    KeyNotUsed(PublicKey),
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
        /// The version of the frames that the session speaks.
        version: u16,
        /// How long the node may work alone after the last contact.
        autonomy: Option<Millis>,
    },
    /// Hand this to the agent.
    Deliver(CoordinatorFrame),
    /// See to it that a new key lies durably on the node; report [`Event::KeyMade`].
    MakeKey,
    /// Tell the coordinator of this new key, with its proof.
    SendNewKey(PublicKey),
    /// Write durably that this key is in force from now on, before any later effect; dial with it.
    UseKey(PublicKey),
    /// The coordinator did not accept the new key: the old one stays in force. A person may look.
    KeyRefused(Problem),
    /// Check this next key of the coordinator; pin it durably beside the present one, then say so.
    PinNext {
        /// Which.
        key: PublicKey,
        /// By that key.
        proof: Signature,
    },
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
    Live { heard: BootMs, heartbeat_at: BootMs, every: Millis, version: u16 },
}

/// The machine. One per node agent.
#[derive(Debug, Clone)]
pub struct NodeLink {
    state: State,
    backoff: Backoff,
    mark: Option<SessionMark>,
    /// There was no room for it: no hello has shown it yet.
    unstored: bool,
    welcomed: bool,
    /// A new key that lies on the node and is not in force.
    next_key: Option<PublicKey>,
}

impl NodeLink {
    /// Starts with what was stored last: the newest mark and whether a welcome for it was seen; and the node's new key,
    /// if one lies there that is not in force yet.
    pub const fn new(now: BootMs, stored: Option<(SessionMark, bool)>, next_key: Option<PublicKey>) -> Self {
        let (mark, welcomed) = match stored {
            Some((mark, welcomed)) => (Some(mark), welcomed),
            None => (None, true),
        };
        let backoff = Backoff::new(REDIAL_FIRST, REDIAL_MAX);
        Self { state: State::Waiting { until: now }, backoff, mark, unstored: false, welcomed, next_key }
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
            (State::Greeting { .. } | State::Live { .. }, Event::Lost) => self.wait(now, jitter, false),
            (State::Greeting { .. } | State::Live { .. }, Event::MarkNotStored) => {
                // A welcome was seen, written or not: the next session takes the next counter.
                self.unstored = !self.welcomed;
                self.wait(now, jitter, true)
            }
            (
                State::Waiting { .. } | State::Dialing { .. } | State::Greeting { .. } | State::Live { .. },
                Event::KeyNotUsed(key),
            ) => {
                // The old one stays in force, and this one is told again; not at once, since that would fail, too.
                self.next_key = Some(key);
                self.state = State::Waiting { until: now.after(REDIAL_MAX) };
                vec![Effect::Close, Effect::Offline]
            }
            // A coordinator that sends what the session does not speak is broken.
            // A frame that lay in a buffer while this process did not run is no sign that anybody is there: the time that
            // the node may work alone must not begin anew with it.
            (State::Greeting { until }, Event::Received(_)) if now >= *until => self.wait(now, jitter, true),
            (State::Live { heard, .. }, Event::Received(_)) if now >= heard.after(SILENCE_MAX) => {
                self.wait(now, jitter, true)
            }
            (State::Greeting { .. }, Event::Received(frame)) => self.greeted(now, frame, jitter),
            (State::Live { version, .. }, Event::Received(frame)) if frame.since() > *version => {
                self.wait(now, jitter, true)
            }
            (State::Live { heard, .. }, Event::Received(frame)) => {
                *heard = now;
                match frame {
                    CoordinatorFrame::Heard => vec![],
                    CoordinatorFrame::Rejected { code, detail } => self.refused(now, code, detail),
                    CoordinatorFrame::Joined { .. } | CoordinatorFrame::Welcome { .. } => {
                        self.wait(now, jitter, true)
                    }
                    frame @ (CoordinatorFrame::Desired(_)
                    | CoordinatorFrame::Command(_)
                    | CoordinatorFrame::Terms { .. }
                    | CoordinatorFrame::Bucket(_)
                    | CoordinatorFrame::Repositories { .. }
                    | CoordinatorFrame::SnapshotJudged { .. }) => {
                        vec![Effect::Deliver(frame)]
                    }
                    CoordinatorFrame::RotateKey => vec![Effect::MakeKey],
                    CoordinatorFrame::KeyJudged { key, outcome } => self.key_judged(now, key, outcome),
                    CoordinatorFrame::NextKey { key, proof } => vec![Effect::PinNext { key, proof }],
                }
            }
            (State::Live { version, .. }, Event::KeyMade(Some(key))) => {
                let may_tell = *version >= KEYS_SINCE;
                self.next_key = Some(key);
                if may_tell { vec![Effect::SendNewKey(key)] } else { vec![] }
            }
            (
                State::Waiting { .. } | State::Dialing { .. } | State::Greeting { .. },
                Event::KeyMade(Some(key)),
            ) => {
                // The session ended meanwhile: the next one tells.
                self.next_key = Some(key);
                vec![]
            }
            (State::Live { heard, heartbeat_at, every, .. }, Event::Tick) => {
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
                | Event::News
                | Event::KeyMade(None)
                | Event::MarkNotStored,
            ) => vec![],
        }
    }

    fn greet(&mut self, now: BootMs, nonce: SessionNonce) -> Vec<Effect> {
        let mut effects = vec![];
        let mark = match self.mark {
            Some(mark) if !self.welcomed => {
                if std::mem::take(&mut self.unstored) {
                    effects.push(Effect::Store { mark, welcomed: false });
                }
                mark
            }
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
            CoordinatorFrame::Welcome { version, .. }
                if !(FRAMES_VERSION_MIN..=FRAMES_VERSION_MAX).contains(&version) =>
            {
                let detail = format!(
                    "the coordinator chose version {version}, this node speaks {FRAMES_VERSION_MIN} to \
                     {FRAMES_VERSION_MAX}"
                );
                self.refused(now, Code::VersionUnsupported, detail)
            }
            CoordinatorFrame::Welcome { version, wall, autonomy, heartbeat } => {
                let mut effects = vec![];
                if let Some(mark) = self.mark {
                    self.welcomed = true;
                    effects.push(Effect::Store { mark, welcomed: true });
                }
                self.backoff.reset();
                let every = Millis(heartbeat.0.clamp(100, HEARTBEAT_EVERY.0));
                self.state = State::Live {
                    heard: now,
                    heartbeat_at: now.after(spread(every, jitter)),
                    every,
                    version,
                };
                effects.extend([
                    Effect::Online { version, autonomy },
                    // In one queue with the desired states: which of them are of this session is told by their order.
                    Effect::Deliver(CoordinatorFrame::Welcome { version, wall, autonomy, heartbeat }),
                    Effect::SendObserved,
                    Effect::SendHeartbeat,
                ]);
                // It was made for an order of an earlier session, and its acceptance was not heard.
                effects.extend(self.next_key.filter(|_| version >= KEYS_SINCE).map(Effect::SendNewKey));
                effects
            }
            // The new key is known there, and its acceptance was lost until the old one's time was up.
            CoordinatorFrame::Rejected { code: Code::KeyRetired, detail } => match self.next_key.take() {
                Some(key) => self.use_key(now, key),
                None => self.refused(now, Code::KeyRetired, detail),
            },
            CoordinatorFrame::Rejected { code, detail } => self.refused(now, code, detail),
            CoordinatorFrame::Joined { .. }
            | CoordinatorFrame::Desired(_)
            | CoordinatorFrame::Command(_)
            | CoordinatorFrame::Heard
            | CoordinatorFrame::RotateKey
            | CoordinatorFrame::KeyJudged { .. }
            | CoordinatorFrame::NextKey { .. }
            | CoordinatorFrame::Terms { .. }
            | CoordinatorFrame::Bucket(_)
            | CoordinatorFrame::Repositories { .. }
            | CoordinatorFrame::SnapshotJudged { .. } => self.wait(now, jitter, true),
        }
    }

    fn key_judged(&mut self, now: BootMs, key: PublicKey, outcome: Result<(), Problem>) -> Vec<Effect> {
        // An answer about a key that is not the one that lies here: of an older agent's life, or never asked for.
        let Some(next) = self.next_key.filter(|next| *next == key) else { return vec![] };
        match outcome {
            Ok(()) => {
                self.next_key = None;
                self.use_key(now, next)
            }
            // The key stays on the node: the next order tells the same one again.
            Err(problem) => vec![Effect::KeyRefused(problem)],
        }
    }

    fn use_key(&mut self, now: BootMs, key: PublicKey) -> Vec<Effect> {
        let was_live = self.is_live();
        self.state = State::Waiting { until: now };
        let mut effects = vec![Effect::UseKey(key), Effect::Close];
        if was_live {
            effects.push(Effect::Offline);
        }
        effects
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
        let mut link = NodeLink::new(BootMs(0), None, None);
        let effects = dialed(&mut link, BootMs(0));
        assert!(matches!(effects[..], [Effect::Store { welcomed: false, .. }, Effect::SendHello(_)]));
        assert_eq!(hello_of(&effects).counter, JoinCounter(1));
    }

    #[test]
    fn a_hello_without_answer_is_repeated_with_the_same_mark() {
        let mut link = NodeLink::new(BootMs(0), None, None);
        let first = hello_of(&dialed(&mut link, BootMs(0)));
        link.step(BootMs(5), Event::Lost, [0; 24]);
        let later = link.next_deadline();
        assert_eq!(hello_of(&dialed(&mut link, later)), first);
    }

    #[test]
    fn a_welcomed_session_is_followed_by_the_next_counter_also_after_a_restart() {
        let mut link = NodeLink::new(BootMs(0), None, None);
        let first = hello_of(&dialed(&mut link, BootMs(0)));
        let effects = link.step(BootMs(1), Event::Received(WELCOME), [0; 24]);
        assert_eq!(effects[0], Effect::Store { mark: first, welcomed: true });
        assert!(link.is_live());
        let mut restarted = NodeLink::new(BootMs(9), Some((first, true)), None);
        assert_eq!(hello_of(&dialed(&mut restarted, BootMs(9))).counter, JoinCounter(2));
        let mut crashed = NodeLink::new(BootMs(9), Some((first, false)), None);
        assert_eq!(hello_of(&dialed(&mut crashed, BootMs(9))), first);
    }

    #[test]
    fn silence_ends_a_session_and_the_dials_slow_down() {
        let mut link = NodeLink::new(BootMs(0), None, None);
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
        let mut link = NodeLink::new(BootMs(0), None, None);
        dialed(&mut link, BootMs(0));
        let rejected = CoordinatorFrame::Rejected { code: Code::NodeRejected, detail: "no".into() };
        let effects = link.step(BootMs(1), Event::Received(rejected), [0; 24]);
        assert!(matches!(effects[..], [Effect::Close, Effect::Refused { .. }]));
        assert_eq!(link.next_deadline(), BootMs(1).after(REDIAL_MAX));
    }

    #[test]
    fn commands_before_the_welcome_are_not_delivered() {
        let mut link = NodeLink::new(BootMs(0), None, None);
        dialed(&mut link, BootMs(0));
        let desired = crate::wire::DesiredState {
            revision: 1,
            domain: "d".into(),
            assignments: vec![],
            removed: vec![],
        };
        let effects = link.step(BootMs(1), Event::Received(CoordinatorFrame::Desired(desired)), [0; 24]);
        assert_eq!(effects, [Effect::Close]);
    }

    fn live(version: u16, next_key: Option<PublicKey>) -> (NodeLink, Vec<Effect>) {
        let mut link = NodeLink::new(BootMs(0), None, next_key);
        dialed(&mut link, BootMs(0));
        let welcome = CoordinatorFrame::Welcome {
            version,
            wall: UnixMs(0),
            autonomy: None,
            heartbeat: HEARTBEAT_EVERY,
        };
        let effects = link.step(BootMs(1), Event::Received(welcome), [0; 24]);
        (link, effects)
    }

    const NEW: PublicKey = PublicKey::from_bytes([7; 32]);

    fn judged(outcome: Result<(), Problem>) -> Event {
        Event::Received(CoordinatorFrame::KeyJudged { key: NEW, outcome })
    }

    #[test]
    fn a_new_key_is_told_when_it_lies_there_and_used_when_it_is_accepted() {
        let (mut link, _) = live(2, None);
        let at = BootMs(2);
        let rotate = Event::Received(CoordinatorFrame::RotateKey);
        assert_eq!(link.step(at, rotate, [0; 24]), [Effect::MakeKey]);
        assert_eq!(link.step(at, Event::KeyMade(Some(NEW)), [0; 24]), [Effect::SendNewKey(NEW)]);
        let effects = link.step(at, judged(Ok(())), [0; 24]);
        assert_eq!(effects, [Effect::UseKey(NEW), Effect::Close, Effect::Offline]);
        assert_eq!(link.next_deadline(), at, "it dials at once");
        assert_eq!(link.step(at, judged(Ok(())), [0; 24]), [], "an answer that comes twice");
    }

    #[test]
    fn a_key_that_was_refused_or_never_made_is_not_used() {
        let (mut link, _) = live(2, Some(NEW));
        let no = Problem::new(Code::KeyRefused, "no");
        assert_eq!(link.step(BootMs(2), judged(Err(no.clone())), [0; 24]), [Effect::KeyRefused(no)]);
        assert!(link.is_live());
        let (mut link, _) = live(2, None);
        assert_eq!(link.step(BootMs(2), Event::KeyMade(None), [0; 24]), []);
        assert_eq!(link.step(BootMs(2), judged(Ok(())), [0; 24]), []);
        assert!(link.is_live(), "nobody knows this key here");
    }

    #[test]
    fn a_key_of_before_a_crash_is_told_again_and_used_when_the_old_one_is_retired() {
        let (_, effects) = live(2, Some(NEW));
        assert_eq!(effects.last(), Some(&Effect::SendNewKey(NEW)));
        let mut link = NodeLink::new(BootMs(0), None, Some(NEW));
        dialed(&mut link, BootMs(0));
        let retired = CoordinatorFrame::Rejected { code: Code::KeyRetired, detail: "old".into() };
        let effects = link.step(BootMs(1), Event::Received(retired.clone()), [0; 24]);
        assert_eq!(effects, [Effect::UseKey(NEW), Effect::Close]);
        let at = link.next_deadline();
        dialed(&mut link, at);
        let effects = link.step(BootMs(9), Event::Received(retired), [0; 24]);
        assert!(matches!(effects[..], [Effect::Close, Effect::Refused { .. }]), "there is no other key");
    }

    #[test]
    fn nothing_of_a_newer_version_is_said_or_heard_on_an_older_session() {
        let (mut link, effects) = live(1, Some(NEW));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::SendNewKey(_))), "{effects:?}");
        assert_eq!(link.step(BootMs(2), Event::KeyMade(Some(NEW)), [0; 24]), []);
        let effects = link.step(BootMs(2), Event::Received(CoordinatorFrame::RotateKey), [0; 24]);
        assert_eq!(effects, [Effect::Close, Effect::Offline]);
        let (link, effects) = live(FRAMES_VERSION_MAX + 1, None);
        assert!(
            matches!(&effects[..], [Effect::Close, Effect::Refused { code: Code::VersionUnsupported, detail }]
                if detail.contains("version 6") && detail.contains("1 to 5")),
            "{effects:?}"
        );
        assert!(!link.is_live());
    }

    #[test]
    fn what_is_said_of_snapshots_is_delivered_from_version_4_on() {
        let said = CoordinatorFrame::Repositories { users: vec![] };
        let (mut link, _) = live(4, None);
        let heard = Event::Received(said.clone());
        assert_eq!(link.step(BootMs(2), heard.clone(), [0; 24]), [Effect::Deliver(said)]);
        let (mut link, _) = live(3, None);
        assert_eq!(link.step(BootMs(2), heard, [0; 24]), [Effect::Close, Effect::Offline]);
    }
}
