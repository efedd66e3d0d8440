//! Misfortune: what nobody wants and what happens all the same.

use crate::engine::Run;
use crate::plan::{At, DAY, HOUR, MINUTE, SECOND};
use crate::world::{Happening, World};

impl World {
    /// From a second to the longest time away, short ones more often.
    fn a_while(&mut self) -> At {
        let longest = match self.dice.between(0, 9) {
            0..4 => MINUTE,
            4..7 => self.plan.autonomy / 2,
            _ => self.plan.away_max,
        };
        self.dice.between(SECOND, longest)
    }

    pub(crate) fn disaster(&mut self) {
        if !self.faulty() {
            return;
        }
        let every = self.plan.disaster_every;
        let wait = self.dice.between(1, 2 * every);
        self.later(wait, Happening::Disaster);
        self.count("disasters");
        let machine = self.pick(self.machines.len());
        match self.dice.between(0, 31) {
            25 | 26 => self.lose_machine_for_a_while(machine),
            27 | 28 => {
                let span = self.a_while();
                self.bucket.down_until = self.bucket.down_until.max(self.at + span);
                self.note(|| format!("nobody reaches the bucket for {span} ms"));
            }
            29..=31 => self.disk_runs_short(machine),
            0..3 => self.agent_dies(machine),
            3..5 => {
                let wait = self.dice.between(5, 120) * SECOND;
                self.reboot(machine, wait);
            }
            5 => {
                let wait = self.a_while();
                self.reboot(machine, wait);
            }
            6..10 => self.cut(machine),
            10 => {
                for machine in 0..self.machines.len() {
                    if self.dice.per_mille(500) {
                        self.cut(machine);
                    }
                }
            }
            11 | 12 => {
                let span = self.a_while();
                self.count("cuts");
                self.coordinator.cut_until = self.coordinator.cut_until.max(self.at + span);
                self.note(|| format!("nobody reaches the coordinator for {span} ms"));
            }
            13 | 14 => {
                let power = self.dice.per_mille(500);
                self.coordinator_dies(power);
                if power {
                    self.coordinator.clock.reboots(self.at);
                }
            }
            15 | 16 => self.clock_steps(machine),
            17 => {
                if let Some(connection) =
                    self.machines[machine].life.as_ref().and_then(|life| life.connection)
                {
                    self.count("connections broken");
                    self.note(|| format!("machine {machine}: connection {connection} breaks"));
                    self.break_connection(connection);
                }
            }
            18 => {
                let span = self.dice.between(1, 2 * MINUTE);
                self.machines[machine].disk.engine.down_until = self.at + span;
                self.note(|| format!("machine {machine}: the engine does not answer for {span} ms"));
            }
            19 | 20 => self.somebody_interferes(machine),
            21 | 22 => self.make_image(machine),
            23 => {
                let machine = self.with_image(machine);
                self.restore_image(machine);
                let wait = self.a_while();
                self.later(wait, Happening::PowerOn { machine });
            }
            _ => {
                let machine = self.with_image(machine);
                self.clone_machine(machine);
            }
        }
    }

    fn lose_machine_for_a_while(&mut self, machine: usize) {
        if self.machines[machine].node.is_some() && self.dice.per_mille(500) {
            self.lose_machine(machine);
            let wait = self.a_while();
            self.later(wait, Happening::PowerOn { machine });
        }
    }

    /// A machine of whose disk there is an image, if there is one.
    fn with_image(&self, machine: usize) -> usize {
        let count = self.machines.len();
        (0..count)
            .map(|step| (machine + step) % count)
            .find(|m| self.machines[*m].image.is_some())
            .unwrap_or(machine)
    }

    /// Hours and days without the coordinator, and an hour or two with it in between.
    pub(crate) fn long_silence(&mut self) {
        if !self.faulty() {
            return;
        }
        let span = self.dice.between(6, 30) * HOUR;
        self.coordinator.cut_until = self.coordinator.cut_until.max(self.at + span);
        self.note(|| format!("nobody reaches the coordinator for {} h", span / HOUR));
        let wait = span + self.dice.between(20, 150) * MINUTE;
        self.later(wait, Happening::LongSilence);
    }

    fn cut(&mut self, machine: usize) {
        let span = self.a_while();
        let until = self.at + span;
        self.count("cuts");
        self.machines[machine].cut_until = self.machines[machine].cut_until.max(until);
        self.note(|| format!("machine {machine} is cut off for {span} ms"));
    }

    fn reboot(&mut self, machine: usize, wait: At) {
        self.power_off(machine);
        if self.plan.clocks_step && self.dice.per_mille(200) {
            self.clock_steps(machine);
        }
        self.later(wait, Happening::PowerOn { machine });
    }

    /// Only the wall clock can: what deadlines count does not jump.
    fn clock_steps(&mut self, machine: usize) {
        if !self.plan.clocks_step {
            return;
        }
        let longest = if self.dice.per_mille(500) { HOUR } else { 3 * DAY };
        let by = i64::try_from(self.dice.between(0, longest)).expect("small");
        let by = if self.dice.per_mille(500) { by } else { -by };
        self.count("clock steps");
        if self.dice.per_mille(150) {
            self.coordinator.clock.step(by);
            return self.note(|| format!("the coordinator's wall clock is set by {by} ms"));
        }
        if self.dice.per_mille(300) {
            self.set_clock_right(machine);
        } else {
            self.step_clock(machine, by);
        }
    }

    /// Somebody with a shell, or the kernel for want of memory.
    fn somebody_interferes(&mut self, machine: usize) {
        let containers = &self.machines[machine].disk.engine.containers;
        let up = containers.iter().find(|(_, container)| container.run == Run::Up);
        if let Some((cell, run)) = up.map(|(cell, container)| (*cell, container.run_number)) {
            self.container_ends(machine, cell, run, 137);
        }
    }
}
