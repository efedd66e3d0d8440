//! What is gone from a repository: what the coordinator knows of it and the repository lists no more.
//!
//! Asked before a prune and behind it, however it ended: its deletes come first, so one that failed or was killed may have
//! taken snapshots all the same. And behind a check: an operator may have forgotten some with stock `restic`.
//!
//! HEAD is never forgotten. Where the repository does not list it, that is damage, and nothing else is believed to be gone.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command};
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_snapshot::protocol::{Job, Line};
use berth_snapshot::store::StoreConfig;

use super::Upkeep;
use crate::failpoint;

/// How long a listing may take: each snapshot is an object that is read.
const LIST_MAX: Duration = Duration::from_secs(20 * 60);

impl Upkeep {
    /// Forgets what of the user's history the repository does not list, and what a prune has said to be `gone`.
    ///
    /// # Errors
    /// It cannot be listed. [`Code::RepositoryDamaged`]: HEAD is not there.
    pub(super) async fn forget_gone(
        &self,
        user: UserId,
        actor: Actor,
        place: &StoreConfig,
        mut gone: BTreeSet<SnapshotId>,
    ) -> Result<(), Problem> {
        let unlisted = self.unlisted(user, place).await;
        gone.extend(unlisted.iter().flatten());
        if !gone.is_empty() {
            tracing::info!(%user, %actor, gone = gone.len(), "snapshots are gone from a repository");
            let forget = SnapshotCommand::Forget { user, gone };
            self.0.store.submit(actor, Command::Snapshot(forget)).await?;
            failpoint::PRUNE_RECORDED.reach();
        }
        unlisted?;
        let waited = self.book().listed(user);
        if waited {
            self.remember().await;
        }
        Ok(())
    }

    /// Of the user's history, what is not there.
    async fn unlisted(&self, user: UserId, place: &StoreConfig) -> Result<BTreeSet<SnapshotId>, Problem> {
        // Of before the listing: what is taken meanwhile need not be in it.
        let fleet = self.0.store.fleet();
        let Some(vault) = fleet.vault(user) else { return Ok(BTreeSet::new()) };
        let head = vault.head.as_ref().map(|head| head.id);
        let mut missing: BTreeSet<_> = vault.history.iter().map(|kept| kept.id).chain(head).collect();
        let listed = |line| {
            if let Line::Snapshot(line) = line
                && let Ok(id) = line.id.parse()
            {
                missing.remove(&id);
            }
        };
        self.0.repositories.keep_up(place.clone(), Some(user), Job::List, LIST_MAX, listed).await?;
        if let Some(head) = head.filter(|head| missing.contains(head)) {
            let detail = format!("HEAD is snapshot {head}, which the repository does not list");
            return Err(Problem::new(Code::RepositoryDamaged, detail));
        }
        Ok(missing)
    }
}
