//! Backups of the key store in a real S3 server: made by themselves, and brought back from there.

use std::path::{Path, PathBuf};

use berth_daemon::exit::{Exit, ExitError, chain};
use berth_shared::time::{Millis, UnixMs};
use berth_test_s3::Fault;

use super::bucket::{Bucket, found};
use super::snapshots::{create, node};
use super::world::{BOUND, World};
use crate::config::Config;
use crate::key_backups::{Restored, restore};
use crate::keystore::{BackupMark, KeyStore};
use crate::system::wall_now;

/// Where backups lie in the server.
fn folder(bucket: &Bucket) -> PathBuf {
    bucket.path("store/berth/prod/keys")
}

fn names(bucket: &Bucket) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(folder(bucket)).unwrap().map(name).collect()
}

/// Waits until the coordinator says that the bucket has all keys: then it has.
pub(super) async fn all_keys_in(bucket: &Bucket, world: &World) -> BackupMark {
    found(world, "key_backup", "good").await;
    let newest = KeyStore::below(&bucket.config().data_dir).in_bucket().unwrap().newest.unwrap();
    assert!(names(bucket).contains(&newest.name()), "{newest:?} is not there: {:?}", names(bucket));
    newest
}

/// The config of another machine, which has nothing but that.
pub(super) fn elsewhere(bucket: &Bucket, there: &Path) -> Config {
    let config = bucket.config_in(there);
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    std::fs::remove_file(there.join("recovery.key")).unwrap();
    config
}

pub(super) async fn brought_back(bucket: &Bucket, config: &Config) -> Result<Restored, ExitError> {
    restore(config, &bucket.path("recovery.key"), false).await
}

#[tokio::test]
async fn a_bucket_that_is_away_delays_no_user_and_has_all_keys_when_it_is_back() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    all_keys_in(&bucket, &world).await;
    let before = names(&bucket);
    let mut users = vec![anna.id];
    for (fault, slug, advice) in [
        (Fault::RefuseWrites, "bert", "it has to list, read and write"),
        (Fault::Gone, "carl", "looked at again by itself"),
    ] {
        bucket.server.faults().set(fault);
        let missing = users.len();
        let user = create(&world, slug).await;
        node.repository_of(user.id).await;
        users.push(user.id);
        let told = |doctor: &serde_json::Value| {
            let all = doctor["coordinator"].as_array().unwrap();
            let is = |finding: &&serde_json::Value| finding["check"] == "key_backup";
            let finding = all.iter().find(is).unwrap();
            let text = |key: &str| finding[key].as_str().unwrap().to_owned();
            finding["level"] == "problem"
                && text("found").starts_with(&format!("{missing} keys are in no backup"))
                && text("advice").contains(advice)
        };
        world.until("/v1/doctor", told).await;
        let metric = format!("berth_keys_not_backed_up {missing}");
        assert!(world.get("/metrics").await.body.contains(&metric));
        assert_eq!(names(&bucket), before);
    }
    bucket.server.faults().clear();
    all_keys_in(&bucket, &world).await;
    let metrics = world.get("/metrics").await.body;
    assert!(metrics.contains("berth_keys_not_backed_up 0"), "{metrics}");
    assert!(metrics.contains("berth_snapshot_workers_total{job=\"Put\",outcome=\"ok\"}"), "{metrics}");
    let keys = KeyStore::below(&bucket.config().data_dir).keys(&users).unwrap();
    world.end().await;

    let there = tempfile::tempdir().unwrap();
    let config = elsewhere(&bucket, there.path());
    bucket.server.faults().set(Fault::Gone);
    let away = brought_back(&bucket, &config).await.unwrap_err();
    assert_eq!(away.exit(), Exit::Unavailable, "{}", chain(&away));
    bucket.server.faults().clear();
    let restored = brought_back(&bucket, &config).await.unwrap();
    assert_eq!((restored.users, restored.passed_over), (3, vec![]));
    assert_eq!(KeyStore::below(&config.data_dir).keys(&users).unwrap(), keys);
    let again = brought_back(&bucket, &config).await.unwrap_err();
    assert_eq!(again.exit(), Exit::CantCreate, "{}", chain(&again));
}

#[tokio::test]
async fn a_purge_is_in_the_next_backup_and_one_whose_object_is_gone_is_made_again_by_the_next_start() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let with_her = all_keys_in(&bucket, &world).await;
    assert_eq!(world.delete("/v1/users/anna").await.status, 204);
    let purged: serde_json::Value = world.post("/v1/users/anna/purge", serde_json::json!({})).await.json();
    assert_eq!(purged["backups_until"], serde_json::json!(with_her.expires_at));
    assert_eq!(purged["backups_stay"], false);
    assert!(all_keys_in(&bucket, &world).await.made_at > with_her.made_at);
    world.end().await;
    std::fs::remove_dir_all(folder(&bucket)).unwrap();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let made = async {
        while !folder(&bucket).exists() || names(&bucket).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, made).await.expect("it is made again");
    world.end().await;
    let there = tempfile::tempdir().unwrap();
    assert_eq!(brought_back(&bucket, &elsewhere(&bucket, there.path())).await.unwrap().users, 0);
}

#[tokio::test]
async fn backups_whose_time_is_over_are_removed_by_whoever_may_and_told_of_else() {
    let bucket = Bucket::new();
    std::fs::create_dir_all(folder(&bucket)).unwrap();
    let old = BackupMark { made_at: UnixMs(1_577_836_800_000), expires_at: UnixMs(1_580_428_800_000) }.name();
    for name in [old.as_str(), "somebody else's.keys"] {
        std::fs::write(folder(&bucket).join(name), "x").unwrap();
    }
    let mut config = bucket.config();
    config.snapshots.prune_credential_file = None;
    let world = World::with(bucket.folder.path(), config).await;
    let told = found(&world, "key_backups_old", "warning").await;
    assert!(told["advice"].as_str().unwrap().contains("prune_credential_file"), "{told}");
    all_keys_in(&bucket, &world).await;
    world.end().await;
    assert!(names(&bucket).contains(&old));

    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let gone = async {
        while names(&bucket).contains(&old) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, gone).await.expect("it is removed");
    world.end().await;
    assert!(names(&bucket).iter().any(|name| name == "somebody else's.keys"));
    assert!(names(&bucket).iter().any(|name| BackupMark::of_name(name).is_some()), "the newest stays");
}

#[tokio::test]
async fn what_is_no_good_backup_is_passed_over_and_told_and_where_none_is_good_nothing_comes_back() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let good = all_keys_in(&bucket, &world).await;
    world.end().await;
    let later = |ms: u64| {
        let made_at = wall_now().after(Millis(ms));
        BackupMark { made_at, expires_at: made_at.after(Millis::minutes(60)) }.name()
    };
    let (damaged, renamed) = (later(60_000), later(120_000));
    std::fs::write(folder(&bucket).join(&damaged), "not a backup").unwrap();
    std::fs::copy(folder(&bucket).join(good.name()), folder(&bucket).join(&renamed)).unwrap();
    let there = tempfile::tempdir().unwrap();
    let config = elsewhere(&bucket, there.path());
    let restored = brought_back(&bucket, &config).await.unwrap();
    assert_eq!((restored.users, &restored.name), (1, &good.name()));
    let [first, second] = restored.passed_over.as_slice() else { panic!("{:?}", restored.passed_over) };
    assert!(first.starts_with(&renamed) && first.contains("another backup than its name"), "{first}");
    assert!(second.starts_with(&damaged) && second.contains("not such a file"), "{second}");

    for name in names(&bucket) {
        if name != damaged {
            std::fs::remove_file(folder(&bucket).join(name)).unwrap();
        }
    }
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    let none = brought_back(&bucket, &config).await.unwrap_err();
    assert_eq!(none.exit(), Exit::DataCorrupt);
    assert!(chain(&none).contains(&damaged), "{}", chain(&none));
    std::fs::remove_file(folder(&bucket).join(&damaged)).unwrap();
    let empty = brought_back(&bucket, &config).await.unwrap_err();
    assert_eq!(empty.exit(), Exit::NoInput);
    assert!(chain(&empty).contains("prod/keys/"), "{}", chain(&empty));
    assert!(!config.data_dir.join("keys").join("store").exists());
}
