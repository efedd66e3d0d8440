//! Snapshots as the driver sees them: what the coordinator says of repositories, workers begun and ended on the word of
//! [`berth_node_agent_core::snapshots`], what they made journaled, then told until there is a final word on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_daemon::exit::chain;
use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{self, OpId};
use berth_node_agent_core::heads::{self, Heads, Next};
use berth_node_agent_core::may_wake::bearer_of;
use berth_node_agent_core::memory::{Record, Step, Untold};
use berth_node_agent_core::snapshots::{Effect, End, Event, Known, Snapshots as Machine};
use berth_shared::cell::CellState;
use berth_shared::ids::{CellId, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::{Bucket, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome};
use berth_shared::time::{BootMs, UnixMs};
use berth_shared::wire::{CommandOutcome, NodeFrame, SNAPSHOTS_SINCE};
use berth_snapshot::{Labels, Taken};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{Driver, Input, Turn, now, random};
use crate::failpoint;
use crate::hands::{Hands, Job};
use crate::reading::May;
use crate::runtime::Runtime;
use crate::snapshots::{Access, Files, Take};
use crate::store::{Store, StoreError};

/// What the driver holds of snapshots.
pub(super) struct Side {
    machine: Machine,
    pub(super) heads: Heads,
    /// Does the coordinator of the session understand what is told of snapshots?
    listens: bool,
    /// The newest worker of each cell, with its number: an older one's end or cancellation is not its.
    workers: BTreeMap<CellId, (u64, AbortHandle)>,
    /// Why the newest try failed, until one succeeds.
    failed: BTreeMap<CellId, Problem>,
}

impl Side {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            machine: Machine::new(at_once),
            heads: Heads::default(),
            listens: false,
            workers: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<BootMs> {
        self.machine.next_deadline()
    }
}

/// The end of a worker.
#[derive(Debug)]
pub struct Ended {
    /// Which run of the machine's; `None`: it was a part of a restore, or of a start with another image.
    pub run: Option<u64>,
    /// What was to be taken.
    pub take: Box<Take>,
    /// What came of it.
    pub outcome: Result<Taken, Problem>,
    /// Who goes on once that is written.
    pub written: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl<R: Runtime> Driver<R> {
    /// A session is open.
    pub(super) fn snapshots_welcomed(&mut self, version: u16) {
        self.snapshots.heads.welcomed();
        self.snapshots.listens = version >= SNAPSHOTS_SINCE;
        self.tell_snapshots();
    }

    /// The coordinator says where snapshots go.
    pub(super) fn bucket_named(&mut self, bucket: Bucket, turn: &mut Turn) {
        let every = bucket.every;
        self.snapshots.heads.bucket_named(bucket);
        self.has_bucket(true, turn);
        self.step_snapshots(Event::Every(every), turn);
        self.know_repositories(turn);
    }

    fn has_bucket(&mut self, has: bool, turn: &mut Turn) {
        let held = self.store.as_ref().is_some_and(|store| store.memory().repositories.has_bucket);
        if held != has {
            turn.records.push(Record::Step(Step::Bucket(has)));
        }
        self.step(agent::Event::Bucket(has), turn);
    }

    /// The coordinator says where users' repositories are, and what is in them.
    pub(super) fn repositories_told(&mut self, users: Vec<UserRepository>, turn: &mut Turn) {
        self.snapshots.heads.repositories(users);
        self.know_repositories(turn);
    }

    /// Behind a desired state: what is known of repositories by now is all that there is to know.
    pub(super) fn snapshots_desired(&mut self, turn: &mut Turn) {
        if !self.snapshots.heads.desired(&self.agent, self.online) {
            self.has_bucket(false, turn);
        }
        self.know_repositories(turn);
    }

    /// What follows from what is known of repositories: where each cell's data is, and whether it can be snapshotted.
    pub(super) fn know_repositories(&mut self, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let data = self.snapshots.heads.data(&self.agent, memory);
        if !data.is_empty() {
            self.step(agent::Event::Data(data), turn);
        }
        let cells: Vec<CellId> = self.agent.cells().map(|cell| cell.spec().cell).collect();
        for cell in cells {
            let writable = self.is_writable(cell);
            self.step_snapshots(Event::Writable { cell, writable }, turn);
        }
    }

    fn is_writable(&self, cell: CellId) -> bool {
        self.agent.cell(cell).is_some_and(|cell| self.snapshots.heads.is_writable(cell))
    }

    pub(super) fn access(&self, cell: CellId) -> Option<Access> {
        let (bucket, repository, orphan) = self.snapshots.heads.access(&self.agent, cell)?;
        Some(Access { bucket, repository, orphan })
    }

    /// Whoever has a token of the user may read the user's own repository, whatever the cell is doing: only what is known
    /// here is asked, and nothing of the cell.
    pub(super) fn may_read(&self, May { cell, token, answer }: May) {
        // Whoever asked may be gone; then nobody misses the answer.
        let _ = answer.send(self.reading_of(cell, &token));
    }

    /// When the newest snapshot of a cell was taken, as far as that is known here.
    pub(super) fn newest_taken_at(&self, id: CellId) -> Option<UnixMs> {
        let memory = self.store.as_ref().map(Store::memory);
        let kept = memory.and_then(|memory| memory.repositories.cells.get(&id));
        let head = || self.snapshots.heads.of(self.agent.cell(id)?)?.head.as_ref();
        kept.and_then(|kept| kept.newest.as_ref()).or_else(head).map(|newest| newest.taken_at)
    }

    fn reading_of(&self, id: CellId, token: &Secret) -> Result<(Access, u32), Problem> {
        let no = |code, detail: &str| Problem::new(code, detail);
        let stranger = || no(Code::Unauthorized, "no token of this user");
        let cell = self.agent.cell(id).filter(|cell| !cell.is_retired()).ok_or_else(stranger)?;
        bearer_of(&cell.spec().bearers, token.expose()).ok_or_else(stranger)?;
        if cell.spec().quarantined {
            return Err(no(Code::Quarantined, "the cell is quarantined by an operator"));
        }
        if self.snapshots.heads.is_off() {
            return Err(no(Code::SnapshotsOff, "there is no bucket for snapshots"));
        }
        let unknown =
            || no(Code::RepositoryUnknown, "the node was not told yet where the user's snapshots are");
        let access = self.access(id).ok_or_else(unknown)?;
        let slot = self.store.as_ref().and_then(|store| store.memory().cells.get(&id)?.slot);
        Ok((access, self.hands.pool.uid(slot.ok_or_else(unknown)?)))
    }

    /// The lease is over or held again: what is begun from now on goes elsewhere.
    pub(super) fn snapshots_begin_anew(&mut self, turn: &mut Turn) {
        let cells: Vec<CellId> = self.agent.cells().map(|cell| cell.spec().cell).collect();
        for cell in cells {
            self.step_snapshots(Event::Writable { cell, writable: false }, turn);
            // What was taken aside stands for nothing in the user's own repository.
            if self.standing(cell).is_some_and(|(_, known, _)| known.dirty) {
                self.step_snapshots(Event::Dirtied(cell), turn);
            }
        }
        self.know_repositories(turn);
    }

    /// The machine hears what cells do now.
    pub(super) fn snapshots_follow(&mut self, cells: &BTreeSet<CellId>, turn: &mut Turn) {
        for id in cells {
            let Some((state, known, writable)) = self.standing(*id) else {
                self.step_snapshots(Event::Gone(*id), turn);
                self.snapshots.failed.remove(id);
                self.snapshots.heads.gone(*id);
                continue;
            };
            self.step_snapshots(Event::State { cell: *id, state, known }, turn);
            self.step_snapshots(Event::Writable { cell: *id, writable }, turn);
        }
        // One that came back in the turn in which it went may have been told of already.
        let asks = |id: &CellId| self.agent.cell(*id).is_some_and(cell::Cell::awaits_repository);
        if cells.iter().any(asks) {
            self.know_repositories(turn);
        }
    }

    fn standing(&self, id: CellId) -> Option<(CellState, Known, bool)> {
        let cell = self.agent.cell(id)?;
        let memory = self.store.as_ref()?.memory();
        let known = heads::known(memory, id, (self.hands.wall)());
        Some((cell.state(), known, self.is_writable(id)))
    }

    pub(super) fn step_snapshots(&mut self, event: Event, turn: &mut Turn) {
        for effect in self.snapshots.machine.step(now(self.hands.wall).boot, event, random()) {
            if let Effect::Begin { cell, run, online } = effect {
                match self.plan_take(cell, online, turn) {
                    Some(take) => turn.takes.push((run, take)),
                    None => turn.snapshots.push(Effect::Begin { cell, run, online }),
                }
            } else {
                turn.snapshots.push(effect);
            }
        }
    }

    /// The next snapshot of a cell. Its number is written before it is begun.
    pub(super) fn plan_take(&mut self, cell: CellId, online: bool, turn: &mut Turn) -> Option<Take> {
        let memory = self.store.as_ref()?.memory();
        let next = self.snapshots.heads.next(&self.agent, memory, cell)?;
        let machine = self.agent.cell(cell)?;
        let spec = machine.spec();
        turn.records.push(next.begun());
        let Next { bucket, repository, aside: orphan, seq, parent } = next;
        let generation = repository.generation;
        let access = Access { bucket, repository, orphan };
        let labels = Labels {
            user: spec.user,
            cell,
            generation,
            sequence: seq,
            image: machine.image_of_data().to_string(),
            workload: spec.workload,
        };
        Some(Take { access, labels, parent, online, at: (self.hands.wall)() })
    }

    /// Carries out what the machine wants, once the turn's records are written.
    pub(super) fn carry_out_snapshots(&mut self, turn: Turn, room: bool) {
        let Turn { takes, taken, snapshots: effects, .. } = turn;
        // In the bucket it is; but nobody would ever hear of it, so another one is taken when there is room.
        for cell in taken.into_iter().filter(|_| !room) {
            self.put_back("snapshot", Input::SnapshotUnwritten(cell));
        }
        // First who is to end: whoever begins in the same turn has the same cell.
        for effect in &effects {
            if let Effect::Cancel { cell, run } = effect {
                self.cancel_take(*cell, *run);
            }
        }
        for (run, take) in takes {
            // A number that is not written could be used twice.
            if room { self.begin_take(run, take) } else { self.not_begun(take.labels.cell, run) }
        }
        for effect in effects {
            match effect {
                // Its repository was told of, and is not any more.
                Effect::Begin { cell, run, .. } => self.not_begun(cell, run),
                Effect::Cancel { .. } => {}
                Effect::Answer { cell, asker, taken } => {
                    let full = || Problem::new(Code::JournalFull, "what came of it could not be written");
                    let outcome = if room { self.answer_of(cell, taken) } else { Err(full()) };
                    self.put_back("snapshot", Input::SnapshotAnswered { seq: asker, outcome });
                }
            }
        }
    }

    fn cancel_take(&mut self, cell: CellId, run: u64) {
        if let Some(worker) = self.take_worker(cell, run) {
            worker.abort();
            self.metrics.snapshot("cancelled");
        }
    }

    /// The worker of this number, if it is the cell's newest.
    fn take_worker(&mut self, cell: CellId, run: u64) -> Option<AbortHandle> {
        self.snapshots.workers.get(&cell).filter(|(of, _)| *of == run)?;
        self.snapshots.workers.remove(&cell).map(|(_, worker)| worker)
    }

    /// Through the queue, so that no machine is re-entered; a full one is waited for aside.
    fn put_back(&self, what: &'static str, input: Input) {
        let loopback = self.loopback.clone();
        self.tasks.spawn_client(what, async move {
            // The driver is gone only when the agent ends.
            let _ = loopback.send(input).await;
        });
    }

    fn not_begun(&self, cell: CellId, run: u64) {
        self.put_back("snapshot", Input::SnapshotNotBegun { cell, run });
    }

    fn begin_take(&mut self, run: u64, take: Take) {
        let cell = take.labels.cell;
        let Some(job) = self.job(cell, OpId(0)) else { return self.not_begun(cell, run) };
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        failpoint::SNAPSHOT_BEGUN.reach();
        let worker = self.tasks.spawn_client("snapshot", async move {
            let outcome = match files_there(&hands, &job).await {
                Ok(files) => hands.snapshots.take(&files, &take).await,
                Err(problem) => Err(problem),
            };
            failpoint::SNAPSHOT_TAKEN.reach();
            let ended = Ended { run: Some(run), take: Box::new(take), outcome, written: None };
            // The driver is gone only when the agent ends.
            let _ = loopback.send(Input::SnapshotEnded(ended)).await;
        });
        if let Some((_, older)) = self.snapshots.workers.insert(cell, (run, worker)) {
            older.abort();
        }
    }

    fn answer_of(&self, cell: CellId, taken: bool) -> Result<CommandOutcome, Problem> {
        let memory = self.store.as_ref().map(Store::memory);
        let kept = memory.and_then(|memory| memory.repositories.cells.get(&cell));
        let head = || {
            let told = self.agent.cell(cell).and_then(|cell| self.snapshots.heads.of(cell));
            told.and_then(|told| told.head.clone())
        };
        // All data of an archived cell is in its snapshot.
        let stands = taken || kept.is_some_and(|kept| kept.archived.is_some());
        match kept.and_then(|kept| kept.newest.clone()).or_else(head).filter(|_| stands) {
            Some(newest) => Ok(CommandOutcome::Snapshot(Box::new(newest))),
            None => Err(self.snapshots.failed.get(&cell).cloned().unwrap_or_else(|| {
                Problem::new(Code::RepositoryUnknown, "the node was not told where the user's snapshots go")
            })),
        }
    }

    pub(super) fn snapshot_not_begun(&mut self, cell: CellId, run: u64, turn: &mut Turn) {
        self.step_snapshots(Event::Done { cell, run, end: End::Failed }, turn);
    }

    /// A worker has ended: what it made is written before anybody is told.
    pub(super) fn snapshot_ended(&mut self, ended: Ended, turn: &mut Turn) {
        let Ended { run, take, outcome, written } = ended;
        turn.stored.extend(written);
        let cell = take.labels.cell;
        let state = self.agent.cell(cell).map(cell::Cell::state);
        let at_rest = self.snapshots.machine.took_at_rest(cell, state, run, take.online);
        let made = outcome.and_then(|taken| Ok((take.snapshot(&taken)?, taken)));
        let end = match made {
            Ok((snapshot, taken)) => {
                self.snapshots.failed.remove(&cell);
                self.note_taken(&take, snapshot, &taken, at_rest, turn);
                End::Taken
            }
            Err(problem) => {
                let (user, detail) = (take.labels.user, &problem.detail);
                tracing::warn!(%cell, %user, detail, "no snapshot of the cell could be taken");
                self.metrics.snapshot("failed");
                self.snapshots.failed.insert(cell, problem);
                End::Failed
            }
        };
        if let Some(run) = run {
            let _ended = self.take_worker(cell, run);
            self.step_snapshots(Event::Done { cell, run, end }, turn);
        }
    }

    fn note_taken(
        &self,
        take: &Take,
        snapshot: Option<Snapshot>,
        taken: &Taken,
        at_rest: bool,
        turn: &mut Turn,
    ) {
        let (cell, user) = (take.labels.cell, take.labels.user);
        let told = snapshot.is_some();
        match &snapshot {
            None => {
                self.metrics.snapshot("unchanged");
                tracing::debug!(%cell, %user, "nothing has changed since the newest snapshot");
            }
            Some(snapshot) => self.tell_taken(take, snapshot, taken),
        }
        turn.records.extend(heads::taken(user, cell, snapshot, at_rest, take.access.orphan));
        turn.taken.push(cell);
        turn.tells_snapshots |= told;
    }

    fn tell_taken(&self, take: &Take, snapshot: &Snapshot, taken: &Taken) {
        let (cell, user) = (take.labels.cell, take.labels.user);
        self.metrics.snapshot("taken");
        self.metrics.snapshot_took((self.hands.wall)().since(take.at));
        let (id, seq, bytes, new) = (snapshot.id, snapshot.seq, snapshot.bytes, taken.bytes_new);
        tracing::info!(%cell, %user, snapshot = %id, seq, %bytes, new, online = take.online, "snapshot taken");
        if taken.skips.is_incomplete() || taken.skips.databases_torn > 0 {
            let names = taken.skips.names.join(", ");
            tracing::warn!(%cell, %user, snapshot = %id, names, torn = taken.skips.databases_torn,
                "the snapshot lacks files that could not be read, or has databases that could not be copied in one piece");
            self.metrics.snapshot("incomplete");
        }
    }

    /// Tells the coordinator of snapshots that it has had no final word on.
    pub(super) fn tell_snapshots(&mut self) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        if !self.snapshots.listens {
            return;
        }
        let at = now(self.hands.wall).boot;
        for Untold { user, snapshot, aside } in self.snapshots.heads.due(at, memory) {
            let id = snapshot.id;
            let frame = NodeFrame::SnapshotTaken { user, snapshot: Box::new(snapshot), aside };
            if self.outgoing.try_send(frame).is_err() {
                return; // Told with the next heartbeat.
            }
            self.snapshots.heads.told(at, id);
        }
    }

    /// The coordinator's word on a snapshot.
    pub(super) fn snapshot_judged(
        &mut self,
        user: UserId,
        id: SnapshotId,
        outcome: SnapshotOutcome,
        turn: &mut Turn,
    ) {
        match &outcome {
            SnapshotOutcome::Later(Problem { code, detail }) => {
                tracing::info!(%user, snapshot = %id, %code, detail, "a snapshot is told of again later");
            }
            SnapshotOutcome::Head | SnapshotOutcome::Kept => {}
            SnapshotOutcome::Orphan { current } => {
                let current = current.map(|generation| generation.to_string());
                tracing::warn!(%user, snapshot = %id, current, "a snapshot is of an assignment that is not in force");
            }
            SnapshotOutcome::Refused(Problem { code, detail }) => {
                tracing::error!(%user, snapshot = %id, %code, detail, "the coordinator does not take a snapshot down");
            }
        }
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        turn.records.extend(self.snapshots.heads.judged(memory, id, &outcome));
    }

    /// An operator wants a snapshot now.
    pub(super) fn snapshot_asked(&mut self, seq: u64, cell: CellId, turn: &mut Turn) {
        self.step_snapshots(Event::Asked { cell, asker: seq }, turn);
    }

    pub(super) fn show_snapshots(&self) {
        let at = now(self.hands.wall).boot;
        self.metrics.snapshots(&self.snapshots.machine, at);
    }
}

/// The folder of a cell that has a disk: one that is not there any more is not made anew, HEAD would be an empty folder.
pub(super) async fn files_there<R: Runtime>(hands: &Hands<R>, job: &Job) -> Result<Files, Problem> {
    let failed = |detail: String| Problem::new(Code::SnapshotFailed, detail);
    if !hands.quota.cells().map_err(|error| failed(chain(&error)))?.contains(&job.spec.cell) {
        return Err(failed("the cell has no disk here".to_owned()));
    }
    files(hands, job).await.map_err(|error| failed(error.detail))
}

/// The cell's folder, mounted.
pub(super) async fn files<R: Runtime>(hands: &Hands<R>, job: &Job) -> Result<Files, Problem> {
    let (uid, folder) = hands.disk(job).await?;
    Ok(Files { cell: job.spec.cell, uid, folder })
}
