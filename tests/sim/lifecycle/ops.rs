//! What each operation truly does, when, and what the agent is told of it.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{
    Event, Making, Observation, OpId, OtherImage, Outcome, Pushed, Seen, SuspendAnswer, Verb,
};
use berth_shared::cell::{ImageRef, Workload};
use berth_shared::problem::{Code, Problem};

use crate::engine::{Container, Run, Work, address};
use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

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
    pub(crate) op: OpId,
    pub(crate) verb: Verb,
    pub(crate) asked_at: At,
    fault: Fault,
    /// What the driver knew when it began.
    image: ImageRef,
    making: Making,
    pub(crate) workload: Workload,
    creates: Vec<u64>,
    pub(crate) last_suspend: Option<u64>,
    pub(crate) suspension: Option<u64>,
    /// The run that it began on.
    run: u64,
    pub(crate) signalled: bool,
    outcome: Option<Outcome>,
    told: bool,
}

impl Running {
    pub(crate) const fn is_awaited(&self, now: At, until: At) -> bool {
        !self.told && now < until
    }
}

pub(crate) fn failed(code: Code) -> Outcome {
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
            asked_at: self.at,
            fault: Fault::None,
            image: believed.spec().image.clone(),
            making: believed.making().clone(),
            workload: believed.spec().workload,
            creates: [remembered.known_creates(), vec![op.0]].concat(),
            last_suspend: remembered.last_suspend,
            suspension: life.suspensions.get(&cell).copied(),
            run: self.truths[cell].run_number(),
            signalled: false,
            outcome: None,
            told: false,
        };
        running.fault = self.pick_fault(cell, verb);
        let fault = running.fault;
        if fault != Fault::None {
            self.note(|| format!("cell {cell} {verb:?} will go wrong: {fault:?}"));
        }
        self.check_begin(&running);
        self.check_pace(cell);
        let id = self.running.len();
        self.truths[cell].operation = Some((id, self.at + verb.limit().0));
        let wait = match fault {
            Fault::HappensLate => verb.limit().0 + self.dice.between(1, 4 * MINUTE),
            _ if self.strikes(self.plan.slow) => self.dice.between(1, verb.limit().0.min(50 * SECOND)),
            _ => self.dice.between(1, 400),
        };
        self.running.push(running);
        if fault == Fault::Fails || fault == Fault::Lost {
            self.finish(id, failed(Code::DockerFailed));
        } else {
            self.later(wait, Happening::Operation { id });
        }
    }

    fn pick_fault(&mut self, cell: usize, verb: Verb) -> Fault {
        // A probe is an open question, and a look has no effect.
        let quiet = matches!(verb, Verb::AwaitReady);
        if quiet || !self.faulty() {
            return Fault::None;
        }
        if self.truths[cell].temper.stubborn == Some(verb) {
            return Fault::Fails;
        }
        let Self { plan, dice, .. } = self;
        if dice.per_mille(plan.fails) {
            return Fault::Fails;
        }
        if dice.per_mille(plan.fails_but_happened) {
            return if dice.per_mille(500) { Fault::FailsAfter } else { Fault::ResultLate };
        }
        if dice.per_mille(plan.late) {
            let engine = !matches!(verb, Verb::Suspend | Verb::Resume);
            return if engine && dice.per_mille(500) { Fault::HappensLate } else { Fault::Lost };
        }
        Fault::None
    }

    pub(crate) fn operation_goes_on(&mut self, id: usize) {
        let running = self.running[id].clone();
        if running.outcome.is_some() {
            return;
        }
        let alive = self.life.as_ref().is_some_and(|life| life.number == running.life);
        let with_agent = match running.verb {
            Verb::AwaitReady => true,
            // The program sees the connection end.
            Verb::Suspend | Verb::Resume => self.life.is_some(),
            _ => false,
        };
        if !alive && (with_agent || self.dice.per_mille(300)) {
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
        let Running { life, cell, op, run, outcome, .. } = self.running[id].clone();
        let Some(outcome) = outcome else { return };
        let Some(present) = self.life.as_mut().filter(|present| present.number == life) else { return };
        self.running[id].told = true;
        let truth = &mut self.truths[cell];
        // The driver ends its part of an operation that is given up: it names no suspension any more.
        let awaited = truth.operation.is_some_and(|(newest, until)| newest == id && self.at < until);
        match &outcome {
            _ if !awaited => {}
            Outcome::Suspend(SuspendAnswer::Ready { .. }) => {
                present.suspensions.insert(cell, op.0);
            }
            Outcome::Resumed | Outcome::Started { .. } | Outcome::Removed => {
                present.suspensions.remove(&cell);
            }
            _ => {}
        }
        match &outcome {
            _ if !awaited => {}
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
        let image = if running.verb == Verb::Create { &running.making.image } else { &running.image };
        let seen = self.seen_by(cell, &running.creates, Some(image));
        if running.verb == Verb::Look {
            self.running[id].run = self.truths[cell].run_number();
            return Some(Outcome::Looked(seen));
        }
        let foreign = matches!(seen, Seen::Foreign { .. });
        let touches = !matches!(
            running.verb,
            Verb::AwaitReady
                | Verb::Observe
                | Verb::Suspend
                | Verb::Push
                | Verb::Resume
                | Verb::Repair
                | Verb::Pull
                | Verb::Save
        );
        if foreign && touches {
            let ours = self.truths[cell].container.as_ref().is_some_and(|container| container.ours);
            if ours && !self.is_late(running) {
                self.broken("g", &format!("the container of cell {cell} is ours and is not known any more"));
            }
            return Some(failed(Code::NotOurs));
        }
        Some(match (running.verb, seen) {
            (Verb::Create, seen) => self.create(running, &seen),
            (Verb::Pull, _) => {
                self.images.insert(running.making.image.clone());
                self.count("images pulled");
                Outcome::Pulled
            }
            (Verb::Start, Seen::Exited { .. }) => {
                self.start(cell);
                Outcome::Started { address: address(cell) }
            }
            (Verb::Start, Seen::Running { address, .. }) => Outcome::Started { address },
            (Verb::Observe, Seen::Running { .. }) => Outcome::Observed(self.observe(cell)),
            (Verb::Push, Seen::Paused { .. }) => Outcome::Pushed(Pushed::default()),
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
                self.truths[cell].written_by = None;
                Outcome::Removed
            }
            (Verb::Save, seen) => {
                // A worker ends with whoever waits for it; what is written while it reads is not in there.
                let is_up = matches!(seen, Seen::Running { .. } | Seen::Paused { .. });
                self.truths[cell].kept |= !is_up && !self.is_late(running);
                Outcome::Saved
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
            Seen::Exited { .. } if running.making.other == OtherImage::Left => {
                return Outcome::Created { by: made_by(&self.truths[cell]) };
            }
            Seen::Exited { .. } if running.making.other == OtherImage::Told => return Outcome::OtherImage,
            _ => {}
        }
        if !self.images.contains(&running.making.image) {
            return Outcome::NotPulled;
        }
        self.runs += 1;
        self.truths[cell].container = Some(Container {
            ours: true,
            made_by: running.op.0,
            image: running.making.image.clone(),
            run: Run::Exited { code: 0 },
            run_number: self.runs,
            changed_at: self.at,
            work: Work::booting(At::MAX),
        });
        Outcome::Created { by: running.op.0 }
    }

    /// What the kernel shows of its processes: those of a workload that is at work use CPU, whatever it says of itself.
    fn observe(&self, cell: usize) -> Observation {
        let container = self.truths[cell].container.as_ref();
        let works = container.is_some_and(|container| container.work.busy_until > self.at);
        Observation { cpu_percent: Some(if works { 90 } else { 2 }), ..Observation::default() }
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
