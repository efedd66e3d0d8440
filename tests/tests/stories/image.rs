//! Another image: a cell changes at a start, with its data, and only once there is a way back.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use berth_test_s3::Fault;
use berth_tests::lab::kills::{killed, wanted};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Rest, TEST_IMAGE};
use serde_json::{Value, json};

use crate::snapshots::{Story, read, write};
use crate::{NOT_IN_THIS_STORY, whoami};

fn docker(words: &[&str], stdin: &str) -> String {
    let (input, output) = (Stdio::piped(), Stdio::piped());
    let mut child = Command::new("docker").args(words).stdin(input).stdout(output).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&ended.stdout));
    String::from_utf8_lossy(&ended.stdout).trim().to_owned()
}

/// A name of this story's own, for builds of the test cell; it goes with the story.
pub(crate) struct Tag(pub(crate) String);

impl Tag {
    pub(crate) fn new(name: &str) -> Self {
        let tag = Self(format!("berth/story-cell:{name}-{}", std::process::id()));
        tag.means(name);
        tag
    }

    /// One whose tag is a version.
    fn release(version: &str) -> Self {
        let tag = Self(format!("berth/story-cell-{}:{version}", std::process::id()));
        tag.means(version);
        tag
    }

    /// From now on it names other bytes.
    fn means(&self, build: &str) {
        let file = format!("FROM {TEST_IMAGE}\nLABEL berth.story={build}-{}\n", std::process::id());
        docker(&["build", "-q", "-t", &self.0, "-"], &file);
    }

    fn id(&self) -> String {
        docker(&["image", "inspect", "-f", "{{.Id}}", &self.0], "")
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        // What is left of it is in nobody's way.
        let _removed = Command::new("docker").args(["image", "rm", "-f", &self.0]).output();
    }
}

impl Story {
    async fn give(&self, member: &Member, image: &str) {
        let said = self.world.api.cli(&["user", "image", &member.slug, image]).await;
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.out.contains("berth cell restart"), "{}", said.out);
    }

    /// What the cell's one container is made of: a name, and the bytes that it meant then.
    async fn image_of(&self, member: &Member) -> (String, String) {
        let container = self.world.engine.containers_of(&member.cell).await.remove(0);
        let seen = self.world.engine.docker().inspect_container(&container.id, None).await.unwrap();
        (seen.config.unwrap().image.unwrap(), seen.image.unwrap())
    }

    async fn restart(&self, member: &Member) -> Value {
        let path = format!("/v1/cells/{}/restart", member.slug);
        self.world.api.post(&path, json!({})).await.ok(200)["status"].clone()
    }

    async fn seq(&self, slug: &str) -> u64 {
        self.snapshots(slug).await["head"]["seq"].as_u64().unwrap_or(0)
    }

    /// Waits until the coordinator knows of a snapshot under this image that is newer than `seq`, and gives it.
    async fn kept_under(&self, slug: &str, image: &str, seq: u64) -> Value {
        eventually(&format!("a snapshot of {slug} under {image} behind {seq}"), BOUND, async || {
            let known = self.snapshots(slug).await;
            let mut all = known["history"].as_array().cloned().unwrap_or_default();
            all.push(known["head"].clone());
            all.into_iter().find(|one| one["image"] == image && one["seq"].as_u64() > Some(seq))
        })
        .await
    }
}

#[tokio::test]
async fn a_cell_comes_to_another_image_with_its_data_and_a_way_back() {
    let story = Story::begin().await;
    let (new, newer) = (Tag::new("new"), Tag::new("newer"));
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let data = whoami(&anna.front).await["dataId"].clone();
    write(&anna, "letter", "dear world").await;

    // While she is up nothing happens to her; what is kept of her rest is under the image that she had.
    story.give(&anna, &new.0).await;
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    assert_eq!(story.image_of(&anna).await.0, TEST_IMAGE);
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let first = story.settles(&anna).await;
    assert_eq!(first["image"], TEST_IMAGE);
    assert_eq!(story.image_of(&anna).await.0, TEST_IMAGE);
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear world"));
    assert_eq!(story.image_of(&anna).await, (new.0.clone(), new.id()));
    assert_eq!(whoami(&anna.front).await["dataId"], data);
    assert_eq!(story.seq("anna").await, first["seq"].as_u64().unwrap(), "the rest's was enough");

    // At a restart there was no rest that could be kept: one is taken in between.
    write(&anna, "letter", "dear all").await;
    story.give(&anna, &newer.0).await;
    story.restart(&anna).await;
    let second = story.kept_under("anna", &new.0, first["seq"].as_u64().unwrap()).await;
    assert_eq!(second["parent"], first["id"]);
    assert_eq!(story.image_of(&anna).await.0, newer.0);
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("dear all"));

    // Its name comes to mean other bytes.
    write(&anna, "letter", "once more").await;
    newer.means("newest");
    story.restart(&anna).await;
    story.kept_under("anna", &newer.0, second["seq"].as_u64().unwrap()).await;
    assert_eq!(story.image_of(&anna).await, (newer.0.clone(), newer.id()));
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("once more"));

    // What a newer release has written is not put back under an older one.
    let (release, older) = (Tag::release("2026.9.10"), Tag::release("2026.9.9"));
    story.give(&anna, &release.0).await;
    story.restart(&anna).await;
    write(&anna, "letter", "of a release").await;
    story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let taken = story.kept_under("anna", &release.0, 0).await;
    story.give(&anna, &older.0).await;
    let body = json!({ "snapshot": taken["id"] });
    let refused = story.world.api.post("/v1/cells/anna/restore", body).await.ok(409);
    assert_eq!(refused["code"], "state_too_new", "{refused}");
    assert_eq!(read(&anna, "letter").await.as_deref(), Some("of a release"));
    assert_eq!(story.image_of(&anna).await.0, release.0, "nothing was done to her");
    story.world.end(&[]).await;
}

#[tokio::test]
async fn while_there_is_no_way_back_a_cell_goes_on_with_the_image_that_it_has() {
    let story = Story::begin().await;
    let new = Tag::new("new");
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    write(&anna, "a", "1").await;
    story.server.faults().set(Fault::RefuseWrites);
    story.give(&anna, &new.0).await;
    let status = story.restart(&anna).await;
    assert_eq!(status["problem"]["code"], "snapshot_failed", "{status}");
    assert!(status["problem"]["detail"].as_str().unwrap().contains(&new.0), "{status}");
    assert_eq!(story.image_of(&anna).await.0, TEST_IMAGE);
    assert_eq!(read(&anna, "a").await.as_deref(), Some("1"), "she is up all the same");
    let why = story.world.api.cli(&["cell", "why", "anna"]).await;
    assert!(why.out.contains("its image was not changed to"), "{}", why.out);

    // A wake tries again, too, with the bucket back.
    write(&anna, "a", "2").await;
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    story.world.container_is(&anna.cell, "exited").await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"));
    assert_eq!(story.image_of(&anna).await.0, TEST_IMAGE);
    story.server.faults().clear();
    assert_eq!(story.restart(&anna).await["problem"], Value::Null);
    assert_eq!(story.image_of(&anna).await.0, new.0);
    story.kept_under("anna", TEST_IMAGE, 0).await;
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"));

    // A name that was mistyped keeps nobody out either.
    story.give(&anna, "berth/story-cell:mistyped").await;
    assert_eq!(story.restart(&anna).await["problem"]["code"], "unknown_image");
    assert_eq!(story.image_of(&anna).await.0, new.0);
    assert_eq!(read(&anna, "a").await.as_deref(), Some("2"));
    story.give(&anna, &new.0).await;
    assert_eq!(story.restart(&anna).await["problem"], Value::Null);
    story.world.end(&[]).await;
}

#[tokio::test]
async fn an_agent_killed_around_a_change_of_the_image_leaves_a_way_back_and_the_cell_changes() {
    let mut story = Story::begin().await;
    let tags = [Tag::new("even"), Tag::new("odd")];
    let anna = story.world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let mut old = TEST_IMAGE.to_owned();
    // Where nothing but a change of the image passes: as often as `scripts/kills` wants it.
    let own = ["intent:save", "image:saved", "done:save", "report:save"];
    let own = own.into_iter().flat_map(|point| (0..wanted()).map(move |_| point));
    let others = ["intent:create", "docker:create:answered", "done:create", "intent:start", "done:start"];
    for (number, point) in own.chain(others).enumerate() {
        let begun = Instant::now();
        let (value, new) = (number.to_string(), &tags[number % 2].0);
        write(&anna, "a", &value).await;
        let seq = story.seq("anna").await;
        story.give(&anna, new).await;
        let api = story.world.api.clone();
        let restart = async move { drop(api.call("POST", "/v1/cells/anna/restart", Some(json!({}))).await) };
        story.dies_at(point, restart).await;
        let found = eventually("she is back", BOUND, async || read(&anna, "a").await).await;
        assert_eq!(found, value, "{point}");
        assert_eq!(&story.image_of(&anna).await.0, new, "{point}");
        story.kept_under("anna", &old, seq).await;
        story.world.cell_is("anna", "running").await;
        old.clone_from(new);
        killed("agent", point, 1, "image", begun);
    }
    story.world.end(&[]).await;
}
