//! Somebody asks for their cell while it falls asleep, in the middle of each step: they are answered by it, and it saw
//! what they asked for once (invariants 4 and 6).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Instant;

use berth_tests::world::http::Reply;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::{NOT_IN_THIS_STORY, whoami};

/// How long a step is held up at the place: time enough to ask.
const DELAY_MS: u64 = 1200;

/// Places on the way down, before and behind every operation.
const DOWN_TO_STOPPED: [&str; 10] = [
    "intent:observe",
    "done:observe",
    "intent:fence",
    "done:fence",
    "intent:suspend",
    "done:suspend",
    "intent:stop",
    "docker:stop:sent",
    "docker:stop:answered",
    "done:stop",
];
const DOWN_TO_FROZEN: [&str; 14] = [
    // Once only, on the first way down; so it comes first.
    "docker:thin:sent",
    "intent:observe",
    "done:observe",
    "intent:fence",
    "done:fence",
    "intent:suspend",
    "done:suspend",
    "intent:pause",
    "docker:pause:sent",
    "docker:pause:answered",
    "done:pause",
    "intent:push",
    "docker:push:sent",
    "done:push",
];

struct Story {
    world: World,
    member: Member,
    rest: Rest,
    armed: PathBuf,
    trace: PathBuf,
}

impl Story {
    async fn begin(rest: Rest) -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        let said = dir.join("log");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&said).unwrap();
        std::io::Write::write_all(&mut file, b"1").unwrap();
        // The workload tells which requests it answered.
        let agent = vec![format!("cell_env_files={{CELL_LOG='{}'}}", said.display())];
        let mut world = World::start(Options { agent, ..Options::default() }).await;
        let (armed, trace) = (dir.join("armed"), dir.join("trace"));
        world.agent.with_env("BERTH_FAILPOINT", &format!("@{}", armed.display()));
        world.agent.with_env("BERTH_FAILPOINT_TRACE", &trace.display().to_string());
        world.agent.restart().await;
        world.agent_is_connected().await;
        world.door_is_connected().await;
        let member = world.create_running("anna", rest, NOT_IN_THIS_STORY).await;
        // The workload's limit of 30 handshakes a minute is not this story's.
        let unlimited = member.front.post("/control", r#"{"no_rate_limit":true}"#).await;
        assert_eq!(unlimited.status, 200, "{}", unlimited.text());
        Self { world, member, rest, armed, trace }
    }

    fn passes(&self, place: &str) -> usize {
        fs::read_to_string(&self.trace).unwrap_or_default().lines().filter(|line| *line == place).count()
    }

    fn order_sleep(&self) -> JoinSet<Reply> {
        let (api, order) = (self.world.api.clone(), json!({ "freeze": self.rest == Rest::Freeze }));
        let mut ordering = JoinSet::new();
        ordering.spawn(async move { api.post("/v1/cells/anna/sleep", order).await });
        ordering
    }

    /// Ordered until nobody turns it round.
    async fn rests(&self) {
        eventually("the cell rests", BOUND, async || {
            let told = self.order_sleep().join_next().await.unwrap().unwrap();
            (told.status == 200).then_some(())
        })
        .await;
    }

    /// How often the workload answered a request for this path.
    async fn answered(&self, path: &str) -> usize {
        let containers = self.world.engine.containers_of(&self.member.cell).await;
        let output = Command::new("docker").args(["logs", &containers[0].id]).output().await.unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        said.concat().lines().filter(|line| line.contains(&format!("POST {path} 200"))).count()
    }

    async fn asked_at(&self, place: &str) {
        // Up, so that there is a way down.
        whoami(&self.member.front).await;
        let before = self.passes(place);
        fs::write(&self.armed, format!("{place}=delay:{DELAY_MS}")).unwrap();
        // By order: a cell that is woken again and again would wait ever longer before it falls asleep by itself.
        let mut ordering = self.order_sleep();
        eventually(&format!("the cell falls asleep and comes to {place}"), BOUND, async || {
            (self.passes(place) > before).then_some(())
        })
        .await;
        let path = format!("/state/{}", place.replace(':', "-"));
        let begun = Instant::now();
        let reply = self.member.front.post(&path, "once").await;
        let span = begun.elapsed();
        assert_eq!(reply.status, 200, "asked at {place}: {}", reply.text());
        fs::remove_file(&self.armed).unwrap();
        let told = ordering.join_next().await.unwrap().unwrap();
        assert!(matches!(told.status, 200 | 409), "ordered to sleep at {place}: {}", told.text());
        assert_eq!(self.member.front.get(&path).await.text(), "once", "asked at {place}");
        self.rests().await;
        assert_eq!(self.answered(&path).await, 1, "asked once at {place}");
        eprintln!("    {place:<20} answered after {:>5} ms", span.as_millis());
    }

    async fn end(self) {
        let created = self.world.engine.containers_of(&self.member.cell).await;
        assert_eq!(created.len(), 1, "{created:?}");
        let dir = self.armed.parent().unwrap().to_path_buf();
        self.world.end(&[]).await;
        fs::remove_dir_all(dir).unwrap();
    }
}

#[tokio::test]
async fn whoever_asks_while_a_cell_is_being_stopped_is_answered_once() {
    let story = Story::begin(Rest::Stop).await;
    for place in DOWN_TO_STOPPED {
        story.asked_at(place).await;
    }
    story.end().await;
}

#[tokio::test]
async fn whoever_asks_while_a_cell_is_being_frozen_is_answered_once() {
    let story = Story::begin(Rest::Freeze).await;
    let boot = whoami(&story.member.front).await["bootId"].clone();
    for place in DOWN_TO_FROZEN {
        story.asked_at(place).await;
    }
    assert_eq!(whoami(&story.member.front).await["bootId"], boot, "the same process all the time");
    story.end().await;
}
