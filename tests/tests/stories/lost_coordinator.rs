//! The day on which every disk is gone: bucket and recovery key, and an operator who follows docs/INSTALL.md.

use berth_tests::world::Rest;
use berth_tests::world::wait::eventually;
use serde_json::{Value, json};

use crate::snapshots::{Story, read, write};
use crate::{NOT_IN_THIS_STORY, whoami};

/// A backup of the key store follows a change within a minute.
const BACKED_UP: std::time::Duration = std::time::Duration::from_secs(120);

impl Story {
    async fn id_of(&self, slug: &str) -> String {
        self.snapshots(slug).await["user"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn out_of_bucket_and_recovery_key_a_user_comes_up_again_and_goes_back_to_any_snapshot() {
    let mut story = Story::begin().await;
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let bob = story.world.create_running("bob", Rest::Stop, NOT_IN_THIS_STORY).await;
    let data = whoami(&anna.front).await["dataId"].clone();
    let mut heads = vec![Value::Null];
    for letter in ["older", "newest"] {
        write(&anna, "letter", letter).await;
        story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
        heads.push(story.next_head("anna", &heads[heads.len() - 1]).await);
    }
    write(&bob, "letter", "bob's").await;
    story.world.api.post("/v1/cells/bob/snapshot", json!({})).await.ok(200);
    let bobs = story.next_head("bob", &Value::Null).await;
    write(&anna, "letter", "in no snapshot").await;
    let [of_anna, of_bob] = [story.id_of("anna").await, story.id_of("bob").await];
    let path = |id: &str| format!("/v1/users/{id}/snapshots");
    eventually("the bucket has a backup with all keys", BACKED_UP, async || {
        let found = story.world.api.get("/v1/doctor").await.ok(200)["coordinator"].clone();
        let backup = found.as_array()?.iter().find(|finding| finding["check"] == "key_backup")?;
        (backup["level"] == "good").then_some(())
    })
    .await;

    let world = &mut story.world;
    world.all_disks_are_lost();
    let recovery = world.dir().join("recovery-key").display().to_string();
    world.coordinator.run_once("keys", &["restore", "--recovery-key-file", &recovery]).await;
    world.coordinator.run_once("heads", &["rebuild"]).await;
    world.coordinator.spawn().await;
    let shown = world.api.get(&path(&of_anna)).await.ok(200);
    assert_eq!((&shown["head"]["id"], &shown["head"]["seq"]), (&heads[2]["id"], &heads[2]["seq"]));
    assert_eq!(shown["history"][0]["id"], heads[1]["id"]);
    assert_eq!(world.api.get("/v1/users").await.ok(200)["items"], json!([]), "names were the journal's");

    world.node_is_made_anew().await;
    let old_way = anna.front.clone();
    let take_over = json!({ "take_over": of_anna });
    let anna = world.create_with("anna", Rest::Stop, NOT_IN_THIS_STORY, take_over).await;
    world.cell_is("anna", "running").await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("newest"));
    assert_eq!(whoami(&anna.front).await["dataId"], data);
    assert_eq!(old_way.get("/whoami").await.status, 401, "her token was the journal's, too");

    // She goes on from there, and back.
    write(&anna, "letter", "after that day").await;
    world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let next = story.next_head("anna", &heads[2]).await;
    assert_eq!(next["parent"], heads[2]["id"]);
    let epoch = |head: &Value| head["generation"]["epoch"].as_u64().unwrap();
    assert!(epoch(&next) > epoch(&heads[2]), "{} is above all that was given before", next["generation"]);
    story.restore("anna", &heads[1]).await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("older"));
    story.restore("anna", &next).await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("after that day"));

    // Of whoever is not created again nothing is lost.
    let shown = story.world.api.get(&path(&of_bob)).await.ok(200);
    assert_eq!(shown["head"]["id"], bobs["id"]);
    story.world.end(&[]).await;
}
