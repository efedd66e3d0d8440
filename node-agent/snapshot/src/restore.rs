//! Restoring: into a staging folder beside the target, verified, synced, and only then under the target's name.
//!
//! ```text
//!  plan ──▶ fill ──▶ metadata ──▶ verify ──▶ sync ──▶ exchange ──▶ target: new, previous: what was there
//!    │       └────────┴────────────┴── fails: the staging is removed, the target is as it was
//!    └ names, sizes and room are looked at before anything is written
//! ```
//!
//! Killed anywhere, the target is the old folder or the new one, whole; the next restore cleans up, see
//! [`place`]. The names in a snapshot are checked as if an enemy had written them; everything is made relative to the
//! staging's descriptor, without following links. Contents are checked by their hashes while they are written, the
//! whole by the tree hash that the snapshot carries.

mod fill;
mod place;
mod plan;
mod remove;
pub(crate) mod verify;
mod within;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_shared::time::UnixMs;
use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, Uid, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::labels::Labels;
use crate::progress::Meter;
use crate::repository::{OpenRepository, Opening};
use crate::source::{SNAPSHOT_ROOT, Source, SourceOptions};
use crate::tree_hash::{Facts, Kind};
use crate::walk::{DEPTH_MAX, WalkLimits, open_folder};

use place::Staging;
use plan::{Item, Plan};

/// What to restore, and to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreJob {
    /// The snapshot.
    pub snapshot: String,
    /// Paths in the cell's folder; all of it where there is none. With paths, `target` must not exist, and comes to
    /// hold just these; with `within` they take the place of what is there of them, and all else stays as it is.
    #[serde(default)]
    pub paths: Vec<String>,
    /// What the folder is to be called. Its parent has to be there.
    pub target: PathBuf,
    /// What the folder that is there now is called afterwards. On the same file system; must not exist. Where it does,
    /// an earlier restore was done, or was killed so late that this one has ended it: `target` is what that one restored.
    pub previous: PathBuf,
    /// Where the new folder is made. On the same file system; nothing else may be in it.
    pub staging: PathBuf,
    /// For a target that cannot be renamed, because it is a mount point: its content is exchanged instead. Names the file
    /// that holds how far that is, out of the cell's reach; `staging` has to be in the target, and `previous` is not used.
    #[serde(default)]
    pub within: Option<PathBuf>,
    /// Uid and gid to give to what belonged to the folder's owner. Without it, or when the worker is not root, all of
    /// it belongs to whoever restores.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
    /// Bounds of what is written.
    #[serde(default)]
    pub limits: WalkLimits,
}

/// What a restore came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The whole id of the snapshot.
    pub snapshot: String,
    /// When it was taken.
    pub taken_at: UnixMs,
    /// The tree hash of what is there now; `None` where single paths were restored.
    pub tree: Option<String>,
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files, holes counted.
    pub bytes: u64,
    /// Is there a previous folder now?
    pub previous: bool,
}

/// Restores. The repository is opened once an exchange that was cut short is ended: that needs no store.
///
/// # Errors
/// [`Failure`]; then the target is as it was, and the staging is gone.
pub(crate) fn restore<'a>(
    opening: impl FnOnce() -> Result<Opening<'a>, Failure>,
    job: &RestoreJob,
    meter: &Meter,
) -> Result<Restored, Failure> {
    let (staging, settled) = Staging::prepare(job)?;
    if let Some(restored) = settled.filter(|restored| restored.snapshot == job.snapshot) {
        // It was only the exchange's end that was missing.
        return Ok(restored);
    }
    let opening = opening()?;
    opening.ask_for_snapshot(&job.snapshot);
    opening.ask_for_index();
    let repository = opening.open()?;
    let file = repository.snapshot(&job.snapshot)?;
    let snapshot = file.id.to_hex().as_str().to_owned();
    // Before 1970 nobody took any, whatever it says.
    let taken_at = UnixMs(u64::try_from(file.time.timestamp().as_millisecond()).unwrap_or(0));
    let labels = Labels::parse(file.tags.iter());
    let OpenRepository { store, inner, .. } = repository;
    let indexed = inner.to_indexed().map_err(|error| Failure::library(&store, &error))?;
    let mut plan = Plan::new(&indexed, &store, &file, &job.paths, job.limits)?;
    plan.own(job.owner);
    staging.has_room(plan.bytes)?;

    let filled = staging
        .make()
        .and_then(|()| staging.look())
        .and_then(|()| fill_and_check(&indexed, &store, job, &plan, &staging, labels.as_ref(), meter));
    let tree = match filled {
        Ok(tree) => tree,
        Err(failure) => {
            staging.remove();
            return Err(failure);
        }
    };
    let (entries, bytes) = (plan.items.len() as u64, plan.bytes);
    let restored = Restored { snapshot, taken_at, tree, entries, bytes, previous: false };
    staging.put_in_place(restored)
}

fn fill_and_check(
    indexed: &fill::Indexed,
    store: &Arc<crate::store::S3Store>,
    job: &RestoreJob,
    plan: &Plan,
    staging: &Staging,
    expected: Option<&(Labels, String)>,
    meter: &Meter,
) -> Result<Option<String>, Failure> {
    let root =
        open_folder(staging.tree()).map_err(|errno| Failure::write("open", staging.tree(), 0, errno))?;
    let root = Arc::new(root);
    plan.make_entries(&root)?;
    fill::fill(indexed, store, plan, &root, meter)?;
    plan.make_hard_links(&root)?;
    set_metadata(plan, &root)?;
    let mut tree = None;
    if let Some((labels, expected)) = expected {
        let options = SourceOptions { workload: labels.workload, limits: job.limits, online: None };
        let source = Source::new(Arc::clone(&root), options, None);
        if job.paths.is_empty() {
            let found = source.tree_by_reading()?;
            if found != *expected {
                return Err(Failure::Verification { expected: expected.clone(), found });
            }
            tree = Some(found);
        } else {
            verify::is_as_planned(&source, plan)?;
        }
    }
    rustix::fs::syncfs(&root).map_err(|errno| Failure::write("sync", staging.tree(), plan.bytes, errno))?;
    Ok(tree)
}

/// Modes, owners, attributes and times, the deepest first: a folder's time changes when something is made in it, and
/// one without the right to write takes nothing any more.
fn set_metadata(plan: &Plan, root: &OwnedFd) -> Result<(), Failure> {
    let may_chown = rustix::process::geteuid().is_root();
    // Another name of a file that has all of this already, and may not be opened any more.
    for item in plan.items.iter().rev().filter(|item| item.same_as.is_none()) {
        set_one(item, root, may_chown)
            .map_err(|errno| Failure::write("set what belongs to", &item.path, plan.bytes, errno))?;
    }
    Ok(())
}

fn set_one(item: &Item, root: &OwnedFd, may_chown: bool) -> Result<(), rustix::io::Errno> {
    let Facts { kind, mode, uid, gid, mtime_s, mtime_ns, .. } = item.facts;
    let time = Timespec { tv_sec: mtime_s, tv_nsec: mtime_ns.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    if kind == Kind::Symlink {
        if may_chown {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(root, &item.path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        return rustix::fs::utimensat(root, &item.path, &times, AtFlags::SYMLINK_NOFOLLOW);
    }
    let fd = plan::open_item(root.as_fd(), item)?;
    if may_chown {
        rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    for (name, value) in &item.facts.xattrs {
        rustix::fs::fsetxattr(&fd, std::ffi::OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    // After the owner: giving a file away takes its set-id bits.
    rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(mode))?;
    rustix::fs::futimens(&fd, &times)
}

/// Is this a path that may be asked for below a cell's folder?
pub(crate) fn plain_path(path: &str) -> bool {
    let path = path.trim_matches('/');
    !path.is_empty()
        && path.split('/').count() <= DEPTH_MAX
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
}

/// Where a path of the cell's folder is in the snapshot.
pub(crate) fn in_snapshot(path: &str) -> PathBuf {
    Path::new(SNAPSHOT_ROOT).join(path.trim_matches('/'))
}
