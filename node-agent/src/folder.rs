//! A cell's folder is hostile: whatever lies in it was put there by somebody who may want the agent to read, write,
//! chown or wait for something outside of it.
//!
//! [`CellFolder`] is the only way in. It decides what may be touched; the caller decides what for. Its rules, which
//! keep invariant 9 (nothing that a cell does makes the agent act outside that cell):
//!
//! - Everything is opened relative to one directory descriptor with `openat2` (Linux 5.6), which never leaves that
//!   directory, never follows a symbolic link in any part of a path, and never crosses into another mount.
//! - A file is first opened as a mere name (`O_PATH`: no driver, pipe or lease notices), looked at, and only a
//!   regular file is then opened, through that same descriptor, for reading. What was looked at *is* what is read.
//! - A file with a second name may be somebody else's file under a cell's name: it is not read.
//! - Nothing is ever written into, truncated, or chowned in place. New files and directories are made by us, given
//!   their owner through the descriptor of what we made, and renamed into place.
//! - Every size, count and depth has a bound, and the bound is checked before anything is read.
//!
//! Renaming over a symbolic link, a pipe or a device replaces the *name*; what it pointed to is not touched. So such
//! a thing does not keep Berth from writing its own files: it is replaced. Only a directory in the way is an error.
//! A cell that runs may replace a file of ours as soon as it is in place; nobody may rely on content written into
//! the folder of a running cell.
//!
//! All calls block on disk at the most, never on what lies in the folder. Async callers use `spawn_blocking`.
//! A `CellFolder` keeps its file system busy: drop it before the disk is to be unmounted.

mod error;
mod path;
mod walk;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_snapshot::beneath::{BENEATH, DIRECTORY, open_beneath};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxFlags, Uid};
use rustix::io::Errno;

pub use error::{FolderError, Found};
pub use walk::{Entry, EntryKind, Skipped, WalkLimits, Walked};

use error::{Doing, shown};
use path::Relative;

use crate::failpoint;

/// Names of temporary files start and end so. Left behind only by a crash; see [`CellFolder::remove_leftovers`].
const TEMPORARY_PREFIX: &str = ".berth-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Most names of one directory that [`CellFolder::remove_leftovers`] looks at.
const LEFTOVER_NAMES_MAX: usize = 10_000;

/// The data folder of one cell, held by a descriptor.
#[derive(Debug)]
pub struct CellFolder {
    root: OwnedFd,
    uid: u32,
}

impl CellFolder {
    /// Opens the folder at `path`, which has to be a directory that belongs to `uid`. The parents of `path` are the
    /// agent's own and trusted.
    ///
    /// # Errors
    /// It is not there, not a directory, or belongs to somebody else.
    pub fn open(path: &Path, uid: u32) -> Result<Self, FolderError> {
        let name = path.to_string_lossy();
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|errno| FolderError::from_errno(Doing::Open, &name, errno))?;
        let folder = Self { root, uid };
        let stat = stat(folder.root.as_fd(), &name)?;
        if stat.stx_uid == uid {
            Ok(folder)
        } else {
            Err(FolderError::hostile(&name, Found::Owner(stat.stx_uid)))
        }
    }

    /// The content of the regular file at `rel`, at most `bytes_max` of it; `None` where there is no such file.
    ///
    /// # Errors
    /// It is larger, has more than one name, belongs to neither the cell nor root, is anything but a regular file,
    /// or a part of its path is not a plain directory.
    pub fn read(&self, rel: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, FolderError> {
        let rel = Relative::parse(rel)?;
        let Some((file, size)) = self.open_regular(rel, bytes_max)? else { return Ok(None) };
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // One byte more than allowed, so that a file that grew since it was looked at is noticed.
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|source| FolderError::io(Doing::Read, rel.as_str(), source))?;
        if content.len() as u64 > bytes_max {
            return Err(FolderError::hostile(
                rel.as_str(),
                Found::TooLarge { bytes: content.len() as u64, bytes_max },
            ));
        }
        Ok(Some(content))
    }

    /// Puts a file of the cell with this content at `rel`, whole or not at all, also when the machine fails. `mode`
    /// counts in its nine permission bits. Whatever had that name is replaced, never followed or written into.
    ///
    /// # Errors
    /// The parent is missing or not a plain directory, a directory has that name, or the disk is full.
    pub fn write_atomic(&self, rel: &str, content: &[u8], mode: u32) -> Result<(), FolderError> {
        let rel = Relative::parse(rel)?;
        let parent = self.open_parent(rel)?;
        if look(parent.as_fd(), rel.name(), rel.as_str())?
            .is_some_and(|(_, stat)| kind(&stat) == FileType::Directory)
        {
            return Err(FolderError::hostile(rel.as_str(), Found::Directory));
        }
        let temporary = temporary_name(rel)?;
        let written = self.write_temporary(parent.as_fd(), &temporary, content, mode).and_then(|()| {
            rustix::fs::renameat(&parent, temporary.as_str(), &parent, rel.name())
                .map_err(|e| (Doing::Rename, e.into()))
        });
        if let Err((doing, source)) = written {
            // The first error is the one to report, and a name that is left over harms nobody.
            let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
            return Err(FolderError::io_or_hostile(doing, rel.as_str(), source));
        }
        failpoint::FILE_NAMED.reach();
        rustix::fs::fsync(&parent).map_err(|e| FolderError::from_errno(Doing::Sync, rel.as_str(), e))
    }

    fn write_temporary(
        &self,
        parent: BorrowedFd<'_>,
        name: &str,
        content: &[u8],
        mode: u32,
    ) -> Result<(), (Doing, std::io::Error)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat2(parent, name, flags | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR, BENEATH)
                .map_err(|e| (Doing::Create, e.into()))?;
        let mut file = File::from(fd);
        failpoint::FILE_CREATED.check().map_err(|e| (Doing::Create, e))?;
        file.write_all(content).map_err(|e| (Doing::Write, e))?;
        failpoint::FILE_WRITTEN.check().map_err(|e| (Doing::Write, e))?;
        // O_EXCL made this inode: it cannot be anybody else's, whatever its name has become meanwhile.
        self.own(file.as_fd(), mode).map_err(|e| (Doing::Own, e.into()))?;
        file.sync_all().map_err(|e| (Doing::Sync, e))?;
        failpoint::FILE_SYNCED.check().map_err(|e| (Doing::Sync, e))
    }

    /// Gives something that we made to the cell.
    fn own(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.uid)))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o777))
    }

    /// Makes the directory `rel` and what is missing of its parents, all of the cell. A directory that is there
    /// already keeps its mode; one that belongs to root, as a crash half-way leaves it, is given to the cell.
    ///
    /// # Errors
    /// A part of the path is something else, or belongs to somebody else.
    pub fn ensure_dir(&self, rel: &str, mode: u32) -> Result<(), FolderError> {
        let rel = Relative::parse(rel)?;
        let mut current = self.root()?;
        for component in rel.components() {
            match rustix::fs::mkdirat(&current, component, Mode::RWXU) {
                Ok(()) => {
                    failpoint::FOLDER_MADE.reach();
                    rustix::fs::fsync(&current)
                        .map_err(|e| FolderError::from_errno(Doing::Sync, rel.as_str(), e))?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(FolderError::from_errno(Doing::Create, rel.as_str(), errno)),
            }
            let next = open_beneath(current.as_fd(), component, DIRECTORY)
                .map_err(|errno| FolderError::from_errno(Doing::Open, rel.as_str(), errno))?;
            let owner = stat(next.as_fd(), rel.as_str())?.stx_uid;
            if owner == 0 && self.uid != 0 {
                // A directory has one name only and lies in this file system, so it is the cell's whichever it is.
                self.own(next.as_fd(), mode)
                    .map_err(|errno| FolderError::from_errno(Doing::Own, rel.as_str(), errno))?;
                failpoint::FOLDER_OWNED.reach();
            } else if owner != self.uid {
                return Err(FolderError::hostile(rel.as_str(), Found::Owner(owner)));
            }
            current = next;
        }
        Ok(())
    }

    /// Removes the name `rel`, whatever it is but a directory; links are not followed. `false` where it is not there.
    ///
    /// # Errors
    /// It is a directory, or a part of its path is not a plain directory.
    pub fn remove(&self, rel: &str) -> Result<bool, FolderError> {
        let rel = Relative::parse(rel)?;
        let parent = match self.open_parent(rel) {
            Err(FolderError::Hostile { found: Found::Vanished, .. }) => return Ok(false),
            other => other?,
        };
        match rustix::fs::unlinkat(&parent, rel.name(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Err(FolderError::hostile(rel.as_str(), Found::Directory)),
            Err(errno) => Err(FolderError::from_errno(Doing::Remove, rel.as_str(), errno)),
        }
    }

    /// Removes temporary files that a crash left in the directory `rel` (`None`: the folder itself); says how many.
    /// Only while nobody else writes there.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn remove_leftovers(&self, rel: Option<&str>) -> Result<usize, FolderError> {
        let shown_path = rel.unwrap_or(".");
        let directory = match rel.map(Relative::parse).transpose()? {
            None => self.root()?,
            Some(rel) => self.open_dir(rel.as_str())?,
        };
        let entries = rustix::fs::Dir::read_from(&directory)
            .map_err(|errno| FolderError::from_errno(Doing::Read, shown_path, errno))?;
        let mut removed = 0;
        for entry in entries.take(LEFTOVER_NAMES_MAX) {
            let entry = entry.map_err(|errno| FolderError::from_errno(Doing::Read, shown_path, errno))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with(TEMPORARY_PREFIX)
                && name.ends_with(TEMPORARY_SUFFIX)
                && rustix::fs::unlinkat(&directory, name, AtFlags::empty()).is_ok()
            {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Everything in the folder, within `limits`; each regular file and directory is shown to `visit`, everything
    /// else is skipped and reported. Links are not followed, other mounts not entered, and things that change while
    /// they are looked at end up in the report.
    ///
    /// # Errors
    /// The folder itself cannot be read.
    pub fn walk(&self, limits: WalkLimits, visit: impl FnMut(&Entry)) -> Result<Walked, FolderError> {
        walk::walk(self.root()?, limits, visit)
    }

    fn root(&self) -> Result<OwnedFd, FolderError> {
        // Opened again, not duplicated: a duplicate would share the position that reading a directory moves.
        open_beneath(self.root.as_fd(), ".", DIRECTORY)
            .map_err(|e| FolderError::from_errno(Doing::Open, ".", e))
    }

    fn open_dir(&self, rel: &str) -> Result<OwnedFd, FolderError> {
        open_beneath(self.root.as_fd(), rel, DIRECTORY)
            .map_err(|e| FolderError::from_errno(Doing::Open, rel, e))
    }

    fn open_parent(&self, rel: Relative<'_>) -> Result<OwnedFd, FolderError> {
        rel.parent().map_or_else(|| self.root(), |parent| self.open_dir(parent))
    }

    /// A regular file for reading, and its size.
    fn open_regular(&self, rel: Relative<'_>, bytes_max: u64) -> Result<Option<(File, u64)>, FolderError> {
        let path = rel.as_str();
        let Some((name, stat)) = look(self.root.as_fd(), path, path)? else { return Ok(None) };
        if let Some(found) = Found::unless_regular(kind(&stat)) {
            return Err(FolderError::hostile(path, found));
        }
        if stat.stx_nlink > 1 {
            return Err(FolderError::hostile(path, Found::HardLinks(stat.stx_nlink)));
        }
        if stat.stx_uid != self.uid && stat.stx_uid != 0 {
            return Err(FolderError::hostile(path, Found::Owner(stat.stx_uid)));
        }
        if stat.stx_size > bytes_max {
            return Err(FolderError::hostile(path, Found::TooLarge { bytes: stat.stx_size, bytes_max }));
        }
        // The magic link leads to the inode that was just looked at, not to whatever has its name by now. It is our
        // own process's, so following it is safe. O_NONBLOCK: a file lease that the cell holds answers EWOULDBLOCK.
        let magic = format!("/proc/self/fd/{}", name.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::open(magic, flags, Mode::empty())
            .map_err(|errno| FolderError::from_errno(Doing::Open, path, errno))?;
        Ok(Some((File::from(fd), stat.stx_size)))
    }
}

/// The thing at `path` as a mere name, and what it is; `None` where there is nothing.
fn look(
    directory: BorrowedFd<'_>,
    path: &str,
    shown_path: &str,
) -> Result<Option<(OwnedFd, Statx)>, FolderError> {
    // openat2 takes no other flags together with O_PATH.
    match open_beneath(directory, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
        Ok(fd) => {
            let stat = stat(fd.as_fd(), shown_path)?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(FolderError::from_errno(Doing::Open, shown_path, errno)),
    }
}

fn stat(fd: BorrowedFd<'_>, shown_path: &str) -> Result<Statx, FolderError> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
        .map_err(|errno| FolderError::from_errno(Doing::Look, shown_path, errno))
}

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

fn temporary_name(rel: Relative<'_>) -> Result<String, FolderError> {
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random)
        .map_err(|error| FolderError::io(Doing::Create, rel.as_str(), error.into()))?;
    Ok(format!("{TEMPORARY_PREFIX}{}{TEMPORARY_SUFFIX}", data_encoding::HEXLOWER.encode(&random)))
}
