//! Containers: what the node agent asks of a container engine, and what it may believe of the answers.
//!
//! The [`Runtime`] trait is the edge. [`docker`] is the real engine, `fake` the one of fast tests; the same contract
//! tests run against both. [`failing`] puts failpoints around either.
//!
//! Rules of every implementation:
//! - Nothing is remembered between calls: each verb finds its container anew, by label *and* id (invariant 8). Only the kernel's
//!   group of a container that was found so is, for [`Runtime::held`] and [`Runtime::cool`]: it is named by that id.
//! - A container is ours only if node, cell and the number of a journaled create match ([`ContainerKey`]). What is
//!   not ours is never started, stopped, paused, removed or otherwise touched, whatever its name.
//! - Verbs can be repeated: what is already so succeeds.
//! - A result is told only after it was seen: a pause is confirmed, an address is read after the start returned.
//! - Every call is bounded in time, every answer that a cell can influence is bounded in size.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::{Observation, Pushed, Seen};
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::cell::ImageRef;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use futures_util::stream::BoxStream;

mod error;
pub(crate) mod plan;

pub mod docker;
pub mod failing;
#[cfg(any(test, feature = "fake"))]
pub mod fake;

#[cfg(test)]
mod contract;

pub use error::{EngineError, RuntimeError};
pub use plan::{ContainerKey, ContainerPlan, NetworkPlan, ReadOnlyBind};

/// How long a container may take to end after SIGTERM: OpenClaw drains for up to 325 s (OPENCLAW.md, section 9).
pub const STOP_GRACE: Millis = Millis::secs(330);

/// How long a repair may run: `doctor --fix` on a loaded machine needs most of a cold start's time, more than once.
pub const REPAIR_LIMIT: Millis = Millis::secs(150);

/// Most lines that [`Runtime::logs`] gives.
pub const LOG_LINES_MAX: usize = 10_000;

/// Longest line that [`Runtime::logs`] gives, in bytes; the rest of a longer one is left out.
pub const LOG_LINE_BYTES_MAX: usize = 16 * 1024;

/// What is known of the engine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Its version, as it says.
    pub version: String,
    /// 1 or 2; `None` where it does not tell.
    pub cgroup_version: Option<u8>,
    /// Do containers survive a restart of the engine? Without it nothing may be frozen (DESIGN.md, section 5).
    pub live_restore: bool,
    /// Can a container's swap be limited?
    pub swap_limit: bool,
    /// Such as `name=seccomp,profile=default` and `name=apparmor`.
    pub security_options: Vec<String>,
    /// The runtimes that [`ContainerPlan::runtime`] may name.
    pub runtimes: Vec<String>,
}

/// The container that fits the plan is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// The create that made it. It has to stay among the [`ContainerKey::creates`] for as long as the container lives.
    pub op: u64,
    /// Was it made just now? `false`: one that fits was there.
    pub made: bool,
}

/// The container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Where the workload answers, or will.
    pub address: SocketAddr,
    /// When the engine was asked to start it, and when it said that it had. `None`: it ran already.
    pub call: Option<Range<Instant>>,
}

/// What a running container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time since it was started.
    pub cpu: Micros,
    /// Memory that the kernel cannot take back without swap: not a file's cache. `None` where it does not tell.
    pub anonymous: Option<Bytes>,
}

/// Something that the engine reported unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellEvent {
    /// Of which cell. The container carries this node's label; whether it is ours, a look tells.
    pub cell: CellId,
    /// What.
    pub kind: CellEventKind,
}

/// What a container did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellEventKind {
    /// It was started.
    Started,
    /// It ended.
    Died {
        /// Its exit code; -1 where the engine did not tell.
        code: i64,
    },
    /// The kernel killed a process of it for want of memory.
    OutOfMemory,
    /// It was paused.
    Paused,
    /// It was unpaused.
    Unpaused,
    /// It was removed.
    Removed,
}

/// The engine's reports; ends, with or without an error, when the connection does. The caller connects anew and
/// looks at everything, since what happened in between is lost.
pub type CellEvents = BoxStream<'static, Result<CellEvent, RuntimeError>>;

/// A container with this node's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The engine's id of it.
    pub id: String,
    /// Its cell, by label.
    pub cell: CellId,
    /// The create that made it, by label.
    pub op: u64,
    /// What it is doing, as far as a list tells.
    pub state: OwnedState,
}

/// A container's state in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnedState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It does not run.
    Exited,
    /// Between states.
    Between,
}

/// A container engine.
pub trait Runtime: Send + Sync + 'static {
    /// What is known of the engine.
    fn engine(&self) -> impl Future<Output = Result<EngineFacts, RuntimeError>> + Send;

    /// What there is of this cell. `fits` in the answer: its container was made from a plan with this fingerprint. Changes
    /// nothing, so that it may be asked beside anything.
    fn look(
        &self,
        key: &ContainerKey,
        fingerprint: &str,
        port: u16,
    ) -> impl Future<Output = Result<Seen, RuntimeError>> + Send;

    /// A running container may have no more in swap than while nothing is pushed out of it. Where that cannot be set it runs all
    /// the same.
    fn limit_swap(&self, key: &ContainerKey) -> impl Future<Output = ()> + Send;

    /// Makes sure that network and a container that fits are there. A container of ours that does not fit is replaced, never one
    /// that is up. Where it is of another image, also by a name that means another one by now,
    /// [`ContainerPlan::other_image`] says what becomes of it. An image that is not here is not waited for:
    /// [`RuntimeError::NotPulled`] where [`Self::pull`] can get it.
    fn create(&self, plan: &ContainerPlan) -> impl Future<Output = Result<Created, RuntimeError>> + Send;

    /// Makes sure that the image is here. Only one that is named by digest can be pulled. Ends at once when nobody waits for
    /// it any more.
    fn pull(&self, image: &ImageRef) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Starts the container. The address is read after the start returned. One that runs stays as it is.
    fn start(
        &self,
        key: &ContainerKey,
        port: u16,
    ) -> impl Future<Output = Result<Started, RuntimeError>> + Send;

    /// Pauses the container and confirms it.
    fn pause(&self, key: &ContainerKey) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Unpauses the container and confirms it. Gives when the engine was asked to, and when it said that it had; `None`:
    /// it ran already.
    fn unpause(
        &self,
        key: &ContainerKey,
    ) -> impl Future<Output = Result<Option<Range<Instant>>, RuntimeError>> + Send;

    /// Notes which memory a container has touched that was thawed a moment ago, for [`Runtime::read_back`] before its next
    /// thaw. Kept for as long as this process lives.
    fn note_touched(&self, key: &ContainerKey) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Has that memory of a paused container read back from swap and files, and gives how much; nothing where nothing was
    /// noted. It helps a wake and is never needed for one, so that it does not fail.
    fn read_back(&self, key: &ContainerKey) -> impl Future<Output = Bytes> + Send;

    /// Looks for `span` at what a running container does and holds. One that does not run is refused.
    fn observe(
        &self,
        key: &ContainerKey,
        span: Millis,
    ) -> impl Future<Output = Result<Observation, RuntimeError>> + Send;

    /// Pushes the memory of a running container out to swap, all that it does not take back at once. Ends at once when nobody
    /// waits for it any more. One that does not run is refused.
    fn thin(&self, key: &ContainerKey) -> impl Future<Output = Result<Pushed, RuntimeError>> + Send;

    /// What the cold pages of a running container are judged by; `None` where it does not run, or where the kernel does not
    /// tell, or has no small steps. Asks the engine only where it was not asked before.
    fn held(
        &self,
        key: &ContainerKey,
    ) -> impl Future<Output = Result<Option<cold::Held>, RuntimeError>> + Send;

    /// Pushes at most `step` of a running container's memory out to swap. One that [`Runtime::held`] did not show is refused.
    /// Ends at once when nobody waits for it any more.
    fn cool(
        &self,
        key: &ContainerKey,
        step: Bytes,
    ) -> impl Future<Output = Result<Cooled, RuntimeError>> + Send;

    /// Pushes the memory of a paused container out to swap, and reads back what is left in memory. One that is not paused
    /// is refused. Ends at once when nobody waits for it any more; what is out by then is out.
    fn push(&self, key: &ContainerKey) -> impl Future<Output = Result<Pushed, RuntimeError>> + Send;

    /// Ends the container: SIGTERM, and SIGKILL when `grace` is over. A paused one is refused. Gives the exit code,
    /// also of one that had ended before.
    fn stop(
        &self,
        key: &ContainerKey,
        grace: Millis,
    ) -> impl Future<Output = Result<i64, RuntimeError>> + Send;

    /// Ends a paused container without letting it run again. One that runs is refused. Gives the exit code.
    fn kill_frozen(&self, key: &ContainerKey) -> impl Future<Output = Result<i64, RuntimeError>> + Send;

    /// Runs the workload's own repair once, in a container of its own with the image that the cell's is of, the same folder
    /// and limits and no network, and removes that. `args` stand for the command `gateway …` of the image. The cell must not be up.
    fn repair(
        &self,
        plan: &ContainerPlan,
        args: &[&str],
        limit: Millis,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes container and network; the data stays. One that is up is refused.
    fn remove(
        &self,
        key: &ContainerKey,
        network: &str,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// The newest lines of the container's output, oldest first: at most `lines` (and [`LOG_LINES_MAX`]), together at
    /// most `bytes_max`. Not redacted: they may hold secrets.
    fn logs(
        &self,
        key: &ContainerKey,
        lines: usize,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<String>, RuntimeError>> + Send;

    /// What the container has used since it was started, and uses; `None` while it does not run, or where the kernel does not
    /// tell.
    fn usage(&self, key: &ContainerKey) -> impl Future<Output = Result<Option<Usage>, RuntimeError>> + Send;

    /// Reports about containers with this node's label, from now on.
    fn events(&self, node: &NodeId) -> impl Future<Output = Result<CellEvents, RuntimeError>> + Send;

    /// Every cell's container with this node's label, also of cells that nobody knows any more.
    fn list_ours(&self, node: &NodeId) -> impl Future<Output = Result<Vec<Owned>, RuntimeError>> + Send;

    /// Ends a listed container that is nobody's, gently where it runs and without letting it run where it is paused,
    /// and removes it with its network; the data stays. Gone is fine. The caller answers for that no cell needs it.
    fn remove_orphan(
        &self,
        node: &NodeId,
        orphan: &Owned,
        grace: Millis,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// How many requests were sent to the engine so far.
    fn calls(&self) -> u64;
}
