//! What is said of sleep, from a node to whoever asks and from an operator to the node.

use berth_shared::api::{Cell, List, Node, User};
use berth_shared::cell::{BusyReason, CellEvent, CellEventKind, CellState, SleepStatus, SleepTerms};
use berth_shared::ids::CellId;
use berth_shared::problem::Code;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::{CoordinatorFrame, Hello, NodeFrame, NodeSwap, SLEEP_SINCE};
use serde_json::{Value, json};

use super::world::{FakeNode, World, facts, hello, status};
use crate::system::wall_now;

/// A session of `node` that speaks up to this version, in place of its present one.
async fn session(world: &World, node: FakeNode, counter: u64, version_max: u16) -> FakeNode {
    let hello = Hello { version_max, ..hello(node.id, counter) };
    FakeNode::greet(world.coordinator.link, world.coordinator.key, node.key, hello).await
}

async fn sleepy_node(world: &World, name: &str, seed: u8) -> FakeNode {
    let node = world.node(name, seed).await;
    session(world, node, 2, SLEEP_SINCE).await
}

pub(super) fn swap(freezes: Result<&str, &str>) -> NodeSwap {
    NodeSwap {
        freezes: freezes.map(str::to_owned).map_err(str::to_owned),
        total: Bytes::gib(8),
        free: Bytes::gib(7),
        written_in_a_day: Bytes::gib(3),
        budget: Some(Bytes::gib(200)),
    }
}

pub(super) fn asleep(cell: CellId) -> SleepStatus {
    SleepStatus {
        cell,
        awake_because: None,
        wakes_at: Some(UnixMs(50_000)),
        stops_at: Some(UnixMs(90_000)),
        resident: Some(Bytes::mib(1)),
        swapped: Some(Bytes::mib(680)),
        stopped_because: None,
        open_sockets: 1,
        events: vec![CellEvent {
            at: UnixMs(900),
            kind: CellEventKind::CouldNotSleep,
            detail: "a run was under way".into(),
        }],
    }
}

#[tokio::test]
async fn terms_and_holds_go_to_the_node_behind_its_desired_state_and_to_every_new_session() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = sleepy_node(&world, "n1", 1).await;
    assert_eq!(node.terms, []);
    let user: User = world.post("/v1/users", json!({ "slug": "anna" })).await.json();
    assert_eq!(user.sleep, SleepTerms::default());
    node.next_desired().await;

    let set = json!({ "stop_after": 7_200_000, "dial_out_may_sleep": true });
    let set: User = world.put("/v1/users/anna/sleep", set).await.json();
    let mut wanted =
        SleepTerms { stop_after: Millis(7_200_000), dial_out_may_sleep: true, awake_until: None };
    assert_eq!(set.sleep, wanted);
    node.next_desired().await;
    assert_eq!(node.next_terms().await, [(user.cell, wanted)]);

    let before = wall_now();
    let held: Cell = world.post("/v1/cells/anna/hold", json!({ "for": 3_600_000 })).await.json();
    let until = held.awake_until.unwrap();
    assert!((before.0 + 3_600_000..=wall_now().0 + 3_600_000).contains(&until.0));
    wanted.awake_until = Some(until);
    node.next_desired().await;
    assert_eq!(node.next_terms().await, [(user.cell, wanted)]);

    // A change of something else does not repeat them.
    assert_eq!(world.post("/v1/users/anna/logout", json!({})).await.status, 204);
    node.next_desired().await;
    node.heartbeat(vec![]).await;

    let mut node = session(&world, node, 3, SLEEP_SINCE).await;
    assert_eq!(node.terms, [(user.cell, wanted)]);
    let let_go: Cell = world.delete("/v1/cells/anna/hold").await.json();
    assert_eq!(let_go.awake_until, None);
    wanted.awake_until = None;
    node.next_desired().await;
    assert_eq!(node.next_terms().await, [(user.cell, wanted)]);

    let mut old = session(&world, node, 4, SLEEP_SINCE - 1).await;
    assert_eq!(world.post("/v1/cells/anna/hold", json!({ "for": 3_600_000 })).await.status, 200);
    old.next_desired().await;
    // The answer is the next frame: nothing that it could not read stood before it.
    old.heartbeat(vec![]).await;
    let told = NodeFrame::Sleep { swap: swap(Ok("memory.reclaim")), cells: vec![] };
    assert!(old.wire.sender.queue(&told).is_err());
    world.end().await;
}

#[tokio::test]
async fn terms_and_holds_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    assert_eq!(world.put("/v1/users/anna/sleep", json!({})).await.code(), Code::UnknownUser);
    assert_eq!(world.post("/v1/cells/anna/hold", json!({ "for": 60_000 })).await.code(), Code::UnknownUser);
    assert_eq!(world.delete("/v1/cells/anna/hold").await.code(), Code::UnknownUser);
    assert_eq!(world.get("/v1/cells/anna/events").await.code(), Code::UnknownUser);
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    for wrong in [json!({ "stop_after": 1 }), json!({ "stop_after": u64::MAX }), json!({ "colour": "red" })] {
        assert_eq!(
            world.put("/v1/users/anna/sleep", wrong.clone()).await.code(),
            Code::BadRequest,
            "{wrong}"
        );
    }
    for wrong in
        [json!({}), json!({ "for": 0 }), json!({ "for": 2_592_060_000_u64 }), json!({ "for": u64::MAX })]
    {
        assert_eq!(
            world.post("/v1/cells/anna/hold", wrong.clone()).await.code(),
            Code::BadRequest,
            "{wrong}"
        );
    }
    assert_eq!(world.put("/v1/users/anna/sleep", json!({})).await.status, 200, "nothing is asked for");
    assert_eq!(world.delete("/v1/cells/anna/hold").await.status, 200, "there is none");
    world.end().await;
}

#[tokio::test]
async fn what_a_node_says_of_sleep_and_swap_is_shown_to_whoever_asks() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = sleepy_node(&world, "n1", 1).await;
    let user: User = world.post("/v1/users", json!({ "slug": "anna" })).await.json();
    let assignment = node.next_desired().await.assignments[0].clone();
    assert_eq!(world.get("/v1/cells/anna").await.json::<Value>()["sleep"], Value::Null);
    node.heartbeat(vec![status(&assignment, CellState::Frozen)]).await;
    let cells = vec![asleep(user.cell), asleep(CellId::from_random([9; 16]))];
    node.send(&NodeFrame::Sleep { swap: swap(Ok("memory.reclaim")), cells }).await;
    let cell = world.until("/v1/cells/anna", |cell| cell["sleep"].is_object()).await;
    assert_eq!(serde_json::from_value::<Cell>(cell).unwrap().sleep, Some(asleep(user.cell)));
    let events: List<CellEvent> = world.get("/v1/cells/anna/events").await.json();
    assert_eq!(events.items, asleep(user.cell).events);
    let why: Value = world.get("/v1/cells/anna/why").await.json();
    let lines = why["lines"].to_string();
    for part in [
        "schedule wakes it next",
        "leaves swap and is stopped",
        "has 680 MiB in swap",
        "could-not-sleep: a run",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    let shown: Node = world.get("/v1/nodes/n1").await.json();
    let swap_shown = shown.swap.unwrap();
    assert_eq!((swap_shown.freezes, swap_shown.detail.as_str()), (true, "memory.reclaim"));
    assert_eq!(swap_shown.budget, Some(Bytes::gib(200)));
    assert_eq!(shown.swap_promised, Bytes::gib(2));

    let held =
        SleepStatus { awake_because: Some(BusyReason::Held { until: UnixMs(70_000) }), ..asleep(user.cell) };
    let told = NodeFrame::Sleep { swap: swap(Err("no live-restore")), cells: vec![held] };
    node.send(&told).await;
    world
        .until("/v1/cells/anna/why", |why| why["lines"].to_string().contains("it stays awake: an operator"))
        .await;
    let shown: Node = world.get("/v1/nodes/n1").await.json();
    assert_eq!((shown.swap.unwrap().freezes, shown.swap_promised), (false, Bytes::ZERO));
    world.end().await;
}

#[tokio::test]
async fn a_node_that_does_not_freeze_is_used_when_none_does_and_the_placement_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = sleepy_node(&world, "n1", 1).await;
    let told = NodeFrame::Sleep { swap: swap(Err("no live-restore")), cells: vec![] };
    node.send(&told).await;
    world.until("/v1/nodes/n1", |node| node["swap"]["freezes"] == false).await;
    let place = async |slug: &str| world.post("/v1/users", json!({ "slug": slug })).await.json::<User>();
    let anna = place("anna").await;
    assert_eq!(anna.node.as_str(), "n1");
    assert!(anna.placement[0].contains("stopped there, not frozen"), "{:?}", anna.placement);
    let mut other = sleepy_node(&world, "n2", 2).await;
    other.send(&NodeFrame::Sleep { swap: swap(Ok("memory.reclaim")), cells: vec![] }).await;
    world.until("/v1/nodes/n2", |node| node["swap"]["freezes"] == true).await;
    for slug in ["b", "c", "d", "e"] {
        let user = place(slug).await;
        assert_eq!(user.node.as_str(), "n2", "{:?}", user.placement);
        assert!(!user.placement[0].contains("not frozen"), "{:?}", user.placement);
    }
    let full = place("f").await;
    assert_eq!(full.node.as_str(), "n1", "its memory is the freer one: {:?}", full.placement);
    assert!(full.placement.iter().all(|line| line.contains("not frozen")), "{:?}", full.placement);
    assert_eq!(facts().swap, Bytes::ZERO, "what counts is what the nodes told of their swap");
    drop(node);
    world.end().await;
}

#[tokio::test]
async fn an_older_coordinators_frames_are_all_that_an_older_session_hears() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let node = world.node("n1", 1).await;
    let mut node = session(&world, node, 2, SLEEP_SINCE - 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    node.next_desired().await;
    assert_eq!(world.put("/v1/users/anna/sleep", json!({ "stop_after": 60_000 })).await.status, 200);
    node.next_desired().await;
    node.send_heartbeat().await;
    assert_eq!(node.receive().await, CoordinatorFrame::Heard);
    world.end().await;
}
