//! What an operator writes of a user: sealed on the disk, read while the key is there, erased with it.

use std::path::Path;

use berth_daemon::exit::Exit;
use berth_shared::api::{Cell, KeyPurged, User};
use berth_shared::problem::Code;
use serde_json::{Value, json};

use super::bucket::{Bucket, found, journal};
use super::key_backups::{all_keys_in, brought_back, elsewhere};
use super::snapshots::{create, node, with_bucket};
use super::world::{World, config};
use crate::config::Config;
use crate::daemon::{JOURNAL_FOLDER, KEY_FILE, SNAPSHOTS_FOLDER};
use crate::keystore::{KEYS_FOLDER, KeyStore, KeyStoreError, verbs};
use crate::personal::{ERASED, NOT_KEPT, UNREADABLE};
use crate::records::verify;

const REASON: &str = "sends mail as Mr Huber";
const QUARANTINE: &str = "/v1/cells/anna/quarantine";

/// With a snapshot of the state behind each event.
fn every_state_kept(config: Config) -> Config {
    Config { snapshot_every: 1, ..config }
}

/// All files below that hold the words in the clear.
fn files_with(folder: &Path, words: &str) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, words));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(words.len()).any(|window| window == words.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

fn nowhere(folder: &Path) {
    assert_eq!(files_with(folder, REASON), Vec::<String>::new());
    // The search finds what is there: the slug is no secret.
    assert!(!files_with(&config(folder).data_dir.join(JOURNAL_FOLDER), "anna").is_empty());
}

async fn cut_off(world: &World, reason: &str) -> String {
    let answer = world.post(QUARANTINE, json!({ "reason": reason })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json::<Cell>().quarantine.unwrap().reason
}

/// The reason, wherever the API tells it.
async fn told(world: &World) -> String {
    let shown: Cell = world.get("/v1/cells/anna").await.json();
    let reason = shown.quarantine.unwrap().reason;
    let listed: Value = world.get("/v1/cells").await.json();
    assert_eq!(listed["items"][0]["quarantine"]["reason"], reason);
    let why = world.get("/v1/cells/anna/why").await.body;
    assert!(why.contains(&format!("quarantined by an operator: {reason}")), "{why}");
    reason
}

fn quarantines(config: &Config) -> Vec<String> {
    journal(config).lines().filter(|line| line.contains("Quarantined")).map(str::to_owned).collect()
}

async fn purge(world: &World, anna: &User) -> KeyPurged {
    assert_eq!(world.delete("/v1/users/anna").await.status, 204);
    let purged = world.post(&format!("/v1/users/{}/purge", anna.id), json!({})).await;
    assert_eq!(purged.status, 200, "{}", purged.body);
    purged.json()
}

#[tokio::test]
async fn a_reason_is_read_after_a_restart_and_is_nowhere_on_the_disk_before_and_after_the_purge() {
    let folder = tempfile::tempdir().unwrap();
    let settings = every_state_kept(with_bucket(folder.path()));
    let world = World::with(folder.path(), settings.clone()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    assert_eq!(cut_off(&world, &format!(" {REASON} ")).await, REASON);
    assert_eq!(told(&world).await, REASON);
    assert_eq!(cut_off(&world, REASON).await, REASON);
    assert_eq!(quarantines(&settings).len(), 1, "the same words are nothing new");
    let refused = world.post(QUARANTINE, json!({ "reason": "two\nlines" })).await;
    assert_eq!(refused.code(), Code::BadRequest);
    nowhere(folder.path());
    world.end().await;
    nowhere(folder.path());
    assert!(settings.data_dir.join(SNAPSHOTS_FOLDER).exists(), "states were kept, and searched");

    let world = World::with(folder.path(), settings.clone()).await;
    assert_eq!(told(&world).await, REASON);
    let lines = quarantines(&settings);
    assert!(lines.len() == 1 && lines[0].ends_with(&format!(", quarantine reason: {REASON}")), "{lines:?}");
    world.delete(QUARANTINE).await;
    assert_eq!(cut_off(&world, "sends mail again").await, "sends mail again");
    purge(&world, &anna).await;
    let erased = || {
        let lines = quarantines(&settings);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.ends_with(ERASED)), "{lines:?}");
    };
    erased();
    world.end().await;
    nowhere(folder.path());
    // At the snapshot of the state, and from the first record on.
    for _ in 0..2 {
        World::with(folder.path(), settings.clone()).await.end().await;
        assert_eq!(verify(&settings.data_dir.join(JOURNAL_FOLDER), false), Exit::Ok);
        erased();
        std::fs::remove_dir_all(settings.data_dir.join(SNAPSHOTS_FOLDER)).unwrap();
    }
}

#[tokio::test]
async fn a_reason_whose_key_is_lost_reads_as_such_and_can_be_told_anew() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_bucket(folder.path());
    let store = settings.data_dir.join(KEYS_FOLDER).join("store");
    let before = std::fs::read(&store).unwrap();
    let world = World::with(folder.path(), settings.clone()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    cut_off(&world, REASON).await;
    found(&world, "record_keys", "good").await;
    world.end().await;
    std::fs::write(&store, before).unwrap();
    let world = World::with(folder.path(), settings.clone()).await;
    assert_eq!(told(&world).await, UNREADABLE);
    let finding = found(&world, "record_keys", "warning").await;
    assert!(finding["found"].as_str().unwrap().contains("`anna`"), "{finding}");
    assert!(quarantines(&settings)[0].ends_with(UNREADABLE));
    assert_eq!(cut_off(&world, REASON).await, REASON);
    found(&world, "record_keys", "good").await;
    world.end().await;
    assert_eq!(verify(&settings.data_dir.join(JOURNAL_FOLDER), false), Exit::Ok);
}

#[tokio::test]
async fn without_a_bucket_the_key_store_is_made_when_it_is_needed_and_a_user_is_purged_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let settings = every_state_kept(config(folder.path()));
    let keys = KeyStore::below(&settings.data_dir);
    let world = World::with(folder.path(), settings.clone()).await;
    let _node = world.node("n1", 1).await;
    let anna = create(&world, "anna").await;
    assert!(!settings.data_dir.join(KEYS_FOLDER).exists(), "nothing needs it");
    assert_eq!(cut_off(&world, REASON).await, REASON);
    assert!(matches!(keys.check(), Err(KeyStoreError::NoRecovery { .. })), "made for record keys only");
    world.end().await;
    let world = World::with(folder.path(), settings.clone()).await;
    assert_eq!(told(&world).await, REASON);
    nowhere(folder.path());
    assert_eq!(
        purge(&world, &anna).await,
        KeyPurged { user: anna.id, backups_until: None, backups_stay: false }
    );
    assert!(keys.users().unwrap().is_empty());
    let refused = world.post("/v1/users/anna/purge", json!({})).await;
    assert_eq!(refused.code(), Code::UnknownUser, "only its id names it now");
    world.end().await;
    World::with(folder.path(), settings.clone()).await.end().await;
    nowhere(folder.path());
    assert!(quarantines(&settings)[0].ends_with(ERASED));
    assert_eq!(verify(&settings.data_dir.join(JOURNAL_FOLDER), false), Exit::Ok);
    // It is given its recovery key once there is to be a bucket.
    verbs::init(&keys, Some(&folder.path().join("recovery.key")), &mut vec![]).unwrap();
    keys.check().unwrap();
}

#[tokio::test]
async fn a_purge_without_a_bucket_that_the_journal_has_is_finished_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config(folder.path());
    let world = World::with(folder.path(), settings.clone()).await;
    let _node = world.node("n1", 1).await;
    let anna = create(&world, "anna").await;
    cut_off(&world, REASON).await;
    let store = settings.data_dir.join(KEYS_FOLDER).join("store");
    let before = std::fs::read(&store).unwrap();
    purge(&world, &anna).await;
    world.end().await;
    std::fs::write(&store, before).unwrap();
    World::with(folder.path(), settings.clone()).await.end().await;
    assert!(KeyStore::below(&settings.data_dir).users().unwrap().is_empty());
}

#[tokio::test]
async fn a_cell_is_cut_off_also_where_its_reason_cannot_be_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config(folder.path());
    let world = World::with(folder.path(), settings.clone()).await;
    let mut node = world.node("n1", 1).await;
    create(&world, "anna").await;
    node.next_desired().await;
    std::fs::create_dir(settings.data_dir.join(KEYS_FOLDER)).unwrap();
    std::fs::write(settings.data_dir.join(KEYS_FOLDER).join("store"), "no store").unwrap();
    assert_eq!(cut_off(&world, REASON).await, NOT_KEPT);
    assert!(node.next_desired().await.assignments[0].spec.quarantined);
    assert_eq!(told(&world).await, NOT_KEPT);
    world.end().await;
    nowhere(folder.path());
    // Nor does a store that is damaged keep the coordinator from starting: nothing else depends on it.
    let world = World::with(folder.path(), settings).await;
    assert_eq!(told(&world).await, NOT_KEPT);
    world.end().await;
}

#[tokio::test]
async fn a_reason_is_read_again_with_keys_out_of_the_bucket_where_the_journal_is() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    cut_off(&world, REASON).await;
    all_keys_in(&bucket, &world).await;
    world.end().await;

    let there = tempfile::tempdir().unwrap();
    let settings = elsewhere(&bucket, there.path());
    let here = bucket.config().data_dir;
    std::fs::create_dir_all(settings.data_dir.join(JOURNAL_FOLDER)).unwrap();
    for entry in std::fs::read_dir(here.join(JOURNAL_FOLDER)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), settings.data_dir.join(JOURNAL_FOLDER).join(entry.file_name())).unwrap();
    }
    std::fs::copy(here.join(KEY_FILE), settings.data_dir.join(KEY_FILE)).unwrap();
    std::fs::copy(bucket.path("operator.key"), there.path().join("operator.key")).unwrap();
    assert!(quarantines(&settings)[0].ends_with(UNREADABLE));
    assert_eq!(brought_back(&bucket, &settings).await.unwrap().users, 1);
    assert!(quarantines(&settings)[0].ends_with(REASON));
    let world = World::with(there.path(), settings).await;
    assert_eq!(told(&world).await, REASON);
    world.end().await;
}
