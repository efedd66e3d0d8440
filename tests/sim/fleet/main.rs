//! Users, nodes and failures at random, through the coordinator's production machine
//! ([`berth_coordinator_core::Fleet`]). What is checked is a book of its own, kept from the events alone.
//!
//! | rule | what must be true |
//! |---|---|
//! | generation | grows with every assignment of a name, over the user's removal and over epochs, and is never given twice |
//! | one home | a user is given to one node at a time; each node is told exactly of those given to it |
//! | room | no node is promised more than the policy lets it; a refusal for want of room is true |
//! | why | the chosen node is the first line of the explanation; every node has a line |
//! | revision | what a node is told changes only together with its revision, which only grows |
//! | replay | the events, encoded and read back, make the same state; what was refused changed nothing |
//! | keys | a dead key, a revoked node, an old join counter open nothing; a token lets one machine in; a lock is written once; who is locked or revoked is given nothing new |
//! | stale | an assignment with an older or equal generation is a misfit |
//!
//! `SIM_SEEDS`, `SIM_BASE` and `SIM_SEED` as in the lifecycle's simulation.

#[path = "../common/dice.rs"]
mod dice;

mod book;
mod keys;
mod story;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("SIM_… are numbers"))
}

#[test]
fn every_user_has_one_home_with_room_and_a_generation_of_its_own() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let base = number("SIM_BASE").unwrap_or(1);
            base..base + number("SIM_SEEDS").unwrap_or(300)
        }
    };
    let mut totals = story::Totals::default();
    for seed in seeds.clone() {
        if let Err(told) = story::Story::new(seed).run(&mut totals) {
            panic!("SIM_SEED={seed} replays: {told}");
        }
    }
    println!("{totals:?}");
    // A story in which these never happen tests nothing.
    assert!(
        totals.assigned > 0
            && totals.no_room > 0
            && totals.removed > 0
            && totals.replays > 0
            && totals.rotations > 0
            && totals.locks > 0
            && totals.rejoins > 0,
        "{totals:?}"
    );
}
