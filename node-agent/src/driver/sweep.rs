//! Containers of this node whose cell nobody knows: neither an assignment, nor a removal under way, nor the journal. They
//! can be left by a create that was given up and came after all when its cell was gone already. They run for nobody,
//! hold memory and a subnet that is another cell's by now, and nobody else would ever end them.
//!
//! Ours by label *and* node id, and still they are treated as if somebody may miss them: looked for only after the
//! coordinator was heard in this life of the agent, so that all that it wants here is known; judged by the driver after
//! they were listed, since each cell is known before its container is made; ended gently; told in the log and counted;
//! and of the data nothing is touched.

use std::sync::Arc;

use berth_daemon::exit::chain;
use berth_shared::ids::CellId;

use super::{Driver, Input, goes_on};
use crate::metrics::Orphan;
use crate::runtime::{Owned, Runtime, STOP_GRACE};

impl<R: Runtime> Driver<R> {
    /// Begins to look for them.
    pub(super) fn sweep(&mut self) {
        if !self.desired_heard || goes_on(self.sweeping.as_ref()) {
            return;
        }
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.sweeping = Some(self.tasks.spawn_client("list", async move {
            match hands.runtime.list_ours(&hands.node).await {
                // The driver is gone only when the agent ends.
                Ok(owned) => drop(loopback.send(Input::Listed(owned)).await),
                Err(error) => {
                    tracing::info!(error = chain(&error), "containers of nobody were not looked for")
                }
            }
        }));
    }

    /// Ends and removes those that are nobody's, one after the other.
    pub(super) fn listed(&mut self, owned: Vec<Owned>) {
        let Some(memory) = self.store.as_ref().map(|store| store.memory()) else { return };
        let is_known = |cell: &CellId| self.agent.cell(*cell).is_some() || memory.cells.contains_key(cell);
        let orphans: Vec<Owned> = owned.into_iter().filter(|owned| !is_known(&owned.cell)).collect();
        if orphans.is_empty() {
            return;
        }
        let (hands, metrics) = (Arc::clone(&self.hands), Arc::clone(&self.metrics));
        self.sweeping = Some(self.tasks.spawn_client("sweep", async move {
            for orphan in orphans {
                let (cell, container) = (orphan.cell, orphan.id.as_str());
                tracing::warn!(%cell, container, state = ?orphan.state,
                    "a container of this node belongs to no cell, is ended and removed; its data stays");
                match hands.runtime.remove_orphan(&hands.node, &orphan, STOP_GRACE).await {
                    Ok(()) => metrics.orphan(Orphan::Removed),
                    Err(error) => {
                        tracing::warn!(%cell, container, error = chain(&error), "it could not be removed");
                        metrics.orphan(Orphan::Left);
                    }
                }
            }
        }));
    }
}
