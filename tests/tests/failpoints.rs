//! The failpoints that the daemons list are those that `failpoints_long` (`scripts/kills`) kills at, and a few that are named
//! with the reason why nobody does.
#![cfg(debug_assertions)]
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

#[path = "failpoints_long/areas.rs"]
mod areas;
