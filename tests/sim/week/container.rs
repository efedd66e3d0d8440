//! How containers and what runs in them change, and who hears of it.

use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::truth::{Run, Work};
use crate::world::{Happening, World};

/// How often it is looked whether a container that was told to end has finished.
const DRAIN_EVERY: At = 500;

impl World {
    pub(crate) fn start(&mut self, cell: usize) {
        self.runs += 1;
        self.count("starts");
        let run = self.runs;
        let boot = match self.dice.between(0, 9) {
            0 => self.dice.between(2 * SECOND, 8 * SECOND),
            _ => self.dice.between(9 * SECOND, 13 * SECOND),
        };
        let ready_at = self.at + boot;
        let truth = &mut self.cells[cell];
        truth.run_number = run;
        truth.work = Work { ready_at, ..Work::default() };
        (truth.watch.frozen_at, truth.watch.ends_as_meant) = (None, false);
        truth.resident = truth.habits.memory;
        self.set_run(cell, Run::Up);
        self.later(boot + 700, Happening::SchedulerStarts { cell, run });
        if self.strikes(30) {
            let wait = self.dice.between(1, 20 * MINUTE);
            self.excuse_cell(cell, wait + 20 * MINUTE);
            self.later(wait, Happening::Ends { cell, run, code: 1 });
        }
    }

    /// The workload does something that it owns up to.
    pub(crate) fn begin_work(&mut self, cell: usize, turn: At) {
        let until = self.at + turn;
        let work = &mut self.cells[cell].work;
        work.busy_until = work.busy_until.max(until);
        let touched = berth_shared::units::Bytes::mib(self.dice.between(40, 140));
        self.touch(cell, touched);
        self.used(cell, until);
    }

    pub(crate) fn set_run(&mut self, cell: usize, run: Run) {
        let now = self.at;
        let truth = &mut self.cells[cell];
        if truth.run == Run::Paused && run == Run::Up {
            // What was under way goes on where it was: it has lost the time of the pause.
            let lost = now - truth.changed_at;
            if truth.work.busy_until > truth.changed_at {
                truth.work.busy_until += lost;
            }
            if truth.work.hidden.1 > truth.changed_at {
                truth.work.hidden.1 += lost;
            }
        }
        (truth.run, truth.changed_at) = (run, now);
        if run == Run::Paused {
            truth.watch.frozen_at = Some(now);
        } else {
            truth.watch.frozen_at = None;
            truth.watch.caught = false;
        }
        self.note(|| format!("the container of cell {cell} is {run:?}"));
        self.tell_of(cell);
        if run == Run::Up {
            self.used(cell, now);
            self.goes_on(cell);
        }
    }

    /// The workload may do again what it could not.
    pub(crate) fn goes_on(&mut self, cell: usize) {
        self.run_jobs(cell);
    }

    pub(crate) fn lease_ends(&mut self, cell: usize, run: u64) {
        if self.cells[cell].run_number == run {
            self.goes_on(cell);
        }
    }

    /// The engine reports what changed, if anybody listens.
    fn tell_of(&mut self, cell: usize) {
        if self.engine_down {
            return;
        }
        let seen = self.seen(cell);
        let Some(life) = self.life.as_ref().filter(|life| life.stream_up) else { return };
        let number = life.number;
        let wait = self.dice.between(1, 300);
        self.later(wait, Happening::Noticed { life: number, cell, seen });
    }

    pub(crate) fn container_ends(&mut self, cell: usize, run: u64, code: i64) {
        if self.cells[cell].is_up() && self.cells[cell].run_number == run {
            let known = self.disk.cells.get(&cell_id(cell));
            if self.cells[cell].run == Run::Paused && known.is_some_and(|known| known.frozen) {
                self.cells[cell].watch.ends_as_meant = true;
            }
            self.memory_gone(cell);
            self.set_run(cell, Run::Exited { code });
            self.cut_requests(cell);
        }
    }

    /// A container that was told to end finishes what it does, and is killed when that takes too long.
    pub(crate) fn drain(&mut self, cell: usize, run: u64, until: At) {
        let now = self.at;
        let truth = &self.cells[cell];
        if !truth.is_up() || truth.run_number != run {
            return;
        }
        let quiet = truth.runs() && truth.work.busy_until <= now && truth.gate.open.is_empty();
        if quiet || now >= until {
            self.container_ends(cell, run, if quiet { 0 } else { 137 });
        } else {
            self.later(DRAIN_EVERY, Happening::Drain { cell, run, until });
        }
    }
}
