//! Carries the agent machine's effects out, in order: journal first, then act.
//!
//! One task owns the machine and the journal. Events come through one bounded queue; what is waiting together is taken
//! together, so that one `fdatasync` serves many cells (group commit). Operations run as tasks of their own and report
//! back; nothing here waits for one. If the journal has no room, the operations of that turn are not begun: they fail
//! with `journal_full`, and the cells look again later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_link::clock::{BootClock, Clock};
use berth_link::drive::node::LinkStatus;
use berth_node_agent_core::agent::{self, Agent};
use berth_node_agent_core::cell::{self, Now, OpId, Outcome, Verb};
use berth_node_agent_core::lease::ASKS_FOR;
use berth_node_agent_core::memory::Record;
use berth_node_agent_core::slot::Slot;
use berth_node_agent_core::snapshots as taking;
use berth_shared::door::ToIngress;
use berth_shared::ids::CellId;
use berth_shared::signing::PublicKey;
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::{CommandVerb, CoordinatorFrame, DesiredState, NodeFrame};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

mod archive;
mod carry;
mod check_up;
mod cold;
mod cpu;
mod desired;
mod door;
mod input;
mod lease;
mod restore;
mod round;
mod save;
mod schedule;
mod sleep;
mod snapshots;
mod swap;
mod sweep;
mod wakes;

pub use archive::LOOK_AT_DISK_EVERY;
pub use berth_node_agent_core::cold::LOOK_EVERY as LOOK_AT_COLD_EVERY;
pub use check_up::EXAMINE_EVERY;
pub use input::{Ask, Input};
pub use snapshots::Ended;
pub use swap::LOOK_AT_SWAP_EVERY;

use round::Round;

use crate::door::DoorId;
use crate::failpoint::{self, Place};
use crate::hands::Hands;
use crate::metrics::Metrics;
use crate::projection::Endpoint;
use crate::runtime::Runtime;
use crate::snapshots::Take;
use crate::store::{Store, StoreError};

/// Events that may wait for the driver.
pub const INPUTS_MAX: usize = 4096;

/// Events that are taken together.
const BATCH_MAX: usize = 128;

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
    /// The newest operation of each cell, as a task: one that was given up is cut off when the next begins, a proof at once.
    running: BTreeMap<CellId, (Verb, AbortHandle)>,
    /// Since when the front door waits for cells.
    wakes: wakes::Wakes,
    /// When a cell's readiness was seen whose route is not told yet, for the time that Berth itself adds.
    ready_seen: BTreeMap<CellId, Instant>,
    /// How the link fares: contacts renew the lease.
    link: watch::Receiver<LinkStatus>,
    /// The newest contact that the lease knows of.
    heard: Option<BootMs>,
    online: bool,
    /// Was the coordinator heard in this life of the agent?
    desired_heard: bool,
    /// The removal of containers that are nobody's, while it is under way.
    sweeping: Option<AbortHandle>,
    /// The look at all cells' containers.
    looking: Round,
    /// Those at single ones.
    looks: round::PerCell,
    /// The reading of the cells' CPU time, while it is under way.
    cpu_round: Option<AbortHandle>,
    /// What is known of running cells' cold pages.
    cold: cold::Side,
    /// The look at swap.
    swap_round: Round,
    /// The look at the disk, while it is under way.
    disk_round: Option<AbortHandle>,
    /// What the engine said of itself last.
    live_restore: Option<bool>,
    /// How memory is pushed out here, or why no cell is frozen: as it was told last.
    freezes: Option<Result<&'static str, String>>,
    /// The check-up of this machine, while it is under way.
    examining: Option<AbortHandle>,
    /// Does the coordinator understand what a check-up finds?
    tells_findings: bool,
    /// Where cells put what they will run.
    endpoint: Endpoint,
    /// What it was told of sleep.
    told: sleep::Told,
    snapshots: snapshots::Side,
    /// Restores that are about to be begun.
    restores: BTreeMap<CellId, restore::Order>,
    /// What is to be kept before other images run.
    saves: BTreeMap<CellId, save::Order>,
    /// Proofs of snapshots that are about to be begun.
    proofs: BTreeMap<CellId, archive::Order>,
}

/// What a turn of the driver does after its records are written.
#[derive(Default)]
struct Turn {
    records: Vec<Record>,
    effects: Vec<agent::Effect>,
    stored: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// What is held durably here has changed, or the coordinator does not know it yet.
    tells_holding: bool,
    /// Snapshots to be begun, with the machine's number.
    takes: Vec<(u64, Take)>,
    /// What else the machine of snapshots wants.
    snapshots: Vec<taking::Effect>,
    /// Cells of which a worker has ended well: what came of it is among the records.
    taken: Vec<CellId>,
    /// There is a snapshot that the coordinator does not know of.
    tells_snapshots: bool,
    /// Cells whose state may be another one now.
    moved: BTreeSet<CellId>,
    /// The lease has ended, or has begun again.
    lease_turned: bool,
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
    /// How the link to the coordinator fares.
    pub link: watch::Receiver<LinkStatus>,
    /// Where cells put what they will run.
    pub endpoint: Endpoint,
}

impl<R: Runtime> Driver<R> {
    /// A driver that goes on from what the journal holds.
    pub fn new(wiring: Wiring<R>) -> Self {
        let memory = wiring.store.memory();
        let agent = Agent::new(now(wiring.hands.wall), memory, wiring.hands.config.starts_max)
            .with_swap(wiring.hands.config.swap_limits())
            .with_disk(wiring.hands.config.disk_limits());
        let domain = memory.desired.as_ref().map(|desired| desired.domain.clone()).unwrap_or_default();
        let (loopback, inputs) = wiring.inputs;
        let workers = wiring.hands.config.snapshot_workers;
        wiring.hands.rules.quarantine(desired::quarantined(memory));
        wiring.endpoint.keep(&schedule::telling(memory.desired.as_ref(), &memory.cells));
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
            wakes: wakes::Wakes::default(),
            ready_seen: BTreeMap::new(),
            link: wiring.link,
            heard: None,
            online: false,
            desired_heard: false,
            sweeping: None,
            looking: Round::default(),
            looks: round::PerCell::default(),
            cpu_round: None,
            cold: cold::Side::default(),
            swap_round: Round::default(),
            disk_round: None,
            live_restore: None,
            freezes: None,
            examining: None,
            tells_findings: false,
            endpoint: wiring.endpoint,
            told: sleep::Told::default(),
            snapshots: snapshots::Side::new(workers),
            restores: BTreeMap::new(),
            saves: BTreeMap::new(),
            proofs: BTreeMap::new(),
        }
    }

    /// Runs until it is told to stop; then writes how much of the lease is used up.
    ///
    /// # Errors
    /// The journal is broken: nothing can be promised any more, so the process has to end.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        if !self.agent.lease().is_held() {
            self.lease_held(false);
        } else if self.agent.lease().asks_first() {
            tracing::info!(at_most = %ASKS_FOR, "a new boot: the coordinator is asked what shall run here first");
        }
        loop {
            let mut turn = Turn::default();
            let deadline = self.agent.next_deadline().into_iter().chain(self.snapshots.next_deadline()).min();
            tokio::select! {
                () = stop.cancelled() => {
                    self.follow_link(&mut turn);
                    self.parted(&mut turn);
                    return self.finish(turn).await;
                }
                () = changed(&mut self.link) => self.follow_link(&mut turn),
                input = self.inputs.recv() => {
                    self.follow_link(&mut turn);
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
                () = wait_until(deadline) => self.follow_link(&mut turn),
            }
            let at = now(self.hands.wall);
            if self.agent.next_deadline().is_some_and(|due| due <= at.boot) {
                self.step(agent::Event::Tick, &mut turn);
            }
            let moved = std::mem::take(&mut turn.moved);
            if !moved.is_empty() {
                self.keep_room();
            }
            self.keep_events(&moved, &mut turn);
            self.go_on_from_disk(moved.iter(), &mut turn);
            self.snapshots_follow(&moved, &mut turn);
            if self.snapshots.next_deadline().is_some_and(|due| due <= at.boot) {
                self.step_snapshots(berth_node_agent_core::snapshots::Event::Tick, &mut turn);
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
                agent::Effect::Lease(mark) => turn.records.push(Record::Lease(mark)),
                effect => {
                    match &effect {
                        agent::Effect::Changed(cell) | agent::Effect::Gone(cell) => {
                            turn.moved.insert(*cell);
                        }
                        agent::Effect::Cell(cell, cell::Effect::Do { verb: Verb::Restore, .. }) => {
                            self.restore_begins(*cell, turn);
                        }
                        agent::Effect::Cell(cell, cell::Effect::Do { verb: Verb::Save, .. }) => {
                            self.save_begins(*cell, turn);
                        }
                        agent::Effect::Cell(cell, cell::Effect::Do { verb: Verb::Start, .. }) => {
                            self.start_begins(*cell, turn);
                        }
                        agent::Effect::Cell(cell, cell::Effect::Do { verb: Verb::Verify, .. }) => {
                            self.proof_begins(*cell);
                        }
                        agent::Effect::Cell(cell, cell::Effect::Do { verb: Verb::Archive, .. }) => {
                            self.archive_begins(*cell, turn);
                        }
                        agent::Effect::Snapshot { seq, cell } => self.snapshot_asked(*seq, *cell, turn),
                        agent::Effect::LeaseHeld(_) => turn.lease_turned = true,
                        _ => {}
                    }
                    turn.effects.push(effect);
                }
            }
        }
        if std::mem::take(&mut turn.lease_turned) {
            self.snapshots_begin_anew(turn);
        }
    }

    fn take(&mut self, input: Input, turn: &mut Turn) {
        match input {
            Input::Done { cell, op, verb, outcome, ended } => {
                failpoint::reach(Place::Report, verb);
                let outcome = self.still_proven(cell, outcome);
                if matches!(outcome, Outcome::Ready) {
                    self.ready_seen.insert(cell, ended);
                }
                if verb == Verb::Restore {
                    self.restore_ended(cell, &outcome, turn);
                }
                self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
                if verb == Verb::Push {
                    // What it wrote counts on top of the last look, which may have seen most of it already.
                    self.look_at_swap();
                }
            }
            Input::Nudge(cell) => self.look_aside(cell),
            Input::NudgeAll => self.look_at_all(),
            Input::LookedAtAll => {
                if self.looking.ended() {
                    self.look_at_all();
                }
            }
            Input::Noticed(cell, seen) => {
                self.step(agent::Event::Cell(cell, cell::Event::Noticed(seen)), turn);
            }
            Input::LookedAside(cell) => {
                if self.looks.ended(cell) {
                    self.look_aside(cell);
                }
            }
            Input::ProbeAll => {
                // Also a look at the wall clock, whoever runs.
                self.step(agent::Event::Lease(berth_node_agent_core::lease::Event::Tick), turn);
                self.probe_all();
                self.show_snapshots();
            }
            Input::Sweep => self.sweep(),
            Input::Listed(owned) => self.listed(owned),
            Input::Probed(cell, alive) => {
                self.step(agent::Event::Cell(cell, cell::Event::Probed { alive }), turn);
            }
            Input::ListPut(list) => self.list_put(list, turn),
            Input::ScheduleAsked(cell, schedule) => self.schedule_heard(cell, schedule, turn),
            Input::DialsOut(cell, channels) => {
                self.step(agent::Event::Cell(cell, cell::Event::DialsOut(channels)), turn);
            }
            Input::MayRead(may) => self.may_read(may),
            Input::Tell(tell) => self.tell_owner(tell),
            Input::Door(event) => self.door(event, turn),
            Input::Frame(CoordinatorFrame::Desired(desired)) => self.desired(desired, turn),
            Input::Frame(CoordinatorFrame::Command(command)) => {
                if command.verb == CommandVerb::Archive {
                    let cover = self.cover();
                    self.step(agent::Event::Covered(cover), turn);
                }
                self.step(agent::Event::Command(command), turn);
            }
            Input::Frame(CoordinatorFrame::Welcome { version, autonomy, .. }) => {
                self.welcomed(autonomy, turn);
                self.examine_for(version);
                self.tell_sleep_to(version);
                self.snapshots_welcomed(version);
            }
            Input::Frame(CoordinatorFrame::Terms { cells }) => self.terms(cells, turn),
            Input::LiveRestore(on) => {
                self.live_restore = Some(on);
                self.look_at_swap();
            }
            Input::LookAtSwap => self.look_at_swap(),
            Input::Swap(reading) => self.swap_read(reading, turn),
            Input::LookAtDisk => self.look_at_disk(),
            Input::Disk(sample) => self.disk_seen(sample, turn),
            Input::Examine => self.examine_again(),
            Input::LookAtCpu => self.look_at_cpu(),
            Input::Used { cell, at, usage } => self.used(cell, at, usage, turn),
            Input::LookAtCold => self.look_at_cold(),
            Input::Held { cell, at, held } => self.held(cell, at, held),
            Input::Cooled(cooled) => self.cooled(cooled, turn),
            Input::OutOfMemory(cell) => {
                self.step(agent::Event::Cell(cell, cell::Event::OutOfMemory), turn);
            }
            Input::Purged { seq, cell, generation, outcome } => {
                self.purged(seq, cell, generation, outcome, turn);
            }
            // The link's machine keeps these to itself.
            Input::Frame(
                CoordinatorFrame::Joined { .. }
                | CoordinatorFrame::Rejected { .. }
                | CoordinatorFrame::Heard
                | CoordinatorFrame::RotateKey
                | CoordinatorFrame::KeyJudged { .. }
                | CoordinatorFrame::NextKey { .. },
            ) => {}
            Input::Frame(CoordinatorFrame::Bucket(bucket)) => self.bucket_named(*bucket, turn),
            Input::Frame(CoordinatorFrame::Repositories { users }) => self.repositories_told(users, turn),
            Input::Frame(CoordinatorFrame::SnapshotJudged { user, snapshot, outcome }) => {
                self.snapshot_judged(user, snapshot, outcome, turn);
            }
            Input::SnapshotEnded(ended) => self.snapshot_ended(ended, turn),
            Input::SnapshotAnswered { seq, outcome } => {
                self.step(agent::Event::Answered { seq, outcome }, turn);
            }
            Input::SnapshotUnwritten(cell) => self.step_snapshots(taking::Event::Dirtied(cell), turn),
            Input::SnapshotNotBegun { cell, run } => self.snapshot_not_begun(cell, run, turn),
            Input::Ask(Ask::Store(mark, welcomed, answer)) => {
                turn.records.push(Record::Session(mark, welcomed));
                turn.stored.push(answer);
            }
            Input::Ask(Ask::Key(record, answer)) => {
                if let Record::Pin(key) = &record {
                    // Login links are signed with it from now on.
                    self.ticket_key = *key;
                    self.send_table();
                }
                turn.records.push(record);
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
                // Goes out behind the heartbeat.
                self.tell_sleep();
                self.tell_snapshots();
            }
        }
    }

    /// New desired state: written with a slot for each new cell before anything follows from it.
    fn desired(&mut self, desired: DesiredState, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        if let Some(mut planned) = desired::plan(memory, &turn.records, &desired) {
            turn.records.append(&mut planned.records);
            let rerouted = self.domain != desired.domain;
            self.domain.clone_from(&desired.domain);
            self.cut_off(planned.cut_off);
            self.endpoint.keep(&schedule::telling(Some(&desired), &planned.remembered));
            self.step(agent::Event::Desired { desired, remembered: planned.remembered }, turn);
            if rerouted {
                self.send_table();
            }
        }
        self.snapshots_desired(turn);
        self.told(turn);
        if !std::mem::replace(&mut self.desired_heard, true) {
            self.sweep();
        }
    }

    /// Has the packet rules cut off who is quarantined, and nobody else. What cannot be done now, the task that keeps the
    /// rules does.
    fn cut_off(&self, slots: BTreeSet<Slot>) {
        if !self.hands.rules.quarantine(slots) {
            return;
        }
        let hands = Arc::clone(&self.hands);
        self.tasks.spawn_client("packet rules of quarantine", async move {
            if let Err(error) = hands.rules.ensure().await {
                tracing::error!(error = chain(&error), "a cell could not be cut off, trying again");
            }
        });
    }
}

/// Is work that was begun beside the driver under way still?
fn goes_on(work: Option<&AbortHandle>) -> bool {
    work.is_some_and(|work| !work.is_finished())
}

/// Ends when the link's state has changed; never when there is no link any more, as while the agent stops.
async fn changed(link: &mut watch::Receiver<LinkStatus>) {
    if link.changed().await.is_err() {
        std::future::pending::<()>().await;
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

/// How often containers of this node that are nobody's are looked for. They are rare, and one costs no user anything at
/// once.
pub const SWEEP_EVERY: Millis = Millis::minutes(60);
