//! Imports: one at a time, each by a worker that unpacks an archive below the coordinator's folder and makes a snapshot
//! of it.
//!
//! ```text
//! turn ──> imports/RANDOM, empty ──> repository, where there is none ──> worker, fed with the archive ──> snapshot
//!              └── removed at the end whatever it is; what a crash leaves is removed by the next start
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_snapshot::caller::{Broken, Workers};
use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::{Chunking, ImportJob, ImportLimits, Imported, Labels, Reason};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::{READ_MAX, Repositories, TURN_MAX, problem, request, something_else, stopping};
use crate::system::random;

/// The folder below the coordinator's own.
const FOLDER: &str = "imports";

/// How long making a repository may take.
const INIT_MAX: Duration = Duration::from_secs(180);

/// What imports need.
#[derive(Debug)]
pub(super) struct Imports {
    workers: Workers,
    turn: Arc<Semaphore>,
    folder: PathBuf,
}

impl Imports {
    pub(super) fn new(program: PathBuf, data_dir: &Path) -> Self {
        let folder = data_dir.join(FOLDER);
        // A worker has another working folder.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self { workers: Workers::new(program, 1), turn: Arc::new(Semaphore::new(1)), folder }
    }
}

impl Repositories {
    /// Removes what an import has left that was cut short by the end of a daemon.
    pub(crate) async fn clear_imports(&self) {
        let folder = self.0.imports.folder.clone();
        let removed = self.0.tasks.blocking("imports", move || remove(&folder)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "what is left of an import could not be removed");
        }
    }

    /// Makes a snapshot of the user's out of what comes from `archive`.
    ///
    /// # Errors
    /// It is not taken, or the bucket or this machine's disk does not do; then there is no new snapshot.
    pub(crate) async fn import(
        &self,
        user: UserId,
        labels: Labels,
        limits: ImportLimits,
        archive: mpsc::Receiver<Result<Bytes, Broken>>,
    ) -> Result<Imported, Problem> {
        let inner = &self.0;
        let busy = || Problem::new(Code::WorkersBusy, "another import is under way");
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&inner.imports.turn).acquire_owned()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let store = inner.vaults.store(inner.vaults.prefix(user));
        let key = self.key(user).await?;
        self.make_repository(user).await?;
        let staging = Staging::make(&inner.imports.folder, &inner.tasks).await?;
        let job = Job::Import(Box::new(ImportJob { staging: staging.path.clone(), labels, limits }));
        let request = request(store, Some(key), job);
        let work = Box::pin(inner.imports.workers.feed(&request, READ_MAX, archive));
        // A stop does not wait for it: it may be killed at any moment.
        let done = inner.tasks.stopping().run_until_cancelled(work).await.ok_or_else(stopping)?;
        self.count(&request.job, &done);
        match done.map_err(not_imported)?.outcome {
            Outcome::Imported(imported) => Ok(imported),
            other => Err(something_else(&other)),
        }
    }

    /// Makes the user's repository where there is none: its cell may never have been snapshotted.
    async fn make_repository(&self, user: UserId) -> Result<(), Problem> {
        let inner = &self.0;
        let lost = || Problem::new(Code::KeyMissing, format!("the key of {user} is not in the key store"));
        let key = inner.vaults.key(user).await?.ok_or_else(lost)?;
        let init = Job::Init { password: key.password.clone(), chunking: Chunking::default() };
        let store = inner.vaults.store(inner.vaults.prefix(user));
        let request = request(store, Some((&key.master).into()), init);
        let work = Box::pin(inner.imports.workers.run(&request, None, INIT_MAX, |_| {}));
        let done = inner.tasks.stopping().run_until_cancelled(work).await.ok_or_else(stopping)?;
        match done {
            // It is there.
            Err(failed) if failed.reason == Reason::Repository => Ok(()),
            done => {
                self.count(&request.job, &done);
                done.map(drop).map_err(problem)
            }
        }
    }
}

fn not_imported(failed: berth_snapshot::caller::WorkerFailed) -> Problem {
    match failed.reason {
        Reason::TooLarge => Problem::new(Code::ArchiveTooLarge, failed.detail),
        Reason::NoSpace => {
            let detail = format!("the coordinator's disk has no room to unpack it: {}", failed.detail);
            Problem::new(Code::ArchiveTooLarge, detail)
        }
        _ => problem(failed),
    }
}

/// A folder of one import, removed with it.
#[derive(Debug)]
struct Staging {
    path: PathBuf,
    tasks: Tasks,
}

impl Staging {
    async fn make(folder: &Path, tasks: &Tasks) -> Result<Self, Problem> {
        let name = data_encoding::HEXLOWER.encode(&random::<16>());
        let (folder, path) = (folder.to_owned(), folder.join(name));
        let staging = Self { path: path.clone(), tasks: tasks.clone() };
        let make = move || -> std::io::Result<()> {
            use std::os::unix::fs::DirBuilderExt;
            // The turn is this import's: whatever is there is left over.
            remove(&folder)?;
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&path)
        };
        let made = tasks.blocking("imports", make).await.map_err(|_| stopping())?;
        made.map_err(|error| Problem::new(Code::Internal, format!("no folder to import in: {error}")))?;
        Ok(staging)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let (path, tasks) = (self.path.clone(), self.tasks.clone());
        let rest = self.tasks.clone();
        let _at_the_next_start_else = rest.spawn_client("imports", async move {
            let removed = tasks.blocking("imports", move || remove(&path)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, "what is left of an import could not be removed");
            }
        });
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
