//! What each operation truly does, when, and what the agent is told of it.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Event, OpId, Outcome, Seen, SuspendAnswer, Verb};
use berth_node_agent_core::workload;
use berth_shared::cell::{ImageRef, Workload};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

use crate::engine::{Container, Run, Work, address};
use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

/// The lease of a *prepare* (OPENCLAW.md, section 4).
const LEASE: At = 2 * MINUTE;

/// How long `docker stop` lets the program finish, and how long readiness is asked for.
const STOP_GRACE: At = 330 * SECOND;
const READY_MAX: At = 175 * SECOND;

/// What goes wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Nothing happens and the failure is told.
    Fails,
    /// It happens and a failure is told.
    FailsAfter,
    /// It happens and nothing is told, or much later.
    ResultLate,
    /// It happens when nobody waits for it any more.
    HappensLate,
    /// Nothing happens, nothing is told.
    Lost,
}

/// One operation, as the world sees it.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    life: u64,
    pub(crate) cell: usize,
    op: OpId,
    pub(crate) verb: Verb,
    begun: At,
    pub(crate) asked_at: At,
    fault: Fault,
    /// What the driver knew when it began.
    image: ImageRef,
    workload: Workload,
    creates: Vec<u64>,
    last_suspend: Option<u64>,
    suspension: Option<u64>,
    /// The run that it began on.
    run: u64,
    signalled: bool,
    outcome: Option<Outcome>,
    told: bool,
}

impl Running {
    pub(crate) const fn is_awaited(&self, now: At, until: At) -> bool {
        !self.told && now < until
    }
}

fn failed(code: Code) -> Outcome {
    Outcome::Failed(Problem::new(code, "the world says no"))
}

impl World {
    pub(crate) fn operation_begins(&mut self, cell: usize, op: OpId, verb: Verb) {
        let Some(life) = &self.life else { return };
        let Some(believed) = life.agent.cell(cell_id(cell)) else { return };
        let remembered = life.memory.cells.get(&cell_id(cell)).cloned().unwrap_or_default();
        let mut running = Running {
            life: life.number,
            cell,
            op,
            verb,
            begun: self.at,
            asked_at: self.at,
            fault: Fault::None,
            image: believed.spec().image.clone(),
            workload: believed.spec().workload,
            creates: [remembered.known_creates(), vec![op.0]].concat(),
            last_suspend: remembered.last_suspend,
            suspension: life.suspensions.get(&cell).copied(),
            run: self.truths[cell].run_number(),
            signalled: false,
            outcome: None,
            told: false,
        };
        running.fault = self.pick_fault(verb);
        let fault = running.fault;
        if fault != Fault::None {
            self.note(|| format!("cell {cell} {verb:?} will go wrong: {fault:?}"));
        }
        self.check_begin(&running);
        let id = self.running.len();
        self.truths[cell].operation = Some((id, self.at + verb.limit().0));
        let wait = match fault {
            Fault::HappensLate => verb.limit().0 + self.dice.between(1, 4 * MINUTE),
            _ if self.strikes(100) => self.dice.between(1, verb.limit().0.min(15 * SECOND)),
            _ => self.dice.between(1, 400),
        };
        self.running.push(running);
        if fault == Fault::Fails || fault == Fault::Lost {
            self.finish(id, failed(Code::DockerFailed));
        } else {
            self.later(wait, Happening::Operation { id });
        }
    }

    fn pick_fault(&mut self, verb: Verb) -> Fault {
        // A probe is an open question, and a look has no effect.
        let quiet = matches!(verb, Verb::AwaitReady);
        if quiet || !self.faulty() {
            return Fault::None;
        }
        let Self { plan, dice, .. } = self;
        if dice.per_mille(plan.fails) {
            return Fault::Fails;
        }
        if dice.per_mille(plan.fails_but_happened) {
            return if dice.per_mille(500) { Fault::FailsAfter } else { Fault::ResultLate };
        }
        if dice.per_mille(plan.late) {
            return if dice.per_mille(500) { Fault::HappensLate } else { Fault::Lost };
        }
        Fault::None
    }

    pub(crate) fn operation_goes_on(&mut self, id: usize) {
        let running = self.running[id].clone();
        if running.outcome.is_some() {
            return;
        }
        let alive = self.life.as_ref().is_some_and(|life| life.number == running.life);
        if !alive && (running.verb == Verb::AwaitReady || self.dice.per_mille(300)) {
            self.running[id].outcome = Some(failed(Code::Internal));
            return; // It ended with the agent that asked for it.
        }
        let engine = !matches!(running.verb, Verb::AwaitReady | Verb::Suspend | Verb::Resume);
        if engine && self.engine_down {
            return self.finish(id, failed(Code::DockerDown));
        }
        match self.act(id, &running) {
            None => self.later(SECOND, Happening::Operation { id }),
            Some(outcome) => {
                let late = running.fault == Fault::HappensLate;
                self.note(|| {
                    let late = if late { " late" } else { "" };
                    format!("cell {} {:?} happens{late}: {outcome:?}", running.cell, running.verb)
                });
                self.finish(id, outcome);
            }
        }
    }

    fn finish(&mut self, id: usize, outcome: Outcome) {
        let fault = self.running[id].fault;
        let told = match fault {
            Fault::FailsAfter if self.running[id].verb == Verb::Suspend => {
                Outcome::Suspend(SuspendAnswer::Unclear { detail: "cut off".to_owned() })
            }
            Fault::FailsAfter => failed(Code::DockerFailed),
            _ => outcome,
        };
        self.running[id].outcome = Some(told);
        let limit = self.running[id].verb.limit().0;
        let wait = match fault {
            Fault::Lost => return,
            Fault::ResultLate if self.dice.per_mille(500) => return,
            Fault::ResultLate => self.dice.between(limit / 2, limit + 5 * MINUTE),
            _ if self.strikes(20) => self.dice.between(1, 10 * SECOND),
            _ => self.dice.between(0, 30),
        };
        self.later(wait, Happening::Result { id });
    }

    pub(crate) fn result(&mut self, id: usize) {
        let Running { life, cell, op, verb, run, outcome, .. } = self.running[id].clone();
        let Some(outcome) = outcome else { return };
        let Some(present) = self.life.as_mut().filter(|present| present.number == life) else { return };
        self.running[id].told = true;
        match (&outcome, verb) {
            (Outcome::Suspend(SuspendAnswer::Ready { .. }), _) => {
                present.suspensions.insert(cell, op.0);
            }
            (Outcome::Resumed | Outcome::Started { .. } | Outcome::Removed, _) => {
                present.suspensions.remove(&cell);
            }
            _ => {}
        }
        let truth = &mut self.truths[cell];
        match &outcome {
            Outcome::Looked(Seen::Running { .. } | Seen::Paused { .. }) => {
                (truth.told_up, truth.looked) = (Some(run), true);
            }
            Outcome::Looked(_) => (truth.told_up, truth.looked) = (None, true),
            Outcome::Started { .. } => truth.told_up = Some(truth.run_number()),
            Outcome::Ended { .. } | Outcome::Removed => truth.told_up = None,
            _ => {}
        }
        self.give(agent::Event::Cell(cell_id(cell), Event::Done { op, outcome }));
    }

    /// What the engine shows now to one who knows these creates.
    pub(crate) fn seen(&self, cell: usize) -> Seen {
        let memory = self.life.as_ref().and_then(|life| life.memory.cells.get(&cell_id(cell)));
        let creates = memory.map(|known| known.known_creates()).unwrap_or_default();
        let image = self.life.as_ref().and_then(|life| life.agent.cell(cell_id(cell)));
        self.seen_by(cell, &creates, image.map(|believed| &believed.spec().image))
    }

    fn seen_by(&self, cell: usize, creates: &[u64], image: Option<&ImageRef>) -> Seen {
        let Some(container) = &self.truths[cell].container else { return Seen::Absent };
        if !container.ours || !creates.contains(&container.made_by) {
            return Seen::Foreign { detail: format!("berth-user-{cell}") };
        }
        let fits = image == Some(&container.image);
        let address = address(cell);
        match container.run {
            Run::Exited { code } => Seen::Exited { fits, code },
            Run::Up => Seen::Running { address, fits },
            Run::Paused => Seen::Paused { address, fits },
        }
    }

    /// Does it, as far as it can be done now. `None`: it is still under way.
    fn act(&mut self, id: usize, running: &Running) -> Option<Outcome> {
        let cell = running.cell;
        let seen = self.seen_by(cell, &running.creates, Some(&running.image));
        if running.verb == Verb::Look {
            self.running[id].run = self.truths[cell].run_number();
            return Some(Outcome::Looked(seen));
        }
        let foreign = matches!(seen, Seen::Foreign { .. });
        let touches = !matches!(running.verb, Verb::AwaitReady | Verb::Suspend | Verb::Resume | Verb::Repair);
        if foreign && touches {
            if self.truths[cell].container.as_ref().is_some_and(|container| container.ours) {
                self.broken("g", &format!("the container of cell {cell} is ours and is not known any more"));
            }
            return Some(failed(Code::NotOurs));
        }
        Some(match (running.verb, seen) {
            (Verb::Create, seen) => self.create(running, &seen),
            (Verb::Start, Seen::Exited { .. }) => {
                self.start(cell);
                Outcome::Started { address: address(cell) }
            }
            (Verb::Start, Seen::Running { address, .. }) => Outcome::Started { address },
            (Verb::Pause, Seen::Running { .. }) => {
                self.pause(running);
                Outcome::Paused
            }
            (Verb::Pause, Seen::Paused { .. }) => Outcome::Paused,
            (Verb::Unpause, Seen::Paused { .. }) => {
                self.set_run(cell, Run::Up);
                Outcome::Unpaused
            }
            (Verb::Unpause, Seen::Running { .. }) => Outcome::Unpaused,
            (Verb::Stop, Seen::Running { .. }) => return self.stop(id, running),
            (Verb::Stop | Verb::KillFrozen, Seen::Exited { code, .. }) => Outcome::Ended { code },
            (Verb::KillFrozen, Seen::Paused { .. }) => {
                self.container_ends(cell, self.truths[cell].run_number(), 137);
                Outcome::Ended { code: 137 }
            }
            (Verb::Remove, Seen::Absent) => Outcome::Removed,
            (Verb::Remove, Seen::Exited { .. }) => {
                self.container_gone(cell);
                Outcome::Removed
            }
            (Verb::Repair, seen) => {
                if matches!(seen, Seen::Running { .. } | Seen::Paused { .. }) {
                    failed(Code::DockerFailed)
                } else {
                    self.truths[cell].temper.bad_config = false;
                    Outcome::Repaired
                }
            }
            (Verb::AwaitReady, seen) => return self.await_ready(running, &seen),
            (Verb::Suspend, seen) => Outcome::Suspend(self.suspend(running, &seen)),
            (Verb::Resume, seen) => {
                self.resume(running, &seen);
                Outcome::Resumed
            }
            _ => failed(Code::DockerFailed),
        })
    }

    fn create(&mut self, running: &Running, seen: &Seen) -> Outcome {
        let cell = running.cell;
        let made_by = |truth: &crate::engine::Truth| truth.container.as_ref().map_or(0, |c| c.made_by);
        match seen {
            Seen::Running { fits, .. } | Seen::Paused { fits, .. } if !fits => {
                return failed(Code::DockerFailed);
            }
            Seen::Running { .. } | Seen::Paused { .. } | Seen::Exited { fits: true, .. } => {
                return Outcome::Created { by: made_by(&self.truths[cell]) };
            }
            _ => {}
        }
        self.runs += 1;
        self.truths[cell].container = Some(Container {
            ours: true,
            made_by: running.op.0,
            image: running.image.clone(),
            run: Run::Exited { code: 0 },
            run_number: self.runs,
            changed_at: self.at,
            work: Work::booting(At::MAX),
        });
        Outcome::Created { by: running.op.0 }
    }

    fn suspend(&mut self, running: &Running, seen: &Seen) -> SuspendAnswer {
        if !workload::has_handshake(running.workload) {
            return workload::silent_consent();
        }
        let unclear = || SuspendAnswer::Unclear { detail: "no answer".to_owned() };
        if !matches!(seen, Seen::Running { .. }) {
            return unclear();
        }
        let now = self.at;
        let open = self.door.gates[running.cell].open.len();
        let odd = self.strikes(30);
        let lease = if self.strikes(400) { self.dice.between(5, 60) * SECOND } else { LEASE };
        let truth = &mut self.truths[running.cell];
        let liar = truth.temper.liar;
        let Some(container) = &mut truth.container else { return unclear() };
        if container.work.ready_at > now || container.work.draining || odd {
            return unclear();
        }
        if !liar && (container.work.busy_until > now || open > 0) {
            let retry_after = Some(Millis(20 * SECOND));
            return SuspendAnswer::Busy { blockers: "embedded-run".to_owned(), retry_after };
        }
        container.work.suspended = Some((running.op.0, now + lease));
        SuspendAnswer::Ready { lease: Millis(lease) }
    }

    fn resume(&mut self, running: &Running, seen: &Seen) {
        if !matches!(seen, Seen::Running { .. }) {
            return;
        }
        // Named by the suspension that the driver knows, or by asking the same *prepare* again.
        let named = running.suspension.or(running.last_suspend);
        let Some(container) = &mut self.truths[running.cell].container else { return };
        if container.work.suspended.is_some_and(|(op, _)| Some(op) == named) {
            container.work.suspended = None;
        }
    }

    fn await_ready(&mut self, running: &Running, seen: &Seen) -> Option<Outcome> {
        match seen {
            Seen::Exited { code, .. } => return Some(Outcome::Ended { code: *code }),
            Seen::Absent => return Some(failed(Code::CellExited)),
            Seen::Running { .. } => {
                let ready_at = self.truths[running.cell].container.as_ref().map(|c| c.work.ready_at);
                if ready_at.is_some_and(|ready_at| ready_at <= self.at) {
                    return Some(Outcome::Ready);
                }
            }
            Seen::Paused { .. } | Seen::Between | Seen::Foreign { .. } => {}
        }
        (self.at >= running.begun + READY_MAX).then(|| failed(Code::ImageNeverReady))
    }

    fn stop(&mut self, id: usize, running: &Running) -> Option<Outcome> {
        let (now, cell) = (self.at, running.cell);
        if !running.signalled {
            self.running[id].signalled = true;
            self.running[id].begun = now;
            self.check_stop(running);
            let work = &mut self.truths[cell].container.as_mut()?.work;
            work.draining = true;
            return None;
        }
        let busy_until = self.truths[cell].container.as_ref()?.work.busy_until;
        let quiet = busy_until <= now && self.door.gates[cell].open.is_empty();
        if !quiet && now < self.running[id].begun + STOP_GRACE {
            return None;
        }
        let code = if quiet { 0 } else { 137 };
        self.container_ends(cell, self.truths[cell].run_number(), code);
        Some(Outcome::Ended { code })
    }

    /// Does nobody wait for it any more?
    pub(crate) fn is_late(&self, running: &Running) -> bool {
        running.fault == Fault::HappensLate
            || self.life.as_ref().is_none_or(|life| life.number != running.life)
            || self.at >= running.asked_at + running.verb.limit().0
    }

    /// The machine is off: what was under way is not.
    pub(crate) fn cancel_operations(&mut self) {
        for running in &mut self.running {
            if running.outcome.is_none() {
                running.outcome = Some(failed(Code::Internal));
            }
        }
    }

    fn pause(&mut self, running: &Running) {
        self.check_pause(running);
        self.set_run(running.cell, Run::Paused);
    }
}
