//! Backups of the key store in the bucket: made by the coordinator itself, so that bucket and recovery key bring all back.
//!
//! ```text
//! the store has changed, ──> a backup, written down in the store ──> PREFIXkeys/MADE-AT_UNTIL.keys ──> written down as taken
//! or the newest is a day old                                                                     └──> those over are removed
//! ```
//!
//! A backup opens with the recovery key only. It is behind the change: no user waits for it, and a bucket that is away is
//! tried again until it has what is here.

mod restore;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_shared::doctor::{Finding, Level};
use berth_shared::problem::Problem;
use berth_shared::time::{Millis, UnixMs};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::bucket::{advice, again};
use crate::keystore::{BackedUp, BackupMark};
use crate::metrics::Metrics;
use crate::repositories::Repositories;
use crate::system::wall_now;

pub use restore::{RestoreError, Restored, restore};

/// How old the newest backup may become.
const AGE_MAX: Millis = Millis::minutes(24 * 60);

/// How much older it is when something is wrong.
const LATE: Millis = Millis::minutes(60);

/// How often it is looked whether the store has changed: what changes meanwhile is in one backup. Tests do not wait for that.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 30_000 });

/// Most backups that are removed at a time: as many as a worker can be told of, and more than a day makes.
const REMOVED_MAX: usize = 3_000;

/// What the newest round left in the bucket although its time is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Left {
    count: usize,
    /// Why; `None`: there is no credential that may delete.
    problem: Option<Problem>,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub struct KeyBackups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    repositories: Repositories,
    /// How long a backup may be kept.
    kept: Millis,
    metrics: Arc<Metrics>,
    /// How the newest round ended; `None`: there was none yet.
    last: Mutex<Option<Result<Left, Problem>>>,
}

impl KeyBackups {
    /// For backups that may be kept for so long.
    pub fn new(repositories: Repositories, kept: Millis, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { repositories, kept, metrics, last: Mutex::default() }))
    }

    /// Spawns the task that makes them.
    pub fn spawn(&self, tasks: &Tasks) {
        let this = self.clone();
        tasks.spawn_service("key backups", move |stop| this.run(stop));
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let running = async {
            let mut failures = 0_u32;
            // What the store remembers may be of another bucket, or gone.
            let mut looked = false;
            loop {
                let ended = self.round(looked).await;
                self.measure().await;
                if let Some(ended) = ended {
                    looked |= ended.is_ok();
                    failures = if ended.is_ok() { 0 } else { failures.saturating_add(1) };
                    self.tell(ended);
                }
                tokio::time::sleep(if failures > 0 { again(failures) } else { LOOK_EVERY }).await;
            }
        };
        stop.run_until_cancelled(running).await.map_or(Ok(()), |never: Infallible| match never {})
    }

    /// Does what is due; `None`: nothing was.
    async fn round(&self, looked: bool) -> Option<Result<Left, Problem>> {
        let vaults = self.0.repositories.vaults();
        match vaults.in_bucket().await {
            Ok(known) if looked && !is_due(&known, wall_now(), self.0.kept) => None,
            Ok(known) => Some(self.back_up(&known).await),
            Err(problem) => Some(Err(problem)),
        }
    }

    async fn back_up(&self, known: &BackedUp) -> Result<Left, Problem> {
        let Inner { repositories, kept, .. } = &*self.0;
        let vaults = repositories.vaults();
        // First of all, so that no backup is made for a bucket that is away.
        let there = repositories.objects(vaults.key_backups(), BackupMark::of_name).await?;
        let is_there = known.newest.is_some_and(|newest| there.contains(&newest));
        if !is_there || is_due(known, wall_now(), *kept) {
            let backup = vaults.back_up_keys(*kept).await?;
            let name = backup.taken.mark.name();
            let bytes = backup.bytes.len();
            repositories.put(vaults.key_backups(), name.clone(), Bytes::from(backup.bytes)).await?;
            vaults.keys_backed_up(backup.taken).await?;
            tracing::info!(name, bytes, "the key store was backed up in the bucket");
        }
        let now = wall_now();
        let over = there.iter().filter(|mark| mark.expires_at <= now).map(BackupMark::name);
        Ok(self.remove(over.take(REMOVED_MAX).collect()).await)
    }

    /// Removes those whose time is over. Only behind a newer one: the last one stays until then.
    async fn remove(&self, over: Vec<String>) -> Left {
        let count = over.len();
        let repositories = &self.0.repositories;
        if count == 0 {
            return Left::default();
        }
        let Some(place) = repositories.vaults().pruning_key_backups() else {
            return Left { count, problem: None };
        };
        match repositories.remove(place, over).await {
            Ok(()) => Left::default(),
            Err(problem) => Left { count, problem: Some(problem) },
        }
    }

    /// Remembers how a round ended; a thing is logged once.
    fn tell(&self, ended: Result<Left, Problem>) {
        let before = self.last().replace(ended.clone());
        if before.as_ref() == Some(&ended) {
            return;
        }
        match ended {
            Ok(Left { problem: Some(problem), count }) => {
                tracing::warn!(%problem, count, "backups of keys whose time is over could not be removed");
            }
            Ok(_) => {}
            Err(problem) => tracing::warn!(%problem, "the key store is not backed up, will retry"),
        }
    }

    async fn measure(&self) {
        // What is wrong with a key store that cannot be read is told elsewhere.
        let Ok(known) = self.0.repositories.vaults().in_bucket().await else { return };
        let seconds = known.newest.map_or(0, |newest| wall_now().since(newest.made_at).0 / 1_000);
        let metrics = &self.0.metrics;
        metrics.key_backup_age.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        metrics.keys_not_backed_up.set(i64::try_from(known.missing).unwrap_or(i64::MAX));
    }

    /// For the check-up.
    pub async fn findings(&self) -> Vec<Finding> {
        let Ok(known) = self.0.repositories.vaults().in_bucket().await else { return vec![] };
        match self.last().clone() {
            None => vec![newest(&known, None, wall_now())],
            Some(Err(problem)) => vec![newest(&known, Some(&problem), wall_now())],
            Some(Ok(left)) => {
                let old = old(&left);
                std::iter::once(newest(&known, None, wall_now())).chain(old).collect()
            }
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Result<Left, Problem>>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the bucket to be given a backup, one of which may be kept for so long? Half of that is the latest.
fn is_due(known: &BackedUp, now: UnixMs, kept: Millis) -> bool {
    let age_max = AGE_MAX.min(Millis(kept.0 / 2));
    let fresh = |newest: BackupMark| newest.made_at <= now && now.since(newest.made_at) < age_max;
    !known.is_current || !known.newest.is_some_and(fresh)
}

/// What the check-up says of the newest backup.
fn newest(known: &BackedUp, failed: Option<&Problem>, now: UnixMs) -> Finding {
    let check = "key_backup";
    let found = match (known.newest, known.missing) {
        (None, _) => format!("the bucket has no backup of the keys; there are {}", known.users),
        (Some(newest), 0) => format!("the bucket's newest backup of the keys is of {}", newest.made_at),
        (Some(newest), missing) => {
            format!(
                "{missing} keys are in no backup in the bucket, the newest of which is of {}",
                newest.made_at
            )
        }
    };
    let late =
        known.newest.is_none_or(|newest| now.since(newest.made_at).0 > AGE_MAX.0.saturating_add(LATE.0));
    match failed {
        Some(problem) => {
            let level = if late || known.missing > 0 { Level::Problem } else { Level::Warning };
            let found = format!("{found}: {}", problem.detail);
            Finding::new(check, level, found, advice(problem.code))
        }
        None if !known.is_current => {
            Finding::new(check, Level::Note, found, "The next one is made within a minute: ask again.")
        }
        None if late => Finding::new(check, Level::Warning, found, "Look into the coordinator's log."),
        None => Finding::good(check, found),
    }
}

/// What it says of old ones that stay, where there are any.
fn old(left: &Left) -> Option<Finding> {
    let found = format!(
        "{} backups in the bucket are older than they may be, and can hold keys that were purged",
        left.count
    );
    match &left.problem {
        _ if left.count == 0 => None,
        None => {
            let advice = "Set `snapshots.prune_credential_file` to a credential that may delete, or remove them yourself.";
            Some(Finding::new("key_backups_old", Level::Warning, found, advice))
        }
        Some(problem) => {
            let found = format!("{found}: {}", problem.detail);
            Some(Finding::new("key_backups_old", Level::Warning, found, advice(problem.code)))
        }
    }
}

#[cfg(test)]
mod tests;
