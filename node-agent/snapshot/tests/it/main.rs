//! Snapshots and restores against an S3 server in the same process; `contract` also against a real one.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

mod bounds;
mod contract;
mod faults;
#[cfg(feature = "long")]
mod garage;
mod hostile;
mod import;
mod kills;
mod look;
mod objects;
mod online;
mod paths;
mod read;
mod restic;
mod rounds;
mod shut;
mod store;
mod support;
mod verify;
mod within;
