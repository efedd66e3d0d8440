//! The one writer of fleet and journal.
//!
//! Commands wait in a bounded queue. The writer takes what waits, up to a batch, decides each on the state that the
//! ones before it have made, appends all events as one group with one `fdatasync`, and only then answers and
//! publishes the new state. When there is no room for the group, the state that was tried is thrown away, and all
//! that was decided on top of it is refused: nothing of it was seen outside. When it is unknown what the disk
//! holds, the process ends.
//!
//! | module | decides |
//! |---|---|
//! | `start` | from which snapshot, if any, a start replays |
//! | `writer` | batches, groups, answers, and when a snapshot is made |
//! | `states` | which copies of the state there are, and which may be changed |
//! | `snapshot` | the bytes of a snapshot, and whether they are one |
//! | `keeper`, `shelf` | where snapshots are kept; nothing that happens there ends anything else |
//! | `check` | what is before the snapshot that a start began at is read all the same, later |

mod check;
mod keeper;
mod shelf;
mod snapshot;
mod start;
mod states;
mod writer;

use std::sync::Arc;

use berth_coordinator_core::event::EventError;
use berth_coordinator_core::fleet::Misfit;
use berth_coordinator_core::{Actor, Command, Event, Fleet};
use berth_daemon::exit::Exit;
use berth_journal::{JournalError, ReadError};
use berth_shared::problem::{Code, Problem};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use check::Check;
pub use start::{CHECKED_AT_START, Opened, Places, open, open_folder, replay_event};
pub use writer::Writer;
pub(crate) use writer::new_records;

/// Most commands that wait for the writer. Callers are bounded by their connections, so it does not fill up.
pub const QUEUE_MAX: usize = 1024;

/// Most commands in one group: two events of 8 KiB each stay within the journal's bound.
pub const BATCH_MAX: usize = 128;

/// What to do about a damaged journal.
pub(crate) const ADVICE: &str = "Do not edit or remove its files. Keep a copy of the whole folder, then put the folder of your \
                      newest backup in its place";

/// A command that was carried out.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What is true since; empty when it was so already.
    pub events: Vec<Event>,
    /// The state with them.
    pub fleet: Arc<Fleet>,
}

pub(crate) struct Request {
    pub(crate) actor: Actor,
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<Accepted, Problem>>,
}

/// The way to the writer. Clones are the same.
#[derive(Debug, Clone)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// The writer is no more.
    ended: CancellationToken,
}

impl Store {
    /// The state as it was written last.
    pub fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.borrow())
    }

    /// The state, and its changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }

    /// Has a command carried out. When this returns `Ok`, it is on stable storage.
    ///
    /// # Errors
    /// The refusal, or `journal_full`; nothing has changed then.
    pub async fn submit(&self, actor: Actor, command: Command) -> Result<Accepted, Problem> {
        let (reply, mut answer) = oneshot::channel();
        let stopping = || Problem::new(Code::Starting, "the coordinator is stopping");
        self.requests.send(Request { actor, command, reply }).await.map_err(|_| stopping())?;
        // What is sent in the very moment in which the receiver goes may be left in the channel, which lives as long as we do.
        tokio::select! {
            biased;
            answered = &mut answer => answered.map_err(|_| stopping())?,
            () = self.ended.cancelled() => answer.try_recv().map_err(|_| stopping())?,
        }
    }
}

/// Why a record of the journal is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("the record is not an event")]
    Event(#[source] EventError),
    /// It does not follow from those before it.
    #[error("the event does not fit the ones before it")]
    Misfit(#[source] Misfit),
    /// The journal does not begin with its first record.
    #[error("record {found} comes where {expected} was expected: the journal's beginning is missing")]
    Gap {
        /// Its sequence.
        found: u64,
        /// The one that was due.
        expected: u64,
    },
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or opened.
    #[error("the journal's folder {folder} could not be opened")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The journal cannot be opened or replayed.
    #[error("the journal could not be replayed")]
    Journal(#[source] ReadError<ReplayError>),
}

impl OpenError {
    pub(crate) fn journal(error: JournalError) -> Self {
        Self::Journal(error.into())
    }

    /// The exit code for a coordinator that cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Folder { .. } => Exit::CantCreate,
            Self::Journal(ReadError::Refused { .. }) => Exit::DataCorrupt,
            Self::Journal(ReadError::Journal(error)) => match error {
                JournalError::Corrupt(_) => Exit::DataCorrupt,
                JournalError::Locked => Exit::TempFail,
                JournalError::Full { .. } => Exit::CantCreate,
                _ => Exit::Io,
            },
        }
    }
}

#[cfg(test)]
mod tests;
