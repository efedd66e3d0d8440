//! `berth-coordinator keys restore` without a file: the newest backup in the bucket that is one.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::tasks::Tasks;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{Millis, UnixMs};

use crate::config::Config;
use crate::keystore::{BackupMark, KeyStore, KeyStoreError, RecoveryKey, verbs};
use crate::metrics::Metrics;
use crate::repositories::Repositories;
use crate::system::wall_now;
use crate::vaults::Vaults;

/// Most backups that are tried, from the newest on: whoever may write the bucket can put many before the good one.
const TRIES_MAX: usize = 10_000;

/// What came back.
#[derive(Debug)]
pub struct Restored {
    /// Keys of so many users.
    pub users: usize,
    /// Out of this backup.
    pub name: String,
    /// Newer ones that could not be taken, and why.
    pub passed_over: Vec<String>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The config names no bucket.
    #[error("the config names no bucket, and no backup was given")]
    NoBucket,
    /// The bucket cannot be asked.
    #[error("the bucket cannot be asked for backups")]
    Bucket(#[source] Problem),
    /// It has none.
    #[error("the bucket has no backup of the keys below `{place}`")]
    Nothing {
        /// Where they would be.
        place: String,
    },
    /// It has some.
    #[error("none of {count} backups in the bucket can be brought back, such as the newest, {name}")]
    NoneGood {
        /// How many were tried.
        count: usize,
        /// The newest.
        name: String,
        /// Why that one is not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// What a backup is brought back with.
struct Restoring<'a> {
    store: KeyStore,
    recovery: RecoveryKey,
    repositories: &'a Repositories,
    now: UnixMs,
    also_expired: bool,
    /// How long one may be kept.
    kept: Millis,
}

/// A backup that is not taken.
struct PassedOver {
    name: String,
    exit: Exit,
    why: Box<dyn Error + Send + Sync>,
}

/// Brings the newest good backup in the bucket back, where there is no key store.
///
/// # Errors
/// There is a store already, the bucket cannot be asked, or none of its backups is good, in time and of this recovery key.
pub async fn restore(config: &Config, key_file: &Path, also_expired: bool) -> Result<Restored, ExitError> {
    let (tasks, store) = (Tasks::new(), KeyStore::below(&config.data_dir));
    let vaults = Vaults::without_keys(&config.data_dir, &config.snapshots, &tasks)?;
    let vaults = vaults.ok_or_else(|| Exit::Config.because(RestoreError::NoBucket))?;
    let recovery = verbs::prepare_restore(&store, key_file)?;
    let metrics = Arc::new(Metrics::default());
    let repositories = Repositories::new(vaults.clone(), 1, &config.data_dir, metrics, &tasks)
        .map_err(|error| Exit::Software.because(error))?;
    let listed = repositories.objects(vaults.key_backups(), BackupMark::of_name).await;
    let mut marks = listed.map_err(unavailable)?;
    marks.sort_unstable();
    let now = wall_now();
    let kept = config.snapshots.backups_kept();
    let restoring = Restoring { store, recovery, repositories: &repositories, now, also_expired, kept };
    let mut passed_over: Vec<PassedOver> = vec![];
    for mark in marks.into_iter().rev().take(TRIES_MAX) {
        match restoring.take(mark).await? {
            Ok(users) => {
                let why = |passed: &PassedOver| format!("{}: {}", passed.name, chain(&*passed.why));
                let passed_over = passed_over.iter().map(why).collect();
                return Ok(Restored { users, name: mark.name(), passed_over });
            }
            Err(passed) => passed_over.push(passed),
        }
    }
    let count = passed_over.len();
    Err(match passed_over.into_iter().next() {
        None => Exit::NoInput.because(RestoreError::Nothing { place: vaults.key_backups().prefix }),
        Some(PassedOver { name, exit, why }) => {
            exit.because(RestoreError::NoneGood { count, name, source: why })
        }
    })
}

impl Restoring<'_> {
    /// Gives how many users' keys it has; or why it is not taken, and the next one may be.
    async fn take(&self, mark: BackupMark) -> Result<Result<usize, PassedOver>, ExitError> {
        let Self { store, recovery, repositories, now, also_expired, kept } = self;
        let pass = |exit, why: Box<dyn Error + Send + Sync>| PassedOver { name: mark.name(), exit, why };
        if *now >= mark.expires_at && !also_expired {
            let expired = KeyStoreError::Expired { at: mark.expires_at };
            return Ok(Err(pass(expired.exit(), expired.into())));
        }
        let bytes = match repositories.fetch(repositories.vaults().key_backups(), mark.name()).await {
            Ok(bytes) => bytes,
            Err(problem) if problem.code == Code::RepositoryDamaged => {
                return Ok(Err(pass(Exit::DataCorrupt, problem.into())));
            }
            // One that is there, and that cannot be had just now, is not passed over.
            Err(problem) => return Err(unavailable(problem)),
        };
        let restored = KeyStore::is_backup(&bytes, mark)
            .and_then(|()| store.restore(&bytes, recovery, *now, *also_expired, *kept));
        match restored {
            Ok(users) => Ok(Ok(users)),
            Err(error) if error.is_of_the_backup() => Ok(Err(pass(error.exit(), error.into()))),
            Err(error) => Err(error.exit().because(error)),
        }
    }
}

fn unavailable(problem: Problem) -> ExitError {
    Exit::Unavailable.because(RestoreError::Bucket(problem))
}
