//! `berth-coordinator heads rebuild`: HEADs out of a listing of the bucket, into a journal that knows no users. For the day
//! when the coordinator's disk is gone: keys come from the key store's backup, HEADs from the snapshots' own tags.

use std::io::Read;
use std::path::Path;

use berth_coordinator_core::rebuild::{Listing, plan};
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Event};
use berth_daemon::exit::{Exit, ExitError};
use berth_shared::ids::UserId;

use crate::daemon::JOURNAL_FOLDER;
use crate::keystore::KeyStore;
use crate::metrics::Metrics;
use crate::store::{CHECKED_AT_START, Places, new_records, open_folder};
use crate::system::wall_now;

/// Largest listing that is read, in bytes: half a million snapshots.
const LISTING_BYTES_MAX: u64 = 256 << 20;

/// What was rebuilt.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Users whose HEADs are known now.
    pub rebuilt: Vec<UserId>,
    /// Users of whom the journal knew already, from this command before.
    pub known: usize,
    /// Users in the listing whose keys are not in the key store.
    pub unknown: Vec<UserId>,
}

/// Why nothing was rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// The journal is one that is in use.
    #[error("the journal knows {users} users: HEADs are rebuilt into an empty one only")]
    InUse {
        /// How many.
        users: usize,
    },
    /// The listing is no such JSON.
    #[error("the listing cannot be read")]
    Listing(#[source] serde_json::Error),
    /// It is larger than what is read.
    #[error("the listing is larger than {LISTING_BYTES_MAX} bytes")]
    TooLarge,
}

/// Rebuilds HEADs. What was cut short is completed by the same call.
///
/// # Errors
/// The journal is in use, or a file cannot be read or written.
pub fn rebuild(data_dir: &Path, from: &Path) -> Result<Done, ExitError> {
    let listing = read(from)?;
    let keys = KeyStore::below(data_dir).ids().map_err(|error| error.exit().because(error))?;
    let plan = plan(&listing, &keys);
    let places = Places {
        journal: data_dir.join(JOURNAL_FOLDER),
        snapshots: None,
        snapshot_every: u64::MAX,
        checked_at_start: CHECKED_AT_START,
    };
    let opened = open_folder(&places, &Metrics::default().into());
    let mut opened = opened.map_err(|error| error.exit().because(error))?;
    let users = opened.fleet.users().count();
    if users > 0 {
        return Err(Exit::Config.because(HeadsError::InUse { users }));
    }
    let mut done = Done { unknown: plan.unknown.into_iter().collect(), ..Done::default() };
    for rebuilt in plan.users {
        let user = rebuilt.user;
        if opened.fleet.vault(user).is_some() {
            done.known += 1;
            continue;
        }
        let command = Command::Snapshot(SnapshotCommand::Rebuild(Box::new(rebuilt)));
        let events = opened.fleet.decide(wall_now(), Actor::System, &command);
        let events = events.map_err(|refusal| Exit::Config.because(refusal))?;
        let encoded: Result<Vec<_>, _> = events.iter().map(Event::encode).collect();
        let encoded = encoded.map_err(|error| Exit::Software.because(error))?;
        // One group: a user is known whole or not at all.
        opened.journal.append_group(&new_records(&encoded)).map_err(|error| Exit::Io.because(error))?;
        for event in &events {
            opened.fleet.apply(event).map_err(|misfit| Exit::Software.because(misfit))?;
        }
        done.rebuilt.push(user);
    }
    opened.journal.close().map_err(|error| Exit::Io.because(error))?;
    Ok(done)
}

fn read(from: &Path) -> Result<Listing, ExitError> {
    let mut bytes = vec![];
    let file = std::fs::File::open(from).map_err(|error| Exit::NoInput.because(error))?;
    let read = file.take(LISTING_BYTES_MAX + 1).read_to_end(&mut bytes);
    let read = read.map_err(|error| Exit::Io.because(error))?;
    if u64::try_from(read).map_or(true, |read| read > LISTING_BYTES_MAX) {
        return Err(Exit::DataCorrupt.because(HeadsError::TooLarge));
    }
    serde_json::from_slice(&bytes).map_err(|error| Exit::DataCorrupt.because(HeadsError::Listing(error)))
}
