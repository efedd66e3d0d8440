//! Repositories from the key's making to its end, over the link and the API.

use std::path::Path;

use berth_shared::api::{Cell, KeyPurged, List, RepositoryAccess, Snapshots, User};
use berth_shared::cell::{CellEvent, CellEventKind, CellState};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::UserRepository;
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome, TreeHash};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::{
    CommandVerb, CoordinatorFrame, FRAMES_VERSION_MAX, Hello, NodeFrame, SNAPSHOTS_SINCE,
};
use serde_json::{Value, json};

use super::sleep::{asleep, swap};
use super::world::{FakeNode, World, config, hello, status};
use crate::config::{Config, Snapshots as Section};
use crate::daemon::start;
use crate::keystore::{KeyStore, verbs};
use crate::system::wall_now;

/// A config with a bucket, its credential, and a key store whose recovery key is in a file.
pub(crate) fn with_bucket(folder: &Path) -> Config {
    let config = config(folder);
    let credential = folder.join("bucket.credential");
    if !credential.exists() {
        let text = "[default]\naws_access_key_id = AK\naws_secret_access_key = very secret\n";
        berth_daemon::secret_file::write_secret_file(&credential, text.as_bytes()).unwrap();
        std::fs::create_dir_all(&config.data_dir).unwrap();
        let recovery = folder.join("recovery.key");
        verbs::init(&KeyStore::below(&config.data_dir), Some(&recovery), &mut vec![]).unwrap();
    }
    let snapshots = Section {
        bucket: Some("berth".to_owned()),
        endpoint: Some("http://127.0.0.1:3900".to_owned()),
        path_style: true,
        prefix: "prod/".to_owned(),
        credential_file: Some(credential),
        ..Section::default()
    };
    Config { snapshots, ..config }
}

pub(crate) async fn session(world: &World, node: FakeNode, counter: u64, version_max: u16) -> FakeNode {
    let hello = Hello { version_max, ..hello(node.id, counter) };
    FakeNode::greet(world.coordinator.link, world.coordinator.key, node.key, hello).await
}

pub(crate) async fn node(world: &World, name: &str, seed: u8) -> FakeNode {
    let node = world.node(name, seed).await;
    session(world, node, 2, FRAMES_VERSION_MAX).await
}

pub(crate) async fn create(world: &World, slug: &str) -> User {
    let answer = world.post("/v1/users", json!({ "slug": slug })).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.json()
}

impl FakeNode {
    /// Reads desired states until the repository of this user came.
    pub(crate) async fn repository_of(&mut self, user: UserId) -> UserRepository {
        loop {
            if let Some(found) = self.repositories.iter().rev().find(|found| found.user == user) {
                return found.clone();
            }
            self.next_desired().await;
        }
    }

    /// Tells of a snapshot and gives the answer.
    pub(crate) async fn takes(&mut self, user: UserId, snapshot: &Snapshot) -> SnapshotOutcome {
        self.send(&NodeFrame::SnapshotTaken { user, snapshot: Box::new(snapshot.clone()), aside: false })
            .await;
        loop {
            match self.receive().await {
                CoordinatorFrame::SnapshotJudged { user: of, snapshot: id, outcome } => {
                    assert_eq!((of, id), (user, snapshot.id));
                    return outcome;
                }
                CoordinatorFrame::Repositories { users } => self.repositories.extend(users),
                CoordinatorFrame::Desired(_) | CoordinatorFrame::Terms { .. } => {}
                other => panic!("not an answer: {other:?}"),
            }
        }
    }
}

pub(crate) fn snapshot(cell: CellId, generation: Generation, id: u8, seq: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([id; 32]),
        cell,
        generation,
        seq,
        taken_at: UnixMs(1_763_683_200_000 + seq),
        bytes: Bytes::mib(200),
        tree: TreeHash::from_bytes([id; 32]),
        image: "berth/test:1".parse().unwrap(),
        parent: None,
    }
}

#[tokio::test]
async fn a_user_gets_a_key_its_node_is_told_and_head_moves_as_the_node_says() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let bucket = node.bucket.clone().unwrap();
    assert_eq!((bucket.bucket.as_str(), bucket.access_key.as_str()), ("berth", "AK"));
    assert_eq!(bucket.secret_key.expose(), "very secret");
    assert!(!format!("{bucket:?}").contains("very secret"));
    let anna = create(&world, "anna").await;
    let told = node.repository_of(anna.id).await;
    assert_eq!(told.prefix, format!("prod/users/{}/", anna.id));
    assert_eq!(told.orphans_prefix, format!("prod/orphans/{}/1.1/", anna.id));
    assert_eq!((told.cell, told.generation, told.head.clone()), (anna.cell, anna.generation, None));

    let first = snapshot(anna.cell, anna.generation, 10, 1);
    assert_eq!(node.takes(anna.id, &first).await, SnapshotOutcome::Head);
    assert_eq!(node.takes(anna.id, &first).await, SnapshotOutcome::Head, "told again");
    let third = snapshot(anna.cell, anna.generation, 12, 3);
    assert_eq!(node.takes(anna.id, &third).await, SnapshotOutcome::Head);
    let second = snapshot(anna.cell, anna.generation, 11, 2);
    assert_eq!(node.takes(anna.id, &second).await, SnapshotOutcome::Kept, "it was late");
    assert_eq!(node.takes(anna.id, &first).await, SnapshotOutcome::Kept);
    let stale = Generation { epoch: 0, number: 9 };
    let orphan = snapshot(anna.cell, stale, 13, 9);
    let outcome = SnapshotOutcome::Orphan { current: Some(anna.generation) };
    assert_eq!(node.takes(anna.id, &orphan).await, outcome);
    assert_eq!(node.takes(anna.id, &orphan).await, outcome, "told again");
    let nobody = UserId::from_random([9; 16]);
    let refused = node.takes(nobody, &first).await;
    assert!(matches!(&refused, SnapshotOutcome::Refused(problem) if problem.code == Code::UnknownUser));

    let shown: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!((shown.user, shown.key, shown.head.as_ref()), (anna.id, told.key.id, Some(&third)));
    assert_eq!(shown.history, [second, first]);
    assert_eq!(shown.orphans.len(), 1);
    assert_eq!(shown.orphans[0].node.as_ref().unwrap().as_str(), "n1");
    assert_eq!(shown.orphans[0].prefix.as_deref(), Some(&*format!("prod/orphans/{}/0.9/", anna.id)));
    assert_eq!(world.get("/v1/users/anna").await.json::<User>().head.as_ref(), Some(&third));

    let access: RepositoryAccess = world.post("/v1/users/anna/repository-password", json!({})).await.json();
    assert_eq!((access.prefix, access.password), (told.prefix, told.key.password.clone()));
    assert_eq!(access.url.as_deref(), Some("rest:http://anna.localhost:8080/.berth/restic/"));
    assert_eq!(world.post("/v1/users/nobody/repository-password", json!({})).await.code(), Code::UnknownUser);

    // A new session is told where to begin from, before its desired state.
    let node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    let again = node.repositories.last().unwrap();
    assert_eq!((again.head.as_ref(), &again.key), (Some(&third), &told.key));
    world.end().await;

    // So is one with a coordinator that was started anew.
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let node = session(&world, node, 4, FRAMES_VERSION_MAX).await;
    assert_eq!(node.repositories.last().unwrap().head.as_ref(), Some(&third));
    assert_eq!(node.repositories.last().unwrap().key, told.key);
    world.end().await;
}

#[tokio::test]
async fn a_node_that_tells_of_ever_more_snapshots_fills_no_journal_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let of = |number: u8| snapshot(anna.cell, anna.generation, number, number.into());
    let mut told = 0;
    let later = loop {
        told += 1;
        assert!(told < 200, "there is no end");
        match node.takes(anna.id, &of(told)).await {
            SnapshotOutcome::Head => {}
            SnapshotOutcome::Later(problem) => break problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(later.code == Code::TooMany && told > 64, "{told}: {later}");
    assert_eq!(
        node.takes(anna.id, &of(told - 1)).await,
        SnapshotOutcome::Head,
        "what is known costs nothing"
    );
    let shown: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!(shown.head.unwrap(), of(told - 1));
    // Another session has no more room, and each is taken down in the end.
    let mut node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    let mut refused = 0;
    for number in told..told + 3 {
        while let SnapshotOutcome::Later(_) = node.takes(anna.id, &of(number)).await {
            refused += 1;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    assert!(refused > 0, "it was all there again");
    let shown: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!(shown.head.unwrap(), of(told + 2));
    world.end().await;
}

#[tokio::test]
async fn a_node_is_given_its_own_credential_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("nodes");
    std::fs::create_dir(&own).unwrap();
    let text = "aws_access_key_id=OF N2\naws_secret_access_key=its own\n";
    berth_daemon::secret_file::write_secret_file(&own.join("n2"), text.as_bytes()).unwrap();
    let mut settings = with_bucket(folder.path());
    settings.snapshots.node_credentials = Some(own.clone());
    let world = World::with(folder.path(), settings.clone()).await;
    let (one, two) = (node(&world, "n1", 1).await, node(&world, "n2", 2).await);
    assert_eq!(one.bucket.unwrap().access_key, "AK");
    let bucket = two.bucket.unwrap();
    assert_eq!((bucket.access_key.as_str(), bucket.secret_key.expose()), ("OF N2", "its own"));
    world.end().await;
    std::fs::write(own.join("No Node"), text).unwrap();
    let tasks = berth_daemon::tasks::Tasks::new();
    let refused = crate::vaults::Vaults::open(&settings.data_dir, &settings.snapshots, &tasks).unwrap_err();
    assert!(refused.to_string().contains("would be given to nobody"), "{refused}");
}

#[tokio::test]
async fn a_session_of_an_older_version_is_told_nothing_of_it_and_works_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let node = world.node("n1", 1).await;
    let mut node = session(&world, node, 2, SNAPSHOTS_SINCE - 1).await;
    assert_eq!(node.version, SNAPSHOTS_SINCE - 1);
    let anna = create(&world, "anna").await;
    while node.next_desired().await.assignments.is_empty() {}
    world.until("/v1/users/anna/snapshots", |answer| answer["key"].is_string()).await;
    node.send_heartbeat().await;
    loop {
        match node.receive().await {
            CoordinatorFrame::Heard => break,
            CoordinatorFrame::Desired(_) => {}
            other => panic!("too new: {other:?}"),
        }
    }
    assert!(node.bucket.is_none() && node.repositories.is_empty());
    // Told by a newer session of the same node.
    let node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    assert_eq!(node.repositories.last().unwrap().user, anna.id);
    world.end().await;
}

#[tokio::test]
async fn a_purge_needs_a_removed_user_ends_its_key_and_names_its_last_backup() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_bucket(folder.path());
    let store = KeyStore::below(&settings.data_dir);
    let world = World::with(folder.path(), settings).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    let bert = create(&world, "bert").await;
    node.repository_of(anna.id).await;
    node.repository_of(bert.id).await;
    assert_eq!(world.post("/v1/users/anna/purge", json!({})).await.code(), Code::UserInUse);
    assert_eq!(world.post("/v1/users/nobody/purge", json!({})).await.code(), Code::UnknownUser);
    let now = wall_now();
    store.backup(now, Millis::minutes(60)).unwrap();
    for user in ["anna", "bert"] {
        assert_eq!(world.delete(&format!("/v1/users/{user}")).await.status, 204);
    }
    // A second one of the same name, removed too: the name alone does not say who is meant.
    let other = create(&world, "anna").await;
    node.repository_of(other.id).await;
    assert_eq!(
        world.get("/v1/users/anna/snapshots").await.json::<Snapshots>().user,
        other.id,
        "the one of now"
    );
    world.delete("/v1/users/anna").await;
    let ambiguous = world.post("/v1/users/anna/purge", json!({})).await;
    assert_eq!(ambiguous.code(), Code::AmbiguousUser);
    assert!(ambiguous.body.contains(&anna.id.to_string()) && ambiguous.body.contains(&other.id.to_string()));

    let path = format!("/v1/users/{}/purge", anna.id);
    let purged: KeyPurged = world.post(&path, json!({})).await.json();
    let backups_until = Some(now.after(Millis::minutes(60)));
    assert_eq!(purged, KeyPurged { user: anna.id, backups_until, backups_stay: true });
    assert_eq!(world.post(&path, json!({})).await.json::<KeyPurged>(), purged, "asked again");
    assert!(!store.ids().unwrap().contains_key(&anna.id));
    assert_eq!(world.get(&format!("/v1/users/{}/snapshots", anna.id)).await.code(), Code::KeyPurged);
    let late = node.takes(anna.id, &snapshot(anna.cell, anna.generation, 1, 1)).await;
    assert!(matches!(&late, SnapshotOutcome::Refused(problem) if problem.code == Code::KeyPurged));
    let shown = world.post(&format!("/v1/users/{}/repository-password", anna.id), json!({})).await;
    assert_eq!(shown.code(), Code::KeyPurged);
    let third: KeyPurged = world.post("/v1/users/anna/purge", json!({})).await.json();
    assert_eq!((third.user, third.backups_until), (other.id, None), "made after the backup");
    assert_eq!(store.ids().unwrap().into_keys().collect::<Vec<_>>(), [bert.id]);
    world.end().await;
}

#[tokio::test]
async fn a_purge_that_the_journal_has_is_finished_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_bucket(folder.path());
    let store = KeyStore::below(&settings.data_dir);
    let world = World::with(folder.path(), settings).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let path = settings_path(folder.path());
    let before = std::fs::read(&path).unwrap();
    world.delete("/v1/users/anna").await;
    world.post("/v1/users/anna/purge", json!({})).await.json::<KeyPurged>();
    world.end().await;
    // As if it had died between the journal and the key store, or an old copy of the file was put back.
    std::fs::write(&path, before).unwrap();
    assert!(store.ids().unwrap().contains_key(&anna.id));
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    assert!(!store.users().unwrap().contains(&anna.id), "neither of her keys");
    world.end().await;
}

fn settings_path(folder: &Path) -> std::path::PathBuf {
    config(folder).data_dir.join("keys").join("store")
}

#[tokio::test]
async fn users_of_before_get_keys_once_there_is_a_bucket_and_without_one_nothing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.next_desired().await;
    assert!(node.bucket.is_none());
    assert_eq!(world.get("/v1/users/anna/snapshots").await.code(), Code::SnapshotsOff);
    assert_eq!(world.post("/v1/users/anna/check", json!({})).await.code(), Code::SnapshotsOff);
    assert_eq!(world.post("/v1/users/anna/purge", json!({})).await.code(), Code::UserInUse);
    let later = node.takes(anna.id, &snapshot(anna.cell, anna.generation, 1, 1)).await;
    assert!(matches!(&later, SnapshotOutcome::Later(problem) if problem.code == Code::KeyMissing));
    world.end().await;
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    world.until("/v1/users/anna/snapshots", |answer| answer["key"].is_string()).await;
    let node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    assert_eq!(node.repositories.last().unwrap().user, anna.id);
    world.end().await;
}

#[tokio::test]
async fn a_fleet_key_that_is_changed_beside_the_coordinator_changes_no_users_key() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_bucket(folder.path());
    let store = KeyStore::below(&settings.data_dir);
    let world = World::with(folder.path(), settings).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    let key = node.repository_of(anna.id).await.key;
    assert_eq!(store.rotate(wall_now()).unwrap().users, 1);
    let bert = create(&world, "bert").await;
    node.repository_of(bert.id).await;
    let node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    let again = node.repositories.iter().find(|found| found.user == anna.id).unwrap();
    assert_eq!(again.key, key);
    world.end().await;
}

#[tokio::test]
async fn a_key_store_that_cannot_be_used_for_a_while_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let (path, aside) = (settings_path(folder.path()), folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let mut node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    assert!(node.bucket.is_some() && node.repositories.is_empty());
    std::fs::rename(&aside, &path).unwrap();
    loop {
        match node.receive().await {
            CoordinatorFrame::Repositories { users } => {
                assert_eq!(users[0].user, anna.id);
                break;
            }
            CoordinatorFrame::Desired(_) | CoordinatorFrame::Terms { .. } => {}
            other => panic!("not what is awaited: {other:?}"),
        }
    }
    world.end().await;
}

#[tokio::test]
async fn a_bucket_without_keys_or_with_a_wrong_credential_ends_the_start_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let good = with_bucket(folder.path());
    let refused = async |config: Config| {
        let tasks = berth_daemon::tasks::Tasks::new();
        let started = start(config, Some(folder.path().join("op")), &mut vec![], &tasks).await;
        // Its journal has to be free again.
        tasks.shutdown(super::world::BOUND).await.unwrap();
        berth_daemon::exit::chain(&started.unwrap_err())
    };
    std::fs::write(folder.path().join("bucket.credential"), "aws_access_key_id = x\n").unwrap();
    assert!(refused(good.clone()).await.contains("aws_secret_access_key"));
    std::fs::remove_dir_all(good.data_dir.join("keys")).unwrap();
    assert!(refused(good).await.contains("berth-coordinator keys init"));
}

#[tokio::test]
async fn without_the_bucket_of_known_snapshots_nothing_starts_unless_they_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    world.end().await;
    // Nothing was ever taken of her.
    let world = World::on(folder.path()).await;
    world.end().await;
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = session(&world, node, 3, FRAMES_VERSION_MAX).await;
    let taken = snapshot(anna.cell, anna.generation, 7, 4);
    assert_eq!(node.takes(anna.id, &taken).await, SnapshotOutcome::Head);
    world.end().await;

    // The section is lost.
    let tasks = berth_daemon::tasks::Tasks::new();
    let key_file = Some(folder.path().join("operator.key"));
    let refused = start(config(folder.path()), key_file, &mut vec![], &tasks).await.unwrap_err();
    tasks.shutdown(super::world::BOUND).await.unwrap();
    assert_eq!(refused.exit(), berth_daemon::exit::Exit::Config);
    let text = berth_daemon::exit::chain(&refused);
    assert!(text.contains("`anna`") && text.contains("snapshots.abandoned"), "{text}");

    let mut given_up = config(folder.path());
    given_up.snapshots.abandoned = true;
    let world = World::with(folder.path(), given_up).await;
    let node = session(&world, node, 4, FRAMES_VERSION_MAX).await;
    assert!(node.bucket.is_none());
    let mut second = self::node(&world, "n2", 2).await;
    world.lose_n1(node, &mut second).await;
    let asked = world.post("/v1/users/anna/move", json!({})).await;
    assert_eq!(asked.code(), Code::BadRequest, "she would begin with nothing");
    assert!(asked.body.contains("without_data"), "{}", asked.body);
    let take_over = json!({ "slug": "berta", "take_over": anna.id });
    assert_eq!(world.post("/v1/users", take_over).await.code(), Code::SnapshotsOff);
    let moved = world.post("/v1/users/anna/move", json!({ "without_data": true })).await;
    let moved: Value = moved.json();
    assert_eq!((&moved["node"], &moved["head"]), (&json!("n2"), &json!(null)), "she begins with nothing");
    world.end().await;
}

#[tokio::test]
async fn after_a_lost_disk_keys_and_heads_are_back_and_a_user_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_bucket(folder.path());
    let store = KeyStore::below(&settings.data_dir);
    let backups = folder.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let world = World::with(folder.path(), settings).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    let key = node.repository_of(anna.id).await.key;
    let taken = snapshot(anna.cell, anna.generation, 7, 4);
    assert_eq!(node.takes(anna.id, &taken).await, SnapshotOutcome::Head);
    let backup = verbs::backup(&store, &backups, wall_now(), Millis::minutes(60)).unwrap();
    world.end().await;

    // Another machine: nothing but the backup, the recovery key, and a listing of the bucket.
    let there = tempfile::tempdir().unwrap();
    let settings = with_bucket(there.path());
    std::fs::remove_dir_all(settings.data_dir.join("keys")).unwrap();
    let store = KeyStore::below(&settings.data_dir);
    let recovery = folder.path().join("recovery.key");
    let kept = settings.snapshots.backups_kept();
    assert_eq!(verbs::restore(&store, &backup, &recovery, wall_now(), kept, false).unwrap(), 1);
    let stranger = UserId::from_random([9; 16]);
    let listing = json!({ "snapshots": [
        { "user": anna.id, "snapshot": taken },
        { "user": stranger, "snapshot": snapshot(anna.cell, anna.generation, 8, 1) },
    ] });
    let from = there.path().join("listing.json");
    std::fs::write(&from, listing.to_string()).unwrap();
    let done = crate::heads::rebuild(&settings.data_dir, &from).unwrap();
    assert_eq!((done.rebuilt, done.known, done.unknown), (vec![anna.id], 0, vec![stranger]));
    let again = crate::heads::rebuild(&settings.data_dir, &from).unwrap();
    assert_eq!((again.rebuilt, again.known), (vec![], 1), "a rebuild that was cut short goes on");

    let world = World::with(there.path(), settings.clone()).await;
    let path = format!("/v1/users/{}/snapshots", anna.id);
    assert_eq!(world.get(&path).await.json::<Snapshots>().head.as_ref(), Some(&taken));
    let mut node = self::node(&world, "m1", 2).await;
    let body = json!({ "slug": "anna", "take_over": stranger });
    assert_eq!(world.post("/v1/users", body).await.code(), Code::UnknownUser);
    let body = json!({ "slug": "anna", "take_over": anna.id });
    let taken_over: User = world.post("/v1/users", body.clone()).await.json();
    assert_eq!((taken_over.id, taken_over.generation.to_string()), (anna.id, "2.1".to_owned()));
    let told = node.repository_of(anna.id).await;
    assert_eq!((told.head.as_ref(), &told.key), (Some(&taken), &key));
    assert_eq!(node.desired.assignments.len(), usize::from(!node.desired.assignments.is_empty()));
    let again = json!({ "slug": "berta", "take_over": anna.id });
    assert_eq!(world.post("/v1/users", again).await.code(), Code::UserInUse);
    let next = snapshot(taken_over.cell, taken_over.generation, 20, 1);
    assert_eq!(node.takes(anna.id, &next).await, SnapshotOutcome::Head);
    assert_eq!(world.get("/v1/users").await.json::<List<Value>>().items.len(), 1);
    world.end().await;
    let refused = crate::heads::rebuild(&settings.data_dir, &from).unwrap_err();
    assert!(berth_daemon::exit::chain(&refused).contains("into an empty one only"));
}

#[tokio::test]
async fn a_cell_in_use_without_a_new_snapshot_for_too_long_says_so_until_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let anna = create(&world, "anna").await;
    node.repository_of(anna.id).await;
    let assignment = node.desired.assignments[0].clone();
    let old = snapshot(anna.cell, anna.generation, 10, 1);
    assert_eq!(node.takes(anna.id, &old).await, SnapshotOutcome::Head);
    node.heartbeat(vec![status(&assignment, CellState::Running)]).await;
    node.send(&NodeFrame::Sleep { swap: swap(Ok("memory.reclaim")), cells: vec![asleep(anna.cell)] }).await;
    let cell = world.until("/v1/cells/anna", |cell| cell["sleep"].is_object()).await;
    let cell: Cell = serde_json::from_value(cell).unwrap();
    assert_eq!(cell.snapshot_at, Some(old.taken_at));
    let late = async || -> Vec<UnixMs> {
        let events: List<CellEvent> = world.get("/v1/cells/anna/events").await.json();
        let late = events.items.iter().filter(|event| event.kind == CellEventKind::SnapshotLate);
        late.map(|event| event.at).collect()
    };
    assert_eq!(late().await, [old.taken_at.after(Millis::minutes(24 * 60))]);
    let new = Snapshot { taken_at: wall_now(), ..snapshot(anna.cell, anna.generation, 11, 2) };
    assert_eq!(node.takes(anna.id, &new).await, SnapshotOutcome::Head);
    assert_eq!(late().await, []);
    world.end().await;
}

#[tokio::test]
async fn a_state_newer_than_the_cells_image_is_not_put_back_and_the_node_is_not_asked() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), with_bucket(folder.path())).await;
    let mut node = node(&world, "n1", 1).await;
    let body = json!({ "slug": "anna", "image": "berth/test:2026.9.6" });
    let anna: User = world.post("/v1/users", body).await.json();
    node.repository_of(anna.id).await;
    let newer = Snapshot {
        image: "berth/test:2026.9.10".parse().unwrap(),
        ..snapshot(anna.cell, anna.generation, 7, 1)
    };
    assert_eq!(node.takes(anna.id, &newer).await, SnapshotOutcome::Head);
    let body = json!({ "snapshot": newer.id.to_string() });
    let refused = world.post("/v1/cells/anna/restore", body.clone()).await;
    assert_eq!(refused.code(), Code::StateTooNew);
    for named in ["berth/test:2026.9.10", "berth/test:2026.9.6"] {
        assert!(refused.body.contains(named), "{}", refused.body);
    }
    // The first that the node hears of it is when she has that image.
    let image = json!({ "image": "berth/test:2026.9.10" });
    assert_eq!(world.put("/v1/users/anna/image", image).await.status, 200);
    for (path, body, verb) in [
        ("wake", json!({}), CommandVerb::Wake),
        ("restore", body, CommandVerb::Restore { snapshot: newer.id }),
    ] {
        let path = format!("/v1/cells/anna/{path}");
        let (answer, ()) = tokio::join!(world.post(&path, body), async {
            let command = loop {
                match node.receive().await {
                    CoordinatorFrame::Command(command) => break command,
                    CoordinatorFrame::Desired(_)
                    | CoordinatorFrame::Terms { .. }
                    | CoordinatorFrame::Repositories { .. } => {}
                    other => panic!("not what is awaited: {other:?}"),
                }
            };
            assert_eq!(command.verb, verb);
            let outcome = Err(Problem::new(Code::CellBusy, "not now"));
            node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
        });
        assert_eq!(answer.code(), Code::CellBusy);
    }
    world.end().await;
}
