//! A container engine in memory, for fast tests. It passes the same contract tests as Docker.
//!
//! It can be told to misbehave: to fail or delay its next calls, to do what was asked and say that it failed, to lose
//! or end a container behind the agent's back, to hold containers that are not ours.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::Observation;
use berth_shared::cell::ImageRef;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::Millis;
use tokio::sync::broadcast;

mod engine;
mod world;

use world::{Container, State, World};

use super::plan::label;
use super::{CellEvent, CellEventKind, EngineError, RuntimeError};

/// Events that a reader may be behind before its stream ends with an error.
const EVENTS_MAX: usize = 256;

/// A call of the trait, for scripts and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the trait's method of the same name")]
pub enum Call {
    Engine,
    Look,
    Create,
    Pull,
    Start,
    Pause,
    Unpause,
    Observe,
    Push,
    Stop,
    KillFrozen,
    Repair,
    Remove,
    Logs,
    Usage,
    Events,
    ListOurs,
    RemoveOrphan,
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

    /// The cell's container uses so much CPU time.
    pub fn use_cpu(&self, cell: CellId, used: Micros) {
        self.world().cpu.entry(cell).or_default().0 += used.0;
    }

    /// What a look at the cell's processes shows from now on.
    pub fn show(&self, cell: CellId, doing: Observation) {
        self.world().doings.insert(cell, doing);
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
