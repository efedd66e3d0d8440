//! The real OpenClaw's own jobs, due while its cell is frozen, stopped, and while the node agent is dead: each runs, once, and
//! in time, by the gateway's own word on when it was due and when it began.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a panic in a test is its report, and its output is read by people"
)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_shared::time::UnixMs;
use berth_tests::world::claw::{IMAGE, START, rpc, try_rpc};
use berth_tests::world::model::Model;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, World};
use serde_json::{Value, json};

/// Quiet time of the cells.
const IDLE_MS: u64 = 5_000;

/// More than two real gateways have that are frozen.
const SWAP_MIB: u64 = 4096;

/// Due so much later that a freeze before it is worth it.
const FROZEN_FOR: Duration = Duration::from_secs(75);

/// Due so much later that a stop before it is, beside two boots: the shortest useful stop, a margin, and falling asleep.
const STOPPED_FOR: Duration = Duration::from_secs(150);

/// Due in the outage, so much and a boot behind the job of the stopped cell: when that has run, however late it may be.
const BEHIND: Duration = Duration::from_secs(50);

/// The shortest boot that is reckoned with before some were seen.
const BOOT_MIN: Duration = Duration::from_secs(20);

/// How late a job may begin whose cell slept, in milliseconds.
const LATE_MS: u64 = 30_000;

/// And behind an outage of the agent: the gateway runs what it missed two minutes after its start, one after the other.
const LATE_AFTER_OUTAGE_MS: u64 = 150_000;
/// See [`LATE_AFTER_OUTAGE_MS`]: so much more for each job.
const LATE_EACH_MS: u64 = 5_000;

/// Longer than a job may be late behind an outage, and runs.
const RUN: Duration = Duration::from_secs(240);

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A cell with a real gateway.
struct Claw {
    slug: &'static str,
    cell: String,
    /// How long its first start took.
    boot: Duration,
}

/// A job of a gateway, and when it is due by that gateway's word.
struct Job {
    id: String,
    due: u64,
}

impl Claw {
    async fn begin(world: &World, slug: &'static str, rest: &str) -> Self {
        let begun = Instant::now();
        let user =
            json!({ "slug": slug, "image": IMAGE, "rest": rest, "idle_after": IDLE_MS, "disk": "1GiB" });
        let cell = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
        let claw = Self { slug, cell, boot: Duration::ZERO };
        claw.is(world, "running").await;
        // Until all have their jobs.
        let held = world.api.post(&format!("/v1/cells/{slug}/hold"), json!({ "for": 3_600_000 })).await;
        assert_eq!(held.status, 200, "{}", held.text());
        Self { boot: begun.elapsed().max(BOOT_MIN), ..claw }
    }

    async fn is(&self, world: &World, state: &str) {
        eventually(&format!("{} is {state}", self.slug), START, async || {
            let status = world.status(self.slug).await;
            assert_ne!(status["state"], "failed", "{status}");
            (status["state"] == state).then_some(())
        })
        .await;
    }

    async fn rpc(&self, world: &World, method: &str, params: Value) -> Value {
        rpc(world, self.slug, &self.cell, method, params).await
    }

    /// Its agent is to do something then, once; the model is asked by it.
    async fn adds(&self, world: &World, at: u64) -> Job {
        let job = json!({
            "name": format!("ring at {at}"), "schedule": { "kind": "at", "at": UnixMs(at).to_string() },
            "deleteAfterRun": false, "sessionTarget": "isolated", "wakeMode": "now",
            "payload": { "kind": "agentTurn", "message": "ring" }, "delivery": { "mode": "none" },
        });
        let added = self.rpc(world, "cron.add", job).await;
        let id = added["id"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned();
        let shown = self.rpc(world, "cron.get", json!({ "id": id })).await;
        let due = shown["state"]["nextRunAtMs"].as_u64().unwrap_or_else(|| panic!("{shown}"));
        Job { id, due }
    }

    /// When the job began, each time, by the gateway's own history of finished runs; `None` while the gateway starts.
    async fn runs(&self, world: &World, job: &Job) -> Option<Vec<u64>> {
        let asked = json!({ "scope": "job", "id": job.id, "limit": 10 });
        let shown = try_rpc(world, self.slug, &self.cell, "cron.runs", asked).await?;
        let entries = shown["entries"].as_array().unwrap_or_else(|| panic!("{shown}"));
        let began = entries.iter().map(|entry| {
            assert_eq!(entry["status"], "ok", "{entry}");
            entry["runAtMs"].as_u64().unwrap_or_else(|| panic!("{entry}"))
        });
        Some(began.collect())
    }

    /// Waits until it is up, by Docker's word alone: nobody else may be there to tell.
    async fn is_woken(&self, world: &World, bound: Duration) {
        eventually(&format!("{} is woken", self.slug), bound, async || {
            let containers = world.engine.containers_of(&self.cell).await;
            containers.first().is_some_and(|one| one.state == "running").then_some(())
        })
        .await;
    }

    /// Waits for the run of each of its jobs, and fails where one began before it was due or too late: behind the time at
    /// which it was due, or behind the end of an outage.
    async fn runs_in_time(&self, world: &World, jobs: &[Job], outage_ended: Option<u64>) {
        for (job, number) in jobs.iter().zip(1..) {
            let began = eventually(&format!("a job of `{}` has run", self.slug), RUN, async || {
                let up = world.engine.containers_of(&self.cell).await;
                assert_ne!(up[0].state, "paused", "`{}` was put to rest before its job had run", self.slug);
                self.runs(world, job).await?.first().copied()
            })
            .await;
            assert!(began >= job.due, "`{}`: {} ms too early", self.slug, job.due - began);
            let late = began.saturating_sub(outage_ended.unwrap_or(job.due));
            let late_max = outage_ended.map_or(LATE_MS, |_| LATE_AFTER_OUTAGE_MS + number * LATE_EACH_MS);
            eprintln!(
                "`{}`: began {} ms behind the time at which it was due{}",
                self.slug,
                began - job.due,
                outage_ended.map(|_| format!(", {late} ms behind the end of the outage")).unwrap_or_default(),
            );
            assert!(late <= late_max, "`{}`: {late} ms late", self.slug);
        }
    }
}

/// Waits until it is so late.
async fn it_is(moment: u64) {
    let left = Duration::from_millis(moment.saturating_sub(wall_ms()));
    eventually("it is later", left + BOUND, async || (wall_ms() >= moment).then_some(())).await;
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_real_gateways_due_while_frozen_stopped_or_in_an_outage_run_in_time_and_once() {
    let model = Model::start().await;
    let agent = model.settings();
    // It measures, and a start that takes longer than another is a job that is late.
    let options = Options { alone: true, agent, swap_mib: Some(SWAP_MIB), ..Options::default() };
    let mut world = World::start(options).await;
    world.engine.need_image(IMAGE, "scripts/image openclaw").await;
    // One behind the other: what a start takes is learned by the agent.
    let frozen = Claw::begin(&world, "frozen", "freeze").await;
    let stopped = Claw::begin(&world, "stopped", "stop").await;
    let missed = Claw::begin(&world, "missed", "stop").await;
    let boot = stopped.boot.max(missed.boot);
    eprintln!("a start is reckoned with {boot:?}");

    let in_stop_at = wall_ms() + ms(STOPPED_FOR + 2 * boot);
    let in_outage_at = in_stop_at + ms(BEHIND + boot);
    let in_freeze = [frozen.adds(&world, wall_ms() + ms(FROZEN_FOR)).await];
    let in_stop = [stopped.adds(&world, in_stop_at).await];
    let in_freeze_and_outage = [frozen.adds(&world, in_outage_at).await];
    let mut in_stop_and_outage = vec![];
    for second in 0..3 {
        in_stop_and_outage.push(missed.adds(&world, in_outage_at + second * 1000).await);
    }

    for claw in [&frozen, &stopped, &missed] {
        world.api.delete(&format!("/v1/cells/{}/hold", claw.slug)).await.ok(200);
    }

    // Nobody but the node is needed for the first ones.
    frozen.is(&world, "frozen").await;
    stopped.is(&world, "stopped").await;
    missed.is(&world, "stopped").await;
    assert!(wall_ms() + 10_000 < in_freeze[0].due, "they fell asleep too late for this story");
    world.coordinator.kill9();
    frozen.is_woken(&world, FROZEN_FOR).await;
    assert!(wall_ms() < in_freeze[0].due, "woken too late");
    frozen.runs_in_time(&world, &in_freeze, None).await;
    stopped.is_woken(&world, STOPPED_FOR + 2 * boot).await;
    assert!(wall_ms() < in_stop[0].due, "woken too late");
    it_is(in_stop[0].due).await;
    stopped.runs_in_time(&world, &in_stop, None).await;

    // And now not even the agent is there.
    world.container_is(&missed.cell, "exited").await;
    world.container_is(&frozen.cell, "paused").await;
    world.agent.kill9();
    let last = in_stop_and_outage.last().unwrap().due;
    assert!(wall_ms() < in_freeze_and_outage[0].due, "they slept too late for this story");
    it_is(last + 2_000).await;
    world.container_is(&missed.cell, "exited").await;
    world.container_is(&frozen.cell, "paused").await;
    let back = wall_ms();
    world.agent.spawn().await;
    world.coordinator.spawn().await;
    frozen.is_woken(&world, BOUND).await;
    frozen.runs_in_time(&world, &in_freeze_and_outage, Some(back)).await;
    missed.is_woken(&world, BOUND).await;
    missed.runs_in_time(&world, &in_stop_and_outage, Some(back)).await;

    // None runs again, whatever wakes its cell.
    world.agent_is_connected().await;
    let all = [
        (&frozen, in_freeze.iter().chain(&in_freeze_and_outage).collect::<Vec<_>>()),
        (&stopped, in_stop.iter().collect()),
        (&missed, in_stop_and_outage.iter().collect()),
    ];
    for (claw, jobs) in all {
        let woken = world.api.post(&format!("/v1/cells/{}/wake", claw.slug), json!({})).await;
        assert_eq!(woken.status, 200, "{}", woken.text());
        for job in jobs {
            let runs = claw.runs(&world, job).await.expect("it is up");
            assert_eq!(runs.len(), 1, "a job of `{}` that was due at {} ran at {runs:?}", claw.slug, job.due);
        }
    }
    let (begun, finished) = (model.calls("begun").await, model.calls("finished").await);
    assert_eq!((begun, finished), (6, 6), "the model was asked once by each");
    world.end(&[]).await;
}
