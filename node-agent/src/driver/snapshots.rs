//! Snapshots as the driver sees them: what the coordinator says of repositories, workers begun and ended on the word of
//! [`berth_node_agent_core::snapshots`], what they made journaled, then told until there is a final word on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_daemon::exit::chain;
use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{self, OpId};
use berth_node_agent_core::may_wake::bearer_of;
use berth_node_agent_core::memory::{Memory, Record, Step, Untold};
use berth_node_agent_core::snapshots::{Effect, End, Event, Known, Snapshots as Machine};
use berth_shared::cell::CellState;
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::{Bucket, REPOSITORIES_MAX, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome};
use berth_shared::time::{BootMs, Millis};
use berth_shared::wire::{CommandOutcome, NodeFrame, SNAPSHOTS_SINCE};
use berth_snapshot::{Labels, Taken};
use tokio::task::AbortHandle;

use super::{Driver, Input, Turn, now, random};
use crate::failpoint;
use crate::hands::{Hands, Job};
use crate::reading::May;
use crate::runtime::Runtime;
use crate::snapshots::{Access, Files, Take};
use crate::store::Store;

/// A snapshot that was told of and has had no final word is told of again after so long.
const TOLD_AGAIN_AFTER: Millis = Millis::secs(60);

/// Most snapshots that are told of at a time, so that nothing else has to wait for room.
const TOLD_AT_A_TIME: usize = 64;

/// What the driver holds of snapshots.
pub(super) struct Side {
    machine: Machine,
    bucket: Option<Arc<Bucket>>,
    told: BTreeMap<UserId, Arc<UserRepository>>,
    /// Has the session that is open named a bucket?
    named: bool,
    /// It has not, and will not.
    off: bool,
    /// Does the coordinator of the session understand what is told of snapshots?
    listens: bool,
    told_at: BTreeMap<SnapshotId, BootMs>,
    /// What the coordinator has called HEAD since it told of the repository.
    accepted: BTreeMap<CellId, SnapshotId>,
    /// The coordinator has said that these are not in force.
    orphaned: BTreeSet<(CellId, Generation)>,
    /// The newest worker of each cell, with its number: an older one's end or cancellation is not its.
    workers: BTreeMap<CellId, (u64, AbortHandle)>,
    /// The newest number of a snapshot that was begun, whether or not that is written yet.
    begun: BTreeMap<CellId, (Generation, u64)>,
    /// Why the newest try failed, until one succeeds.
    failed: BTreeMap<CellId, Problem>,
}

impl Side {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            machine: Machine::new(at_once),
            bucket: None,
            told: BTreeMap::new(),
            named: false,
            off: false,
            listens: false,
            told_at: BTreeMap::new(),
            accepted: BTreeMap::new(),
            orphaned: BTreeSet::new(),
            workers: BTreeMap::new(),
            begun: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<BootMs> {
        self.machine.next_deadline()
    }

    /// Above all that this node has begun, and above HEAD: it may have been taken here before this disk was lost.
    fn next_seq(&mut self, memory: &Memory, repository: &UserRepository) -> u64 {
        let (cell, generation) = (repository.cell, repository.generation);
        let written = memory.repositories.next_seq(cell, generation);
        let newer = self.begun.get(&cell).filter(|(of, _)| *of == generation).map(|(_, seq)| seq + 1);
        let head = repository.head.as_ref().filter(|head| head.generation == generation);
        let above_head = head.map(|head| head.seq.saturating_add(1));
        let seq = written.max(newer.unwrap_or(0)).max(above_head.unwrap_or(0));
        self.begun.insert(cell, (generation, seq));
        seq
    }
}

/// The end of a worker.
#[derive(Debug)]
pub struct Ended {
    /// Which run of the machine's; `None`: it was a part of a restore.
    pub run: Option<u64>,
    /// What was to be taken.
    pub take: Box<Take>,
    /// What came of it.
    pub outcome: Result<Taken, Problem>,
}

impl<R: Runtime> Driver<R> {
    /// A session is open.
    pub(super) fn snapshots_welcomed(&mut self, version: u16) {
        self.snapshots.named = false;
        self.snapshots.listens = version >= SNAPSHOTS_SINCE;
        self.snapshots.told_at.clear();
        self.tell_snapshots();
    }

    /// The coordinator says where snapshots go.
    pub(super) fn bucket_named(&mut self, bucket: Bucket, turn: &mut Turn) {
        let every = bucket.every;
        self.snapshots.named = true;
        self.snapshots.off = false;
        self.snapshots.bucket = Some(Arc::new(bucket));
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
    pub(super) fn repositories_told(&mut self, mut users: Vec<UserRepository>, turn: &mut Turn) {
        users.truncate(REPOSITORIES_MAX);
        for user in users {
            self.snapshots.accepted.remove(&user.cell);
            self.snapshots.told.insert(user.user, Arc::new(user));
        }
        self.know_repositories(turn);
    }

    /// Behind a desired state: of users who do not live here nothing is kept, and a session that has named no bucket by
    /// now has none.
    pub(super) fn snapshots_desired(&mut self, turn: &mut Turn) {
        if !self.snapshots.named && self.online {
            self.snapshots.off = true;
            self.snapshots.bucket = None;
            self.snapshots.told.clear();
            self.has_bucket(false, turn);
        }
        let users: BTreeSet<UserId> = self.agent.cells().map(|cell| cell.spec().user).collect();
        self.snapshots.told.retain(|user, _| users.contains(user));
        self.know_repositories(turn);
    }

    /// What follows from what is known of repositories: where each cell's data is, and whether it can be snapshotted.
    pub(super) fn know_repositories(&mut self, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let mut data = vec![];
        let mut cells = vec![];
        for cell in self.agent.cells() {
            let id = cell.spec().cell;
            let told = self.repository_of(id);
            let head = told.map(|repository| repository.head.as_ref().map(|head| head.id));
            let head = head.or(self.snapshots.off.then_some(None));
            if head.is_some() && !cell.is_retired() {
                data.push((id, memory.data_of(id, head)));
            }
            cells.push(id);
        }
        if !data.is_empty() {
            self.step(agent::Event::Data(data), turn);
        }
        for cell in cells {
            let writable = self.is_writable(cell);
            self.step_snapshots(Event::Writable { cell, writable }, turn);
        }
    }

    /// May snapshots of the cell be taken? Not of a disk that its data is still to be put on: HEAD would be an empty folder.
    fn is_writable(&self, cell: CellId) -> bool {
        let fits = |cell: &cell::Cell| !cell.is_retired() && cell.has_its_data();
        self.agent.cell(cell).is_some_and(fits) && self.repository_of(cell).is_some()
    }

    /// The coordinator calls this snapshot HEAD.
    fn accept(&mut self, id: SnapshotId) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let mut untold = memory.repositories.untold.iter().filter(|untold| !untold.aside);
        if let Some(known) = untold.find(|untold| untold.snapshot.id == id) {
            self.snapshots.accepted.insert(known.snapshot.cell, id);
        }
    }

    /// Has it done so, and of no newer one since?
    pub(super) fn is_accepted(&self, cell: CellId, id: SnapshotId) -> bool {
        self.snapshots.accepted.get(&cell) == Some(&id)
    }

    /// The repository of a cell, where it was told for the assignment under which the cell is here.
    fn repository_of(&self, cell: CellId) -> Option<&Arc<UserRepository>> {
        let cell = self.agent.cell(cell)?;
        let told = self.snapshots.told.get(&cell.spec().user)?;
        let fits = told.cell == cell.spec().cell && told.generation == cell.generation();
        (fits && self.snapshots.bucket.is_some()).then_some(told)
    }

    pub(super) fn access(&self, cell: CellId) -> Option<Access> {
        let repository = Arc::clone(self.repository_of(cell)?);
        let stale = self.snapshots.orphaned.contains(&(cell, repository.generation));
        // Alone for longer than it may be, this node cannot know whether the user was given to another.
        let orphan = stale || !self.agent.lease().is_held();
        Some(Access { bucket: Arc::clone(self.snapshots.bucket.as_ref()?), repository, orphan })
    }

    /// Whoever has a token of the user may read the user's own repository, whatever the cell is doing: only what is known
    /// here is asked, and nothing of the cell.
    pub(super) fn may_read(&self, May { cell, token, answer }: May) {
        // Whoever asked may be gone; then nobody misses the answer.
        let _ = answer.send(self.reading_of(cell, &token));
    }

    fn reading_of(&self, id: CellId, token: &Secret) -> Result<(Access, u32), Problem> {
        let no = |code, detail: &str| Problem::new(code, detail);
        let stranger = || no(Code::Unauthorized, "no token of this user");
        let cell = self.agent.cell(id).filter(|cell| !cell.is_retired()).ok_or_else(stranger)?;
        bearer_of(&cell.spec().bearers, token.expose()).ok_or_else(stranger)?;
        if cell.spec().quarantined {
            return Err(no(Code::Quarantined, "the cell is quarantined by an operator"));
        }
        if self.snapshots.off {
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
                self.snapshots.begun.remove(id);
                self.snapshots.accepted.remove(id);
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
        let kept = memory.repositories.cells.get(&id);
        let was_up = memory.cells.get(&id).is_some_and(|known| !known.is_new());
        let taken_at = kept.and_then(|kept| kept.newest.as_ref()).map(|newest| newest.taken_at);
        let known = Known {
            dirty: was_up && kept.is_none_or(|kept| !kept.clean),
            age: taken_at.map(|at| (self.hands.wall)().since(at)),
        };
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
        let access = self.access(cell)?;
        let machine = self.agent.cell(cell)?;
        let (spec, generation) = (machine.spec().clone(), machine.generation());
        let memory = self.store.as_ref()?.memory();
        let seq = self.snapshots.next_seq(memory, &access.repository);
        let kept = memory.repositories.cells.get(&cell);
        // What is compared with has to be HEAD: an unchanged state is not stored, and then HEAD stands for it.
        let newest = kept.and_then(|kept| kept.newest.as_ref());
        let head = || access.repository.head.as_ref().map(|head| head.id);
        let parent = newest.map(|newest| newest.id).or_else(head);
        turn.records.push(Record::Step(Step::Begun { cell, generation, seq }));
        let labels = Labels {
            user: spec.user,
            cell,
            generation,
            sequence: seq,
            image: spec.image.to_string(),
            workload: spec.workload,
            version: String::new(),
        };
        Some(Take { access, labels, parent, online, at: (self.hands.wall)() })
    }

    /// Carries out what the machine wants, once the turn's records are written.
    pub(super) fn carry_out_snapshots(&mut self, takes: Vec<(u64, Take)>, effects: Vec<Effect>, room: bool) {
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
                    let outcome = self.answer_of(cell, taken);
                    self.answer(asker, outcome);
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

    fn not_begun(&self, cell: CellId, run: u64) {
        let loopback = self.loopback.clone();
        self.tasks.spawn_client("snapshot", async move {
            let _ = loopback.send(Input::SnapshotNotBegun { cell, run }).await;
        });
    }

    fn begin_take(&mut self, run: u64, take: Take) {
        let cell = take.labels.cell;
        let Some(job) = self.job(cell, OpId(0)) else { return self.not_begun(cell, run) };
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        failpoint::SNAPSHOT_BEGUN.reach();
        let worker = self.tasks.spawn_client("snapshot", async move {
            let outcome = take_now(&hands, &job, &take).await;
            failpoint::SNAPSHOT_TAKEN.reach();
            let ended = Ended { run: Some(run), take: Box::new(take), outcome };
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
        let head = || self.repository_of(cell).and_then(|told| told.head.clone());
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
        let Ended { run, take, outcome } = ended;
        let cell = take.labels.cell;
        // A late word of one that was cancelled: the snapshot is whole, and the cell has gone on since.
        let current = run.is_some_and(|run| self.snapshots.machine.is_under_way(cell, run));
        // Nor of one that is being woken in this very turn.
        let state = self.agent.cell(cell).map(cell::Cell::state);
        let rests = matches!(state, Some(CellState::Frozen | CellState::Stopped | CellState::Failed));
        let at_rest = !take.online && ((current && rests) || run.is_none());
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
        let Some(snapshot) = snapshot else {
            self.metrics.snapshot("unchanged");
            tracing::debug!(%cell, %user, "nothing has changed since the newest snapshot");
            if at_rest && !take.access.orphan {
                turn.records.push(Record::Step(Step::Same { cell }));
            }
            return;
        };
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
        let aside = take.access.orphan;
        turn.records.push(Record::Step(Step::Taken { user, snapshot: Box::new(snapshot), at_rest, aside }));
        turn.tells_snapshots = true;
    }

    /// Tells the coordinator of snapshots that it has had no final word on.
    pub(super) fn tell_snapshots(&mut self) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        if !self.snapshots.listens {
            return;
        }
        let at = now(self.hands.wall).boot;
        let told_at = &mut self.snapshots.told_at;
        let is_due = |id: &SnapshotId, told_at: &BTreeMap<SnapshotId, BootMs>| {
            told_at.get(id).is_none_or(|told| at.since(*told) >= TOLD_AGAIN_AFTER)
        };
        let untold = memory.repositories.untold.iter();
        let due: Vec<&Untold> =
            untold.filter(|untold| is_due(&untold.snapshot.id, told_at)).take(TOLD_AT_A_TIME).collect();
        for Untold { user, snapshot, aside } in due {
            let (user, aside) = (*user, *aside);
            let frame = NodeFrame::SnapshotTaken { user, snapshot: Box::new(snapshot.clone()), aside };
            if self.outgoing.try_send(frame).is_err() {
                return; // Told with the next heartbeat.
            }
            told_at.insert(snapshot.id, at);
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
        match outcome {
            SnapshotOutcome::Later(problem) => {
                let (code, detail) = (problem.code, problem.detail);
                tracing::info!(%user, snapshot = %id, %code, detail, "a snapshot is told of again later");
                return;
            }
            SnapshotOutcome::Head => self.accept(id),
            SnapshotOutcome::Kept => {}
            SnapshotOutcome::Orphan { current } => {
                let current = current.map(|generation| generation.to_string());
                tracing::warn!(%user, snapshot = %id, current, "a snapshot is of an assignment that is not in force");
                let memory = self.store.as_ref().map(Store::memory);
                let untold = memory.iter().flat_map(|memory| &memory.repositories.untold);
                let of = untold.filter(|untold| !untold.aside).map(|untold| &untold.snapshot);
                if let Some(stale) = of.into_iter().find(|snapshot| snapshot.id == id) {
                    self.snapshots.orphaned.insert((stale.cell, stale.generation));
                }
            }
            SnapshotOutcome::Refused(problem) => {
                let (code, detail) = (problem.code, problem.detail);
                tracing::error!(%user, snapshot = %id, %code, detail, "the coordinator does not take a snapshot down");
            }
        }
        self.snapshots.told_at.remove(&id);
        turn.records.push(Record::Step(Step::Judged { snapshot: id }));
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

async fn take_now<R: Runtime>(hands: &Hands<R>, job: &Job, take: &Take) -> Result<Taken, Problem> {
    let failed = |detail: String| Problem::new(Code::SnapshotFailed, detail);
    // A disk that is not there any more is not made anew: HEAD would be an empty folder.
    if !hands.quota.cells().map_err(|error| failed(chain(&error)))?.contains(&job.spec.cell) {
        return Err(failed("the cell has no disk here".to_owned()));
    }
    let files = files(hands, job).await.map_err(|error| failed(error.detail))?;
    hands.snapshots.take(&files, take).await
}

/// The cell's folder, mounted.
pub(super) async fn files<R: Runtime>(hands: &Hands<R>, job: &Job) -> Result<Files, Problem> {
    let (uid, folder) = hands.disk(job).await?;
    Ok(Files { cell: job.spec.cell, uid, folder })
}
