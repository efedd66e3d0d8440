//! Nodes over the link: who is let in, who replaces whom, what is pushed.

use berth_link::{JoinError, join};
use berth_shared::api::{Doctor, NodeFindings};
use berth_shared::credential::JoinToken;
use berth_shared::doctor::{FINDINGS_MAX, Finding, Level, TEXT_BYTES_MAX};
use berth_shared::ids::TokenId;
use berth_shared::problem::Code;
use berth_shared::wire::{CoordinatorFrame, FINDINGS_SINCE, Hello, NodeFrame};
use serde_json::json;

use crate::system::wall_now;

use super::world::{BOUND, FakeNode, World, connect, facts, hello, signing_key};

async fn refused_join(token: &JoinToken, seed: u8) -> Code {
    let error: JoinError = join(token, &signing_key(seed), wall_now(), facts()).await.unwrap_err();
    error.code()
}

async fn refused_hello(world: &World, seed: u8, hello: Hello) -> Code {
    let mut wire = connect(world.coordinator.link, world.coordinator.key, &signing_key(seed)).await;
    wire.sender.queue(&NodeFrame::Hello(hello)).unwrap();
    wire.sender.flush().await.unwrap();
    match tokio::time::timeout(BOUND, wire.receiver.recv()).await.unwrap().unwrap() {
        CoordinatorFrame::Rejected { code, .. } => code,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_lets_one_node_in_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let token = world.token("n1").await;
    let forged = JoinToken::new(token.id, [9; 32], token.coordinator, token.address.clone());
    assert_eq!(refused_join(&forged, 1).await, Code::TokenForged);
    let id = TokenId::from_random([9; 16]);
    let invented = JoinToken::new(id, [9; 32], token.coordinator, token.address.clone());
    assert_eq!(refused_join(&invented, 1).await, Code::TokenForged);
    let first = join(&token, &signing_key(1), wall_now(), facts()).await.unwrap();
    let again = join(&token, &signing_key(1), wall_now(), facts()).await.unwrap();
    assert_eq!(first.node, again.node, "an answer that was lost can be asked for again");
    assert_eq!(refused_join(&token, 2).await, Code::TokenUsed);
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 204);
    assert_eq!(refused_hello(&world, 1, hello(first.node, 1)).await, Code::NodeRejected);
    world.end().await;
}

#[tokio::test]
async fn a_hello_is_judged_by_key_counter_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let node = world.node("n1", 1).await;
    assert_eq!(refused_hello(&world, 2, hello(node.id, 2)).await, Code::NodeRejected);
    let mut cloned = hello(node.id, 1);
    cloned.nonce = berth_shared::ids::SessionNonce::from_random([99; 16]);
    assert_eq!(refused_hello(&world, 1, cloned).await, Code::CounterReplayed);
    let future = Hello { version_min: 7, version_max: 9, ..hello(node.id, 2) };
    assert_eq!(refused_hello(&world, 1, future).await, Code::VersionUnsupported);
    world.end().await;
}

#[tokio::test]
async fn a_newer_session_replaces_the_older_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut old = world.node("n1", 1).await;
    let (link, key) = (world.coordinator.link, world.coordinator.key);
    let mut new = FakeNode::open(link, key, old.key.clone(), old.id, 2).await;
    let ended = tokio::time::timeout(BOUND, old.wire.receiver.recv()).await.expect("the old one is closed");
    assert!(ended.is_err(), "{ended:?}");
    new.heartbeat(vec![]).await;
    world.until("/v1/nodes/n1", |node| node["connected"] == true && node["load"].is_object()).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    assert_eq!(new.next_desired().await.assignments.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn removing_a_node_closes_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 204);
    let ended = tokio::time::timeout(BOUND, node.wire.receiver.recv()).await.expect("it is closed");
    assert!(ended.is_err(), "{ended:?}");
    world.end().await;
}

#[tokio::test]
async fn cells_go_to_the_node_with_the_most_room_and_to_none_that_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let first = world.node("n1", 1).await;
    let _second = world.node("n2", 2).await;
    let place = async |slug: &str| {
        let user: berth_shared::api::User = world.post("/v1/users", json!({ "slug": slug })).await.json();
        user.node.to_string()
    };
    assert_eq!(place("a").await, "n1");
    assert_eq!(place("b").await, "n2");
    drop(first);
    world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    assert_eq!(place("c").await, "n2");
    let refused = world.post("/v1/users", json!({ "slug": "d", "node": "n1" })).await;
    assert_eq!(refused.code(), Code::NoRoom);
    let large = world.post("/v1/users", json!({ "slug": "d", "disk": "71GiB" })).await;
    assert!(large.body.contains("n2: lacks disk"), "{}", large.body);
    assert_eq!(large.code(), Code::NoRoom);
    world.end().await;
}

#[tokio::test]
async fn what_a_node_finds_on_its_machine_is_in_the_check_up_bounded_and_only_with_who_speaks_that_version() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    let mut findings = vec![
        Finding::new("live_restore", Level::Problem, "dockerd runs without it", "Turn it on."),
        Finding::good("swap", "encrypted"),
    ];
    let frame = NodeFrame::Findings { findings: findings.clone() };
    assert!(node.wire.sender.queue(&frame).is_err(), "a session of version {}", node.version);

    let hello = Hello { version_max: FINDINGS_SINCE, ..hello(node.id, 2) };
    let mut node = FakeNode::greet(world.coordinator.link, world.coordinator.key, node.key, hello).await;
    let long = Finding { found: "x".repeat(TEXT_BYTES_MAX + 1), ..Finding::good("long", "") };
    findings.resize(FINDINGS_MAX + 1, long);
    node.send(&NodeFrame::Findings { findings }).await;
    let shown = world.until("/v1/doctor", |shown| shown.to_string().contains("live_restore")).await;
    let Doctor { nodes, .. } = serde_json::from_value(shown).unwrap();
    let [NodeFindings { node: name, findings }] = &nodes[..] else { panic!("{nodes:?}") };
    assert_eq!(name.as_str(), "n1");
    let seen_from_here = findings.iter().position(|finding| finding.check == "live_restore").unwrap();
    assert_eq!(findings[0].check, "session");
    assert_eq!(findings[seen_from_here].level, Level::Problem);
    assert_eq!(findings[seen_from_here].advice, "Turn it on.");
    assert_eq!(findings.len() - seen_from_here, FINDINGS_MAX, "what is too much is left out");
    let swap: Vec<&str> =
        findings.iter().filter(|it| it.check == "swap").map(|it| it.found.as_str()).collect();
    assert_eq!(swap, ["encrypted"], "its own view, not that of its hello");
    assert!(findings.iter().all(|finding| finding.found.len() <= TEXT_BYTES_MAX));
    world.end().await;
}
