//! One life of an agent: its deadlines, how its effects are carried out, what it is told of.

use std::collections::BTreeMap;

use berth_node_agent_core::agent::{self, Effect};
use berth_node_agent_core::cell::{self, Verb};
use berth_node_agent_core::lease;
use berth_node_agent_core::memory::{Record, Step};
use berth_shared::ids::CellId;
use berth_shared::link::node;
use berth_shared::problem::Problem;
use berth_shared::wire::{CommandOutcome, DesiredState, NodeFrame};

use crate::engine::short;
use crate::plan::At;
use crate::turn::Turn;
use crate::world::{Happening, World};

/// Answers that wait for a session, as in the agent.
const OUTGOING_MAX: usize = 1024;

impl World {
    pub(crate) fn alarm(&mut self, machine: usize) {
        if self.machines[machine].alarm != self.at {
            return;
        }
        self.machines[machine].alarm = At::MAX;
        let now = self.machines[machine].clock.boot(self.at);
        let Some(life) = &self.machines[machine].life else { return };
        let number = life.number;
        let heard = life.heard;
        let snapshots_due = life.snapshots.next_deadline().is_some_and(|due| due <= now);
        if snapshots_due || life.agent.next_deadline().is_some_and(|due| due <= now) {
            let lease_due = life.agent.lease().next_deadline().is_some_and(|due| due <= now);
            if let Some(heard) = heard.filter(|_| lease_due) {
                self.give(machine, agent::Event::Lease(lease::Event::Heard(heard)));
            }
            self.give(machine, agent::Event::Tick);
        }
        if self.machines[machine].is_life(number) {
            let link_due =
                self.machines[machine].life.as_ref().is_some_and(|l| l.link.next_deadline() <= now);
            if link_due {
                self.link_step(machine, node::Event::Tick);
            }
            self.set_alarm(machine);
        }
    }

    pub(crate) fn set_alarm(&mut self, machine: usize) {
        let present = &mut self.machines[machine];
        let Some(life) = &present.life else { return };
        let due = life
            .agent
            .next_deadline()
            .into_iter()
            .chain(life.snapshots.next_deadline())
            .fold(life.link.next_deadline(), Ord::min);
        let at = present.clock.at(due, self.at);
        if at < present.alarm {
            present.alarm = at;
            let wait = at - self.at;
            self.later(wait, Happening::Alarm { machine });
        }
    }

    pub(crate) fn carry_out(&mut self, machine: usize, effect: Effect) {
        match effect {
            Effect::Cell(cell, effect) => self.carry_out_for(machine, cell, effect),
            Effect::CommandDone { seq, outcome } => self.command_done(machine, seq, outcome),
            Effect::ReadLogs { seq, .. } => {
                self.command_done(machine, seq, Ok(CommandOutcome::Logs(vec![])));
            }
            Effect::Purge { seq, .. } => self.command_done(machine, seq, Ok(CommandOutcome::Purged)),
            // Seen to before, with what it leads to.
            Effect::Snapshot { .. } => {}
            Effect::Changed(cell) => {
                let Some(life) = &mut self.machines[machine].life else { return };
                life.changed.insert(cell);
                if life.link.is_live() && !std::mem::replace(&mut life.news, true) {
                    let life = life.number;
                    self.later(100, Happening::News { machine, life });
                }
            }
            Effect::Gone(cell) => {
                self.note(|| format!("machine {machine}: {} is gone", short(cell)));
                self.door_forgets(machine, cell);
            }
            // Written before.
            Effect::Lease(_) => {}
            Effect::LeaseHeld(held) => {
                self.note(|| format!("machine {machine}: the lease is held: {held}"));
                self.count(if held { "leases begun" } else { "leases ended" });
            }
        }
    }

    fn command_done(&mut self, machine: usize, seq: u64, outcome: Result<CommandOutcome, Problem>) {
        if let Some(life) = &mut self.machines[machine].life {
            life.asked.remove(&seq);
        }
        self.node_says(machine, NodeFrame::CommandDone { seq, outcome });
    }

    pub(crate) fn carry_out_for(&mut self, machine: usize, cell: CellId, effect: cell::Effect) {
        match effect {
            cell::Effect::Do { op, verb: Verb::Fence } => self.door_fences(machine, cell, op),
            cell::Effect::Do { op, verb } => self.operation_begins(machine, cell, op, verb),
            cell::Effect::Route(_) => {
                let life = self.machines[machine].life.as_ref();
                if let Some(route) = life.and_then(|life| life.agent.cell(cell)).map(cell::Cell::table_row) {
                    self.door_learns(machine, route);
                }
            }
            cell::Effect::Withdraw => self.door_forgets(machine, cell),
            cell::Effect::Refuse { .. } => self.door_refuses(machine, cell),
            cell::Effect::Note(note) => {
                self.note(|| format!("machine {machine}: {} {note:?}", short(cell)));
            }
            cell::Effect::Progress(_) | cell::Effect::Journal(_) | cell::Effect::Report(_) => {}
            cell::Effect::Answer { .. } | cell::Effect::Changed => {
                self.broken("effects", "an effect that the agent keeps to itself came out");
            }
        }
    }

    pub(crate) fn node_says(&mut self, machine: usize, frame: NodeFrame) {
        let Some(life) = &mut self.machines[machine].life else { return };
        match life.connection.filter(|_| life.link.is_live()) {
            Some(connection) => self.send_up(connection, frame),
            None if life.outgoing.len() < OUTGOING_MAX => life.outgoing.push_back(frame),
            None => {}
        }
    }

    /// New desired state: written with a slot for each new cell before anything follows from it.
    pub(crate) fn desired(&mut self, machine: usize, desired: DesiredState) {
        self.note(|| format!("machine {machine} is told revision {}", desired.revision));
        let Some(life) = &self.machines[machine].life else { return };
        let number = life.number;
        let is_new = life.memory.desired.as_ref() != Some(&desired);
        if !is_new {
            self.count("plans heard twice");
            self.machines[machine].disk.told.lapsed = false;
        }
        let Some(life) = &self.machines[machine].life else { return };
        if is_new {
            let mut scratch = life.memory.clone();
            let mut records = vec![];
            for assignment in &desired.assignments {
                let cell = assignment.spec.cell;
                if scratch.cells.get(&cell).is_none_or(|remembered| remembered.slot.is_none()) {
                    let record = Record::Slot(cell, scratch.free_slot());
                    scratch.apply(record.clone());
                    records.push(record);
                }
            }
            records.push(Record::Desired(desired.clone()));
            let remembered: BTreeMap<_, _> = scratch.cells;
            self.turn(machine, records, agent::Event::Desired { desired, remembered });
        }
        if self.machines[machine].is_life(number) {
            self.repositories_settled(machine);
        }
        if self.machines[machine].is_life(number) {
            self.give(machine, agent::Event::Lease(lease::Event::Told));
        }
        if self.machines[machine].is_life(number) {
            self.is_told(machine);
        }
        if let Some(life) = self.machines[machine].life_mut(number)
            && !std::mem::replace(&mut life.swept, true)
        {
            self.sweep(machine);
        }
    }

    /// Behind a desired state: what is known of repositories by now is all that there is to know.
    fn repositories_settled(&mut self, machine: usize) {
        let Some(life) = &mut self.machines[machine].life else { return };
        let is_online = life.link.is_live();
        let mut turn = Turn::default();
        if !life.heads.desired(&life.agent, is_online) {
            self.has_bucket(machine, false, &mut turn);
        }
        self.know_repositories(machine, &mut turn);
        self.end_turn(machine, turn);
    }

    pub(crate) fn has_bucket(&mut self, machine: usize, has: bool, turn: &mut Turn) {
        let Some(life) = &self.machines[machine].life else { return };
        if life.memory.repositories.has_bucket != has {
            turn.records.push(Record::Step(Step::Bucket(has)));
        }
        self.step(machine, agent::Event::Bucket(has), turn);
    }

    /// Containers of nobody: left by a create that came after all when its cell was gone.
    pub(crate) fn sweep(&mut self, machine: usize) {
        let Some(life) = self.machines[machine].life.as_ref().filter(|life| life.swept) else { return };
        let orphans: Vec<CellId> = self.machines[machine]
            .disk
            .engine
            .containers
            .keys()
            .filter(|cell| life.agent.cell(**cell).is_none() && !life.memory.cells.contains_key(cell))
            .copied()
            .collect();
        for cell in orphans {
            self.count("orphans");
            self.note(|| format!("machine {machine}: {} is nobody's and is removed", short(cell)));
            let run = self.machines[machine].disk.engine.containers.get(&cell).map(|c| c.run_number);
            self.container_ends(machine, cell, run.unwrap_or_default(), 137);
            self.machines[machine].disk.engine.containers.remove(&cell);
        }
    }
}
