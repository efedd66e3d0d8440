//! What is on a cell's disk is kept before another image has it: what that takes, and how it is carried out. That it is to be is
//! the lifecycle's to know.

use berth_daemon::exit::chain;
use berth_node_agent_core::cell::Outcome;
use berth_node_agent_core::heads;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_snapshot::Skips;
use tokio::sync::{mpsc, oneshot};

use super::snapshots::{Ended, files_there};
use super::{Driver, Input, Turn};
use crate::failpoint;
use crate::hands::{Hands, Job};
use crate::runtime::Runtime;
use crate::snapshots::{Files, Take};
use crate::store::Store;

/// What is to be done before another image runs.
pub(super) enum Order {
    /// A snapshot stands for what is there, or there is no bucket.
    Nothing,
    /// This one is taken.
    Take(Box<Take>),
    /// Nobody knows where it would go.
    Unknown,
}

impl<R: Runtime> Driver<R> {
    /// What is written before what is there is kept.
    pub(super) fn save_begins(&mut self, cell: CellId, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        let is_kept = !heads::known(memory, cell, (self.hands.wall)()).dirty;
        let has_bucket = memory.repositories.has_bucket;
        let take = if is_kept { None } else { self.plan_take(cell, false, turn) };
        let order = match take {
            Some(take) => Order::Take(Box::new(take)),
            None if is_kept || !has_bucket => Order::Nothing,
            None => Order::Unknown,
        };
        self.saves.insert(cell, order);
    }

    /// What is written before a cell is started.
    pub(super) fn start_begins(&self, cell: CellId, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        turn.records.extend(self.agent.cell(cell).and_then(|cell| memory.starts(cell)));
    }
}

/// Carries it out.
pub(super) async fn save<R: Runtime>(
    hands: &Hands<R>,
    job: &Job,
    order: Order,
    tell: &mpsc::Sender<Input>,
) -> Outcome {
    let kept = async {
        match order {
            Order::Nothing => Ok(()),
            Order::Take(take) => {
                // Nothing of what it had to leave out is touched by another image.
                keep(hands, &files_there(hands, job).await?, take, tell).await.map(drop)
            }
            Order::Unknown => {
                let text = "the node was not told where the user's snapshots go";
                Err(Problem::new(Code::RepositoryUnknown, text))
            }
        }
    };
    match kept.await {
        Ok(()) => {
            failpoint::IMAGE_SAVED.reach();
            Outcome::Saved
        }
        Err(problem) => Outcome::Failed(problem),
    }
}

/// Takes a snapshot of what is in a cell's folder, and waits until that is written. What it had to leave out.
///
/// # Errors
/// What the worker said; or nobody but this agent would ever know of it.
pub(super) async fn keep<R: Runtime>(
    hands: &Hands<R>,
    files: &Files,
    take: Box<Take>,
    tell: &mpsc::Sender<Input>,
) -> Result<Skips, Problem> {
    let taken = hands.snapshots.keep(files, &take).await?;
    let skips = taken.skips.clone();
    let (written, is_written) = oneshot::channel();
    let ended = Ended { run: None, take, outcome: Ok(taken), written: Some(written) };
    // The driver is gone only when the agent ends.
    let _ = tell.send(Input::SnapshotEnded(ended)).await;
    // From here on it may be the only copy: it has to be told of, whatever becomes of this agent.
    let written = is_written.await.map_err(|_| Problem::new(Code::Internal, "the agent ends"))?;
    written.map_err(|error| Problem::new(Code::JournalFull, chain(&error)))?;
    Ok(skips)
}
