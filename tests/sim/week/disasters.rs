//! Misfortune: storms, in which operations fail and the agent dies at any write, and single blows.

use crate::plan::{At, HOUR, MINUTE, SECOND};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn storm_begins(&mut self) {
        let every = self.plan.storm_every;
        let wait = self.dice.between(every, 2 * every);
        self.later(wait, Happening::Storm);
        if self.at + 2 * HOUR < self.plan.faults_until {
            self.storm = true;
            self.count("storms");
            let span = self.dice.between(10, 90) * MINUTE;
            self.later(span, Happening::StormOver);
        }
    }

    pub(crate) fn disaster(&mut self) {
        if !self.faulty() {
            return;
        }
        let every = self.plan.disaster_every;
        let wait = self.dice.between(MINUTE, 2 * every);
        self.later(wait, Happening::Disaster);
        match self.dice.between(0, 12) {
            0..2 => self.agent_dies(),
            2 => self.machine_reboots(false),
            3 => self.machine_reboots(true),
            4 => self.engine_goes(),
            5 => self.stream_breaks(),
            6 | 7 => self.clock_steps(),
            8 => self.coordinator_goes(),
            9 | 10 => self.swap_taken(),
            _ => self.somebody_interferes(),
        }
    }

    /// `kernel`: also that. Without it (`systemctl soft-reboot`) everything ends, and the boot is the same.
    fn machine_reboots(&mut self, kernel: bool) {
        self.note(|| format!("the machine reboots, with its kernel: {kernel}"));
        self.count(if kernel { "reboots" } else { "soft reboots" });
        self.agent_dies();
        self.ops.clear();
        for cell in 0..self.cells.len() {
            if self.cells[cell].is_up() {
                self.container_ends(cell, self.cells[cell].run_number, 137);
            }
        }
        if kernel {
            self.swap.written = berth_shared::units::Bytes::ZERO;
            self.boot_base = self.at;
            self.boot_number = self.boot_number.wrapping_add(1);
        }
        self.excuse_node(40 * MINUTE);
    }

    fn engine_goes(&mut self) {
        if self.engine_down {
            return;
        }
        self.engine_down = true;
        self.count("engine away");
        self.note(|| "the engine does not answer".to_owned());
        let wait = self.dice.between(SECOND, 5 * MINUTE);
        // What failed meanwhile is tried again ever more rarely.
        self.excuse_node(wait + 25 * MINUTE);
        self.later(wait, Happening::EngineBack);
        self.stream_breaks();
    }

    pub(crate) fn engine_back(&mut self) {
        self.engine_down = false;
        self.note(|| "the engine is back".to_owned());
    }

    fn stream_breaks(&mut self) {
        let Some(life) = self.life.as_mut().filter(|life| life.stream_up) else { return };
        life.stream_up = false;
        let number = life.number;
        let wait = self.dice.between(1, 30 * SECOND);
        self.later(wait, Happening::StreamBack { life: number });
    }

    /// Only the wall clock can: what deadlines count does not jump.
    fn clock_steps(&mut self) {
        let span: At = match self.dice.between(0, 2) {
            0 => self.dice.between(1, 120) * SECOND,
            1 => self.dice.between(1, 60) * MINUTE,
            _ => self.dice.between(1, 5) * HOUR,
        };
        let forward = self.dice.per_mille(500);
        self.wall_base = if forward { self.wall_base + span } else { self.wall_base - span };
        self.note(|| format!("the clock is set {} by {span} ms", if forward { "forward" } else { "back" }));
        self.count("clock steps");
        self.excuse_node(3 * MINUTE);
        let (at, wall) = (self.at, self.now().wall);
        for watch in self.cells.iter_mut().map(|truth| &mut truth.watch) {
            if let Some(until) = watch.held_told {
                // A hold ends when the clock says so.
                watch.held_until = watch.held_until.min(at + until.since(wall).0);
            }
        }
        for cell in 0..self.cells.len() {
            self.plan_jobs(cell);
            self.run_jobs(cell);
        }
    }

    fn coordinator_goes(&mut self) {
        if !self.coordinator_away {
            self.coordinator_away = true;
            self.count("coordinator away");
            let wait = self.dice.between(10, 900) * MINUTE;
            self.later(wait, Happening::CoordinatorBack);
        }
    }

    /// Somebody with a shell, or the kernel for want of memory.
    fn somebody_interferes(&mut self) {
        let up: Vec<usize> = (0..self.cells.len()).filter(|cell| self.cells[*cell].is_up()).collect();
        if up.is_empty() {
            return;
        }
        let index = self.dice.between(0, up.len() as u64 - 1);
        let cell = up[usize::try_from(index).expect("few cells")];
        self.excuse_cell(cell, 20 * MINUTE);
        if !self.cells[cell].runs() && self.dice.per_mille(500) {
            self.set_run(cell, crate::truth::Run::Up);
        } else {
            self.container_ends(cell, self.cells[cell].run_number, 137);
        }
    }
}
