//! The bounded walk over a cell's folder.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use berth_snapshot::beneath::{DIRECTORY, open_beneath};
use rustix::fs::{AtFlags, Dir, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use super::error::Doing;
use super::{FolderError, Found, kind, shown};

/// Most things of the report that are named; the rest is only counted.
const SKIPPED_NAMED_MAX: usize = 100;

/// How far a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkLimits {
    /// Names looked at in all, skipped ones included. The walk ends there.
    pub entries_max: u64,
    /// Levels of directories below the folder, at most 128 (one descriptor is open per level). Deeper ones are skipped.
    pub depth_max: usize,
    /// Bytes of regular files in all, by their length, holes included. A file that would exceed it is skipped.
    pub bytes_max: u64,
}

/// Most levels, whatever the caller asks for.
const DEPTH_MAX: usize = 128;

/// What an [`Entry`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with one name.
    File,
    /// A directory.
    Directory,
}

/// A file or directory that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the folder. Bytes that a cell chose: not fit for a log as they are.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
}

/// Something that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where, escaped and shortened.
    pub path: String,
    /// What it is.
    pub found: Found,
}

/// What a walk met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Walked {
    /// Regular files shown.
    pub files: u64,
    /// Directories shown, the folder itself not counted.
    pub directories: u64,
    /// Length of these files in all.
    pub bytes: u64,
    /// Things that were passed over.
    pub skipped_count: u64,
    /// The first of them.
    pub skipped: Vec<Skipped>,
    /// Did the walk end at [`WalkLimits::entries_max`], with more to see?
    pub cut_short: bool,
}

impl Walked {
    fn skip(&mut self, path: &OsStr, found: Found) {
        self.skipped_count += 1;
        if self.skipped.len() < SKIPPED_NAMED_MAX {
            self.skipped.push(Skipped { path: shown(&path.to_string_lossy()), found });
        }
    }
}

struct Level {
    directory: Dir,
    path: PathBuf,
}

pub(super) fn walk(
    root: OwnedFd,
    limits: WalkLimits,
    mut visit: impl FnMut(&Entry),
) -> Result<Walked, FolderError> {
    let depth_max = limits.depth_max.min(DEPTH_MAX);
    let mut walked = Walked::default();
    let mut looked = 0_u64;
    let directory = Dir::new(root).map_err(|e| FolderError::from_errno(Doing::Read, ".", e))?;
    let mut levels = vec![Level { directory, path: PathBuf::new() }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return Ok(walked) };
        let name = match level.directory.read() {
            None => {
                levels.pop();
                continue;
            }
            // A directory that was removed while it is read, or a broken one: what is left of it is passed over.
            Some(Err(errno)) => {
                walked.skip(level.path.as_os_str(), Found::from_errno(errno).unwrap_or(Found::Unreadable));
                levels.pop();
                continue;
            }
            Some(Ok(entry)) => OsString::from(OsStr::from_bytes(entry.file_name().to_bytes())),
        };
        if name == "." || name == ".." {
            continue;
        }
        if looked >= limits.entries_max {
            walked.cut_short = true;
            return Ok(walked);
        }
        looked += 1;
        let path = level.path.join(&name);
        let fd = level.directory.fd().map_err(|e| FolderError::from_errno(Doing::Read, ".", e))?;
        let stat = match look_at(fd, &name) {
            Ok(stat) => stat,
            Err(errno) => {
                walked.skip(path.as_os_str(), Found::from_errno(errno).unwrap_or(Found::Unreadable));
                continue;
            }
        };
        let below = match kind(&stat) {
            FileType::RegularFile => {
                match file(&stat, walked.bytes, limits.bytes_max) {
                    Ok(()) => {
                        walked.files += 1;
                        walked.bytes = walked.bytes.saturating_add(stat.stx_size);
                        visit(&entry(path, EntryKind::File, &stat));
                    }
                    Err(found) => walked.skip(path.as_os_str(), found),
                }
                continue;
            }
            FileType::Directory if depth > depth_max => Err(Found::TooDeep),
            FileType::Directory => enter(fd, &name),
            other => Err(Found::odd(other)),
        };
        match below {
            Ok((directory, stat)) => {
                walked.directories += 1;
                visit(&entry(path.clone(), EntryKind::Directory, &stat));
                levels.push(Level { directory, path });
            }
            Err(found) => walked.skip(path.as_os_str(), found),
        }
    }
}

fn look_at(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)
}

/// May this file be shown?
fn file(stat: &Statx, bytes_before: u64, bytes_max: u64) -> Result<(), Found> {
    if stat.stx_nlink > 1 {
        return Err(Found::HardLinks(stat.stx_nlink));
    }
    let room = bytes_max.saturating_sub(bytes_before);
    if stat.stx_size > room { Err(Found::TooLarge { bytes: stat.stx_size, bytes_max: room }) } else { Ok(()) }
}

/// Opens a directory that was just looked at: what is opened now counts, not what was seen then.
fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(Dir, Statx), Found> {
    let failed = |errno| Found::from_errno(errno).unwrap_or(Found::Unreadable);
    let fd = open_beneath(parent, name, DIRECTORY).map_err(failed)?;
    const SELF: &CStr = c"";
    let stat =
        rustix::fs::statx(fd.as_fd(), SELF, AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(failed)?;
    Ok((Dir::new(fd).map_err(failed)?, stat))
}

fn entry(path: PathBuf, kind: EntryKind, stat: &Statx) -> Entry {
    Entry {
        path,
        kind,
        bytes: stat.stx_size,
        // stat(2): in units of 512 bytes, whatever the block size.
        allocated: stat.stx_blocks.saturating_mul(512),
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
    }
}
