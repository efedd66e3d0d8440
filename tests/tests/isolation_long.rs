//! Cells stay shut in when somebody flushes the machine's packet rules, and come back when they stop themselves. Built only
//! with the feature `long`.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

#[path = "isolation/attempts.rs"]
mod attempts;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attempts::Attempts;
use berth_tests::lab::shell::{run, say};
use berth_tests::world::wait::eventually;
use berth_tests::world::{Options, Rest, World};

const LONG: Duration = Duration::from_secs(600);

/// The agent checks its rules every minute.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Four probes without an answer, thirty seconds apart, and a stop that SIGTERM does not hasten.
const AGAIN_WITHIN: Duration = Duration::from_secs(600);

/// One look at everything takes as long as a cell waits for what does not answer.
const LOOK: Duration = Duration::from_secs(10);

/// The rules of everybody else on this machine, Docker's above all. Put back when dropped.
struct OthersRules(Vec<(&'static str, String)>);

impl OthersRules {
    fn keep() -> Self {
        Self(["iptables", "ip6tables"].map(|family| (family, run(&format!("{family}-save"), &[]))).into())
    }
}

impl Drop for OthersRules {
    fn drop(&mut self) {
        for (family, rules) in &self.0 {
            let restore = Command::new(format!("{family}-restore")).stdin(Stdio::piped()).spawn();
            let mut child = restore.expect("what saved can restore");
            let written = child.stdin.take().map(|mut input| input.write_all(rules.as_bytes()));
            let ended = child.wait();
            say(&format!("  {family}: put back, {written:?}, {ended:?}"));
        }
    }
}

#[tokio::test]
async fn a_minute_after_all_packet_rules_were_flushed_cells_are_shut_in_again() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::Stop, LONG).await;
    let bert = world.create_running("bert", Rest::Stop, LONG).await;
    let attempts = Attempts::prepare(&world, &anna, &bert).await;
    attempts.targets_are_there();
    assert_eq!(attempts.reached(&anna).await, Vec::<String>::new());

    let others = OthersRules::keep();
    run("nft", &["flush", "ruleset"]);
    let begun = Instant::now();
    let reached = attempts.reached(&anna).await;
    say(&format!("  without rules a cell reaches: {reached:#?}"));
    assert!(!reached.is_empty(), "nothing is reached without rules either: this test could not fail");
    eventually("the cell is shut in again", BACK_WITHIN + LOOK, async || {
        attempts.reached(&anna).await.is_empty().then_some(())
    })
    .await;
    say(&format!("  shut in again after {:.0?}", begun.elapsed()));
    assert!(attempts.internet_works(&anna).await, "an ordinary port of the internet is not reached");
    drop(others);
    assert!(attempts.internet_works(&anna).await, "with everybody's rules back, the internet is not reached");
    assert_eq!(attempts.reached(&anna).await, Vec::<String>::new());
    world.end(&[]).await;
}

#[tokio::test]
async fn a_cell_that_stops_itself_is_started_again() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, LONG).await;
    let bert = world.create_running("bert", Rest::AlwaysOn, LONG).await;
    anna.front.post("/state/mine", "kept").await.ok(200);
    let boot = anna.front.get("/whoami").await.ok(200)["bootId"].clone();
    // It stops before it can answer.
    let _unanswered = tokio::time::timeout(LOOK, anna.front.try_get("/signal-self?sig=STOP")).await;
    let begun = Instant::now();
    eventually("the cell that stopped itself is up again", AGAIN_WITHIN, async || {
        bert.front.get("/whoami").await.ok(200);
        let asked = tokio::time::timeout(LOOK, anna.front.try_get("/whoami")).await;
        let reply = asked.ok()?.ok().filter(|reply| reply.status == 200)?;
        (reply.json()["bootId"] != boot).then_some(())
    })
    .await;
    say(&format!("  up again after {:.0?}", begun.elapsed()));
    assert_eq!(anna.front.get("/state/mine").await.text(), "kept");
    world.end(&[]).await;
}
