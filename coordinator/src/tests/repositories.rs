//! Repositories in a real S3 server, read by real workers of the coordinator.

use berth_daemon::secret_file::write_secret_file;
use berth_shared::api::{EntryChange, List, SnapshotChange, SnapshotDetail, SnapshotEntry, Snapshots};
use berth_shared::problem::Code;
use berth_shared::repository::UserRepository;
use berth_shared::snapshot::SnapshotOutcome;
use berth_test_s3::Fault;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bucket::{Bucket, anna, found, journal};
use super::snapshots::{create, node};
use super::world::{BOUND, World};

#[tokio::test]
async fn what_is_in_a_snapshot_is_told_also_when_its_node_and_its_user_are_gone() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = anna(&bucket, &world).await;
    let (id, first) = (anna.second.id.to_string(), anna.first.id.to_string());
    let shown: SnapshotDetail = world.get("/v1/users/anna/snapshots/latest").await.json();
    assert_eq!((&shown.id, shown.head, shown.seq), (&id, true, Some(2)));
    assert_eq!(shown.tree, Some(anna.second.tree.to_string()));
    let shown: SnapshotDetail = world.get(&format!("/v1/users/anna/snapshots/{}", &first[..8])).await.json();
    assert_eq!((&shown.id, shown.head), (&first, false));

    let all: List<SnapshotDetail> = world.get("/v1/users/anna/repository").await.dechunked().json();
    assert_eq!(
        all.items.iter().map(|each| (&each.id, each.head)).collect::<Vec<_>>(),
        [(&first, false), (&id, true)]
    );

    let files = |rest: &str| format!("/v1/users/anna/snapshots/latest/files{rest}");
    let paths = |list: List<SnapshotEntry>| {
        list.items.into_iter().map(|entry| entry.path).collect::<std::collections::BTreeSet<_>>()
    };
    let top: List<SnapshotEntry> = world.get(&files("")).await.dechunked().json();
    assert_eq!(paths(top), ["big", "new", "notes"].map(str::to_owned).into());
    let all: List<SnapshotEntry> = world.get(&files("?path=&recursive=true")).await.dechunked().json();
    assert_eq!(paths(all), ["big", "new", "notes", "notes/a b.md"].map(str::to_owned).into());
    let below: List<SnapshotEntry> = world.get(&files("?path=notes")).await.dechunked().json();
    assert_eq!(below.items.len(), 1);
    assert_eq!((below.items[0].path.as_str(), below.items[0].bytes), ("notes/a b.md", 9));

    let diff = format!("/v1/users/anna/snapshots/{first}/diff");
    let changes: List<SnapshotChange> = world.get(&diff).await.dechunked().json();
    let how = |path: &str| changes.items.iter().find(|change| change.path == path).map(|change| change.how);
    assert_eq!(how("gone"), Some(EntryChange::Removed));
    assert_eq!(how("new"), Some(EntryChange::Added));
    assert_eq!(how("notes/a b.md"), Some(EntryChange::Content));
    assert_eq!(how("big"), None);
    let same: List<SnapshotChange> = world.get(&format!("{diff}?to={first}")).await.dechunked().json();
    assert!(same.items.is_empty());

    let file = |rest: &str| format!("/v1/users/anna/snapshots/{rest}");
    let once = world.get(&file(&format!("{}/file?path=notes/a%20b.md", &first[..12]))).await.dechunked();
    assert_eq!(once.body, "once");
    assert_eq!(world.get(&file("latest/file?path=new")).await.dechunked().body, "");
    for (bad, code) in [
        ("latest/file?path=nowhere", Code::UnknownSnapshot),
        ("latest/file?path=notes", Code::UnknownSnapshot),
        ("latest/file?path=../notes", Code::UnknownSnapshot),
        ("latest/file", Code::BadRequest),
        ("0000000000000000/files", Code::UnknownSnapshot),
        ("00/files", Code::BadRequest),
        ("ABCDEFGH/files", Code::BadRequest),
        ("latest/diff?to=x", Code::BadRequest),
        ("latest/files?deep=true", Code::BadRequest),
    ] {
        assert_eq!(world.get(&file(bad)).await.code(), code, "{bad}");
    }
    let metrics = world.get("/metrics").await.body;
    assert!(
        metrics.contains("berth_snapshot_workers_total{job=\"Dump\",outcome=\"ok\"}")
            && metrics.contains("berth_snapshot_workers_total{job=\"Dump\",outcome=\"unknown_snapshot\"}"),
        "{metrics}"
    );

    // Removed, and its node is gone, too: its files are read by its id.
    assert_eq!(world.delete("/v1/users/anna").await.status, 204);
    drop(anna.node);
    let by_id = format!("/v1/users/{}/snapshots/latest/file?path=notes/a%20b.md", anna.user.id);
    assert_eq!(world.get(&by_id).await.dechunked().body, "and again");
    world.end().await;
    let journal = journal(&bucket.config());
    let opened: Vec<&str> = journal.lines().filter(|line| line.contains("FilesOpened")).collect();
    assert_eq!(opened.len(), 8, "{journal}");
    assert!(opened.iter().all(|line| line.contains("  op_") && !line.contains("notes")), "{opened:?}");
}

#[tokio::test]
async fn a_copy_that_an_old_owner_took_is_looked_into_below_orphans() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let mut old = anna.told.clone();
    old.generation.number = 0;
    old.orphans_prefix = old.orphans_prefix.replace("/1.1/", "/1.0/");
    bucket.init(&old, &old.orphans_prefix).await;
    std::fs::write(anna.cell.join("only here"), "kept").unwrap();
    let orphan = bucket.take(&old, &old.orphans_prefix, &anna.cell, 9).await;
    assert!(matches!(anna.node.takes(anna.user.id, &orphan).await, SnapshotOutcome::Orphan { .. }));
    let path = format!("/v1/users/anna/snapshots/{}/file?path=only%20here", orphan.id);
    assert_eq!(world.get(&path).await.dechunked().body, "kept");
    world.end().await;
}

#[tokio::test]
async fn what_the_bucket_does_wrong_is_told_as_what_it_is() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = anna(&bucket, &world).await;
    let path = "/v1/users/anna/snapshots/latest/file?path=big";
    bucket.server.faults().set(Fault::Gone);
    assert_eq!(world.get(path).await.code(), Code::BucketUnreachable);
    bucket.server.faults().clear();
    // A pack is gone: whatever is asked for needs the listings, and the content its data.
    let packs = bucket.path("store/berth").join(&anna.told.prefix).join("data");
    std::fs::remove_dir_all(&packs).unwrap();
    assert_eq!(world.get(path).await.code(), Code::RepositoryDamaged);
    world.end().await;
    let wrong = "aws_access_key_id = nobody\naws_secret_access_key = nothing\n";
    let credential = bucket.path("wrong.credential");
    write_secret_file(&credential, wrong.as_bytes()).unwrap();
    let mut config = bucket.config();
    config.snapshots.credential_file = Some(credential);
    let world = World::with(bucket.folder.path(), config).await;
    assert_eq!(world.get(path).await.code(), Code::BucketRefused);
    world.end().await;
}

#[tokio::test]
async fn an_answer_that_the_bucket_breaks_off_is_seen_to_be_cut() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    // More than pipes, queues and sockets hold: the worker waits for the client in the middle of it.
    let mut state = 1_u64;
    let huge: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    })
    .take(6_000_000)
    .flatten()
    .collect();
    std::fs::write(anna.cell.join("huge"), &huge).unwrap();
    let third = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    assert_eq!(anna.node.takes(anna.user.id, &third).await, SnapshotOutcome::Head);
    let path = "/v1/users/anna/snapshots/latest/file?path=huge";
    assert!(world.get_bytes(path).await == huge);
    let mut stream = tokio::net::TcpStream::connect(world.coordinator.api.get()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", world.key);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut begun = [0; 1000];
    stream.read_exact(&mut begun).await.unwrap();
    assert!(begun.starts_with(b"HTTP/1.1 200 OK"));
    bucket.server.faults().set(Fault::Gone);
    let mut rest = vec![];
    // An end, or a reset.
    let _end = tokio::time::timeout(BOUND, stream.read_to_end(&mut rest)).await.expect("it ends");
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "it looks whole");
    assert!(rest.len() < huge.len(), "the worker ran ahead of its client");
    world.end().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_worker_along_and_no_more_run_than_may() {
    let bucket = Bucket::new();
    let mut config = bucket.config();
    config.snapshots.workers = 1;
    let world = World::with(bucket.folder.path(), config).await;
    let anna = anna(&bucket, &world).await;
    let path = "/v1/users/anna/snapshots/latest/file?path=big";
    // The look at the bucket is over, and the keys are backed up.
    found(&world, "bucket_prune", "good").await;
    found(&world, "key_backup", "good").await;
    let before = bucket.server.faults().counts();
    bucket.server.faults().set(Fault::Slow(BOUND));
    let mut gone = tokio::net::TcpStream::connect(world.coordinator.api.get()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", world.key);
    gone.write_all(request.as_bytes()).await.unwrap();
    let asked = async {
        while bucket.server.faults().counts() == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("the worker asks the bucket");
    assert_eq!(world.get(path).await.code(), Code::WorkersBusy);
    drop(gone);
    bucket.server.faults().clear();
    // Its turn is free although its request would take longer than anybody waits for one.
    let whole = world.get_bytes(path).await;
    assert_eq!(whole.len(), anna.big.len());
    assert!(whole == anna.big, "not the file");
    world.end().await;
}

#[tokio::test]
async fn after_a_lost_disk_keys_and_heads_come_out_of_the_bucket_with_the_recovery_key_alone() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let bert = create(&world, "bert").await;
    let of_bert = anna.node.repository_of(bert.id).await;
    let mut old = anna.told.clone();
    old.generation.number = 0;
    old.orphans_prefix = old.orphans_prefix.replace("/1.1/", "/1.0/");
    bucket.init(&old, &old.orphans_prefix).await;
    let orphan = bucket.take(&old, &old.orphans_prefix, &anna.cell, 9).await;
    // Tags are words of whoever wrote the snapshot: in another's repository they say nothing.
    bucket.init(&of_bert, &of_bert.prefix).await;
    let lie = UserRepository { user: anna.user.id, ..of_bert.clone() };
    bucket.take(&lie, &of_bert.prefix, &anna.cell, 77).await;
    found(&world, "key_backup", "good").await;
    world.end().await;
    std::fs::remove_dir_all(bucket.config().data_dir).unwrap();

    // Another machine: the bucket and the recovery key.
    let there = tempfile::tempdir().unwrap();
    let config = bucket.config_in(there.path());
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    let recovery = bucket.path("recovery.key");
    assert_eq!(crate::key_backups::restore(&config, &recovery, false).await.unwrap().users, 2);
    let stranger = berth_shared::ids::UserId::from_random([9; 16]);
    std::fs::create_dir_all(bucket.path(&format!("store/berth/prod/users/{stranger}"))).unwrap();
    std::fs::write(bucket.path(&format!("store/berth/prod/users/{stranger}/config")), "x").unwrap();
    let found = crate::heads::list_bucket(&config).await.unwrap();
    assert!(found.failed.is_empty(), "{:?}", found.failed);
    assert_eq!(found.unknown, [stranger].into());
    assert_eq!(found.listing.snapshots.len(), 3);
    let done = crate::heads::rebuild_from(&config.data_dir, &found.listing).unwrap();
    assert_eq!(done.rebuilt, [anna.user.id]);

    let world = World::with(there.path(), config).await;
    let path = format!("/v1/users/{}/snapshots", anna.user.id);
    let known: Snapshots = world.get(&path).await.json();
    let head = known.head.unwrap();
    assert_eq!((head.id, head.seq, head.tree), (anna.second.id, 2, anna.second.tree));
    assert_eq!((head.generation, head.image), (anna.second.generation, anna.second.image.clone()));
    assert_eq!(known.history.iter().map(|kept| kept.id).collect::<Vec<_>>(), [anna.first.id]);
    assert_eq!(known.orphans.iter().map(|found| found.snapshot.id).collect::<Vec<_>>(), [orphan.id]);
    let file = format!("{path}/latest/file?path=notes/a%20b.md");
    assert_eq!(world.get(&file).await.dechunked().body, "and again");
    let mut node = node(&world, "m1", 2).await;
    let body = serde_json::json!({ "slug": "anna", "take_over": anna.user.id });
    assert_eq!(world.post("/v1/users", body).await.status, 201);
    assert_eq!(node.repository_of(anna.user.id).await.head.unwrap().id, anna.second.id);
    world.end().await;
}

#[tokio::test]
async fn the_bucket_is_looked_at_at_the_start_and_what_is_wrong_is_told_with_what_to_do() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    found(&world, "bucket", "good").await;
    found(&world, "bucket_prune", "good").await;
    let doctor: serde_json::Value = world.get("/v1/doctor").await.json();
    assert!(!doctor.to_string().contains("bucket_rights"), "{doctor}");
    assert!(world.get("/metrics").await.body.contains("berth_bucket_usable 1"));
    world.end().await;

    // Nodes that may delete, and prunes that may not.
    let mut config = bucket.config();
    std::mem::swap(&mut config.snapshots.credential_file, &mut config.snapshots.prune_credential_file);
    let world = World::with(bucket.folder.path(), config).await;
    let rights = found(&world, "bucket_rights", "warning").await;
    assert!(rights["advice"].as_str().unwrap().contains("without s3:DeleteObject"), "{rights}");
    found(&world, "bucket_prune", "problem").await;
    world.end().await;

    let mut config = bucket.config();
    config.snapshots.bucket = Some("another".to_owned());
    config.snapshots.prune_credential_file = None;
    let world = World::with(bucket.folder.path(), config).await;
    let wrong = found(&world, "bucket", "problem").await;
    assert!(wrong["advice"].as_str().unwrap().contains("`snapshots.bucket`"), "{wrong}");
    found(&world, "bucket_prune", "note").await;
    assert!(world.get("/metrics").await.body.contains("berth_bucket_usable 0"));
    world.end().await;

    // Gone: it starts all the same, and takes the bucket up when it is back.
    bucket.server.faults().set(Fault::Gone);
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let gone = found(&world, "bucket", "problem").await;
    assert!(gone["advice"].as_str().unwrap().contains("looked at again by itself"), "{gone}");
    bucket.server.faults().clear();
    found(&world, "bucket", "good").await;
    world.end().await;
}

#[tokio::test]
async fn a_stop_waits_for_no_worker() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let _anna = anna(&bucket, &world).await;
    found(&world, "bucket_prune", "good").await;
    found(&world, "key_backup", "good").await;
    let before = bucket.server.faults().counts();
    bucket.server.faults().set(Fault::Slow(BOUND));
    let asked = async {
        let wait = async {
            while bucket.server.faults().counts() == before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("the worker asks the bucket");
        world.tasks.ask_to_stop();
    };
    let check = world.post("/v1/users/anna/check", json!({}));
    let (checked, ()) = tokio::join!(check, asked);
    assert_eq!(checked.code(), Code::Starting, "not when the bucket answers");
    world.end().await;
}
