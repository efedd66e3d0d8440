//! What must be true of the world, whatever anybody believes. The rules are named in `main.rs`.

use berth_coordinator_core::event::MoveFact;
use berth_coordinator_core::{Event, Fact};
use berth_node_agent_core::cell::Verb;
use berth_node_agent_core::lease::{ASKS_FOR, WALL_SLACK};
use berth_shared::ids::{CellId, Generation, NodeId};
use berth_shared::wire::DesiredState;

use crate::engine::{Run, STOP_GRACE, short};
use crate::machine::Machine;
use crate::plan::{At, MINUTE};
use crate::world::{Happening, World};

/// How often everything is looked over.
const AUDIT_EVERY: At = MINUTE;

/// How long after the end of its lease a node may need to have stopped its cells: a stop may take [`STOP_GRACE`], and
/// the engine or the agent may be away for a while.
pub(crate) const STOPPED_WITHIN: At = STOP_GRACE + 9 * MINUTE;

/// How often a user calls where the home was a moment ago.
const LATE_CALLS: u32 = 3;

impl World {
    /// The machine on which a cell lives, by the newest fact.
    pub(crate) fn home_machine(&self, cell: CellId) -> Option<usize> {
        let (node, _) = self.truth.cells.get(&cell)?.home?;
        self.machine_of(node)
    }

    /// The machine that a node is, if its key lets it in.
    pub(crate) fn machine_of(&self, node: NodeId) -> Option<usize> {
        let member = self.truth.nodes.get(&node)?;
        let is_it = |machine: &Machine| machine.node == Some(node) && member.knows(machine.public());
        self.machines.iter().position(is_it)
    }

    fn newest(&self, cell: CellId) -> Option<Generation> {
        self.truth.cells.get(&cell)?.home.map(|(_, generation)| generation)
    }

    /// A desired state reaches a machine's journal.
    pub(crate) fn hears(&mut self, machine: usize, desired: &DesiredState) {
        let told = &self.machines[machine].disk.told;
        let stays = |cell: &CellId| desired.assignments.iter().any(|a| a.spec.cell == *cell);
        let given_up: Vec<CellId> = told.here.keys().filter(|cell| !stays(cell)).copied().collect();
        for cell in given_up {
            // Its user does not know yet.
            for _ in 0..LATE_CALLS {
                let wait = self.dice.between(10, MINUTE);
                self.later(wait, Happening::LateCall { machine, cell });
            }
        }
        let told = &mut self.machines[machine].disk.told;
        let backwards = desired.revision < told.revision;
        (told.revision, told.lapsed) = (desired.revision, false);
        told.here = desired.assignments.iter().map(|a| (a.spec.cell, a.generation)).collect();
        let mut stale = None;
        for (cell, generation) in &told.here {
            let newest = told.newest.entry(*cell).or_insert(*generation);
            if generation < newest {
                stale = Some(*cell);
            }
            *newest = (*newest).max(*generation);
        }
        if backwards {
            self.broken("told", &format!("machine {machine} is told an older state after a newer one"));
        }
        if let Some(cell) = stale {
            self.broken("told", &format!("machine {machine} is told an older generation of {}", short(cell)));
        }
    }

    /// How long ago a machine heard the coordinator.
    pub(crate) fn silence(&self, machine: usize) -> At {
        self.at - self.machines[machine].disk.told.heard_at
    }

    /// A frame of a live session reaches a machine.
    pub(crate) fn truly_hears(&mut self, machine: usize) {
        self.waited(machine);
        let (at, autonomy) = (self.at, self.plan.autonomy);
        let machine = &mut self.machines[machine];
        let ahead = machine.clock.offset();
        machine.disk.told.hears_at(at, ahead, autonomy, machine.knows);
    }

    /// An agent that has lived for so long on a new boot has asked for long enough what shall run.
    pub(crate) fn waited(&mut self, machine: usize) {
        let machine = &mut self.machines[machine];
        let began = machine.life.as_ref().map(|life| life.began);
        machine.knows |= began.is_some_and(|began| self.at - began >= ASKS_FOR.0);
    }

    /// An agent has taken in what shall run.
    pub(crate) fn is_told(&mut self, machine: usize) {
        self.waited(machine);
        let machine = &mut self.machines[machine];
        if !std::mem::replace(&mut machine.knows, true) {
            // It has started nothing, so there is nothing to be undone.
            machine.disk.told.excused = false;
            self.count("told after a reboot");
        }
    }

    pub(crate) fn step_clock(&mut self, machine: usize, by: i64) {
        self.machines[machine].clock.step(by);
        self.clock_was_set(machine);
    }

    pub(crate) fn set_clock_right(&mut self, machine: usize) {
        self.machines[machine].clock.set_right();
        self.clock_was_set(machine);
    }

    fn clock_was_set(&mut self, machine: usize) {
        let ahead = self.machines[machine].clock.offset();
        self.note(|| format!("machine {machine}: the wall clock is set, {ahead} ms ahead of the truth"));
        let told = &mut self.machines[machine].disk.told;
        told.ahead_most = told.ahead_most.max(ahead);
    }

    /// How long this machine may work alone, as far as it can know: over a reboot it has only its wall clock to tell how
    /// long it was off, and one that was set back meanwhile hides as much.
    pub(crate) fn alone_max(&self, machine: usize) -> At {
        let present = &self.machines[machine];
        let hidden = present.disk.told.ahead_most - present.clock.offset();
        let hidden =
            if present.disk.told.booted { u64::try_from(hidden).unwrap_or(0) + WALL_SLACK.0 } else { 0 };
        self.plan.autonomy + hidden
    }

    /// An agent begins an operation.
    pub(crate) fn check_begin(&mut self, machine: usize, cell: CellId, verb: Verb) {
        if !matches!(verb, Verb::Start | Verb::Unpause) {
            return;
        }
        self.waited(machine);
        if !self.machines[machine].knows && !self.machines[machine].disk.told.here.is_empty() {
            let text = format!("machine {machine} was switched on and lets {} run unasked", short(cell));
            return self.broken("boot", &text);
        }
        let present = &self.machines[machine];
        let Some(believed) = present.life.as_ref().and_then(|life| life.agent.cell(cell)) else { return };
        let (generation, told) = (believed.generation(), &present.disk.told);
        if told.newest.get(&cell).is_some_and(|newest| generation < *newest) {
            let text = format!("machine {machine} lets {} run under {generation}, an old one", short(cell));
            return self.broken("generation", &text);
        }
        if !told.here.contains_key(&cell) {
            let text = format!("machine {machine} lets {} run, which it was told to give up", short(cell));
            return self.broken("generation", &text);
        }
        if told.lapsed && !told.here.is_empty() && self.alone_max(machine) == self.plan.autonomy {
            let text = format!("machine {machine} lets {} run before it is told what shall", short(cell));
            return self.broken("lease", &text);
        }
        if self.silence(machine) > self.alone_max(machine) {
            let text = format!("machine {machine} lets {} run after the end of its lease", short(cell));
            self.broken("lease", &text);
        }
    }

    /// A container comes up, is paused or ends.
    pub(crate) fn check_run(&mut self, machine: usize, cell: CellId, run: Run) {
        if run == Run::Up {
            self.check_copies(machine, cell);
        }
    }

    /// The same cell is not up in two places, unless nobody could have kept one of them from it: a disk that is an old
    /// copy, a clock that hid how long the machine was off, an operator who said that it was off.
    fn check_copies(&mut self, machine: usize, cell: CellId) {
        for other in 0..self.machines.len() {
            if other == machine || !self.machines[other].disk.engine.is_up(cell) {
                continue;
            }
            // A clone and its original are one node for the coordinator, until an operator tells them apart.
            let same_node = self.machines[machine].node == self.machines[other].node;
            if same_node || self.is_excused(machine) || self.is_excused(other) {
                self.count("excused copies");
                continue;
            }
            let text = format!("{} is up on machine {other} and comes up on machine {machine}", short(cell));
            self.broken("one place", &text);
        }
    }

    fn is_excused(&self, machine: usize) -> bool {
        let told = &self.machines[machine].disk.told;
        let is_known = told.excused || self.at < told.excused_until;
        is_known || self.alone_max(machine) > self.plan.autonomy + WALL_SLACK.0
    }

    /// Something new is true.
    pub(crate) fn check_fact(&mut self, event: &Event) {
        match &event.fact {
            Fact::Assigned { user, node, .. } => {
                let cell = self.truth.cell_of(*user);
                let known = cell.and_then(|cell| Some((cell, self.truth.cells.get(&cell)?)));
                let before = known.and_then(|(cell, known)| Some((cell, known.home?.0)));
                if let Some((cell, before)) = before.filter(|(_, before)| before != node) {
                    self.check_move(cell, before);
                }
            }
            Fact::Move(MoveFact::NodeDeclaredOff { node }) => self.declared_off(*node),
            _ => {}
        }
    }

    /// A user is given to another node: the old one is known to be off, or has not heard for as long as it may work alone.
    fn check_move(&mut self, cell: CellId, before: NodeId) {
        self.count("moves");
        if self.truth.nodes.get(&before).is_some_and(|member| member.off) {
            return;
        }
        for machine in 0..self.machines.len() {
            let is_it = self.machines[machine].node == Some(before);
            if !is_it || self.is_excused(machine) {
                continue;
            }
            if self.silence(machine) < self.plan.autonomy {
                let text = format!("{} is moved and machine {machine} still holds its lease", short(cell));
                self.broken("moved", &text);
            } else if self.machines[machine].disk.engine.is_up(cell) {
                let text = format!("{} is moved and still up on machine {machine}", short(cell));
                self.broken("moved", &text);
            }
        }
    }

    /// An operator says that a machine is off. An honest one keeps it off until its lease is over.
    pub(crate) fn says_off(&mut self, machine: usize) {
        if self.machines[machine].off && !self.strikes(100) {
            self.machines[machine].stays_off_until = self.at + self.plan.autonomy + STOPPED_WITHIN;
        }
    }

    /// It is believed that a node is off: what is not, is nobody's fault but the operator's.
    pub(crate) fn declared_off(&mut self, node: NodeId) {
        self.count("declared off");
        let at = self.at;
        for machine in self.machines.iter_mut().filter(|machine| machine.node == Some(node)) {
            if machine.stays_off_until <= at {
                machine.disk.told.excused = true;
            }
        }
    }

    /// A request goes in: only where the cell lives by the newest assignment, or where nobody can know better.
    pub(crate) fn check_routed(&mut self, machine: usize, cell: CellId) {
        self.count("routed");
        let generation = self.machines[machine].disk.engine.containers.get(&cell).map(|c| c.generation);
        let newest = self.newest(cell);
        if self.home_machine(cell) == Some(machine) && generation.is_some() {
            return;
        }
        if self.machines[machine].life.is_none() {
            return; // The front door goes on alone with what it was told last.
        }
        let told = &self.machines[machine].disk.told;
        if newest.is_some_and(|newest| told.newest.get(&cell).is_some_and(|heard| *heard >= newest))
            || !told.here.contains_key(&cell)
        {
            let text =
                format!("machine {machine} lets a request in to {}, which lives elsewhere", short(cell));
            return self.broken("routed", &text);
        }
        if self.silence(machine) > self.alone_max(machine) + STOPPED_WITHIN {
            let text = format!("machine {machine} lets a request in to {} long after its lease", short(cell));
            self.broken("routed", &text);
        }
    }

    /// A request was judged at a door: only a credential of this very user opens it.
    pub(crate) fn check_admission(
        &mut self,
        machine: usize,
        cell: CellId,
        secret: Option<&str>,
        opens: bool,
    ) {
        let owner = secret.and_then(|secret| self.operators.owner_of(secret));
        if opens && owner != Some(cell) {
            let text = format!("machine {machine}: a credential of {owner:?} opens {}", short(cell));
            return self.broken("stranger", &text);
        }
        let Some(secret) = secret.filter(|_| opens) else { return };
        if let Some(revoked) = self.operators.revoked_at(secret)
            && self.machines[machine].disk.told.revision >= revoked
            && self.home_machine(cell) == Some(machine)
        {
            self.broken(
                "stranger",
                &format!("machine {machine}: a revoked credential opens {}", short(cell)),
            );
        }
    }

    /// Now and then: whoever has not heard the coordinator for longer than its lease has stopped its cells.
    pub(crate) fn audit(&mut self) {
        self.later(AUDIT_EVERY, Happening::Audit);
        for machine in 0..self.machines.len() {
            if self.silence(machine) > self.alone_max(machine) + STOPPED_WITHIN {
                let containers = &self.machines[machine].disk.engine.containers;
                let up = containers.iter().find(|(_, container)| container.is_up()).map(|(cell, _)| *cell);
                if let Some(cell) = up {
                    let text = format!("{} is up on machine {machine} long after its lease", short(cell));
                    self.broken("lease", &text);
                }
            }
        }
    }
}
