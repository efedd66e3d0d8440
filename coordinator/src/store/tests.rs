//! Starts with snapshots, in a real sled: the state is always the one that the journal alone gives.

mod damage;
mod stories;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_coordinator_core::{Actor, Command, Fleet};
use berth_daemon::tasks::Tasks;
use berth_journal::{StdStorage, Storage};
use berth_shared::credential::SecretHash;
use berth_shared::ids::TokenId;
use berth_shared::time::{Millis, UnixMs};
use tempfile::TempDir;

use super::{Opened, Places, Store, Writer, open, open_folder};
use crate::metrics::Metrics;

const BOUND: Duration = Duration::from_secs(60);

fn places(folder: &Path) -> Places {
    Places {
        journal: folder.join("journal"),
        snapshots: Some(folder.join("snapshots")),
        snapshot_every: 5,
        // Nothing: the tests look at what is left to the check.
        checked_at_start: 0,
    }
}

fn token(number: u64) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Command::CreateToken {
        token: TokenId::from_random(id),
        hash: SecretHash::of("x"),
        node: format!("n{number}").parse().unwrap(),
        ttl: Millis::minutes(5),
    }
}

fn revoke(number: u64) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Command::RevokeToken { token: TokenId::from_random(id) }
}

/// A store that is being used.
struct Running {
    store: Store,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// How many events the snapshot had that it began at.
    began_at: u64,
}

fn start(places: &Places) -> Running {
    let metrics = Arc::new(Metrics::default());
    let opened = open_folder(places, &metrics).unwrap();
    let began_at = opened.began_at.map_or(0, |mark| mark.head.seq.get());
    let (writer, store) = Writer::new(opened, Arc::clone(&metrics), || UnixMs(1_000_000));
    let tasks = Tasks::new();
    let of_writer = tasks.clone();
    tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));
    Running { store, tasks, metrics, began_at }
}

impl Running {
    async fn run(&self, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            self.store.submit(Actor::System, command).await.unwrap();
        }
    }

    async fn stop(self) -> Arc<Fleet> {
        self.tasks.shutdown(BOUND).await.unwrap();
        self.store.fleet()
    }
}

/// A folder with a journal of `events` events whose newest snapshot, of a clean stop, holds all of them.
async fn stopped(events: u64) -> (TempDir, Fleet) {
    let folder = tempfile::tempdir().unwrap();
    let running = start(&places(folder.path()));
    running.run((0..events).map(token)).await;
    let fleet = running.stop().await;
    assert_eq!(fleet.events(), events);
    (folder, Fleet::clone(&fleet))
}

/// What the journal alone gives.
fn replayed(folder: &Path) -> Fleet {
    open(StdStorage::existing(&folder.join("journal")).unwrap()).unwrap().fleet
}

fn opened(folder: &Path) -> Opened<StdStorage> {
    open_folder(&places(folder), &Arc::new(Metrics::default())).unwrap()
}

/// Event number of the snapshot that a start begins at; 0 without one. The state is compared with the journal's.
fn begins_at(folder: &Path) -> u64 {
    let alone = replayed(folder);
    let opened = opened(folder);
    assert_eq!(opened.fleet, alone);
    assert_eq!(opened.recovery.head.seq.get(), alone.events());
    let began_at = opened.began_at.map_or(0, |mark| mark.head.seq.get());
    assert_eq!(
        opened.recovery.records,
        alone.events() - began_at,
        "only what is behind the snapshot is read"
    );
    assert_eq!(opened.check.is_some(), began_at > 0);
    began_at
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            // One that sled has removed meanwhile.
            let _gone = std::fs::copy(path, target);
        }
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Held by nobody, so that a test may open the folder again at once: sled lets go of its lock in its own time.
async fn let_go(folder: &Path) {
    let wait = async {
        loop {
            let shelf = super::shelf::Shelf::open(&folder.join("snapshots"));
            if !matches!(shelf, Err(super::shelf::ShelfError::InUse)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("the keeper's thread ends");
    StdStorage::existing(&folder.join("journal")).unwrap().lock().expect("the writer has ended");
}
