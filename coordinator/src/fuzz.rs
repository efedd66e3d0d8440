//! The private parsers of this crate, for the fuzz targets of tests/fuzz. Nothing else may use this module: it decides
//! nothing, and its functions change with what they stand for.

use berth_coordinator_core::rebuild::Listing;
use berth_shared::ids::UserId;
use berth_shared::snapshot::Snapshot;
use berth_snapshot::protocol::SnapshotLine;

use crate::heads;

pub use crate::keystore::fuzz::{
    backup_expires, key_backup, key_store, key_text, opens, sample_backup, sample_key_text, sample_store,
};

/// A listing of the bucket that somebody else made.
pub fn listing(bytes: &[u8]) -> Option<Listing> {
    heads::listing(bytes).ok()
}

/// A snapshot of this user by its own tags.
pub fn by_its_tags(line: SnapshotLine, user: UserId) -> Option<Snapshot> {
    heads::by_its_tags(line, user)
}
