//! What is gone from a repository, whoever took it, is not in the history any more; HEAD that is gone is told.

use std::path::PathBuf;

use berth_coordinator_core::upkeep::Book;
use berth_shared::api::{RepositoryChecked, RepositoryPruned, Snapshots};
use berth_shared::problem::Code;
use berth_shared::snapshot::{Snapshot, SnapshotOutcome};
use berth_test_s3::Fault;
use serde_json::json;

use super::repositories::{Anna, Bucket, anna, found, journal, keep_one};
use super::world::{BOUND, World};

const PRUNE: &str = "/v1/users/anna/prune";
const CHECK: &str = "/v1/users/anna/check";

impl Bucket {
    /// Where something of Anna's repository lies.
    fn of(&self, anna: &Anna, path: &str) -> PathBuf {
        self.path("store/berth").join(&anna.told.prefix).join(path)
    }

    fn object(&self, anna: &Anna, snapshot: &Snapshot) -> PathBuf {
        self.of(anna, &format!("snapshots/{}", snapshot.id))
    }
}

async fn known(world: &World) -> Snapshots {
    world.get("/v1/users/anna/snapshots").await.json()
}

#[tokio::test]
async fn what_a_prune_took_before_it_failed_is_not_in_the_history_any_more() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    // Snapshots are deleted, and then what is left cannot be gone through.
    let (data, aside) = (bucket.of(&anna, "data"), bucket.path("aside"));
    std::fs::rename(&data, &aside).unwrap();
    let failed = world.post(PRUNE, json!({})).await;
    assert!(failed.status >= 400, "{}", failed.body);
    assert!(!bucket.object(&anna, &anna.first).exists(), "its deletes come first");
    let after = known(&world).await;
    assert_eq!((after.head.map(|head| head.id), after.history), (Some(anna.second.id), vec![]));
    // Nobody stops a cell for it.
    let ask = json!({ "snapshot": anna.first.id });
    assert_eq!(world.post("/v1/cells/anna/restore", ask).await.code(), Code::UnknownSnapshot);
    std::fs::rename(&aside, &data).unwrap();
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (0, 1));
    world.end().await;
    let journal = journal(&bucket.config());
    let forgotten: Vec<&str> = journal.lines().filter(|line| line.contains("SnapshotsForgotten")).collect();
    assert_eq!(forgotten.len(), 1, "{journal}");
    assert!(forgotten[0].contains("  op_") && forgotten[0].contains(&anna.first.id.to_string()));
}

#[tokio::test]
async fn what_somebody_else_has_forgotten_is_found_gone_by_a_check_and_before_a_prune() {
    let bucket = Bucket::new();
    let mut config = bucket.config();
    config.snapshots.prune_credential_file = None;
    let world = World::with(bucket.folder.path(), config).await;
    let mut anna = anna(&bucket, &world).await;
    // As `restic forget` does.
    std::fs::remove_file(bucket.object(&anna, &anna.first)).unwrap();
    let checked: RepositoryChecked = world.post(CHECK, json!({})).await.json();
    assert!(checked.sound, "{:?}", checked.findings);
    assert_eq!(known(&world).await.history, vec![]);
    std::fs::write(anna.cell.join("new"), "third").unwrap();
    let third = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    anna.node.takes(anna.user.id, &third).await;
    assert_eq!(known(&world).await.history.len(), 1);
    world.end().await;

    // A coordinator that was killed over a prune does not know either what it took.
    std::fs::remove_file(bucket.object(&anna, &anna.second)).unwrap();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let off = world.post("/v1/nodes/n1/off", json!({ "node_is_off": true })).await;
    assert_eq!(off.status, 200, "{}", off.body);
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (0, 1));
    let after = known(&world).await;
    assert_eq!((after.head.map(|head| head.id), after.history), (Some(third.id), vec![]));
    world.end().await;
}

#[tokio::test]
async fn where_head_is_gone_nothing_is_pruned_or_forgotten_and_it_is_told_until_it_is_back() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    let (object, aside) = (bucket.object(&anna, &anna.second), bucket.path("aside"));
    std::fs::rename(&object, &aside).unwrap();
    let refused = world.post(PRUNE, json!({})).await;
    assert_eq!(refused.code(), Code::RepositoryDamaged);
    assert!(refused.body.contains(&anna.second.id.to_string()), "{}", refused.body);
    assert!(bucket.object(&anna, &anna.first).exists(), "the only one that there is");
    let told = found(&world, "repositories", "problem").await;
    assert!(told["found"].as_str().unwrap().contains("HEAD is snapshot"), "{told}");
    assert!(world.get("/metrics").await.body.contains("berth_repositories_damaged 1"));
    let checked: RepositoryChecked = world.post(CHECK, json!({})).await.json();
    assert!(!checked.sound && checked.findings[0].contains("HEAD is snapshot"), "{:?}", checked.findings);
    let after = known(&world).await;
    assert_eq!((after.head.map(|head| head.id), after.history.len()), (Some(anna.second.id), 1));

    std::fs::rename(&aside, &object).unwrap();
    let checked: RepositoryChecked = world.post(CHECK, json!({})).await.json();
    assert!(checked.sound, "{:?}", checked.findings);
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (1, 1));
    found(&world, "repositories", "good").await;
    assert!(world.get("/metrics").await.body.contains("berth_repositories_damaged 0"));
    world.end().await;
}

#[tokio::test]
async fn what_a_prune_took_that_a_stop_has_cut_is_found_gone_at_the_next_start_without_any_node() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    let object = bucket.object(&anna, &anna.first);
    let faults = bucket.server.faults();
    faults.set(Fault::Slow(std::time::Duration::from_millis(100)));
    let cut = async {
        while object.exists() {
            tokio::task::yield_now().await;
        }
        // Whatever the worker asks for behind its deletes is not answered before the stop.
        faults.set(Fault::Slow(BOUND));
        world.tasks.ask_to_stop();
    };
    let asked = async { tokio::join!(world.post(PRUNE, json!({})), cut).0 };
    let asked = tokio::time::timeout(BOUND, asked).await.expect("it deletes, and a stop waits for nobody");
    assert_eq!(asked.code(), Code::Starting);
    drop(anna.node);
    world.end().await;
    faults.clear();
    // The file of before had none of that.
    let before: Book = serde_json::from_str(r#"{"users": {}}"#).unwrap();
    assert_eq!(before, Book::default());
    let written = journal(&bucket.config());
    assert!(!written.contains("SnapshotsForgotten"), "{written}");

    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let told = |known: &serde_json::Value| known["history"].as_array().is_some_and(Vec::is_empty);
    let after = world.until("/v1/users/anna/snapshots", told).await;
    assert_eq!(after["head"]["id"], json!(anna.second.id));
    world.end().await;
}

#[tokio::test]
async fn what_nobody_has_told_of_yet_stays_whatever_the_clock_of_its_node_says() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let mut anna = anna(&bucket, &world).await;
    // By its time the one behind HEAD is older than HEAD is.
    std::fs::write(anna.cell.join("new"), "behind").unwrap();
    let behind = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 4).await;
    std::fs::write(anna.cell.join("new"), "head").unwrap();
    let head = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    assert_eq!(anna.node.takes(anna.user.id, &head).await, SnapshotOutcome::Head);
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (2, 2));
    assert!(bucket.object(&anna, &behind).exists() && bucket.object(&anna, &head).exists());
    assert_eq!(anna.node.takes(anna.user.id, &behind).await, SnapshotOutcome::Head);
    let file = world.get("/v1/users/anna/snapshots/latest/file?path=new").await.dechunked();
    assert_eq!((file.status, file.body.as_str()), (200, "behind"));
    // HEAD by now, and by its time still not the newest.
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (0, 2));
    assert!(bucket.object(&anna, &behind).exists());
    world.end().await;
}

#[tokio::test]
async fn an_orphan_in_the_users_own_repository_outlives_prunes() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let mut anna = anna(&bucket, &world).await;
    let mut before = anna.told.clone();
    before.generation.number -= 1;
    std::fs::write(anna.cell.join("new"), "orphan").unwrap();
    let orphan = bucket.take(&before, &anna.told.prefix, &anna.cell, 7).await;
    let outcome = anna.node.takes(anna.user.id, &orphan).await;
    assert!(matches!(outcome, SnapshotOutcome::Orphan { .. }), "{outcome:?}");
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (1, 2));
    assert!(bucket.object(&anna, &orphan).exists());
    let path = format!("/v1/users/anna/snapshots/{}/file?path=new", orphan.id);
    let file = world.get(&path).await.dechunked();
    assert_eq!((file.status, file.body.as_str()), (200, "orphan"));
    world.end().await;
}
