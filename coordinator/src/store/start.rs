//! Where a start begins: at the newest snapshot whose place is in this journal's history, or at the first record.
//!
//! A snapshot is believed when its bytes have their hash, it was made by this very build, and the commit marker at its
//! place in the journal names its sequence and its chain: the chain stands for every record before, so the history
//! that the snapshot adds up is the journal's. Everything behind that place is read, checked and applied. What is
//! before it is checked too: at once where it is short, else by [`Check`] while the coordinator serves.
//! docs/decisions/0002 has the reasons and the figures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::{Event, Fleet};
use berth_daemon::exit::chain;
use berth_journal::{
    Journal, JournalError, LockError, Mark, Options, ReadError, Record, Recovery, StdStorage, Storage, fits,
};

use super::check::Check;
use super::keeper::{Found, Keeper};
use super::snapshot::Snapshot;
use super::{ADVICE, OpenError, ReplayError};
use crate::metrics::Metrics;

/// Where the store is.
#[derive(Debug, Clone)]
pub struct Places {
    /// The journal's folder. It and its parents are made where they are missing.
    pub journal: PathBuf,
    /// The snapshots' folder; `None`: no snapshots are read or made.
    pub snapshots: Option<PathBuf>,
    /// After how many events a snapshot is made.
    pub snapshot_every: u64,
    /// What is before the snapshot is checked before the start is done, up to so many bytes: [`CHECKED_AT_START`].
    pub checked_at_start: u64,
}

/// Usual [`Places::checked_at_start`]: read and checked in about a tenth of a second.
pub const CHECKED_AT_START: u64 = 32 << 20;

/// A journal that was replayed, and the state that it gave.
pub struct Opened<S: Storage> {
    /// Appends from here on.
    pub journal: Journal<S>,
    /// The state.
    pub fleet: Fleet,
    /// What opening found and did.
    pub recovery: Recovery,
    /// The snapshot's place, where the start began at one.
    pub began_at: Option<Mark>,
    /// Has to be run then.
    pub check: Option<Check>,
    pub(crate) snapshots: Snapshots,
}

/// When snapshots are made, and by whom.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    keeper: Option<Keeper>,
    every: u64,
    /// Sequence of the newest.
    newest: u64,
}

impl Snapshots {
    /// Has a snapshot made when enough has happened since the last. Does not wait for it.
    pub(crate) fn due(&mut self, fleet: &Arc<Fleet>, mark: Mark) {
        let since = fleet.events().saturating_sub(self.newest);
        if (since >= self.every || crate::failpoint::SNAPSHOT_DUE.is_forced())
            && let Some(keeper) = &self.keeper
            && keeper.keep(Arc::clone(fleet), mark)
        {
            self.newest = fleet.events();
        }
    }

    /// Has the last one made, at a clean stop, and waits for it.
    pub(crate) fn last(&self, fleet: &Arc<Fleet>, mark: Mark) {
        if fleet.events() > self.newest
            && let Some(keeper) = &self.keeper
        {
            keeper.keep_last(Arc::clone(fleet), mark);
        }
    }
}

/// Opens the journal and the snapshots.
///
/// # Errors
/// [`OpenError`]; damage is named with its place. Nothing that is wrong with the snapshots is an error.
pub fn open_folder(places: &Places, metrics: &Arc<Metrics>) -> Result<Opened<StdStorage>, OpenError> {
    let mount = || mount(&places.journal);
    let storage = mount()?;
    // Before the snapshots are opened: they belong to whoever has the journal.
    storage
        .lock()
        .map_err(|error| match error {
            LockError::Held => JournalError::Locked,
            LockError::Io(source) => JournalError::Lock(source),
        })
        .map_err(OpenError::journal)?;
    let Some(folder) = &places.snapshots else { return replay(storage, None) };
    let (keeper, found) = Keeper::open(folder, metrics);
    let mut opened = match choose(&storage, &found) {
        None => replay(storage, None),
        Some(begin) => match replay(storage, Some(begin)) {
            // The state of a snapshot is never a reason to refuse a journal.
            Err(OpenError::Journal(ReadError::Refused { seq, .. })) => {
                tracing::warn!(
                    seq = seq.get(),
                    "the journal does not follow on the snapshot: it is replayed as a whole"
                );
                replay(mount()?, None)
            }
            done => done,
        },
    }?;
    let newest = opened.began_at.map(|mark| mark.head.seq.get());
    if let Some(keeper) = &keeper {
        keeper.settle(newest);
    }
    if let Some(mark) = opened.began_at {
        let check = Check::new(places.journal.clone(), mark, keeper.clone());
        if check.bytes().map_err(OpenError::journal)? > places.checked_at_start {
            opened.check = Some(check);
        } else {
            check.now().map_err(OpenError::journal)?;
        }
    }
    opened.snapshots = Snapshots { keeper, every: places.snapshot_every, newest: newest.unwrap_or(0) };
    Ok(opened)
}

/// Opens and replays a journal, from its first record on and without any snapshots.
///
/// # Errors
/// [`OpenError::Journal`]; what was replayed until then is thrown away.
pub fn open<S: Storage>(storage: S) -> Result<Opened<S>, OpenError> {
    replay(storage, None)
}

/// Takes a record of the journal in.
///
/// # Errors
/// It is no event, or does not follow on those before it; the state is as before.
pub fn replay_event(fleet: &mut Fleet, record: &Record<'_>) -> Result<Event, ReplayError> {
    let expected = fleet.events() + 1;
    if record.seq.get() != expected {
        return Err(ReplayError::Gap { found: record.seq.get(), expected });
    }
    let event = Event::decode(record.kind.0, record.version.0, record.payload).map_err(ReplayError::Event)?;
    fleet.apply(&event).map_err(ReplayError::Misfit)?;
    Ok(event)
}

fn mount(folder: &Path) -> Result<StdStorage, OpenError> {
    let wrap = |source| OpenError::Folder { folder: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(wrap)?;
    StdStorage::open(folder).map_err(wrap)
}

fn replay<S: Storage>(storage: S, begin: Option<(Mark, Fleet)>) -> Result<Opened<S>, OpenError> {
    let (began_at, mut fleet) = match begin {
        Some((mark, fleet)) => (Some(mark), fleet),
        None => (None, Fleet::new(FIRST_EPOCH)),
    };
    let options = Options { advice: ADVICE.to_owned(), ..Options::default() };
    let (journal, recovery) = Journal::open_from(storage, options, began_at.as_ref(), |record| {
        replay_event(&mut fleet, &record).map(drop)
    })
    .map_err(OpenError::Journal)?;
    Ok(Opened { journal, fleet, recovery, began_at, check: None, snapshots: Snapshots::default() })
}

/// The newest snapshot that can be believed.
fn choose<S: Storage>(storage: &S, found: &Found) -> Option<(Mark, Fleet)> {
    if found.check_wanted {
        tracing::warn!("the journal was found damaged before its newest snapshot: it is read as a whole");
        return None;
    }
    found.snapshots.iter().find_map(|bytes| {
        let unfit = |error: &dyn std::error::Error| {
            tracing::warn!(reason = error.to_string(), "a snapshot cannot be used");
        };
        let snapshot = Snapshot::decode(bytes).inspect_err(|error| unfit(error)).ok()?;
        match fits(storage, &snapshot.mark) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(seq = snapshot.mark.head.seq.get(), "a snapshot is of another journal");
                return None;
            }
            Err(error) => {
                // The replay meets the same error and names it.
                tracing::warn!(error = chain(&error), "a snapshot's place in the journal cannot be read");
                return None;
            }
        }
        let fleet = snapshot.fleet().inspect_err(|error| unfit(error)).ok()?;
        Some((snapshot.mark, fleet))
    })
}
