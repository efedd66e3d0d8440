//! The tree hash of a folder, for whoever wants to compare.

use std::path::Path;
use std::sync::Arc;

use berth_shared::cell::Workload;

use crate::error::Failure;
use crate::source::{Source, SourceOptions};
use crate::walk::{WalkLimits, open_cell};

/// The tree hash of a folder that is at rest, without what stays out of snapshots of this workload. Reads all of it.
/// How it is computed: `tree_hash.rs`, and docs/decisions/0006.
///
/// # Errors
/// A file or folder cannot be read.
pub fn tree_hash(folder: &Path, workload: Workload, limits: WalkLimits) -> Result<String, Failure> {
    let root = open_cell(folder).map_err(|errno| Failure::io("open", folder, errno))?;
    Source::new(Arc::new(root), SourceOptions { workload, limits, online: None }, None).tree_by_reading()
}
