//! What nodes say of snapshots that they took: written down, then answered. A node asks again until it has a final word.

use std::sync::{MutexGuard, PoisonError};

use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::reports::{REPORT_EVERY, REPORTS_BURST_MAX, Reports};
use berth_coordinator_core::snapshots::{SnapshotCommand, StaleGeneration, Standing, is_final};
use berth_coordinator_core::{Actor, Command};
use berth_link::boot_now;
use berth_shared::ids::{NodeId, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome};
use berth_shared::wire::CoordinatorFrame;

use super::Link;
use crate::metrics::{Judged, JudgedLabels};

impl Link {
    /// A node told of a snapshot. The inbox of all nodes waits meanwhile, one group of the journal at the most.
    pub(super) async fn snapshot_taken(
        &self,
        connection: Connection,
        user: UserId,
        snapshot: Box<Snapshot>,
        aside: bool,
    ) {
        let Some((node, _)) = self.hub.speaker(connection) else { return };
        let (id, generation) = (snapshot.id, snapshot.generation);
        // What is known is answered again: nothing is written for it.
        let known = self.store.fleet().vault(user).is_some_and(|vault| vault.standing(id).is_some());
        let judged = if known || self.reports().has_room(boot_now(), node) {
            let command = SnapshotCommand::Take { node, user, snapshot, aside };
            self.store.submit(Actor::Node(node), Command::Snapshot(command)).await
        } else {
            self.answer_snapshot(node, user, id, SnapshotOutcome::Later(later()));
            return;
        };
        if judged.as_ref().is_ok_and(|accepted| !accepted.events.is_empty())
            && self.reports().written(boot_now(), node)
        {
            tracing::warn!(%node, "a node tells of more snapshots than any should: the rest is written down bit by bit");
        }
        let outcome = match judged {
            Ok(accepted) => match accepted.fleet.vault(user).and_then(|vault| vault.standing(id)) {
                Some(Ok(Standing::Head)) => SnapshotOutcome::Head,
                // What the list has no room for any more is in the repository all the same.
                Some(Ok(Standing::Kept)) | None => SnapshotOutcome::Kept,
                Some(Err(stale)) => {
                    if !accepted.events.is_empty() {
                        let why = stale.to_string();
                        tracing::warn!(%node, %user, snapshot = %id, why, "a snapshot is an orphan");
                    }
                    let StaleGeneration { current, .. } = stale;
                    SnapshotOutcome::Orphan { current }
                }
            },
            Err(problem) => {
                let code = problem.code;
                tracing::warn!(%node, %user, %generation, snapshot = %id, %code, detail = problem.detail,
                    "a snapshot was not taken down");
                if is_final(code) {
                    SnapshotOutcome::Refused(problem)
                } else {
                    SnapshotOutcome::Later(problem)
                }
            }
        };
        self.answer_snapshot(node, user, id, outcome);
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        // A panic ends the process; until then any count is better than another panic.
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_snapshot(&self, node: NodeId, user: UserId, snapshot: SnapshotId, outcome: SnapshotOutcome) {
        let labels = JudgedLabels { outcome: Judged::from(&outcome) };
        self.metrics.snapshots_judged.get_or_create(&labels).inc();
        // A node that is gone meanwhile tells of it again.
        let answer = CoordinatorFrame::SnapshotJudged { user, snapshot, outcome };
        let _gone = self.hub.tell(node, "a snapshot", answer);
    }
}

fn later() -> Problem {
    let detail = format!(
        "the node has told of {REPORTS_BURST_MAX} snapshots at once: one is written down every {REPORT_EVERY} from here on"
    );
    Problem::new(Code::TooMany, detail)
}
