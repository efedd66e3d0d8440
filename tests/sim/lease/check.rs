//! What must be true of the world, whatever anybody believes. The rules are told in `main.rs`.

use berth_coordinator_core::moves::MARGIN;
use berth_node_agent_core::agent::Event;
use berth_node_agent_core::lease::{ASKS_FOR, MARK_EVERY, WALL_SLACK};
use berth_shared::cell::WakeCause;
use berth_shared::door::CellActivity;
use berth_shared::ids::{CellId, Generation};

use crate::coordinator::{node_id, slug};
use crate::node::Run;
use crate::world::{At, Happening, MINUTE, SECOND, World};

/// Two clocks differ by less than this many parts of a million.
const DRIFT_MAX: At = 1_000;

/// So long a stop and everything before it may take here.
const STOP_MAX: At = 12 * MINUTE;

impl World {
    /// When nothing of a node may run any more unless it is heard, by true time; `None`: it may for ever.
    fn lease_end(&self, n: usize) -> Option<At> {
        let node = &self.nodes[n];
        let (contact, length) = (node.contact?, node.length?.0);
        Some(contact + length + length * DRIFT_MAX / 1_000_000 + WALL_SLACK.0)
    }

    /// Where this generation of the cell lives, by the coordinator's journal.
    fn newest(&self, cell: CellId) -> Option<(usize, Generation)> {
        let home = self.coordinator.fleet.user_of_cell(cell)?.home.as_ref()?;
        let n = (0..self.nodes.len()).find(|n| node_id(*n) == home.node)?;
        Some((n, home.generation))
    }

    /// After every happening.
    pub(crate) fn watch(&mut self) {
        let mut found = None;
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let running = node.containers.iter().filter(|(_, container)| container.run == Run::Up);
            for (cell, container) in running {
                if self.lease_end(n).is_some_and(|end| self.at > end + STOP_MAX) {
                    found = Some(("lease", format!("n{n} runs {cell} long after its last contact")));
                }
                let newest = self.newest(*cell);
                let is_newest = newest
                    .is_some_and(|(home, generation)| home == n && container.generation == Some(generation));
                // It was told otherwise, and had the time to stop it.
                let told = node.told_in_session && newest.is_none_or(|(home, _)| home != n);
                let is_stale = told && self.knows_better(n, *cell) && self.at > node.told_at + STOP_MAX;
                if !is_newest && is_stale {
                    found = Some(("told", format!("n{n} runs {cell}, and was told that it lives elsewhere")));
                }
                let elsewhere =
                    (0..self.nodes.len()).any(|other| other != n && self.nodes[other].runs(*cell));
                let said = self.coordinator.by_word.contains_key(cell);
                if elsewhere && !said {
                    found = Some(("two", format!("{cell} runs on n{n} and on another node")));
                }
            }
        }
        if let Some((rule, text)) = found {
            self.broken(rule, text);
        }
    }

    /// Does the node's own journal say that the cell does not live there?
    fn knows_better(&self, n: usize, cell: CellId) -> bool {
        let life = self.nodes[n].life.as_ref();
        let desired = life.and_then(|life| life.memory.desired.as_ref());
        desired
            .is_some_and(|desired| desired.assignments.iter().all(|assignment| assignment.spec.cell != cell))
    }

    /// A user was given away because its node was silent.
    pub(crate) fn check_move(&mut self, cell: CellId, from: usize) {
        if self.nodes[from].runs(cell) {
            self.broken("move", format!("{cell} was given away, and runs on n{from}"));
        }
        if self.lease_end(from).is_none_or(|end| self.at < end) {
            self.broken("move", format!("{cell} was given away while n{from} may wake it"));
        }
        // More than the margin of waiting is a coordinator that was away itself; less is none at all.
        const { assert!(MARGIN.0 > STOP_MAX + WALL_SLACK.0, "the world allows more than the margin covers") };
    }

    /// An agent that has lived for so long on a new boot has asked for long enough what shall run.
    pub(crate) fn waited(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.knows |= self.at - node.began >= ASKS_FOR.0 - ASKS_FOR.0 * DRIFT_MAX / 1_000_000;
    }

    /// An agent begins a start or a thaw. One that is under way when the lease ends is stopped when it is up.
    pub(crate) fn check_begin(&mut self, n: usize, cell: CellId) {
        if self.nodes[n].barred {
            self.broken(
                "told",
                format!("n{n} starts {cell} behind the end of its lease, and was told nothing since"),
            );
        }
        self.waited(n);
        if !self.nodes[n].knows {
            self.broken("boot", format!("n{n} was switched on and starts {cell} before it asked for long"));
        }
    }

    pub(crate) fn check_start(&mut self, n: usize, cell: CellId) {
        let generation = self.nodes[n].containers.get(&cell).and_then(|container| container.generation);
        let disk = self.nodes[n].disks.get(&cell).copied();
        if let Some((home, newest)) = self.newest(cell)
            && home == n
            && generation == Some(newest)
            && disk != Some(newest)
        {
            self.broken("disk", format!("n{n} starts {cell} of {newest} with the disk of {disk:?}"));
        }
    }

    /// The agent says that its lease is over, or begins behind its end.
    pub(crate) fn lease_is_over(&mut self, n: usize) {
        self.count("leases over");
        self.note(|| format!("n{n}: its lease is over"));
        let node = &mut self.nodes[n];
        let was_barred = std::mem::replace(&mut node.barred, true);
        let rebooted = node.contact_boot != node.boot;
        // An agent that was killed knows of contacts only as far as it has written them down.
        let unwritten = if node.contact_life == node.lives { 0 } else { MARK_EVERY.0 };
        let is_uncertain = node.length_life != node.contact_life;
        if was_barred || rebooted || is_uncertain {
            return;
        }
        let (Some(contact), Some(length)) = (node.contact, node.length) else {
            return self.broken("early", format!("n{n} had no lease that could be over"));
        };
        if self.at + unwritten + SECOND < contact + length.0 - length.0 * DRIFT_MAX / 1_000_000 {
            self.broken("early", format!("n{n}: over {} s after the contact", (self.at - contact) / SECOND));
        }
    }

    /// The disk of a cell that is being taken from a node.
    pub(crate) fn disk_goes(&mut self, n: usize, cell: CellId) {
        let Some(of) = self.nodes[n].disks.remove(&cell) else { return };
        let keep = self.nodes[n].life.as_ref().map(|life| life.memory.keeps_disk_of(cell));
        match keep.flatten() {
            Some(generation) => {
                self.count("left behind");
                if generation != of {
                    self.broken(
                        "disk",
                        format!("n{n} keeps the disk of {cell} of {of} as that of {generation}"),
                    );
                }
                self.nodes[n].aside.insert((cell, generation));
            }
            None if self.coordinator.removed.contains(&cell) => self.count("destroyed"),
            None => self.broken("disk", format!("n{n} destroys a disk of {cell}, whose user is there")),
        }
    }

    /// Everything is healed: each user is woken where it lives, and runs there and nowhere else.
    pub(crate) fn judge(&mut self, stage: u8) {
        let users: Vec<(CellId, usize, Generation)> = (0..4)
            .filter_map(|number| {
                let user = self.coordinator.fleet.user(&slug(number))?;
                let home = user.home.as_ref()?;
                Some((user.cell, self.home(number)?, home.generation))
            })
            .collect();
        if stage == 0 {
            for (cell, n, _) in users {
                // A request that stays open: nothing falls asleep while it is looked at.
                let activity = CellActivity { cell, idle: None, open_requests: 1, open_sockets: 0 };
                self.give(n, Event::Activity(vec![activity]));
                self.give(n, Event::DoorWake { cell, cause: WakeCause::Session });
            }
            return self.later(4 * MINUTE, Happening::Judge { stage: 1 });
        }
        for (cell, home, generation) in users {
            for n in 0..self.nodes.len() {
                let runs = self.nodes[n].runs(cell);
                // Whoever acts on users goes on: one that was given away a moment ago is on its way.
                let is_new = self.nodes[n].told_at + STOP_MAX > self.at;
                if n != home && runs && !is_new {
                    self.broken("end", format!("{cell} runs on n{n}, and lives on n{home}"));
                }
            }
            let held = self.nodes[home].life.as_ref().is_some_and(|life| life.agent.lease().is_held());
            let container = self.nodes[home].containers.get(&cell);
            let runs = container.is_some_and(|container| {
                container.run == Run::Up && container.generation == Some(generation)
            });
            if !held || !runs {
                let text =
                    format!("{cell} does not run on n{home} after a wake, lease held: {held}, {container:?}");
                self.broken("end", text);
            }
        }
        self.over = true;
    }
}
