//! The real container engine: Docker, through its socket.
//!
//! | module | decides |
//! |---|---|
//! | `engine` | how a request is sent, bounded, counted, and what its failure means |
//! | `find` | which container is the cell's, and what it is doing |
//! | `profile` | what a cell's container is made of (DESIGN.md, section 11) |
//! | `create` | network and container are there and fit |
//! | `network` | the cell's own bridge |
//! | `image` | which images are pulled, and which have to be there |
//! | `cgroup` | where the kernel keeps a container's group, and how much CPU it has used |
//! | `frozen` | how a paused container ends without running again |
//! | `memory` | what a container holds in memory and swap, and how that is pushed out |
//! | `observe` | what its processes do |
//! | `stat` | how a process's line in /proc is read |
//! | `touched` | which memory a wake needs, and how that is read back before the next |
//! | `orphan` | how a container ends that belongs to no cell any more |
//! | `watch` | output, events and lists |
//!
//! Works with API 1.41 (Docker 20.10) and newer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_daemon::exit::chain;
use berth_node_agent_core::cell::{Observation, Pushed, Seen};
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::cell::ImageRef;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use bollard::query_parameters::{RemoveContainerOptions, StopContainerOptions};

use super::{
    CellEvents, ContainerKey, ContainerPlan, Created, EngineFacts, Owned, Runtime, RuntimeError, Started,
    Usage,
};

pub(crate) mod cgroup;
mod create;
mod engine;
pub(crate) mod find;
pub(crate) mod frozen;
mod image;
pub(crate) mod memory;
mod network;
pub(crate) mod observe;
mod orphan;
pub(super) mod profile;
mod stat;
pub(crate) mod touched;
pub(crate) mod watch;

use engine::Engine;
use find::{Mine, Up};
use touched::Touched;

/// A question that dockerd answers from its memory, even on a machine at load 20.
const ASK: Millis = Millis::secs(15);

/// A change of a container's state that is not a stop.
const ACT: Millis = Millis::secs(50);

/// A wake waits so long for what it will touch to be read back. That takes a tenth of a second where the disk is not busy.
const READ_BACK_MAX: Duration = Duration::from_secs(1);

/// What a stop may take beyond its grace: the kill, and the clean-up of network and mounts.
const STOP_MARGIN: Millis = Millis::secs(12);

/// A much larger note replaces a smaller one only after so many: that wake did more than to answer, such as to collect garbage.
const KEPT_MAX: u32 = 3;

/// What is known of what a cell's next thaw will touch.
#[derive(Debug)]
enum Known {
    /// What it holds when it is paused: the rest is out already.
    Thinned,
    /// What it held then. Its first wake's own note takes this place.
    Guessed(Arc<Touched>),
    /// What a wake had touched.
    Noted {
        touched: Arc<Touched>,
        size: Bytes,
        /// So many larger notes were not taken in its place.
        kept: u32,
    },
}

/// Docker. Cheap to keep, holds no connection between calls.
#[derive(Debug)]
pub struct DockerRuntime {
    engine: Engine,
    /// Of each cell that was thawed, or is to be frozen, until its container ends.
    touched: Mutex<BTreeMap<CellId, Known>>,
    /// Of each cell whose cold pages were looked at: the group of its container, which has the same name for as long as that
    /// container is there, so that the engine need not be asked each time.
    groups: Mutex<BTreeMap<CellId, memory::Group>>,
}

impl DockerRuntime {
    /// Docker at this socket. Nothing is asked of it yet: it may be down, now and later.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { engine: Engine::new(socket.into()), touched: Mutex::default(), groups: Mutex::default() }
    }

    fn touched(&self) -> MutexGuard<'_, BTreeMap<CellId, Known>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<CellId, memory::Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cell's container, for a verb that needs one.
    async fn mine(&self, key: &ContainerKey) -> Result<Mine, RuntimeError> {
        match find::find(&self.engine, key).await.map_err(RuntimeError::Look)? {
            find::Found::One(mine) => Ok(*mine),
            find::Found::Nothing { .. } => Err(RuntimeError::Gone),
            find::Found::Stranger { detail } => Err(RuntimeError::Foreign { detail }),
        }
    }
}

/// What a container's processes have in memory now; `None` where that could not be noted, or is too much to be read back.
async fn held_now(cell: CellId, first: i64, id: String) -> Option<Touched> {
    // A panic ends the process by itself.
    match tokio::task::spawn_blocking(move || Touched::now(first, &id)).await.ok()? {
        Ok(held) => {
            tracing::debug!(%cell, pages = %held.size(), bytes = held.note_bytes(), "what a wake touches is noted");
            Some(held)
        }
        Err(error) => {
            tracing::debug!(%cell, error = chain(&error), "what a wake touches is not noted");
            None
        }
    }
}

/// While it runs it may have little in swap. Where that cannot be set it runs all the same.
async fn limit_swap(mine: &Mine) {
    let Some(first) = mine.first_process() else { return };
    let id = mine.id.clone();
    let limited = tokio::task::spawn_blocking(move || {
        memory::Group::of(first, &id).map_or(Ok(()), |group| group.limit_swap(true))
    });
    if let Ok(Err(error)) = limited.await {
        tracing::warn!(container = mine.id, %error, "a running container's swap could not be limited");
    }
}

fn unconfirmed(wanted: &'static str, up: Up) -> RuntimeError {
    RuntimeError::Unconfirmed { wanted, found: up.word().to_owned() }
}

impl Runtime for DockerRuntime {
    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        watch::facts(&self.engine).await.map_err(RuntimeError::Engine)
    }

    async fn look(&self, key: &ContainerKey, fingerprint: &str, port: u16) -> Result<Seen, RuntimeError> {
        Ok(match find::find(&self.engine, key).await.map_err(RuntimeError::Look)? {
            find::Found::One(mine) => mine.seen(fingerprint, port),
            find::Found::Nothing { name_taken_by: None } => Seen::Absent,
            find::Found::Nothing { name_taken_by: Some(detail) } | find::Found::Stranger { detail } => {
                Seen::Foreign { detail }
            }
        })
    }

    async fn limit_swap(&self, key: &ContainerKey) {
        if let Ok(mine) = self.mine(key).await
            && mine.up() == Up::Running
        {
            limit_swap(&mine).await;
        }
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        Box::pin(create::create(&self.engine, plan)).await
    }

    async fn pull(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        image::pull(&self.engine, image).await
    }

    async fn start(&self, key: &ContainerKey, port: u16) -> Result<Started, RuntimeError> {
        let listed = find::list(&self.engine, key).await.map_err(RuntimeError::Look)?;
        let (id, op, rests) = match listed.claim {
            find::Claim::One { id, op, rests } => (id, op, rests),
            find::Claim::Nothing => return Err(RuntimeError::Gone),
            find::Claim::Stranger { detail } => return Err(RuntimeError::Foreign { detail }),
        };
        let mine = async |id| {
            let mine = find::inspect(&self.engine, id, op).await.map_err(RuntimeError::Look)?;
            mine.ok_or(RuntimeError::Gone)
        };
        let up = if rests { Up::Exited } else { mine(id.clone()).await?.up() };
        let call = match up {
            Up::Running => None,
            Up::Paused => return Err(RuntimeError::IsPaused),
            Up::Exited | Up::Between => {
                let (asked, stopped) = (Instant::now(), id.as_str());
                self.engine
                    .call(ACT, |docker| async move { docker.start_container(stopped, None).await })
                    .await
                    .map_err(RuntimeError::Start)?;
                Some(asked..Instant::now())
            }
        };
        // What was just found by its labels keeps them: its id is enough now.
        let mine = mine(id).await?;
        match (mine.up(), mine.address(port)) {
            (Up::Running, Some(address)) => {
                limit_swap(&mine).await;
                Ok(Started { address, call })
            }
            (Up::Running, None) => Err(RuntimeError::Unconfirmed {
                wanted: "running with an address",
                found: "without".to_owned(),
            }),
            (Up::Exited, _) => Err(RuntimeError::Exited { code: mine.exit_code() }),
            (up @ (Up::Paused | Up::Between), _) => Err(unconfirmed("running", up)),
        }
    }

    async fn pause(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Paused => return Ok(()),
            Up::Running => {}
            Up::Exited => return Err(RuntimeError::NotUp),
            Up::Between => return Err(unconfirmed("running", Up::Between)),
        }
        let asked = self
            .engine
            .call(ACT, |docker| async move { docker.pause_container(&mine.id).await })
            .await
            .map_err(RuntimeError::Pause);
        // What is seen beats what was answered: an answer can be lost, or come from a race with somebody else.
        let up = self.mine(key).await?.up();
        if up == Up::Paused {
            return Ok(());
        }
        asked.and(Err(unconfirmed("paused", up)))
    }

    async fn unpause(&self, key: &ContainerKey) -> Result<Option<Range<Instant>>, RuntimeError> {
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Running => return Ok(None),
            Up::Paused => {}
            Up::Exited => return Err(RuntimeError::NotUp),
            Up::Between => return Err(unconfirmed("paused", Up::Between)),
        }
        limit_swap(&mine).await;
        let begun = Instant::now();
        let asked = self
            .engine
            .call(ACT, |docker| async move { docker.unpause_container(&mine.id).await })
            .await
            .map_err(RuntimeError::Unpause);
        let call = begun..Instant::now();
        let up = self.mine(key).await?.up();
        if up == Up::Running {
            return Ok(Some(call));
        }
        asked.and(Err(unconfirmed("running", up)))
    }

    async fn note_touched(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        let mine = self.mine(key).await?;
        let (Up::Running, Some(first)) = (mine.up(), mine.first_process()) else {
            return Err(RuntimeError::NotUp);
        };
        if let Some(noted) = held_now(key.cell, first, mine.id).await {
            let size = noted.size();
            let mut all = self.touched();
            match all.get_mut(&key.cell) {
                Some(Known::Noted { size: held, kept, .. })
                    if held.0 + held.0 / 4 < size.0 && *kept < KEPT_MAX =>
                {
                    *kept += 1;
                }
                _ => {
                    all.insert(key.cell, Known::Noted { touched: Arc::new(noted), size, kept: 0 });
                }
            }
        }
        Ok(())
    }

    async fn read_back(&self, key: &ContainerKey) -> Bytes {
        let noted = match self.touched().get(&key.cell) {
            Some(Known::Guessed(touched) | Known::Noted { touched, .. }) => Arc::clone(touched),
            Some(Known::Thinned) | None => return Bytes::ZERO,
        };
        // The blocking call goes on where the disk is slow; the wake does not wait for it any more.
        let asked = tokio::task::spawn_blocking(move || noted.read_back());
        match tokio::time::timeout(READ_BACK_MAX, asked).await {
            Ok(Ok(Ok(asked))) => asked,
            Ok(Ok(Err(error))) => {
                tracing::info!(cell = %key.cell, %error, "memory is read back page by page: it cannot be asked for");
                self.touched().remove(&key.cell);
                Bytes::ZERO
            }
            Ok(Err(_)) | Err(_) => Bytes::ZERO,
        }
    }

    async fn observe(&self, key: &ContainerKey, span: Millis) -> Result<Observation, RuntimeError> {
        let mine = self.mine(key).await?;
        let (Up::Running, Some(first)) = (mine.up(), mine.first_process()) else {
            return Err(RuntimeError::NotUp);
        };
        let look = |id: String| tokio::task::spawn_blocking(move || observe::Look::at(first, &id));
        // A panic ends the process by itself.
        let before = look(mine.id.clone()).await.unwrap_or_default();
        tokio::time::sleep(span.to_std()).await;
        let after = look(mine.id.clone()).await.unwrap_or_default();
        Ok(observe::with_memory(after.since(&before, span), first, &mine.id))
    }

    async fn thin(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        let mine = self.mine(key).await?;
        if mine.up() != Up::Running {
            return Err(RuntimeError::NotUp);
        }
        let group = mine.first_process().and_then(|first| memory::Group::of(first, &mine.id));
        let thinned = group.ok_or(RuntimeError::NoMemoryGroup)?.thin().await.map_err(RuntimeError::Push)?;
        self.touched().entry(key.cell).or_insert(Known::Thinned);
        Ok(thinned)
    }

    async fn held(&self, key: &ContainerKey) -> Result<Option<cold::Held>, RuntimeError> {
        // A panic ends the process by itself.
        let look = |group: memory::Group| tokio::task::spawn_blocking(move || group.cold());
        let known = self.groups().get(&key.cell).cloned();
        if let Some(group) = known {
            if let Some(held) = look(group).await.ok().flatten() {
                return Ok(Some(held));
            }
            self.groups().remove(&key.cell);
        }
        let mine = self.mine(key).await?;
        let (Up::Running, Some(first)) = (mine.up(), mine.first_process()) else { return Ok(None) };
        let Some(group) = memory::Group::of(first, &mine.id) else { return Ok(None) };
        let held = look(group.clone()).await.ok().flatten();
        if held.is_some() {
            self.groups().insert(key.cell, group);
        }
        Ok(held)
    }

    async fn cool(&self, key: &ContainerKey, step: Bytes) -> Result<Cooled, RuntimeError> {
        let group = self.groups().get(&key.cell).cloned();
        group.ok_or(RuntimeError::NoMemoryGroup)?.cool(step).await.map_err(RuntimeError::Push)
    }

    async fn push(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Paused => {}
            Up::Running => return Err(RuntimeError::StillUp),
            Up::Exited => return Err(RuntimeError::NotUp),
            Up::Between => return Err(unconfirmed("paused", Up::Between)),
        }
        let is_thin = matches!(self.touched().get(&key.cell), Some(Known::Thinned));
        if let Some(first) = mine.first_process().filter(|_| is_thin) {
            let held = held_now(key.cell, first, mine.id.clone()).await;
            let mut all = self.touched();
            match held {
                Some(held) => drop(all.insert(key.cell, Known::Guessed(Arc::new(held)))),
                None => drop(all.remove(&key.cell)),
            }
        }
        let group = mine.first_process().and_then(|first| memory::Group::of(first, &mine.id));
        group.ok_or(RuntimeError::NoMemoryGroup)?.push().await.map_err(RuntimeError::Push)
    }

    async fn stop(&self, key: &ContainerKey, grace: Millis) -> Result<i64, RuntimeError> {
        self.touched().remove(&key.cell);
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Exited => return Ok(mine.exit_code()),
            // Docker would thaw it in order to end it, and it would run work that nobody waits for.
            Up::Paused => return Err(RuntimeError::IsPaused),
            Up::Running | Up::Between => {}
        }
        let options = StopContainerOptions {
            t: Some(i32::try_from(grace.0.div_ceil(1000)).unwrap_or(i32::MAX)),
            ..Default::default()
        };
        let limit = Millis(grace.0.saturating_add(STOP_MARGIN.0));
        let asked = self
            .engine
            .call(limit, |docker| async move { docker.stop_container(&mine.id, Some(options)).await })
            .await
            .map_err(RuntimeError::Stop);
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Exited => Ok(mine.exit_code()),
            up @ (Up::Running | Up::Paused | Up::Between) => asked.and(Err(unconfirmed("stopped", up))),
        }
    }

    async fn kill_frozen(&self, key: &ContainerKey) -> Result<i64, RuntimeError> {
        self.touched().remove(&key.cell);
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Exited => return Ok(mine.exit_code()),
            Up::Paused => {}
            Up::Running => return Err(RuntimeError::StillUp),
            Up::Between => return Err(unconfirmed("paused", Up::Between)),
        }
        frozen::end(&self.engine, &mine).await.map_err(RuntimeError::KillFrozen)?;
        let mine = self.mine(key).await?;
        match mine.up() {
            Up::Exited => Ok(mine.exit_code()),
            up @ (Up::Running | Up::Paused | Up::Between) => Err(unconfirmed("ended", up)),
        }
    }

    async fn repair(&self, plan: &ContainerPlan, args: &[&str], limit: Millis) -> Result<(), RuntimeError> {
        create::repair(&self.engine, plan, args, limit).await
    }

    async fn remove(&self, key: &ContainerKey, network: &str) -> Result<(), RuntimeError> {
        self.touched().remove(&key.cell);
        self.groups().remove(&key.cell);
        match self.mine(key).await {
            Ok(mine) => {
                if matches!(mine.up(), Up::Running | Up::Paused) {
                    return Err(RuntimeError::StillUp);
                }
                remove_container(&self.engine, &mine.id, false).await.map_err(RuntimeError::Remove)?;
            }
            Err(RuntimeError::Gone) => {}
            Err(error) => return Err(error),
        }
        let repairs = find::list(&self.engine, key).await.map_err(RuntimeError::Remove)?.repairs;
        find::remove_repairs(&self.engine, &repairs).await.map_err(RuntimeError::Remove)?;
        network::remove(&self.engine, key, network).await
    }

    async fn logs(
        &self,
        key: &ContainerKey,
        lines: usize,
        bytes_max: usize,
    ) -> Result<Vec<String>, RuntimeError> {
        let mine = self.mine(key).await?;
        watch::logs(&self.engine, &mine.id, lines, bytes_max).await.map_err(RuntimeError::Logs)
    }

    async fn usage(&self, key: &ContainerKey) -> Result<Option<Usage>, RuntimeError> {
        let mine = self.mine(key).await?;
        let (Up::Running, Some(first)) = (mine.up(), mine.first_process()) else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || {
            let anonymous = memory::Group::of(first, &mine.id).and_then(|group| group.anonymous());
            cgroup::cpu_time(first, &mine.id).map(|cpu| Usage { cpu, anonymous })
        });
        let read = read.await;
        // A panic ends the process by itself.
        Ok(read.ok().flatten())
    }

    async fn events(&self, node: &NodeId) -> Result<CellEvents, RuntimeError> {
        watch::events(&self.engine, node).await
    }

    async fn list_ours(&self, node: &NodeId) -> Result<Vec<Owned>, RuntimeError> {
        watch::list_ours(&self.engine, node).await.map_err(RuntimeError::List)
    }

    async fn remove_orphan(&self, node: &NodeId, orphan: &Owned, grace: Millis) -> Result<(), RuntimeError> {
        Box::pin(orphan::remove(&self.engine, node, orphan, grace)).await
    }

    fn calls(&self) -> u64 {
        self.engine.calls()
    }
}

/// Removes a container that was found to be ours, with its anonymous volumes. `force` ends it first. Gone is fine.
async fn remove_container(engine: &Engine, id: &str, force: bool) -> Result<(), super::EngineError> {
    let options = RemoveContainerOptions { v: true, force, link: false };
    match engine.call(ACT, |docker| async move { docker.remove_container(id, Some(options)).await }).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
