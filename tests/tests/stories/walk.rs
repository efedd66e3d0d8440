//! The way of one user from creation to removal.

use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{NOT_IN_THIS_STORY, SOON, log_in, whoami};

#[tokio::test]
async fn a_cell_falls_asleep_wakes_with_its_data_and_leaves_nothing_when_its_user_is_removed() {
    let world = World::start(Options::default()).await;
    let docker = world.engine.record();
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let cell = anna.cell.as_str();
    let first = whoami(&anna.front).await;
    assert_eq!(anna.front.post("/state/colour", "heliotrope").await.status, 200);

    world.container_is(cell, "exited").await;
    world.cell_is("anna", "stopped").await;
    let stranger = anna.front.stranger();
    assert_eq!(stranger.get("/state/colour").await.status, 401);
    assert_eq!(world.front("nobody").get("/").await.status, 401);
    assert_eq!(docker.count(cell, "start").await, 1, "a stranger woke the cell");

    assert_eq!(anna.front.get("/state/colour").await.text(), "heliotrope");
    assert_eq!(docker.count(cell, "start").await, 2);
    let second = whoami(&anna.front).await;
    assert_eq!(second["dataId"], first["dataId"], "the data of before");
    assert_ne!(second["bootId"], first["bootId"], "another process");

    world.api.post("/v1/cells/anna/restart", json!({})).await.ok(200);
    let third = whoami(&anna.front).await;
    assert_eq!(third["dataId"], first["dataId"]);
    assert_ne!(third["bootId"], second["bootId"]);
    assert_eq!(docker.count(cell, "create").await, 1, "a container is kept over its rests");

    let found = eventually("what the node found on its machine is in the check-up", BOUND, async || {
        let shown = world.api.cli(&["doctor", "--json"]).await;
        let shown: Value = serde_json::from_str(&shown.out).unwrap();
        let findings = shown["nodes"][0]["findings"].as_array().unwrap().clone();
        findings.iter().any(|finding| finding["check"] == "live_restore").then_some(findings)
    })
    .await;
    for check in ["session", "engine", "quota", "firewall", "host_firewall", "swap"] {
        let of_check = found.iter().filter(|finding| finding["check"] == check).count();
        assert_eq!(of_check, 1, "{check}: {found:?}");
    }

    let removed = world.api.cli(&["user", "rm", "anna", "--yes"]).await;
    assert_eq!(removed.code, 0, "{}", removed.err);
    world.cell_leaves_nothing(cell).await;
    eventually("a removed user is nobody", BOUND, async || {
        (anna.front.get("/").await.status == 401).then_some(())
    })
    .await;

    let next = world.create_running("anna", Rest::Stop, SOON).await;
    assert_ne!(next.cell, anna.cell);
    assert_eq!(anna.front.get("/").await.status, 401, "a token of the user of before");
    assert_eq!(next.front.get("/state/colour").await.status, 404, "data of the user of before");
    assert_ne!(whoami(&next.front).await["dataId"], first["dataId"]);
    world.end(&[]).await;
}

#[tokio::test]
async fn a_frozen_cell_goes_on_as_the_same_process_after_one_thaw_for_everybody() {
    let world = World::start(Options::default()).await;
    let docker = world.engine.record();
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let cell = anna.cell.as_str();
    let first = whoami(&anna.front).await;

    world.container_is(cell, "paused").await;
    world.cell_is("anna", "frozen").await;
    assert_eq!(anna.front.stranger().get("/").await.status, 401);
    assert_eq!(docker.count(cell, "unpause").await, 0, "a stranger thawed the cell");

    let asked = (0..20).map(|number| {
        let front = anna.front.clone();
        async move { front.post("/echo/raw", number.to_string()).await.text() }
    });
    let answers = join_all(asked).await;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, number.to_string(), "everybody gets their own answer");
    }
    assert_eq!(docker.count(cell, "unpause").await, 1);
    assert_eq!(whoami(&anna.front).await["bootId"], first["bootId"], "the same process");

    // A page opened in a browser wakes it, too.
    let browser = log_in(&world, "anna").await;
    world.container_is(cell, "paused").await;
    let page = browser.request("GET", "/").header("accept", "text/html").header("sec-fetch-mode", "navigate");
    let page = browser.send(page, "").await.expect("the page is answered");
    assert!(page.header("content-type").starts_with("text/html"), "{}", page.text());
    assert_eq!(whoami(&anna.front).await["bootId"], first["bootId"]);

    // How long each had to wait is counted by how the cell rested and who came; and what went out of memory.
    let counted = world.metrics(&world.agent).await;
    for cause in ["bearer", "session"] {
        let woken = format!("berth_agent_wake_seconds_count{{tier=\"frozen\",cause=\"{cause}\"}}");
        assert!(counted.value(&woken) >= 1.0, "{cause}: {counted:?}");
    }
    assert!(counted.value("berth_agent_pushed_out_bytes_total") > 0.0, "{counted:?}");

    // Removed while frozen: nothing is left, and it is not thawed in order to be ended.
    world.container_is(cell, "paused").await;
    assert_eq!(world.api.delete("/v1/users/anna").await.status, 204);
    world.cell_leaves_nothing(cell).await;
    assert_eq!(docker.count(cell, "start").await, 1);
    world.end(&[]).await;
}

#[tokio::test]
async fn work_under_way_keeps_a_cell_awake_and_its_end_lets_it_sleep() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let docker = world.engine.record();
    let slow = anna.front.get("/slow?ms=4000").await;
    assert_eq!(slow.status, 200, "a request that takes longer than the quiet time is answered");
    assert_eq!(docker.count(&anna.cell, "die").await, 0);
    world.container_is(&anna.cell, "exited").await;
    world.cell_is("anna", "stopped").await;
    assert_eq!(anna.front.get("/.berth/cell").await.ok(200)["state"], "stopped");

    let bob = world.create_running("bob", Rest::Stop, NOT_IN_THIS_STORY).await;
    // What OpenClaw calls a run of its schedule, and a terminal that somebody has open.
    for blocker in ["cron-run", "terminal-session"] {
        assert_eq!(bob.front.post("/control", json!({ "busy": [blocker] }).to_string()).await.status, 200);
        let refused = world.api.post("/v1/cells/bob/sleep", json!({})).await;
        assert_eq!(refused.ok(409)["code"], "cell_busy");
        eventually("why it is awake is told", BOUND, async || {
            world.status("bob").await["last_refusal"].to_string().contains(blocker).then_some(())
        })
        .await;
    }
    let refused = world.metrics(&world.agent).await;
    assert!(refused.value("berth_agent_rest_refusals_total{kind=\"workload\"}") >= 2.0, "{refused:?}");
    assert_eq!(bob.front.post("/control", json!({ "busy": null }).to_string()).await.status, 200);
    world.api.post("/v1/cells/bob/sleep", json!({ "freeze": true })).await.ok(200);
    world.container_is(&bob.cell, "paused").await;
    world.cell_is("bob", "frozen").await;
    // Asleep as it is: its owner reads why it did not sleep before, and it sleeps on.
    let seen = bob.front.get("/.berth/cell").await.ok(200);
    assert_eq!(seen["state"], "frozen");
    let of = |event: &Value| (event["kind"].to_string(), event["detail"].to_string());
    let events: Vec<_> = seen["events"].as_array().unwrap().iter().map(of).collect();
    let is_told = |(kind, detail): &(String, String)| {
        kind == "\"could-not-sleep\"" && detail.contains("terminal-session")
    };
    assert!(events.iter().any(is_told), "{events:?}");
    let browser = log_in(&world, "bob").await;
    let page = browser.request("GET", "/.berth/cell").header("accept", "text/html");
    let page = browser.send(page, "").await.expect("the page is answered");
    assert!(page.header("content-type").starts_with("text/html"), "{}", page.text());
    let is_read = |words: &str| page.text().contains(words);
    assert!(is_read("it could not go to sleep") && is_read("terminal-session"), "{}", page.text());
    assert_eq!(bob.front.stranger().get("/.berth/cell").await.status, 401);
    assert_eq!(docker.count(&bob.cell, "unpause").await, 0, "a look at its page woke a cell");
    assert_eq!(docker.count(&anna.cell, "start").await, 0, "a look at its page woke a cell");
    // The next agent knows it, too: of one kind what came first, which is what is written.
    world.agent.restart().await;
    world.door_is_connected().await;
    let seen = eventually("the next agent has looked at the cell", BOUND, async || {
        let seen = bob.front.get("/.berth/cell").await.ok(200);
        (seen["state"] == "frozen").then_some(seen)
    })
    .await;
    assert!(seen["events"].to_string().contains("cron-run"), "{seen}");
    world.container_is(&bob.cell, "paused").await;
    world.agent_is_connected().await;
    world.api.post("/v1/cells/bob/wake", json!({})).await.ok(200);
    assert_eq!(whoami(&bob.front).await["starts"], 1);
    eventually("the coordinator tells what the agent has forgotten, too", BOUND, async || {
        let told = world.api.get("/v1/cells/bob/events").await.ok(200).to_string();
        (told.contains("cron-run") && told.contains("terminal-session")).then_some(())
    })
    .await;
    world.end(&[]).await;
}

/// Held for the wake, which cannot come any more: their route is gone, whatever the agent was just doing.
#[tokio::test]
async fn who_is_held_for_a_user_that_is_removed_learns_that_the_route_is_gone() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    anna.front.post("/control", r#"{"listen_delay_ms":30000}"#).await.ok(200);
    world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let calls = (0..3).map(|_| anna.front.get("/whoami"));
    let removed = async {
        eventually("three calls are held, and the cell starts", BOUND, async || {
            let held = world.metrics(&world.ingress).await.value("berth_ingress_held_requests");
            (held == 3.0 && world.status("anna").await["state"] == "starting").then_some(())
        })
        .await;
        world.api.delete("/v1/users/anna").await
    };
    let (replies, removed) = tokio::join!(join_all(calls), removed);
    assert_eq!(removed.status, 204);
    for reply in replies {
        assert_eq!((reply.status, &reply.json()["code"]), (404, &json!("route_gone")), "{}", reply.text());
    }
    world.cell_leaves_nothing(&anna.cell).await;
    assert_eq!(anna.front.get("/whoami").await.status, 401, "from then on, nobody of that name");
    world.end(&[]).await;
}
