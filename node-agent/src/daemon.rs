//! Puts the agent's parts together: everything that can be wrong is found before the first container is touched.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::http::Limits as PageLimits;
use berth_daemon::listen::{self, LoopbackAddr};
use berth_daemon::metrics::{self as pages, Readiness};
use berth_daemon::secret_file::read_secret_file;
use berth_daemon::tasks::Tasks;
use berth_link::clock::BootClock;
use berth_link::dial::Target;
use berth_link::drive::node::{LinkState, LinkStatus, NodeDriver};
use berth_node_agent_core::cell::PROBE_EVERY;
use berth_node_agent_core::memory::Record;
use berth_shared::door::repositories_socket;
use berth_shared::secret::Secret;
use berth_shared::time::Millis;
use berth_shared::wire::{CoordinatorFrame, NodeFrame};
use futures_util::StreamExt;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::config::Config;
use crate::door::{DoorEvent, DoorSocket};
use crate::driver::{
    Driver, EXAMINE_EVERY, INPUTS_MAX, Input, LOOK_AT_COLD_EVERY, LOOK_AT_DISK_EVERY, LOOK_AT_SWAP_EVERY,
    NUDGE_EVERY, SWEEP_EVERY, Wiring, wall_now,
};
use crate::facts::{self, Sensors};
use crate::hands::{Hands, LOOKS_MAX};
use crate::keys::KeyFiles;
use crate::link::Side;
use crate::metrics::Metrics;
use crate::netrules::{self, NetRules, RulesConfig, Standing};
use crate::projection::{Endpoint, List, Projection};
use crate::quota::{Backend, Quota};
use crate::reading::RepositoriesSocket;
use crate::runtime::docker::DockerRuntime;
use crate::runtime::failing::Failing;
use crate::runtime::{CellEventKind, Runtime};
use crate::snapshots::Snapshots;
use crate::store::Store;

/// Largest secret of a cell's environment, in bytes.
const CELL_SECRET_BYTES_MAX: usize = 16 * 1024;

/// How often the packet rules are checked.
const RULES_EVERY: Duration = Duration::from_secs(60);

/// How long the engine's events may be away before they are asked for again.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// Frames that may wait for the coordinator, and from it.
const FRAMES_MAX: usize = 1024;

/// The node has not joined.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node has not joined a coordinator: run `berth-node-agent join TOKEN` first (`berth token create NAME` makes one)"
)]
struct NotJoined;

#[derive(Debug, thiserror::Error)]
#[error(
    "the interface `{name}` of this machine would be taken for a cell's: choose a `bridge_prefix` that no other name begins with"
)]
struct ForeignInterface {
    name: String,
}

/// An agent that runs as the tasks it was given.
#[derive(Debug)]
pub struct Running {
    /// Where metrics are served.
    pub metrics_address: LoopbackAddr,
}

/// Starts the agent.
///
/// # Errors
/// With the exit code it means.
pub async fn start(config: Config, tasks: &Tasks) -> Result<Running, ExitError> {
    let store = Store::open(&config.journal_dir()).map_err(|error| error.exit().because(error))?;
    let joined = store.memory().joined.clone().ok_or_else(|| Exit::Config.because(NotJoined))?;
    let files = KeyFiles::of(&config);
    let keys = files.settle(store.memory().key).map_err(|error| Exit::NoPerm.because(error))?;
    let next_pin = store.memory().next_pin;
    let cell_env = read_cell_env(&config)?;
    let pool = config.slot_pool().map_err(|error| Exit::Usage.because(error))?;
    let foreign = netrules::foreign_interface(pool.bridges(), Path::new("/sys/class/net"));
    if let Some(name) = foreign.map_err(|error| Exit::Unavailable.because(error))? {
        return Err(Exit::Config.because(ForeignInterface { name }));
    }
    let boot = facts::boot_id().map_err(|error| Exit::Unavailable.because(error))?;
    let mut store = store;
    if store.memory().boot != Some(boot) {
        store.append(vec![Record::Booted(boot)]).map_err(|error| error.exit().because(error))?;
    }

    let program = std::env::current_exe().map_err(|error| Exit::Unavailable.because(error))?;
    let snapshots = Snapshots::prepare(program.clone(), config.snapshot_workers, &config.data_dir)
        .map_err(|error| Exit::CantCreate.because(error))?;
    let projection = Projection::prepare(&config.data_dir, config.projection_port, pool);
    let projection = Arc::new(projection.map_err(|error| Exit::CantCreate.because(error))?);
    let agent_uid = rustix::process::getuid().as_raw();
    let runtime = Failing::new(DockerRuntime::new(&config.docker_socket));
    let rules = NetRules::new(&RulesConfig {
        egress_allow: config.egress_rules(),
        connections_max: config.connections_per_cell,
        mbit_per_second: config.mbit_per_cell,
        projection_port: config.projection_port,
        ..RulesConfig::new(pool, [agent_uid, config.ingress_uid].into())
    });
    let quota = Quota::detect(&config.data_dir).await.map_err(|error| Exit::CantCreate.because(error))?;
    if let Backend::None { reason } = quota.backend() {
        tracing::error!(
            reason,
            "disk quotas cannot be kept here: no cell without a disk can be started, will try again"
        );
    }
    let (page_listener, metrics_address) =
        listen::bind(config.metrics_listen).map_err(|e| e.exit().because(e))?;
    let socket = DoorSocket::bind(&config.door_socket, agent_uid, config.ingress_uid)
        .map_err(|error| Exit::CantCreate.because(error))?;
    if let Some(file) = &config.metrics_port_file {
        listen::write_port_file(file, metrics_address).map_err(|e| e.exit().because(e))?;
    }

    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    readiness.set_ready();

    let mut sensors = Sensors::new(&config.data_dir);
    let engine = runtime.engine().await;
    if let Err(error) = &engine {
        tracing::error!(error = chain(error), "the container engine does not answer, trying again");
    }
    let node_facts = sensors.facts(engine.ok().as_ref(), quota.backend().as_str());
    tracing::info!(node = %joined.name, engine = node_facts.engine_version, quota = node_facts.quota_backend,
        cgroup = node_facts.cgroup_version, "the node");

    let (inputs, queue) = mpsc::channel(INPUTS_MAX);
    let repositories = RepositoriesSocket::bind(
        &repositories_socket(&config.door_socket),
        (agent_uid, config.ingress_uid),
        (program, config.repository_readers),
        inputs.clone(),
        tasks,
    );
    let repositories = repositories.map_err(|error| Exit::CantCreate.because(error))?;
    let (outgoing, to_coordinator) = mpsc::channel::<NodeFrame>(FRAMES_MAX);
    let (deliver, from_coordinator) = mpsc::channel::<CoordinatorFrame>(FRAMES_MAX);
    let news = Arc::new(Notify::new());
    let stored = store.memory().session;
    let hands = Arc::new(Hands {
        runtime,
        quota,
        rules,
        config,
        pool,
        projection: Arc::clone(&projection),
        node: joined.node,
        cell_env,
        suspensions: Mutex::new(BTreeMap::new()),
        metrics: Arc::clone(&metrics),
        wall: wall_now,
        snapshots,
        looks: Semaphore::new(LOOKS_MAX),
    });
    let (lists, lists_queue) = mpsc::channel(FRAMES_MAX);
    let endpoint = Endpoint::new(projection, lists, tasks.clone(), Arc::clone(&metrics));
    let (status, watching) = watch::channel(LinkStatus::START);
    let driver = Driver::new(Wiring {
        store,
        hands: Arc::clone(&hands),
        tasks: tasks.clone(),
        metrics: Arc::clone(&metrics),
        inputs: (inputs.clone(), queue),
        outgoing,
        news: Arc::clone(&news),
        ticket_key: joined.coordinator,
        link: watching.clone(),
        endpoint,
    });
    let link = NodeDriver {
        target: Target {
            address: joined.address,
            coordinator: joined.coordinator,
            next: next_pin,
            bind: None,
        },
        key: keys.present,
        next_key: keys.next,
        stored,
        side: Side::new(inputs.clone(), joined.node, boot, node_facts, sensors, files, tasks.clone()),
        clock: BootClock,
        deliver,
        outgoing: to_coordinator,
        news,
        status,
    };

    tasks.spawn_service("driver", |stop| driver.run(stop));
    tasks.spawn_service("link", |stop| link.run(stop));
    tasks.spawn_essential("frames", forward_frames(from_coordinator, inputs.clone()));
    tasks.spawn_essential("link status", watch_link(watching, Arc::clone(&metrics)));
    let (door_events, door_queue) = mpsc::channel(FRAMES_MAX);
    tasks.spawn_essential("door", socket.run(door_events, tasks.clone()));
    tasks.spawn_essential("repositories", repositories.run());
    tasks.spawn_essential("door events", forward_door(door_queue, inputs.clone()));
    tasks.spawn_essential("schedules", forward_lists(lists_queue, inputs.clone()));
    let tick = |every, input| remind_for_ever(inputs.clone(), every, input);
    tasks.spawn_essential("probes", tick(PROBE_EVERY, || Input::ProbeAll));
    // These two the driver begins by itself when it has first heard the coordinator, and when a session opens.
    tasks.spawn_essential("sweeps", tick(SWEEP_EVERY, || Input::Sweep));
    tasks.spawn_essential("check-ups", tick(EXAMINE_EVERY, || Input::Examine));
    tasks.spawn_essential("disk", tick(LOOK_AT_DISK_EVERY, || Input::LookAtDisk));
    tasks.spawn_essential("swap", tick(LOOK_AT_SWAP_EVERY, || Input::LookAtSwap));
    tasks.spawn_essential("cpu use", tick(hands.config.look_at_use_every(), || Input::LookAtCpu));
    if hands.config.cold_pages {
        tasks.spawn_essential("cold pages", tick(LOOK_AT_COLD_EVERY, || Input::LookAtCold));
    }
    tasks.spawn_essential("engine events", watch_engine(Arc::clone(&hands), inputs, Arc::clone(&metrics)));
    tasks.spawn_essential("packet rules", keep_rules(hands));
    pages::serve(page_listener, Arc::new(registry), readiness, PageLimits::default(), tasks);
    Ok(Running { metrics_address })
}

fn read_cell_env(config: &Config) -> Result<BTreeMap<String, Secret>, ExitError> {
    let mut env = BTreeMap::new();
    for (name, path) in &config.cell_env_files {
        let secret = read_secret_file(path, CELL_SECRET_BYTES_MAX).map_err(|e| e.exit().because(e))?;
        let text = secret.expose_secret_text().ok_or_else(|| Exit::Usage.because(NotText(name.clone())))?;
        env.insert(name.clone(), Secret::new(text));
    }
    Ok(env)
}

#[derive(Debug, thiserror::Error)]
#[error("the file of `{0}` in cell_env_files is not UTF-8 text")]
struct NotText(String);

/// Tells the driver. A driver that is gone is no failure of whoever tells it: its own task says why it ended, or it was
/// asked to stop a moment before everybody else.
async fn tell(inputs: &mpsc::Sender<Input>, input: Input) {
    if inputs.send(input).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn forward_frames(
    mut frames: mpsc::Receiver<CoordinatorFrame>,
    inputs: mpsc::Sender<Input>,
) -> Result<Infallible, Infallible> {
    while let Some(frame) = frames.recv().await {
        tell(&inputs, Input::Frame(frame)).await;
    }
    // The link has ended, which only a stop does; whoever stops ends this task, too.
    std::future::pending().await
}

async fn forward_door(
    mut events: mpsc::Receiver<DoorEvent>,
    inputs: mpsc::Sender<Input>,
) -> Result<Infallible, Infallible> {
    while let Some(event) = events.recv().await {
        tell(&inputs, Input::Door(event)).await;
    }
    std::future::pending().await
}

async fn forward_lists(
    mut lists: mpsc::Receiver<List>,
    inputs: mpsc::Sender<Input>,
) -> Result<Infallible, Infallible> {
    while let Some(list) = lists.recv().await {
        tell(&inputs, Input::ListPut(list)).await;
    }
    std::future::pending().await
}

async fn watch_link(
    mut status: watch::Receiver<LinkStatus>,
    metrics: Arc<Metrics>,
) -> Result<Infallible, Infallible> {
    loop {
        let state = status.borrow_and_update().state.clone();
        metrics.link_connected.set(i64::from(state == LinkState::Online));
        match state {
            LinkState::Online => tracing::info!("the coordinator is connected"),
            LinkState::Offline => {
                tracing::info!("the coordinator is not connected, cells go on by themselves")
            }
            LinkState::Refused { code, detail } => {
                tracing::error!(%code, detail, advice = code.advice(), "the coordinator refuses this node");
            }
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Events of the engine, and a look at everything whenever some may have been lost.
async fn watch_engine<R: Runtime>(
    hands: Arc<Hands<R>>,
    inputs: mpsc::Sender<Input>,
    metrics: Arc<Metrics>,
) -> Result<Infallible, Infallible> {
    loop {
        let events = hands.runtime.events(&hands.node).await;
        look_at_engine(&hands, &inputs).await;
        let mut events = match events {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(error = chain(&error), "no events of the container engine");
                tokio::time::sleep(EVENTS_RETRY).await;
                continue;
            }
        };
        let mut look_at = tokio::time::Instant::now() + NUDGE_EVERY.to_std();
        loop {
            let calls = i64::try_from(hands.runtime.calls()).unwrap_or(i64::MAX);
            metrics.engine_calls.set(calls);
            match tokio::time::timeout_at(look_at, events.next()).await {
                Ok(Some(Ok(event))) => {
                    if event.kind == CellEventKind::OutOfMemory {
                        tell(&inputs, Input::OutOfMemory(event.cell)).await;
                    }
                    tell(&inputs, Input::Nudge(event.cell)).await;
                }
                Ok(Some(Err(_)) | None) => break,
                Err(_) => {
                    look_at_engine(&hands, &inputs).await;
                    look_at = tokio::time::Instant::now() + NUDGE_EVERY.to_std();
                }
            }
        }
        tracing::warn!("the container engine's events broke off, connecting anew");
        tokio::time::sleep(EVENTS_RETRY).await;
    }
}

/// Asks the engine how it is configured, which a reload changes without ending anything, and has all cells looked at.
async fn look_at_engine<R: Runtime>(hands: &Hands<R>, inputs: &mpsc::Sender<Input>) {
    if let Ok(engine) = hands.runtime.engine().await {
        tell(inputs, Input::LiveRestore(engine.live_restore)).await;
    }
    tell(inputs, Input::NudgeAll).await;
}

/// Tells the driver again and again that something is due. The first time is one span from now.
async fn remind_for_ever(
    inputs: mpsc::Sender<Input>,
    every: Millis,
    input: fn() -> Input,
) -> Result<Infallible, Infallible> {
    loop {
        tokio::time::sleep(every.to_std()).await;
        tell(&inputs, input()).await;
    }
}

/// Somebody who flushes the packet rules has them back within a minute; without them nothing starts.
async fn keep_rules<R: Runtime>(hands: Arc<Hands<R>>) -> Result<Infallible, Infallible> {
    loop {
        match hands.rules.ensure().await {
            Ok(Standing::InPlace) => {}
            Ok(found) => tracing::info!(?found, "the packet rules for cells were put in place"),
            Err(error) => {
                tracing::error!(error = chain(&error), "the packet rules for cells are not in place")
            }
        }
        tokio::time::sleep(RULES_EVERY).await;
    }
}
