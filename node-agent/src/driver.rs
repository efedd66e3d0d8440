//! Carries the agent machine's effects out, in order: journal first, then act.
//!
//! One task owns the machine and the journal. Events come through one bounded queue; what is waiting together is taken
//! together, so that one `fdatasync` serves many cells (group commit). Operations run as tasks of their own and report
//! back; nothing here waits for one. If the journal has no room, the operations of that turn are not begun: they fail
//! with `journal_full`, and the cells look again later.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_link::clock::{BootClock, Clock};
use berth_node_agent_core::agent::{self, Agent};
use berth_node_agent_core::cell::{self, Now, OpId, Outcome, Seen, Verb};
use berth_node_agent_core::memory::{Intent, Record};
use berth_shared::cell::{CellState, CellStatus};
use berth_shared::door::{FromIngress, Route, RouteState, ToIngress};
use berth_shared::ids::CellId;
use berth_shared::link::SessionMark;
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::{CommandOutcome, CoordinatorFrame, DesiredState, NodeFrame};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::door::{DoorEvent, DoorId};
use crate::failpoint::{self, Place};
use crate::hands::{Hands, Job};
use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::store::{Store, StoreError};

/// Events that may wait for the driver.
pub const INPUTS_MAX: usize = 4096;

/// Events that are taken together.
const BATCH_MAX: usize = 128;

/// What the driver is told.
#[derive(Debug)]
pub enum Input {
    /// An operation ended.
    Done {
        /// On which cell.
        cell: CellId,
        /// Which.
        op: OpId,
        /// What it was.
        verb: Verb,
        /// How.
        outcome: Outcome,
        /// When.
        ended: Instant,
    },
    /// The container engine has news of a cell: look.
    Nudge(CellId),
    /// The container engine may have news of every cell.
    NudgeAll,
    /// A look that nobody waits for ended.
    Noticed(CellId, Seen),
    /// It is time to ask the running cells whether they are alive.
    ProbeAll,
    /// A liveness probe ended.
    Probed(CellId, bool),
    /// The ingress.
    Door(DoorEvent),
    /// The coordinator.
    Frame(CoordinatorFrame),
    /// The link asks for something.
    Ask(Ask),
}

/// What the link asks for. Each is answered from memory, or from the journal's sync.
#[derive(Debug)]
pub enum Ask {
    /// Write a session's mark durably.
    Store(SessionMark, bool, oneshot::Sender<Result<(), StoreError>>),
    /// Every cell.
    Observed(oneshot::Sender<Vec<CellStatus>>),
    /// The cells that changed since the last heartbeat, and the revision of the desired state that is held durably.
    Changed(oneshot::Sender<(Vec<CellStatus>, u64)>),
}

/// Everything that the driver owns.
pub struct Driver<R> {
    agent: Agent,
    store: Option<Store>,
    hands: Arc<Hands<R>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    inputs: mpsc::Receiver<Input>,
    loopback: mpsc::Sender<Input>,
    outgoing: mpsc::Sender<NodeFrame>,
    news: Arc<Notify>,
    ticket_key: PublicKey,
    domain: String,
    door: Option<(DoorId, mpsc::Sender<ToIngress>)>,
    fences: BTreeMap<u64, (CellId, OpId)>,
    last_fence: u64,
    changed: BTreeSet<CellId>,
    /// The newest operation of each cell, as a task: one that was given up is cut off when the next begins.
    running: BTreeMap<CellId, AbortHandle>,
    /// When the first wake of a cell that is not up yet was heard, for the time that Berth itself adds.
    wake_heard: BTreeMap<CellId, Instant>,
    /// When a cell's readiness was seen whose route is not told yet, for the same.
    ready_seen: BTreeMap<CellId, Instant>,
}

/// What a turn of the driver does after its records are written.
#[derive(Default)]
struct Turn {
    records: Vec<Record>,
    effects: Vec<agent::Effect>,
    stored: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

/// How the driver is connected to everything else.
pub struct Wiring<R> {
    /// The journal, open.
    pub store: Store,
    /// What operations are carried out with.
    pub hands: Arc<Hands<R>>,
    /// Where tasks are spawned.
    pub tasks: Tasks,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// The driver's own queue, both ends.
    pub inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    /// Frames to the coordinator.
    pub outgoing: mpsc::Sender<NodeFrame>,
    /// Rung when the coordinator should be told.
    pub news: Arc<Notify>,
    /// Whose signature makes login links good.
    pub ticket_key: PublicKey,
}

impl<R: Runtime> Driver<R> {
    /// A driver that goes on from what the journal holds.
    pub fn new(wiring: Wiring<R>) -> Self {
        let memory = wiring.store.memory();
        let agent = Agent::new(now(wiring.hands.wall), memory, wiring.hands.config.starts_max);
        let domain = memory.desired.as_ref().map(|desired| desired.domain.clone()).unwrap_or_default();
        let (loopback, inputs) = wiring.inputs;
        Self {
            agent,
            store: Some(wiring.store),
            hands: wiring.hands,
            tasks: wiring.tasks,
            metrics: wiring.metrics,
            inputs,
            loopback,
            outgoing: wiring.outgoing,
            news: wiring.news,
            ticket_key: wiring.ticket_key,
            domain,
            door: None,
            fences: BTreeMap::new(),
            last_fence: 0,
            changed: BTreeSet::new(),
            running: BTreeMap::new(),
            wake_heard: BTreeMap::new(),
            ready_seen: BTreeMap::new(),
        }
    }

    /// Runs for ever.
    ///
    /// # Errors
    /// The journal is broken: nothing can be promised any more, so the process has to end.
    pub async fn run(mut self) -> Result<Infallible, StoreError> {
        loop {
            let mut turn = Turn::default();
            let deadline = self.agent.next_deadline();
            tokio::select! {
                input = self.inputs.recv() => {
                    let mut next = input;
                    let mut taken = 0;
                    while let Some(input) = next.take() {
                        self.take(input, &mut turn);
                        taken += 1;
                        if taken < BATCH_MAX {
                            next = self.inputs.try_recv().ok();
                        }
                    }
                }
                () = wait_until(deadline) => {}
            }
            let at = now(self.hands.wall);
            if self.agent.next_deadline().is_some_and(|due| due <= at.boot) {
                self.step(agent::Event::Tick, &mut turn);
            }
            self.finish(turn).await?;
        }
    }

    fn step(&mut self, event: agent::Event, turn: &mut Turn) {
        let effects = self.agent.step(now(self.hands.wall), event, &mut random);
        for effect in effects {
            match effect {
                agent::Effect::Cell(_, cell::Effect::Journal(intent)) => {
                    turn.records.push(Record::Intent(intent))
                }
                agent::Effect::Cell(_, cell::Effect::Report(report)) => {
                    turn.records.push(Record::Report(report))
                }
                effect => turn.effects.push(effect),
            }
        }
    }

    fn take(&mut self, input: Input, turn: &mut Turn) {
        match input {
            Input::Done { cell, op, verb, outcome, ended } => {
                failpoint::reach(Place::Report, verb);
                if matches!(outcome, Outcome::Ready) {
                    self.ready_seen.insert(cell, ended);
                }
                self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
            }
            Input::Nudge(cell) => self.look_aside(cell),
            Input::NudgeAll => {
                let cells: Vec<CellId> = self.agent.cells().map(|cell| cell.spec().cell).collect();
                for cell in cells {
                    self.look_aside(cell);
                }
            }
            Input::Noticed(cell, seen) => {
                self.step(agent::Event::Cell(cell, cell::Event::Noticed(seen)), turn);
            }
            Input::ProbeAll => self.probe_all(),
            Input::Probed(cell, alive) => {
                self.step(agent::Event::Cell(cell, cell::Event::Probed { alive }), turn);
            }
            Input::Door(event) => self.door(event, turn),
            Input::Frame(CoordinatorFrame::Desired(desired)) => self.desired(desired, turn),
            Input::Frame(CoordinatorFrame::Command(command)) => {
                self.step(agent::Event::Command(command), turn);
            }
            // The link's machine keeps these to itself.
            Input::Frame(
                CoordinatorFrame::Joined { .. }
                | CoordinatorFrame::Welcome { .. }
                | CoordinatorFrame::Rejected { .. }
                | CoordinatorFrame::Heard,
            ) => {}
            Input::Ask(Ask::Store(mark, welcomed, answer)) => {
                turn.records.push(Record::Session(mark, welcomed));
                turn.stored.push(answer);
            }
            Input::Ask(Ask::Observed(answer)) => {
                self.changed.clear();
                // Whoever asked may be gone; then nobody misses the answer.
                let _ = answer.send(self.agent.statuses(now(self.hands.wall)));
            }
            Input::Ask(Ask::Changed(answer)) => {
                let at = now(self.hands.wall);
                let cells = std::mem::take(&mut self.changed)
                    .into_iter()
                    .filter_map(|id| self.agent.cell(id).map(|cell| cell.status(at)))
                    .collect();
                let revision = self.store.as_ref().and_then(|store| store.memory().desired.as_ref());
                let _ = answer.send((cells, revision.map_or(0, |desired| desired.revision)));
            }
        }
    }

    /// New desired state: written with a slot for each new cell before anything follows from it.
    fn desired(&mut self, desired: DesiredState, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        if memory.desired.as_ref() == Some(&desired) {
            return;
        }
        let mut scratch = memory.clone();
        for assignment in &desired.assignments {
            let cell = assignment.spec.cell;
            if scratch.cells.get(&cell).is_none_or(|remembered| remembered.slot.is_none()) {
                let record = Record::Slot(cell, scratch.free_slot());
                scratch.apply(record.clone());
                turn.records.push(record);
            }
        }
        turn.records.push(Record::Desired(desired.clone()));
        let rerouted = self.domain != desired.domain;
        self.domain.clone_from(&desired.domain);
        self.step(agent::Event::Desired { desired, remembered: scratch.cells }, turn);
        if rerouted {
            self.send_table();
        }
    }

    fn door(&mut self, event: DoorEvent, turn: &mut Turn) {
        match event {
            DoorEvent::Opened { door, sender } => {
                self.door = Some((door, sender));
                self.metrics.door_connected.set(1);
                self.fail_fences(turn);
                self.send_table();
            }
            DoorEvent::Closed { door } => {
                if self.door.as_ref().is_some_and(|(current, _)| *current == door) {
                    self.door = None;
                    self.metrics.door_connected.set(0);
                    self.fail_fences(turn);
                }
            }
            DoorEvent::Said { door, frame } => {
                if self.door.as_ref().is_none_or(|(current, _)| *current != door) {
                    return; // An older connection's last words.
                }
                match frame {
                    FromIngress::Hello { .. } => {}
                    FromIngress::Wake { cell, cause } => {
                        let heard = Instant::now();
                        self.step(agent::Event::DoorWake { cell, cause }, turn);
                        // One that is up is not woken by this, and its next wake would count from here.
                        if self.agent.cell(cell).is_some_and(|cell| cell.state() != CellState::Running) {
                            self.wake_heard.entry(cell).or_insert(heard);
                        }
                    }
                    FromIngress::Fenced { fence, activity } => {
                        if let Some((cell, op)) = self.fences.remove(&fence) {
                            failpoint::reach(Place::Done, Verb::Fence);
                            let outcome = Outcome::Fenced(activity);
                            self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
                        }
                    }
                    FromIngress::Activity(cells) => self.step(agent::Event::Activity(cells), turn),
                }
            }
        }
    }

    /// Fences that an ingress can no longer confirm.
    fn fail_fences(&mut self, turn: &mut Turn) {
        for (cell, op) in std::mem::take(&mut self.fences).into_values() {
            let outcome = Outcome::Failed(Problem::new(Code::Internal, "the front door is not connected"));
            self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
        }
    }

    fn route(&self, cell: &cell::Cell) -> Route {
        let spec = cell.spec();
        Route {
            slug: spec.slug.clone(),
            cell: spec.cell,
            user: spec.user,
            workload: spec.workload,
            bearers: spec.bearers.clone(),
            sessions_valid_from: spec.sessions_valid_from,
            state: cell.route(),
        }
    }

    fn send_table(&mut self) {
        let routes = self.agent.cells().map(|cell| self.route(cell)).collect();
        let table =
            ToIngress::Table { domain: self.domain.clone(), ticket_key: Some(self.ticket_key), routes };
        self.tell_door(table);
    }

    fn tell_door(&mut self, frame: ToIngress) {
        let Some((_, sender)) = &self.door else { return };
        if sender.try_send(frame).is_err() {
            // It does not read, or is gone: it comes back and gets the whole table.
            tracing::warn!("the ingress does not keep up and is cut off");
            self.door = None;
            self.metrics.door_connected.set(0);
        }
    }

    /// Writes the turn's records, then carries its effects out.
    async fn finish(&mut self, mut turn: Turn) -> Result<(), StoreError> {
        let written = self.write(std::mem::take(&mut turn.records)).await;
        if let Err(error) = &written {
            tracing::error!(error = chain(error), "the journal was not written");
            self.metrics.journal_failures.inc();
        }
        let room = written.is_ok();
        let fatal = written.as_ref().is_err_and(StoreError::is_fatal);
        for answer in turn.stored {
            // Whoever asked may be gone; then nobody misses the answer.
            let _ = answer.send(written.as_ref().copied().map_err(StoreError::again));
        }
        if fatal {
            return written;
        }
        for effect in turn.effects {
            self.carry_out(effect, room);
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
            agent::Effect::Changed(cell) => {
                self.changed.insert(cell);
                self.metrics.cells(self.agent.cells());
                self.news.notify_one();
            }
            agent::Effect::Gone(cell) => {
                self.wake_heard.remove(&cell);
                self.ready_seen.remove(&cell);
                self.tell_door(ToIngress::Remove(cell));
                self.metrics.cells(self.agent.cells());
            }
        }
    }

    fn carry_out_for(&mut self, cell: CellId, effect: cell::Effect, room: bool) {
        match effect {
            cell::Effect::Do { op, verb: Verb::Fence } => self.fence(cell, op),
            cell::Effect::Do { op, verb } => {
                if !room && Intent::of(cell, op, verb).is_some() {
                    let problem = Problem::new(Code::JournalFull, "the intent could not be written");
                    return self.report(cell, op, verb, Outcome::Failed(problem));
                }
                failpoint::reach(Place::Intent, verb);
                self.begin(cell, op, verb);
            }
            cell::Effect::Route(_) => {
                // The newest state counts, whatever it was when the effect was made.
                let Some(route) = self.agent.cell(cell).map(|cell| self.route(cell)) else { return };
                let is_up = matches!(route.state, RouteState::Up(_));
                self.tell_door(ToIngress::Set(route));
                if let Some(seen) = self.ready_seen.remove(&cell).filter(|_| is_up) {
                    self.metrics.ready_to_route_seconds.observe(seen.elapsed().as_secs_f64());
                }
            }
            cell::Effect::Progress(stage) => self.tell_door(ToIngress::Progress { cell, stage }),
            cell::Effect::Refuse { problem, retry_after } => {
                self.wake_heard.remove(&cell);
                self.tell_door(ToIngress::Refused { cell, problem, retry_after });
            }
            cell::Effect::Note(note) => {
                if let cell::Note::Up(_) = note {
                    self.wake_heard.remove(&cell);
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
        self.tell_door(ToIngress::Fence { cell, fence });
        if self.door.is_none() {
            self.fences.remove(&fence);
            let problem = Problem::new(Code::Internal, "the front door is not connected");
            self.report(cell, op, Verb::Fence, Outcome::Failed(problem));
        }
    }

    fn job(&self, cell: CellId, op: OpId) -> Option<Job> {
        let machine = self.agent.cell(cell)?;
        let remembered = self.store.as_ref()?.memory().cells.get(&cell).cloned().unwrap_or_default();
        Some(Job {
            spec: machine.spec().clone(),
            remembered,
            domain: self.domain.clone(),
            op,
            address: machine.address(),
            wake_heard: self.wake_heard.get(&cell).copied(),
        })
    }

    fn begin(&mut self, cell: CellId, op: OpId, verb: Verb) {
        let Some(job) = self.job(cell, op) else { return };
        let (hands, loopback, metrics) =
            (Arc::clone(&self.hands), self.loopback.clone(), Arc::clone(&self.metrics));
        let task = self.tasks.spawn_client("operation", async move {
            let begun = Instant::now();
            let limit = verb.limit().to_std();
            let outcome = match tokio::time::timeout(limit, Box::pin(hands.carry_out(verb, job))).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    Outcome::Failed(Problem::new(Code::DockerFailed, format!("{verb:?} took too long")))
                }
            };
            let ended = Instant::now();
            metrics.operation(verb, ended.duration_since(begun));
            failpoint::reach(Place::Done, verb);
            // The driver is gone only when the agent ends.
            let _ = loopback.send(Input::Done { cell, op, verb, outcome, ended }).await;
        });
        if let Some(given_up) = self.running.insert(cell, task) {
            given_up.abort();
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

    /// Looks at a cell on the engine's word, beside whatever is under way.
    fn look_aside(&self, cell: CellId) {
        let Some(job) = self.job(cell, OpId(0)) else { return };
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.tasks.spawn_client("look", async move {
            if let Ok(seen) = hands.look(&job).await {
                let _ = loopback.send(Input::Noticed(cell, seen)).await;
            }
        });
    }

    fn probe_all(&self) {
        for machine in self.agent.cells().filter(|cell| cell.state() == CellState::Running) {
            let cell = machine.spec().cell;
            let Some(job) = self.job(cell, OpId(0)) else { continue };
            let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
            self.tasks.spawn_client("probe", async move {
                let alive = hands.is_alive(&job).await;
                let _ = loopback.send(Input::Probed(cell, alive)).await;
            });
        }
    }

    fn answer(&self, seq: u64, outcome: Result<CommandOutcome, Problem>) {
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

async fn wait_until(deadline: Option<BootMs>) {
    match deadline {
        Some(at) => BootClock.wait_towards(at).await,
        None => std::future::pending().await,
    }
}

fn now(wall: fn() -> UnixMs) -> Now {
    Now { boot: BootClock.now(), wall: wall() }
}

/// The wall clock of this machine.
pub fn wall_now() -> UnixMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A number for jitter. If the system has none, the spread is lost and nothing else.
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// How often every cell is looked at unasked, in case an event of the engine was lost.
pub const NUDGE_EVERY: Millis = Millis::secs(60);
