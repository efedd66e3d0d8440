//! Cells with jobs of their own: due while they sleep, while the agent is dead, not told, and over channels that dial out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::{Value, json};

use crate::SOON;

/// Due so much later that a freeze before it is worth it.
const LATER: Duration = Duration::from_secs(45);

/// How late a job may be whose cell slept.
const LATE_MS: u64 = 30_000;

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A job that runs once; returns when that is due.
async fn add_job(member: &Member, name: &str, after: Duration) -> u64 {
    let at = wall_ms() + u64::try_from(after.as_millis()).unwrap();
    let job = json!({ "name": name, "schedule": { "kind": "at", "atMs": at } });
    let request = member.front.request("POST", "/cron");
    member.front.send(request, job.to_string()).await.unwrap().ok(200);
    at
}

/// How often a job has run, and when first.
async fn runs(member: &Member, name: &str) -> Vec<u64> {
    let shown = member.front.get("/cron").await.ok(200);
    let runs = shown["runs"].as_array().unwrap().iter().filter(|run| run["name"] == name);
    runs.map(|run| run["beganMs"].as_u64().unwrap()).collect()
}

async fn refused_for(world: &World, slug: &str, kind: &str) -> Value {
    eventually(&format!("{slug} stays awake for {kind}"), BOUND, async || {
        let reason = world.status(slug).await["last_refusal"]["reason"].clone();
        (reason["reason"] == kind).then_some(reason)
    })
    .await
}

#[tokio::test]
async fn a_job_due_while_its_cell_is_frozen_or_its_agent_dead_runs_in_time_and_once() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let due = add_job(&anna, "ring", LATER).await;
    let bobs = add_job(&bob, "ring", LATER + Duration::from_secs(20)).await;
    world.cell_is("anna", "frozen").await;
    world.cell_is("bob", "frozen").await;
    assert!(wall_ms() < due - 10_000, "they fell asleep too late for this story");

    // Woken before the time, and asleep again a moment after it; nobody but her node is needed for that.
    world.coordinator.kill9();
    eventually("anna is woken for the job", LATER, async || {
        let counted = world.metrics(&world.agent).await;
        (counted.value("berth_agent_wakes_total{kind=\"schedule\"}") == 1.0).then_some(())
    })
    .await;
    assert!(wall_ms() < due, "woken too late");
    eventually("anna's job is due", LATER, async || (wall_ms() > due + 500).then_some(())).await;
    world.coordinator.spawn().await;
    world.agent_is_connected().await;
    eventually("anna sleeps again", BOUND, async || {
        (wall_ms() > due && world.status("anna").await["state"] == "frozen").then_some(())
    })
    .await;

    // Bob's is due while nobody is there to wake him.
    world.container_is(&bob.cell, "paused").await;
    world.agent.kill9();
    eventually("bob's job is due", BOUND, async || (wall_ms() > bobs + 2_000).then_some(())).await;
    world.container_is(&bob.cell, "paused").await;
    world.agent.spawn().await;
    eventually("bob is woken at once", BOUND, async || {
        (world.status("bob").await["last_wake"]["cause"] == "schedule").then_some(())
    })
    .await;
    world.door_is_connected().await;
    eventually("bob's job has run", BOUND, async || {
        runs(&bob, "ring").await.first().map(|began| assert!(*began >= bobs))
    })
    .await;
    assert_eq!(runs(&bob, "ring").await.len(), 1);

    let began = runs(&anna, "ring").await;
    assert_eq!(began.len(), 1, "{began:?}");
    assert!(began[0] >= due && began[0] < due + LATE_MS, "{} ms late", began[0] - due);
    eprintln!("    frozen: {} ms behind the time", began[0] - due);
    world.end(&[]).await;
}

#[tokio::test]
async fn a_cell_does_not_sleep_over_a_job_that_is_near_nor_over_one_that_it_never_told_nor_over_channels() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let carl = world.create_running("carl", Rest::Freeze, SOON).await;

    let due = add_job(&anna, "near", Duration::from_secs(20)).await;
    let reason = refused_for(&world, "anna", "schedule-due").await;
    assert_eq!(reason["count"], 1);
    world.container_is(&anna.cell, "running").await;

    // Its plugin says nothing; the scheduler itself is asked before the rest.
    bob.front.post("/control", json!({ "no_projection": true }).to_string()).await.ok(200);
    // A refused rest is tried again after a quarter of a minute.
    let hidden = add_job(&bob, "hidden", LATER * 2).await;
    refused_for(&world, "bob", "schedule-unclear").await;
    eventually("bob sleeps once his list was asked for", BOUND, async || {
        (world.status("bob").await["state"] == "frozen").then_some(())
    })
    .await;
    assert!(wall_ms() < hidden, "he was kept up for it");

    let config = world.dir().join(format!("agent/cells/{}/data/openclaw.json", carl.cell));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut settings: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        change(&mut settings);
        std::fs::write(&config, settings.to_string()).unwrap();
    };
    let with_channels = |channels: Value| with(&|settings| settings["channels"] = channels.clone());
    let with_own = |key: &str, value: Value| {
        with(&|all| all["plugins"]["entries"]["wake-projection"]["config"][key] = value.clone());
    };
    // Its owner accepts that nobody wakes it for a channel, and takes that back.
    with_own("dialOutMaySleep", json!(true));
    with_channels(json!({ "whatsapp": {}, "googlechat": {} }));
    // Awake again where it had fallen asleep before.
    carl.front.post("/echo/raw", "x").await;
    world.container_is(&carl.cell, "paused").await;
    with_own("dialOutMaySleep", json!(false));
    carl.front.post("/echo/raw", "x").await;
    let reason = refused_for(&world, "carl", "dials-out").await;
    assert_eq!(reason["detail"], "whatsapp");
    with_channels(json!({ "googlechat": {} }));
    world.cell_is("carl", "frozen").await;
    with_own("stayAwake", json!(true));
    carl.front.post("/echo/raw", "x").await;
    let reason = refused_for(&world, "carl", "workload").await;
    assert_eq!(reason["detail"], "its owner wants it to stay awake");

    eventually("the near job has run and anna sleeps", BOUND, async || {
        (wall_ms() > due && world.status("anna").await["state"] == "frozen").then_some(())
    })
    .await;
    eventually("bob is woken for the job that was never told", LATER * 2, async || {
        (world.status("bob").await["last_wake"]["cause"] == "schedule").then_some(())
    })
    .await;
    eventually("it has run", BOUND, async || (runs(&bob, "hidden").await.len() == 1).then_some(())).await;
    assert_eq!(runs(&anna, "near").await.len(), 1);
    world.end(&[]).await;
}
