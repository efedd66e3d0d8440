//! `berth-coordinator heads rebuild`: HEADs out of the bucket, into a journal that knows no users. For the day when the
//! coordinator's disk is gone: keys come from the key store's backup, HEADs from the snapshots' own tags, which workers read
//! with these keys; or somebody else's listing is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use berth_coordinator_core::rebuild::{Listed, Listing, plan};
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Event};
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::tasks::Tasks;
use berth_shared::ids::{Generation, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::RepositoryKey;
use berth_shared::snapshot::Snapshot;
use berth_shared::units::Bytes;
use berth_snapshot::protocol::{Job, Line, SnapshotLine};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::daemon::JOURNAL_FOLDER;
use crate::keystore::KeyStore;
use crate::metrics::Metrics;
use crate::repositories::Repositories;
use crate::store::{CHECKED_AT_START, Places, new_records, open_folder};
use crate::system::wall_now;
use crate::vaults::Vaults;

/// Largest listing that is read, in bytes: half a million snapshots.
const LISTING_BYTES_MAX: u64 = 256 << 20;

/// Workers at a time while the bucket is listed: nothing else runs.
const WORKERS: usize = 4;

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
    /// The config names no bucket.
    #[error("the config names no bucket to list, and no listing was given")]
    NoBucket,
    /// The bucket cannot be listed.
    #[error("the bucket cannot be listed")]
    Bucket(#[source] Problem),
    /// It is larger than what is read.
    #[error("the listing is larger than {LISTING_BYTES_MAX} bytes")]
    TooLarge,
}

/// What the bucket has.
#[derive(Debug, Default)]
pub struct InBucket {
    /// All snapshots of users whose keys are at hand.
    pub listing: Listing,
    /// Users in the bucket whose keys are not in the key store.
    pub unknown: BTreeSet<UserId>,
    /// Users whose repositories could not be listed as a whole, and why: left out.
    pub failed: BTreeMap<UserId, Problem>,
}

/// Lists the bucket, with the keys of the key store.
///
/// # Errors
/// There is no bucket, or nothing of it can be listed.
pub async fn list_bucket(config: &Config) -> Result<InBucket, ExitError> {
    let tasks = Tasks::new();
    let vaults = Vaults::open(&config.data_dir, &config.snapshots, &tasks)?;
    let vaults = vaults.ok_or_else(|| Exit::Config.because(HeadsError::NoBucket))?;
    let failed = |problem: Problem| Exit::Unavailable.because(HeadsError::Bucket(problem));
    let keys = vaults.all_keys().await.map_err(failed)?;
    let repositories =
        Repositories::new(vaults.clone(), WORKERS, &config.data_dir, Arc::new(Metrics::default()), &tasks)
            .map_err(|error| Exit::Software.because(error))?;
    let users = folders(&repositories, format!("{}users/", vaults.root())).await.map_err(failed)?;
    let orphans = folders(&repositories, format!("{}orphans/", vaults.root())).await.map_err(failed)?;
    let found: BTreeSet<UserId> = users.iter().chain(&orphans).filter_map(|name| name.parse().ok()).collect();
    let mut bucket = InBucket::default();
    let mut listings = JoinSet::new();
    for user in found {
        let Some(key) = keys.get(&user).cloned() else {
            bucket.unknown.insert(user);
            continue;
        };
        let (repositories, has_orphans) = (repositories.clone(), orphans.contains(&user.to_string()));
        listings.spawn(async move { (user, list_user(&repositories, user, &key, has_orphans).await) });
    }
    while let Some(listed) = listings.join_next().await {
        let (user, listed) = listed.map_err(|error| Exit::Software.because(error))?;
        match listed {
            Ok(listed) => bucket.listing.snapshots.extend(listed),
            Err(problem) => drop(bucket.failed.insert(user, problem)),
        }
    }
    Ok(bucket)
}

async fn folders(repositories: &Repositories, prefix: String) -> Result<BTreeSet<String>, Problem> {
    let lines = repositories.list(prefix, None, Job::Folders).await?;
    let name = |line| if let Line::Folder { name } = line { Some(name) } else { None };
    Ok(lines.into_iter().filter_map(name).collect())
}

/// All snapshots of a user: of its repository, and below `orphans/`.
async fn list_user(
    repositories: &Repositories,
    user: UserId,
    key: &RepositoryKey,
    has_orphans: bool,
) -> Result<Vec<Listed>, Problem> {
    let vaults = repositories.vaults();
    let mut places = vec![(vaults.prefix(user), false)];
    if has_orphans {
        let generations = folders(repositories, format!("{}orphans/{user}/", vaults.root())).await?;
        let generations = generations.iter().filter_map(|name| {
            let (epoch, number) = name.split_once('.')?;
            Some(Generation { epoch: epoch.parse().ok()?, number: number.parse().ok()? })
        });
        places.extend(generations.map(|generation| (vaults.orphans_prefix(user, generation), true)));
    }
    let mut all = vec![];
    for (prefix, orphan) in places {
        let lines = match repositories.list(prefix, Some(&key.master), Job::List).await {
            Ok(lines) => lines,
            // No repository was made there, or not to its end: then there is no snapshot either.
            Err(Problem { code: Code::UnknownSnapshot, .. }) => continue,
            Err(problem) => return Err(problem),
        };
        let snapshots = lines.into_iter().filter_map(|line| match line {
            Line::Snapshot(line) => by_its_tags(line, user),
            _ => None,
        });
        all.extend(snapshots.map(|snapshot| Listed { user, orphan, snapshot }));
    }
    Ok(all)
}

/// `None` where its tags are not whole, or another user's: it was written by something else than Berth.
pub(crate) fn by_its_tags(line: SnapshotLine, user: UserId) -> Option<Snapshot> {
    let labels = line.labels.filter(|labels| labels.user == user)?;
    Some(Snapshot {
        id: line.id.parse().ok()?,
        cell: labels.cell,
        generation: labels.generation,
        seq: labels.sequence,
        taken_at: serde_json::from_value(serde_json::Value::String(line.time)).ok()?,
        bytes: Bytes(line.bytes.unwrap_or_default()),
        tree: line.tree?.parse().ok()?,
        image: labels.image.parse().ok()?,
        parent: line.parent.and_then(|parent| parent.parse().ok()),
    })
}

/// Rebuilds HEADs from a listing in a file. What was cut short is completed by the same call.
///
/// # Errors
/// The journal is in use, or a file cannot be read or written.
pub fn rebuild(data_dir: &Path, from: &Path) -> Result<Done, ExitError> {
    rebuild_from(data_dir, &read(from)?)
}

/// Rebuilds HEADs from a listing. What was cut short is completed by the same call.
///
/// # Errors
/// The journal is in use, or a file cannot be read or written.
pub fn rebuild_from(data_dir: &Path, listing: &Listing) -> Result<Done, ExitError> {
    let keys = KeyStore::below(data_dir).ids().map_err(|error| error.exit().because(error))?;
    let plan = plan(listing, &keys);
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
    listing(&bytes).map_err(|error| Exit::DataCorrupt.because(error))
}

pub(crate) fn listing(bytes: &[u8]) -> Result<Listing, HeadsError> {
    serde_json::from_slice(bytes).map_err(HeadsError::Listing)
}
