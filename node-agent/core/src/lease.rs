//! How long the node may work alone: the autonomy lease (DESIGN section 2).
//!
//! ```text
//!             the length is over                       Welcome
//! Held ---------------------------------> Ended -------------------> Greeted
//!  ^  ^                                     ^   the length is over       |
//!  |  +--- any frame of a live session      +----------------------------+
//!  +---------------------------------------------------------------------+
//!                       the desired state of that session
//! ```
//!
//! While it is held, cells of the newest known desired state start, run and sleep as they like. At its end they are
//! stopped, and nothing starts before the coordinator has answered a hello *and* has said in that session what shall run
//! here: the users may have been given to another node meanwhile (invariant 1).
//!
//! **The first word on a new boot.** A machine that was off may have been declared so, and its users given away inside its
//! lease. So an agent that begins on a boot on which it was not yet clear what shall run *asks first*
//! ([`Lease::asks_first`]): nothing is started until the desired state of a session has come, or until [`ASKS_FOR`] has passed
//! without an answer. From then on the lease rules alone. Containers that run already go on; callers are held.
//!
//! **Which clock counts.** Within one boot only [`BootMs`]: a wall clock that is stepped, by a person or a time server,
//! neither stretches nor cuts the lease. Over a reboot that clock begins anew, so the journal holds how much was used up
//! ([`Mark`]), with the wall clock of that moment: at every welcome, at the end of every session, and every
//! [`MARK_EVERY`] in between. What passed since the mark is taken as the larger of what the wall clock says and the time
//! since this boot began, which certainly passed. It is never negative, so a reboot gives nothing back. A wall clock that
//! shows a time before the mark cannot tell how long the machine was off: then the lease is taken as used up, and the
//! node waits for its coordinator. [`WALL_SLACK`] forgives what a time server corrects in small steps. A wall clock that is
//! set back while an agent runs is noted within [`crate::cell::PROBE_EVERY`]; one that is set back while the machine is
//! off, by less than it is off, cannot be told from a shorter time off.
//!
//! The coordinator waits for a margin on top of the length, which covers the stopping and what clocks differ by.

use berth_shared::ids::BootId;
use berth_shared::time::{BootMs, Millis, UnixMs};
use serde::{Deserialize, Serialize};

use crate::cell::Now;

/// The longest lease (DESIGN section 2). A coordinator that gives more is not believed.
pub const LENGTH_MAX: Millis = Millis::minutes(7 * 24 * 60);

/// How long a node asks what shall run before it goes on with what it knows, on each new boot: two tries of the longest dial
/// ([`berth_shared::link::DIAL_MAX`]). Counted from the agent's start, and once more from the first welcome, behind which the
/// word on what shall run follows at once.
pub const ASKS_FOR: Millis = Millis::secs(20);

/// How often what was used up is written down.
pub const MARK_EVERY: Millis = Millis::minutes(5);

/// A short lease is marked more often: so many times in its length.
const MARKS_PER_LENGTH: u64 = 16;

/// Shortest time between two marks.
const MARK_EVERY_MIN: Millis = Millis::secs(1);

/// A wall clock that was set back by more is noted at once.
const WALL_STEP: Millis = Millis::secs(30);

/// How far behind its mark the wall clock of a new boot may be and still be believed. Well below the coordinator's
/// margin, since so much may stay uncounted.
pub const WALL_SLACK: Millis = Millis::minutes(1);

/// What the journal holds of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// On which boot this was written; [`Mark::at`] means nothing on another. While the node asks first it is that boot's
    /// id with every bit turned round: an agent that begins anew meanwhile asks again.
    pub boot: BootId,
    /// When, on that boot's clock.
    pub at: BootMs,
    /// When, on the wall clock.
    pub wall: UnixMs,
    /// The time since the last contact, at that moment.
    pub used: Millis,
    /// How long the lease is, `None` without end.
    pub length: Option<Millis>,
    /// It was over: nothing starts before a new session has said what shall run here.
    pub ended: bool,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The coordinator answered a hello.
    Welcomed {
        /// When, which may be a while ago.
        at: BootMs,
        /// How long the node may work alone, `None` without end.
        length: Option<Millis>,
    },
    /// A frame of a live session came at this time, which may be a while ago.
    Heard(BootMs),
    /// The session has ended, or the agent is about to.
    Parted,
    /// The desired state of the newest session is known and durable, or about to be.
    Told,
    /// [`Lease::next_deadline`] has come.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Write this durably before any later effect is carried out.
    Store(Mark),
    /// Stop every cell; start none.
    Ended,
    /// Cells may start.
    Begun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    Ended,
    Greeted,
}

/// The first thing on a new boot: see [`ASKS_FOR`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asks {
    until: BootMs,
    welcomed: bool,
}

/// The machine. One per node agent.
#[derive(Debug, Clone)]
pub struct Lease {
    boot: BootId,
    state: State,
    length: Option<Millis>,
    /// The time since the last contact was `used` at `at`.
    at: BootMs,
    used: Millis,
    /// Until when nothing is started, whatever the lease says.
    asks: Option<Asks>,
    /// When the last mark was made; `None` when nothing was written yet of what passed while no agent ran.
    marked: Option<Now>,
}

impl Lease {
    /// Goes on from what the journal holds. A node that was never welcomed has nothing to run and no lease to lose.
    pub fn new(now: Now, boot: BootId, stored: Option<&Mark>) -> Self {
        let Some(mark) = stored else {
            return Self {
                boot,
                state: State::Held,
                length: None,
                at: now.boot,
                used: Millis(0),
                asks: None,
                marked: Some(now),
            };
        };
        let asked = mark.boot == still_asking(boot);
        let passed = if asked || mark.boot == boot {
            Some(now.boot.since(mark.at))
        } else {
            passed_over_a_boot(now, mark)
        };
        let used = match passed {
            Some(passed) => Millis(mark.used.0.saturating_add(passed.0)),
            None => Millis(u64::MAX),
        };
        let mut lease = Self {
            boot,
            state: if mark.ended { State::Ended } else { State::Held },
            length: mark.length,
            at: now.boot,
            used,
            asks: (mark.boot != boot).then(|| Asks { until: now.boot.after(ASKS_FOR), welcomed: false }),
            marked: None,
        };
        if lease.is_used_up(now.boot) {
            lease.state = State::Ended;
        }
        lease
    }

    /// May cells start and run?
    pub const fn is_held(&self) -> bool {
        matches!(self.state, State::Held)
    }

    /// Does nothing start yet, whatever the lease says, because nobody has said on this boot what shall run here?
    pub const fn asks_first(&self) -> bool {
        self.asks.is_some()
    }

    /// How long it is, `None` without end.
    pub const fn length(&self) -> Option<Millis> {
        self.length
    }

    /// When it ends if nothing is heard any more; `None` without end, and once it is over.
    pub fn ends_at(&self) -> Option<BootMs> {
        match self.state {
            State::Ended => None,
            State::Held | State::Greeted => {
                let left = Millis(self.length?.0.saturating_sub(self.used.0));
                Some(self.at.after(left))
            }
        }
    }

    /// When [`Event::Tick`] is due. Whoever knows of a contact says so before.
    pub fn next_deadline(&self) -> Option<BootMs> {
        if self.marked.is_none() {
            return Some(self.at);
        }
        let lease = match self.state {
            State::Ended => None,
            State::Held | State::Greeted => self.ends_at().map(|end| end.min(self.mark_due())),
        };
        lease.into_iter().chain(self.asks.map(|asks| asks.until)).min()
    }

    /// Takes an event in.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Welcomed { at, length } => {
                self.length = length.map(|length| length.min(LENGTH_MAX));
                self.contact(at.min(now.boot));
                if self.state == State::Ended {
                    self.state = State::Greeted;
                }
                if let Some(asks) = self.asks.as_mut().filter(|asks| !asks.welcomed) {
                    *asks = Asks { until: now.boot.after(ASKS_FOR), welcomed: true };
                }
                out.push(Effect::Store(self.mark(now)));
            }
            Event::Heard(at) => {
                // What was heard before the end was found does not undo it: that takes a welcome.
                if self.state != State::Ended {
                    self.contact(at.min(now.boot));
                }
            }
            Event::Told => {
                let asked = self.asks.take().is_some();
                if asked && self.state == State::Held {
                    out.push(Effect::Store(self.mark(now)));
                }
                if self.state == State::Greeted {
                    self.state = State::Held;
                    out.extend([Effect::Store(self.mark(now)), Effect::Begun]);
                }
            }
            Event::Parted => {
                if self.state == State::Greeted {
                    // Nothing was said of what shall run here: as if nobody had answered.
                    self.state = State::Ended;
                }
                out.push(Effect::Store(self.mark(now)));
            }
            Event::Tick => {}
        }
        if self.asks.take_if(|asks| now.boot >= asks.until).is_some() {
            out.push(Effect::Store(self.mark(now)));
        }
        if self.state != State::Ended && self.is_used_up(now.boot) {
            let was_held = self.is_held();
            self.state = State::Ended;
            out.push(Effect::Store(self.mark(now)));
            if was_held {
                out.push(Effect::Ended);
            }
        }
        let is_counting = self.length.is_some() && self.state != State::Ended;
        let due = now.boot >= self.mark_due() || self.wall_went_back(now);
        if self.marked.is_none() || is_counting && due {
            out.push(Effect::Store(self.mark(now)));
        }
        out
    }

    fn contact(&mut self, at: BootMs) {
        // Later than what is known: `used` is the time since the last contact at `self.at`.
        if at.after(self.used) >= self.at {
            self.at = at;
            self.used = Millis(0);
        }
    }

    fn is_used_up(&self, now: BootMs) -> bool {
        self.length.is_some_and(|length| self.used_at(now) >= length)
    }

    fn used_at(&self, now: BootMs) -> Millis {
        Millis(self.used.0.saturating_add(now.since(self.at).0))
    }

    fn mark_due(&self) -> BootMs {
        let every = self.length.map_or(MARK_EVERY, |length| {
            Millis((length.0 / MARKS_PER_LENGTH).clamp(MARK_EVERY_MIN.0, MARK_EVERY.0))
        });
        self.marked.map_or(self.at, |marked| marked.boot.after(every))
    }

    /// Was the wall clock set back since the mark? Then a mark of the new time is needed at once: measured by the old one,
    /// too little time would seem to pass while the machine is off.
    fn wall_went_back(&self, now: Now) -> bool {
        self.marked.is_some_and(|marked| {
            let expected = marked.wall.after(now.boot.since(marked.boot));
            expected.since(now.wall) > WALL_STEP
        })
    }

    fn mark(&mut self, now: Now) -> Mark {
        self.marked = Some(now);
        Mark {
            boot: if self.asks_first() { still_asking(self.boot) } else { self.boot },
            at: now.boot,
            wall: now.wall,
            used: self.used_at(now.boot),
            length: self.length,
            // Greeted is over as long as nothing was said: after a crash the next session has to say it.
            ended: self.state != State::Held,
        }
    }
}

/// What stands for this boot in the journal as long as it is not clear what shall run on it.
fn still_asking(boot: BootId) -> BootId {
    BootId::from_random(boot.bytes().map(|byte| !byte))
}

/// What passed between a mark of another boot and now; `None` where nobody can tell.
fn passed_over_a_boot(now: Now, mark: &Mark) -> Option<Millis> {
    let wall_is_believed = now.wall.after(WALL_SLACK) >= mark.wall;
    // The machine has been up for this long at least, whatever the wall clock says.
    let up = now.boot.since(BootMs(0));
    wall_is_believed.then(|| now.wall.since(mark.wall).max(up))
}

#[cfg(test)]
mod tests;
