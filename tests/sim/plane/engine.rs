//! The container engine of one machine as it truly is, and what each operation does to it. Simpler than the one of the
//! lifecycle's simulation, which has the odd cases; here it is twenty of them under one coordinator.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Event, Observation, OpId, Outcome, Pushed, Seen, SuspendAnswer, Verb};
use berth_node_agent_core::heads;
use berth_node_agent_core::workload;
use berth_shared::cell::{ImageRef, Workload};
use berth_shared::ids::{CellId, Generation};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use berth_shared::wire::CommandVerb;

use crate::operators::What;
use crate::plan::{At, MINUTE, SECOND};
use crate::world::{Happening, World};

/// The lease of a *prepare* (OPENCLAW.md, section 4).
const CONSENT: At = 2 * MINUTE;

/// How long `docker stop` lets the program finish, and how long readiness is asked for.
pub(crate) const STOP_GRACE: At = 330 * SECOND;
const READY_MAX: At = 175 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Exited { code: i64 },
    Up,
    Paused,
}

/// A container, by its cell: a machine has one of each at the most.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    /// Its label: the create that made it.
    made_by: u64,
    image: ImageRef,
    pub(crate) run: Run,
    /// Counts the starts, so that what was meant for an earlier run does not touch a later one.
    pub(crate) run_number: u64,
    /// Under which assignment somebody last let it run.
    pub(crate) generation: Generation,
    pub(crate) ready_at: At,
    pub(crate) suspended_until: At,
    pub(crate) busy_until: At,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Engine {
    pub(crate) containers: BTreeMap<CellId, Container>,
    pub(crate) down_until: At,
    runs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Nothing happens and the failure is told.
    Fails,
    /// It happens and a failure is told.
    FailsAfter,
    /// It happens and nothing is told.
    Lost,
}

/// An operation that an agent asked for.
#[derive(Debug)]
pub(crate) struct Op {
    machine: usize,
    boots: u64,
    life: u64,
    cell: CellId,
    op: OpId,
    verb: Verb,
    asked_at: At,
    fault: Fault,
    generation: Generation,
    // What the driver knew when it began.
    image: ImageRef,
    workload: Workload,
    creates: Vec<u64>,
    draining: bool,
    /// Of a restore or a proof.
    order: Option<crate::restores::Order>,
    /// Of a removal: the disk is kept aside under this generation.
    keep: Option<Generation>,
}

pub(crate) fn failed(code: Code) -> Outcome {
    Outcome::Failed(Problem::new(code, "the world says no"))
}

pub(crate) fn address(machine: usize) -> SocketAddr {
    SocketAddr::from(([10, 231, u8::try_from(machine % 250).expect("below 250"), 2], 18_789))
}

impl Engine {
    pub(crate) fn is_up(&self, cell: CellId) -> bool {
        self.containers
            .get(&cell)
            .is_some_and(|container| container.run != Run::Exited { code: 0 } && container.is_up())
    }

    /// What it shows to one who knows these creates and wants this image.
    fn seen(&self, machine: usize, cell: CellId, creates: &[u64], image: &ImageRef) -> Seen {
        let Some(container) = self.containers.get(&cell) else { return Seen::Absent };
        if !creates.contains(&container.made_by) {
            return Seen::Foreign { detail: "another agent's".to_owned() };
        }
        let (fits, address) = (container.image == *image, address(machine));
        match container.run {
            Run::Exited { code } => Seen::Exited { fits, code },
            Run::Up => Seen::Running { address, fits },
            Run::Paused => Seen::Paused { address, fits },
        }
    }
}

impl Container {
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.run, Run::Up | Run::Paused)
    }
}

impl World {
    pub(crate) fn operation_begins(&mut self, machine: usize, cell: CellId, op: OpId, verb: Verb) {
        self.check_begin(machine, cell, verb);
        let boots = self.machines[machine].clock.boots();
        let Some(life) = &mut self.machines[machine].life else { return };
        let order = life.orders.remove(&cell).filter(|_| matches!(verb, Verb::Restore | Verb::Verify));
        let Some(believed) = life.agent.cell(cell) else { return };
        // As the driver does: where the journal does not know of the retirement, nobody said that the user was removed.
        let keep = match life.memory.retiring.get(&cell) {
            Some(_) => life.memory.keeps_disk_of(cell),
            None => Some(believed.generation()),
        };
        let known = life.memory.cells.get(&cell);
        let mut creates = known.map(|known| known.known_creates()).unwrap_or_default();
        creates.push(op.0);
        let mut asked = Box::new(Op {
            machine,
            boots,
            life: life.number,
            cell,
            op,
            verb,
            asked_at: self.at,
            fault: Fault::None,
            generation: believed.generation(),
            image: believed.spec().image.clone(),
            workload: believed.spec().workload,
            creates,
            draining: false,
            order,
            keep,
        });
        if self.strikes(self.plan.engine_fails) && verb != Verb::AwaitReady {
            asked.fault = match self.dice.between(0, 2) {
                0 => Fault::Fails,
                1 => Fault::FailsAfter,
                _ => Fault::Lost,
            };
        }
        if asked.fault == Fault::Lost && matches!(verb, Verb::Restore | Verb::Verify | Verb::Archive) {
            // A task of the agent's own, which reports as long as the agent lives.
            asked.fault = Fault::FailsAfter;
        }
        if verb == Verb::Restore && self.strikes(300) {
            // Somebody does not want to wait for it.
            self.place(What::Cell { cell, verb: CommandVerb::Wake });
        }
        let wait =
            if verb == Verb::Verify { self.dice.between(1, 20 * SECOND) } else { self.dice.between(1, 400) };
        self.later(wait, Happening::Act(asked));
    }

    pub(crate) fn act(&mut self, mut op: Box<Op>) {
        let present = &self.machines[op.machine];
        if present.off || present.clock.boots() != op.boots {
            return; // It ended with the machine.
        }
        let alive = present.is_life(op.life);
        // What asks the program, or waits for it, ends with the agent that asked.
        if !alive && matches!(op.verb, Verb::AwaitReady | Verb::Suspend | Verb::Resume) {
            return;
        }
        // And so do its workers, within half a second, in which no other agent has come as far as to start one.
        if !alive && matches!(op.verb, Verb::Restore | Verb::Verify | Verb::Archive) {
            return;
        }
        if op.fault == Fault::Fails {
            return self.finish(*op, failed(Code::DockerFailed));
        }
        if self.machines[op.machine].disk.engine.down_until > self.at
            && !matches!(op.verb, Verb::AwaitReady | Verb::Suspend | Verb::Resume)
        {
            return self.finish(*op, failed(Code::DockerDown));
        }
        let Ok(outcome) = self.carry_out_on_engine(&mut op) else {
            // It is under way, for as long as somebody waits for it.
            if self.at < op.asked_at + op.verb.limit().0 {
                let long = op.verb == Verb::Restore && self.strikes(100);
                let wait = if long { self.dice.between(SECOND, 5 * MINUTE) } else { SECOND };
                self.later(wait, Happening::Act(op));
            }
            return;
        };
        self.finish(*op, outcome);
    }

    fn finish(&mut self, op: Op, outcome: Outcome) {
        let told = match (op.fault, op.verb) {
            (Fault::Lost, _) => return,
            (Fault::FailsAfter, Verb::Suspend) => {
                Outcome::Suspend(SuspendAnswer::Unclear { detail: "cut off".to_owned() })
            }
            (Fault::FailsAfter, verb) => {
                if verb == Verb::Restore && matches!(outcome, Outcome::Restored { .. }) {
                    self.restore_told_as_failed(op.machine, op.cell);
                }
                failed(Code::DockerFailed)
            }
            _ => outcome,
        };
        let wait = self.dice.between(0, 30);
        self.later(wait, Happening::Done(Box::new((op, told))));
    }

    pub(crate) fn done(&mut self, (op, mut outcome): (Op, Outcome)) {
        let Some(life) = self.machines[op.machine].life_mut(op.life) else { return };
        if outcome == Outcome::Verified && !life.heads.is_still_covered(&life.agent, &life.memory, op.cell) {
            outcome = failed(Code::NotArchived);
        }
        let believed = life.agent.cell(op.cell).filter(|_| op.verb == Verb::Restore);
        let record = believed.and_then(|cell| heads::restore_ended(cell, &outcome));
        let event = Event::Done { op: op.op, outcome };
        self.turn(op.machine, record.into_iter().collect(), agent::Event::Cell(op.cell, event));
    }

    /// Does it. `Err`: it is under way.
    fn carry_out_on_engine(&mut self, op: &mut Op) -> Result<Outcome, ()> {
        let Op { machine, cell, .. } = *op;
        let seen = self.machines[machine].disk.engine.seen(machine, cell, &op.creates, &op.image);
        if matches!(seen, Seen::Foreign { .. }) && !matches!(op.verb, Verb::Look | Verb::Repair) {
            return Ok(failed(Code::NotOurs));
        }
        Ok(match (op.verb, &seen) {
            (Verb::Look, _) => Outcome::Looked(seen),
            (Verb::Create, _) => {
                self.disk_made(machine, cell);
                self.create(op, &seen)
            }
            (Verb::Restore, _) => {
                let Some(mut order) = op.order.take() else { return Ok(failed(Code::Internal)) };
                let done = self.restore(machine, cell, &seen, &mut order);
                op.order = Some(order);
                return done;
            }
            (Verb::Verify, _) => match op.order.take() {
                Some(order) => self.prove(machine, cell, &order),
                None => failed(Code::Internal),
            },
            (Verb::Archive, _) => match self.disk_emptied(machine, cell) {
                Ok(()) => Outcome::Archived,
                Err(()) => failed(Code::DockerFailed),
            },
            (Verb::Start, Seen::Exited { .. }) => {
                self.start(op);
                Outcome::Started { address: address(machine) }
            }
            (Verb::Start, Seen::Running { address, .. }) => Outcome::Started { address: *address },
            (Verb::AwaitReady, _) => return self.await_ready(op, &seen),
            (Verb::Suspend, _) => Outcome::Suspend(self.suspend(op, &seen)),
            (Verb::Resume, _) => {
                if let Some(container) = self.machines[machine].disk.engine.containers.get_mut(&cell)
                    && container.run == Run::Up
                {
                    container.suspended_until = 0;
                }
                Outcome::Resumed
            }
            (Verb::Observe, Seen::Running { .. }) => Outcome::Observed(Observation::default()),
            (Verb::Push, Seen::Paused { .. }) => Outcome::Pushed(Pushed::default()),
            (Verb::Pause, Seen::Running { .. }) => {
                self.set_run(machine, cell, Run::Paused);
                Outcome::Paused
            }
            (Verb::Pause, Seen::Paused { .. }) => Outcome::Paused,
            (Verb::Unpause, Seen::Paused { .. }) => {
                if let Some(container) = self.machines[machine].disk.engine.containers.get_mut(&cell) {
                    container.generation = op.generation;
                }
                self.set_run(machine, cell, Run::Up);
                if self.dice.per_mille(500) {
                    self.touches(machine, cell);
                }
                Outcome::Unpaused
            }
            (Verb::Unpause, Seen::Running { .. }) => Outcome::Unpaused,
            (Verb::Stop, Seen::Running { .. }) => {
                if !std::mem::replace(&mut op.draining, true) {
                    self.drain(machine, cell);
                }
                return Err(());
            }
            (Verb::Stop | Verb::KillFrozen, Seen::Exited { code, .. }) => Outcome::Ended { code: *code },
            (Verb::KillFrozen, Seen::Paused { .. }) => {
                self.set_run(machine, cell, Run::Exited { code: 137 });
                Outcome::Ended { code: 137 }
            }
            (Verb::Remove, Seen::Absent | Seen::Exited { .. }) => {
                self.machines[machine].disk.engine.containers.remove(&cell);
                self.disk_removed(machine, cell, op.keep);
                Outcome::Removed
            }
            (Verb::Repair, _) => Outcome::Repaired,
            _ => failed(Code::DockerFailed),
        })
    }

    fn create(&mut self, op: &Op, seen: &Seen) -> Outcome {
        let engine = &mut self.machines[op.machine].disk.engine;
        match seen {
            Seen::Running { fits: false, .. } | Seen::Paused { fits: false, .. } => {
                return failed(Code::DockerFailed);
            }
            Seen::Running { .. } | Seen::Paused { .. } | Seen::Exited { fits: true, .. } => {
                let by = engine.containers.get(&op.cell).map_or(0, |container| container.made_by);
                return Outcome::Created { by };
            }
            _ => {}
        }
        let container = Container {
            made_by: op.op.0,
            image: op.image.clone(),
            run: Run::Exited { code: 0 },
            run_number: 0,
            generation: op.generation,
            ready_at: At::MAX,
            suspended_until: 0,
            busy_until: 0,
        };
        engine.containers.insert(op.cell, container);
        Outcome::Created { by: op.op.0 }
    }

    fn start(&mut self, op: &Op) {
        self.count("starts");
        let boot = self.dice.between(500, 15 * SECOND);
        let ready_at = self.at + boot;
        let engine = &mut self.machines[op.machine].disk.engine;
        engine.runs += 1;
        if let Some(container) = engine.containers.get_mut(&op.cell) {
            (container.run_number, container.generation) = (engine.runs, op.generation);
            (container.ready_at, container.suspended_until, container.busy_until) = (ready_at, 0, 0);
        }
        self.set_run(op.machine, op.cell, Run::Up);
        self.check_data(op.machine, op.cell, op.generation);
        self.touches(op.machine, op.cell);
    }

    fn await_ready(&self, op: &Op, seen: &Seen) -> Result<Outcome, ()> {
        match seen {
            Seen::Exited { code, .. } => return Ok(Outcome::Ended { code: *code }),
            Seen::Absent => return Ok(failed(Code::CellExited)),
            _ => {}
        }
        let container = self.machines[op.machine].disk.engine.containers.get(&op.cell);
        if container.is_some_and(|container| container.run == Run::Up && container.ready_at <= self.at) {
            return Ok(Outcome::Ready);
        }
        if self.at >= op.asked_at + READY_MAX { Ok(failed(Code::ImageNeverReady)) } else { Err(()) }
    }

    fn suspend(&mut self, op: &Op, seen: &Seen) -> SuspendAnswer {
        if !workload::has_handshake(op.workload) {
            return workload::silent_consent();
        }
        let now = self.at;
        let open = self.machines[op.machine].door.open(op.cell);
        let container = self.machines[op.machine].disk.engine.containers.get_mut(&op.cell);
        let Some(container) =
            container.filter(|container| matches!(seen, Seen::Running { .. }) && container.ready_at <= now)
        else {
            return SuspendAnswer::Unclear { detail: "no answer".to_owned() };
        };
        if container.busy_until > now || open > 0 {
            return SuspendAnswer::Busy {
                blockers: "embedded-run".to_owned(),
                retry_after: Some(Millis(20 * SECOND)),
            };
        }
        container.suspended_until = now + CONSENT;
        SuspendAnswer::Ready { lease: Millis(CONSENT) }
    }

    /// It was told to end: it finishes what it does, and is killed when that takes too long.
    fn drain(&mut self, machine: usize, cell: CellId) {
        let now = self.at;
        let Some(container) = self.machines[machine].disk.engine.containers.get(&cell) else { return };
        let wait = container.busy_until.saturating_sub(now).clamp(100, STOP_GRACE);
        let run = container.run_number;
        self.touches(machine, cell);
        self.later(wait, Happening::Ends { machine, cell, run, code: 0 });
    }

    pub(crate) fn container_ends(&mut self, machine: usize, cell: CellId, run: u64, code: i64) {
        let container = self.machines[machine].disk.engine.containers.get(&cell);
        if container.is_some_and(|container| container.is_up() && container.run_number == run) {
            // What it writes last.
            self.touches(machine, cell);
            self.set_run(machine, cell, Run::Exited { code });
        }
    }

    pub(crate) fn set_run(&mut self, machine: usize, cell: CellId, run: Run) {
        let Some(container) = self.machines[machine].disk.engine.containers.get_mut(&cell) else { return };
        container.run = run;
        let generation = container.generation;
        self.note(|| {
            format!("machine {machine}: the container of {} under {generation} is {run:?}", short(cell))
        });
        if matches!(run, Run::Exited { .. }) {
            self.cut_requests(machine, cell);
        }
        self.check_run(machine, cell, run);
        self.tell_agent_of(machine, cell);
    }

    /// The engine reports what changed, if an agent listens.
    fn tell_agent_of(&mut self, machine: usize, cell: CellId) {
        let Some(life) = &self.machines[machine].life else { return };
        let (number, Some(believed)) = (life.number, life.agent.cell(cell)) else { return };
        let creates = life.memory.cells.get(&cell).map(|known| known.known_creates()).unwrap_or_default();
        let seen = self.machines[machine].disk.engine.seen(machine, cell, &creates, &believed.spec().image);
        let wait = self.dice.between(1, 300);
        self.later(wait, Happening::Noticed(Box::new((machine, number, cell, seen))));
    }

    pub(crate) fn noticed(&mut self, (machine, life, cell, seen): (usize, u64, CellId, Seen)) {
        if self.machines[machine].is_life(life) {
            self.give(machine, agent::Event::Cell(cell, Event::Noticed(seen)));
        }
    }
}

/// A cell's id, short enough for a story.
pub(crate) fn short(cell: CellId) -> String {
    format!("c{}", u64::from_be_bytes(cell.bytes()[..8].try_into().expect("eight bytes")))
}
