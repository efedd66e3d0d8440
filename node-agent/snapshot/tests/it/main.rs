//! Snapshots and restores against an S3 server in the same process.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

mod faults;
mod hostile;
mod kills;
mod look;
mod online;
mod restic;
mod rounds;
mod store;
mod support;
mod verify;
mod within;
