//! What a cell cannot do (DESIGN section 11, invariants 5 and 9), tried from inside: with a workload that does whatever
//! a hostile tenant would.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

mod attempts;
mod greedy;
mod hostile;
mod limits;
mod network;
mod profile;
mod quarantine;
