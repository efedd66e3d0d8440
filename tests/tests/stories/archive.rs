//! Archived: a stopped cell leaves the disk when its snapshot is proven, and is back with its data when it is wanted.

use berth_test_s3::Fault;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest};
use serde_json::{Value, json};

use crate::snapshots::{Story, read, write};
use crate::{NOT_IN_THIS_STORY, SOON, whoami};

impl Story {
    /// Has the cell leave the disk.
    async fn archive(&self, slug: &str) -> Value {
        // The coordinator knows of a snapshot a moment before the node hears that it does.
        let answered = eventually("the node knows what it goes by", BOUND, async || {
            let answer = self.world.api.post(&format!("/v1/cells/{slug}/archive"), json!({})).await;
            (answer.json()["code"] != "not_archived").then_some(answer)
        });
        answered.await.ok(200)
    }

    async fn is_not_archived(&self, slug: &str, code: &str) {
        let refused = self.world.api.post(&format!("/v1/cells/{slug}/archive"), json!({})).await;
        assert_eq!(refused.json()["code"], code, "{}", refused.text());
    }

    /// What lies of the cell below the agent's folder.
    fn left_of(&self, member: &Member) -> Vec<String> {
        let agent = self.world.dir().join("agent");
        let folders = ["cells", "removed", "left-behind", "snapshots"].map(|folder| agent.join(folder));
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
        let names = entries.map(|entry| entry.unwrap().path().display().to_string());
        names.filter(|path| path.contains(&member.cell)).collect()
    }

    /// The agent dies at this point of what `act` has it do, and starts again.
    pub(crate) async fn dies_at(&mut self, point: &str, act: impl Future<Output = ()>) {
        let world = &mut self.world;
        world.agent.kill9();
        world.agent.with_env("BERTH_FAILPOINT", point).spawn().await;
        world.agent_is_connected().await;
        world.door_is_connected().await;
        let act = async {
            act.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = act => {}
            () = world.agent.wait_killed(BOUND) => {}
        }
        world.agent.without_env("BERTH_FAILPOINT").spawn().await;
        world.agent_is_connected().await;
        world.door_is_connected().await;
    }

    /// Waits until nothing of the cell is on the node any more.
    async fn is_gone(&self, member: &Member) {
        self.world.cell_is(&member.slug, "archived").await;
        self.world.cell_leaves_nothing(&member.cell).await;
        eventually("nothing lies on the disk any more", BOUND, async || {
            self.left_of(member).is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_stopped_cell_is_archived_when_told_so_and_is_back_with_its_data_when_it_is_wanted() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let data = whoami(&anna.front).await["dataId"].clone();
    write(&anna, "letter", "dear world").await;
    story.is_not_archived("anna", "not_archived").await;
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let head = story.settles(&anna).await;

    // What cannot be read back is not proven, and keeps its disk.
    story.server.faults().set(Fault::WrongByte);
    story.is_not_archived("anna", "not_archived").await;
    story.server.faults().clear();
    story.world.container_is(&anna.cell, "exited").await;
    eventually("why it stays is told", BOUND, async || {
        let status = story.world.status("anna").await;
        (status["state"] == "stopped" && status["problem"]["code"] == "not_archived").then_some(())
    })
    .await;
    assert!(!story.left_of(&anna).is_empty());

    assert_eq!(story.archive("anna").await["status"]["state"], "archived");
    story.is_gone(&anna).await;
    story.archive("anna").await;
    let counted = story.world.metrics(&story.world.agent).await;
    assert!(counted.value("berth_agent_cells{kind=\"archived\"}") > 0.0, "{counted:?}");
    // There is nothing to take a snapshot of: HEAD stands for all of it.
    let asked = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    assert_eq!(asked["id"], head["id"]);

    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    let who = whoami(&anna.front).await;
    assert_eq!((&who["dataId"], &who["starts"]), (&data, &json!(2)), "restored once, started once");
    // It goes on from there, and may leave again.
    write(&anna, "letter", "dear all").await;
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let next = story.settles(&anna).await;
    assert_eq!(next["parent"], head["id"]);
    story.archive("anna").await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear all"));
    story.world.end(&[]).await;
}

#[tokio::test]
async fn what_does_not_fit_beside_what_is_there_is_put_back_out_of_the_archive_as_the_refusal_says() {
    let story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    // More than half of her disk of 24 MiB.
    let large = "x".repeat(1_000_000);
    for number in 0..12 {
        write(&anna, &format!("large-{number}"), &large).await;
    }
    write(&anna, "letter", "dear world").await;
    let first = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    write(&anna, "letter", "later").await;
    let back = || story.world.api.post("/v1/cells/anna/restore", json!({ "snapshot": first["id"] }));
    let refused = back().await.ok(502);
    assert_eq!(refused["code"], "restore_failed", "{refused}");
    let advice = refused["detail"].as_str().unwrap();
    assert!(advice.contains("berth cell archive USER"), "{advice}");
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("later"), "she goes on with what she has");

    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let second = story.settles(&anna).await;
    story.archive("anna").await;
    let restored = back().await.ok(200);
    assert_eq!(restored["notes"], json!([]), "{restored}");
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    let known = story.snapshots("anna").await;
    assert_ne!(known["head"]["id"], second["id"], "another node would begin with what was put back");
    let events = story.world.api.get("/v1/cells/anna/events").await.ok(200);
    let told = events["items"].as_array().unwrap().iter().find(|event| event["kind"] == "data-restored");
    let id: String = first["id"].as_str().unwrap().chars().take(8).collect();
    assert!(told.is_some_and(|told| told["detail"].as_str().unwrap().contains(&id)), "{events}");
    // What was there when she was archived is not lost.
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    story.settles(&anna).await;
    story.archive("anna").await;
    let ask = json!({ "snapshot": second["id"] });
    story.world.api.post("/v1/cells/anna/restore", ask).await.ok(200);
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("later"));
    story.world.end(&[]).await;
}

#[tokio::test]
async fn a_disk_that_is_short_is_left_by_whom_nobody_uses() {
    let short = ["disk_high_percent=1", "disk_low_percent=0", "disk_rest_s=0"].map(ToOwned::to_owned);
    let story = Story::with(Options { agent: short.to_vec(), ..Options::default() }).await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    let ben = story.world.create_running("ben", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    write(&anna, "a", "1").await;
    story.is_gone(&anna).await;
    story.world.container_is(&ben.cell, "running").await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("1"));
    story.is_gone(&anna).await;
    // A user who is removed while archived leaves nothing either.
    assert_eq!(story.world.api.delete("/v1/users/anna").await.status, 204);
    story.world.cell_leaves_nothing(&anna.cell).await;
    story.world.end(&[]).await;
}

#[tokio::test]
async fn an_agent_killed_around_an_archive_leaves_the_cell_on_the_disk_or_in_the_store_and_whole() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, SOON).await;
    let points = [
        ("done:verify", "stopped"),
        ("report:verify", "stopped"),
        ("intent:archive", "archived"),
        ("docker:remove:answered", "archived"),
        ("quota:disk:discarded", "archived"),
        ("done:archive", "archived"),
        ("report:archive", "archived"),
    ];
    for (number, (point, state)) in points.into_iter().enumerate() {
        let value = number.to_string();
        write(&anna, "a", &value).await;
        story.settles(&anna).await;
        let api = story.world.api.clone();
        // An agent that is not told of the repository yet knows of no snapshot to go by.
        let order = async move {
            let order = async || api.call("POST", "/v1/cells/anna/archive", Some(json!({}))).await.err();
            eventually("the agent dies over it", BOUND, order).await;
        };
        story.dies_at(point, order).await;
        story.world.cell_is("anna", state).await;
        if state == "archived" {
            story.is_gone(&anna).await;
        } else {
            story.world.container_is(&anna.cell, "exited").await;
        }
        assert_eq!(read(&anna, "a").await, Some(value), "{point}");
    }
    write(&anna, "a", "last").await;
    for point in ["intent:restore", "restore:begun", "restore:done", "done:restore", "report:restore"] {
        story.settles(&anna).await;
        story.archive("anna").await;
        let front = anna.front.clone();
        story.dies_at(point, async move { drop(front.try_get("/state/a").await) }).await;
        let found = eventually("she is back", BOUND, async || read(&anna, "a").await).await;
        assert_eq!(found, "last", "{point}");
    }
    story.world.end(&[]).await;
}
