//! Proving that a snapshot, as the store gives it back, is what is in a folder: what has to be known before the folder may go.
//! Nothing is written.
//!
//! Nothing in the folder may be such that a snapshot cannot have it. Then three things together say that a restore would make this very folder:
//! - the folder's tree hash, by reading all of it, is the one that the snapshot carries;
//! - the entries of the snapshot, with their facts, add up to the same hash: none is missing, and none is another;
//! - every part of every file is fetched, decrypted, has its hash, and is what the file holds at its place.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::fill;
use super::plan::{Item, Plan};
use crate::beneath::open_beneath;
use crate::error::Failure;
use crate::labels::Labels;
use crate::progress::Meter;
use crate::repository::OpenRepository;
use crate::source::{Source, SourceOptions, hash_of};
use crate::tree_hash::{Hash, Kind, TreeHasher};
use crate::walk::{WalkLimits, open_cell};

/// What to prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyJob {
    /// The snapshot.
    pub snapshot: String,
    /// The folder, which nobody writes to meanwhile.
    pub folder: PathBuf,
    /// Not where this file is: the record of a restore that was cut short, so that the folder is no state at all.
    #[serde(default)]
    pub unless: Option<PathBuf>,
    /// How much of a folder is looked at.
    #[serde(default)]
    pub limits: WalkLimits,
}

/// It is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The whole id of the snapshot.
    pub snapshot: String,
    /// The tree hash of both.
    pub tree: String,
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files, each counted once.
    pub bytes: u64,
}

/// Proves it.
///
/// # Errors
/// [`Failure::Differs`] and [`Failure::Verification`] where the two are not the same; [`Failure::Damaged`] and those of the
/// store where it could not be read back.
pub(crate) fn verify(
    repository: OpenRepository,
    job: &VerifyJob,
    meter: &Meter,
) -> Result<Verified, Failure> {
    if job.unless.as_deref().is_some_and(Path::exists) {
        return Err(Failure::bad_job("a restore of the folder was cut short, and has to be ended first"));
    }
    let file = repository.snapshot(&job.snapshot)?;
    let snapshot = file.id.to_hex().as_str().to_owned();
    let (labels, expected) = Labels::parse(file.tags.iter())
        .ok_or_else(|| Failure::bad_job("the snapshot does not say what it has to be"))?;
    let root = open_cell(&job.folder).map_err(|errno| Failure::io("open", &job.folder, errno))?;
    let root = Arc::new(root);

    // First what needs no store: whoever has changed the folder need not have all of it fetched.
    let options = SourceOptions { workload: labels.workload, limits: job.limits, online: None };
    let mut contents = HashMap::new();
    let source = Source::new(Arc::clone(&root), options, None);
    let found = source.tree_and_contents(|path, hash| {
        contents.insert(path.to_owned(), hash);
    })?;
    let skips = source.shared().skips.get();
    if skips.is_incomplete() || skips.vanished > 0 {
        // Neither the hash nor the snapshot knows of these, so they would be lost with the folder.
        let detail = format!("it has files that cannot be stored: {}", skips.names.join(", "));
        return Err(Failure::Differs { detail });
    }
    if found != expected {
        return Err(Failure::Verification { expected, found });
    }

    let OpenRepository { store, inner, .. } = repository;
    let indexed = inner.to_indexed().map_err(|error| Failure::library(&store, &error))?;
    let plan = Plan::new(&indexed, &store, &file, &[], job.limits)?;
    let stored = tree_of(&plan, &contents);
    if stored != expected {
        return Err(Failure::Verification { expected, found: stored });
    }
    fill::read(&indexed, &store, &plan, meter, &|item, data, offset| compare(&root, item, data, offset))?;
    Ok(Verified { snapshot, tree: found, entries: plan.items.len() as u64, bytes: plan.bytes })
}

/// Is a folder what this plan makes? What its files hold was looked at as it was written.
///
/// # Errors
/// [`Failure::Verification`].
pub(super) fn is_as_planned(source: &Source, plan: &Plan) -> Result<(), Failure> {
    let mut contents = HashMap::new();
    let found = source.tree_and_contents(|path, hash| {
        contents.insert(path.to_owned(), hash);
    })?;
    let expected = tree_of(plan, &contents);
    if found == expected { Ok(()) } else { Err(Failure::Verification { expected, found }) }
}

/// The tree hash of what a restore would make, were the content of its files that of these: that it is, is compared part by
/// part.
fn tree_of(plan: &Plan, contents: &HashMap<PathBuf, Hash>) -> String {
    let mut items: Vec<&Item> = plan.items.iter().collect();
    items.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = TreeHasher::new();
    for item in items {
        let content = match item.facts.kind {
            Kind::Directory => None,
            Kind::Symlink => Some(hash_of(item.target.as_deref().unwrap_or_default().as_bytes())),
            // Another name of a file holds what that file holds.
            Kind::File => {
                let same = item.same_as.and_then(|first| plan.items.get(first)).unwrap_or(item);
                contents.get(&same.path).copied()
            }
        };
        hasher.add(&item.path, &item.facts, content.as_ref());
    }
    hasher.finish()
}

/// Is this what the file holds there?
fn compare(root: &OwnedFd, item: &Item, data: &[u8], offset: u64) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let failed = |source| Failure::io("read", &item.path, source);
    let file = open_beneath(root.as_fd(), item.path.as_path(), flags)
        .map(File::from)
        .map_err(|errno| failed(std::io::Error::from(errno)))?;
    let mut held = vec![0; data.len()];
    file.read_exact_at(&mut held, offset).map_err(failed)?;
    if held == data {
        return Ok(());
    }
    let shown: String = item.path.to_string_lossy().chars().take(200).collect();
    Err(Failure::Differs { detail: format!("`{shown}` holds something else from byte {offset} on") })
}
