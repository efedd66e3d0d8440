//! Those who act from outside: users, operators, the coordinator.

use std::collections::BTreeMap;

use berth_node_agent_core::agent;
use berth_shared::cell::IdleRest;
use berth_shared::problem::Problem;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::{Command, CommandOutcome, CommandVerb};

use crate::door::{CALL, PAGE};
use crate::driver::number_of;
use crate::plan::{At, HOUR, MINUTE, SECOND, cell_id, image};
use crate::world::{Happening, World};

/// Most tabs of one user.
const TABS_MAX: usize = 3;

/// The commands of one life of the agent: an agent that died answers nothing.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    next: u64,
    sent: BTreeMap<u64, Sent>,
}

#[derive(Debug)]
struct Sent {
    command: Command,
    at: At,
}

impl Commands {
    pub(crate) fn forget(&mut self) {
        self.sent.clear();
    }

    /// One that was never answered.
    pub(crate) fn oldest(&self) -> Option<(u64, At)> {
        self.sent.iter().next().map(|(seq, sent)| (*seq, sent.at))
    }
}

impl World {
    /// A user comes: to a page that is open still, or anew.
    pub(crate) fn visit(&mut self, cell: usize) {
        let every = self.cells[cell].habits.visit_every;
        let wait = self.dice.between(every / 2, every * 3 / 2);
        self.later(wait, Happening::Visit { cell });
        self.comes(cell);
    }

    fn comes(&mut self, cell: usize) {
        let says = self.dice.between(1, 5);
        let open = self.cells[cell].tabs.first().map(|tab| tab.id);
        if let Some(id) = open.filter(|_| self.dice.per_mille(600)) {
            for tab in self.cells[cell].tabs.iter_mut().filter(|tab| tab.id == id) {
                (tab.visible, tab.used) = (true, true);
            }
            return self.says(cell, says);
        }
        self.request_comes(cell, &PAGE);
        if self.cells[cell].tabs.len() < TABS_MAX {
            self.open_tab(cell);
        }
        let wait = self.dice.between(SECOND, 30 * SECOND);
        self.later(wait, Happening::Says { cell, left: says });
    }

    pub(crate) fn says(&mut self, cell: usize, left: u64) {
        if left == 0 {
            return self.leaves(cell);
        }
        let connected = self.cells[cell].tabs.iter().find(|tab| tab.used && tab.socket.is_some());
        let id = connected.map(|tab| tab.id);
        match id {
            Some(id) if self.dice.per_mille(800) => self.types(cell, id),
            // Whoever sees that nothing happens loads the page anew.
            None if self.dice.per_mille(700) => {
                self.request_comes(cell, &PAGE);
            }
            _ => {
                self.request_comes(cell, &CALL);
            }
        }
        let hides = self.cells[cell].habits.hides_work;
        if self.dice.per_mille(hides) && self.cells[cell].works(self.at) {
            let until = self.at + self.dice.between(5, 40) * MINUTE;
            self.cells[cell].work.hidden = (self.at, until);
            self.used(cell, until);
        }
        if self.dice.per_mille(40) && self.cells[cell].works(self.at) {
            self.job_added(cell);
        }
        let wait = self.dice.between(10 * SECOND, 4 * MINUTE);
        self.later(wait, Happening::Says { cell, left: left - 1 });
    }

    pub(crate) fn leaves(&mut self, cell: usize) {
        let leaves = self.cells[cell].habits.leaves_tab;
        let stays = self.dice.per_mille(leaves);
        let (visible, span) = (self.dice.per_mille(600), self.dice.between(1, 48) * HOUR);
        let truth = &mut self.cells[cell];
        truth.gate.unreported = true;
        if stays {
            for tab in &mut truth.tabs {
                (tab.used, tab.visible) = (false, visible);
            }
            let ids: Vec<u64> = truth.tabs.iter().map(|tab| tab.id).collect();
            for tab in ids {
                self.later(span, Happening::TabClosed { cell, tab });
            }
        } else {
            truth.tabs.clear();
        }
        self.report_soon();
    }

    /// It has just fallen asleep.
    pub(crate) fn may_come_back(&mut self, cell: usize) {
        let often = self.cells[cell].habits.comes_back;
        if self.dice.per_mille(often) {
            let wait = self.dice.between(20 * SECOND, 100 * SECOND);
            self.later(wait, Happening::Says { cell, left: 1 });
        }
    }

    fn any_cell(&mut self) -> usize {
        let count = self.cells.len() as u64;
        usize::try_from(self.dice.between(0, count - 1)).expect("few cells")
    }

    pub(crate) fn operator_acts(&mut self) {
        let wait = self.dice.between(MINUTE, 40 * MINUTE);
        self.later(wait, Happening::Operator);
        if self.coordinator_away || !self.faulty() {
            return;
        }
        let cell = self.any_cell();
        let verb = match self.dice.between(0, 9) {
            0 | 1 => CommandVerb::Wake,
            2 | 3 => CommandVerb::Sleep { freeze: true },
            4 => CommandVerb::Sleep { freeze: false },
            5 => CommandVerb::Restart,
            _ => {
                let until = UnixMs(self.now().wall.0 + self.dice.between(1, 6) * HOUR);
                self.terms[cell].awake_until = Some(until);
                return self.tell_terms();
            }
        };
        self.order(cell, verb);
    }

    pub(crate) fn order(&mut self, cell: usize, verb: CommandVerb) {
        self.commands.next += 1;
        let seq = self.commands.next;
        let generation = self.wanted[cell].generation;
        let command = Command { seq, cell: cell_id(cell), generation, ttl: Millis(MINUTE), verb };
        self.commands.sent.insert(seq, Sent { command, at: self.at });
        self.later(3, Happening::CommandArrives { seq });
    }

    pub(crate) fn command_arrives(&mut self, seq: u64) {
        let Some(sent) = self.commands.sent.get(&seq) else { return };
        let (command, cell) = (sent.command.clone(), number_of(sent.command.cell));
        if self.life.is_none() {
            self.commands.sent.remove(&seq);
            return;
        }
        match command.verb {
            CommandVerb::Sleep { .. } | CommandVerb::Restart => {
                self.cells[cell].watch.ordered_at = Some(self.at)
            }
            _ => self.used(cell, self.at),
        }
        if command.verb == CommandVerb::Restart {
            // A job that becomes due meanwhile is put off like any that is missed.
            self.cells[cell].watch.restart = true;
            self.excuse_cell(cell, 6 * MINUTE);
        }
        self.cells[cell].watch.reason_at = self.at;
        self.count("commands");
        self.give(agent::Event::Command(command));
    }

    pub(crate) fn command_done(&mut self, seq: u64, outcome: &Result<CommandOutcome, Problem>) {
        self.note(|| {
            format!("command {seq} is answered: {:?}", outcome.as_ref().err().map(ToString::to_string))
        });
        let Some(sent) = self.commands.sent.remove(&seq) else {
            return self.broken("f", &format!("command {seq} is answered again"));
        };
        let cell = number_of(sent.command.cell);
        self.cells[cell].watch.restart = false;
        if sent.command.verb == (CommandVerb::Sleep { freeze: false })
            && outcome.is_ok()
            && self.cells[cell].runs()
        {
            let late = self.excused(cell, self.at);
            if !late {
                self.broken("f", &format!("command {seq}: cell {cell} is said to be stopped and runs"));
            }
        }
    }

    pub(crate) fn coordinator_acts(&mut self) {
        let wait = self.dice.between(HOUR, 10 * HOUR);
        self.later(wait, Happening::Coordinator);
        if !self.faulty() {
            return;
        }
        self.revision += 1;
        let revision = self.revision;
        let everybody = self.dice.per_mille(60);
        let one = self.any_cell();
        for cell in 0..self.cells.len() {
            if everybody || cell == one {
                let assignment = &mut self.wanted[cell];
                assignment.spec.image = image(revision);
                assignment.generation.number += 1;
            }
        }
        if everybody {
            self.count("releases");
        } else if self.dice.per_mille(200) {
            let rest = &mut self.wanted[one].spec.rest.rest;
            *rest = match *rest {
                IdleRest::Freeze => IdleRest::Stop,
                IdleRest::Stop => IdleRest::AlwaysOn,
                IdleRest::AlwaysOn => IdleRest::Freeze,
            };
        }
        self.link_up();
    }
}
