//! Coordinator and agent killed at every failpoint (`berth_failpoint`), one after the other, and started again: every
//! acknowledged write is there, the journal of whoever died verifies where it lies, no container is doubled, nothing of
//! a removed user is left, nobody else's cell is touched, and the cell wakes with its data (invariant 8).
//!
//! ```text
//! tour     every step once, nothing armed: which points does which step pass, and how often?
//! kills    walk to a step that passes a point that is due; arm; begin the step; the daemon dies; verify its journal;
//!          start it again; finish the step; look at everything
//! ```
//!
//! Points are armed through a file, so that arming costs no restart. Each point is killed at [`armory::wanted`] times, at
//! passes spread over those that were counted. `scripts/kills` runs this with five each and prints what was covered.
//!
//! What is killed by which test is said in `areas`, point by point. Six tests for the agent on real Docker, by areas, so that
//! some go on at a time; first starts, joins and changes of a node's key (`first`, `keys`) need no container. The few that a
//! life has no place for: prunes (`pruning`), the fleet key (`keystore`), images that are pulled (`pulling`), and in
//! `stories/image.rs` those that are changed.
#![cfg(debug_assertions)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a panic in a test is its report, and its output is read by people"
)]

mod areas;
mod armory;
mod first;
mod keys;
mod keystore;
mod life;
mod pruning;
mod pulling;
mod serving;
mod steps;

use life::Life;

#[tokio::test]
async fn an_agent_killed_between_steps_of_a_cells_disk_leads_back_to_the_truth() {
    Life::through("disk").await;
}

#[tokio::test]
async fn an_agent_killed_between_steps_of_folder_rules_and_routes_leads_back_to_the_truth() {
    Life::through("around").await;
}

#[tokio::test]
async fn an_agent_killed_around_calls_of_the_engine_leads_back_to_the_truth() {
    Life::through("engine").await;
}

#[tokio::test]
async fn an_agent_killed_between_intent_operation_and_report_leads_back_to_the_truth() {
    Life::through("operations").await;
}

#[tokio::test]
async fn an_agent_killed_while_it_writes_its_journal_leads_back_to_the_truth() {
    Life::through("journal").await;
}

#[tokio::test]
async fn an_agent_killed_around_snapshots_archives_and_restores_leads_back_to_the_truth() {
    Life::through_with_a_bucket("bucket").await;
}
