//! The agent killed -9 between any two steps of a way down or up (invariant 8). It is started again, and the truth has
//! to hold: one container per cell, none lost, nobody waits past the bound, and a cell with nothing to do rests.

use std::time::{Duration, Instant};

use berth_tests::world::engine::Recorder;
use berth_tests::world::front::Front;
use berth_tests::world::http::{Failed, Reply};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{SOON, whoami};

const FAILPOINT: &str = "BERTH_FAILPOINT";

/// Places, those first that tell most: where what is journaled, what Docker does and what the workload has promised part.
/// Until the workload has answered, both ways down are the same.
const DOWN_TO_STOPPED: Places = Places {
    often: &["done:suspend", "intent:stop", "done:stop", "report:stop"],
    rest: &["intent:observe", "done:observe", "done:fence", "intent:suspend"],
};
const DOWN_TO_FROZEN: Places =
    Places { often: &["done:suspend", "done:pause", "report:pause"], rest: &["intent:pause"] };
const KILLED_FROZEN: Places = Places {
    often: &["docker:kill_frozen:sent", "done:kill_frozen"],
    rest: &["intent:kill_frozen", "frozen:signalled", "docker:kill_frozen:answered", "report:kill_frozen"],
};
const UP_FROM_STOPPED: Places = Places {
    often: &["done:create", "intent:start", "done:start"],
    rest: &["intent:create", "report:start", "done:await_ready"],
};
const UP_FROM_FROZEN: Places = Places {
    often: &["intent:unpause", "done:unpause", "done:resume"],
    rest: &["report:unpause", "done:await_ready"],
};
const THAWED_TOGETHER: Places =
    Places { often: &["docker:unpause:sent", "done:resume"], rest: &["intent:unpause", "done:unpause"] };
const NEW: Places = Places {
    often: &["done:create", "done:start", "report:await_ready"],
    rest: &["intent:create", "intent:start", "done:await_ready"],
};
const REMOVED: Places =
    Places { often: &["done:stop", "intent:remove", "done:remove"], rest: &["intent:stop", "report:remove"] };

/// Failpoints of a story: the rest of them takes minutes, and is part of `scripts/test --long`.
struct Places {
    often: &'static [&'static str],
    rest: &'static [&'static str],
}

impl Places {
    fn iter(&self) -> impl Iterator<Item = &'static str> {
        let rest = if cfg!(feature = "long") { self.rest } else { &[] };
        self.often.iter().chain(rest).copied()
    }
}

struct Story {
    world: World,
    member: Member,
    /// Somebody else, at rest all the time: nothing may happen to them.
    other: Member,
    docker: Recorder,
    rest: Rest,
    data: String,
}

impl Story {
    async fn begin(rest: Rest) -> Self {
        let world = World::start(Options::default()).await;
        let other = world.create_running("other", rest, SOON).await;
        world.container_is(&other.cell, docker_state(rest)).await;
        let docker = world.engine.record();
        let member = world.create_running("anna", rest, SOON).await;
        let data = whoami(&member.front).await["dataId"].to_string();
        // The workload's limit of 30 handshakes a minute is not this story's.
        let unlimited = member.front.post("/control", r#"{"no_rate_limit":true}"#).await;
        assert_eq!(unlimited.status, 200, "{}", unlimited.text());
        Self { world, member, other, docker, rest, data }
    }

    /// Starts the agent so that it dies at this place.
    async fn arm(&mut self, failpoint: &str) {
        self.world.agent.kill9();
        self.world.agent.with_env(FAILPOINT, failpoint).spawn().await;
    }

    async fn revive(&mut self) {
        self.world.agent.wait_killed(BOUND).await;
        self.world.agent.without_env(FAILPOINT).spawn().await;
    }

    /// Waits until the cell rests, in Docker and by the agent's own journal: an agent that is killed between the two takes
    /// it up again, which is another story than the one that is armed next.
    async fn rests(&self) {
        self.world.container_is(&self.member.cell, docker_state(self.rest)).await;
        let at_rest = format!("berth_agent_cells{{kind=\"{}\"}}", self.rest.state());
        eventually("the agent knows that both cells rest", BOUND, async || {
            (self.world.metrics(&self.world.agent).await.value(&at_rest) == 2.0).then_some(())
        })
        .await;
    }

    /// The truth after a crash, whatever it was: the user is served with their data, and then the cell rests.
    async fn truth_holds(&self, when: &str) {
        self.nothing_is_doubled(when).await;
        assert_eq!(
            whoami(&self.member.front).await["dataId"].to_string(),
            self.data,
            "{when}: the data of before"
        );
        self.rests().await;
    }

    /// Each user has one container, one network, one disk, and nobody else's was touched.
    async fn nothing_is_doubled(&self, when: &str) {
        let cell = &self.member.cell;
        let containers = self.world.engine.containers_of(cell).await;
        assert_eq!(containers.len(), 1, "{when}: {containers:?}");
        assert_eq!(self.world.engine.networks_of(cell).await.len(), 1, "{when}");
        let mounts = self.world.mounts();
        assert_eq!(mounts.iter().filter(|mount| mount.contains(cell)).count(), 1, "{when}: {mounts:?}");
        let all = self.world.engine.containers().await;
        assert_eq!(all.len(), 2, "{when}: two users, two containers: {all:?}");
        let touched = self.docker.all().await.into_iter().find(|event| event.cell == self.other.cell);
        assert_eq!(touched, None, "{when}: somebody else's cell was touched");
    }

    async fn end(self) {
        self.world.agent_is_connected().await;
        self.world.cell_is("anna", self.rest.state()).await;
        assert_eq!(self.docker.count(&self.member.cell, "create").await, 1, "the container was made once");
        self.world.end(&[]).await;
    }

    /// Killed on the way down: once while nobody wants anything, once while somebody asks for the cell.
    async fn killed_on_the_way_down(&mut self, failpoint: &str) {
        // Up, so that there is a way down.
        whoami(&self.member.front).await;
        self.arm(failpoint).await;
        self.revive().await;
        self.rests().await;
        self.nothing_is_doubled(&format!("after {failpoint}, nobody asking")).await;

        assert_eq!(whoami(&self.member.front).await["dataId"].to_string(), self.data, "after {failpoint}");
        self.arm(failpoint).await;
        self.world.agent.wait_killed(BOUND).await;
        let asking = ask(&self.member.front);
        if failpoint.ends_with(":observe") {
            // Nobody is held before the fence: the cell runs, and the door is open without the agent.
            answered(asking, failpoint).await;
            self.world.agent.without_env(FAILPOINT).spawn().await;
        } else {
            self.somebody_is_held().await;
            self.world.agent.without_env(FAILPOINT).spawn().await;
            answered(asking, failpoint).await;
        }
        self.truth_holds(&format!("after {failpoint}, somebody asking")).await;
    }

    /// Killed on the way up, while the one who asked waits.
    async fn killed_on_the_way_up(&mut self, failpoint: &str) {
        self.rests().await;
        self.arm(failpoint).await;
        let asking = ask(&self.member.front);
        self.revive().await;
        answered(asking, failpoint).await;
        self.truth_holds(&format!("after {failpoint}")).await;
    }

    async fn somebody_is_held(&self) {
        eventually("the request is held", BOUND, async || {
            let counted = self.world.metrics(&self.world.ingress).await;
            (counted.value("berth_ingress_held_requests") == 1.0).then_some(())
        })
        .await;
    }
}

const fn docker_state(rest: Rest) -> &'static str {
    match rest {
        Rest::Stop => "exited",
        Rest::Freeze => "paused",
        Rest::AlwaysOn => "running",
    }
}

/// Asks for the cell, aside.
fn ask(front: &Front) -> JoinSet<Result<Reply, Failed>> {
    let front = front.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move { front.try_get("/echo").await });
    asking
}

/// Whoever asked during the crash was held, and is answered by the cell once there is an agent again.
async fn answered(mut asking: JoinSet<Result<Reply, Failed>>, failpoint: &str) {
    let reply = asking.join_next().await.expect("somebody asks").expect("asking does not panic");
    let reply =
        reply.unwrap_or_else(|error| panic!("{failpoint}: whoever asked was not answered: {}", error.0));
    assert_eq!(reply.status, 200, "{failpoint}: whoever asked was refused: {}", reply.text());
}

fn told(failpoint: &str, begun: Instant) {
    eprintln!("    {failpoint:<18} {:>6} ms", begun.elapsed().as_millis());
}

#[tokio::test]
async fn an_agent_killed_while_a_cell_is_stopped_leads_back_to_the_truth() {
    let mut story = Story::begin(Rest::Stop).await;
    for failpoint in DOWN_TO_STOPPED.iter() {
        let begun = Instant::now();
        story.killed_on_the_way_down(failpoint).await;
        told(failpoint, begun);
    }
    story.end().await;
}

#[tokio::test]
async fn an_agent_killed_while_a_cell_is_frozen_leads_back_to_the_truth() {
    let mut story = Story::begin(Rest::Freeze).await;
    for failpoint in DOWN_TO_FROZEN.iter() {
        let begun = Instant::now();
        story.killed_on_the_way_down(failpoint).await;
        told(failpoint, begun);
    }
    story.end().await;
}

#[tokio::test]
async fn an_agent_killed_while_a_stopped_cell_wakes_leads_back_to_the_truth() {
    let mut story = Story::begin(Rest::Stop).await;
    for failpoint in UP_FROM_STOPPED.iter() {
        let begun = Instant::now();
        let starts = story.docker.count(&story.member.cell, "start").await;
        story.killed_on_the_way_up(failpoint).await;
        let started = story.docker.count(&story.member.cell, "start").await - starts;
        // Once for the one who asked. `truth_holds` asks right behind, and once more only if it fell asleep between.
        assert!((1..=2).contains(&started), "{failpoint}: {started} starts");
        told(failpoint, begun);
    }
    story.end().await;
}

#[tokio::test]
async fn an_agent_killed_while_a_frozen_cell_wakes_leads_back_to_the_truth() {
    let mut story = Story::begin(Rest::Freeze).await;
    let boot = whoami(&story.member.front).await["bootId"].clone();
    for failpoint in UP_FROM_FROZEN.iter() {
        let begun = Instant::now();
        story.killed_on_the_way_up(failpoint).await;
        assert_eq!(whoami(&story.member.front).await["bootId"], boot, "{failpoint}: the same process");
        told(failpoint, begun);
    }
    story.end().await;
}

#[tokio::test]
async fn an_agent_killed_while_it_ends_a_frozen_cell_leaves_none_paused() {
    let mut story = Story::begin(Rest::Freeze).await;
    for failpoint in KILLED_FROZEN.iter() {
        let begun = Instant::now();
        whoami(&story.member.front).await;
        story.rests().await;
        story.arm(failpoint).await;
        story.world.agent_is_connected().await;
        let api = story.world.api.clone();
        let mut ordering = JoinSet::new();
        // Its answer dies with the agent.
        ordering.spawn(async move { api.post("/v1/cells/anna/sleep", json!({})).await });
        story.revive().await;
        story.world.agent_is_connected().await;
        // An order that was under way is given again: the one who gave it was not told that it was carried out.
        eventually("the order is carried out", BOUND, async || {
            let again = story.world.api.post("/v1/cells/anna/sleep", json!({})).await;
            (again.status == 200).then_some(())
        })
        .await;
        story.world.container_is(&story.member.cell, "exited").await;
        story.nothing_is_doubled(&format!("after {failpoint}")).await;
        story.truth_holds(&format!("after {failpoint}")).await;
        told(failpoint, begun);
    }
    story.end().await;
}

#[tokio::test]
async fn an_agent_that_comes_back_does_not_suspend_a_cell_that_runs() {
    let mut story = Story::begin(Rest::Stop).await;
    // The journal knows of a suspension, of a process that has ended since.
    story.rests().await;
    // And of one whose process goes on, because it had something to do.
    story.member.front.post("/control", r#"{"busy":["embedded-run"]}"#).await.ok(200);
    eventually("it was asked, and is busy", BOUND, async || {
        story.world.status("anna").await["last_refusal"].to_string().contains("embedded-run").then_some(())
    })
    .await;
    story.world.agent.kill9();
    story.member.front.post("/control", r#"{"busy":null}"#).await.ok(200);
    let before = whoami(&story.member.front).await["prepares"].clone();
    story.world.agent.spawn().await;
    eventually("the agent has taken up what runs", BOUND, async || {
        let counted = story.world.metrics(&story.world.agent).await;
        (counted.value("berth_agent_cells{kind=\"running\"}") == 1.0).then_some(())
    })
    .await;
    // Asked at once it would refuse whoever comes through the door, which is open.
    assert_eq!(whoami(&story.member.front).await["prepares"], before);
    story.truth_holds("after an agent that came back").await;
    story.end().await;
}

#[tokio::test]
async fn an_agent_that_is_asked_to_stop_does_not_wait_for_a_push() {
    let mut story = Story::begin(Rest::Freeze).await;
    story.rests().await;
    // The other one's at the start, which would take longer than the agent may.
    story.arm("docker:push:sent=delay:60000").await;
    story.world.agent_is_connected().await;
    let status = story.world.agent.term().await;
    assert!(status.success(), "it ended with {status}");
    story.world.agent.without_env(FAILPOINT).spawn().await;
    story.truth_holds("after a push that was cut off").await;
    story.end().await;
}

#[tokio::test]
async fn an_agent_killed_while_cells_wait_to_be_thawed_thaws_them_all() {
    let mut world = World::start(Options::default()).await;
    let mut members = vec![];
    for slug in ["anna", "berta", "carla"] {
        let member = world.create_running(slug, Rest::Freeze, SOON).await;
        assert_eq!(member.front.post("/control", r#"{"no_rate_limit":true}"#).await.status, 200);
        members.push(member);
    }
    for failpoint in THAWED_TOGETHER.iter() {
        let begun = Instant::now();
        let frozen = async |world: &World| {
            eventually("all cells are frozen", BOUND, async || {
                let counted = world.metrics(&world.agent).await;
                (counted.value("berth_agent_cells{kind=\"frozen\"}") == 3.0).then_some(())
            })
            .await;
        };
        frozen(&world).await;
        world.agent.kill9();
        world.agent.with_env(FAILPOINT, failpoint).spawn().await;
        world.door_is_connected().await;
        let asking: Vec<_> = members.iter().map(|member| ask(&member.front)).collect();
        world.agent.wait_killed(BOUND).await;
        world.agent.without_env(FAILPOINT).spawn().await;
        for one in asking {
            answered(one, failpoint).await;
        }
        told(failpoint, begun);
    }
    for member in &members {
        world.container_is(&member.cell, "paused").await;
    }
    world.agent_is_connected().await;
    world.end(&[]).await;
}

#[tokio::test]
async fn an_agent_killed_while_a_new_user_gets_a_cell_makes_one_and_runs_it() {
    let mut world = World::start(Options::default()).await;
    let docker = world.engine.record();
    for (number, failpoint) in NEW.iter().enumerate() {
        let begun = Instant::now();
        let slug = format!("new-{number}");
        world.agent.kill9();
        world.agent.with_env(FAILPOINT, failpoint).spawn().await;
        world.agent_is_connected().await;
        let member = world.create(&slug, Rest::Stop, SOON).await;
        world.agent.wait_killed(BOUND).await;
        world.agent.without_env(FAILPOINT).spawn().await;
        // It is new, so it comes up although nobody asks; then it has nothing to do.
        world.container_is(&member.cell, "exited").await;
        eventually("the new cell was started", BOUND, async || {
            (docker.count(&member.cell, "start").await >= 1).then_some(())
        })
        .await;
        assert_eq!(whoami(&member.front).await["uid"], whoami(&member.front).await["gid"]);
        world.container_is(&member.cell, "exited").await;
        assert_eq!(docker.count(&member.cell, "create").await, 1, "{failpoint}");
        told(failpoint, begun);
    }
    let all = world.engine.containers().await;
    assert_eq!(all.len(), NEW.iter().count(), "{all:?}");
    world.end(&[]).await;
}

#[tokio::test]
async fn an_agent_killed_while_a_user_is_removed_removes_everything_all_the_same() {
    let mut world = World::start(Options::default()).await;
    for (number, failpoint) in REMOVED.iter().enumerate() {
        let begun = Instant::now();
        let slug = format!("gone-{number}");
        let member = world.create_running(&slug, Rest::Stop, Duration::from_secs(3600)).await;
        world.agent.kill9();
        world.agent.with_env(FAILPOINT, failpoint).spawn().await;
        world.agent_is_connected().await;
        world.cell_is(&slug, "running").await;
        assert_eq!(world.api.delete(&format!("/v1/users/{slug}")).await.status, 204);
        world.agent.wait_killed(BOUND).await;
        world.agent.without_env(FAILPOINT).spawn().await;
        world.cell_leaves_nothing(&member.cell).await;
        eventually("nobody is let in", BOUND, async || {
            (member.front.get("/").await.status == 401).then_some(())
        })
        .await;
        told(failpoint, begun);
    }
    assert_eq!(world.engine.containers().await, []);
    world.agent_is_connected().await;
    world.end(&[]).await;
}
