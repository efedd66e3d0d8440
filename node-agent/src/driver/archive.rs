//! Archiving as the driver sees it: which cells a snapshot in force stands for, how that is proven, what is journaled before a
//! disk goes, and how full the node's disk is. When, and who, is decided by [`berth_node_agent_core::disk`] and the lifecycle.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::Outcome;
use berth_node_agent_core::disk::{Cover, Sample};
use berth_node_agent_core::heads;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;

use super::snapshots::files;
use super::{Driver, Input, Turn, goes_on};
use crate::hands::{Hands, Job};
use crate::runtime::Runtime;
use crate::snapshots::Access;
use crate::store::Store;

/// How often it is looked how full the disk is: cells fill theirs by gigabytes an hour at the most.
pub const LOOK_AT_DISK_EVERY: Millis = Millis::secs(20);

/// All that a proof needs to know.
pub(super) struct Order {
    access: Option<Access>,
    snapshot: SnapshotId,
}

impl<R: Runtime> Driver<R> {
    /// What stands in the store for what is on cells' disks now.
    pub(super) fn cover(&self) -> Cover {
        let memory = self.store.as_ref().map(Store::memory);
        memory.map(|memory| self.snapshots.heads.cover(&self.agent, memory)).unwrap_or_default()
    }

    /// A proof takes its time: what was proven has to be what is in force at its end, too.
    pub(super) fn still_proven(&self, cell: CellId, outcome: Outcome) -> Outcome {
        let heads = &self.snapshots.heads;
        let holds = |store: &Store| heads.is_still_covered(&self.agent, store.memory(), cell);
        if outcome != Outcome::Verified || self.store.as_ref().is_some_and(holds) {
            return outcome;
        }
        Outcome::Failed(Problem::new(Code::NotArchived, "another snapshot is in force by now"))
    }

    /// Room that archived cells come back to: nobody else is given it.
    pub(super) fn keep_room(&self) {
        let archived = self.agent.cells().filter(|cell| cell.archived_in().is_some());
        let sizes = archived.map(|cell| (cell.spec().cell, cell.spec().size.disk)).collect();
        self.hands.quota.keep_room(sizes);
    }

    /// What is written before a disk goes.
    pub(super) fn archive_begins(&self, cell: CellId, turn: &mut Turn) {
        turn.records.extend(self.agent.cell(cell).and_then(heads::archive_begins));
    }

    /// A proof is about to be begun.
    pub(super) fn proof_begins(&mut self, cell: CellId) {
        let Some(snapshot) = self.agent.cell(cell).and_then(|cell| cell.verifies()) else { return };
        let order = Order { access: self.access(cell), snapshot };
        self.proofs.insert(cell, order);
    }

    /// Somebody has started what had not been removed yet: what is on its disk counts again.
    pub(super) fn go_on_from_disk<'a>(&self, cells: impl Iterator<Item = &'a CellId>, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let cells = cells.filter_map(|cell| self.agent.cell(*cell));
        turn.records.extend(cells.filter_map(|cell| heads::goes_on_from_disk(memory, cell)));
    }

    /// Begins to look how full the disk is, unless the last look goes on still.
    pub(super) fn look_at_disk(&mut self) {
        if goes_on(self.disk_round.as_ref()) {
            return;
        }
        let folder = self.hands.config.data_dir.clone();
        let (loopback, tasks) = (self.loopback.clone(), self.tasks.clone());
        self.disk_round = Some(self.tasks.spawn_client("disk", async move {
            // A look that was lost is one of a process that ends.
            let looked = tasks.blocking("disk", move || rustix::fs::statvfs(&folder));
            match looked.await {
                Ok(Ok(stat)) => {
                    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.f_frsize));
                    // Of what root keeps for itself nothing is a cell's.
                    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
                    let total = bytes(used.saturating_add(stat.f_bavail));
                    let sample = Sample { total, free: bytes(stat.f_bavail) };
                    // The driver is gone only when the agent ends.
                    let _ = loopback.send(Input::Disk(sample)).await;
                }
                Ok(Err(error)) => tracing::warn!(%error, "how full the disk is cannot be seen"),
                Err(_) => {}
            }
        }));
    }

    pub(super) fn disk_seen(&mut self, sample: Sample, turn: &mut Turn) {
        let was_short = self.agent.disk().is_short();
        let cover = self.cover();
        self.step(agent::Event::Covered(cover), turn);
        self.step(agent::Event::Disk(sample), turn);
        self.metrics.disk(sample);
        let is_short = self.agent.disk().is_short();
        if is_short != was_short {
            let fill_percent = sample.fill_percent();
            if is_short {
                tracing::info!(fill_percent, free = %sample.free, "the disk is short: stopped cells leave it");
            } else {
                tracing::info!(fill_percent, free = %sample.free, "the disk has room again");
            }
        }
    }
}

/// Has the snapshot read back, and compared with what is on the cell's disk.
pub(super) async fn prove<R: Runtime>(hands: &Hands<R>, job: &Job, order: Order) -> Outcome {
    match read_back(hands, job, order).await {
        Ok(()) => Outcome::Verified,
        Err(detail) => Outcome::Failed(Problem::new(Code::NotArchived, detail)),
    }
}

async fn read_back<R: Runtime>(hands: &Hands<R>, job: &Job, order: Order) -> Result<(), String> {
    let access = order.access.ok_or("the node was not told where the user's snapshots are")?;
    let cells = hands.quota.cells().map_err(|error| error.to_string())?;
    // A disk that is not there is not made for this.
    if !cells.contains(&job.spec.cell) {
        return Err("the cell has no disk here".to_owned());
    }
    let files = files(hands, job).await.map_err(|problem| problem.detail)?;
    hands.snapshots.verify(&files, &access, order.snapshot).await
}
