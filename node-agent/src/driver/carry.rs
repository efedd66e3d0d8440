//! The second half of a turn: its records are written, then its effects are carried out. Operations run as tasks of
//! their own and report through the driver's queue, so that the machine is never re-entered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_daemon::exit::chain;
use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{self, OpId, OtherImage, Outcome, Verb};
use berth_node_agent_core::memory::{Intent, Record};
use berth_shared::cell::CellState;
use berth_shared::door::{RouteState, ToIngress};
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::wire::{CommandOutcome, NodeFrame};
use futures_util::StreamExt as _;

use super::{Driver, Input, Turn, archive, desired, restore, save, schedule};
use crate::failpoint::{self, Place};
use crate::hands::Job;
use crate::runtime::Runtime;
use crate::store::{Store, StoreError};

/// What a thawed cell has touched is noted so long behind its being up: it has answered by then, and begun nothing else.
const NOTED_AFTER: Duration = Duration::from_millis(100);

/// How many cells are looked at at a time where all are: each look holds a connection to the engine and its whole answer, and
/// the allocator keeps most of what was ever held at a time.
const LOOKS_AT_ONCE: usize = 8;

impl<R: Runtime> Driver<R> {
    /// Writes the turn's records, then carries its effects out.
    pub(super) async fn finish(&mut self, mut turn: Turn) -> Result<(), StoreError> {
        let written = self.write(std::mem::take(&mut turn.records)).await;
        if let Err(error) = &written {
            tracing::error!(error = chain(error), "the journal was not written");
            self.metrics.journal_failures.inc();
        }
        let room = written.is_ok();
        let fatal = written.as_ref().is_err_and(StoreError::is_fatal);
        for answer in turn.stored.drain(..) {
            // Whoever asked may be gone; then nobody misses the answer.
            let _ = answer.send(written.as_ref().copied().map_err(StoreError::again));
        }
        if fatal {
            return written;
        }
        for effect in turn.effects.drain(..) {
            self.carry_out(effect, room);
        }
        let (tells_snapshots, tells_holding) = (turn.tells_snapshots && room, turn.tells_holding && room);
        self.carry_out_snapshots(turn, room);
        if tells_snapshots {
            self.tell_snapshots();
        }
        if tells_holding {
            self.tell_holding();
        }
        Ok(())
    }

    async fn write(&mut self, records: Vec<Record>) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let Some(mut store) = self.store.take() else { return Err(StoreError::Gone) };
        let lost = self.tasks.blocking("journal", move || {
            let written = store.append(records);
            (store, written)
        });
        let Ok((store, written)) = lost.await else {
            // A panic, which ends the process by itself, or the agent's end: this task goes with it.
            return std::future::pending().await;
        };
        self.store = Some(store);
        written
    }

    fn carry_out(&mut self, effect: agent::Effect, room: bool) {
        match effect {
            agent::Effect::Cell(cell, effect) => self.carry_out_for(cell, effect, room),
            agent::Effect::CommandDone { seq, outcome } => self.answer(seq, outcome),
            agent::Effect::ReadLogs { seq, cell, lines } => self.read_logs(seq, cell, lines),
            // Seen to before, with what it leads to.
            agent::Effect::Snapshot { .. } => {}
            agent::Effect::Purge { seq, cell, generation } => self.purge(seq, cell, generation),
            agent::Effect::LeaseHeld(held) => self.lease_held(held),
            // Written before.
            agent::Effect::Lease(_) => {}
            agent::Effect::Changed(cell) => {
                self.changed.insert(cell);
                self.metrics.cells(self.agent.cells());
                self.news.notify_one();
            }
            agent::Effect::Gone(cell) => {
                self.wakes.over(cell);
                self.ready_seen.remove(&cell);
                self.metrics.cells(self.agent.cells());
                // It may have been cut off to its end; its slot is another's from now on.
                if let Some(memory) = self.store.as_ref().map(Store::memory) {
                    self.cut_off(desired::quarantined(memory));
                }
                // Its disk may be one that is left behind from now on.
                self.tell_holding();
            }
        }
    }

    fn carry_out_for(&mut self, cell: CellId, effect: cell::Effect, room: bool) {
        match effect {
            cell::Effect::Do { op, verb: Verb::Fence } => self.fence(cell, op),
            cell::Effect::Do { op, verb } => {
                let recorded = matches!(verb, Verb::Restore | Verb::Save | Verb::Archive);
                if !room && (recorded || Intent::of(cell, op, verb).is_some()) {
                    let problem = Problem::new(Code::JournalFull, "the intent could not be written");
                    return self.report(cell, op, verb, Outcome::Failed(problem));
                }
                failpoint::reach(Place::Intent, verb);
                self.begin(cell, op, verb);
            }
            cell::Effect::Route(_) => {
                // The newest state counts, whatever it was when the effect was made.
                let Some(route) = self.agent.cell(cell).map(cell::Cell::table_row) else { return };
                let is_up = matches!(route.state, RouteState::Up(_));
                self.wakes.routed(cell, route.state);
                self.tell_door(ToIngress::Set(route));
                if let Some(seen) = self.ready_seen.remove(&cell).filter(|_| is_up) {
                    self.metrics.ready_to_route_seconds.observe(seen.elapsed().as_secs_f64());
                }
            }
            cell::Effect::Withdraw => {
                self.wakes.over(cell);
                self.tell_door(ToIngress::Remove(cell));
            }
            cell::Effect::Progress(stage) => self.tell_door(ToIngress::Progress { cell, stage }),
            cell::Effect::Refuse { problem, retry_after } => {
                self.wakes.over(cell);
                self.tell_door(ToIngress::Refused { cell, problem, retry_after });
            }
            cell::Effect::Note(note) => {
                if matches!(note, cell::Note::Waking(_)) {
                    self.end_proof(cell);
                }
                if let cell::Note::Up { from, .. } = note {
                    self.wakes.over(cell);
                    if from == cell::Depth::Frozen {
                        self.note_touched(cell);
                    }
                }
                self.metrics.note(&note);
                crate::notes::log(cell, self.agent.cell(cell).map(|cell| &cell.spec().slug), &note);
            }
            // Written before; answers and changes are the agent machine's.
            cell::Effect::Journal(_)
            | cell::Effect::Report(_)
            | cell::Effect::Answer { .. }
            | cell::Effect::Changed => {}
        }
    }

    fn fence(&mut self, cell: CellId, op: OpId) {
        self.last_fence += 1;
        let fence = self.last_fence;
        self.fences.insert(fence, (cell, op));
        failpoint::reach(Place::Intent, Verb::Fence);
        self.tell_door(ToIngress::Fence { cell, fence });
        if self.door.is_none() {
            self.fences.remove(&fence);
            let problem = Problem::new(Code::Internal, "the front door is not connected");
            self.report(cell, op, Verb::Fence, Outcome::Failed(problem));
        }
    }

    pub(super) fn job(&self, cell: CellId, op: OpId) -> Option<Job> {
        let machine = self.agent.cell(cell)?;
        let memory = self.store.as_ref()?.memory();
        let remembered = memory.cells.get(&cell).cloned().unwrap_or_default();
        // Where the journal does not know of the retirement, nobody has said that the user was removed.
        let keep_disk = match memory.retiring.get(&cell) {
            Some(_) => memory.keeps_disk_of(cell),
            None => Some(machine.generation()),
        };
        Some(Job {
            spec: machine.spec().clone(),
            remembered,
            domain: self.domain.clone(),
            op,
            address: machine.address(),
            other_image: OtherImage::Told,
            wake_heard: self.wakes.since(cell),
            keep_disk,
            schedule_heard: machine.is_schedule_heard(),
            minds_schedule: machine.minds_schedule(),
            minds_channels: machine.minds_channels(),
            minds_owner: machine.minds_owner(),
            thins: machine.thins(),
        })
    }

    fn begin(&mut self, cell: CellId, op: OpId, verb: Verb) {
        let Some(mut job) = self.job(cell, op) else { return };
        match self.agent.cell(cell) {
            Some(machine) if matches!(verb, Verb::Create | Verb::Pull) => {
                let making = machine.making().clone();
                (job.spec.image, job.other_image) = (making.image, making.other);
            }
            Some(machine) if verb == Verb::Repair => {
                job.spec.image.clone_from(machine.image_of_data());
            }
            _ => {}
        }
        // What an operation sets of a container's swap is not to be changed by a step that ends behind it.
        self.cold.cut_off(cell);
        let (hands, loopback, metrics) =
            (Arc::clone(&self.hands), self.loopback.clone(), Arc::clone(&self.metrics));
        let stop = self.tasks.stopping();
        // Its own only: another operation of the cell may begin in the same turn, behind this one.
        let order = if verb == Verb::Restore { self.restores.remove(&cell) } else { None };
        let proof = if verb == Verb::Verify { self.proofs.remove(&cell) } else { None };
        let save = if verb == Verb::Save { self.saves.remove(&cell) } else { None };
        let task = self.tasks.spawn_client("operation", async move {
            let begun = Instant::now();
            let limit = verb.limit().to_std();
            let work = async {
                if let Some(refused) = schedule::survey(&hands, verb, &job, &loopback).await {
                    return refused;
                }
                match (verb, order, proof, save) {
                    (Verb::Restore, Some(order), _, _) => {
                        restore::restore(&hands, &job, order, &loopback).await
                    }
                    (Verb::Verify, _, Some(proof), _) => archive::prove(&hands, &job, proof).await,
                    (Verb::Save, _, _, Some(order)) => save::save(&hands, &job, order, &loopback).await,
                    (verb, _, _, _) => hands.carry_out(verb, job).await,
                }
            };
            let work = tokio::time::timeout(limit, Box::pin(work));
            // Whoever is found frozen at the next start is pushed out again: no end of the agent waits for a push.
            let work = match verb {
                Verb::Push => stop.run_until_cancelled_owned(work).await,
                _ => Some(work.await),
            };
            let outcome = match work {
                None => return,
                Some(Ok(outcome)) => outcome,
                Some(Err(_)) => {
                    Outcome::Failed(Problem::new(Code::DockerFailed, format!("{verb:?} took too long")))
                }
            };
            let ended = Instant::now();
            metrics.operation(verb, ended.duration_since(begun));
            failpoint::reach(Place::Done, verb);
            // The driver is gone only when the agent ends.
            let _ = loopback.send(Input::Done { cell, op, verb, outcome, ended }).await;
        });
        if let Some((_, given_up)) = self.running.insert(cell, (verb, task)) {
            given_up.abort();
        }
    }

    /// The cell is wanted: it waits for no proof, and no proof takes of what it needs.
    fn end_proof(&mut self, cell: CellId) {
        if let Some((Verb::Verify, proof)) = self.running.get(&cell) {
            proof.abort();
        }
    }

    /// Reports through the queue, so that the machine is never re-entered; a full queue is waited for aside.
    fn report(&self, cell: CellId, op: OpId, verb: Verb, outcome: Outcome) {
        let loopback = self.loopback.clone();
        let ended = Instant::now();
        self.tasks.spawn_client("report", async move {
            let _ = loopback.send(Input::Done { cell, op, verb, outcome, ended }).await;
        });
    }

    /// Beside whatever is under way, and behind the first request's answer.
    fn note_touched(&self, cell: CellId) {
        let Some(job) = self.job(cell, OpId(0)) else { return };
        let hands = Arc::clone(&self.hands);
        self.tasks.spawn_client("note", async move {
            tokio::time::sleep(NOTED_AFTER).await;
            hands.note_touched(&job).await;
        });
    }

    /// Looks at a cell on the engine's word, beside whatever is under way. Once at a time: what is asked for meanwhile comes after
    /// it.
    pub(super) fn look_aside(&mut self, cell: CellId) {
        let Some(job) = self.job(cell, OpId(0)) else { return };
        if !self.looks.begins(cell) {
            return;
        }
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.tasks.spawn_client("look", async move {
            // The driver is gone only when the agent ends.
            if let Ok(seen) = hands.look(&job).await {
                let _ = loopback.send(Input::Noticed(cell, seen)).await;
            }
            let _ = loopback.send(Input::LookedAside(cell)).await;
        });
    }

    /// Looks at every cell's container, some at a time. One pass at a time, too: what is asked for meanwhile comes after it.
    pub(super) fn look_at_all(&mut self) {
        if !self.looking.begins() {
            return;
        }
        let cells = self.agent.cells().map(|cell| cell.spec().cell);
        let jobs: Vec<(CellId, Job)> =
            cells.filter_map(|cell| Some((cell, self.job(cell, OpId(0))?))).collect();
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.tasks.spawn_client("look", async move {
            let look = async |(cell, job): (CellId, Job)| {
                if let Ok(seen) = hands.look(&job).await {
                    let _ = loopback.send(Input::Noticed(cell, seen)).await;
                }
            };
            futures_util::stream::iter(jobs).for_each_concurrent(LOOKS_AT_ONCE, look).await;
            let _ = loopback.send(Input::LookedAtAll).await;
        });
    }

    pub(super) fn probe_all(&self) {
        for machine in self.agent.cells().filter(|cell| cell.state() == CellState::Running) {
            let cell = machine.spec().cell;
            let Some(job) = self.job(cell, OpId(0)) else { continue };
            let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
            let dials_out = !machine.dials_out().is_empty();
            self.tasks.spawn_client("probe", async move {
                let alive = hands.is_alive(&job).await;
                let _ = loopback.send(Input::Probed(cell, alive)).await;
                // What keeps it from ever being asked about a rest may be gone.
                if dials_out && let Some(channels) = schedule::channels_of(&hands, &job).await {
                    let _ = loopback.send(Input::DialsOut(cell, channels)).await;
                }
            });
        }
    }

    pub(super) fn answer(&self, seq: u64, outcome: Result<CommandOutcome, Problem>) {
        if self.outgoing.try_send(NodeFrame::CommandDone { seq, outcome }).is_err() {
            // The coordinator asks again, and the agent remembers.
            tracing::warn!(seq, "an answer to the coordinator found no room");
        }
    }

    fn read_logs(&self, seq: u64, cell: CellId, lines: u32) {
        let Some(job) = self.job(cell, OpId(0)) else {
            return self.answer(seq, Err(Problem::new(Code::UnknownUser, "the cell is gone")));
        };
        let (hands, outgoing) = (Arc::clone(&self.hands), self.outgoing.clone());
        self.tasks.spawn_client("logs", async move {
            let outcome = hands.logs(&job, lines).await.map(CommandOutcome::Logs);
            let _ = outgoing.send(NodeFrame::CommandDone { seq, outcome }).await;
        });
    }
}
