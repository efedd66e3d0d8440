//! Keys over the link: rotation, revocation, clones, versions, clocks; each with a real connection that may misbehave.

use berth_link::close::CloseCode;
use berth_link::{JoinError, join};
use berth_shared::api::Token;
use berth_shared::credential::JoinToken;
use berth_shared::ids::{NodeId, SessionNonce};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::{self, PublicKey, Purpose, Signature, SigningKey};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Hello, NodeFrame, Versioned,
};
use serde_json::{Value, json};

use super::world::{BOUND, FakeNode, World, connect, facts, hello, signing_key};
use crate::system::wall_now;

/// The newest version that there is.
fn newest(node: NodeId, counter: u64) -> Hello {
    Hello { version_max: FRAMES_VERSION_MAX, ..hello(node, counter) }
}

async fn refused(world: &World, key: &SigningKey, hello: Hello) -> (Code, String) {
    let mut wire = connect(world.coordinator.link, coordinator_key(world).await, key).await;
    wire.sender.queue(&NodeFrame::Hello(hello)).unwrap();
    wire.sender.flush().await.unwrap();
    match tokio::time::timeout(BOUND, wire.receiver.recv()).await.unwrap().unwrap() {
        CoordinatorFrame::Rejected { code, detail } => (code, detail),
        other => panic!("not rejected: {other:?}"),
    }
}

async fn coordinator_key(world: &World) -> PublicKey {
    let shown: Value = world.get("/v1/coordinator-key").await.json();
    shown["key"].as_str().unwrap().parse().unwrap()
}

/// A session of the newest version, greeted by hand.
async fn open(world: &World, key: SigningKey, hello: Hello) -> FakeNode {
    FakeNode::greet(world.coordinator.link, coordinator_key(world).await, key, hello).await
}

/// The close code and reason that the coordinator ends a session with, once nothing more comes.
async fn closed(node: &mut FakeNode) -> (u64, String) {
    let ended = async {
        while node.wire.receiver.recv().await.is_ok() {}
        node.wire.connection.closed().await
    };
    match tokio::time::timeout(BOUND, ended).await.expect("it is closed") {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8(close.reason.to_vec()).unwrap())
        }
        other => panic!("closed by {other:?}"),
    }
}

async fn shown(world: &World, name: &str) -> Value {
    world.get(&format!("/v1/nodes/{name}")).await.json()
}

async fn rejoin_token(world: &World, name: &str) -> JoinToken {
    let made = world.post("/v1/tokens", json!({ "node": name, "rejoin": true })).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let token: Token = made.json();
    assert!(token.rejoin);
    token.token.unwrap().expose().parse().unwrap()
}

#[tokio::test]
async fn revoking_a_node_cuts_its_session_and_keeps_its_key_out_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    let revoked = world.post("/v1/nodes/n1/revoke", json!({})).await;
    let answer: Value = revoked.json();
    assert_eq!((answer["standing"].as_str(), answer["connected"].as_bool()), (Some("revoked"), Some(false)));
    assert_eq!(closed(&mut node).await, (CloseCode::Revoked as u64, "revoked".to_owned()));
    assert_eq!(world.post("/v1/nodes/n1/revoke", json!({})).await.status, 200, "again is fine");
    let (code, detail) = refused(&world, &signing_key(1), newest(node.id, 2)).await;
    assert!(code == Code::NodeRevoked && detail.contains("n1"), "{detail}");
    assert_eq!(shown(&world, "n1").await["cells"], 1, "its cells stay its own");
    let refusal = world.post("/v1/users", json!({ "slug": "bob" })).await;
    assert!(refusal.body.contains("n1: revoked"), "{}", refusal.body);
    assert_eq!(refusal.code(), Code::NoRoom);
    world.end().await;

    let world = World::on(folder.path()).await;
    assert_eq!(refused(&world, &signing_key(1), newest(node.id, 2)).await.0, Code::NodeRevoked);
    let metrics = world.get("/metrics").await.body;
    assert!(metrics.contains("berth_nodes_revoked 1"), "{metrics}");
    world.end().await;
}

#[tokio::test]
async fn a_revoked_node_joins_again_as_itself_with_a_new_key_and_a_fresh_counter() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    let early = world.post("/v1/tokens", json!({ "node": "n1", "rejoin": true })).await;
    assert_eq!(early.code(), Code::NodeNotLocked);
    world.post("/v1/nodes/n1/revoke", json!({})).await;
    let token = rejoin_token(&world, "n1").await;
    let same: JoinError = join(&token, &signing_key(1), wall_now(), facts()).await.unwrap_err();
    assert_eq!(same.code(), Code::KeyRefused, "the key of before is dead");
    let joined = join(&token, &signing_key(5), wall_now(), facts()).await.unwrap();
    assert_eq!((joined.node, joined.name.as_str()), (node.id, "n1"));
    let again: JoinError = join(&token, &signing_key(6), wall_now(), facts()).await.unwrap_err();
    assert_eq!(again.code(), Code::TokenUsed);
    assert_eq!(refused(&world, &signing_key(1), newest(node.id, 9)).await.0, Code::KeyRetired);
    let back = open(&world, signing_key(5), newest(node.id, 1)).await;
    assert_eq!(back.desired.assignments.len(), 1, "the cells that it had");
    assert_eq!(shown(&world, "n1").await["standing"], "active");
    world.end().await;
}

#[tokio::test]
async fn a_clone_is_refused_and_locks_the_node_while_its_cells_and_its_session_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    node.next_desired().await;
    let cloned = Hello { nonce: SessionNonce::from_random([99; 16]), ..newest(node.id, 1) };
    for _ in 0..3 {
        assert_eq!(refused(&world, &signing_key(1), cloned.clone()).await.0, Code::CounterReplayed);
    }
    let locked = shown(&world, "n1").await;
    assert_eq!((locked["standing"].as_str(), locked["connected"].as_bool()), (Some("locked"), Some(true)));
    node.heartbeat(vec![]).await;
    let refusal = world.post("/v1/users", json!({ "slug": "bob" })).await;
    assert!(refusal.body.contains("n1: locked"), "{}", refusal.body);
    assert!(world.get("/metrics").await.body.contains("berth_nodes_locked 1"));
    assert_eq!(world.post("/v1/users/anna/bearers", json!({})).await.status, 201);
    assert_eq!(node.next_desired().await.assignments.len(), 1, "what it has goes on, and changes");

    assert_eq!(world.post("/v1/nodes/n1/unlock", json!({})).await.status, 200);
    assert_eq!(world.post("/v1/nodes/n1/unlock", json!({})).await.code(), Code::NodeNotLocked);
    assert_eq!(world.post("/v1/users", json!({ "slug": "bob" })).await.status, 201);
    assert_eq!(
        refused(&world, &signing_key(1), cloned.clone()).await.0,
        Code::CounterReplayed,
        "the connected one was meant"
    );
    drop(node);
    world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    assert_eq!(shown(&world, "n1").await["standing"], "locked", "the same clone again is a new lock");
    assert_eq!(world.post("/v1/nodes/n1/unlock", json!({})).await.status, 200);
    let back = open(&world, signing_key(1), cloned).await;
    assert_eq!(back.desired.assignments.len(), 2);
    world.end().await;
    let world = World::on(folder.path()).await;
    let stored = world.get("/v1/nodes").await.json::<Value>();
    assert_eq!(stored["items"][0]["standing"], "active");
    world.end().await;
}

fn new_key(node: &FakeNode, next: &SigningKey) -> NodeFrame {
    let said = signing::new_node_key(node.id, &node.key.public(), &next.public());
    NodeFrame::NewKey { key: next.public(), proof: Signature(next.sign(Purpose::NodeKey, &said)) }
}

#[tokio::test]
async fn a_nodes_key_is_rotated_over_its_session_and_the_old_one_is_dead_then() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let id = world.node("n1", 1).await.id;
    let next = signing_key(7);
    let mut node = open(&world, signing_key(1), newest(id, 2)).await;
    let rotating = world.post("/v1/nodes/n1/rotate-key", json!({}));
    let acting = async {
        assert_eq!(node.receive().await, CoordinatorFrame::RotateKey);
        // Somebody else's key, then a forged proof: refused, and nothing has changed.
        let forged = NodeFrame::NewKey { key: next.public(), proof: Signature([1; 64]) };
        assert_eq!(not_taken(&mut node, &forged).await.code, Code::KeyRefused);
        let told = new_key(&node, &next);
        for _ in 0..2 {
            node.send(&told).await;
            let judged = CoordinatorFrame::KeyJudged { key: next.public(), outcome: Ok(()) };
            assert_eq!(node.receive().await, judged, "also when the answer was lost");
        }
        // The old one is good until the new one has said hello.
        let again = open(&world, signing_key(1), newest(id, 3)).await;
        drop(again);
        open(&world, next.clone(), newest(id, 4)).await
    };
    let (rotated, _new) = tokio::join!(rotating, Box::pin(acting));
    assert_eq!(rotated.status, 200, "{}", rotated.body);
    assert_eq!(rotated.json::<Value>()["key"], next.public().to_string());
    assert_eq!(refused(&world, &signing_key(1), newest(id, 5)).await.0, Code::KeyRetired);
    assert_eq!(
        shown(&world, "n1").await["standing"],
        "locked",
        "an old copy, or a thief has taken its place"
    );
    let soon = world.post("/v1/nodes/n1/rotate-key", json!({})).await;
    assert!(soon.body.contains("one a minute"), "{}", soon.body);
    assert_eq!(soon.code(), Code::KeyRefused);
    world.end().await;
    let world = World::on(folder.path()).await;
    assert_eq!(shown(&world, "n1").await["standing"], "locked");
    assert_eq!(world.post("/v1/nodes/n1/unlock", json!({})).await.status, 200);
    assert_eq!(refused(&world, &signing_key(1), newest(id, 5)).await.0, Code::KeyRetired);
    assert_eq!(shown(&world, "n1").await["standing"], "active", "its operator knows of this one");
    open(&world, next, newest(id, 5)).await;
    world.end().await;
}

/// Why a key that was told is not taken.
async fn not_taken(session: &mut FakeNode, told: &NodeFrame) -> Problem {
    session.send(told).await;
    match session.receive().await {
        CoordinatorFrame::KeyJudged { outcome: Err(problem), .. } => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whoever_holds_a_copy_of_a_nodes_key_cannot_take_its_place_with_a_key_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let id = world.node("n1", 1).await.id;
    let mut thief = open(&world, signing_key(1), newest(id, 2)).await;
    let told = new_key(&thief, &signing_key(9));
    let problem = not_taken(&mut thief, &told).await;
    assert!(problem.code == Code::KeyRefused && problem.detail.contains("node rotate-key n1"), "{problem}");
    // The node's own hello after the thief's: there are two of it.
    let own = Hello { nonce: SessionNonce::from_random([99; 16]), ..newest(id, 2) };
    assert_eq!(refused(&world, &signing_key(1), own).await.0, Code::CounterReplayed);
    assert_eq!(shown(&world, "n1").await["standing"], "locked");
    let ordered = world.post("/v1/nodes/n1/rotate-key", json!({})).await;
    assert!(ordered.code() == Code::KeyRefused && ordered.body.contains("is locked"), "{}", ordered.body);
    let problem = not_taken(&mut thief, &told).await;
    assert!(problem.detail.contains("is locked"), "{problem}");
    world.end().await;
}

#[tokio::test]
async fn an_order_for_another_key_stands_over_a_restart_of_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let id = world.node("n1", 1).await.id;
    world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    let silent = world.post("/v1/nodes/n1/rotate-key", json!({})).await;
    assert_eq!(silent.code(), Code::NodeSilent);
    let mut node = open(&world, signing_key(1), newest(id, 2)).await;
    tokio::select! {
        answered = world.post("/v1/nodes/n1/rotate-key", json!({})) => panic!("answered: {}", answered.body),
        told = node.receive() => assert_eq!(told, CoordinatorFrame::RotateKey),
    }
    drop(node);
    world.end().await;

    let world = World::on(folder.path()).await;
    let mut node = open(&world, signing_key(1), newest(id, 3)).await;
    let next = signing_key(7);
    let told = new_key(&node, &next);
    node.send(&told).await;
    let judged = CoordinatorFrame::KeyJudged { key: next.public(), outcome: Ok(()) };
    assert_eq!(node.receive().await, judged);
    open(&world, next, newest(id, 4)).await;
    assert_eq!(shown(&world, "n1").await["standing"], "active");
    world.end().await;
}

#[tokio::test]
async fn a_node_of_the_first_version_works_and_is_never_sent_what_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let id = world.node("n1", 1).await.id;
    assert_eq!(world.post("/v1/coordinator-key/next", json!({})).await.status, 200);
    let old = Hello { version_max: 1, ..newest(id, 2) };
    let mut node = open(&world, signing_key(1), old).await;
    assert_eq!(node.version, 1);
    assert_eq!(shown(&world, "n1").await["link_version"], 1);
    let refusal = world.post("/v1/nodes/n1/rotate-key", json!({})).await;
    for part in ["version 2", "speaks 1", &format!("1 to {FRAMES_VERSION_MAX}")] {
        assert!(refusal.body.contains(part), "{part}: {}", refusal.body);
    }
    assert_eq!(refusal.code(), Code::LinkTooOld);
    // Everything that is sent from here on comes before the answer to the second heartbeat.
    assert_eq!(world.post("/v1/coordinator-key/next", json!({})).await.status, 200);
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    node.send_heartbeat().await;
    let mut came = vec![];
    loop {
        let frame = node.receive().await;
        assert_eq!(frame.since(), 1, "{frame:?}");
        let is_last = frame == CoordinatorFrame::Heard && came.len() > 1;
        came.push(frame);
        if is_last {
            break;
        }
        if came.len() == 2 {
            node.send_heartbeat().await;
        }
    }
    assert!(came.iter().any(|frame| matches!(frame, CoordinatorFrame::Desired(_))), "{came:?}");
    drop(node);
    world.post("/v1/nodes/n1/revoke", json!({})).await;
    let (code, detail) = refused(&world, &signing_key(1), Hello { version_max: 1, ..newest(id, 3) }).await;
    assert!(code == Code::NodeRejected && detail.contains("revoked"), "a code that it knows: {detail}");
    world.end().await;
}

#[tokio::test]
async fn without_a_common_version_both_ranges_are_named_to_whoever_is_too_old_or_too_new() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let node = world.node("n1", 1).await;
    for (min, max) in [(0, FRAMES_VERSION_MIN - 1), (FRAMES_VERSION_MAX + 1, FRAMES_VERSION_MAX + 4)] {
        let hello = Hello { version_min: min, version_max: max, ..newest(node.id, 2) };
        let (code, detail) = refused(&world, &signing_key(1), hello).await;
        assert_eq!(code, Code::VersionUnsupported);
        let ours = format!("{FRAMES_VERSION_MIN} to {FRAMES_VERSION_MAX}");
        assert!(detail.contains(&format!("{min} to {max}")) && detail.contains(&ours), "{detail}");
    }
    assert_eq!(shown(&world, "n1").await["standing"], "active");
    world.end().await;
}

#[tokio::test]
async fn nobody_joins_with_a_clock_that_is_minutes_off_and_the_token_stays_good() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let token = world.token("n1").await;
    let off = Millis::minutes(6);
    for wall in [wall_now().after(off), UnixMs(wall_now().0 - off.0)] {
        let error = join(&token, &signing_key(1), wall, facts()).await.unwrap_err();
        assert_eq!(error.code(), Code::ClockSkew);
        let JoinError::Refused(problem) = &error else { panic!("{error:?}") };
        assert!(problem.detail.contains(&wall.to_string()) && problem.detail.contains("5 min"), "{problem}");
    }
    let joined = join(&token, &signing_key(1), wall_now().after(Millis::minutes(1)), facts()).await.unwrap();
    let late = Hello { wall: wall_now().after(off), ..newest(joined.node, 1) };
    let _node = open(&world, signing_key(1), late).await;
    let offset = shown(&world, "n1").await["clock_offset_ms"].as_i64().unwrap();
    assert!((350_000..=360_000).contains(&offset), "a session is open, and the offset shown: {offset}");
    world.end().await;
}

#[tokio::test]
async fn the_coordinators_key_changes_when_its_nodes_hold_the_next_one_and_stays_changed() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let first = world.coordinator.key;
    let one = world.node("n1", 1).await;
    let two = world.node("n2", 2).await;
    drop((one.wire, two.wire));
    let mut one = open(&world, signing_key(1), newest(one.id, 2)).await;
    assert_eq!(world.post("/v1/coordinator-key/switch", json!({})).await.code(), Code::KeyRefused);
    let announced: Value = world.post("/v1/coordinator-key/next", json!({})).await.json();
    let next: PublicKey = announced["next"]["key"].as_str().unwrap().parse().unwrap();
    let CoordinatorFrame::NextKey { key, proof } = one.receive().await else { panic!("not announced") };
    assert_eq!(key, next);
    let said = signing::next_coordinator_key(&first, &next);
    next.verify(Purpose::CoordinatorKey, &said, &proof.0).unwrap();
    one.send(&NodeFrame::PinStored { key }).await;
    world.until("/v1/coordinator-key", |shown| shown["next"]["stored"] == json!(["n1"])).await;
    let refusal = world.post("/v1/coordinator-key/switch", json!({})).await;
    assert!(refusal.body.contains("n2"), "{}", refusal.body);
    assert_eq!(refusal.code(), Code::KeyNotStored);
    world.end().await;

    // A restart on the way; the node that was away is told at its session.
    let world = World::on(folder.path()).await;
    assert_eq!(world.coordinator.key, first);
    let mut two = open(&world, signing_key(2), newest(two.id, 2)).await;
    assert!(matches!(two.receive().await, CoordinatorFrame::NextKey { key, .. } if key == next));
    two.send(&NodeFrame::PinStored { key: next }).await;
    world.until("/v1/coordinator-key", |shown| shown["next"]["missing"] == json!([])).await;
    let switched: Value = world.post("/v1/coordinator-key/switch", json!({})).await.json();
    assert_eq!(
        (switched["key"].as_str(), &switched["next"]),
        (Some(next.to_string().as_str()), &Value::Null)
    );
    assert_eq!(closed(&mut two).await.1, "session_over", "it comes back and sees the new key");
    assert_eq!(world.token("n3").await.coordinator, next);
    open(&world, signing_key(2), newest(two.id, 3)).await;
    world.end().await;
    let world = World::on(folder.path()).await;
    assert_eq!(world.coordinator.key, next);
    world.end().await;
}

#[tokio::test]
async fn a_next_key_of_the_coordinator_that_is_lost_is_not_switched_to_and_another_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let first = world.coordinator.key;
    let id = world.node("n1", 1).await.id;
    let mut node = open(&world, signing_key(1), newest(id, 2)).await;
    assert_eq!(world.post("/v1/coordinator-key/next", json!({})).await.status, 200);
    let CoordinatorFrame::NextKey { key: lost, .. } = node.receive().await else { panic!("not announced") };
    node.send(&NodeFrame::PinStored { key: lost }).await;
    world.until("/v1/coordinator-key", |shown| shown["next"]["missing"] == json!([])).await;

    // A folder that was restored without it.
    std::fs::remove_file(folder.path().join("data").join(crate::keys::NEXT_KEY_FILE)).unwrap();
    for anyway in [false, true] {
        let refusal = world.post("/v1/coordinator-key/switch", json!({ "anyway": anyway })).await;
        assert!(refusal.body.contains("coordinator-key next"), "{}", refusal.body);
        assert_eq!(refusal.code(), Code::KeyRefused);
    }
    world.end().await;
    let world = World::on(folder.path()).await;
    assert_eq!(world.coordinator.key, first, "nothing is decided, and it starts");

    let mut node = open(&world, signing_key(1), newest(id, 3)).await;
    let announced: Value = world.post("/v1/coordinator-key/next", json!({})).await.json();
    let next: PublicKey = announced["next"]["key"].as_str().unwrap().parse().unwrap();
    assert_ne!(next, lost);
    assert_eq!(announced["next"]["missing"], json!(["n1"]), "it holds the lost one only");
    assert!(matches!(node.receive().await, CoordinatorFrame::NextKey { key, .. } if key == next));
    node.send(&NodeFrame::PinStored { key: next }).await;
    world.until("/v1/coordinator-key", |shown| shown["next"]["missing"] == json!([])).await;
    let switched: Value = world.post("/v1/coordinator-key/switch", json!({})).await.json();
    assert_eq!(switched["key"], next.to_string());
    world.end().await;
    let world = World::on(folder.path()).await;
    assert_eq!(world.coordinator.key, next);
    world.end().await;
}
