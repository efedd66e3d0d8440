//! Taking a snapshot: read and hash the folder, write what is new, and at last the snapshot itself with its tags.
//!
//! Nothing that is written before the last step can be seen: killed anywhere, there is the old state, and some packs
//! that the next prune finds. Where the tree hash is the parent's, there is no last step.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustic_core::jiff::Zoned;
use rustic_core::repofile::{SnapshotFile, StringList};
use rustic_core::{BackupOptions, ParentOptions, RusticError, SnapshotGroupCriterion, SnapshotOptions};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::labels::Labels;
use crate::progress::Meter;
use crate::repository::{OpenRepository, Opening};
use crate::source::{Digests, Online, SNAPSHOT_ROOT, Shared, Source, SourceOptions};
use crate::walk::{Skips, WalkLimits, open_cell};

/// Longest time for the copy of one database.
const DATABASE_MS: u64 = 30_000;

/// What to take a snapshot of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotJob {
    /// The cell's folder.
    pub folder: PathBuf,
    /// The tags.
    pub labels: Labels,
    /// The snapshot before, by its whole id; without it the newest one of the cell that the repository has.
    #[serde(default)]
    pub parent: Option<String>,
    /// Write a snapshot also of what the parent stands for already: nobody may have told of that one.
    #[serde(default)]
    pub anew: bool,
    /// Is the cell running? Then SQLite databases are copied with SQLite's online backup, which needs `scratch`.
    #[serde(default)]
    pub online: bool,
    /// An empty folder on the node's disk for copies of databases. Not the cell's to reach.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
    /// A file that keeps hashes of files from one snapshot to the next. Not the cell's to reach. Without it all files
    /// are read each time.
    #[serde(default)]
    pub digests: Option<PathBuf>,
    /// Not where this file is: the record of a restore that was cut short, so that the folder is no state at all.
    #[serde(default)]
    pub unless: Option<PathBuf>,
    /// Longest time for the copy of one database, in milliseconds. Default 30 s.
    #[serde(default = "database_ms")]
    pub database_ms: u64,
    /// How much of a folder is looked at.
    #[serde(default)]
    pub limits: WalkLimits,
}

const fn database_ms() -> u64 {
    DATABASE_MS
}

/// What a snapshot came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The snapshot that stands for the folder's state: a new one, or the parent where nothing has changed.
    pub snapshot: String,
    /// Nothing has changed since the parent, so no snapshot was written.
    pub unchanged: bool,
    /// The parent, where there was one.
    pub parent: Option<String>,
    /// The tree hash.
    pub tree: String,
    /// Files, folders and links that were stored.
    pub entries: u64,
    /// Bytes of the files in the snapshot.
    pub bytes: u64,
    /// Bytes of files that were read.
    pub bytes_read: u64,
    /// Bytes that were new to the repository, before compression.
    pub bytes_new: u64,
    /// What was passed over.
    pub skips: Skips,
}

/// Takes the snapshot.
///
/// # Errors
/// [`Failure`]; then there is no new snapshot.
pub(crate) fn take(opening: Opening<'_>, job: &SnapshotJob, meter: &Meter) -> Result<Taken, Failure> {
    let folder = Folder::open(job)?;
    if let Some(id) = &job.parent {
        opening.ask_for_snapshot(id);
    }
    let digests = job.digests.as_deref().and_then(Digests::load).map(Arc::new);
    // Walked while the store answers: where a file is another one, the index is needed, and is asked for.
    let mut walked = match &digests {
        Some(digests) if Some(&digests.snapshot) == job.parent.as_ref() => folder.walk(digests, meter)?,
        _ => None,
    };
    if walked.is_none() {
        opening.ask_for_index();
    }
    let repository = opening.open()?;
    let parent = parent(&repository, job)?;
    // Digests of another snapshot than the parent do not fit: the library would compare with one and hash by the other.
    let fits =
        |digests: &Arc<Digests>| parent.as_ref().is_some_and(|(file, _)| digests.snapshot == id_of(file));
    let digests = digests.filter(fits);
    if let (None, None, Some(digests)) = (&job.parent, &walked, &digests) {
        walked = folder.walk(digests, meter)?;
    }
    if let (Some((walked, is)), Some((file, was))) = (&walked, &parent)
        && is == was
        && !job.anew
    {
        let entries = walked.shared().files.load(std::sync::atomic::Ordering::Relaxed);
        return Ok(unchanged(file, was, entries, walked.shared()));
    }
    write(repository, job, &folder, parent, digests, meter)
}

/// The same where nothing is known of the folder, in a repository that is open.
///
/// # Errors
/// [`Failure`]; then there is no new snapshot.
pub(crate) fn take_first(
    repository: OpenRepository,
    job: &SnapshotJob,
    meter: &Meter,
) -> Result<Taken, Failure> {
    let folder = Folder::open(job)?;
    let parent = parent(&repository, job)?;
    write(repository, job, &folder, parent, None, meter)
}

/// The folder of a job that can be done, as far as one can tell without the store.
struct Folder {
    root: Arc<OwnedFd>,
    options: SourceOptions,
}

impl Folder {
    fn open(job: &SnapshotJob) -> Result<Self, Failure> {
        job.labels.validate()?;
        let online = match (job.online, &job.scratch) {
            (false, _) => None,
            (true, Some(scratch)) => Some(Online {
                scratch: scratch.clone(),
                database_time_max: Duration::from_millis(job.database_ms),
            }),
            (true, None) => {
                return Err(Failure::bad_job("a snapshot of a running cell needs a scratch folder"));
            }
        };
        if job.unless.as_deref().is_some_and(std::path::Path::exists) {
            return Err(Failure::bad_job("a restore of the folder was cut short, and has to be ended first"));
        }
        let root = open_cell(&job.folder).map_err(|errno| Failure::io("open", &job.folder, errno))?;
        let options = SourceOptions { workload: job.labels.workload, limits: job.limits, online };
        Ok(Self { root: Arc::new(root), options })
    }

    fn source(&self, digests: Option<Arc<Digests>>, meter: &Meter) -> Source {
        let source = Source::new(Arc::clone(&self.root), self.options.clone(), digests);
        meter.watch(source.shared());
        source
    }

    /// The folder's tree hash with the source that has it, where no file is another one than `digests` know.
    fn walk(&self, digests: &Arc<Digests>, meter: &Meter) -> Result<Option<(Source, String)>, Failure> {
        let source = self.source(Some(Arc::clone(digests)), meter);
        Ok(source.tree_if_known()?.map(|tree| (source, tree)))
    }
}

/// Writes what is new of the folder, and at last the snapshot, where it is another state than the parent's.
fn write(
    repository: OpenRepository,
    job: &SnapshotJob,
    folder: &Folder,
    parent: Option<(SnapshotFile, String)>,
    digests: Option<Arc<Digests>>,
    meter: &Meter,
) -> Result<Taken, Failure> {
    let OpenRepository { store, gate, inner } = repository;
    let failed = |error: Box<RusticError>| Failure::library(&store, &error);
    let indexed = inner.to_indexed_ids().map_err(failed)?;
    let mut known = digests;
    loop {
        let source = folder.source(known.clone(), meter).settle();
        let shared = Arc::clone(source.shared());
        let mut parents = ParentOptions::default().group_by(SnapshotGroupCriterion::new());
        match (&parent, &known) {
            (Some((file, _)), Some(_)) => parents.parents = vec![id_of(file)],
            _ => parents.force = true,
        }
        let backup = BackupOptions::default().parent_opts(parents).no_scan(true);
        gate.close(true);
        let archived =
            indexed.archive(&backup, &source, bare_snapshot(job)?, &[PathBuf::from(SNAPSHOT_ROOT)]);
        gate.close(false);
        let file = archived.map_err(failed)?;
        // The library goes on after some failures of the store, without the file that could not be stored.
        if let Some(error) = store.take_error() {
            return Err(error.into());
        }
        let Some(mut read) = shared.finish()? else {
            known = None;
            continue;
        };
        let stored = file.summary.as_ref().map_or(0, |summary| summary.total_files_processed);
        let bytes = bytes_of(&file);
        if stored != read.leaves {
            return Err(Failure::Internal {
                detail: format!("{} files and links were read and {stored} stored", read.leaves),
            });
        }
        if let Some((parent, tree)) = &parent
            && *tree == read.tree
            && !job.anew
        {
            let entries = shared.files.load(std::sync::atomic::Ordering::Relaxed);
            read.digests.snapshot = id_of(parent);
            keep(job, &read.digests);
            return Ok(unchanged(parent, tree, entries, &shared));
        }
        let (file, bytes_new) = labelled(file, job, parent.as_ref().map(|(file, _)| file), &read.tree);
        indexed.save_snapshots(vec![file]).map_err(failed)?;
        let written = gate.take_written();
        let snapshot = written
            .map(|id| id.to_hex().as_str().to_owned())
            .ok_or_else(|| Failure::Internal { detail: "the snapshot was not written".to_owned() })?;
        read.digests.snapshot.clone_from(&snapshot);
        keep(job, &read.digests);
        return Ok(Taken {
            snapshot,
            unchanged: false,
            parent: parent.as_ref().map(|(file, _)| id_of(file)),
            tree: read.tree,
            entries: shared.files.load(std::sync::atomic::Ordering::Relaxed),
            bytes,
            bytes_read: shared.bytes.load(std::sync::atomic::Ordering::Relaxed),
            bytes_new,
            skips: shared.skips.get(),
        });
    }
}

fn id_of(file: &SnapshotFile) -> String {
    file.id.to_hex().as_str().to_owned()
}

fn bytes_of(file: &SnapshotFile) -> u64 {
    file.summary.as_ref().map_or(0, |summary| summary.total_bytes_processed)
}

fn keep(job: &SnapshotJob, digests: &Digests) {
    if let Some(path) = &job.digests {
        digests.store(path);
    }
}

fn unchanged(parent: &SnapshotFile, tree: &str, entries: u64, shared: &Shared) -> Taken {
    Taken {
        snapshot: id_of(parent),
        unchanged: true,
        parent: Some(id_of(parent)),
        tree: tree.to_owned(),
        entries,
        bytes: bytes_of(parent),
        bytes_read: shared.bytes.load(std::sync::atomic::Ordering::Relaxed),
        bytes_new: 0,
        skips: shared.skips.get(),
    }
}

/// The snapshot to compare with, and its tree hash.
fn parent(repository: &OpenRepository, job: &SnapshotJob) -> Result<Option<(SnapshotFile, String)>, Failure> {
    if let Some(id) = &job.parent {
        let file = repository.snapshot(id)?;
        let labels = Labels::parse(file.tags.iter());
        return Ok(labels.map(|(_, tree)| (file, tree)));
    }
    let newest = repository
        .snapshots()?
        .into_iter()
        .filter_map(|(file, labels)| labels.map(|(labels, tree)| (file, labels, tree)))
        .filter(|(_, labels, _)| labels.cell == job.labels.cell)
        .max_by_key(|(_, labels, _)| (labels.generation, labels.sequence));
    Ok(newest.map(|(file, _, tree)| (file, tree)))
}

fn bare_snapshot(job: &SnapshotJob) -> Result<SnapshotFile, Failure> {
    let options = SnapshotOptions::default()
        .host(job.labels.cell.to_string())
        .command("berth".to_owned())
        .time(Zoned::now());
    options.to_snapshot().map_err(|error| Failure::Internal { detail: error.to_string() })
}

/// The snapshot as it is to be written, and the bytes that were new.
fn labelled(
    mut file: SnapshotFile,
    job: &SnapshotJob,
    parent: Option<&SnapshotFile>,
    tree: &str,
) -> (SnapshotFile, u64) {
    let mut tags = StringList::default();
    for tag in job.labels.tags(tree) {
        tags.add(tag);
    }
    file.tags = tags;
    file.parent = parent.map(|parent| parent.id);
    file.parents = file.parent.into_iter().collect();
    let bytes_new = file.summary.as_ref().map_or(0, |summary| summary.data_added);
    (file, bytes_new)
}
