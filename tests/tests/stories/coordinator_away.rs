//! The coordinator killed while users are created, and away while they live on.

use std::collections::{BTreeMap, BTreeSet};

use berth_tests::world::metrics::page;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, TEST_IMAGE, World};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{SOON, whoami};

/// The coordinator is killed after so many confirmed users of a round, while the callers go on.
const KILLED_AFTER: [usize; 6] = [1, 2, 3, 1, 2, 4];
/// Users that one caller makes in a round at the most.
const USERS_MAX: usize = 8;
const CALLERS: usize = 3;

#[tokio::test]
async fn a_coordinator_killed_while_users_are_created_keeps_each_one_that_it_confirmed() {
    let mut world = World::start(Options::default()).await;
    let mut confirmed = BTreeSet::new();
    let mut asked = BTreeSet::new();
    for (round, kill_after) in KILLED_AFTER.into_iter().enumerate() {
        let (told, mut confirmations) = tokio::sync::mpsc::channel(CALLERS * USERS_MAX);
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (api, told) = (world.api.clone(), told.clone());
            // Each goes on until a call is not answered: somebody is always in the middle of one.
            callers.spawn(async move {
                let mut made = vec![];
                for number in 0..USERS_MAX {
                    let slug = format!("user-{round}-{caller}-{number}");
                    let user = json!({ "slug": slug, "image": TEST_IMAGE, "workload": "openclaw",
                        "memory": "64MiB", "disk": "16MiB", "rest": "stop", "idle_after": 1000 });
                    let answer = api.call("POST", "/v1/users", Some(user)).await.ok();
                    let cell = answer.map(|reply| reply.ok(201)["cell"].to_string());
                    let ended = cell.is_none();
                    made.push((slug, cell));
                    if ended {
                        break;
                    }
                    // The killer may have heard enough already.
                    let _ = told.send(()).await;
                }
                made
            });
        }
        for _ in 0..kill_after {
            confirmations.recv().await.expect("a user is confirmed");
        }
        world.coordinator.kill9();
        while let Some(ended) = callers.join_next().await {
            for (slug, cell) in ended.unwrap() {
                confirmed.extend(cell.map(|cell| (slug.clone(), cell)));
                asked.insert(slug);
            }
        }
        world.coordinator.spawn().await;
        world.agent_is_connected().await;
    }

    let users = world.api.get("/v1/users").await.ok(200)["items"].as_array().unwrap().clone();
    let cells: BTreeMap<String, String> = users
        .iter()
        .map(|user| (user["slug"].as_str().unwrap().to_owned(), user["cell"].to_string()))
        .collect();
    assert_eq!(cells.len(), users.len(), "a name was given twice");
    for (slug, cell) in &confirmed {
        assert_eq!(cells.get(slug), Some(cell), "{slug} was confirmed");
    }
    assert!(cells.keys().all(|slug| asked.contains(slug)), "somebody whom nobody asked for: {cells:?}");
    assert!(!confirmed.is_empty() && confirmed.len() < asked.len(), "the kills hit between calls only");
    let given: BTreeSet<&String> = cells.values().collect();
    assert_eq!(given.len(), users.len(), "a cell was given twice");
    assert!(users.iter().all(|user| user["node"] == world.node_name.as_str()), "half a user: {users:?}");

    // Who is there is whole, who is not can be made again.
    let missing = asked.iter().filter(|slug| !cells.contains_key(*slug)).count();
    for slug in &asked {
        let user = json!({ "slug": slug, "workload": "openclaw", "memory": "64MiB", "disk": "16MiB",
            "rest": "stop", "idle_after": 1000 });
        let expected = if cells.contains_key(slug) { 409 } else { 201 };
        world.api.post("/v1/users", user).await.ok(expected);
    }
    eprintln!(
        "    {} asked for, {} confirmed, {} there, {missing} not",
        asked.len(),
        confirmed.len(),
        cells.len()
    );

    // Each has its one container and the machine has no other.
    eventually("each user has one container", BOUND * 2, async || {
        let users = world.api.get("/v1/users").await.ok(200);
        let wanted: BTreeSet<String> = users["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|user| user["cell"].as_str().map(str::to_owned))
            .collect();
        let containers = world.engine.containers().await;
        let found: BTreeSet<String> = containers.iter().map(|container| container.cell.clone()).collect();
        assert_eq!(found.len(), containers.len(), "a cell has two containers: {containers:?}");
        assert!(found.is_subset(&wanted), "a container of nobody: {containers:?}");
        (found == wanted && wanted.len() == asked.len()).then_some(())
    })
    .await;
    world.end(&[]).await;
}

#[tokio::test]
async fn users_are_let_in_woken_and_put_to_sleep_while_the_coordinator_is_away() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let link = world.login_link("anna").await;
    let unused = world.login_link("bob").await;
    let first = [whoami(&anna.front).await, whoami(&bob.front).await];
    // What stands in the status has to be durable on the node before the coordinator goes.
    world.cell_is("anna", "stopped").await;
    world.cell_is("bob", "frozen").await;
    world.coordinator.kill9();

    for agent_is_killed in [false, true] {
        if agent_is_killed {
            world.agent.restart().await;
            world.door_is_connected().await;
        }
        world.container_is(&anna.cell, "exited").await;
        world.container_is(&bob.cell, "paused").await;
        assert_eq!(whoami(&anna.front).await["dataId"], first[0]["dataId"]);
        assert_eq!(whoami(&bob.front).await["bootId"], first[1]["bootId"]);
        assert_eq!(anna.front.stranger().get("/").await.status, 401);
        assert_eq!(whoami_is_refused(&world, "nobody").await, 401);
        for page_path in ["/healthz", "/readyz"] {
            let page =
                page(world.agent.address("metrics_listen"), page_path).await.expect("the agent answers");
            assert_eq!(page.status, 200, "{page_path}: {}", page.text());
        }
    }

    // A browser gets in by a link of before, once, and wakes the cell.
    world.container_is(&anna.cell, "exited").await;
    let front = world.front("anna");
    let browser = front.logged_in(&front.redeem(&link).await);
    assert!(front.redeem(&link).await.status >= 400, "a link works once");
    assert!(front.redeem(&unused).await.status >= 400, "somebody else's link");
    assert_eq!(browser.post("/echo/raw", "hello").await.text(), "hello");
    world.container_is(&anna.cell, "exited").await;

    world.coordinator.spawn().await;
    world.agent_is_connected().await;
    world.cell_is("anna", "stopped").await;
    world.cell_is("bob", "frozen").await;
    let users = world.api.get("/v1/users").await.ok(200);
    assert_eq!(users["items"].as_array().map(Vec::len), Some(2));
    assert_ne!(
        world.status("anna").await["last_wake"],
        Value::Null,
        "the status holds what happened meanwhile"
    );
    world.end(&[]).await;
}

async fn whoami_is_refused(world: &World, slug: &str) -> u16 {
    world.front(slug).get("/whoami").await.status
}
