//! A container engine in memory, for fast tests. It passes the same contract tests as Docker.
//!
//! It can be told to misbehave: to fail or delay its next calls, to do what was asked and say that it failed, to lose
//! or end a container behind the agent's back, to hold containers that are not ours.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use berth_node_agent_core::cell::Seen;
use berth_shared::cell::ImageRef;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::Millis;
use futures_util::StreamExt as _;
use tokio::sync::broadcast;

use super::plan::{Whose, label};
use super::{
    CellEvent, CellEventKind, CellEvents, ContainerKey, ContainerPlan, Created, EngineError, EngineFacts,
    Owned, OwnedState, Runtime, RuntimeError, Started,
};

/// Events that a reader may be behind before its stream ends with an error.
const EVENTS_MAX: usize = 256;

/// A call of the trait, for scripts and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the trait's method of the same name")]
pub enum Call {
    Engine,
    Look,
    Create,
    Start,
    Pause,
    Unpause,
    Stop,
    KillFrozen,
    Repair,
    Remove,
    Logs,
    Events,
    ListOurs,
}

/// How a call misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The engine does not answer; nothing was done.
    Down,
    /// It refuses; nothing was done.
    Refused,
    /// It does what was asked, and the answer is lost.
    DoneButLost,
    /// It takes this long, and then does what was asked.
    Delay(Millis),
}

/// What a start does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartScript {
    /// The container runs.
    Runs,
    /// It ends at once.
    Exits(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Paused,
    Exited(i64),
}

impl State {
    const fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    const fn code(self) -> i64 {
        match self {
            Self::Exited(code) => code,
            Self::Created | Self::Running | Self::Paused => 0,
        }
    }
}

#[derive(Debug, Clone)]
struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    image_id: String,
    address: Option<std::net::Ipv4Addr>,
    state: State,
    starts: u64,
}

impl Container {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    fn cell(&self) -> Option<CellId> {
        self.label(label::CELL)?.parse().ok()
    }
}

#[derive(Debug, Default)]
struct World {
    containers: BTreeMap<String, Container>,
    networks: BTreeMap<String, String>,
    images: BTreeMap<String, String>,
    pullable: BTreeSet<String>,
    next_id: u64,
    troubles: BTreeMap<Call, VecDeque<Trouble>>,
    starts: BTreeMap<CellId, VecDeque<StartScript>>,
    serving: BTreeMap<CellId, SocketAddr>,
    said: BTreeMap<CellId, Vec<String>>,
    repairs: VecDeque<i64>,
    record: Vec<(Call, Option<CellId>)>,
    down: bool,
}

/// The engine in memory. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<(NodeId, CellEvent)>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An engine without images.
    pub fn new() -> Self {
        Self { world: Arc::default(), events: broadcast::Sender::new(EVENTS_MAX) }
    }

    /// Puts an image there, or another one under the same name.
    pub fn add_image(&self, image: &ImageRef) {
        let mut world = self.world();
        world.next_id += 1;
        let id = format!("image-{}", world.next_id);
        world.images.insert(image.to_string(), id);
    }

    /// Lets an image that is named by digest be pulled.
    pub fn offer_image(&self, image: &ImageRef) {
        self.world().pullable.insert(image.to_string());
    }

    /// The next calls of this kind misbehave, one after the other.
    pub fn trouble(&self, call: Call, troubles: impl IntoIterator<Item = Trouble>) {
        self.world().troubles.entry(call).or_default().extend(troubles);
    }

    /// The engine is down, or up again.
    pub fn set_down(&self, down: bool) {
        self.world().down = down;
    }

    /// What the next starts of a cell do; after that, it runs.
    pub fn script_starts(&self, cell: CellId, starts: impl IntoIterator<Item = StartScript>) {
        self.world().starts.entry(cell).or_default().extend(starts);
    }

    /// Exit codes of the next repairs; after that, 0.
    pub fn script_repairs(&self, codes: impl IntoIterator<Item = i64>) {
        self.world().repairs.extend(codes);
    }

    /// Where a cell's container answers, instead of its address and port: a server of the test's own.
    pub fn serve_at(&self, cell: CellId, address: SocketAddr) {
        self.world().serving.insert(cell, address);
    }

    /// The cell's container ends by itself.
    pub fn exit(&self, cell: CellId, code: i64) {
        self.change(cell, State::Exited(code), CellEventKind::Died { code });
    }

    /// Somebody pauses the cell's container behind the agent's back.
    pub fn pause_behind(&self, cell: CellId) {
        self.change(cell, State::Paused, CellEventKind::Paused);
    }

    /// Somebody unpauses the cell's container behind the agent's back.
    pub fn unpause_behind(&self, cell: CellId) {
        self.change(cell, State::Running, CellEventKind::Unpaused);
    }

    fn change(&self, cell: CellId, state: State, kind: CellEventKind) {
        let mut world = self.world();
        let found = world.containers.values_mut().find(|container| container.cell() == Some(cell));
        if let Some(container) = found {
            container.state = state;
            let container = container.clone();
            drop(world);
            self.tell(&container, kind);
        }
    }

    /// A container that somebody else made: with these labels, not running. Gives its id.
    pub fn plant(&self, name: &str, labels: BTreeMap<String, String>) -> String {
        self.world().insert(Container {
            name: name.to_owned(),
            labels,
            image_id: "planted".to_owned(),
            address: None,
            state: State::Created,
            starts: 0,
        })
    }

    /// Removes a container by id, whatever it is doing, as `docker rm -f` does.
    pub fn remove_behind(&self, id: &str) {
        let removed = self.world().containers.remove(id);
        if let Some(container) = removed {
            if container.state.is_up() {
                self.tell(&container, CellEventKind::Died { code: 137 });
            }
            self.tell(&container, CellEventKind::Removed);
        }
    }

    /// The id of the container of this name.
    pub fn id_of(&self, name: &str) -> Option<String> {
        let world = self.world();
        world.containers.iter().find(|(_, container)| container.name == name).map(|(id, _)| id.clone())
    }

    /// What the container with this id is doing, in Docker's words.
    pub fn state_of(&self, id: &str) -> Option<&'static str> {
        Some(match self.world().containers.get(id)?.state {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Exited(_) => "exited",
        })
    }

    /// How often the cell's present container was started.
    pub fn starts_of(&self, cell: CellId) -> u64 {
        let world = self.world();
        world.containers.values().filter(|it| it.cell() == Some(cell)).map(|it| it.starts).sum()
    }

    /// What the cell's container has printed.
    pub fn say(&self, cell: CellId, line: &str) {
        self.world().said.entry(cell).or_default().push(line.to_owned());
    }

    /// Every call so far, with its cell.
    pub fn record(&self) -> Vec<(Call, Option<CellId>)> {
        self.world().record.clone()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, container: &Container, kind: CellEventKind) {
        let node = container.label(label::NODE).and_then(|node| node.parse().ok());
        if let (Some(node), Some(cell)) = (node, container.cell()) {
            // Nobody may be listening.
            let _ = self.events.send((node, CellEvent { cell, kind }));
        }
    }

    /// Counts the call and has it misbehave. `Ok(true)`: do it, and then say that the answer was lost.
    async fn enter(&self, call: Call, cell: Option<CellId>) -> Result<bool, EngineError> {
        let trouble = {
            let mut world = self.world();
            world.record.push((call, cell));
            if world.down {
                Some(Trouble::Down)
            } else {
                world.troubles.get_mut(&call).and_then(VecDeque::pop_front)
            }
        };
        match trouble {
            None => Ok(false),
            Some(Trouble::Down) => Err(lost()),
            Some(Trouble::Refused) => {
                Err(EngineError::Refused { status: 500, message: "told to refuse".to_owned() })
            }
            Some(Trouble::DoneButLost) => Ok(true),
            Some(Trouble::Delay(span)) => {
                tokio::time::sleep(span.to_std()).await;
                Ok(false)
            }
        }
    }

    /// A call that changes something.
    async fn act<T>(
        &self,
        call: Call,
        cell: CellId,
        wrap: fn(EngineError) -> RuntimeError,
        change: impl FnOnce(&mut World) -> Result<(T, Option<(Container, CellEventKind)>), RuntimeError> + Send,
    ) -> Result<T, RuntimeError> {
        let is_lost = self.enter(call, Some(cell)).await.map_err(wrap)?;
        let result = change(&mut self.world());
        let (value, event) = result?;
        if let Some((container, kind)) = event {
            self.tell(&container, kind);
        }
        if is_lost { Err(wrap(lost())) } else { Ok(value) }
    }
}

fn lost() -> EngineError {
    EngineError::Unreachable { source: "the fake engine was told to be away".into() }
}

impl World {
    fn insert(&mut self, container: Container) -> String {
        self.next_id += 1;
        let id = format!("container-{}", self.next_id);
        self.containers.insert(id.clone(), container);
        id
    }

    /// Our container's id, or what is wrong.
    fn mine(&self, key: &ContainerKey) -> Result<String, RuntimeError> {
        let mut ours = None;
        for (id, container) in &self.containers {
            if container.cell() != Some(key.cell) {
                continue;
            }
            match key.whose(|name| container.label(name)) {
                Whose::Ours { .. } => ours = Some(id.clone()),
                Whose::OurRepair => {}
                Whose::Stranger { why } => {
                    let detail =
                        format!("container {} has the label of this cell and is {why}", container.name);
                    return Err(RuntimeError::Foreign { detail });
                }
            }
        }
        ours.ok_or(RuntimeError::Gone)
    }

    fn mine_mut(&mut self, key: &ContainerKey) -> Result<&mut Container, RuntimeError> {
        let id = self.mine(key)?;
        Ok(self.containers.get_mut(&id).expect("found a moment ago"))
    }

    fn name_taken(&self, key: &ContainerKey) -> Option<String> {
        let name = key.container_name();
        let taken = self.containers.values().any(|container| container.name == name);
        taken.then(|| format!("container {name} has the name of this cell and not its label"))
    }

    fn address(&self, container: &Container, port: u16) -> Option<SocketAddr> {
        let served = container.cell().and_then(|cell| self.serving.get(&cell)).copied();
        served.or_else(|| Some(SocketAddr::new(container.address?.into(), port)))
    }

    fn ensure_image(&mut self, image: &ImageRef) -> Result<String, RuntimeError> {
        let name = image.to_string();
        if !self.images.contains_key(&name) {
            if !name.contains("@sha256:") {
                return Err(RuntimeError::UnknownImage { image: image.clone() });
            }
            if !self.pullable.contains(&name) {
                let source = EngineError::Refused { status: 404, message: "manifest unknown".to_owned() };
                return Err(RuntimeError::Pull { image: image.clone(), source });
            }
            self.images.insert(name.clone(), format!("pulled {name}"));
        }
        Ok(self.images.get(&name).cloned().unwrap_or_default())
    }

    fn create(&mut self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        let key = plan.full_key();
        let mine = match self.mine(&key) {
            Ok(id) => Some(id),
            Err(RuntimeError::Gone) => None,
            Err(error) => return Err(error),
        };
        if mine.is_none()
            && let Some(detail) = self.name_taken(&key)
        {
            return Err(RuntimeError::Foreign { detail });
        }
        let old = mine.as_ref().and_then(|id| self.containers.get(id)).cloned();
        let fingerprint = plan.fingerprint();
        let fits = old.as_ref().is_some_and(|old| old.label(label::PLAN) == Some(fingerprint.as_str()));
        let old_op = old.as_ref().and_then(|old| old.label(label::OP)?.parse().ok()).unwrap_or_default();
        if old.as_ref().is_some_and(|old| old.state.is_up()) {
            return if fits { Ok(Created { op: old_op, made: false }) } else { Err(RuntimeError::StillUp) };
        }
        let image_id = self.ensure_image(&plan.image)?;
        let owner = key.cell.to_string();
        let network = self.networks.entry(plan.network.name.clone()).or_insert_with(|| owner.clone());
        if *network != owner {
            return Err(RuntimeError::NetworkTaken {
                name: plan.network.name.clone(),
                detail: "it has its name and not its labels".to_owned(),
            });
        }
        if fits && old.as_ref().is_some_and(|old| old.image_id == image_id) {
            return Ok(Created { op: old_op, made: false });
        }
        if let Some(id) = mine {
            self.containers.remove(&id);
        }
        let mut labels: BTreeMap<String, String> =
            key.labels().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        labels.insert(label::OP.to_owned(), plan.op.to_string());
        labels.insert(label::PLAN.to_owned(), fingerprint);
        labels.insert(label::ROLE.to_owned(), label::ROLE_CELL.to_owned());
        self.insert(Container {
            name: key.container_name(),
            labels,
            image_id,
            address: Some(plan.network.cell_address),
            state: State::Created,
            starts: 0,
        });
        Ok(Created { op: plan.op, made: true })
    }
}

impl Runtime for FakeRuntime {
    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        self.enter(Call::Engine, None).await.map_err(RuntimeError::Engine)?;
        Ok(EngineFacts {
            version: "fake".to_owned(),
            cgroup_version: Some(2),
            live_restore: true,
            swap_limit: true,
            security_options: vec!["name=seccomp,profile=default".to_owned()],
            runtimes: vec!["runc".to_owned()],
        })
    }

    async fn look(&self, key: &ContainerKey, fingerprint: &str, port: u16) -> Result<Seen, RuntimeError> {
        let is_lost = self.enter(Call::Look, Some(key.cell)).await.map_err(RuntimeError::Look)?;
        if is_lost {
            return Err(RuntimeError::Look(lost()));
        }
        let world = self.world();
        let id = match world.mine(key) {
            Ok(id) => id,
            Err(RuntimeError::Foreign { detail }) => return Ok(Seen::Foreign { detail }),
            Err(_) => {
                return Ok(world.name_taken(key).map_or(Seen::Absent, |detail| Seen::Foreign { detail }));
            }
        };
        let container = world.containers.get(&id).expect("found a moment ago");
        let fits = container.label(label::PLAN) == Some(fingerprint);
        Ok(match (container.state, world.address(container, port)) {
            (State::Running, Some(address)) => Seen::Running { address, fits },
            (State::Paused, Some(address)) => Seen::Paused { address, fits },
            (State::Running | State::Paused, None) => Seen::Between,
            (state @ (State::Created | State::Exited(_)), _) => Seen::Exited { fits, code: state.code() },
        })
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        self.act(Call::Create, plan.key.cell, RuntimeError::Create, |world| Ok((world.create(plan)?, None)))
            .await
    }

    async fn start(&self, key: &ContainerKey, port: u16) -> Result<Started, RuntimeError> {
        let asked = Instant::now();
        self.act(Call::Start, key.cell, RuntimeError::Start, |world| {
            let container = world.containers.get(&world.mine(key)?).cloned().expect("found a moment ago");
            let address = || {
                world.address(&container, port).ok_or(RuntimeError::Unconfirmed {
                    wanted: "running with an address",
                    found: "without".to_owned(),
                })
            };
            match container.state {
                State::Running => return Ok((Started { address: address()?, call: None }, None)),
                State::Paused => return Err(RuntimeError::IsPaused),
                State::Created | State::Exited(_) => {}
            }
            let address = address()?;
            let script = world.starts.get_mut(&key.cell).and_then(VecDeque::pop_front);
            let script = script.unwrap_or(StartScript::Runs);
            let container = world.mine_mut(key)?;
            container.starts += 1;
            match script {
                StartScript::Runs => {
                    container.state = State::Running;
                    let started = Started { address, call: Some(asked..Instant::now()) };
                    Ok((started, Some((container.clone(), CellEventKind::Started))))
                }
                StartScript::Exits(code) => {
                    container.state = State::Exited(code);
                    Err(RuntimeError::Exited { code })
                }
            }
        })
        .await
    }

    async fn pause(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        self.act(Call::Pause, key.cell, RuntimeError::Pause, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Paused => Ok(((), None)),
                State::Running => {
                    container.state = State::Paused;
                    Ok(((), Some((container.clone(), CellEventKind::Paused))))
                }
                State::Created | State::Exited(_) => Err(RuntimeError::NotUp),
            }
        })
        .await
    }

    async fn unpause(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        self.act(Call::Unpause, key.cell, RuntimeError::Unpause, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Running => Ok(((), None)),
                State::Paused => {
                    container.state = State::Running;
                    Ok(((), Some((container.clone(), CellEventKind::Unpaused))))
                }
                State::Created | State::Exited(_) => Err(RuntimeError::NotUp),
            }
        })
        .await
    }

    async fn stop(&self, key: &ContainerKey, _grace: Millis) -> Result<i64, RuntimeError> {
        self.act(Call::Stop, key.cell, RuntimeError::Stop, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Paused => Err(RuntimeError::IsPaused),
                State::Running => {
                    container.state = State::Exited(0);
                    Ok((0, Some((container.clone(), CellEventKind::Died { code: 0 }))))
                }
                state @ (State::Created | State::Exited(_)) => Ok((state.code(), None)),
            }
        })
        .await
    }

    async fn kill_frozen(&self, key: &ContainerKey) -> Result<i64, RuntimeError> {
        self.act(Call::KillFrozen, key.cell, RuntimeError::KillFrozen, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Running => Err(RuntimeError::StillUp),
                State::Paused => {
                    container.state = State::Exited(137);
                    Ok((137, Some((container.clone(), CellEventKind::Died { code: 137 }))))
                }
                state @ (State::Created | State::Exited(_)) => Ok((state.code(), None)),
            }
        })
        .await
    }

    async fn repair(&self, plan: &ContainerPlan, _args: &[&str], _limit: Millis) -> Result<(), RuntimeError> {
        self.act(Call::Repair, plan.key.cell, RuntimeError::Repair, |world| {
            match world.mine(&plan.full_key()) {
                Ok(id) if world.containers.get(&id).is_some_and(|container| container.state.is_up()) => {
                    return Err(RuntimeError::StillUp);
                }
                Ok(_) | Err(RuntimeError::Gone) => {}
                Err(error) => return Err(error),
            }
            world.ensure_image(&plan.image)?;
            match world.repairs.pop_front().unwrap_or(0) {
                0 => Ok(((), None)),
                code => Err(RuntimeError::RepairFailed { code, said: Vec::new() }),
            }
        })
        .await
    }

    async fn remove(&self, key: &ContainerKey, network: &str) -> Result<(), RuntimeError> {
        self.act(Call::Remove, key.cell, RuntimeError::Remove, |world| {
            let removed = match world.mine(key) {
                Ok(id) if world.containers.get(&id).is_some_and(|container| container.state.is_up()) => {
                    return Err(RuntimeError::StillUp);
                }
                Ok(id) => world.containers.remove(&id),
                Err(RuntimeError::Gone) => None,
                Err(error) => return Err(error),
            };
            if world.networks.get(network) == Some(&key.cell.to_string()) {
                world.networks.remove(network);
            }
            Ok(((), removed.map(|container| (container, CellEventKind::Removed))))
        })
        .await
    }

    async fn logs(
        &self,
        key: &ContainerKey,
        lines: usize,
        bytes_max: usize,
    ) -> Result<Vec<String>, RuntimeError> {
        self.enter(Call::Logs, Some(key.cell)).await.map_err(RuntimeError::Logs)?;
        let world = self.world();
        world.mine(key)?;
        let mut room = bytes_max;
        let mut kept = VecDeque::new();
        for line in world.said.get(&key.cell).into_iter().flatten().rev().take(lines) {
            let Some(left) = room.checked_sub(line.len()) else { break };
            room = left;
            kept.push_front(line.clone());
        }
        Ok(kept.into())
    }

    async fn events(&self, node: &NodeId) -> Result<CellEvents, RuntimeError> {
        self.enter(Call::Events, None).await.map_err(RuntimeError::Events)?;
        let node = *node;
        let stream = futures_util::stream::unfold(self.events.subscribe(), move |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok((of, event)) if of == node => return Some((Ok(event), receiver)),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        return Some((Err(RuntimeError::Events(lost())), receiver));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn list_ours(&self, node: &NodeId) -> Result<Vec<Owned>, RuntimeError> {
        self.enter(Call::ListOurs, None).await.map_err(RuntimeError::List)?;
        let node = node.to_string();
        let owned = |container: &Container| {
            if container.label(label::NODE) != Some(node.as_str()) {
                return None;
            }
            Some(Owned {
                cell: container.cell()?,
                op: container.label(label::OP)?.parse().ok()?,
                state: match container.state {
                    State::Running => OwnedState::Running,
                    State::Paused => OwnedState::Paused,
                    State::Created | State::Exited(_) => OwnedState::Exited,
                },
            })
        };
        Ok(self.world().containers.values().filter_map(owned).collect())
    }

    fn calls(&self) -> u64 {
        u64::try_from(self.world().record.len()).unwrap_or(u64::MAX)
    }
}
