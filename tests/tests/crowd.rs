//! Fifty first requests at once (invariant 4, single-flight): one start by Docker's own word, and everybody answered,
//! whether the start works, fails at first, or fails for good.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_tests::lab::shell::say;
use berth_tests::world::engine::Recorder;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;
use tokio::task::JoinSet;

const CROWD: usize = 50;

/// Calls are held for 30 s (`limits.hold_call_ms`); the rest is for the answer's own way.
const ANSWERED_WITHIN: Duration = Duration::from_secs(32);

/// How often a failed start is tried again while somebody waits (`START_TRIES_MAX` of the lifecycle).
const START_TRIES: usize = 3;

/// Long enough for a crowd's whole story, short enough to wait for.
const IDLE: Duration = Duration::from_secs(2);

/// How a crowd fared: how many got their own echo, how many were refused with which code, and the longest wait.
#[derive(Debug, Default)]
struct Fared {
    echoed: usize,
    refused: BTreeMap<String, usize>,
    longest: Duration,
}

/// Sends a crowd of distinct requests at once, and checks each answer.
async fn crowd(member: &Member, word: &str) -> Fared {
    let mut waiting = JoinSet::new();
    for number in 0..CROWD {
        let (front, body) = (member.front.clone(), format!("{word}-{number}"));
        waiting.spawn(async move {
            let begun = Instant::now();
            let reply = front.post(&format!("/echo?n={number}"), body.clone()).await;
            (body, reply, begun.elapsed())
        });
    }
    let mut fared = Fared::default();
    while let Some(answered) = waiting.join_next().await {
        let (body, reply, took) = answered.unwrap();
        let answer = reply.json();
        if reply.status == 200 {
            assert_eq!(answer["body"], body.as_str(), "somebody else's echo");
            assert_eq!(answer["path"], format!("/echo?n={}", body.rsplit('-').next().unwrap()));
            fared.echoed += 1;
        } else {
            let code = answer["code"].as_str().unwrap_or_else(|| panic!("no code: {}", reply.text()));
            assert_eq!(reply.header("content-type"), "application/problem+json", "{}", reply.text());
            *fared.refused.entry(code.to_owned()).or_default() += 1;
        }
        fared.longest = fared.longest.max(took);
    }
    assert!(fared.longest <= ANSWERED_WITHIN, "{fared:?}");
    say(&format!("  {word}: {fared:?}"));
    fared
}

/// Waits until the cell is at rest, by Docker's word and by Berth's.
async fn asleep(world: &World, member: &Member, rest: Rest) {
    let container = if rest == Rest::Freeze { "paused" } else { "exited" };
    world.container_is(&member.cell, container).await;
    world.cell_is(&member.slug, rest.state()).await;
}

async fn counts(seen: &Recorder, member: &Member, expected: &[(&str, usize)]) {
    for (action, count) in expected {
        let found = seen.count(&member.cell, action).await;
        assert_eq!(found, *count, "`{action}` in Docker's events: {:#?}", seen.all().await);
    }
}

async fn misbehaves(member: &Member, mode: serde_json::Value) {
    member.front.post("/control", mode.to_string()).await.ok(200);
}

#[tokio::test]
async fn a_crowd_at_a_sleeping_cell_causes_one_start_and_everybody_gets_their_own_answer() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, IDLE).await;
    let bert = world.create_running("bert", Rest::Freeze, IDLE).await;

    asleep(&world, &anna, Rest::Stop).await;
    let seen = world.engine.record();
    assert_eq!(crowd(&anna, "stopped").await.echoed, CROWD);
    counts(&seen, &anna, &[("start", 1), ("create", 0), ("destroy", 0)]).await;

    asleep(&world, &bert, Rest::Freeze).await;
    let seen = world.engine.record();
    assert_eq!(crowd(&bert, "frozen").await.echoed, CROWD);
    counts(&seen, &bert, &[("unpause", 1), ("start", 0), ("create", 0)]).await;

    // Killed while it was frozen: whether or not the agent has heard of it yet, a thaw cannot be had any more.
    asleep(&world, &bert, Rest::Freeze).await;
    let container = world.engine.containers_of(&bert.cell).await[0].id.clone();
    let seen = world.engine.record();
    world.engine.docker().kill_container(&container, None).await.unwrap();
    assert_eq!(crowd(&bert, "killed frozen").await.echoed, CROWD);
    counts(&seen, &bert, &[("start", 1), ("create", 0)]).await;

    world.end(&[]).await;
}

#[tokio::test]
async fn a_crowd_at_a_cell_that_fails_to_start_is_answered_after_no_more_starts_than_are_documented() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, IDLE).await;
    let bert = world.create_running("bert", Rest::Stop, IDLE).await;

    misbehaves(&anna, json!({ "exit_at_start": 1, "exit_at_start_times": 1 })).await;
    asleep(&world, &anna, Rest::Stop).await;
    let seen = world.engine.record();
    assert_eq!(crowd(&anna, "first start fails").await.echoed, CROWD);
    counts(&seen, &anna, &[("start", 2), ("create", 0)]).await;

    misbehaves(&bert, json!({ "exit_at_start": 1, "exit_at_start_times": START_TRIES })).await;
    asleep(&world, &bert, Rest::Stop).await;
    let seen = world.engine.record();
    let fared = crowd(&bert, "every start fails").await;
    assert_eq!(fared.refused, BTreeMap::from([("cell_exited".to_owned(), CROWD)]));
    counts(&seen, &bert, &[("start", START_TRIES)]).await;

    // Nobody waits any more, so nothing is tried any more. Who comes later is served.
    eventually("the cell is well again", BOUND, async || {
        let reply = bert.front.get("/whoami").await;
        (reply.status == 200).then_some(())
    })
    .await;
    counts(&seen, &bert, &[("start", START_TRIES + 1)]).await;
    world.end(&[]).await;
}
