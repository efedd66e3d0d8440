//! A turn of the agent's driver: events go in, the records of all of them are written as one group, then the effects are
//! carried out in order. It can die at the write and between any two effects.

use std::collections::BTreeSet;

use berth_node_agent_core::agent::{self, Effect};
use berth_node_agent_core::cell::{self, Verb};
use berth_node_agent_core::heads;
use berth_node_agent_core::memory::Record;
use berth_node_agent_core::snapshots;
use berth_shared::ids::CellId;

use crate::snaps::Taking;
use crate::world::World;

/// See the module.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) records: Vec<Record>,
    effects: Vec<Effect>,
    pub(crate) takes: Vec<(u64, Taking)>,
    pub(crate) snapshots: Vec<snapshots::Effect>,
    pub(crate) tells_snapshots: bool,
    moved: BTreeSet<CellId>,
}

impl World {
    /// Gives the agent an event and carries out what follows, unless it dies in between.
    pub(crate) fn give(&mut self, machine: usize, event: agent::Event) {
        self.turn(machine, vec![], event);
    }

    pub(crate) fn turn(&mut self, machine: usize, records: Vec<Record>, event: agent::Event) {
        let mut turn = Turn { records, ..Turn::default() };
        self.step(machine, event, &mut turn);
        self.end_turn(machine, turn);
    }

    pub(crate) fn step(&mut self, machine: usize, event: agent::Event, turn: &mut Turn) {
        let Self { machines, dice, at, .. } = self;
        let now = machines[machine].clock.now(*at);
        let Some(life) = &mut machines[machine].life else { return };
        let effects = life.agent.step(now, event, &mut || dice.next());
        let mut lease_turned = false;
        for effect in effects {
            match &effect {
                Effect::Cell(_, cell::Effect::Journal(intent)) => {
                    turn.records.push(Record::Intent(intent.clone()));
                }
                Effect::Cell(_, cell::Effect::Report(report)) => {
                    turn.records.push(Record::Report(report.clone()));
                }
                Effect::Lease(mark) => turn.records.push(Record::Lease(*mark)),
                Effect::Changed(cell) | Effect::Gone(cell) => drop(turn.moved.insert(*cell)),
                Effect::Cell(cell, cell::Effect::Do { verb: Verb::Restore, .. }) => {
                    self.restore_begins(machine, *cell, turn);
                }
                Effect::Cell(cell, cell::Effect::Do { verb: Verb::Verify, .. }) => {
                    self.proof_begins(machine, *cell);
                }
                Effect::Cell(cell, cell::Effect::Do { verb: Verb::Archive, .. }) => {
                    let life = self.machines[machine].life.as_ref();
                    let cell = life.and_then(|life| life.agent.cell(*cell));
                    turn.records.extend(cell.and_then(heads::archive_begins));
                }
                Effect::Snapshot { seq, cell } => {
                    let asked = snapshots::Event::Asked { cell: *cell, asker: *seq };
                    self.step_snapshots(machine, asked, turn);
                }
                Effect::LeaseHeld(_) => lease_turned = true,
                _ => {}
            }
            turn.effects.push(effect);
        }
        if lease_turned {
            self.snapshots_begin_anew(machine, turn);
        }
    }

    pub(crate) fn end_turn(&mut self, machine: usize, mut turn: Turn) {
        let now = self.machines[machine].clock.boot(self.at);
        let Some(life) = &self.machines[machine].life else { return };
        let number = life.number;
        let moved = std::mem::take(&mut turn.moved);
        let cells = moved.iter().filter_map(|cell| life.agent.cell(*cell));
        turn.records.extend(cells.filter_map(|cell| heads::goes_on_from_disk(&life.memory, cell)));
        self.snapshots_follow(machine, &moved, &mut turn);
        let due = self.machines[machine].life.as_ref().and_then(|life| life.snapshots.next_deadline());
        if due.is_some_and(|due| due <= now) {
            self.step_snapshots(machine, snapshots::Event::Tick, &mut turn);
        }
        if !self.append(machine, std::mem::take(&mut turn.records)) {
            return;
        }
        for effect in turn.effects {
            if self.strikes(self.plan.agent_dies / 4) {
                return self.agent_dies(machine);
            }
            self.carry_out(machine, effect);
            if !self.machines[machine].is_life(number) {
                return;
            }
        }
        self.carry_out_snapshots(machine, turn.takes, turn.snapshots);
        if turn.tells_snapshots {
            self.tell_snapshots(machine);
        }
        self.set_alarm(machine);
    }
}
