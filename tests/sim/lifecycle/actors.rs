//! Those who act on the node from outside: operators, the coordinator, and misfortune.

use std::collections::BTreeMap;

use berth_node_agent_core::agent;
use berth_shared::cell::IdleRest;
use berth_shared::ids::Generation;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use berth_shared::wire::{Command, CommandOutcome, CommandVerb};

use crate::driver::number_of;
use crate::engine::{Run, Truth};
use crate::plan::{At, MINUTE, SECOND, Temper, cell_id, first_assignment, image};
use crate::world::{Happening, World};

/// A command's answer is true of the world within this time.
const NEWS: At = 6 * SECOND;

/// Most cells that one story ever has.
const CELLS_MAX: usize = 7;

/// The commands of one life of the agent: an agent that died answers nothing.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    next: u64,
    sent: BTreeMap<u64, Sent>,
}

#[derive(Debug)]
struct Sent {
    command: Command,
    expected: u32,
    answered: u32,
    stale: bool,
}

impl Commands {
    pub(crate) fn forget(&mut self) {
        for sent in self.sent.values_mut() {
            (sent.expected, sent.answered) = (0, 0);
        }
    }

    pub(crate) fn logs_read(&mut self, seq: u64) {
        if let Some(sent) = self.sent.get_mut(&seq) {
            sent.answered += 1;
        }
    }

    /// A command that was not answered as often as it had to be.
    pub(crate) fn unanswered(&self) -> Option<u64> {
        self.sent.iter().find(|(_, sent)| sent.answered != sent.expected).map(|(seq, _)| *seq)
    }
}

impl World {
    pub(crate) fn operator_acts(&mut self) {
        if !self.faulty() {
            return;
        }
        let wait = self.dice.between(1, 2 * self.plan.operator_every);
        self.later(wait, Happening::Operator);
        let cell = self.any_cell();
        let verb = match self.dice.between(0, 9) {
            0..3 => CommandVerb::Wake,
            3..5 => CommandVerb::Sleep { freeze: true },
            5..7 => CommandVerb::Sleep { freeze: false },
            _ => CommandVerb::Restart,
        };
        self.order(cell, verb);
    }

    fn any_cell(&mut self) -> usize {
        let count = self.truths.len() as u64;
        usize::try_from(self.dice.between(0, count - 1)).expect("few cells")
    }

    /// Sends a command, sometimes for an assignment that is not the newest, sometimes twice.
    pub(crate) fn order(&mut self, cell: usize, verb: CommandVerb) {
        self.commands.next += 1;
        let seq = self.commands.next;
        let mut number = self.truths[cell].generation;
        if self.strikes(100) {
            number = if self.dice.per_mille(800) { number - 1 } else { number + 1 };
        }
        let generation = Generation { epoch: 1, number };
        let command = Command { seq, cell: cell_id(cell), generation, ttl: Millis(MINUTE), verb };
        self.commands.sent.insert(seq, Sent { command, expected: 0, answered: 0, stale: false });
        self.later(3, Happening::CommandArrives { seq });
        if self.strikes(200) {
            let wait = self.dice.between(3, 3 * MINUTE);
            self.later(wait, Happening::CommandArrives { seq });
        }
    }

    pub(crate) fn command_arrives(&mut self, seq: u64) {
        if self.life.is_none() {
            return;
        }
        let Some(sent) = self.commands.sent.get_mut(&seq) else { return };
        if sent.expected == 0 {
            let held = self.truths[number_of(sent.command.cell)].generation;
            sent.stale = sent.command.generation.number != held;
            sent.expected = 1;
        } else if sent.answered == sent.expected {
            sent.expected += 1;
        }
        let command = sent.command.clone();
        self.count("commands");
        self.give(agent::Event::Command(command));
    }

    pub(crate) fn command_done(&mut self, seq: u64, outcome: &Result<CommandOutcome, Problem>) {
        let at = self.at;
        self.note(|| match outcome {
            Ok(_) => format!("command {seq} is answered: done"),
            Err(problem) => format!("command {seq} is answered: {problem}"),
        });
        let Some(sent) = self.commands.sent.get_mut(&seq) else { return };
        sent.answered += 1;
        let first = sent.answered == 1;
        let (command, stale, too_often) = (sent.command.clone(), sent.stale, sent.answered > sent.expected);
        if too_often {
            self.broken("f", &format!("command {seq} is answered again"));
        }
        if stale
            && first
            && !matches!(outcome, Err(p) if matches!(p.code, Code::StaleGeneration | Code::UnknownUser))
        {
            self.broken("f", &format!("command {seq} of a stale assignment was carried out"));
        }
        if outcome.is_err() || !first {
            return;
        }
        let deaf = self.life.as_ref().is_none_or(|life| !life.stream_up);
        let truth = &mut self.truths[number_of(command.cell)];
        let fresh = truth.container.as_ref().is_some_and(|container| at < container.changed_at + NEWS);
        let so = match command.verb {
            CommandVerb::Wake | CommandVerb::Restart => truth.runs(),
            CommandVerb::Sleep { freeze: true } => !truth.runs(),
            CommandVerb::Sleep { freeze: false } => !truth.is_up(),
            CommandVerb::Logs { .. }
            | CommandVerb::Purge
            | CommandVerb::Snapshot
            | CommandVerb::Archive
            | CommandVerb::Restore { .. }
            | CommandVerb::RestorePaths { .. } => true,
        };
        truth.ordered_rest = matches!(command.verb, CommandVerb::Sleep { .. });
        if !so && !fresh && !deaf {
            self.broken("f", &format!("command {seq}, {:?}, is said to be done and is not", command.verb));
        }
    }

    pub(crate) fn link_up(&mut self) {
        self.desire();
    }

    pub(crate) fn coordinator_acts(&mut self) {
        if !self.faulty() {
            return;
        }
        let wait = self.dice.between(1, 2 * self.plan.coordinator_every);
        self.later(wait, Happening::Coordinator);
        self.revision += 1;
        match self.dice.between(0, 9) {
            0 => self.retire_one(),
            1 | 2 => self.add_one(),
            3..7 => self.change_one(),
            _ => {} // Only says it again.
        }
        self.link_up();
    }

    fn retire_one(&mut self) {
        if self.wanted.len() > 1 {
            let count = self.wanted.len() as u64;
            let index = usize::try_from(self.dice.between(0, count - 1)).expect("few cells");
            let gone = self.wanted.remove(index);
            self.note(|| format!("{} is taken from the node", gone.spec.cell));
        }
    }

    fn add_one(&mut self) {
        if self.truths.len() >= CELLS_MAX {
            return;
        }
        let cell = self.truths.len();
        self.truths.push(Truth::new(Temper { foreign: false, ..Temper::new(&mut self.dice) }));
        self.door.add_gate();
        let assignment = first_assignment(cell, &mut self.dice);
        self.workloads.push(assignment.spec.workload);
        self.wanted.push(assignment);
        self.note(|| format!("cell {cell} is new"));
        self.later(SECOND, Happening::Request { cell, judged: false });
    }

    fn change_one(&mut self) {
        let count = self.wanted.len() as u64;
        let index = usize::try_from(self.dice.between(0, count - 1)).expect("few cells");
        let kind = self.dice.between(0, 2);
        let revision = self.revision;
        let assignment = &mut self.wanted[index];
        match kind {
            0 => assignment.spec.image = image(revision),
            1 => {
                assignment.spec.rest.rest = match assignment.spec.rest.rest {
                    IdleRest::Freeze => IdleRest::Stop,
                    IdleRest::Stop => IdleRest::AlwaysOn,
                    IdleRest::AlwaysOn => IdleRest::Freeze,
                }
            }
            _ => {}
        }
        assignment.generation.number += 1;
        let text = format!("{} is changed: {:?}", assignment.spec.cell, assignment.generation);
        self.note(|| text);
    }

    pub(crate) fn disaster(&mut self) {
        if !self.faulty() {
            return;
        }
        let wait = self.dice.between(1, 2 * self.plan.disaster_every);
        self.later(wait, Happening::Disaster);
        self.count("disasters");
        match self.dice.between(0, 11) {
            0 | 1 => self.agent_dies(),
            2 => self.machine_reboots(),
            3 => self.door_dies(),
            4 => self.door_disconnects(),
            5 => self.engine_goes(),
            6 => self.stream_breaks(),
            7 | 8 => self.clock_jumps(),
            9 => self.somebody_interferes(),
            10 => self.give(agent::Event::Tick),
            _ => self.link_up(),
        }
    }

    fn machine_reboots(&mut self) {
        self.note(|| "the machine reboots".to_owned());
        self.agent_dies();
        self.door_dies();
        self.cancel_operations();
        for cell in 0..self.truths.len() {
            if self.truths[cell].is_up() {
                self.container_ends(cell, self.truths[cell].run_number(), 137);
            }
        }
        self.boot_base = self.at;
        self.boot_number += 1;
    }

    fn engine_goes(&mut self) {
        if !self.engine_down {
            self.engine_down = true;
            self.note(|| "the engine does not answer".to_owned());
            let wait = self.dice.between(1, 2 * MINUTE);
            self.later(wait, Happening::EngineBack);
            self.stream_breaks();
        }
    }

    fn stream_breaks(&mut self) {
        let Some(life) = self.life.as_mut().filter(|life| life.stream_up) else { return };
        life.stream_up = false;
        let number = life.number;
        let wait = self.dice.between(1, 30 * SECOND);
        self.later(wait, Happening::StreamBack { life: number });
    }

    /// Only the wall clock can: what deadlines count does not jump.
    fn clock_jumps(&mut self) {
        let hours = self.dice.between(0, 48) * 60 * MINUTE;
        let base = self.wall_base;
        self.wall_base = if self.dice.per_mille(500) { base + hours } else { base.saturating_sub(hours) };
    }

    /// Somebody with a shell, or the kernel for want of memory.
    fn somebody_interferes(&mut self) {
        let cell = self.any_cell();
        if !self.truths[cell].is_up() {
            return;
        }
        let run = self.truths[cell].run_number();
        if self.truths[cell].is_paused() && self.dice.per_mille(500) {
            self.set_run(cell, Run::Up);
        } else {
            self.container_ends(cell, run, 137);
        }
    }
}
