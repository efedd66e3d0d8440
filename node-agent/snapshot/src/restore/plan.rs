//! What a restore will write, looked at before it is written: names, kinds, sizes, and where the contents are.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustic_core::repofile::{Node, NodeType, PackId, SnapshotFile};
use rustic_core::{DataId, LsOptions};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::fill::Indexed;
use super::{in_snapshot, plain_path};
use crate::beneath::open_beneath;
use crate::error::Failure;
use crate::source::{SNAPSHOT_ROOT, unix_mode};
use crate::store::S3Store;
use crate::tree_hash::{Facts, Kind};
use crate::walk::{DEPTH_MAX, WalkLimits};

/// Longest target of a symbolic link: `PATH_MAX`.
const TARGET_BYTES_MAX: usize = 4096;
/// Longest name: `NAME_MAX`.
const NAME_BYTES_MAX: usize = 255;

/// One entry to make.
#[derive(Debug)]
pub(super) struct Item {
    /// Relative to the staging; empty for itself.
    pub(super) path: PathBuf,
    pub(super) facts: Facts,
    pub(super) target: Option<OsString>,
    /// The index of the item that is the same file under another name.
    pub(super) same_as: Option<usize>,
}

/// A part of a pack, and the files that it goes into: (item, offset).
pub(super) type Places = Vec<(usize, u64)>;

/// Blobs by the pack that they lie in, then by their place there.
pub(super) type Wanted = BTreeMap<PackId, BTreeMap<(u32, u32), (DataId, Places)>>;

/// All of a restore.
#[derive(Debug)]
pub(super) struct Plan {
    /// Folders before what is in them.
    pub(super) items: Vec<Item>,
    pub(super) wanted: Wanted,
    /// Of files, each counted once.
    pub(super) bytes: u64,
}

impl Plan {
    pub(super) fn new(
        indexed: &Indexed,
        store: &Arc<S3Store>,
        file: &SnapshotFile,
        paths: &[String],
        limits: WalkLimits,
    ) -> Result<Self, Failure> {
        let mut plan = Self { items: Vec::new(), wanted: Wanted::new(), bytes: 0 };
        let mut links = Links::new();
        let failed = |error: Box<rustic_core::RusticError>| Failure::library(store, &error);
        let find = |path: &Path, shown: &str| {
            let text = path.to_str().unwrap_or_default();
            indexed.node_from_snapshot_and_path(file, text).map_err(|error| {
                match Failure::library(store, &error) {
                    Failure::Internal { .. } => Failure::NoPath { path: shown.to_owned() },
                    other => other,
                }
            })
        };
        let root = find(Path::new(SNAPSHOT_ROOT), SNAPSHOT_ROOT)?;
        let mut tops = vec![(PathBuf::new(), root)];
        if !paths.is_empty() {
            tops.truncate(0);
            for path in paths {
                if !plain_path(path) {
                    return Err(Failure::NoPath { path: path.chars().take(200).collect() });
                }
                tops.extend(with_parents(path, &find)?);
            }
            tops.sort_by(|a, b| a.0.cmp(&b.0));
            tops.dedup_by(|a, b| a.0 == b.0);
        }
        for (path, node) in &tops {
            plan.add(indexed, path.clone(), node, &mut links, limits)?;
            // Of the folders above a path that was asked for only they themselves are restored.
            let asked =
                paths.is_empty() || paths.iter().any(|asked| Path::new(asked.trim_matches('/')) == path);
            if !node.is_dir() || !asked {
                continue;
            }
            for found in indexed.ls(node, &LsOptions::default()).map_err(failed)? {
                let (below, node) = found.map_err(failed)?;
                plan.add(indexed, path.join(below), &node, &mut links, limits)?;
            }
        }
        if !paths.is_empty() {
            plan.refuse_doubles()?;
        }
        Ok(plan)
    }

    /// Paths inside of one another would make an entry twice.
    fn refuse_doubles(&self) -> Result<(), Failure> {
        let mut seen = std::collections::HashSet::new();
        if self.items.iter().all(|item| seen.insert(&item.path)) {
            return Ok(());
        }
        Err(Failure::bad_job("paths lie inside of one another"))
    }

    fn add(
        &mut self,
        indexed: &Indexed,
        path: PathBuf,
        node: &Node,
        links: &mut Links,
        limits: WalkLimits,
    ) -> Result<(), Failure> {
        check_path(&path)?;
        let at = self.items.len();
        let (kind, target) = match &node.node_type {
            NodeType::Dir => (Kind::Directory, None),
            NodeType::File => (Kind::File, None),
            NodeType::Symlink { .. } => {
                (Kind::Symlink, Some(node.node_type.to_link().as_os_str().to_owned()))
            }
            NodeType::Dev { .. } | NodeType::Chardev { .. } | NodeType::Fifo | NodeType::Socket => {
                return Err(hostile(&path, "is a special file"));
            }
        };
        if target.as_ref().is_some_and(|target| {
            target.is_empty() || target.len() > TARGET_BYTES_MAX || target.as_bytes().contains(&0)
        }) {
            return Err(hostile(&path, "is a link to nothing that there could be"));
        }
        let mtime = node.meta.mtime.unwrap_or_default();
        let (seconds, nanos) = split_time(mtime.as_nanosecond());
        let mut facts = Facts {
            kind,
            mode: unix_mode(node.meta.mode.unwrap_or(0o700)),
            uid: node.meta.uid.unwrap_or_default(),
            gid: node.meta.gid.unwrap_or_default(),
            mtime_s: seconds,
            mtime_ns: nanos,
            size: 0,
            xattrs: node
                .meta
                .extended_attributes
                .iter()
                .filter(|attribute| attribute.name.starts_with("user."))
                .map(|attribute| {
                    (attribute.name.clone().into_bytes(), attribute.value.clone().unwrap_or_default())
                })
                .collect(),
        };
        let mut same_as = None;
        if kind == Kind::File {
            let key = (node.meta.device_id, node.meta.inode);
            if node.meta.links > 1 && key.0 != 0 && key.1 != 0 {
                // A file that was changed between two of its names was stored as two: then it is two.
                let content = node.content.as_deref().unwrap_or_default();
                let same = links.get(&key).filter(|last| last.1 == content && self.is_as(last.0, &facts));
                same_as = same.map(|last| last.0);
                if same_as.is_none() {
                    links.insert(key, (at, content.to_vec()));
                }
            }
            // What the blobs say, not what the node says.
            facts.size = self.add_content(indexed, at, node, same_as.is_some())?;
            if same_as.is_none() {
                self.bytes = self.bytes.saturating_add(facts.size);
            }
        }
        self.items.push(Item { path, facts, target, same_as });
        if self.bytes > limits.bytes_max || self.items.len() as u64 > limits.entries_max {
            return Err(Failure::TooLarge { bytes: self.bytes, entries: self.items.len() as u64 });
        }
        Ok(())
    }

    /// Is that file one of which all this is said, but for its size?
    fn is_as(&self, at: usize, facts: &Facts) -> bool {
        self.items.get(at).is_some_and(|item| {
            let size = item.facts.size;
            item.facts == Facts { size, ..facts.clone() }
        })
    }

    fn add_content(&mut self, indexed: &Indexed, at: usize, node: &Node, link: bool) -> Result<u64, Failure> {
        let mut offset = 0_u64;
        for id in node.content.iter().flatten() {
            let entry = indexed
                .get_index_entry(id)
                .map_err(|_| Failure::Damaged { detail: format!("blob {id} is in no pack") })?;
            if !link {
                let blobs = self.wanted.entry(entry.pack).or_default();
                let place = (entry.location.offset, entry.location.length);
                blobs.entry(place).or_insert_with(|| (*id, Places::new())).1.push((at, offset));
            }
            offset = offset.saturating_add(entry.data_length().into());
        }
        Ok(offset)
    }

    /// Gives what belongs to the folder's owner to another.
    pub(super) fn own(&mut self, owner: Option<(u32, u32)>) {
        let Some((uid, gid)) = owner else { return };
        let Some(first) = self.items.first().map(|item| (item.facts.uid, item.facts.gid)) else { return };
        for item in &mut self.items {
            if (item.facts.uid, item.facts.gid) == first {
                (item.facts.uid, item.facts.gid) = (uid, gid);
            }
        }
    }

    /// Makes folders, links, and files of the right size without content.
    pub(super) fn make_entries(&self, root: &OwnedFd) -> Result<(), Failure> {
        for item in &self.items {
            if item.path.as_os_str().is_empty() || item.same_as.is_some() {
                continue;
            }
            make(root.as_fd(), item)
                .map_err(|errno| Failure::write("make", &item.path, self.bytes, errno))?;
        }
        Ok(())
    }

    pub(super) fn make_hard_links(&self, root: &OwnedFd) -> Result<(), Failure> {
        for item in &self.items {
            let Some(first) = item.same_as.and_then(|first| self.items.get(first)) else { continue };
            rustix::fs::linkat(root, &first.path, root, &item.path, AtFlags::empty())
                .map_err(|errno| Failure::write("link", &item.path, self.bytes, errno))?;
        }
        Ok(())
    }
}

/// By device and inode: the last file that has them, and what it holds.
type Links = HashMap<(u64, u64), (usize, Vec<DataId>)>;

/// A path that was asked for, and the folders above it.
fn with_parents(
    path: &str,
    find: &impl Fn(&Path, &str) -> Result<Node, Failure>,
) -> Result<Vec<(PathBuf, Node)>, Failure> {
    let mut found = vec![(PathBuf::new(), find(Path::new(SNAPSHOT_ROOT), path)?)];
    let mut so_far = PathBuf::new();
    for part in path.trim_matches('/').split('/') {
        so_far.push(part);
        found.push((so_far.clone(), find(&in_snapshot(so_far.to_str().unwrap_or_default()), path)?));
    }
    Ok(found)
}

fn make(root: BorrowedFd<'_>, item: &Item) -> Result<(), Errno> {
    match item.facts.kind {
        Kind::Directory => rustix::fs::mkdirat(root, &item.path, Mode::RWXU),
        Kind::Symlink => rustix::fs::symlinkat(item.target.as_deref().unwrap_or_default(), root, &item.path),
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(root, &item.path, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::ftruncate(fd, item.facts.size)
        }
    }
}

/// Opens a file or folder that was made, to change what belongs to it.
pub(super) fn open_item(root: BorrowedFd<'_>, item: &Item) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if item.path.as_os_str().is_empty() {
        return open_beneath(root, c".", flags);
    }
    open_beneath(root, item.path.as_path(), flags)
}

fn hostile(path: &Path, why: &str) -> Failure {
    let shown: String = path.to_string_lossy().chars().take(200).collect();
    Failure::HostileSnapshot { detail: format!("`{shown}` {why}") }
}

/// Every part of a path has to be one name: a tree of an enemy may hold `..` or a name with a `/`.
fn check_path(path: &Path) -> Result<(), Failure> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Ok(());
    }
    let plain = |part: &[u8]| {
        !part.is_empty()
            && part != b"."
            && part != b".."
            && part.len() <= NAME_BYTES_MAX
            && !part.contains(&0)
    };
    let parts = bytes.split(|byte| *byte == b'/');
    if parts.clone().count() > DEPTH_MAX + 1 || !parts.clone().all(plain) {
        return Err(hostile(path, "is no name that a file can have"));
    }
    Ok(())
}

fn split_time(nanos: i128) -> (i64, u32) {
    const SECOND: i128 = 1_000_000_000;
    let seconds = i64::try_from(nanos.div_euclid(SECOND)).unwrap_or_default();
    (seconds, u32::try_from(nanos.rem_euclid(SECOND)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for good in ["", "a", "a/b", "a b/ü", "..."] {
            check_path(Path::new(good)).unwrap();
        }
        for bad in ["..", "a/..", "../a", "/etc/passwd", "a//b", "a/./b", "a/"] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_before_1970_are_split_downwards() {
        assert_eq!(split_time(-1), (-1, 999_999_999));
        assert_eq!(split_time(1_500_000_000), (1, 500_000_000));
    }
}
