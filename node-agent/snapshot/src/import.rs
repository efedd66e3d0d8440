//! Data that a user brings along: an archive of strangers is unpacked into a private folder, what opened the gateway
//! that it comes from is taken out, and the rest becomes a snapshot of the user's repository, as if a node had taken it.
//!
//! ```text
//!  archive ──judged──> staging/… ──the workload's own folder──> without the gateway's credentials ──> snapshot
//! ```
//!
//! Nothing but the snapshot is left behind, and that is written last: killed anywhere, there is the old state, and a
//! staging folder for whoever made it to remove.

mod archive;
mod entry;
pub(crate) mod fuzz;
mod gateway;
mod layout;
mod unpack;

use std::io::Read;
use std::path::PathBuf;

use berth_shared::cell::Workload;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::labels::Labels;
use crate::progress::Meter;
use crate::repository::OpenRepository;
use crate::snapshot::{SnapshotJob, Taken, take_first};
use crate::walk::WalkLimits;

/// What a tar has beside its files' content for each entry, in bytes: headers and filling, mostly 1 KiB.
const OVERHEAD_BYTES: u64 = 2048;

/// Most names of left out entries that are told.
const NAMES_MAX: usize = 20;

/// What to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportJob {
    /// An empty folder, in which the archive is unpacked. It is removed by whoever made it.
    pub staging: PathBuf,
    /// The tags of the snapshot.
    pub labels: Labels,
    /// How much may be in it.
    pub limits: ImportLimits,
}

/// How much of an archive is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportLimits {
    /// Most files, folders and links.
    pub entries_max: u64,
    /// Most bytes of files.
    pub bytes_max: u64,
}

impl ImportLimits {
    /// Most bytes of an archive, with gzip and without.
    const fn stream_bytes_max(self) -> u64 {
        self.bytes_max.saturating_add(self.entries_max.saturating_mul(OVERHEAD_BYTES))
    }
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The snapshot.
    pub taken: Taken,
    /// What the archive was taken for.
    pub layout: Layout,
    /// What is not in the snapshot.
    pub left_out: LeftOut,
    /// What opened the gateway that the data comes from, and does no more.
    pub rotated: Vec<String>,
    /// What somebody should look at.
    pub notes: Vec<String>,
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A state folder of OpenClaw.
    StateFolder,
    /// What `openclaw fleet backup` writes.
    FleetBackup,
    /// Files of a workload that Berth knows nothing of.
    Files,
}

/// What was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeftOut {
    /// Symbolic links.
    pub links: u64,
    /// Up to 20 of their names.
    pub names: Vec<String>,
}

impl LeftOut {
    fn link(&mut self, name: String) {
        self.links += 1;
        if self.names.len() < NAMES_MAX {
            self.names.push(name);
        }
    }
}

/// Imports what comes from `input`.
///
/// # Errors
/// [`Failure`]; then there is no new snapshot, or one that nobody is told of.
pub(crate) fn import(
    repository: OpenRepository,
    job: &ImportJob,
    input: &mut dyn Read,
    meter: &Meter,
) -> Result<Imported, Failure> {
    job.labels.validate()?;
    let archive = archive::Archive::new(input, job.limits.stream_bytes_max())?;
    let left_out = unpack::unpack(archive, &job.staging, job.limits, meter)?;
    let found = layout::find(&job.staging, job.labels.workload)?;
    if let Some(image) = found.image.filter(|image| job.labels.is_older_than(image)) {
        return Err(Failure::NewerImage { image: image.to_string() });
    }
    let mut notes = found.notes;
    let rotated = match job.labels.workload {
        Workload::Openclaw => gateway::rotate(&found.root, &mut notes)?,
        Workload::Http => vec![],
    };
    let taking = SnapshotJob {
        folder: found.root,
        labels: job.labels.clone(),
        parent: None,
        anew: false,
        online: false,
        scratch: None,
        digests: None,
        unless: None,
        database_ms: 0,
        limits: WalkLimits::default(),
    };
    let taken = take_first(repository, &taking, meter)?;
    if taken.skips.is_incomplete() || taken.skips.vanished > 0 {
        return Err(archive::bad("not all of it could be put into a snapshot"));
    }
    Ok(Imported { taken, layout: found.layout, left_out, rotated, notes })
}

#[cfg(test)]
mod tests;
