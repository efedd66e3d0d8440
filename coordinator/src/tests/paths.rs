//! Single files and folders of a snapshot: what is looked at before their node hears of them, and what it is told.

use berth_shared::api::CellRestored;
use berth_shared::cell::CellState;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{PATHS_MAX, Paths};
use berth_shared::wire::{CommandOutcome, CommandVerb, NodeFrame, PATHS_SINCE};
use serde_json::json;

use super::bucket::{Bucket, anna};
use super::snapshots::session;
use super::world::{World, status};

const PATH: &str = "/v1/cells/anna/restore";

#[tokio::test]
async fn single_files_are_put_back_by_the_node_once_the_snapshot_is_known_to_have_them() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let mut anna = anna(&bucket, &world).await;
    let many: Vec<String> = (0..=PATHS_MAX).map(|number| number.to_string()).collect();
    for (paths, code) in [
        (json!(["notes", "new"]), Code::UnknownSnapshot),
        (json!(["notes/nowhere"]), Code::UnknownSnapshot),
        (json!([]), Code::BadRequest),
        (json!("notes"), Code::BadRequest),
        (json!(["/notes"]), Code::BadRequest),
        (json!(["notes/../notes"]), Code::BadRequest),
        (json!(["notes", "notes/a b.md"]), Code::BadRequest),
        (json!(["a\u{0}b"]), Code::BadRequest),
        (json!(many), Code::BadRequest),
        (json!(["x".repeat(20_000)]), Code::BadRequest),
    ] {
        let body = json!({ "snapshot": anna.first.id, "paths": paths });
        let answer = world.post(PATH, body).await;
        assert_eq!(answer.code(), code, "{paths}: {}", answer.body);
    }
    let missing = world.post(PATH, json!({ "snapshot": "latest", "paths": ["gone"] })).await;
    assert_eq!(missing.code(), Code::UnknownSnapshot);
    assert!(missing.body.contains("no `gone`"), "{}", missing.body);

    let assignment = anna.node.desired.assignments.first().unwrap().clone();
    let body =
        json!({ "snapshot": &anna.first.id.to_string()[..12], "paths": ["notes/a b.md", "gone", "big/"] });
    let (answer, ()) = tokio::join!(world.post(PATH, body), async {
        // The first that the node hears at all.
        let command = anna.node.command().await;
        let paths = ["notes/a b.md", "gone", "big"].map(str::to_owned).to_vec();
        let paths = Paths::new(paths).unwrap();
        assert_eq!(command.verb, CommandVerb::RestorePaths { snapshot: anna.first.id, paths });
        let outcome = Ok(CommandOutcome::Cell(Box::new(status(&assignment, CellState::Running))));
        anna.node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
        // So that HEAD is what is on the disk then.
        let command = anna.node.command().await;
        assert_eq!(command.verb, CommandVerb::Snapshot);
        let outcome = Err(Problem::new(Code::SnapshotFailed, "the bucket is away"));
        anna.node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
    });
    assert_eq!(answer.status, 200, "{}", answer.body);
    let done: CellRestored = answer.json();
    assert!(matches!(&done.notes[..], [note] if note.contains("the bucket is away")), "{:?}", done.notes);
    world.end().await;
}

#[tokio::test]
async fn a_node_of_an_older_version_is_asked_for_whole_snapshots_only_and_its_session_goes_on() {
    let bucket = Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = anna(&bucket, &world).await;
    let mut node = session(&world, anna.node, 3, PATHS_SINCE - 1).await;
    assert_eq!(node.version, PATHS_SINCE - 1);
    let body = json!({ "snapshot": "latest", "paths": ["notes"] });
    let refused = world.post(PATH, body).await;
    assert_eq!(refused.code(), Code::LinkTooOld);
    assert!(refused.body.contains(&format!("version {PATHS_SINCE}")), "{}", refused.body);
    let (answer, ()) = tokio::join!(world.post(PATH, json!({ "snapshot": "latest" })), async {
        let command = node.command().await;
        assert_eq!(command.verb, CommandVerb::Restore { snapshot: anna.second.id });
        let outcome = Err(Problem::new(Code::CellBusy, "not now"));
        node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
    });
    assert_eq!(answer.code(), Code::CellBusy);
    world.end().await;
}
