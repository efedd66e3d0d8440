//! A week of two hundred cells on one node, in seconds. The production machine
//! ([`berth_node_agent_core::agent::Agent`]) drives an invented world that keeps its own truth: containers, what their
//! workloads do and what jobs they have, memory, swap, held requests, open tabs, people. What is checked is the truth.
//!
//! | rule | what must be true |
//! |---|---|
//! | a | a request is answered or refused once, within its bound; in fair time it is served; a message typed into an open tab is delivered once, or its socket ends |
//! | b | no cell is paused, stopped or killed with work under way, its own jobs and work that it does not own up to included |
//! | c | no due job of a cell is missed or late: 30 s from rest, 150 s and 5 s for each job behind an outage |
//! | d | nothing reaches a workload that is suspended |
//! | e | no cell stays paused without its consent |
//! | f | a command is answered exactly once |
//! | g | a frozen cell is never thawed in order to be stopped |
//! | h | one event has few effects, and nobody spins |
//! | i | numbers of operations never repeat, and an intent is durable before its operation |
//! | j | no more cells start at a time than may; thaws go one by one |
//! | k | swap that is promised to cells is there |
//! | l | cells leave swap only when it is short, the longest-frozen first and those with an open tab last; after T2; when out of date; and then they do |
//! | m | a cell that is held awake stays so, and one that is woken again and again rests more rarely |
//! | n | nothing is woken for nobody, an abandoned tab least of all, nor for its having ended at rest; a cell that nobody uses rests |
//!
//! `SIM_SEEDS` says how many seeds (default 2), `SIM_BASE` where they begin, `SIM_SEED` replays one and tells more of it,
//! `SIM_DAYS` how long a story is (default 1, a plain build is slow; `scripts/test` takes 7 in the `sim` profile).
#![expect(clippy::indexing_slicing, reason = "an index out of range is a bug of the simulation, to be seen")]

mod check;
mod container;
#[path = "../common/dice.rs"]
mod dice;
mod disasters;
mod door;
mod driver;
mod jobs;
mod ops;
mod people;
mod plan;
mod swap;
mod tabs;
mod truth;
mod world;

use std::collections::BTreeMap;

use world::World;

/// What a run of two seeds and more must have seen: a world in which these never happen tests nothing.
const SEEN: [&str; 15] = [
    "agent deaths",
    "reboots",
    "clock steps",
    "engine away",
    "frozen",
    "stopped",
    "thaws",
    "starts",
    "jobs run",
    "served",
    "typed into rest",
    "left swap",
    "refused for undeclared work",
    "short pushes",
    "thinned",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("SIM_… are numbers"))
}

#[test]
fn two_hundred_cells_sleep_and_wake_for_a_week_and_nobody_waits_in_vain() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let base = number("SIM_BASE").unwrap_or(1);
            base..base + number("SIM_SEEDS").unwrap_or(2)
        }
    };
    let days = number("SIM_DAYS").unwrap_or(1);
    let trace_max = if number("SIM_SEED").is_some() { 60_000 } else { 400 };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds.clone() {
        match World::new(seed, days, 0).run() {
            Ok(more) => {
                for (what, count) in more {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(_) => {
                let told =
                    World::new(seed, days, trace_max).run().expect_err("the same seed, the same story");
                panic!("SIM_SEED={seed} replays: {told}");
            }
        }
    }
    println!("seeds {seeds:?}: {counts:?}");
    if seeds.end - seeds.start >= 2 && days >= 7 {
        for what in SEEN {
            assert!(counts.get(what).is_some_and(|count| *count > 0), "no {what} in {seeds:?}");
        }
    }
}
