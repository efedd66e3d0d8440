//! A restore as the driver sees it: what is journaled around it, and how it is carried out. That there is one to be made is
//! the lifecycle's to know.

use std::path::Path;

use berth_node_agent_core::cell::{Outcome, Seen};
use berth_node_agent_core::heads;
use berth_shared::cell::ImageRef;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_shared::time::UnixMs;
use berth_snapshot::{Skips, is_not_the_cells};
use tokio::sync::mpsc;

use super::save::keep;
use super::snapshots::files;
use super::{Driver, Input, Turn};
use crate::failpoint;
use crate::hands::{Hands, Job};
use crate::runtime::Runtime;
use crate::snapshots::{Access, PutBack, Take};
use crate::store::Store;

/// All that a restore needs to know.
pub(super) struct Order {
    access: Option<Access>,
    snapshot: SnapshotId,
    /// Only these files and folders of it.
    paths: Option<Paths>,
    over: bool,
    /// It was taken under this one, which is newer than the cell's.
    newer: Option<ImageRef>,
    /// The cell had left the disk: what is there still is no data of its.
    archived: bool,
    /// What is there now is kept first; of a cell that is new here, where something is there all the same.
    save: Option<Take>,
}

impl<R: Runtime> Driver<R> {
    /// What is written before a restore is begun.
    pub(super) fn restore_begins(&mut self, cell: CellId, turn: &mut Turn) {
        let Some((snapshot, over)) = self.agent.cell(cell).and_then(|cell| cell.restores()) else { return };
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let Some(machine) = self.agent.cell(cell) else { return };
        let archived = machine.archived_in().is_some();
        let paths = machine.restores_paths().cloned();
        let newer = self.snapshots.heads.newer_image(memory, machine, snapshot);
        turn.records.extend(heads::restore_begins(memory, machine));
        let has_disk = || self.hands.quota.cells().is_ok_and(|cells| cells.contains(&cell));
        let save = if over || has_disk() { self.plan_take(cell, false, turn) } else { None };
        let order = Order { access: self.access(cell), snapshot, paths, over, newer, archived, save };
        self.restores.insert(cell, order);
    }

    /// What is written when it has ended.
    pub(super) fn restore_ended(&self, cell: CellId, outcome: &Outcome, turn: &mut Turn) {
        let Some(machine) = self.agent.cell(cell) else { return };
        if let (Outcome::Restored { .. }, Some((snapshot, _))) = (outcome, machine.restores()) {
            let paths = machine.restores_paths().map(Paths::count);
            tracing::info!(%cell, %snapshot, paths, "the cell's data was restored");
        }
        turn.records.extend(heads::restore_ended(machine, outcome));
    }
}

/// Carries it out. A failure leaves what was there before, unless that is half of a restore that was cut short.
pub(super) async fn restore<R: Runtime>(
    hands: &Hands<R>,
    job: &Job,
    order: Order,
    tell: &mpsc::Sender<Input>,
) -> Outcome {
    match keep_and_restore(hands, job, order, tell).await {
        Ok(taken_at) => Outcome::Restored { taken_at },
        Err(problem) if hands.snapshots.is_half_restored(job.spec.cell) => {
            tracing::error!(cell = %job.spec.cell, %problem, "a restore was cut short, it is tried again");
            Outcome::Failed(problem)
        }
        Err(problem) => Outcome::NotRestored(problem),
    }
}

/// Whatever the snapshot had to leave out would be gone with what is there.
fn all_is_kept(skips: Skips) -> Result<(), Problem> {
    if !skips.is_incomplete() {
        return Ok(());
    }
    let names = skips.names.join(", ");
    let text =
        format!("what is there cannot all be kept first, and so it stays: no snapshot can hold {names}");
    Err(Problem::new(Code::SnapshotFailed, text))
}

/// An agent that has lost its journal knows of no container, and would put the data back beneath one that runs.
fn nothing_runs(seen: &Seen) -> Result<(), Problem> {
    match seen {
        Seen::Absent | Seen::Exited { .. } => Ok(()),
        Seen::Foreign { detail } => Err(Problem::new(Code::NotOurs, detail.clone())),
        Seen::Running { .. } | Seen::Paused { .. } | Seen::Between => {
            let text = "a container of the cell is up, and its data is not replaced beneath it";
            Err(Problem::new(Code::RestoreFailed, text))
        }
    }
}

/// Is there anything in the folder of a cell that is new here? The journal that knew of it was lost, then.
fn holds_data(folder: &Path) -> Result<bool, Problem> {
    let failed = |error: std::io::Error| Problem::new(Code::RestoreFailed, error.to_string());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        if !is_not_the_cells(Path::new(&entry.map_err(failed)?.file_name())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keeps what is there, then puts the snapshot in its place. When that was taken.
async fn keep_and_restore<R: Runtime>(
    hands: &Hands<R>,
    job: &Job,
    order: Order,
    tell: &mpsc::Sender<Input>,
) -> Result<UnixMs, Problem> {
    let unknown = |text| Problem::new(Code::RepositoryUnknown, text);
    let access =
        order.access.ok_or_else(|| unknown("the node was not told where the user's snapshots are"))?;
    if let Some(newer) = order.newer {
        let text = format!("the snapshot was taken under {newer}, the cell has {}", job.spec.image);
        return Err(Problem::new(Code::StateTooNew, text));
    }
    if order.archived {
        // There would not always be room for it twice. Nobody is to start it meanwhile.
        hands.empty(job).await?;
    }
    // Half of a restore that was cut short is no state that anybody wants back.
    let is_half = || hands.snapshots.is_half_restored(job.spec.cell);
    if !order.over {
        nothing_runs(&hands.look(job).await?)?;
    }
    let files = files(hands, job).await?;
    let holds = order.over || !order.archived && holds_data(&files.folder)?;
    if let Some(take) = order.save.filter(|_| holds) {
        let kept = keep(hands, &files, Box::new(take), tell).await.and_then(all_is_kept);
        if !is_half() {
            kept?;
        }
    } else if holds && !is_half() {
        let text =
            "what is there could not be kept first: the node was not told where the user's snapshots are";
        return Err(unknown(text));
    }
    failpoint::RESTORE_BEGUN.reach();
    let put_back = PutBack { snapshot: order.snapshot, paths: order.paths, over: order.over };
    let taken_at = hands.snapshots.restore(&files, &access, put_back).await?;
    failpoint::RESTORE_DONE.reach();
    Ok(taken_at)
}
