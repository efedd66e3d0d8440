//! How containers and what runs in them change, and who hears of it.

use berth_shared::cell::ImageRef;

use crate::engine::{Container, Run, Work};
use crate::plan::{At, SECOND, image};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn place_foreign_containers(&mut self) {
        for cell in 0..self.truths.len() {
            if self.truths[cell].temper.foreign {
                self.truths[cell].container = Some(foreign(image(99)));
            }
        }
    }

    pub(crate) fn start(&mut self, cell: usize) {
        self.runs += 1;
        self.count("starts");
        self.check_image(cell);
        let (run, faulty) = (self.runs, self.faulty());
        let temper = self.truths[cell].temper;
        let boot = self.dice.between(500, 15 * SECOND);
        let ready_at = if temper.sick && faulty { At::MAX } else { self.at + boot };
        if let Some(container) = &mut self.truths[cell].container {
            container.run_number = run;
            container.work = Work::booting(ready_at);
        }
        self.set_run(cell, Run::Up);
        if temper.bad_config {
            let wait = self.dice.between(100, 2 * SECOND);
            self.later(wait, Happening::Ends { cell, run, code: 78 });
        }
        if temper.crash_every > 0 && faulty {
            let wait = self.dice.between(1, 2 * temper.crash_every);
            self.later(wait, Happening::Ends { cell, run, code: 1 });
        }
        self.plan_own_work(cell, run);
    }

    fn plan_own_work(&mut self, cell: usize, run: u64) {
        let every = self.truths[cell].temper.own_work_every;
        if every > 0 && self.faulty() {
            let wait = self.dice.between(1, 2 * every);
            self.later(wait, Happening::OwnWork { cell, run, again: true });
        }
    }

    /// The workload begins a turn by itself, if it runs and has not consented to rest.
    pub(crate) fn own_work(&mut self, cell: usize, run: u64, again: bool) {
        if !self.truths[cell].is_up() || self.truths[cell].run_number() != run {
            return;
        }
        if again {
            self.plan_own_work(cell, run);
        }
        let now = self.at;
        let free = self.truths[cell].runs()
            && self.truths[cell].container.as_ref().is_some_and(|container| {
                let work = container.work;
                !work.is_suspended(now) && !work.draining && work.ready_at <= now
            });
        if free {
            let turn = self.dice.between(1, 240) * SECOND;
            self.begin_work(cell, turn);
        }
    }

    pub(crate) fn begin_work(&mut self, cell: usize, turn: At) {
        let until = self.at + turn;
        if let Some(container) = &mut self.truths[cell].container {
            container.work.busy_until = container.work.busy_until.max(until);
        }
        self.note(|| format!("the workload of cell {cell} is busy until {until}"));
    }

    pub(crate) fn set_run(&mut self, cell: usize, run: Run) {
        let now = self.at;
        let Some(container) = &mut self.truths[cell].container else { return };
        if !container.ours {
            return self.broken("g", &format!("the foreign container at cell {cell} was touched"));
        }
        if container.run == Run::Paused && run == Run::Up {
            // What was under way goes on where it was: it has lost the time of the pause.
            let rest = container.work.busy_until.saturating_sub(container.changed_at);
            if rest > 0 {
                container.work.busy_until = now + rest;
            }
        }
        (container.run, container.changed_at) = (run, now);
        self.note(|| format!("the container of cell {cell} is {run:?}"));
        self.tell_of(cell);
    }

    /// A lease that runs out lets the workload go on: half of them have something to do at once.
    pub(crate) fn plan_work_after(&mut self, cell: usize, lease: At) {
        if self.strikes(700) {
            let (run, wait) = (self.truths[cell].run_number(), self.dice.between(1, 5 * SECOND));
            self.later(lease + wait, Happening::OwnWork { cell, run, again: false });
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
        if self.truths[cell].is_up() && self.truths[cell].run_number() == run {
            self.set_run(cell, Run::Exited { code });
            self.cut_requests(cell);
        }
    }

    /// A container that was told to end finishes what it does, and is killed when that takes too long.
    pub(crate) fn drain(&mut self, cell: usize, run: u64, until: At) {
        if !self.truths[cell].is_up() || self.truths[cell].run_number() != run {
            return;
        }
        let busy = self.truths[cell].container.as_ref().is_some_and(|c| c.work.busy_until > self.at);
        let quiet = !busy && self.door.gates[cell].open.is_empty() && self.truths[cell].runs();
        if quiet || self.at >= until {
            self.container_ends(cell, run, if quiet { 0 } else { 137 });
        } else {
            self.later(SECOND, Happening::Drain { cell, run, until });
        }
    }

    pub(crate) fn container_gone(&mut self, cell: usize) {
        if self.truths[cell].container.as_ref().is_some_and(|container| !container.ours) {
            return self.broken("g", &format!("the foreign container at cell {cell} was removed"));
        }
        self.truths[cell].container = None;
        self.cut_requests(cell);
        self.note(|| format!("the container of cell {cell} is removed"));
        self.tell_of(cell);
    }
}

const fn foreign(image: ImageRef) -> Container {
    Container {
        ours: false,
        made_by: 7,
        image,
        run: Run::Up,
        run_number: 0,
        changed_at: 0,
        work: Work::booting(0),
    }
}
