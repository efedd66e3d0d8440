//! A walk through a cell's folder, which is hostile, in the order that the tree hash and restic's format both want.
//!
//! Every name is looked at before it is opened, opened relative to the folder that it is in, never through a symbolic
//! link and never on another mount, without waiting; what the open descriptor says is what counts. Special files are
//! passed over. Depth, number of entries and their bytes have bounds.
//!
//! What its owner may not read is read all the same, where the worker works as that owner: a cell that has shut a folder
//! (`chmod 000`) is kept with it, and can be restored. Its mode is what it was as soon as it is open; a folder's, once the walk
//! has left it.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use berth_shared::cell::Workload;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::beneath::{DIRECTORY, open_beneath};
use crate::error::Failure;
use crate::excludes;
use crate::tree_hash::{Facts, Kind};

/// Deepest folder that is entered. Paths that the kernel takes have at most 2048 components.
pub(crate) const DEPTH_MAX: usize = 128;
/// Longest path that is entered, which a restore has to be able to name: `PATH_MAX` without its end (linux/limits.h).
const PATH_BYTES_MAX: usize = 4095;
/// Most names of passed-over entries that are told.
const NAMES_MAX: usize = 20;
/// Longest list of attribute names, and longest value: the kernel's bounds.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// The first bytes of every SQLite 3 database that is not empty.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

const REGULAR: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// How much of a folder is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalkLimits {
    /// Most entries. A folder with more is not snapshotted. Default 500,000.
    pub entries_max: u64,
    /// Most bytes of files, holes counted. A file that does not fit any more is passed over. Default 64 GiB.
    pub bytes_max: u64,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self { entries_max: 500_000, bytes_max: 64 << 30 }
    }
}

/// What was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Skips {
    /// Caches, locks and temporary files, as the workload's table says. A folder counts once.
    pub excluded: u64,
    /// Sockets, pipes and devices.
    pub special: u64,
    /// Gone, or something else, between being seen and being opened.
    pub vanished: u64,
    /// May not be read, or lies on another mount.
    pub unreadable: u64,
    /// Larger than what was left of the bound on bytes.
    pub too_large: u64,
    /// Deeper than 128 folders.
    pub too_deep: u64,
    /// Files that changed while they were read: stored as they were read.
    pub changed: u64,
    /// Databases that could not be copied in a consistent way while they were in use: stored as they were read.
    pub databases_torn: u64,
    /// Up to 20 paths of the last five kinds.
    pub names: Vec<String>,
}

impl Skips {
    /// Does the snapshot lack something that its user may miss?
    pub fn is_incomplete(&self) -> bool {
        self.unreadable + self.too_large + self.too_deep > 0
    }

    pub(crate) fn name(&mut self, path: &Path) {
        if self.names.len() < NAMES_MAX {
            self.names.push(path.to_string_lossy().chars().take(200).collect());
        }
    }
}

/// Skips that are counted from several threads.
#[derive(Debug, Default)]
pub(crate) struct SharedSkips(Mutex<Skips>);

impl SharedSkips {
    pub(crate) fn count(&self, count: impl FnOnce(&mut Skips)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn get(&self) -> Skips {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Relative to the folder; empty for the folder itself.
    pub(crate) path: PathBuf,
    pub(crate) facts: Facts,
    pub(crate) identity: Identity,
    pub(crate) device: u64,
    pub(crate) links: u32,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Directory,
    File { file: File, database: bool },
    Symlink { target: OsString },
}

/// The walk. Ends after the first failure.
#[derive(Debug)]
pub(crate) struct Walk {
    root: Arc<OwnedFd>,
    workload: Workload,
    limits: WalkLimits,
    skips: Arc<SharedSkips>,
    /// The folder's own uid and gid, which all entries are taken to have where a restore could not give others.
    owner: Option<(u32, u32)>,
    levels: Vec<Level>,
    begun: bool,
    entries: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Level {
    folder: Folder,
    path: PathBuf,
    names: std::vec::IntoIter<OsString>,
    databases: HashSet<OsString>,
}

/// An open folder.
#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    /// Its mode, where that had to be another one for what is in it to be opened.
    shut: Option<Mode>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(mode) = self.shut {
            // Where it cannot be set back it is open to its owner, who can shut it again.
            let _ = rustix::fs::fchmod(&self.fd, mode);
        }
    }
}

impl Walk {
    /// Walks what `root` is open on.
    pub(crate) fn new(
        root: Arc<OwnedFd>,
        workload: Workload,
        limits: WalkLimits,
        skips: Arc<SharedSkips>,
    ) -> Self {
        Self {
            root,
            workload,
            limits,
            skips,
            owner: None,
            levels: Vec::new(),
            begun: false,
            entries: 0,
            bytes: 0,
        }
    }

    /// The open folder of the entry that came last, for what has to be opened beside it.
    pub(crate) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.levels.last().map(|level| level.folder.fd.as_fd())
    }

    /// Leaves out what belongs to a database that was copied while it was in use.
    pub(crate) fn copied_database(&mut self, name: &OsStr) {
        if let Some(level) = self.levels.last_mut() {
            level.databases.insert(with_suffix(name, "-wal"));
            level.databases.insert(with_suffix(name, "-journal"));
        }
    }

    fn first(&mut self) -> Result<Entry, Failure> {
        let fd = self.root.try_clone().map_err(|source| Failure::io("open", Path::new(""), source))?;
        let stat = stat_fd(fd.as_fd()).map_err(|errno| Failure::io("look at", Path::new(""), errno))?;
        // A restore by anybody but root cannot give files to others.
        if !rustix::process::geteuid().is_root() {
            self.owner = Some((stat.stx_uid, stat.stx_gid));
        }
        let entry = self.entry(PathBuf::new(), Kind::Directory, &stat, xattrs(fd.as_fd()), What::Directory);
        let mut root = Folder { fd, shut: None };
        // It is opened once more where its names are read, so it is to be open itself.
        if !has_rights(&stat, Mode::RUSR | Mode::XUSR) {
            let mode = mode_of(&stat);
            rustix::fs::fchmod(&root.fd, mode | Mode::RUSR | Mode::XUSR)
                .map_err(|errno| Failure::io("open", Path::new(""), errno))?;
            root.shut = Some(mode);
        }
        self.enter(root, PathBuf::new())?;
        Ok(entry)
    }

    fn enter(&mut self, folder: Folder, path: PathBuf) -> Result<(), Failure> {
        let room = self.limits.entries_max.saturating_sub(self.entries);
        let names =
            names(folder.fd.as_fd(), room).map_err(|errno| Failure::io("read folder", &path, errno))?;
        let Some(names) = names else {
            return Err(Failure::TooManyEntries { entries_max: self.limits.entries_max });
        };
        self.levels.push(Level { folder, path, names: names.into_iter(), databases: HashSet::new() });
        Ok(())
    }

    fn entry(&self, path: PathBuf, kind: Kind, stat: &Statx, xattrs: Xattrs, what: What) -> Entry {
        let (uid, gid) = self.owner.unwrap_or((stat.stx_uid, stat.stx_gid));
        let size = if kind == Kind::File { stat.stx_size } else { 0 };
        let mtime = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
        Entry {
            path,
            facts: Facts {
                kind,
                mode: u32::from(stat.stx_mode) & 0o7777,
                uid,
                gid,
                mtime_s: mtime.0,
                mtime_ns: mtime.1,
                size,
                xattrs,
            },
            identity: Identity {
                inode: stat.stx_ino,
                size,
                mtime,
                ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            },
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            links: stat.stx_nlink,
            what,
        }
    }

    /// The next entry; `None` at the end.
    fn step(&mut self) -> Result<Option<Entry>, Failure> {
        if !std::mem::replace(&mut self.begun, true) {
            return self.first().map(Some);
        }
        loop {
            let depth = self.levels.len();
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let path = level.path.join(&name);
            if excludes::is_not_the_cells(&path) {
                continue;
            }
            if excludes::is_excluded(&name) || level.databases.contains(&name) {
                self.skips.count(|skips| skips.excluded += 1);
                continue;
            }
            if path.as_os_str().len() > PATH_BYTES_MAX {
                self.skips.count(|skips| Skip::TooDeep.count(skips, &path));
                continue;
            }
            match found(level, &name, self.limits.bytes_max.saturating_sub(self.bytes)) {
                Err(skip) => self.skips.count(|skips| skip.count(skips, &path)),
                Ok(Found::Directory(..)) if depth >= DEPTH_MAX => {
                    self.skips.count(|skips| Skip::TooDeep.count(skips, &path));
                }
                Ok(found) => {
                    self.entries += 1;
                    return self.take(path, &name, found).map(Some);
                }
            }
        }
    }

    fn take(&mut self, path: PathBuf, name: &OsStr, found: Found) -> Result<Entry, Failure> {
        match found {
            Found::Directory(folder, stat) => {
                let xattrs = xattrs(folder.fd.as_fd());
                let entry = self.entry(path.clone(), Kind::Directory, &stat, xattrs, What::Directory);
                if excludes::is_emptied(self.workload, &path) {
                    self.skips.count(|skips| skips.excluded += 1);
                } else {
                    self.enter(folder, path)?;
                }
                Ok(entry)
            }
            Found::File(file, stat) => {
                self.bytes = self.bytes.saturating_add(stat.stx_size);
                let database = is_database(&file, stat.stx_size);
                if database && let Some(level) = self.levels.last_mut() {
                    level.databases.insert(with_suffix(name, "-shm"));
                }
                let xattrs = xattrs(file.as_fd());
                Ok(self.entry(path, Kind::File, &stat, xattrs, What::File { file, database }))
            }
            Found::Symlink(target, stat) => {
                Ok(self.entry(path, Kind::Symlink, &stat, Vec::new(), What::Symlink { target }))
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Entry, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.levels.clear();
        }
        step
    }
}

/// Something that can be stored, open where it has content.
enum Found {
    Directory(Folder, Statx),
    File(File, Statx),
    Symlink(OsString, Statx),
}

#[derive(Debug, Clone, Copy)]
enum Skip {
    Special,
    Vanished,
    Unreadable,
    TooLarge,
    TooDeep,
}

impl Skip {
    fn count(self, skips: &mut Skips, path: &Path) {
        let counter = match self {
            Self::Special => &mut skips.special,
            Self::Vanished => &mut skips.vanished,
            Self::Unreadable => &mut skips.unreadable,
            Self::TooLarge => &mut skips.too_large,
            Self::TooDeep => &mut skips.too_deep,
        };
        *counter += 1;
        if matches!(self, Self::Unreadable | Self::TooLarge | Self::TooDeep) {
            skips.name(path);
        }
    }

    /// Why something that was seen could not be opened.
    fn from_errno(errno: Errno) -> Self {
        match errno {
            // Replaced by a link or by something of another kind since it was looked at.
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::STALE => Self::Vanished,
            _ => Self::Unreadable,
        }
    }
}

fn found(level: &Level, name: &OsStr, bytes_left: u64) -> Result<Found, Skip> {
    let folder = level.folder.fd.as_fd();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let seen = rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS).map_err(Skip::from_errno)?;
    match kind(&seen) {
        FileType::Directory => {
            let found = open_directory(folder, name).map_err(Skip::from_errno)?;
            let mut stat = stat_fd(found.fd.as_fd()).map_err(Skip::from_errno)?;
            if let Some(shut) = found.shut {
                stat.stx_mode = stat.stx_mode & !0o7777 | u16::try_from(shut.bits()).unwrap_or(0);
            }
            Ok(Found::Directory(found, stat))
        }
        FileType::RegularFile => {
            let fd = open_regular(folder, name).map_err(Skip::from_errno)?;
            let stat = stat_fd(fd.as_fd()).map_err(Skip::from_errno)?;
            if kind(&stat) != FileType::RegularFile {
                return Err(Skip::Vanished);
            }
            if stat.stx_size > bytes_left {
                return Err(Skip::TooLarge);
            }
            Ok(Found::File(File::from(fd), stat))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(folder, name, Vec::new()).map_err(|errno| match errno {
                Errno::INVAL => Skip::Vanished,
                other => Skip::from_errno(other),
            })?;
            Ok(Found::Symlink(OsString::from_vec(target.into_bytes()), seen))
        }
        _ => Err(Skip::Special),
    }
}

/// Without leaving a trace in the access time, where that is allowed (to the owner).
fn open_regular(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let open = || match open_beneath(folder, name, REGULAR | OFlags::NOATIME) {
        Err(Errno::PERM) => open_beneath(folder, name, REGULAR),
        other => other,
    };
    match open() {
        Err(Errno::ACCESS) => {
            let (shut, mode) = unshut(find(folder, name)?, FileType::RegularFile, Mode::RUSR)?;
            let opened = open();
            set_mode(&shut, mode)?;
            opened
        }
        other => other,
    }
}

/// Names are read from the descriptor, but what is below them is looked up by the folder's mode of then.
fn open_directory(folder: BorrowedFd<'_>, name: &OsStr) -> Result<Folder, Errno> {
    match open_beneath(folder, name, DIRECTORY) {
        Err(Errno::ACCESS) => {}
        Ok(fd) if has_rights(&stat_fd(fd.as_fd())?, Mode::XUSR) => return Ok(Folder { fd, shut: None }),
        Ok(_) => {}
        Err(other) => return Err(other),
    }
    let (shut, mode) = unshut(find(folder, name)?, FileType::Directory, Mode::RUSR | Mode::XUSR)?;
    match open_beneath(folder, name, DIRECTORY) {
        Ok(fd) => Ok(Folder { fd, shut: Some(mode) }),
        Err(errno) => set_mode(&shut, mode).and(Err(errno)),
    }
}

/// Have we these rights, as its owner? Root always has, and what is somebody else's is not ours to open.
fn has_rights(folder: &Statx, rights: Mode) -> bool {
    let us = rustix::process::geteuid();
    us.is_root() || folder.stx_uid != us.as_raw() || mode_of(folder).contains(rights)
}

const FIND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What has this name, whether or not it may be read.
fn find(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    open_beneath(folder, name, FIND)
}

fn mode_of(stat: &Statx) -> Mode {
    Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777)
}

/// Gives the owner, whom the worker works as, these rights to what is shut to it as well. What it is, and the mode that it had.
fn unshut(found: OwnedFd, is: FileType, rights: Mode) -> Result<(OwnedFd, Mode), Errno> {
    let stat = stat_fd(found.as_fd())?;
    if kind(&stat) != is || stat.stx_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::ACCESS);
    }
    let mode = mode_of(&stat);
    set_mode(&found, mode | rights)?;
    Ok((found, mode))
}

/// Of what is open as a path only, for which there is no `fchmod` (open(2), `O_PATH`).
fn set_mode(found: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), mode)
}

/// Opens a cell's own folder, which the cell may have shut to itself. Its mode stays what it is.
pub(crate) fn open_cell(path: &Path) -> Result<OwnedFd, Errno> {
    match open_folder(path) {
        Err(Errno::ACCESS) => {
            let found = rustix::fs::open(path, FIND, Mode::empty())?;
            let (shut, mode) = unshut(found, FileType::Directory, Mode::RUSR)?;
            let opened = open_folder(path);
            set_mode(&shut, mode)?;
            opened
        }
        other => other,
    }
}

/// Opens a folder that is the caller's own path, not the cell's.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

pub(crate) fn stat_fd(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    const SELF: &CStr = c"";
    rustix::fs::statx(fd, SELF, AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// The names in a folder, sorted as bytes; `None` where there are more than `names_max`.
fn names(folder: BorrowedFd<'_>, names_max: u64) -> Result<Option<Vec<OsString>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() as u64 >= names_max {
            return Ok(None);
        }
        names.push(OsString::from_vec(name.to_vec()));
    }
    names.sort_unstable();
    Ok(Some(names))
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes in the namespace `user.`, sorted by name. One that goes away meanwhile was not there.
pub(crate) fn xattrs(fd: BorrowedFd<'_>) -> Xattrs {
    // Most files have none: that is one call, and no memory.
    let mut short = [0_u8; 256];
    let list = match rustix::fs::flistxattr(fd, &mut short[..]) {
        Ok(length) => short.get(..length).unwrap_or_default().to_vec(),
        Err(Errno::RANGE) => {
            let mut list = vec![0_u8; XATTR_BYTES_MAX];
            let Ok(length) = rustix::fs::flistxattr(fd, list.as_mut_slice()) else { return Vec::new() };
            list.truncate(length);
            list
        }
        Err(_) => return Vec::new(),
    };
    if list.is_empty() {
        return Vec::new();
    }
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    let mut found: Xattrs = list
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user.") && std::str::from_utf8(name).is_ok())
        .filter_map(|name| {
            let length = rustix::fs::fgetxattr(fd, OsStr::from_bytes(name), value.as_mut_slice()).ok()?;
            Some((name.to_vec(), value.get(..length)?.to_vec()))
        })
        .collect();
    found.sort_unstable();
    found
}

fn is_database(file: &File, size: u64) -> bool {
    let mut magic = [0; SQLITE_MAGIC.len()];
    size >= 512 && file.read_exact_at(&mut magic, 0).is_ok() && magic == *SQLITE_MAGIC
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}
