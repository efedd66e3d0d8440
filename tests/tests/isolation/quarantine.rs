//! An operator cuts a cell off while it runs, is talked to, and talks to the internet.

use std::time::Duration;

use berth_tests::lab::shell::say;
use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, Rest, World};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::attempts::Attempts;

const LONG: Duration = Duration::from_secs(600);

/// A program that will not end is given ten seconds.
const STOPPED_WITHIN: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_quarantined_cell_is_stopped_kept_and_cut_off_until_it_is_released() {
    let mut world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, LONG).await;
    let bert = world.create_running("bert", Rest::Stop, LONG).await;
    let attempts = Attempts::prepare(&world, &anna, &bert).await;
    assert!(attempts.internet_works(&anna).await);
    anna.front.post("/state/mine", "kept").await.ok(200);
    // It does not end when it is told to, and somebody holds a socket open.
    anna.front.post("/control", json!({ "ignore_term": true }).to_string()).await.ok(200);
    let mut socket = anna.front.websocket("/ws").await.unwrap();

    let cut = world.api.cli(&["cell", "quarantine", "anna", "--reason", "scans the internet"]).await;
    assert_eq!(cut.code, 0, "{cut:?}");
    assert!(cut.out.contains("scans the internet"), "{cut:?}");
    eventually("the cell is stopped", STOPPED_WITHIN, async || {
        (world.status("anna").await["state"] == "stopped").then_some(())
    })
    .await;
    within("the open socket ends", BOUND, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    let refused = anna.front.get("/whoami").await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(refused.json()["code"], "quarantined");
    let woken = world.api.post("/v1/cells/anna/wake", json!({})).await;
    assert_eq!(woken.json()["code"], "quarantined");

    // Killed and started again, the agent knows, and so does the coordinator.
    world.agent.kill9();
    world.agent.spawn().await;
    world.coordinator.restart().await;
    world.agent_is_connected().await;
    let shown: Value = world.api.get("/v1/cells/anna").await.ok(200);
    assert_eq!(shown["quarantine"]["reason"], "scans the internet");
    assert_eq!(anna.front.get("/whoami").await.status, 403);
    bert.front.get("/whoami").await.ok(200);
    let why = world.api.cli(&["cell", "why", "anna"]).await;
    assert!(why.out.contains("quarantined by an operator: scans the internet"), "{why:?}");

    let released = world.api.cli(&["cell", "release", "anna"]).await;
    assert_eq!(released.code, 0, "{released:?}");
    world.cell_is("anna", "running").await;
    let back = anna.front.get("/state/mine").await;
    say(&format!("  released: {} {}", back.status, back.text()));
    assert_eq!((back.status, back.text().as_str()), (200, "kept"));
    assert!(attempts.internet_works(&anna).await);
    world.end(&[]).await;
}
