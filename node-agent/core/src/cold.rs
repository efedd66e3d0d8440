//! Cold pages of cells that run and do nothing: when a little of one's memory is pushed out, and when that ends.
//!
//! ```text
//! used, or works ──quiet for long enough──▶ a step at each look ──a stall, or it came back──▶ waits, twice as long each time
//!                                              │      ▲                                          │
//!                                              ▼      └──────────────── the wait is over ────────┘
//!                             the floor, or swap has no room: nothing until that changes
//! ```
//!
//! Nobody can say which pages a cell needs; the kernel gives up those that were not touched for longest, and shows what that
//! did: how long the cell's processes have waited for memory (PSI, Documentation/accounting/psi.rst). As long as they do not
//! wait, what went out was not needed. This is how Meta's senpai sizes containers.
//!
//! A stall is not the only sign. A step that is back at the next look was written to disk for nothing, on a fast disk without
//! a stall that shows: it ends in a wait, too.

use std::collections::BTreeMap;

use berth_shared::ids::CellId;
use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;

use crate::agent::Agent;
use crate::burn::Micros;
use crate::cell::{Cell, UNDECLARED_PERCENT};

/// How often a cell is looked at, and at most one step of its memory goes out.
pub const LOOK_EVERY: Millis = Millis::secs(5);

/// Nobody has used the cell for so long before anything of it goes out.
pub const UNUSED_FOR: Millis = Millis::minutes(2);

/// Of these it has not worked by itself for so long: it need not be looked at sooner.
pub const CALM_FOR: Millis = Millis::minutes(1);

/// Nothing goes out of a cell that holds no more than this, in memory: most of the rest is hot, or the kernel's own.
pub const FLOOR: Bytes = Bytes::mib(64);

/// A step is such a part of what is in memory …
const STEP_PART: u64 = 100;

/// … and at most this.
pub const STEP_MAX: Bytes = Bytes::mib(4);

/// Where less than this is to be had, it is not worth a step.
const STEP_MIN: Bytes = Bytes(256 << 10);

/// From this stall on nothing more goes out: the part of the time in which a process waited for memory, in millionths.
const STALL_MILLIONTHS: u64 = 1000;

/// The wait behind the first stall …
const WAIT_MIN: Millis = Millis::secs(30);

/// … and the longest of the later ones, each twice as long as the one before: near its hot set a cell is disturbed once in
/// this time. A step that brought it lower than ever takes an eighth off the next wait, so that a chance stall on the way down
/// is forgotten, and steps that only go to and fro are not.
const WAIT_MAX: Millis = Millis::minutes(16);

/// What the kernel shows of a running cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// All that is in memory and charged to it.
    pub resident: Bytes,
    /// What of it lies in swap.
    pub swapped: Bytes,
    /// How long at least one of its processes has waited for memory since its group was made: `some total` of PSI.
    pub stalled: Micros,
    /// CPU time that it has used since then.
    pub cpu: Micros,
}

/// What one step brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cooled {
    /// So much less is in memory.
    pub out: Bytes,
    /// So much more lies in swap; the rest was file cache.
    pub swapped: Bytes,
}

/// What follows from a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// So much goes out now, at most.
    Step(Bytes),
    /// Nothing does.
    Stays(Why),
}

/// Why nothing goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no earlier look to compare with.
    First,
    /// It is used, works, or did a moment ago.
    Used,
    /// It has waited for memory since the last look.
    Stalled,
    /// What went out last is in memory again.
    CameBack,
    /// A wait behind one of these two is not over.
    Waits,
    /// It holds little.
    Small,
    /// Swap has no room for it.
    NoRoom,
}

/// What is remembered of a cell.
#[derive(Debug, Clone)]
struct Known {
    at: BootMs,
    held: Held,
    /// Since when it was not seen to work.
    calm_since: BootMs,
    /// What went out at the last look.
    step: Option<Bytes>,
    /// How long the newest wait was, less what steps to new lows took off since.
    wait: Millis,
    until: BootMs,
    /// When somebody had used it last.
    used: BootMs,
    /// The least that it has held since then.
    lowest: Bytes,
}

/// The policy, for all cells of a node.
#[derive(Debug, Clone, Default)]
pub struct Cold {
    cells: BTreeMap<CellId, Known>,
}

impl Cold {
    /// Takes in what a running cell holds at `at`. `used`: when somebody has used it last. `room`: what may go to swap.
    ///
    /// The step that it asks for, if any, is taken as taken.
    pub fn look(&mut self, cell: CellId, at: BootMs, held: Held, used: BootMs, room: Bytes) -> Verdict {
        let (wait, until, lowest) = (Millis(0), BootMs(0), held.resident);
        let fresh = Known { at, held, calm_since: at, step: None, wait, until, used, lowest };
        let known = match self.cells.get_mut(&cell) {
            // Its group is another one now: the cell was started again.
            Some(known) if held.cpu < known.held.cpu || held.stalled < known.held.stalled => {
                *known = fresh;
                return Verdict::Stays(Why::First);
            }
            Some(known) => known,
            None => {
                self.cells.insert(cell, fresh);
                return Verdict::Stays(Why::First);
            }
        };
        let verdict = known.judge(at, held, used, room);
        (known.at, known.held) = (at, held);
        known.step = match verdict {
            Verdict::Step(step) => Some(step),
            Verdict::Stays(_) => None,
        };
        verdict
    }

    /// Nothing is remembered any more of cells that do not run. One that is being asked whether it may rest does.
    pub fn keep_running(&mut self, agent: &Agent) {
        self.keep(|cell| agent.cell(cell).is_some_and(Cell::runs));
    }

    fn keep(&mut self, runs: impl Fn(CellId) -> bool) {
        self.cells.retain(|cell, _| runs(*cell));
    }
}

impl Known {
    fn judge(&mut self, at: BootMs, held: Held, used: BootMs, room: Bytes) -> Verdict {
        let span = at.since(self.at).0.max(1);
        let (cpu, stalled) = (held.cpu.0 - self.held.cpu.0, held.stalled.0 - self.held.stalled.0);
        // Both are in microseconds, the span in milliseconds.
        if cpu / 10 / span >= u64::from(UNDECLARED_PERCENT) {
            self.calm_since = at;
        }
        if used > self.used {
            // It may need other pages now.
            (self.used, self.lowest, self.wait) = (used, held.resident, Millis(0));
        }
        if at.since(used) < UNUSED_FOR || at.since(self.calm_since) < CALM_FOR {
            return Verdict::Stays(Why::Used);
        }
        if stalled.saturating_mul(1000) / span > STALL_MILLIONTHS {
            return self.backs_off(at, Why::Stalled);
        }
        if let Some(step) = self.step {
            if self.held.resident.saturating_sub(held.resident).0 < step.0 / 2 {
                return self.backs_off(at, Why::CameBack);
            }
            if held.resident < self.lowest {
                self.lowest = held.resident;
                self.wait.0 -= self.wait.0 / 8;
            }
        }
        if at < self.until {
            return Verdict::Stays(Why::Waits);
        }
        let above = held.resident.saturating_sub(FLOOR);
        let step = Bytes(held.resident.0 / STEP_PART).min(STEP_MAX).min(above);
        if step < STEP_MIN {
            return Verdict::Stays(Why::Small);
        }
        if room < step { Verdict::Stays(Why::NoRoom) } else { Verdict::Step(step) }
    }

    fn backs_off(&mut self, at: BootMs, why: Why) -> Verdict {
        // A stall within a wait is of the step before it.
        if at >= self.until {
            self.wait = Millis(self.wait.0.saturating_mul(2)).min(WAIT_MAX);
        }
        self.wait = self.wait.max(WAIT_MIN);
        self.until = at.after(self.wait);
        Verdict::Stays(why)
    }
}

#[cfg(test)]
mod tests;
