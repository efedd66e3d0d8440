//! A frozen cell leaves swap: it is ended while it is frozen, and never runs in order to be ended.

use std::time::Duration;

use berth_tests::world::engine::{Happened, Recorder};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::Value;

use crate::image::Tag;
use crate::{SOON, whoami};

/// How long the cell of a story stays frozen at the most (T2): the least that a plan can say.
const STOP_AFTER: Duration = Duration::from_secs(60);

/// Docker tells wall time, and the agent counts since the boot.
const CLOCKS: Duration = Duration::from_secs(1);

/// Somebody whose cell is about to be frozen and let alone.
struct Sleeper<'a> {
    world: &'a World,
    member: Member,
    /// Who the cell was before.
    first: Value,
    docker: Recorder,
}

impl<'a> Sleeper<'a> {
    async fn of(world: &'a World, member: Member) -> Self {
        let docker = world.engine.record();
        let first = whoami(&member.front).await;
        assert_eq!(member.front.post("/state/letter", "dear world").await.status, 200);
        member.front.get("/beat?ms=10").await.ok(200);
        Self { world, member, first, docker }
    }

    /// When its process has written its last word, in milliseconds. It writes one all the time, and at once when it goes on.
    fn last_beat(&self) -> i64 {
        let data = self.world.dir().join(format!("agent/cells/{}/data", self.member.cell));
        let beat: Value = serde_json::from_slice(&std::fs::read(data.join("values/beat")).unwrap()).unwrap();
        beat["atMs"].as_i64().unwrap()
    }

    /// Waits until it has ended, which is told when that begins.
    async fn ends(&self, within: Duration) {
        eventually("it is stopped", within, async || {
            (self.world.status(&self.member.slug).await["state"] == "stopped").then_some(())
        })
        .await;
        eventually("it has ended", BOUND, async || {
            (self.docker.count(&self.member.cell, "die").await > 0).then_some(())
        })
        .await;
    }

    /// It was ended so long after it was frozen, or later, and has not run in between.
    async fn ended_frozen(&self, not_before: Duration) {
        let happened = self.docker.all().await.into_iter().filter(|event| event.cell == self.member.cell);
        let happened: Vec<Happened> = happened.collect();
        let frozen = happened.iter().rposition(|event| event.action == "pause").expect("it was frozen");
        let (frozen, since) = (&happened[frozen], &happened[frozen + 1..]);
        assert!(since.iter().any(|event| event.action == "die"), "{since:?}");
        for event in since {
            // On cgroup v1 Docker thaws what it kills, which has its signal by then: that is part of its end.
            assert!(["kill", "unpause", "die"].contains(&event.action.as_str()), "{since:?}");
            let after = Duration::from_nanos(u64::try_from(event.at - frozen.at).unwrap());
            assert!(after >= not_before, "{event:?} after {after:?}");
        }
        let late = self.last_beat() - frozen.at / 1_000_000;
        assert!(late <= 0, "it ran {late} ms after it was frozen");
        let ended = self.world.engine.docker().inspect_container(&frozen.container, None).await.unwrap();
        let ended = ended.state.unwrap();
        assert_eq!((ended.running, ended.exit_code), (Some(false), Some(137)), "killed, not asked to end");
    }

    /// It wakes as another process on the same data.
    async fn wakes_with_its_data(&self) {
        let front = &self.member.front;
        assert_eq!(front.get("/state/letter").await.text(), "dear world");
        let (first, second) = (&self.first, whoami(front).await);
        assert_eq!(second["dataId"], first["dataId"]);
        assert_eq!(second["starts"].as_u64().unwrap(), first["starts"].as_u64().unwrap() + 1);
        assert_ne!(second["bootId"], first["bootId"], "another process");
    }
}

#[tokio::test]
async fn a_cell_that_is_frozen_for_as_long_as_its_plan_lets_it_be_ends_frozen_and_wakes_with_its_data() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let terms = world.api.cli(&["user", "sleep", "anna", "--stop-after", "1m"]).await;
    assert_eq!(terms.code, 0, "{}", terms.err);
    let anna = Sleeper::of(&world, anna).await;
    anna.ends(STOP_AFTER + BOUND).await;
    anna.ended_frozen(STOP_AFTER - CLOCKS).await;
    let counted = world.metrics(&world.agent).await;
    assert_eq!(counted.value("berth_agent_rests_total{kind=\"left_swap_long\"}"), 1.0, "{counted:?}");
    anna.wakes_with_its_data().await;
    world.end(&[]).await;
}

#[tokio::test]
async fn swap_that_runs_short_is_left_by_a_cell_that_ends_frozen_and_wakes_with_its_data() {
    let short = ["swap_high_percent=1", "swap_low_percent=0"].map(ToOwned::to_owned);
    let world = World::start(Options { agent: short.to_vec(), ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    // A hundredth of some gigabytes of swap.
    anna.front.get("/hold-memory?mb=90").await.ok(200);
    let anna = Sleeper::of(&world, anna).await;
    anna.ends(BOUND).await;
    anna.ended_frozen(Duration::ZERO).await;
    let counted = world.metrics(&world.agent).await;
    assert!(counted.value("berth_agent_rests_total{kind=\"left_swap_short\"}") >= 1.0, "{counted:?}");
    anna.wakes_with_its_data().await;
    world.end(&[]).await;
}

#[tokio::test]
async fn a_frozen_cell_that_is_given_another_image_ends_frozen_and_wakes_on_that_with_its_data() {
    let world = World::start(Options::default()).await;
    let new = Tag::new("for-a-frozen-cell");
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let anna = Sleeper::of(&world, anna).await;
    world.container_is(&anna.member.cell, "paused").await;
    world.cell_is("anna", "frozen").await;
    let given = world.api.cli(&["user", "image", "anna", &new.0]).await;
    assert_eq!(given.code, 0, "{}", given.err);
    anna.ends(BOUND).await;
    anna.ended_frozen(Duration::ZERO).await;
    let counted = world.metrics(&world.agent).await;
    assert_eq!(counted.value("berth_agent_rests_total{kind=\"left_swap_out_of_date\"}"), 1.0, "{counted:?}");
    anna.wakes_with_its_data().await;
    let container = world.engine.containers_of(&anna.member.cell).await.remove(0);
    let runs = world.engine.docker().inspect_container(&container.id, None).await.unwrap();
    assert_eq!(runs.config.unwrap().image.as_deref(), Some(new.0.as_str()));
    world.end(&[]).await;
}
