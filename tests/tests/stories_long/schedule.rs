//! A job due while its cell is stopped: a stop is worth it only where minutes lie before the job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use serde_json::json;

use crate::SOON;

/// Longer than the boot that is reckoned with at first and the shortest useful stop together.
const LATER: Duration = Duration::from_secs(160);
/// Bob's job is so much behind Anna's. A cell is woken the boot that is reckoned with and its margin ahead, 25 s: Bob's still
/// rests when Anna's job has run.
const BEHIND: Duration = Duration::from_secs(45);

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test]
async fn a_job_due_while_its_cell_is_stopped_runs_in_time_and_once_and_one_due_in_an_outage_runs_after_it() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let bob = world.create_running("bob", Rest::Stop, SOON).await;
    bob.front.post("/control", json!({ "missed_ms": 2000 }).to_string()).await.ok(200);
    let at = |span: Duration| wall_ms() + u64::try_from(span.as_millis()).unwrap();
    let (due, bobs) = (at(LATER), at(LATER + BEHIND));
    for (member, at) in [(&anna, due), (&bob, bobs)] {
        let job = json!({ "name": "ring", "schedule": { "kind": "at", "atMs": at } });
        let request = member.front.request("POST", "/cron");
        member.front.send(request, job.to_string()).await.unwrap().ok(200);
        world.cell_is(&member.slug, "stopped").await;
    }
    eventually("anna is woken for the job", LATER, async || {
        (world.status("anna").await["last_wake"]["cause"] == "schedule").then_some(())
    })
    .await;
    assert!(wall_ms() < due, "woken too late");
    world.container_is(&bob.cell, "exited").await;
    eventually("anna's job has run", BOUND, async || (wall_ms() > due + 500).then_some(())).await;
    world.agent.kill9();
    world.container_is(&bob.cell, "exited").await;
    eventually("bob's job is due", BEHIND + BOUND, async || (wall_ms() > bobs + 2_000).then_some(())).await;
    world.agent.spawn().await;
    let back = wall_ms();
    eventually("bob is woken at once", BOUND, async || {
        (world.status("bob").await["last_wake"]["cause"] == "schedule").then_some(())
    })
    .await;
    world.door_is_connected().await;
    for (member, due, late_ms) in [(&anna, due, 30_000), (&bob, back, 30_000)] {
        let began = eventually("the job has run", BOUND, async || {
            let shown = member.front.get("/cron").await.ok(200);
            shown["runs"].get(0).and_then(|run| run["beganMs"].as_u64())
        })
        .await;
        assert!(began < due + late_ms, "{}: {} ms late", member.slug, began - due);
        let shown = member.front.get("/cron").await.ok(200);
        assert_eq!(shown["runs"].as_array().map(Vec::len), Some(1), "{shown}");
    }
    // The list of before was moved by the start; nothing is due any more, and anna sleeps.
    world.cell_is("anna", "stopped").await;
    world.end(&[]).await;
}
