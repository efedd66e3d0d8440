//! Stories of a whole Berth on one machine: the real programs and real containers, also killed at the worst moments.
//!
//! Each story has a world of its own and they take turns. Slow ones are in `stories_long`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a panic in a test is its report, and its output is read by people"
)]

mod archive;
mod asked_meanwhile;
mod coordinator_away;
mod databases;
mod frozen;
mod image;
mod import;
mod ingress_away;
mod keys;
mod kills;
mod lease;
mod lost_coordinator;
mod orphans;
mod pull;
mod reading;
mod schedule;
mod snapshots;
mod tabs;
mod two_nodes;
mod walk;

use std::time::Duration;

use berth_tests::world::World;
use berth_tests::world::front::Front;
use serde_json::Value;

/// Quiet time of cells: stories wait for it. The ingress reports their use once a second; were it no longer than that, a
/// rest would often be tried on old news and be refused.
const SOON: Duration = Duration::from_millis(1500);

/// Long enough that no story sees it.
const NOT_IN_THIS_STORY: Duration = Duration::from_secs(3600);

/// Who the cell is: its boot, its data, its starts.
async fn whoami(front: &Front) -> Value {
    front.get("/whoami").await.ok(200)
}

/// The session of a browser that logged in by a fresh link.
async fn log_in(world: &World, slug: &str) -> Front {
    let link = world.login_link(slug).await;
    let front = world.front(slug);
    front.logged_in(&front.redeem(&link).await)
}
