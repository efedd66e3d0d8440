//! Snapshots of cells' folders in an S3 store, in restic's format: incremental, deduplicated, compressed, encrypted with
//! the user's own key, and readable by stock `restic`.
//!
//! The work is done by a child process ([`worker`]) that the daemon starts and may kill at any moment ([`caller`]).
//! They speak the [`protocol`]. docs/decisions/0006 says why it is so.

pub mod beneath;
pub mod caller;
mod check;
mod error;
mod excludes;
pub mod fuzz;
mod import;
mod labels;
mod look;
mod objects;
mod progress;
pub mod protocol;
mod prune;
mod read;
mod repository;
mod restore;
mod snapshot;
mod source;
mod sqlite;
pub mod store;
mod tar;
mod tree;
mod tree_hash;
mod walk;
pub mod worker;

pub use check::Checked;
pub use error::{Failure, Reason};
pub use excludes::{RESTORE_STAGING, is_not_the_cells};
pub use import::{ImportJob, ImportLimits, Imported, Layout, LeftOut};
pub use labels::Labels;
pub use objects::OBJECT_BYTES_MAX;
pub use prune::{PruneJob, Pruned};
pub use repository::{Chunking, OpenRepository, RepositoryKey, init, open};
pub use restore::verify::{Verified, VerifyJob};
pub use restore::{RestoreJob, Restored};
pub use snapshot::{SnapshotJob, Taken};
pub use tree::tree_hash;
pub use walk::{Skips, WalkLimits};
