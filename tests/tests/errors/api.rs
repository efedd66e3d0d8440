//! What the coordinator refuses by itself, and what it says of a node that does not answer.

use std::time::Duration;

use berth_shared::cell::BEARERS_MAX;
use berth_shared::problem::Code;
use berth_tests::lab::raw::Connection;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::check::{cli, refused, said};

const LONG: Duration = Duration::from_secs(600);

/// More than the API reads of a body.
const TOO_LARGE: usize = 65 * 1024;

async fn what_is_asked_makes_no_sense(world: &World) {
    cli(world, &["user", "create", "Anna!"], Code::BadSlug).await;
    refused(&world.api.post("/v1/users", json!({ "slug": "-anna" })).await, Code::BadSlug);
    cli(world, &["user", "create", "bert", "--image", "a//b"], Code::BadImage).await;
    refused(
        &world.api.post("/v1/users", json!({ "slug": "bert", "colour": "blue" })).await,
        Code::BadRequest,
    );
    cli(world, &["cell", "logs", "anna", "-n", "5000"], Code::BadRequest).await;
    let large = json!({ "slug": "x".repeat(TOO_LARGE) });
    refused(&world.api.post("/v1/users", large).await, Code::BodyTooLarge);
    refused(&world.api.get("/v1/nothing").await, Code::NotFound);
    refused(&world.api.delete("/v1/users").await, Code::MethodNotAllowed);
}

async fn who_asks_is_not_known(world: &World) {
    let wrong = world.api.cli(&["--key", "berth_op_wrong", "user", "ls"]).await;
    said(&wrong, Code::Unauthorized);
    let address = world.coordinator.address("api_listen");
    for header in ["", "authorization: Bearer berth_op_wrong\r\n"] {
        let request = format!("GET /v1/users HTTP/1.1\r\nhost: {address}\r\n{header}\r\n");
        let reply = Connection::new(address).ask(&request).await;
        assert_eq!(reply.status, Code::Unauthorized.status(), "{reply:?}");
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(body["code"], Code::Unauthorized.as_str());
    }
}

async fn what_is_named_is_not_there_or_is_there_already(world: &World) {
    cli(world, &["user", "show", "nobody"], Code::UnknownUser).await;
    cli(world, &["cell", "wake", "nobody"], Code::UnknownUser).await;
    cli(world, &["node", "show", "nowhere"], Code::UnknownNode).await;
    cli(world, &["user", "create", "bert", "--node", "nowhere"], Code::UnknownNode).await;
    cli(world, &["token", "rm", "tok_aaaaaaaaaaaaaaaaaaaaaaaaaa"], Code::UnknownToken).await;
    cli(world, &["user", "create", "anna"], Code::DuplicateUser).await;
    cli(world, &["token", "create", &world.node_name], Code::DuplicateNode).await;
    cli(world, &["node", "rm", &world.node_name, "--yes"], Code::NodeInUse).await;
    cli(world, &["user", "create", "giant", "--memory", "1024GiB"], Code::NoRoom).await;
    // One was made with the user.
    for _ in 1..BEARERS_MAX {
        world.api.post("/v1/users/anna/bearers", json!({})).await.ok(201);
    }
    cli(world, &["user", "bearer", "create", "anna"], Code::TooMany).await;
    let users = world.api.get("/v1/users").await.ok(200);
    assert_eq!(
        users["items"].as_array().unwrap().len(),
        1,
        "a refused command left something behind: {users}"
    );
}

/// The agent stands still: what was sent is not answered in time; later the node counts as silent, and nothing is sent.
async fn the_node_does_not_answer(world: &World) {
    world.agent.suspend().await;
    said(&world.api.cli(&["cell", "logs", "anna"]).await, Code::CommandTimeout);
    eventually("the node counts as silent", BOUND, async || {
        let cell = world.api.get("/v1/cells/anna").await.ok(200);
        (cell["connected"] == false).then_some(())
    })
    .await;
    cli(world, &["cell", "wake", "anna"], Code::NodeSilent).await;
    world.agent.signal(Signal::CONT);
    world.agent_is_connected().await;
    eventually("the cell is reached again", BOUND, async || {
        (world.api.cli(&["cell", "logs", "anna"]).await.code == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_coordinator_refuses_with_the_documented_code_status_and_exit_code() {
    let world = World::start(Options::default()).await;
    world.create_running("anna", Rest::Stop, LONG).await;
    what_is_asked_makes_no_sense(&world).await;
    who_asks_is_not_known(&world).await;
    what_is_named_is_not_there_or_is_there_already(&world).await;
    the_node_does_not_answer(&world).await;
    world.end(&[]).await;
}
