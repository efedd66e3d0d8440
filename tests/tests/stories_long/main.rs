//! Stories that take minutes, or restart what every other test stands on. Built only with the feature `long`, so that
//! a run without it does not count them as passed: `cargo nextest run -p berth-tests --features long`.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod dockerd_restarted;
mod network_cut;
mod schedule;

use std::time::Duration;

use berth_tests::world::front::Front;
use serde_json::Value;

/// Quiet time of the cells: their use is reported once a second.
const SOON: Duration = Duration::from_millis(1500);

/// Who the cell is: its boot, its data, its starts.
async fn whoami(front: &Front) -> Value {
    front.get("/whoami").await.ok(200)
}
