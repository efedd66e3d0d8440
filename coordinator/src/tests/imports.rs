//! Data that users bring along, through the API: a real S3 server, real workers, and a node that puts it in place.

use std::path::Path;

use berth_shared::api::{CellRestored, Import, ImportedAs, SnapshotDetail, Snapshots, User};
use berth_shared::cell::{Assignment, CellState};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_shared::units::Bytes;
use berth_shared::wire::{Command, CommandOutcome, CommandVerb, CoordinatorFrame, NodeFrame};
use berth_test_s3::Fault;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::bucket::{Bucket, anna, journal};
use super::snapshots::{create, node};
use super::world::{Answer, BOUND, FakeNode, World, status};

const PATH: &str = "/v1/users/anna/data";

/// An archive of these files.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn state_folder() -> Vec<u8> {
    archive(&[
        ("openclaw.json", r#"{"gateway":{"auth":{"token":"old"}}}"#),
        ("workspace/MEMORY.md", "what was said"),
    ])
}

/// What is left of imports below the coordinator's folder.
fn left(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("data/imports")).map_or(0, Iterator::count)
}

/// Waits until nothing is left.
async fn nothing_left(folder: &Path) {
    let wait = async {
        while left(folder) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("what an import has unpacked is removed");
}

impl World {
    async fn import(&self, bytes: &[u8]) -> Answer {
        let head = format!(
            "PUT {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.key,
            bytes.len()
        );
        self.raw_bytes(&[head.as_bytes(), bytes].concat()).await
    }
}

impl FakeNode {
    /// Is told to restore, and does as it is told. Which snapshot it was.
    async fn restores(&mut self, assignment: &Assignment, outcome: Result<(), Problem>) -> SnapshotId {
        let command = self.command().await;
        let CommandVerb::Restore { snapshot } = command.verb else {
            panic!("not a restore: {:?}", command.verb)
        };
        assert_eq!(command.cell, assignment.spec.cell);
        let done = status(assignment, CellState::Running);
        let outcome = outcome.map(|()| CommandOutcome::Cell(Box::new(done)));
        self.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
        snapshot
    }

    /// Is told to take a snapshot, and cannot.
    async fn takes_none(&mut self) {
        let command = self.command().await;
        assert_eq!(command.verb, CommandVerb::Snapshot);
        let outcome = Err(Problem::new(Code::SnapshotFailed, "the bucket is away"));
        self.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
    }

    pub(crate) async fn command(&mut self) -> Command {
        loop {
            match self.receive().await {
                CoordinatorFrame::Command(command) => return command,
                CoordinatorFrame::Repositories { .. }
                | CoordinatorFrame::Desired(_)
                | CoordinatorFrame::Terms { .. } => {}
                other => panic!("not a command: {other:?}"),
            }
        }
    }
}

/// A client that has sent half of an archive, which is being unpacked.
async fn half_sent(world: &World, whole: &[u8], folder: &Path) -> TcpStream {
    let mut client = TcpStream::connect(world.coordinator.api.get()).await.unwrap();
    let head = format!(
        "PUT {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        world.key,
        whole.len()
    );
    client.write_all(&[head.as_bytes(), &whole[..1024]].concat()).await.unwrap();
    let begun = async {
        while left(folder) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, begun).await.expect("it is unpacked");
    client
}

/// A new user on a node, before anything of it was snapshotted.
async fn new_user(world: &World) -> (User, FakeNode, Assignment) {
    let mut node = node(world, "n1", 1).await;
    let user = create(world, "anna").await;
    node.repository_of(user.id).await;
    let assignment = node.desired.assignments[0].clone();
    (user, node, assignment)
}

#[tokio::test]
async fn what_a_user_brings_along_becomes_its_first_snapshot_without_the_old_gateways_secrets() {
    let bucket = Bucket::new();
    let config = bucket.config();
    let world = World::with(bucket.folder.path(), config.clone()).await;
    let (user, mut node, assignment) = new_user(&world).await;
    let bytes = state_folder();
    // The cell is just being started, at first.
    let restores = async {
        let busy = Problem::new(Code::CellBusy, "it is being started");
        node.restores(&assignment, Err(busy)).await;
        let restored = node.restores(&assignment, Ok(())).await;
        node.takes_none().await;
        restored
    };
    let (answer, restored) = tokio::join!(world.import(&bytes), restores);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let import: Import = answer.json();
    assert_eq!((import.snapshot, import.layout, import.links), (restored, ImportedAs::StateFolder, 0));
    assert_eq!(import.rotated, ["openclaw.json: gateway.auth"]);
    // It stands in the repository, but a lost node would bring back what was there before.
    assert!(import.notes.iter().any(|note| note.contains("the bucket is away")), "{:?}", import.notes);
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    let head = known.head.unwrap();
    assert_eq!((head.id, head.seq, head.cell), (restored, 0, user.cell));
    let detail: SnapshotDetail = world.get("/v1/users/anna/snapshots/latest").await.json();
    assert_eq!(detail.tree.unwrap(), head.tree.to_string());
    let file = async |path: &str| {
        let path = format!("/v1/users/anna/snapshots/latest/file?path={path}");
        String::from_utf8(world.get_bytes(&path).await).unwrap()
    };
    assert_eq!(file("workspace/MEMORY.md").await, "what was said");
    assert!(!file("openclaw.json").await.contains("old"));
    nothing_left(bucket.folder.path()).await;
    world.end().await;
    let journal = journal(&config);
    assert!(journal.contains(&restored.to_string()), "{journal}");
}

#[tokio::test]
async fn an_import_stands_behind_what_there_is_until_the_node_has_it_in_place() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let assignment = anna.node.desired.assignments[0].clone();
    let bytes = state_folder();
    let why = Problem::new(Code::RestoreFailed, "no room");
    let (answer, imported) = tokio::join!(world.import(&bytes), anna.node.restores(&assignment, Err(why)));
    assert_eq!(answer.code(), Code::ImportNotPlaced);
    assert!(
        answer.body.contains(&imported.to_string()) && answer.body.contains("no room"),
        "{}",
        answer.body
    );
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!(known.head.unwrap().id, anna.second.id, "the user's newest state is what it was");
    assert!(known.history.iter().any(|kept| kept.id == imported));
    // As the answer says, it can be put in place later; so can what there was before.
    let path = "/v1/cells/anna/restore";
    for id in [imported, anna.first.id] {
        let ask = world.post(path, json!({ "snapshot": id }));
        let restores = async {
            let restored = anna.node.restores(&assignment, Ok(())).await;
            anna.node.takes_none().await;
            restored
        };
        let (answer, restored) = tokio::join!(ask, restores);
        assert_eq!((answer.status, restored), (200, id), "{}", answer.body);
        let done: CellRestored = answer.json();
        assert!(done.notes.iter().any(|note| note.contains("the bucket is away")), "{:?}", done.notes);
    }
    world.end().await;
}

#[tokio::test]
async fn behind_a_restore_a_snapshot_is_taken_so_that_a_lost_node_does_not_undo_it() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let assignment = anna.node.desired.assignments[0].clone();
    std::fs::write(anna.cell.join("new"), "as it was once").unwrap();
    let third = bucket.take(&anna.told, &anna.told.prefix, &anna.cell, 3).await;
    let ask = world.post("/v1/cells/anna/restore", json!({ "snapshot": anna.first.id }));
    let node = async {
        let restored = anna.node.restores(&assignment, Ok(())).await;
        let command = anna.node.command().await;
        assert_eq!((command.verb, command.cell), (CommandVerb::Snapshot, assignment.spec.cell));
        anna.node.takes(anna.user.id, &third).await;
        let outcome = Ok(CommandOutcome::Snapshot(Box::new(third.clone())));
        anna.node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
        restored
    };
    let (answer, restored) = tokio::join!(ask, node);
    assert_eq!((answer.status, restored), (200, anna.first.id), "{}", answer.body);
    assert_eq!(answer.json::<CellRestored>().notes, Vec::<String>::new());
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!(known.head.unwrap().id, third.id, "what another node would begin with");
    world.end().await;
}

/// Waits until no client is connected any more.
async fn nobody_asks(world: &World) {
    let wait = async {
        while world.tasks.running().contains_key("http connection") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("the connection ends with its client");
}

#[tokio::test]
async fn what_is_put_in_place_becomes_head_although_its_caller_goes_away_meanwhile() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let assignment = anna.node.desired.assignments[0].clone();
    let restore = json!({ "snapshot": anna.first.id }).to_string().into_bytes();
    for (request, body) in
        [("POST /v1/cells/anna/restore", restore), ("PUT /v1/users/anna/data", state_folder())]
    {
        nobody_asks(&world).await;
        let mut client = TcpStream::connect(world.coordinator.api.get()).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            world.key,
            body.len()
        );
        client.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let command = anna.node.command().await;
        assert!(matches!(command.verb, CommandVerb::Restore { .. }), "{request}: {:?}", command.verb);
        drop(client);
        nobody_asks(&world).await;
        let done = CommandOutcome::Cell(Box::new(status(&assignment, CellState::Running)));
        anna.node.send(&NodeFrame::CommandDone { seq: command.seq, outcome: Ok(done) }).await;
        anna.node.takes_none().await;
    }
    world.end().await;
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let bucket = Bucket::new();
    let mut config = bucket.config();
    config.snapshots.import_max = Bytes::mib(1);
    let world = World::with(bucket.folder.path(), config).await;
    let anna = anna(&bucket, &world).await;
    let whole = state_folder();
    let large = archive(&[("openclaw.json", "{}"), ("large", &"x".repeat(1 << 20))]);
    // One of many: the worker's own tests have them all.
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..12].copy_from_slice(b"../../passwd");
    header.set_size(0);
    header.set_cksum();
    let mut hostile = tar::Builder::new(vec![]);
    hostile.append(&header, &b""[..]).unwrap();
    let hostile = hostile.into_inner().unwrap();
    for (bytes, code) in [
        (&b"no archive at all"[..], Code::BadArchive),
        (&b""[..], Code::BadArchive),
        (&whole[..whole.len() - 1024], Code::BadArchive),
        (&hostile, Code::BadArchive),
        (&archive(&[("notes.md", "nothing that looks like OpenClaw")]), Code::BadArchive),
        (&large, Code::ArchiveTooLarge),
    ] {
        let answer = world.import(bytes).await;
        assert_eq!(answer.code(), code, "{}", answer.body);
    }
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!((known.head.unwrap().id, known.history.len()), (anna.second.id, 1));
    nothing_left(bucket.folder.path()).await;
    bucket.server.faults().set(Fault::RefuseWrites);
    assert_eq!(world.import(&whole).await.code(), Code::BucketRefused);
    bucket.server.faults().clear();
    drop(anna.node);
    world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    assert_eq!(world.import(&whole).await.code(), Code::NodeSilent);
    world.end().await;
}

#[tokio::test]
async fn one_that_goes_away_leaves_nothing_and_one_is_imported_at_a_time() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = anna(&bucket, &world).await;
    let whole = state_folder();
    let gone = half_sent(&world, &whole, bucket.folder.path()).await;
    assert_eq!(world.import(&whole).await.code(), Code::WorkersBusy);
    drop(gone);
    nothing_left(bucket.folder.path()).await;
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!(known.head.unwrap().id, anna.second.id);
    world.end().await;
}

#[tokio::test]
async fn a_stop_in_the_middle_leaves_what_there_was() {
    let bucket = Bucket::new();
    let config = bucket.config();
    let world = World::with(bucket.folder.path(), config.clone()).await;
    let anna = anna(&bucket, &world).await;
    let _half = half_sent(&world, &state_folder(), bucket.folder.path()).await;
    world.end().await;
    let world = World::with(bucket.folder.path(), config).await;
    assert_eq!(left(bucket.folder.path()), 0);
    let known: Snapshots = world.get("/v1/users/anna/snapshots").await.json();
    assert_eq!((known.head.unwrap().id, known.history.len()), (anna.second.id, 1));
    world.end().await;
}

#[tokio::test]
async fn what_a_crash_has_left_is_removed_by_the_next_start() {
    let bucket = Bucket::new();
    let config = bucket.config();
    let rest = config.data_dir.join("imports/0123");
    std::fs::create_dir_all(&rest).unwrap();
    std::fs::write(rest.join("openclaw.json"), "{}").unwrap();
    let world = World::with(bucket.folder.path(), config).await;
    assert_eq!(left(bucket.folder.path()), 0);
    world.end().await;
}
