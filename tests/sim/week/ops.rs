//! What each operation truly does, when, and what the agent is told of it.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{
    Event, Making, Observation, OpId, OtherImage, Outcome, Pushed, Seen, SuspendAnswer, Verb,
};
use berth_shared::cell::{CellState, ImageRef};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::truth::{Run, address};
use crate::world::{Happening, World};

/// The lease of a *prepare* (OPENCLAW.md, section 4).
const LEASE: At = 2 * MINUTE;

/// How long `docker stop` lets the program finish, and how long readiness is asked for.
const STOP_GRACE: At = 330 * SECOND;
const READY_MAX: At = 175 * SECOND;

/// What may follow from one failed operation, beside its own bound: the longest wait between two tries of a schedule's wake.
const FOLLOWS: At = 20 * MINUTE;

/// What goes wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
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
    /// Of a push: only a part goes out.
    Short,
}

/// One operation, as the world sees it.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) life: u64,
    pub(crate) cell: usize,
    pub(crate) op: OpId,
    pub(crate) verb: Verb,
    pub(crate) asked_at: At,
    pub(crate) fault: Fault,
    /// What the driver knew when it began.
    image: ImageRef,
    making: Making,
    creates: Vec<u64>,
    last_suspend: Option<u64>,
    suspension: Option<u64>,
    signalled: bool,
    outcome: Option<Outcome>,
    /// Of a look before a rest: what the cell does not use goes out while it runs.
    thins: bool,
    /// That was done, and the cell held so much before.
    thinned: Option<berth_shared::units::Bytes>,
    /// Of a push: it has moved the memory, whether or not anybody was told.
    pub(crate) moved: bool,
}

pub(crate) fn failed(code: Code) -> Outcome {
    Outcome::Failed(Problem::new(code, "the world says no"))
}

/// What an operation takes on a quiet machine, at least and at the most.
const fn usual(verb: Verb) -> (At, At) {
    match verb {
        Verb::Look => (5, 50),
        Verb::Create => (50, 400),
        Verb::Start => (100, 500),
        Verb::AwaitReady => (5, 50),
        Verb::Observe => (900, 1_300),
        Verb::Fence => (1, 10),
        Verb::Suspend | Verb::Resume => (10, 150),
        Verb::Pause => (80, 220),
        Verb::Push => (100, 4_300),
        Verb::Unpause => (50, 270),
        Verb::Stop => (50, 300),
        Verb::KillFrozen => (50, 300),
        Verb::Pull
        | Verb::Repair
        | Verb::Remove
        | Verb::Restore
        | Verb::Save
        | Verb::Verify
        | Verb::Archive => (100, 2_000),
    }
}

impl World {
    pub(crate) fn operation_begins(&mut self, cell: usize, op: OpId, verb: Verb) {
        self.check_pace(cell);
        self.check_turns(cell, verb);
        let Some(life) = &self.life else { return };
        let Some(believed) = life.agent.cell(cell_id(cell)) else { return };
        let remembered = life.memory.cells.get(&cell_id(cell));
        let mut creates = remembered.map(|known| known.known_creates()).unwrap_or_default();
        creates.push(op.0);
        let mut running = Running {
            life: life.number,
            cell,
            op,
            verb,
            asked_at: self.at,
            fault: Fault::None,
            image: believed.spec().image.clone(),
            making: believed.making().clone(),
            creates,
            last_suspend: remembered.and_then(|known| known.last_suspend),
            suspension: life.suspensions.get(&cell).copied(),
            thins: self.plan.thins && verb == Verb::Observe && believed.thins(),
            thinned: None,
            signalled: false,
            outcome: None,
            moved: false,
        };
        running.fault = self.pick_fault(verb);
        let fault = running.fault;
        if !matches!(fault, Fault::None | Fault::Short) {
            self.note(|| format!("cell {cell} {verb:?} will go wrong: {fault:?}"));
            self.excuse_cell(cell, verb.limit().0 + FOLLOWS);
        }
        self.next_op += 1;
        let id = self.next_op;
        self.cells[cell].operation = Some(id);
        let (least, most) = usual(verb);
        let wait = if fault == Fault::HappensLate {
            verb.limit().0 + self.dice.between(1, 4 * MINUTE)
        } else if self.strikes(self.plan.slow) {
            self.excuse_cell(cell, verb.limit().0 + FOLLOWS);
            self.dice.between(1, verb.limit().0.min(50 * SECOND))
        } else {
            self.dice.between(least, most)
        };
        self.ops.insert(id, running);
        if matches!(fault, Fault::Fails | Fault::Lost) {
            self.finish(id, failed(Code::DockerFailed));
        } else if verb == Verb::Fence {
            let life = self.lives;
            self.ops.remove(&id);
            self.later(wait, Happening::Fenced { life, cell, op: op.0 });
        } else {
            self.later(wait, Happening::Operation { id });
        }
    }

    fn pick_fault(&mut self, verb: Verb) -> Fault {
        if verb == Verb::Push && self.dice.per_mille(20) {
            return Fault::Short;
        }
        if verb == Verb::AwaitReady || !self.storm {
            return Fault::None;
        }
        let Self { plan, dice, .. } = self;
        if dice.per_mille(plan.fails) {
            return Fault::Fails;
        }
        if verb == Verb::Fence {
            return Fault::None;
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

    pub(crate) fn operation_goes_on(&mut self, id: u64) {
        let Some(running) = self.ops.get(&id).cloned() else { return };
        if running.outcome.is_some() {
            return;
        }
        let alive = self.life.as_ref().is_some_and(|life| life.number == running.life);
        let with_agent = match running.verb {
            Verb::AwaitReady | Verb::Push | Verb::Observe => true,
            // The program sees the connection end.
            Verb::Suspend | Verb::Resume => self.life.is_some(),
            _ => false,
        };
        if !alive && (with_agent || self.dice.per_mille(300)) {
            self.ops.remove(&id);
            return; // It ended with the agent that asked for it.
        }
        let engine = !matches!(running.verb, Verb::AwaitReady | Verb::Suspend | Verb::Resume | Verb::Observe);
        if engine && self.engine_down {
            return self.finish(id, failed(Code::DockerDown));
        }
        match self.act(id, &running) {
            None => self.later(SECOND, Happening::Operation { id }),
            Some(outcome) => {
                if running.fault == Fault::HappensLate {
                    self.note(|| format!("cell {} {:?} happens late", running.cell, running.verb));
                }
                self.finish(id, outcome);
            }
        }
    }

    fn finish(&mut self, id: u64, outcome: Outcome) {
        let Some(running) = self.ops.get_mut(&id) else { return };
        let (fault, verb) = (running.fault, running.verb);
        running.outcome = Some(match fault {
            Fault::FailsAfter if verb == Verb::Suspend => {
                Outcome::Suspend(SuspendAnswer::Unclear { detail: "cut off".to_owned() })
            }
            Fault::FailsAfter => failed(Code::DockerFailed),
            _ => outcome,
        });
        let limit = verb.limit().0;
        let wait = match fault {
            Fault::ResultLate if self.dice.per_mille(500) => self.dice.between(limit / 2, limit + 5 * MINUTE),
            Fault::Lost | Fault::ResultLate => {
                self.ops.remove(&id);
                return;
            }
            _ => self.dice.between(0, 20),
        };
        self.later(wait, Happening::Result { id });
    }

    pub(crate) fn result(&mut self, id: u64) {
        let Some(Running { life, cell, op, verb, asked_at, outcome: Some(outcome), .. }) =
            self.ops.remove(&id)
        else {
            return;
        };
        let Some(present) = self.life.as_mut().filter(|present| present.number == life) else { return };
        let truth = &mut self.cells[cell];
        // The driver ends its part of an operation that is given up: it names no suspension any more.
        let awaited = truth.operation == Some(id) && self.at < asked_at + verb.limit().0;
        if truth.operation == Some(id) {
            truth.operation = None;
        }
        match &outcome {
            _ if !awaited => {}
            Outcome::Suspend(SuspendAnswer::Ready { .. }) => {
                present.suspensions.insert(cell, op.0);
            }
            Outcome::Resumed => {
                present.suspensions.remove(&cell);
                truth.watch.thaw_turn = None;
            }
            Outcome::Started { .. } | Outcome::Removed => {
                present.suspensions.remove(&cell);
            }
            Outcome::Ready => truth.watch.thawed_at = None,
            Outcome::Failed(_) if matches!(verb, Verb::Unpause | Verb::Resume) => {
                truth.watch.thaw_turn = None
            }
            Outcome::Failed(_) if verb == Verb::AwaitReady => truth.watch.thawed_at = None,
            _ => {}
        }
        self.give(agent::Event::Cell(cell_id(cell), Event::Done { op, outcome }));
    }

    /// What the engine shows now to one who knows what the agent knows.
    pub(crate) fn seen(&self, cell: usize) -> Seen {
        let memory = self.life.as_ref().and_then(|life| life.memory.cells.get(&cell_id(cell)));
        let creates = memory.map(|known| known.known_creates()).unwrap_or_default();
        let image = self.life.as_ref().and_then(|life| life.agent.cell(cell_id(cell)));
        self.seen_by(cell, &creates, image.map(|believed| &believed.spec().image))
    }

    fn seen_by(&self, cell: usize, creates: &[u64], image: Option<&ImageRef>) -> Seen {
        let truth = &self.cells[cell];
        if truth.run != Run::Absent && !creates.contains(&truth.made_by) {
            return Seen::Foreign { detail: format!("berth-user-{cell}") };
        }
        let fits = image == Some(&truth.image);
        let address = address(cell);
        match truth.run {
            Run::Absent => Seen::Absent,
            Run::Exited { code } => Seen::Exited { fits, code },
            Run::Up => Seen::Running { address, fits },
            Run::Paused => Seen::Paused { address, fits },
        }
    }

    /// Does it, as far as it can be done now. `None`: it is still under way.
    fn act(&mut self, id: u64, running: &Running) -> Option<Outcome> {
        let cell = running.cell;
        let image = if running.verb == Verb::Create { &running.making.image } else { &running.image };
        let seen = self.seen_by(cell, &running.creates, Some(image));
        if running.verb == Verb::Look {
            return Some(Outcome::Looked(seen));
        }
        if matches!(seen, Seen::Foreign { .. }) && running.verb != Verb::AwaitReady {
            if !self.is_late(running) {
                self.broken("i", &format!("the container of cell {cell} is ours and is not known any more"));
            }
            return Some(failed(Code::NotOurs));
        }
        Some(match (running.verb, seen) {
            (Verb::Create, seen) => self.create(running, &seen),
            (Verb::Save, Seen::Absent | Seen::Exited { .. }) => Outcome::Saved,
            (Verb::Start, Seen::Exited { .. }) => {
                self.start(cell);
                Outcome::Started { address: address(cell) }
            }
            (Verb::Start, Seen::Running { address, .. }) => Outcome::Started { address },
            (Verb::Observe, Seen::Running { .. }) => Outcome::Observed(self.observe(id, running)?),
            (Verb::Push, Seen::Paused { .. }) => self.push(id, running),
            (Verb::Pause, Seen::Running { .. }) => {
                self.check_rest(running);
                self.set_run(cell, Run::Paused);
                Outcome::Paused
            }
            (Verb::Pause, Seen::Paused { .. }) => Outcome::Paused,
            (Verb::Unpause, Seen::Paused { .. }) => {
                self.cells[cell].watch.thawed_at = Some(self.at);
                let touched = berth_shared::units::Bytes::mib(self.dice.between(40, 140));
                self.touch(cell, touched);
                self.set_run(cell, Run::Up);
                Outcome::Unpaused
            }
            (Verb::Unpause, Seen::Running { .. }) => Outcome::Unpaused,
            (Verb::AwaitReady, seen) => return self.await_ready(running, &seen),
            (Verb::Suspend, seen) => Outcome::Suspend(self.suspend(running, &seen)?),
            (Verb::Resume, seen) => {
                self.resume(running, &seen);
                Outcome::Resumed
            }
            (Verb::Stop, Seen::Running { .. }) => return self.stop(id, running),
            (Verb::Stop | Verb::KillFrozen, Seen::Exited { code, .. }) => Outcome::Ended { code },
            (Verb::KillFrozen, Seen::Paused { .. }) => {
                self.check_kill(running);
                self.container_ends(cell, self.cells[cell].run_number, 137);
                Outcome::Ended { code: 137 }
            }
            _ => failed(Code::DockerFailed),
        })
    }

    fn create(&mut self, running: &Running, seen: &Seen) -> Outcome {
        let truth = &mut self.cells[running.cell];
        match seen {
            Seen::Running { fits: false, .. } | Seen::Paused { fits: false, .. } => {
                return failed(Code::DockerFailed);
            }
            Seen::Running { .. } | Seen::Paused { .. } | Seen::Exited { fits: true, .. } => {
                return Outcome::Created { by: truth.made_by };
            }
            Seen::Exited { .. } if running.making.other == OtherImage::Left => {
                return Outcome::Created { by: truth.made_by };
            }
            Seen::Exited { .. } if running.making.other == OtherImage::Told => return Outcome::OtherImage,
            _ => {}
        }
        truth.made_by = running.op.0;
        truth.image = running.making.image.clone();
        truth.run = Run::Exited { code: 0 };
        Outcome::Created { by: running.op.0 }
    }

    /// What the kernel shows of its processes: those of a workload that is at work use CPU, whatever it says of itself.
    /// `None`: it was thinned, and takes back for a second what it needs.
    fn observe(&mut self, id: u64, running: &Running) -> Option<Observation> {
        let (now, cell) = (self.at, running.cell);
        if let Some(before) = running.thinned {
            let needed = berth_shared::units::Bytes::mib(self.dice.between(60, 120));
            self.touch(cell, needed);
            let truth = &self.cells[cell];
            let (resident, swapped) = (truth.resident, truth.swapped);
            let thinned = Some(Pushed { before, resident, swapped, took: Millis(0) });
            let cpu_percent = Some(2);
            return Some(Observation {
                cpu_percent,
                resident: Some(resident),
                thinned,
                ..Observation::default()
            });
        }
        let truth = &mut self.cells[cell];
        // It was looked at from the beginning of the operation until now.
        truth.watch.observed_at = running.asked_at;
        let work = &truth.work;
        let works = work.busy_until > now || (work.hidden.0 <= now && now < work.hidden.1);
        let resident = truth.resident;
        if running.thins && !works {
            self.thin_out(cell);
            if let Some(running) = self.ops.get_mut(&id) {
                running.thinned = Some(resident);
            }
            return None;
        }
        let cpu_percent = Some(if works { 90 } else { 2 });
        Some(Observation { cpu_percent, resident: Some(resident), ..Observation::default() })
    }

    fn push(&mut self, id: u64, running: &Running) -> Outcome {
        let cell = running.cell;
        let before = self.cells[cell].resident;
        let wanted = running.fault != Fault::Short;
        if wanted {
            self.check_room(running, before);
        }
        self.push_out(cell, wanted);
        if let Some(running) = self.ops.get_mut(&id) {
            running.moved = true;
        }
        let truth = &self.cells[cell];
        let took = Millis(self.at - running.asked_at);
        Outcome::Pushed(Pushed { before, resident: truth.resident, swapped: truth.swapped, took })
    }

    /// Does nobody wait for it any more?
    pub(crate) fn is_late(&self, running: &Running) -> bool {
        running.fault == Fault::HappensLate
            || self.life.as_ref().is_none_or(|life| life.number != running.life)
            || self.at >= running.asked_at + running.verb.limit().0
    }

    /// `None`: the agent died over it.
    fn suspend(&mut self, running: &Running, seen: &Seen) -> Option<SuspendAnswer> {
        let (now, cell) = (self.at, running.cell);
        let unclear = || Some(SuspendAnswer::Unclear { detail: "no answer".to_owned() });
        if !matches!(seen, Seen::Running { .. }) {
            return unclear();
        }
        // Before the handshake the driver compares the list that it holds with the scheduler's own word.
        let jobs = &self.cells[cell].jobs;
        if jobs.told != jobs.version && self.cells[cell].work.ready_at <= now {
            self.list_heard(cell);
            self.life.as_ref()?;
        }
        let odd = self.strikes(30);
        let short = self.strikes(200);
        if short || odd {
            self.excuse_cell(cell, FOLLOWS);
        }
        let lease = if short { self.dice.between(5, 40) * SECOND } else { LEASE };
        let truth = &mut self.cells[cell];
        let busy = truth.work.busy_until > now || !truth.gate.open.is_empty();
        if truth.work.ready_at > now || truth.work.draining || odd {
            return unclear();
        }
        if busy {
            let retry_after = Some(Millis(20 * SECOND));
            return Some(SuspendAnswer::Busy { blockers: "embedded-run".to_owned(), retry_after });
        }
        let run = truth.run_number;
        truth.work.suspended = Some((running.op.0, now + lease));
        self.later(lease, Happening::LeaseEnds { cell, run });
        Some(SuspendAnswer::Ready { lease: Millis(lease) })
    }

    fn resume(&mut self, running: &Running, seen: &Seen) {
        let cell = running.cell;
        if !matches!(seen, Seen::Running { .. }) {
            return;
        }
        // Named by the suspension that the driver knows, or by asking the same *prepare* again.
        let named = running.suspension.or(running.last_suspend);
        let work = &mut self.cells[cell].work;
        if work.suspended.is_some_and(|(op, _)| Some(op) == named) {
            work.suspended = None;
            self.goes_on(cell);
        }
    }

    fn await_ready(&mut self, running: &Running, seen: &Seen) -> Option<Outcome> {
        match seen {
            Seen::Exited { code, .. } => return Some(Outcome::Ended { code: *code }),
            Seen::Absent => return Some(failed(Code::CellExited)),
            Seen::Running { .. } if self.cells[running.cell].work.ready_at <= self.at => {
                return Some(Outcome::Ready);
            }
            _ => {}
        }
        (self.at >= running.asked_at + READY_MAX).then(|| failed(Code::ImageNeverReady))
    }

    fn stop(&mut self, id: u64, running: &Running) -> Option<Outcome> {
        let cell = running.cell;
        if !running.signalled {
            if let Some(known) = self.ops.get_mut(&id) {
                known.signalled = true;
            }
            self.check_stop(running);
            // One that did not get ready is stopped, too, and its start goes on.
            let rests = self.believed(cell) == Some(CellState::Stopping) && !self.is_late(running);
            self.cells[cell].watch.ends_as_meant |= rests;
            self.cells[cell].work.draining = true;
            let run = self.cells[cell].run_number;
            let wait = self.dice.between(800, 5 * SECOND);
            self.later(wait, Happening::Drain { cell, run, until: self.at + STOP_GRACE });
        }
        None
    }
}
