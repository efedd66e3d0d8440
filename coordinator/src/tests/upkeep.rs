//! Repositories are pruned by their rule and checked, by themselves and when it is asked for. What is gone from one, whoever took
//! it, is not in the history any more; HEAD that is gone is told.

use std::path::PathBuf;

use berth_coordinator_core::upkeep::Book;
use berth_shared::api::{RepositoryChecked, RepositoryPruned, Snapshots, User, UserRetention};
use berth_shared::problem::Code;
use berth_shared::snapshot::{Retention, Snapshot, SnapshotOutcome};
use berth_shared::time::Millis;
use berth_test_s3::{Fault, NODE_KEY};
use serde_json::json;

use super::bucket::{Anna, Bucket, anna, found, journal};
use super::snapshots::node;
use super::world::{BOUND, World};
use crate::config::{Config, Span};

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

/// Only the newest stays, and HEAD.
fn keep_one(mut config: Config) -> Config {
    let snapshots = &mut config.snapshots;
    snapshots.keep_last = 1;
    (snapshots.keep_hourly, snapshots.keep_daily) = (0, 0);
    (snapshots.keep_weekly, snapshots.keep_monthly) = (0, 0);
    config
}

#[tokio::test]
async fn a_prune_goes_by_the_rule_keeps_head_and_is_in_the_history_and_the_journal() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    // A third one that nobody has told of yet: the newest, and not HEAD.
    std::fs::write(anna.cell.join("new"), "third").unwrap();
    let third = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    assert_eq!(anna.node.bucket.as_ref().unwrap().access_key, NODE_KEY, "not the one that may delete");
    // A rule of her own goes first, as long as she has one.
    let own = world.ask("PUT", "/v1/users/anna/retention", r#"{"last": 9}"#).await;
    assert_eq!(
        own.json::<UserRetention>().keep,
        Retention { last: 9, hourly: 0, daily: 0, weekly: 0, monthly: 0 }
    );
    let none = world.ask("PUT", "/v1/users/anna/retention", r#"{"last": 0}"#).await;
    assert_eq!(none.code(), Code::BadRequest);
    let pruned: RepositoryPruned = world.post("/v1/users/anna/prune", json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept, pruned.bytes_removed), (0, 3, 0));
    let ended: UserRetention = world.ask("DELETE", "/v1/users/anna/retention", "").await.json();
    assert!(!ended.own && ended.keep.last == 1, "{ended:?}");
    let pruned: RepositoryPruned = world.post("/v1/users/anna/prune", json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept, pruned.bytes_removed), (1, 2, 0));
    let shown = |id: &Snapshot| format!("/v1/users/anna/snapshots/{}", id.id);
    assert_eq!(world.get(&shown(&anna.first)).await.code(), Code::UnknownSnapshot);
    for stays in [&anna.second, &third] {
        assert_eq!(world.get(&shown(stays)).await.status, 200);
    }
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!((known.head.map(|head| head.id), known.history), (Some(anna.second.id), vec![]));
    let again: RepositoryPruned = world.post("/v1/users/anna/prune", json!({})).await.json();
    assert_eq!((again.forgotten, again.kept), (0, 2));
    let checked: RepositoryChecked =
        world.post("/v1/users/anna/check", json!({ "read_percent": 100 })).await.json();
    assert!(checked.sound, "{:?}", checked.findings);
    found(&world, "prunes", "good").await;
    found(&world, "repositories", "good").await;
    found(&world, "snapshot_lines", "good").await;
    assert_eq!(
        world.post("/v1/users/anna/check", json!({ "read_percent": 101 })).await.code(),
        Code::BadRequest
    );
    world.end().await;
    let journal = journal(&bucket.config());
    let forgotten: Vec<&str> = journal.lines().filter(|line| line.contains("SnapshotsForgotten")).collect();
    assert_eq!(forgotten.len(), 1, "{journal}");
    assert!(forgotten[0].contains("  op_") && forgotten[0].contains(&anna.first.id.to_string()));

    let mut config = bucket.config();
    config.snapshots.prune_credential_file = None;
    let world = World::with(bucket.folder.path(), config).await;
    assert_eq!(world.post("/v1/users/anna/prune", json!({})).await.code(), Code::PruneOff);
    world.end().await;
}

#[tokio::test]
async fn upkeep_comes_by_itself_and_what_was_done_is_known_after_a_restart() {
    let bucket = Bucket::new();
    let mut config = keep_one(bucket.config());
    config.snapshots.prune_every = Span(Millis(1_000));
    config.snapshots.check_every = Span(Millis(1_000));
    let world = World::with(bucket.folder.path(), config.clone()).await;
    let anna = anna(&bucket, &world).await;
    let pruned = |known: &serde_json::Value| known["history"].as_array().is_some_and(Vec::is_empty);
    world.until("/v1/users/anna/snapshots", pruned).await;
    // Prune and check, each written down behind all that belongs to it.
    let file = config.data_dir.join(crate::upkeep::FILE);
    let done = |text: &str| text.contains(&anna.user.id.to_string()) && text.matches("\"good\"").count() == 2;
    let wait = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| done(&text)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("it is pruned and checked");
    world.end().await;

    // Another start, with days between: nothing is due, and the last check is known all the same.
    let day = Span(Millis::minutes(24 * 60));
    (config.snapshots.prune_every, config.snapshots.check_every) = (day, day);
    let world = World::with(bucket.folder.path(), config.clone()).await;
    let known = found(&world, "repositories", "good").await;
    assert!(known["found"].as_str().unwrap().starts_with("1 were checked"), "{known}");
    world.end().await;
    // A file that is damaged is only a memory that is gone.
    std::fs::write(config.data_dir.join(crate::upkeep::FILE), "{").unwrap();
    let world = World::with(bucket.folder.path(), config).await;
    let known = found(&world, "repositories", "good").await;
    assert!(known["found"].as_str().unwrap().starts_with("0 were checked"), "{known}");
    world.end().await;
}

#[tokio::test]
async fn nothing_is_pruned_while_a_node_that_had_the_user_is_unheard() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    assert_eq!(world.delete("/v1/users/anna").await.status, 204);
    drop(anna.node);
    world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    let path = format!("/v1/users/{}/prune", anna.user.id);
    let refused = world.post(&path, json!({})).await;
    assert_eq!(refused.code(), Code::PruneUnsafe);
    assert!(refused.body.contains("`n1`"), "{}", refused.body);
    let shown = format!("/v1/users/{}/snapshots/{}", anna.user.id, anna.first.id);
    assert_eq!(world.get(&shown).await.status, 200);
    let late = found(&world, "prunes", "warning").await;
    assert!(late["found"].as_str().unwrap().contains("`n1` is not connected"), "{late}");
    assert!(world.get("/metrics").await.body.contains("berth_prunes_overdue 1"));
    // Its operator says that it is off. Where that is wrong it goes on inside its lease of an hour.
    assert_eq!(world.post("/v1/nodes/n1/off", json!({ "node_is_off": true })).await.status, 200);
    let refused = world.post(&path, json!({})).await;
    assert_eq!(refused.code(), Code::PruneUnsafe);
    assert!(refused.body.contains("`n1` was declared off"), "{}", refused.body);
    assert_eq!(world.get(&shown).await.status, 200);
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 204);
    let pruned: RepositoryPruned = world.post(&path, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (1, 1));
    found(&world, "prunes", "good").await;
    world.end().await;
}

#[tokio::test]
async fn damage_that_a_check_finds_is_told_until_it_is_gone() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = anna(&bucket, &world).await;
    let data = bucket.path("store/berth").join(&anna.told.prefix).join("data");
    let aside = bucket.path("aside");
    std::fs::rename(&data, &aside).unwrap();
    let checked: RepositoryChecked = world.post("/v1/users/anna/check", json!({})).await.json();
    assert!(!checked.sound && !checked.findings.is_empty());
    let told = found(&world, "repositories", "problem").await;
    assert!(told["found"].as_str().unwrap().contains("`anna`"), "{told}");
    assert!(world.get("/metrics").await.body.contains("berth_repositories_damaged 1"));
    std::fs::rename(&aside, &data).unwrap();
    let checked: RepositoryChecked = world.post("/v1/users/anna/check", json!({})).await.json();
    assert!(checked.sound, "{:?}", checked.findings);
    found(&world, "repositories", "good").await;
    assert!(world.get("/metrics").await.body.contains("berth_repositories_damaged 0"));
    world.end().await;
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

#[tokio::test]
async fn nothing_is_pruned_where_a_restart_would_not_know_that_it_was_begun() {
    let bucket = Bucket::new();
    let config = keep_one(bucket.config());
    let file = config.data_dir.join(crate::upkeep::FILE);
    let world = World::with(bucket.folder.path(), config).await;
    let anna = anna(&bucket, &world).await;
    // Where a folder is no file is put. Upkeep may write it anew in between.
    let folder = async {
        while std::fs::create_dir(&file).is_err() {
            let _gone_meanwhile = std::fs::remove_file(&file);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, folder).await.expect("there is a folder in its place");
    let refused = world.post(PRUNE, json!({})).await;
    assert_eq!(refused.code(), Code::Internal, "{}", refused.body);
    assert!(bucket.object(&anna, &anna.first).exists(), "nothing was taken");
    assert_eq!(known(&world).await.history.len(), 1);
    std::fs::remove_dir(&file).unwrap();
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (1, 1));
    world.end().await;
}

#[tokio::test]
async fn what_a_lost_node_has_put_beside_the_line_outlives_prunes() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let anna = anna(&bucket, &world).await;
    let objects = bucket.of(&anna, "snapshots");
    let mut second = node(&world, "n2", 2).await;
    world.lose_n1(anna.node, &mut second).await;
    let moved: User = world.post("/v1/users/anna/move", json!({ "to": "n2" })).await.json();
    // It is not off: it works on inside its lease, and nobody hears of it.
    std::fs::write(anna.cell.join("new"), "beside").unwrap();
    let beside = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    // By its time behind that, as if the first ones of the new generation had been forgotten by the rule.
    let told = second.repository_of(anna.user.id).await;
    assert_eq!(told.generation, moved.generation);
    std::fs::write(anna.cell.join("new"), "head").unwrap();
    let head = bucket.take(&told, &told.prefix, &anna.cell, 1).await;
    assert_eq!(second.takes(anna.user.id, &head).await, SnapshotOutcome::Head);
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 204);
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (2, 2));
    for stays in [&beside, &head] {
        assert!(objects.join(stays.id.to_string()).exists());
    }
    world.end().await;
}

#[tokio::test]
async fn a_snapshot_that_was_taken_beside_a_prune_can_be_read_soon() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), keep_one(bucket.config())).await;
    let mut anna = anna(&bucket, &world).await;
    // What comes back had gone before.
    let mut state = 1_u32;
    let digits = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("{state:08x}")
    });
    let comes_back: String = digits.take(100_000).collect();
    for (seq, content) in [(3, comes_back.as_str()), (4, "")] {
        std::fs::write(anna.cell.join("new"), content).unwrap();
        let taken = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, seq).await;
        assert_eq!(anna.node.takes(anna.user.id, &taken).await, SnapshotOutcome::Head);
    }
    std::fs::write(anna.cell.join("new"), &comes_back).unwrap();
    let beside = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 5).await;
    // All that it relies on is there when the prune looks, and not itself.
    let (object, aside) = (bucket.object(&anna, &beside), bucket.path("aside"));
    std::fs::rename(&object, &aside).unwrap();
    let pruned: RepositoryPruned = world.post(PRUNE, json!({})).await.json();
    assert_eq!((pruned.forgotten, pruned.kept), (3, 1));
    assert!(pruned.bytes_marked > 300_000, "{pruned:?}");
    std::fs::rename(&aside, &object).unwrap();
    assert_eq!(anna.node.takes(anna.user.id, &beside).await, SnapshotOutcome::Head);
    let read = async {
        loop {
            let file = world.get("/v1/users/anna/snapshots/latest/file?path=new").await;
            if file.status == 200 {
                return file.dechunked();
            }
        }
    };
    let file = tokio::time::timeout(BOUND, read).await.expect("a prune follows");
    assert!(file.body == comes_back, "{} bytes", file.body.len());
    world.end().await;
}
