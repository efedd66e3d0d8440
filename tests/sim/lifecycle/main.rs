//! The lifecycle of cells under seeds of faults. The production machine ([`berth_node_agent_core::agent::Agent`])
//! drives an invented world that keeps its own truth; what is checked is the truth, not what the machine believes.
//!
//! | rule | what must be true |
//! |---|---|
//! | a | one operation on a cell at a time; a container that is up is never started by one who knows it; what is gone is gone |
//! | b | no cell is paused or stopped in the middle of something; where the engine sat on a pause until the consent was void, it is undone |
//! | c | in quiet time a wake is served within its bound |
//! | d | in quiet time every cell is at the rest of its policy; no request reaches a workload that is suspended |
//! | e | the front door does not think for long that a cell runs which does not |
//! | f | a command is answered exactly once, truly, and never carried out for a stale assignment |
//! | g | somebody else's container is never touched, and ours is never taken for somebody else's |
//! | h | one event has few effects, and nobody spins |
//! | i | numbers of operations never repeat, and an intent is durable before its operation |
//! | j | no more cells start at a time than may |
//! | k | no image runs on what another one has written before there is a snapshot of that |
//!
//! `SIM_SEEDS` says how many seeds (default 1500), `SIM_BASE` where they begin, `SIM_SEED` replays one and tells more of
//! it; with `SIM_ALL` a broken seed is counted and the others go on.
#![expect(clippy::indexing_slicing, reason = "an index out of range is a bug of the simulation, to be seen")]

mod actors;
mod check;
mod containers;
#[path = "../common/dice.rs"]
mod dice;
mod door;
mod driver;
mod engine;
mod judge;
mod ops;
mod plan;
mod program;
#[path = "../common/roomy.rs"]
mod roomy;
mod world;

use std::collections::BTreeMap;

use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("SIM_… are numbers"))
}

#[test]
fn every_cell_is_served_and_rests_whatever_fails() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let base = number("SIM_BASE").unwrap_or(1);
            base..base + number("SIM_SEEDS").unwrap_or(1500)
        }
    };
    let mut failures: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    // Asked for one seed, somebody wants to know more than its end.
    let trace_max = if number("SIM_SEED").is_some() { 20_000 } else { 120 };
    let keep_going = number("SIM_ALL").is_some();
    for seed in seeds.clone() {
        match World::new(seed, 0).run() {
            Ok(more) => {
                for (what, count) in more {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(_) => {
                let told = World::new(seed, trace_max).run().expect_err("the same seed, the same story");
                let first = told.lines().next().unwrap_or_default();
                let kind: String = first.chars().filter(|c| !c.is_ascii_digit()).collect();
                failures.entry(kind).or_insert((seed, 0, told)).1 += 1;
                if !keep_going {
                    break;
                }
            }
        }
    }
    println!("seeds {seeds:?}: {counts:?}");
    for (kind, (seed, count, told)) in &failures {
        println!("\n{count} of: {kind}\nSIM_SEED={seed} replays: {told}");
    }
    assert!(failures.is_empty(), "broken: {:?}", failures.keys().collect::<Vec<_>>());
    if seeds.end - seeds.start >= 500 {
        // A world in which these never happen tests nothing.
        for what in [
            "agent deaths",
            "starts",
            "commands",
            "disasters",
            "judged wakes",
            "late pauses",
            "images pulled",
            "images changed",
        ] {
            assert!(counts.get(what).is_some_and(|count| *count > 0), "no {what} in {seeds:?}");
        }
    }
}
