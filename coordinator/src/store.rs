//! The one writer of fleet and journal.
//!
//! Commands wait in a bounded queue. The writer takes what waits, up to a batch, decides each on the state that the
//! ones before it have made, appends all events as one group with one `fdatasync`, and only then answers and
//! publishes the new state. When there is no room for the group, the state that was tried is thrown away, and all
//! that was decided on top of it is refused: nothing of it was seen outside. When it is unknown what the disk
//! holds, the process ends.

mod writer;

use std::path::Path;
use std::sync::Arc;

use berth_coordinator_core::event::EventError;
use berth_coordinator_core::fleet::{FIRST_EPOCH, Misfit};
use berth_coordinator_core::{Actor, Command, Event, Fleet};
use berth_daemon::exit::Exit;
use berth_journal::{Journal, JournalError, Options, ReadError, Recovery, StdStorage, Storage};
use berth_shared::problem::{Code, Problem};
use tokio::sync::{mpsc, oneshot, watch};

pub use writer::Writer;

/// Most commands that wait for the writer. Callers are bounded by their connections, so it does not fill up.
pub const QUEUE_MAX: usize = 1024;

/// Most commands in one group: two events of 8 KiB each stay within the journal's bound.
pub const BATCH_MAX: usize = 128;

/// What to do about a damaged journal.
const ADVICE: &str = "Do not edit or remove its files. Keep a copy of the whole folder, then put the folder of your \
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
        let (reply, answer) = oneshot::channel();
        let stopping = || Problem::new(Code::Starting, "the coordinator is stopping");
        self.requests.send(Request { actor, command, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
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

/// A journal that was replayed, and the state that it gave.
pub struct Opened<S: Storage> {
    /// Appends from here on.
    pub journal: Journal<S>,
    /// The state.
    pub fleet: Fleet,
    /// What opening found and did.
    pub recovery: Recovery,
}

/// Opens the journal in a folder, which is made where it is missing.
///
/// # Errors
/// [`OpenError`]; damage is named with its place.
pub fn open_folder(folder: &Path) -> Result<Opened<StdStorage>, OpenError> {
    let wrap = |source| OpenError::Folder { folder: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(wrap)?;
    open(StdStorage::open(folder).map_err(wrap)?)
}

/// Opens and replays a journal.
///
/// # Errors
/// [`OpenError::Journal`]; what was replayed until then is thrown away.
pub fn open<S: Storage>(storage: S) -> Result<Opened<S>, OpenError> {
    let mut fleet = Fleet::new(FIRST_EPOCH);
    let options = Options { advice: ADVICE.to_owned(), ..Options::default() };
    let (journal, recovery) = Journal::open(storage, options, |record| {
        let expected = fleet.events() + 1;
        if record.seq.get() != expected {
            return Err(ReplayError::Gap { found: record.seq.get(), expected });
        }
        let event = Event::decode(record.kind.0, record.version.0, record.payload);
        fleet.apply(&event.map_err(ReplayError::Event)?).map_err(ReplayError::Misfit)
    })
    .map_err(OpenError::Journal)?;
    Ok(Opened { journal, fleet, recovery })
}
