//! The real OpenClaw at work for a minute while nobody has anything open: a turn that was left behind, and one that its
//! own schedule began. It stays awake for as long, says why, and falls asleep by itself behind it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a panic in a test is its report, and its output is read by people"
)]

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use berth_shared::time::UnixMs;
use berth_tests::world::claw::{IMAGE, START, leave_work_behind, rpc};
use berth_tests::world::engine::Recorder;
use berth_tests::world::model::Model;
use berth_tests::world::wait::eventually;
use berth_tests::world::{Options, World};
use serde_json::{Value, json};

/// Quiet time of the cell: much shorter than its work.
const IDLE_MS: u64 = 10_000;

/// How long a turn of the model takes, in milliseconds.
const TURN_MS: u64 = 60_000;

/// More than one real gateway has.
const SWAP_MIB: u64 = 3072;

struct Claw {
    world: World,
    model: Model,
    cell: String,
    docker: Recorder,
}

impl Claw {
    async fn begin() -> (Self, berth_tests::world::front::Front) {
        let model = Model::start().await;
        let options = Options { agent: model.settings(), swap_mib: Some(SWAP_MIB), ..Options::default() };
        let world = World::start(options).await;
        world.engine.need_image(IMAGE, "scripts/image openclaw").await;
        let user = json!({ "slug": "claw", "image": IMAGE, "rest": "freeze", "idle_after": IDLE_MS, "disk": "1GiB" });
        let cell = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
        let token = world.api.post("/v1/users/claw/bearers", json!({})).await.ok(201);
        let front = world.front("claw").bearer(token["token"].as_str().unwrap());
        eventually("the cell runs", START, async || {
            (world.status("claw").await["state"] == "running").then_some(())
        })
        .await;
        let docker = world.engine.record();
        (Self { world, model, cell, docker }, front)
    }

    async fn is_at_work(&self) -> bool {
        self.model.calls("begun").await > self.model.calls("finished").await
    }

    /// Until the work is done nothing puts the cell to rest; gives all the reasons that were told meanwhile.
    async fn works(&self) -> BTreeSet<(String, String)> {
        let begun = Instant::now();
        let pauses = self.docker.count(&self.cell, "pause").await;
        let mut reasons = BTreeSet::new();
        let mut told = Value::Null;
        eventually("the work is done", START, async || {
            let containers = self.world.engine.containers_of(&self.cell).await;
            let still = self.is_at_work().await;
            // Looked at before: it may fall asleep as soon as it is done.
            assert!(
                !still || containers[0].state == "running",
                "cut after {:?}: {containers:?}",
                begun.elapsed()
            );
            let refusal = self.world.status("claw").await["last_refusal"].clone();
            if refusal != told && still {
                let word = |field: &str| refusal["reason"][field].as_str().unwrap_or_default().to_owned();
                eprintln!("{:>6} ms: {refusal}", begun.elapsed().as_millis());
                reasons.insert((word("reason"), word("detail")));
                told = refusal;
            }
            (!still).then_some(())
        })
        .await;
        assert_eq!(
            self.docker.count(&self.cell, "pause").await,
            pauses,
            "it was paused in the middle of its work"
        );
        assert_eq!(self.model.calls("cut").await, 0);
        eprintln!("worked for {:?} and was kept awake for {} reasons", begun.elapsed(), reasons.len());
        reasons
    }

    async fn falls_asleep(&self) {
        let begun = Instant::now();
        eventually("the cell falls asleep by itself", START, async || {
            (self.world.status("claw").await["state"] == "frozen").then_some(())
        })
        .await;
        eprintln!("asleep {:?} after the work was done", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_work_keeps_a_real_gateway_awake_and_then_it_sleeps() {
    let (claw, front) = Claw::begin().await;

    leave_work_behind(&claw.model, &front, &format!("slow:{TURN_MS}")).await;
    let reasons = claw.works().await;
    let told = reasons.iter().any(|(reason, detail)| reason == "workload" && detail.contains("embedded-run"));
    assert!(told, "nobody said that the gateway is at work: {reasons:?}");
    claw.falls_asleep().await;

    // The same by its own schedule, from its sleep.
    assert_eq!(front.get("/v1/models").await.status, 200);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = UnixMs(u64::try_from(wall.as_millis()).unwrap() + 20_000);
    let job = json!({
        "name": "report", "schedule": { "kind": "at", "at": at.to_string() }, "sessionTarget": "isolated",
        "wakeMode": "now", "payload": { "kind": "agentTurn", "message": format!("slow:{TURN_MS}") },
    });
    rpc(&claw.world, "claw", &claw.cell, "cron.add", job).await;
    eventually("the job runs", START, async || claw.is_at_work().await.then_some(())).await;
    let reasons = claw.works().await;
    assert!(!reasons.is_empty(), "nobody said why it stays awake");
    let right = |(reason, detail): &(String, String)| match reason.as_str() {
        "workload" => detail.contains("cron") || detail.contains("embedded-run"),
        "schedule-due" => true,
        _ => false,
    };
    assert!(reasons.iter().any(right), "{reasons:?}");
    claw.falls_asleep().await;
    assert_eq!(claw.model.calls("begun").await, claw.model.calls("finished").await);
    claw.world.end(&[]).await;
}
