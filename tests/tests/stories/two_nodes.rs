//! Two nodes that both believe they own the same user: two machines with real programs, and a bucket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_tests::lab::relay::Relay;
use berth_tests::world::machine::Machine;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, prunes};
use serde_json::{Value, json};

use crate::snapshots::{Story, read, write};
use crate::{NOT_IN_THIS_STORY, SOON};

/// Longer than the coordinator waits for a node that is cut off (20 s), gives its user away, and the other node's cell
/// takes to come up.
const LEASE: Duration = Duration::from_secs(60);

/// The test cell's file of the value `letter`.
const LETTER: &str = "values/letter";

/// Snapshots that an agent took.
const TAKEN: &str = "berth_agent_snapshots_total{kind=\"taken\"}";

/// Every file below a folder, with what is in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut folders, mut found) = (vec![folder.to_owned()], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

impl Story {
    /// Has what is there now kept, and gives HEAD once it is that.
    async fn keeps(&self, slug: &str) -> Value {
        let newest = self.world.api.post(&format!("/v1/cells/{slug}/snapshot"), json!({})).await.ok(200);
        eventually("that snapshot is HEAD", BOUND, async || {
            let head = self.snapshots(slug).await["head"].clone();
            (head["id"] == newest["id"]).then_some(head)
        })
        .await
    }

    /// A file of a snapshot, as an operator gets it.
    async fn got(&self, slug: &str, snapshot: &Value) -> String {
        let id = snapshot["id"].as_str().unwrap();
        let got = self.world.api.cli(&["snapshot", "get", slug, id, LETTER]).await;
        assert_eq!(got.code, 0, "{got:?}");
        got.out
    }

    /// Cut off, declared off, and its user given to the world's own node: as wrong as an operator can be about a machine.
    async fn gives_away(&self, old: &Machine, line: &Relay, slug: &str) {
        line.cut();
        let api = &self.world.api;
        eventually("the coordinator does not hear the old node any more", BOUND, async || {
            let node = api.get(&format!("/v1/nodes/{}", old.node_name)).await.ok(200);
            (node["connected"] == false).then_some(())
        })
        .await;
        for words in [
            &["node", "off", &old.node_name, "--node-is-off"][..],
            &["user", "move", slug, "--to", &self.world.node_name, "--yes"],
        ] {
            let spoken = api.cli(words).await;
            assert_eq!(spoken.code, 0, "{words:?}: {spoken:?}");
        }
    }
}

/// A member's way in at another machine's front door.
fn at(machine: &Machine, member: &Member) -> Member {
    Member { front: member.front.at(machine.ingress.address("listen")), ..member.clone() }
}

#[tokio::test]
async fn of_two_nodes_that_believe_they_own_a_user_the_old_ones_data_goes_aside_and_both_copies_are_kept() {
    let options =
        Options { coordinator: vec![format!("autonomy={}s", LEASE.as_secs())], ..Options::default() };
    let story = Story::with(options).await;
    let world = &story.world;
    let line = Relay::to(world.coordinator.address("link_listen")).await;
    let old = Machine::beside(world, Some(line.address())).await;
    let on_old = json!({ "node": old.node_name });
    let anna = world.create_with("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY, on_old).await;
    world.cell_is("anna", "running").await;
    let at_old = at(&old, &anna);
    write(&at_old, "letter", "before").await;
    let before = story.keeps("anna").await;

    story.gives_away(&old, &line, "anna").await;
    let begins =
        eventually("she is let in at the new node", BOUND, async || read(&anna, "letter").await).await;
    assert_eq!(begins, "before", "she begins with HEAD");
    write(&anna, "letter", "of the new node").await;
    write(&at_old, "letter", "of the old node").await;
    for (machine, engine) in [("new", &world.engine), ("old", &old.engine)] {
        let containers = engine.containers_of(&anna.cell).await;
        let up: Vec<_> = containers.iter().map(|container| container.state.as_str()).collect();
        assert_eq!(up, ["running"], "the {machine} node believes that she is its own");
    }
    let head = story.keeps("anna").await;
    assert_eq!(head["parent"], before["id"]);
    let generation = |snapshot: &Value| snapshot["generation"]["number"].as_u64().unwrap();
    assert_eq!((generation(&before), generation(&head)), (1, 2));
    let repository = files(&story.bucket().join("users"));

    // Alone for as long as it may be: what it has goes into the bucket, and not where hers is.
    old.container_is(&anna.cell, "exited").await;
    eventually("the old node keeps what it has", BOUND, async || {
        (story.stored_below("orphans") == 1).then_some(())
    })
    .await;
    line.mend();
    old.is_connected(world).await;
    let orphan = eventually("the coordinator is told of it", BOUND, async || {
        let orphans = story.snapshots("anna").await["orphans"].clone();
        orphans.get(0).cloned()
    })
    .await;
    let shown = story.snapshots("anna").await;
    assert_eq!(shown["orphans"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!((&shown["head"], &shown["history"][0]["id"]), (&head, &before["id"]));
    assert_eq!((&orphan["node"], generation(&orphan["snapshot"])), (&json!(old.node_name), 1));
    assert_eq!(orphan["current"], head["generation"]);

    // Both can be listed, and what is in them can be had.
    let listed = world.api.cli(&["snapshot", "list", "anna"]).await;
    for (kind, snapshot) in [("HEAD", &head), ("orphan", &orphan["snapshot"])] {
        let id = &snapshot["id"].as_str().unwrap()[..8];
        let row = listed.out.lines().find(|line| line.trim_start().starts_with(kind));
        assert!(row.is_some_and(|row| row.contains(id)), "{kind} {id}: {listed:?}");
    }
    assert_eq!(story.got("anna", &head).await, "of the new node");
    assert_eq!(story.got("anna", &orphan["snapshot"]).await, "of the old node");
    let all = world.api.cli(&["snapshot", "list", "anna", "--all"]).await;
    let foreign = orphan["snapshot"]["id"].as_str().unwrap();
    assert!(all.code == 0 && !all.out.contains(&foreign[..8]), "{foreign} is in her repository: {all:?}");
    assert!(files(&story.bucket().join("users")) == repository, "something was put into her repository");

    // There is one again, and it goes on from what it has.
    eventually("nothing of her runs on the old node", BOUND, async || {
        old.engine.containers_of(&anna.cell).await.is_empty().then_some(())
    })
    .await;
    eventually("the old node tells of the disk", BOUND, async || {
        let node = world.api.get(&format!("/v1/nodes/{}", old.node_name)).await.ok(200);
        (node["left_behind"][0]["cell"] == anna.cell.as_str()).then_some(())
    })
    .await;
    assert_ne!(at_old.front.get("/whoami").await.status, 200, "she does not live there any more");
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("of the new node"));
    write(&anna, "letter", "later").await;
    assert_eq!(story.keeps("anna").await["parent"], head["id"]);
    old.end(&["was not heard for as long as this node may work alone"]).await;
    story.world.end(&[]).await;
}

#[tokio::test]
async fn what_the_old_node_keeps_inside_its_lease_is_not_head_either_and_can_be_had() {
    let folder = tempfile::tempdir().unwrap();
    let story = Story::with(Options { coordinator: prunes(folder.path()), ..Options::default() }).await;
    let world = &story.world;
    let line = Relay::to(world.coordinator.address("link_listen")).await;
    let old = Machine::beside(world, Some(line.address())).await;
    let on_old = json!({ "node": old.node_name });
    let anna = world.create_with("anna", Rest::Stop, SOON, on_old).await;
    let at_old = at(&old, &anna);
    world.cell_is("anna", "running").await;
    write(&at_old, "letter", "before").await;
    old.container_is(&anna.cell, "exited").await;
    story.keeps("anna").await;
    let before = old.metrics().await.value(TAKEN);

    story.gives_away(&old, &line, "anna").await;
    write(&at_old, "letter", "of the old node").await;
    old.container_is(&anna.cell, "exited").await;
    eventually("the old node keeps what it has", BOUND, async || {
        (old.metrics().await.value(TAKEN) > before).then_some(())
    })
    .await;
    eventually("she is let in at the new node", BOUND, async || read(&anna, "letter").await).await;
    write(&anna, "letter", "of the new node").await;
    let head = story.keeps("anna").await;

    line.mend();
    let orphans = eventually("the coordinator is told of it", BOUND, async || {
        let orphans = story.snapshots("anna").await["orphans"].clone();
        (orphans.as_array().map(Vec::len) == Some(1)).then_some(orphans)
    })
    .await;
    assert_eq!((&orphans[0]["node"], &orphans[0]["current"]), (&json!(old.node_name), &head["generation"]));
    assert_eq!(story.snapshots("anna").await["head"], head);
    // By a rule that leaves HEAD only: what was before is gone, and what the old node has kept is not.
    let pruned = world.api.post("/v1/users/anna/prune", json!({})).await.ok(200);
    assert!(pruned["forgotten"].as_u64() > Some(0), "{pruned}");
    let shown = story.snapshots("anna").await;
    assert_eq!((&shown["head"], &shown["history"], &shown["orphans"]), (&head, &json!([]), &orphans));
    assert_eq!(story.got("anna", &head).await, "of the new node");
    assert_eq!(story.got("anna", &orphans[0]["snapshot"]).await, "of the old node");
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("of the new node"));
    old.end(&[]).await;
    story.world.end(&[]).await;
}
