//! The real OpenClaw in a cell, with a model of our own: work is never cut, sessions survive every rest, and what Berth
//! owns of the configuration stays Berth's.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

use std::fs;

use berth_shared::time::{Millis, UnixMs};
use berth_tests::world::claw::{IMAGE, START, leave_work_behind, rpc};
use berth_tests::world::front::Front;
use berth_tests::world::model::Model;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, World};
use serde_json::{Value, json};

async fn say(front: &Front, text: &str) -> String {
    let body = json!({
        "model": "openclaw/default", "user": "story", "messages": [{ "role": "user", "content": text }],
    });
    // A gateway that has to start on a busy machine takes longer than a request is held; then nothing was sent to it.
    let answer = eventually("the gateway answers", START, async || {
        let request =
            front.request("POST", "/v1/chat/completions").header("content-type", "application/json");
        let reply = front.send(request, body.to_string()).await.unwrap();
        let waking = reply.status == 503 && reply.json()["code"] == "cell_waking";
        (!waking).then(|| reply.ok(200))
    })
    .await;
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

async fn is(world: &World, state: &str) {
    eventually(&format!("the cell is {state}"), START, async || {
        let status = world.status("claw").await;
        assert_ne!(status["state"], "failed", "{status}");
        (status["state"] == state).then_some(())
    })
    .await;
}

/// *Prepare* is answered `busy` by the gateway itself while no request is open; its blockers are shown; and when the work
/// is done it may rest.
async fn its_own_work_keeps_it_awake(world: &World, model: &Model, front: &Front) {
    leave_work_behind(model, front, "slow:30000").await;
    eventually("nothing is open at the front door", BOUND, async || {
        let counted = world.metrics(&world.ingress).await;
        (counted.sum("berth_ingress_open_sockets") == 0.0).then_some(())
    })
    .await;
    // What it burns is looked at before it is asked, and a turn's beginning can be seen there on a busy machine.
    let blockers = eventually("the gateway names its blockers, and the status them", BOUND, async || {
        let refused = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
        let told = refused.json();
        assert_eq!((refused.status, &told["code"]), (409, &json!("cell_busy")), "{told}");
        assert!(
            model.calls("begun").await > model.calls("finished").await,
            "the work was over too soon to tell"
        );
        let refusal = world.status("claw").await["last_refusal"]["reason"].clone();
        let blockers = refusal["detail"].as_str().unwrap_or_default().to_owned();
        let both = refusal["reason"] == "workload" && told["detail"].as_str()?.contains(&blockers);
        both.then_some(blockers)
    })
    .await;
    assert!(blockers.contains("embedded-run"), "{blockers}");
    let why = world.api.cli(&["cell", "why", "claw"]).await;
    assert!(why.code == 0 && why.out.contains(&blockers), "{blockers}: {why:?}");

    eventually("its work is done, and it may rest", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
        (asked.status == 200).then_some(())
    })
    .await;
    assert_eq!(model.calls("begun").await, model.calls("finished").await, "put to rest in the middle of it");
    assert_eq!(model.calls("cut").await, 0);
    is(world, "frozen").await;
}

/// Due times are told as moments: whatever zone a job names, and whether that has its summer time then.
async fn jobs_of_other_zones_are_told_as_moments(world: &World, cell: &str) {
    // The minute is not a full hour's, which the gateway spreads.
    for (day, zone, moment) in [
        ("15 1", "Europe/Berlin", "-01-15T11:17:00"),
        ("15 7", "Europe/Berlin", "-07-15T10:17:00"),
        ("15 1", "America/New_York", "-01-15T17:17:00"),
        ("15 7", "America/New_York", "-07-15T16:17:00"),
        ("15 7", "Asia/Kolkata", "-07-15T06:47:00"),
    ] {
        let job = json!({
            "name": zone, "schedule": { "kind": "cron", "expr": format!("17 12 {day} *"), "tz": zone },
            "sessionTarget": "main", "wakeMode": "now", "payload": { "kind": "systemEvent", "text": "ring" },
        });
        let added = rpc(world, "claw", cell, "cron.add", job).await;
        let told = eventually("the agent has heard of it", BOUND, async || {
            let shown = world.api.get("/v1/cells/claw").await.ok(200);
            serde_json::from_value::<UnixMs>(shown["sleep"]["wakes_at"].clone()).ok()
        })
        .await;
        let listed = rpc(world, "claw", cell, "cron.list", json!({ "limit": 50 })).await;
        let ours = listed["jobs"].as_array().unwrap().iter().find(|job| job["id"] == added["id"]).unwrap();
        let due = UnixMs(ours["state"]["nextRunAtMs"].as_u64().unwrap_or_else(|| panic!("{ours}")));
        assert!(due.to_string()[4..].starts_with(moment), "{zone}: {due}");
        let ahead = due.since(told);
        assert!(told < due && ahead < Millis::minutes(5), "{zone}: the cell is woken at {told} for {due}");
        rpc(world, "claw", cell, "cron.remove", json!({ "id": added["id"] })).await;
        no_job_is_told(world).await;
    }
}

/// The agent has heard that no job is left, and the coordinator from it, which is later.
async fn no_job_is_told(world: &World) {
    eventually("that it is gone is told", BOUND, async || {
        let shown = world.api.get("/v1/cells/claw").await.ok(200);
        shown["sleep"]["wakes_at"].is_null().then_some(())
    })
    .await;
}

/// The gateway tells its jobs as soon as they are there: the plugin is loaded, it reaches the agent, and what it tells
/// keeps the cell up.
async fn its_jobs_are_told(world: &World, cell: &str) {
    let taken = async || {
        let counted = world.metrics(&world.agent).await;
        counted.value("berth_agent_schedule_lists_total{kind=\"taken\"}")
    };
    let before = eventually("the list at the start is taken", START, async || {
        Some(taken().await).filter(|count| *count > 0.0)
    })
    .await;
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = UnixMs(u64::try_from(wall.as_millis()).unwrap() + 90_000);
    let job = json!({
        "name": "ring", "schedule": { "kind": "at", "at": at.to_string() }, "sessionTarget": "main",
        "wakeMode": "now", "payload": { "kind": "systemEvent", "text": "ring" },
    });
    let added = rpc(world, "claw", cell, "cron.add", job).await;
    eventually("the new job is told", BOUND, async || (taken().await > before).then_some(())).await;
    let refused = world.api.post("/v1/cells/claw/sleep", json!({})).await;
    let told = refused.json();
    assert_eq!((refused.status, &told["code"]), (409, &json!("cell_busy")), "{told}");
    assert!(told["detail"].as_str().unwrap().contains(&format!("is due at {at}")), "{told}");
    let status = rpc(world, "claw", cell, "cron.status", json!({})).await;
    assert_eq!(status["nextWakeAtMs"], at.0, "{status}");
    let before = taken().await;
    rpc(world, "claw", cell, "cron.remove", json!({ "id": added["id"] })).await;
    eventually("that it is gone is told", BOUND, async || (taken().await > before).then_some(())).await;
    no_job_is_told(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_gateway_sleeps_only_when_it_has_nothing_to_do_and_remembers_everything() {
    let model = Model::start().await;
    let mut world = World::start(Options { agent: model.settings(), ..Options::default() }).await;
    world.engine.need_image(IMAGE, "scripts/image openclaw").await;
    let user =
        json!({ "slug": "claw", "image": IMAGE, "rest": "stop", "idle_after": 3_600_000, "disk": "1GiB" });
    let cell = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
    let token = world.api.post("/v1/users/claw/bearers", json!({})).await.ok(201);
    let front = world.front("claw").bearer(token["token"].as_str().unwrap());
    is(&world, "running").await;
    assert!(say(&front, "the word is heliotrope").await.contains("heliotrope"));
    its_jobs_are_told(&world, &cell).await;
    jobs_of_other_zones_are_told_as_moments(&world, &cell).await;

    // A turn under way: the gateway itself says that it is busy, and it is not put to rest in any way.
    let slow = {
        let front = front.clone();
        async move { say(&front, "slow:15000").await }
    };
    let refusal = async {
        eventually("the model is at work", START, async || {
            (model.calls("begun").await > model.calls("finished").await).then_some(())
        })
        .await;
        for freeze in [true, false] {
            let refused = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": freeze })).await;
            assert_eq!(
                (refused.status, &refused.json()["code"]),
                (409, &json!("cell_busy")),
                "{}",
                refused.text()
            );
        }
        is(&world, "running").await;
    };
    let (answer, ()) = tokio::join!(slow, refusal);
    assert!(answer.contains("heliotrope"), "{answer}");
    assert_eq!(model.calls("cut").await, 0);

    its_own_work_keeps_it_awake(&world, &model, &front).await;

    // Frozen and back.
    eventually("nothing is under way any more", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
        (asked.status == 200).then_some(())
    })
    .await;
    world.container_is(&cell, "paused").await;
    assert!(say(&front, "after the freeze").await.contains("heliotrope"));

    // Stopped, the agent killed meanwhile, its user's settings turned against Berth, and back.
    eventually("it can be stopped", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({})).await;
        (asked.status == 200).then_some(())
    })
    .await;
    world.container_is(&cell, "exited").await;
    world.agent.kill9();
    let config = world.dir().join(format!("agent/cells/{cell}/data/openclaw.json"));
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["gateway"]["auth"] = json!({ "mode": "none" });
    settings["gateway"]["terminal"]["enabled"] = json!(true);
    fs::write(&config, settings.to_string()).unwrap();
    world.agent.spawn().await;
    world.door_is_connected().await;
    assert!(say(&front, "after the stop").await.contains("heliotrope"));
    let settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(settings["gateway"]["auth"]["mode"], "trusted-proxy");
    assert_eq!(settings["gateway"]["terminal"]["enabled"], false);
    assert!(world.agent.log().contains("owned settings were changed"));
    assert_eq!(world.engine.containers_of(&cell).await.len(), 1);
    assert_eq!(front.stranger().get("/v1/models").await.status, 401);
    assert_eq!(front.get("/api/v1/admin/rpc").await.status, 404, "the admin RPC is not offered from outside");
    world.end(&[]).await;
}
