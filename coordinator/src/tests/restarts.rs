//! Starts: the first one, later ones, and those after a kill.

use berth_coordinator_core::Fleet;
use berth_daemon::exit::Exit;
use berth_daemon::tasks::Tasks;
use berth_journal::StdStorage;
use serde_json::{Value, json};

use super::world::{FakeNode, World, config, signing_key};
use crate::daemon::{JOURNAL_FOLDER, KEY_FILE, start};
use crate::store::open;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[tokio::test]
async fn the_first_start_shows_its_key_once_and_stores_only_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let mut shown = vec![];
    let coordinator = start(config(folder.path()), None, &mut shown, &tasks).await.unwrap();
    assert!(coordinator.installed_now);
    let shown = String::from_utf8(shown).unwrap();
    let key = shown.split_whitespace().find(|word| word.starts_with("berth_op_")).unwrap().to_owned();
    let world = World { tasks, coordinator, key: key.clone() };
    assert_eq!(world.get("/v1/users").await.status, 200);
    world.end().await;

    // `berth_op_<id>_<secret>`; the secret may hold a `_` of its own.
    let secret = key.splitn(4, '_').nth(3).unwrap();
    assert_eq!(secret.len(), 43);
    let journal = folder.path().join("data").join(JOURNAL_FOLDER);
    for entry in std::fs::read_dir(journal).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    let tasks = Tasks::new();
    let mut shown = vec![];
    let coordinator = start(config(folder.path()), None, &mut shown, &tasks).await.unwrap();
    assert!(!coordinator.installed_now && shown.is_empty());
    let world = World { tasks, coordinator, key };
    assert_eq!(world.get("/v1/users").await.status, 200);
    world.end().await;
}

#[tokio::test]
async fn a_key_file_is_private_and_what_is_no_key_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mode = std::fs::metadata(folder.path().join("operator.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    world.end().await;

    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("operator.key");
    berth_daemon::secret_file::write_secret_file(&path, b"my diary").unwrap();
    let tasks = Tasks::new();
    let error = start(config(other.path()), Some(path.clone()), &mut vec![], &tasks).await.unwrap_err();
    assert_eq!(error.exit(), Exit::Config);
    tasks.shutdown(super::world::BOUND).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"my diary");
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let tasks = Tasks::new();
    let error = start(config(folder.path()), None, &mut vec![], &tasks).await.unwrap_err();
    assert_eq!(error.exit(), Exit::TempFail);
    tasks.shutdown(super::world::BOUND).await.unwrap();
    world.end().await;
}

#[test]
fn what_was_acknowledged_is_there_after_the_process_was_dropped_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let runtime_of_first = runtime();
    let (users, tokens, nodes, id) = runtime_of_first.block_on(async {
        let world = World::on(folder.path()).await;
        let node = world.node("n1", 1).await;
        for slug in ["anna", "bob", "cy"] {
            assert_eq!(world.post("/v1/users", json!({ "slug": slug })).await.status, 201);
        }
        assert_eq!(world.delete("/v1/users/bob").await.status, 204);
        assert_eq!(world.post("/v1/users/anna/bearers", json!({})).await.status, 201);
        world.token("n2").await;
        let users: Value = world.get("/v1/users").await.json();
        let tokens: Value = world.get("/v1/tokens").await.json();
        let nodes: Value = world.get("/v1/nodes").await.json();
        (users, tokens, nodes, node.id)
    });
    // As a kill: nothing is closed, drained or said goodbye to.
    drop(runtime_of_first);

    runtime().block_on(async {
        let world = World::on(folder.path()).await;
        assert!(!world.coordinator.installed_now);
        assert_eq!(world.get("/v1/users").await.json::<Value>(), users);
        assert_eq!(world.get("/v1/tokens").await.json::<Value>(), tokens);
        let now: Value = world.get("/v1/nodes").await.json();
        for key in ["id", "name", "joined_at", "cells", "memory_promised", "disk_promised"] {
            assert_eq!(now["items"][0][key], nodes["items"][0][key], "{key}");
        }
        assert_eq!(now["items"][0]["connected"], false, "observations are asked for again");
        let (link, key) = (world.coordinator.link, world.coordinator.key);
        let node = FakeNode::open(link, key, signing_key(1), id, 2).await;
        assert_eq!(node.desired.assignments.len(), 2);
        assert_eq!(node.desired.domain, "localhost");
        world.end().await;
    });
    let journal = StdStorage::existing(&folder.path().join("data").join(JOURNAL_FOLDER)).unwrap();
    let replayed = open(journal).unwrap();
    assert_eq!(replayed.fleet.events(), replayed.recovery.head.seq.get());
    assert_ne!(replayed.fleet, Fleet::new(1));
}

#[test]
fn a_changed_domain_reaches_the_nodes_with_a_newer_revision() {
    let folder = tempfile::tempdir().unwrap();
    let before = runtime().block_on(async {
        let world = World::on(folder.path()).await;
        let node = world.node("n1", 1).await;
        let seen = (node.id, node.desired.revision);
        world.end().await;
        seen
    });
    runtime().block_on(async {
        let tasks = Tasks::new();
        let config = crate::config::Config { domain: "example.org".to_owned(), ..config(folder.path()) };
        let coordinator = start(config, None, &mut vec![], &tasks).await.unwrap();
        let node = FakeNode::open(coordinator.link, coordinator.key, signing_key(1), before.0, 2).await;
        assert_eq!(node.desired.domain, "example.org");
        assert!(node.desired.revision > before.1);
        tasks.shutdown(super::world::BOUND).await.unwrap();
    });
}

#[tokio::test]
async fn a_coordinator_key_that_others_can_read_is_refused_and_nothing_is_begun() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let key = world.coordinator.key;
    world.end().await;
    let path = folder.path().join("data").join(KEY_FILE);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let tasks = Tasks::new();
    let error = start(config(folder.path()), None, &mut vec![], &tasks).await.unwrap_err();
    assert_eq!(error.exit(), Exit::NoPerm);
    assert!(error.to_string().contains("readable by others"), "{error}");
    assert!(tasks.running().is_empty());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let world = World::on(folder.path()).await;
    assert_eq!(world.coordinator.key, key, "the identity that nodes pin stays the same");
    world.end().await;
}

#[tokio::test]
async fn a_journal_that_was_damaged_is_named_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    world.token("n1").await;
    world.end().await;
    let journal = folder.path().join("data").join(JOURNAL_FOLDER).join("00000000000000000001.log");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let tasks = Tasks::new();
    let error = start(config(folder.path()), None, &mut vec![], &tasks).await.unwrap_err();
    assert_eq!(error.exit(), Exit::DataCorrupt);
    let told = berth_daemon::exit::chain(&error);
    assert!(told.contains("00000000000000000001.log") && told.contains("backup"), "{told}");
    tasks.shutdown(super::world::BOUND).await.unwrap();
    assert_eq!(std::fs::read(&journal).unwrap(), bytes);
}
