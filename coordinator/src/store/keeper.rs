//! The thread that owns the [`Shelf`]: nobody waits for it without a bound, and its end ends nothing else.
//!
//! ```text
//! opening ──found──> keeping ──error, panic──> gone     (logged; the coordinator goes on without snapshots)
//!    │ error, panic, no answer in OPEN_MAX
//!    └──> the folder is removed, once, and opened anew
//! ```
//!
//! A database that takes the whole process with it when it is opened would do so at each start. So a file beside the
//! folder says that it is being opened; when a start finds it, the one before did not get through, and the folder is
//! removed unopened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use berth_coordinator_core::Fleet;
use berth_daemon::exit::chain;
use berth_journal::Mark;

use super::shelf::{Shelf, ShelfError};
use super::snapshot::Snapshot;
use crate::metrics::Metrics;

/// How long opening and reading may take; a replay of the journal takes less.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long the last snapshot may take at a clean stop. Without it the next start replays more, that is all.
const LAST_MAX: Duration = Duration::from_secs(5);

/// Appended to the folder's name.
const OPENING_SUFFIX: &str = ".opening";

/// What there was.
#[derive(Default)]
pub(crate) struct Found {
    /// Newest first.
    pub(crate) snapshots: Vec<Vec<u8>>,
    /// The journal was found damaged before the newest snapshot, so it has to be read as a whole.
    pub(crate) check_wanted: bool,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    jobs: SyncSender<Job>,
}

#[derive(Debug)]
enum Job {
    /// A start is done: only the snapshot with this sequence is of this journal.
    Settle {
        fits: Option<u64>,
    },
    Keep {
        fleet: Arc<Fleet>,
        mark: Mark,
        done: SyncSender<()>,
    },
    WantCheck {
        done: SyncSender<()>,
    },
}

impl Keeper {
    /// Opens the folder, or says in the log why there are no snapshots. Never takes longer than three times
    /// [`OPEN_MAX`].
    pub(crate) fn open(folder: &Path, metrics: &Arc<Metrics>) -> (Option<Self>, Found) {
        let opening = opening_file(folder);
        if opening.exists() {
            tracing::warn!("a start ended while it opened the snapshots: they are thrown away");
            remove(folder);
        }
        if let Err(error) = std::fs::write(&opening, b"") {
            tracing::warn!(error = chain(&error), "no snapshots: the folder's parent cannot be written");
            return (None, Found::default());
        }
        crate::failpoint::SHELF_OPENING.reach();
        let mut tried = Self::try_open(folder, metrics);
        if let Err(trouble) = &tried
            && trouble.is_mended_by_removal()
        {
            tracing::warn!(error = chain(trouble), "the snapshots are thrown away, the journal is replayed");
            remove(folder);
            tried = Self::try_open(folder, metrics);
        }
        // Where it cannot be removed, the next start throws the snapshots away: they are derived.
        let _left = std::fs::remove_file(&opening);
        match tried {
            Ok((keeper, found)) => (Some(keeper), found),
            Err(trouble) => {
                tracing::warn!(
                    error = chain(&trouble),
                    "no snapshots: the next start replays the whole journal"
                );
                (None, Found::default())
            }
        }
    }

    fn try_open(folder: &Path, metrics: &Arc<Metrics>) -> Result<(Self, Found), Trouble> {
        let (to_opener, found) = sync_channel(1);
        let (jobs, to_do) = sync_channel(1);
        let (folder, metrics) = (folder.to_owned(), Arc::clone(metrics));
        let run = move || match look(&folder) {
            Ok((shelf, looked)) => {
                // Nobody waits any more: this thread was given up.
                if to_opener.send(Ok(looked)).is_ok() {
                    work(&shelf, &to_do, &metrics);
                }
            }
            Err(error) => drop(to_opener.send(Err(error))),
        };
        // Not joined: a database that hangs must not hang the process.
        let thread = std::thread::Builder::new().name("snapshots".to_owned()).spawn(run);
        drop(thread.map_err(Trouble::Thread)?);
        match found.recv_timeout(OPEN_MAX) {
            Ok(Ok(found)) => Ok((Self { jobs }, found)),
            Ok(Err(error)) => Err(Trouble::Shelf(error)),
            Err(RecvTimeoutError::Timeout) => Err(Trouble::Late),
            Err(RecvTimeoutError::Disconnected) => Err(Trouble::Panicked),
        }
    }

    /// Says which of what was found is of this journal; the others are removed.
    pub(crate) fn settle(&self, fits: Option<u64>) {
        // The thread has nothing else to do yet. If it has ended, it has said so.
        let _gone = self.jobs.send(Job::Settle { fits });
    }

    /// Has a snapshot made, unless one is under way. Does not wait.
    pub(crate) fn keep(&self, fleet: Arc<Fleet>, mark: Mark) -> bool {
        let (done, _nobody_waits) = sync_channel(1);
        self.jobs.try_send(Job::Keep { fleet, mark, done }).is_ok()
    }

    /// Has the last snapshot made, and waits for it, up to [`LAST_MAX`].
    pub(crate) fn keep_last(&self, fleet: Arc<Fleet>, mark: Mark) {
        let (done, is_done) = sync_channel(1);
        self.ask(Job::Keep { fleet, mark, done }, &is_done);
    }

    /// Has the next start read the whole journal. Waits up to [`LAST_MAX`].
    pub(crate) fn want_check(&self) {
        let (done, is_done) = sync_channel(1);
        self.ask(Job::WantCheck { done }, &is_done);
    }

    fn ask(&self, job: Job, is_done: &Receiver<()>) {
        if self.jobs.send(job).is_ok() && is_done.recv_timeout(LAST_MAX) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the snapshots do not answer");
        }
    }
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Shelf(ShelfError),
    #[error("the snapshots could not be opened in {OPEN_MAX:?}")]
    Late,
    #[error("opening the snapshots panicked")]
    Panicked,
    #[error("the thread for snapshots could not be started")]
    Thread(#[source] io::Error),
}

impl Trouble {
    /// Not where another process uses them, or where a new folder would fare no better.
    const fn is_mended_by_removal(&self) -> bool {
        match self {
            Self::Shelf(ShelfError::InUse) | Self::Thread(_) => false,
            Self::Shelf(
                ShelfError::Folder(_) | ShelfError::Open(_) | ShelfError::Read(_) | ShelfError::Write(_),
            )
            | Self::Late
            | Self::Panicked => true,
        }
    }
}

fn opening_file(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(OPENING_SUFFIX);
    PathBuf::from(name)
}

fn remove(folder: &Path) {
    let removed = match std::fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(folder),
        Ok(_) => std::fs::remove_file(folder),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(error = chain(&error), "the snapshots could not be removed"),
    }
}

fn look(folder: &Path) -> Result<(Shelf, Found), ShelfError> {
    let shelf = Shelf::open(folder)?;
    let snapshots = shelf.all()?.into_iter().map(|(_, bytes)| bytes).collect();
    let check_wanted = shelf.is_check_wanted()?;
    Ok((shelf, Found { snapshots, check_wanted }))
}

/// Until nobody can ask any more, or the shelf fails.
fn work(shelf: &Shelf, to_do: &Receiver<Job>, metrics: &Metrics) {
    let mut newest = None;
    while let Ok(job) = to_do.recv() {
        let worked = match job {
            Job::Settle { fits } => {
                newest = fits;
                shelf.retain(newest.as_slice()).and_then(|()| shelf.want_check(false))
            }
            Job::Keep { fleet, mark, done } => {
                let kept = keep(shelf, &fleet, &mark, &mut newest);
                if kept.is_ok() {
                    metrics.snapshots.inc();
                }
                let _nobody_waits = done.try_send(());
                kept
            }
            Job::WantCheck { done } => {
                let wanted = shelf.want_check(true);
                let _nobody_waits = done.try_send(());
                wanted
            }
        };
        if let Err(error) = worked {
            metrics.snapshot_failures.inc();
            tracing::warn!(error = chain(&error), "no more snapshots until the next start");
            return;
        }
    }
}

/// Puts one up and leaves the one before it, so that damage to the newest does not cost a whole replay.
fn keep(shelf: &Shelf, fleet: &Fleet, mark: &Mark, newest: &mut Option<u64>) -> Result<(), ShelfError> {
    let seq = mark.head.seq.get();
    let bytes = match Snapshot::encode(fleet, mark) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(error = chain(&error), "a snapshot could not be encoded");
            return Ok(());
        }
    };
    shelf.put(seq, &bytes)?;
    let kept: Vec<u64> = newest.replace(seq).into_iter().chain([seq]).collect();
    shelf.retain(&kept)
}
