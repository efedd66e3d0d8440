//! A container engine with two failpoints around each of its methods: nothing was asked yet, and nobody has seen the
//! answer. In release builds it is the engine and nothing else. Only what reads from the
//! kernel what a container does and uses, or limits its swap, has none of its own: nothing is lost with it, and around its single
//! requests are those of every request.

use std::ops::Range;
use std::time::Instant;

use berth_failpoint::Point;
use berth_node_agent_core::cell::{Observation, Pushed, Seen};
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::cell::ImageRef;
use berth_shared::ids::NodeId;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;

use super::{
    CellEvents, ContainerKey, ContainerPlan, Created, EngineError, EngineFacts, Owned, Runtime, RuntimeError,
    Started, Usage,
};
use crate::failpoint as at;

/// See the module.
#[derive(Debug)]
pub struct Failing<R>(R);

impl<R> Failing<R> {
    /// This engine.
    pub const fn new(engine: R) -> Self {
        Self(engine)
    }
}

/// Passes `sent`, does it, passes `answered`. What was done stays done when the second one fails: the answer is lost.
async fn between<T>(
    sent: &Point,
    answered: &Point,
    failed: impl Fn(EngineError) -> RuntimeError + Send,
    act: impl Future<Output = Result<T, RuntimeError>> + Send,
) -> Result<T, RuntimeError> {
    at::engine(sent).await.map_err(&failed)?;
    let done = act.await;
    at::engine(answered).await.map_err(failed)?;
    done
}

impl<R: Runtime> Runtime for Failing<R> {
    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        between(&at::ENGINE_SENT, &at::ENGINE_ANSWERED, RuntimeError::Engine, self.0.engine()).await
    }

    async fn look(&self, key: &ContainerKey, fingerprint: &str, port: u16) -> Result<Seen, RuntimeError> {
        let act = self.0.look(key, fingerprint, port);
        between(&at::LOOK_SENT, &at::LOOK_ANSWERED, RuntimeError::Look, act).await
    }

    async fn limit_swap(&self, key: &ContainerKey) {
        self.0.limit_swap(key).await;
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        between(&at::CREATE_SENT, &at::CREATE_ANSWERED, RuntimeError::Create, self.0.create(plan)).await
    }

    async fn pull(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Pull { image: image.clone(), source };
        between(&at::PULL_SENT, &at::PULL_ANSWERED, failed, self.0.pull(image)).await
    }

    async fn start(&self, key: &ContainerKey, port: u16) -> Result<Started, RuntimeError> {
        between(&at::START_SENT, &at::START_ANSWERED, RuntimeError::Start, self.0.start(key, port)).await
    }

    async fn pause(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        between(&at::PAUSE_SENT, &at::PAUSE_ANSWERED, RuntimeError::Pause, self.0.pause(key)).await
    }

    async fn unpause(&self, key: &ContainerKey) -> Result<Option<Range<Instant>>, RuntimeError> {
        between(&at::UNPAUSE_SENT, &at::UNPAUSE_ANSWERED, RuntimeError::Unpause, self.0.unpause(key)).await
    }

    async fn note_touched(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        self.0.note_touched(key).await
    }

    async fn read_back(&self, key: &ContainerKey) -> Bytes {
        self.0.read_back(key).await
    }

    async fn observe(&self, key: &ContainerKey, span: Millis) -> Result<Observation, RuntimeError> {
        self.0.observe(key, span).await
    }

    async fn thin(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        between(&at::THIN_SENT, &at::THIN_ANSWERED, RuntimeError::Look, self.0.thin(key)).await
    }

    async fn held(&self, key: &ContainerKey) -> Result<Option<cold::Held>, RuntimeError> {
        self.0.held(key).await
    }

    async fn cool(&self, key: &ContainerKey, step: Bytes) -> Result<Cooled, RuntimeError> {
        self.0.cool(key, step).await
    }

    async fn push(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        between(&at::PUSH_SENT, &at::PUSH_ANSWERED, RuntimeError::Look, self.0.push(key)).await
    }

    async fn stop(&self, key: &ContainerKey, grace: Millis) -> Result<i64, RuntimeError> {
        between(&at::STOP_SENT, &at::STOP_ANSWERED, RuntimeError::Stop, self.0.stop(key, grace)).await
    }

    async fn kill_frozen(&self, key: &ContainerKey) -> Result<i64, RuntimeError> {
        let act = self.0.kill_frozen(key);
        between(&at::KILL_FROZEN_SENT, &at::KILL_FROZEN_ANSWERED, RuntimeError::KillFrozen, act).await
    }

    async fn repair(&self, plan: &ContainerPlan, args: &[&str], limit: Millis) -> Result<(), RuntimeError> {
        let act = self.0.repair(plan, args, limit);
        between(&at::REPAIR_SENT, &at::REPAIR_ANSWERED, RuntimeError::Repair, act).await
    }

    async fn remove(&self, key: &ContainerKey, network: &str) -> Result<(), RuntimeError> {
        let act = self.0.remove(key, network);
        between(&at::REMOVE_SENT, &at::REMOVE_ANSWERED, RuntimeError::Remove, act).await
    }

    async fn logs(
        &self,
        key: &ContainerKey,
        lines: usize,
        bytes_max: usize,
    ) -> Result<Vec<String>, RuntimeError> {
        let act = self.0.logs(key, lines, bytes_max);
        between(&at::LOGS_SENT, &at::LOGS_ANSWERED, RuntimeError::Logs, act).await
    }

    async fn usage(&self, key: &ContainerKey) -> Result<Option<Usage>, RuntimeError> {
        self.0.usage(key).await
    }

    async fn events(&self, node: &NodeId) -> Result<CellEvents, RuntimeError> {
        between(&at::EVENTS_SENT, &at::EVENTS_ANSWERED, RuntimeError::Events, self.0.events(node)).await
    }

    async fn list_ours(&self, node: &NodeId) -> Result<Vec<Owned>, RuntimeError> {
        between(&at::LIST_SENT, &at::LIST_ANSWERED, RuntimeError::List, self.0.list_ours(node)).await
    }

    async fn remove_orphan(&self, node: &NodeId, orphan: &Owned, grace: Millis) -> Result<(), RuntimeError> {
        let act = self.0.remove_orphan(node, orphan, grace);
        between(&at::ORPHAN_SENT, &at::ORPHAN_ANSWERED, RuntimeError::Remove, act).await
    }

    fn calls(&self) -> u64 {
        self.0.calls()
    }
}
