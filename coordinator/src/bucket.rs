//! Whether the bucket can be used: looked at when the coordinator starts, every hour, and sooner while it cannot. What was
//! found is in the log, in `berth doctor` and in a metric; nothing else depends on it, and a start does not wait for it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_shared::doctor::{Finding, Level};
use berth_shared::problem::{Code, Problem};
use berth_snapshot::store::DeleteRight;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::repositories::Repositories;

/// How often a bucket that can be used is looked at.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// How soon one that cannot is looked at again: the first time, and at the most. Tests do not wait for that.
const AGAIN: (Duration, Duration) =
    (Duration::from_secs(if cfg!(test) { 1 } else { 10 }), Duration::from_secs(5 * 60));

/// What one credential may do.
type Rights = Result<DeleteRight, Problem>;

/// What was found last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    /// With the credential that nodes are given; `None`: not looked yet.
    nodes: Option<Rights>,
    /// With the one for prunes; `None`: there is none, or not looked yet.
    pruning: Option<Rights>,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct BucketCheck(Arc<Mutex<Found>>);

impl BucketCheck {
    /// Spawns the task that looks.
    pub fn spawn(&self, repositories: Repositories, metrics: Arc<Metrics>, tasks: &Tasks) {
        let this = self.clone();
        tasks.spawn_service("bucket check", move |stop| this.watch(repositories, metrics, stop));
    }

    async fn watch(
        self,
        repositories: Repositories,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut failures = 0_u32;
        let watching = async {
            loop {
                let found = look(&repositories).await;
                let is_good = matches!(found.nodes, Some(Ok(_)));
                metrics.bucket_usable.set(i64::from(is_good));
                let before = std::mem::replace(&mut *self.lock(), found.clone());
                if before != found {
                    tell(&found);
                }
                failures = if is_good { 0 } else { failures.saturating_add(1) };
                tokio::time::sleep(if failures > 0 { again(failures) } else { EVERY }).await;
            }
        };
        stop.run_until_cancelled(watching).await.map_or(Ok(()), |never: Infallible| match never {})
    }

    /// For the check-up.
    pub fn findings(&self) -> Vec<Finding> {
        let found = self.lock().clone();
        let nodes_delete = nodes_delete(&found);
        let Found { nodes, pruning } = found;
        let mut findings = vec![match nodes {
            None => Finding::new("bucket", Level::Note, "it was not looked at yet", "Ask again in a minute."),
            Some(Ok(_)) => Finding::good("bucket", "it can be listed, written and read"),
            Some(Err(problem)) => {
                Finding::new("bucket", Level::Problem, problem.detail, advice(problem.code))
            }
        }];
        if nodes_delete {
            findings.push(Finding::new("bucket_rights", Level::Warning, NODES_DELETE, NODES_DELETE_ADVICE));
        }
        findings.push(match pruning {
            None => Finding::new(
                "bucket_prune",
                Level::Note,
                "there is no credential for prunes: nothing is removed from the bucket",
                "Set `snapshots.prune_credential_file` to a credential that may delete.",
            ),
            Some(Ok(DeleteRight::Allowed)) => {
                Finding::good("bucket_prune", "the credential for prunes may delete")
            }
            Some(Ok(DeleteRight::Refused)) => Finding::new(
                "bucket_prune",
                Level::Problem,
                "the credential for prunes may not delete",
                "Give the key in `snapshots.prune_credential_file` the right s3:DeleteObject.",
            ),
            Some(Err(problem)) => {
                Finding::new("bucket_prune", Level::Problem, problem.detail, advice(problem.code))
            }
        });
        findings
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NODES_DELETE: &str = "the nodes' credential may delete: who takes a node can delete users' snapshots";
const NODES_DELETE_ADVICE: &str = "Give nodes a key without s3:DeleteObject, and put one that may delete into \
    `snapshots.prune_credential_file`; or switch on versioning with a lifecycle of 30 days.";

fn nodes_delete(found: &Found) -> bool {
    found.nodes == Some(Ok(DeleteRight::Allowed))
}

/// How soon a bucket is asked again that has failed so often in a row.
pub(crate) fn again(failures: u32) -> Duration {
    AGAIN.0.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(AGAIN.1)
}

async fn look(repositories: &Repositories) -> Found {
    let vaults = repositories.vaults();
    let nodes = Some(repositories.check_store(vaults.store(vaults.root())).await);
    let pruning = match vaults.pruning_store(vaults.root()) {
        Some(store) => Some(repositories.check_store(store).await),
        None => None,
    };
    Found { nodes, pruning }
}

fn tell(found: &Found) {
    match &found.nodes {
        None => {}
        Some(Ok(_)) => tracing::info!("the bucket can be used"),
        Some(Err(problem)) => {
            let advice = advice(problem.code);
            tracing::warn!(%problem, advice, "the bucket cannot be used, will look again");
        }
    }
    if nodes_delete(found) {
        tracing::warn!(advice = NODES_DELETE_ADVICE, "the nodes' credential may delete");
    }
    match &found.pruning {
        None | Some(Ok(DeleteRight::Allowed)) => {}
        Some(Ok(DeleteRight::Refused)) => tracing::warn!("the credential for prunes may not delete"),
        Some(Err(problem)) => tracing::warn!(%problem, "the credential for prunes cannot be used"),
    }
}

/// What to do about a bucket that cannot be used.
pub(crate) const fn advice(code: Code) -> &'static str {
    match code {
        Code::BucketUnreachable => {
            "Check `snapshots.endpoint` and the network to it. It is looked at again by itself."
        }
        Code::BucketRefused => {
            "Check `snapshots.bucket`, `snapshots.region`, `snapshots.path_style` and the credential: it has to list, read \
             and write."
        }
        _ => "Look into the coordinator's log.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_fails_is_asked_again_soon_then_less_often() {
        let pauses: Vec<u64> = [1, 2, 3, 6, 7, u32::MAX].map(|count| again(count).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 32, 64, 300]);
    }
}
