//! Nodes that work alone, and a coordinator that gives their users away: the production machines of both ends
//! ([`berth_node_agent_core::agent::Agent`] with its lease, [`berth_coordinator_core::Fleet`] and its `silence`) in a world of
//! machines that are switched off, networks that are cut, clocks that drift and are set, and operators who declare.
//!
//! | rule | what must be true |
//! |---|---|
//! | lease | a cell runs at most for the lease and a stop's time behind its node's last contact, whatever the wall clocks say |
//! | early | a lease is not over before its time on a machine that was not rebooted since the contact |
//! | move | a user of a silent node is given away only when nothing of it runs there any more |
//! | two | a cell runs on two nodes only where an operator has declared the first one off, and then inside its lease only |
//! | told | behind the end of its lease a node starts a cell only after it was told in a new session what shall run there |
//! | boot | a node that was switched on starts a cell only after it was told what shall run there, or has asked for that in vain |
//! | disk | the disk of a user who is still there is never destroyed, and never taken for the newest when it is not |
//! | end | in the end each user runs on its own node when it is woken, and nowhere else |
//!
//! `SIM_SEEDS`, `SIM_BASE` and `SIM_SEED` as in the lifecycle's simulation, with one story here for ten there: each is of a day
//! and more.
#![expect(clippy::indexing_slicing, reason = "an index out of range is a bug of the simulation, to be seen")]

mod check;
mod coordinator;
#[path = "../common/dice.rs"]
mod dice;
mod node;
#[path = "../common/roomy.rs"]
mod roomy;
mod world;

use std::collections::BTreeMap;

use world::World;

/// One story of this world is as long as so many of the others.
const STORIES_PER: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("SIM_… are numbers"))
}

#[test]
fn a_user_runs_in_one_place_whoever_is_away_for_however_long() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let base = number("SIM_BASE").unwrap_or(1);
            base..base + number("SIM_SEEDS").map_or(100, |seeds| seeds.div_ceil(STORIES_PER))
        }
    };
    let trace = number("SIM_SEED").is_some();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds.clone() {
        match World::new(seed, trace).run() {
            Ok(more) => more.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count),
            Err(told) => {
                let told =
                    if trace { told } else { World::new(seed, true).run().expect_err("the same story") };
                panic!("SIM_SEED={seed} replays: {told}");
            }
        }
    }
    println!("seeds {seeds:?}: {counts:?}");
    if seeds.end - seeds.start >= 50 {
        // A world in which these never happen tests nothing.
        for what in [
            "leases over",
            "moves after silence",
            "moves after a word",
            "returns",
            "told after a reboot",
            "reboots",
            "clock steps",
            "left behind",
            "destroyed",
            "coordinator restarts",
        ] {
            assert!(counts.get(what).is_some_and(|count| *count > 0), "no {what} in {seeds:?}: {counts:?}");
        }
    }
}
