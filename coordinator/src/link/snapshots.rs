//! What nodes say of snapshots that they took: written down, then answered. A node asks again until it has a final word.

use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::snapshots::{SnapshotCommand, StaleGeneration, Standing, is_final};
use berth_coordinator_core::{Actor, Command};
use berth_shared::ids::UserId;
use berth_shared::snapshot::{Snapshot, SnapshotOutcome};
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
        let command = SnapshotCommand::Take { node, user, snapshot, aside };
        let judged = self.store.submit(Actor::Node(node), Command::Snapshot(command)).await;
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
        let labels = JudgedLabels { outcome: Judged::from(&outcome) };
        self.metrics.snapshots_judged.get_or_create(&labels).inc();
        // A node that is gone meanwhile tells of it again.
        let answer = CoordinatorFrame::SnapshotJudged { user, snapshot: id, outcome };
        let _gone = self.hub.tell(node, "a snapshot", answer);
    }
}
