//! Snapshots: taken at each rest, told until the coordinator knows, and back when the data is wanted again.

use std::time::Duration;

use berth_test_s3::{Fault, Server};
use berth_tests::lab::shell::run;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{NOT_IN_THIS_STORY, SOON, whoami};

/// A world with a bucket, and the bucket's server.
pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) server: Server,
    folder: tempfile::TempDir,
}

impl Story {
    pub(crate) async fn begin() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::local(folder.path()).unwrap();
        let world = World::start(Options { bucket: Some(server.endpoint()), ..options }).await;
        Self { world, server, folder }
    }

    /// Where the bucket lies.
    pub(crate) fn bucket(&self) -> std::path::PathBuf {
        self.folder.path().join("berth")
    }

    /// How many snapshots lie below this part of the bucket, of however many users.
    pub(crate) fn stored_below(&self, part: &str) -> usize {
        let mut folders = vec![self.bucket().join(part)];
        let mut count = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if folder.ends_with("snapshots") {
                    count += 1;
                }
            }
        }
        count
    }

    pub(crate) async fn snapshots(&self, slug: &str) -> Value {
        self.world.api.get(&format!("/v1/users/{slug}/snapshots")).await.ok(200)
    }

    /// Waits until HEAD is another one than `before`, and gives it.
    pub(crate) async fn next_head(&self, slug: &str, before: &Value) -> Value {
        eventually(&format!("a new snapshot of {slug} is HEAD"), BOUND, async || {
            let head = self.snapshots(slug).await["head"].clone();
            (head != Value::Null && head["id"] != before["id"]).then_some(head)
        })
        .await
    }

    /// Waits until the cell rests and that rest is kept: nothing of its snapshots is under way then.
    pub(crate) async fn settles(&self, member: &Member) -> Value {
        self.world.agent_is_connected().await;
        self.world.container_is(&member.cell, "exited").await;
        let path = format!("/v1/cells/{}/snapshot", member.slug);
        let newest = self.world.api.post(&path, json!({})).await.ok(200);
        eventually("that snapshot is HEAD", BOUND, async || {
            let head = self.snapshots(&member.slug).await["head"].clone();
            (head["id"] == newest["id"]).then_some(head)
        })
        .await
    }

    pub(crate) async fn restore(&self, slug: &str, snapshot: &Value) {
        let ask = json!({ "snapshot": snapshot["id"] });
        self.world.api.post(&format!("/v1/cells/{slug}/restore"), ask).await.ok(200);
    }
}

pub(crate) async fn write(member: &Member, key: &str, value: &str) {
    let reply = member.front.post(&format!("/state/{key}"), value.to_owned()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

pub(crate) async fn read(member: &Member, key: &str) -> Option<String> {
    let reply = member.front.get(&format!("/state/{key}")).await;
    (reply.status == 200).then(|| reply.text())
}

#[tokio::test]
async fn every_rest_is_kept_and_what_was_deleted_comes_back() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Freeze, SOON).await;
    let data = whoami(&anna.front).await["dataId"].clone();
    write(&anna, "letter", "dear world").await;
    let first = story.next_head("anna", &Value::Null).await;
    assert_eq!(first["cell"], anna.cell.as_str());

    // Deleted, and asleep again: the newest snapshot does not have it either.
    write(&anna, "letter", "").await;
    write(&anna, "other", "kept").await;
    let second = story.next_head("anna", &first).await;
    assert_eq!(second["parent"], first["id"]);
    assert!(second["seq"].as_u64() > first["seq"].as_u64());

    story.restore("anna", &first).await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    assert_eq!(read(&anna, "other").await, None, "time has gone back");
    assert_eq!(whoami(&anna.front).await["dataId"], data);
    let third = story.next_head("anna", &second).await;
    assert_eq!(third["parent"], second["id"], "the state of now is the newest again");

    // And forward again: what was there before the restore is not lost.
    story.restore("anna", &second).await;
    assert_eq!(read(&anna, "other").await.as_deref(), Some("kept"));
    story.world.end(&[]).await;
}

#[tokio::test]
async fn a_cell_that_nobody_touched_gets_no_new_snapshot_and_an_operator_has_one_when_asked() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    write(&anna, "a", "1").await;
    let asked = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    assert_eq!(asked["cell"], anna.cell.as_str());
    let head = story.next_head("anna", &Value::Null).await;
    assert_eq!(head["id"], asked["id"], "of a running cell");
    write(&anna, "a", "2").await;
    let again = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    assert_ne!(again["id"], asked["id"]);
    let same = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    assert_eq!(same["id"], again["id"], "nothing has changed");
    assert_eq!(whoami(&anna.front).await["starts"], 1, "it went on meanwhile");
    story.world.end(&[]).await;
}

#[tokio::test]
async fn a_cell_that_falls_asleep_during_its_snapshot_has_its_rest_kept_and_whoever_asked_is_answered() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    story.server.faults().set(Fault::Slow(Duration::from_secs(2)));
    write(&anna, "a", "1").await;
    let api = story.world.api.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move { api.post("/v1/cells/anna/snapshot", json!({})).await });
    eventually("it is being taken of the running cell", BOUND, async || {
        let lists = story.server.faults().counts();
        (lists.reads + lists.lists + lists.heads > 0).then_some(())
    })
    .await;
    story.world.container_is(&anna.cell, "exited").await;
    story.server.faults().clear();
    let taken = asking.join_next().await.expect("somebody asks").expect("asking does not panic").ok(200);
    let head = story.next_head("anna", &Value::Null).await;
    assert_eq!(head["id"], taken["id"]);
    story.restore("anna", &head).await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("1"));
    story.world.end(&[]).await;
}

#[tokio::test]
async fn while_the_bucket_takes_nothing_cells_live_on_and_their_rest_is_kept_when_it_is_back() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    write(&anna, "a", "1").await;
    let first = story.next_head("anna", &Value::Null).await;
    story.server.faults().set(Fault::RefuseWrites);
    write(&anna, "a", "2").await;
    story.world.container_is(&anna.cell, "exited").await;
    eventually("the snapshot fails", BOUND, async || {
        let counted = story.world.metrics(&story.world.agent).await;
        (counted.value("berth_agent_snapshots_total{kind=\"failed\"}") > 0.0).then_some(())
    })
    .await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"), "a wake waits for no snapshot");
    let refused = story.world.api.post("/v1/cells/anna/restore", json!({ "snapshot": first["id"] })).await;
    assert_eq!(refused.ok(502)["code"], "snapshot_failed", "what is there could not be kept first");
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"), "and it goes on with what it has");
    story.server.faults().clear();
    story.world.container_is(&anna.cell, "exited").await;
    let second = story.next_head("anna", &first).await;
    story.restore("anna", &first).await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("1"));
    story.restore("anna", &second).await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"));
    story.world.end(&[]).await;
}

#[tokio::test]
async fn what_the_coordinator_did_not_hear_is_told_when_it_is_back() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    write(&anna, "a", "1").await;
    let first = story.next_head("anna", &Value::Null).await;
    story.world.coordinator.kill9();
    write(&anna, "a", "2").await;
    story.world.container_is(&anna.cell, "exited").await;
    eventually("it is taken all the same", BOUND, async || {
        let counted = story.world.metrics(&story.world.agent).await;
        (counted.value("berth_agent_snapshots_total{kind=\"taken\"}") >= 2.0).then_some(())
    })
    .await;
    // Nobody but the journal knows of it now.
    story.world.agent.kill9();
    story.world.agent.spawn().await;
    story.world.coordinator.spawn().await;
    story.next_head("anna", &first).await;
    story.world.end(&[]).await;
}

#[tokio::test]
async fn an_agent_killed_around_snapshots_and_restores_leaves_head_true() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    write(&anna, "a", "0").await;
    story.next_head("anna", &Value::Null).await;
    for (number, point) in ["snapshot:begun", "snapshot:taken"].into_iter().enumerate() {
        let value = format!("{}", number + 1);
        let head = story.settles(&anna).await;
        story.world.agent.kill9();
        story.world.agent.with_env("BERTH_FAILPOINT", point).spawn().await;
        story.world.agent_is_connected().await;
        story.world.door_is_connected().await;
        write(&anna, "a", &value).await;
        story.world.agent.wait_killed(BOUND).await;
        story.world.agent.without_env("BERTH_FAILPOINT").spawn().await;
        let head = story.next_head("anna", &head).await;
        story.restore("anna", &head).await;
        assert_eq!(
            read(&anna, "a").await.as_deref(),
            Some(value.as_str()),
            "{point}: HEAD is the last state"
        );
        story.world.container_is(&anna.cell, "exited").await;
    }
    // Behind the restore there is another HEAD, of the same state.
    let before = story.settles(&anna).await;
    write(&anna, "a", "later").await;
    let later = story.next_head("anna", &before).await;
    for point in ["intent:restore", "restore:begun", "restore:done", "done:restore", "report:restore"] {
        story.settles(&anna).await;
        story.world.agent.kill9();
        story.world.agent.with_env("BERTH_FAILPOINT", point).spawn().await;
        story.world.agent_is_connected().await;
        story.world.door_is_connected().await;
        let ask = json!({ "snapshot": before["id"] });
        let api = story.world.api.clone();
        let mut ordering = JoinSet::new();
        ordering.spawn(async move { api.post("/v1/cells/anna/restore", ask).await });
        story.world.agent.wait_killed(BOUND).await;
        story.world.agent.without_env("BERTH_FAILPOINT").spawn().await;
        // Its answer died with the agent.
        drop(ordering);
        story.world.door_is_connected().await;
        let found = read(&anna, "a").await;
        // An agent that is not told of the repository yet goes on with what is there, as long as that is untouched.
        let untouched =
            ["intent:restore", "restore:begun"].contains(&point) && found.as_deref() == Some("later");
        assert!(
            untouched || found.as_deref() == Some("2"),
            "{point}: neither the one nor the other: {found:?}"
        );
        story.restore("anna", &later).await;
        assert_eq!(read(&anna, "a").await.as_deref(), Some("later"), "{point}");
    }
    story.world.end(&[]).await;
}

#[tokio::test]
async fn single_files_come_back_in_place_and_the_rest_stays_as_it_is_also_when_the_agent_is_killed() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    write(&anna, "letter", "dear world").await;
    write(&anna, "diary", "1").await;
    let first = story.settles(&anna).await;
    write(&anna, "letter", "").await;
    write(&anna, "diary", "2").await;
    let second = story.settles(&anna).await;
    let listed = story.world.api.get("/v1/users/anna/snapshots/latest/files?recursive=true").await.ok(200);
    let paths = listed["items"].as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap());
    let diary = paths.into_iter().find(|path| path.ends_with("diary")).expect("it is listed").to_owned();
    let letter = diary.strip_suffix("diary").unwrap().to_owned() + "letter";

    // What is not in the snapshot is refused before the node hears of it.
    let starts = story.world.status("anna").await["starts"].clone();
    let ask = json!({ "snapshot": first["id"], "paths": [letter, "nowhere"] });
    let refused = story.world.api.post("/v1/cells/anna/restore", ask).await;
    assert_eq!(refused.ok(404)["code"], "unknown_snapshot");
    assert_eq!(story.world.status("anna").await["starts"], starts, "nor started");

    let ask = json!({ "snapshot": first["id"], "paths": [letter] });
    let done = story.world.api.post("/v1/cells/anna/restore", ask.clone()).await.ok(200);
    assert_eq!(done["notes"], json!([]));
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    assert_eq!(read(&anna, "diary").await.as_deref(), Some("2"), "nobody has named it");
    // HEAD is what is there now; what was there before is kept.
    let head = story.next_head("anna", &second).await;
    let there = format!("/v1/users/anna/snapshots/{}/files?path={letter}", head["id"].as_str().unwrap());
    assert_eq!(story.world.api.get(&there).await.ok(200)["items"].as_array().unwrap().len(), 1);

    // One that has left the disk is told what to do first.
    story.settles(&anna).await;
    story.world.api.post("/v1/cells/anna/archive", json!({})).await.ok(200);
    let refused = story.world.api.post("/v1/cells/anna/restore", ask.clone()).await;
    assert_eq!(refused.ok(409)["code"], "not_on_disk");
    assert_eq!(read(&anna, "diary").await.as_deref(), Some("2"), "a wake brings it back");

    for point in ["intent:restore", "restore:begun", "restore:done", "done:restore", "report:restore"] {
        write(&anna, "letter", "").await;
        write(&anna, "diary", point).await;
        story.settles(&anna).await;
        story.world.agent.kill9();
        story.world.agent.with_env("BERTH_FAILPOINT", point).spawn().await;
        story.world.agent_is_connected().await;
        story.world.door_is_connected().await;
        let (api, ask) = (story.world.api.clone(), ask.clone());
        let mut ordering = JoinSet::new();
        ordering.spawn(async move { api.post("/v1/cells/anna/restore", ask).await });
        story.world.agent.wait_killed(BOUND).await;
        story.world.agent.without_env("BERTH_FAILPOINT").spawn().await;
        // Its answer died with the agent.
        drop(ordering);
        story.world.door_is_connected().await;
        let found = read(&anna, "letter").await;
        // An agent that is not told of the repository yet goes on with what is there, as long as that is untouched.
        let is_empty = found.as_deref().is_none_or(str::is_empty);
        let untouched = ["intent:restore", "restore:begun"].contains(&point) && is_empty;
        assert!(untouched || found.as_deref() == Some("dear world"), "{point}: {found:?}");
        assert_eq!(read(&anna, "diary").await.as_deref(), Some(point), "nobody has named it");
    }
    story.world.end(&[]).await;
}

#[tokio::test]
async fn a_node_whose_disk_is_lost_has_its_users_data_back_from_the_bucket() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let data = whoami(&anna.front).await["dataId"].clone();
    write(&anna, "a", "1").await;
    let head = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    story.next_head("anna", &Value::Null).await;
    // At first nothing of it can be read. The empty disk is no state of hers.
    story.server.faults().set(Fault::WrongByte);
    story.world.node_loses_its_disk().await;
    eventually("why it does not start is told", BOUND, async || {
        (story.world.status("anna").await["problem"]["code"] == "restore_failed").then_some(())
    })
    .await;
    let asked = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await;
    assert!(asked.status >= 400, "a snapshot of nothing: {}", asked.text());
    assert_eq!(story.snapshots("anna").await["head"]["id"], head["id"]);
    story.server.faults().clear();
    eventually("the cell is back", BOUND, async || {
        (story.world.status("anna").await["state"] == "running").then_some(())
    })
    .await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("1"));
    assert_eq!(whoami(&anna.front).await["dataId"], data);
    // It goes on from there: the next snapshot is behind that one.
    write(&anna, "a", "2").await;
    let next = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    assert_eq!(next["parent"], head["id"]);
    story.next_head("anna", &head).await;
    story.world.end(&[]).await;
}

/// Its journal is damaged, and it does what it is told then: another journal, and a token to rejoin.
async fn loses_its_journal(world: &mut World) {
    world.agent.kill9();
    let agent = world.dir().join("agent");
    std::fs::rename(agent.join("journal"), agent.join("journal.damaged")).unwrap();
    let name = world.node_name.clone();
    let revoked = world.api.cli(&["node", "revoke", &name, "--yes"]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    let token = world.api.post("/v1/tokens", json!({ "node": name, "rejoin": true })).await.ok(201);
    let file = world.dir().join("rejoin-token");
    std::fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    world.agent.run_once("join", &["--token-file", &file.display().to_string(), "--again"]).await;
    world.agent.spawn().await;
    world.agent_is_connected().await;
}

#[tokio::test]
async fn a_node_that_lost_its_journal_keeps_what_is_on_its_disks_before_it_begins_from_head() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    write(&anna, "a", "in HEAD").await;
    story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let head = story.next_head("anna", &Value::Null).await;
    write(&anna, "a", "on the disk alone").await;

    loses_its_journal(&mut story.world).await;
    eventually("the container of before is in the way", BOUND, async || {
        (story.world.status("anna").await["problem"]["code"] == "not_ours").then_some(())
    })
    .await;
    // Nothing is put beneath it, whoever asks.
    let asked = story.world.api.post("/v1/cells/anna/restart", json!({})).await;
    assert!(asked.status >= 400, "{}", asked.text());
    story.world.container_is(&anna.cell, "running").await;

    for container in story.world.engine.containers_of(&anna.cell).await {
        run("docker", &["rm", "-f", &container.id]);
    }
    story.world.api.post("/v1/cells/anna/restart", json!({})).await.ok(200);
    assert_eq!(read(&anna, "a").await.as_deref(), Some("in HEAD"));
    let listed = story.snapshots("anna").await;
    let mut all = listed["history"].as_array().unwrap().iter().chain([&listed["head"]]);
    let kept = all.find(|kept| kept["parent"] == head["id"]).expect("what was there");
    story.restore("anna", kept).await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("on the disk alone"));
    story.world.end(&["not this node's"]).await;
}

#[tokio::test]
async fn a_node_whose_lease_is_over_keeps_its_rest_aside_and_head_stays() {
    let options = Options { coordinator: vec!["autonomy=15s".to_owned()], ..Options::default() };
    let mut story = Story::with(options).await;
    let anna = story.world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    write(&anna, "a", "1").await;
    story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let head = story.next_head("anna", &Value::Null).await;
    write(&anna, "a", "2").await;
    assert_eq!((story.stored_below("users"), story.stored_below("orphans")), (1, 0));

    story.world.coordinator.kill9();
    story.world.container_is(&anna.cell, "exited").await;
    eventually("what it holds is kept, elsewhere", BOUND, async || {
        (story.stored_below("orphans") == 1).then_some(())
    })
    .await;
    assert_eq!(story.stored_below("users"), 1, "the user may be another node's by now");

    story.world.coordinator.spawn().await;
    let orphans = eventually("the coordinator is told of it", BOUND, async || {
        let orphans = story.snapshots("anna").await["orphans"].clone();
        (orphans.as_array().map(Vec::len) == Some(1)).then_some(orphans)
    })
    .await;
    assert_eq!(orphans[0]["snapshot"]["cell"], anna.cell.as_str());
    assert_eq!(story.snapshots("anna").await["head"]["id"], head["id"]);
    story.world.cell_is("anna", "running").await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"), "nobody else had it");
    story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let next = story.next_head("anna", &head).await;
    // Its rest may have been kept there, too, before it was started again.
    let kept = story.snapshots("anna").await["history"].clone();
    let line = kept.as_array().expect("a list").iter().any(|kept| kept["id"] == next["parent"]);
    assert!(line, "the line in its own repository goes on: {next} is behind one of {kept}");
    assert_ne!(next["parent"], orphans[0]["snapshot"]["id"]);
    story.world.end(&["was not heard for as long as this node may work alone"]).await;
}
