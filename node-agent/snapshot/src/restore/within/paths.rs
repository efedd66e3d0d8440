//! Single files and folders, put in place of what is there of them; all else stays as it is.
//!
//! ```text
//!  target/.berth-restore/tree/…   what was asked for, verified and synced
//!  target/.berth-restore/new/N    each of it by its number: what takes the place of one name in the target
//!  record                         from here on it is gone through with
//!  each new/N is exchanged with what has its name in the target, or gets that name where nothing has it
//!  folders above get back their modes and times; .berth-restore is removed, then the record
//! ```
//!
//! Each name stands for the old content or for the new one, never for none. Which of them, its inode tells: so an exchange that
//! was cut short is gone on with from anywhere, without the store.
//!
//! The target is a cell's, which may have put links where folders were. None is followed: a path below one is refused before
//! anything is fetched. Where a folder above a path is gone, the highest one that is comes back, with what was asked for in it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{LOST_AND_FOUND, OWNER_ALL, OWNER_WRITES, Within, set_time};
use crate::beneath::{DIRECTORY, open_beneath};
use crate::error::Failure;
use crate::restore::Restored;
use crate::walk::open_folder;

/// Kept free for each name that comes into a folder: that may have to grow, and by then there is no way back.
const ROOM_BYTES: u64 = 32 * 1024;

/// What is being done, and what it ends with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    restored: Restored,
    /// What was asked for.
    pub(super) paths: Vec<String>,
    /// By their numbers in the staging.
    names: Vec<Name>,
    folders: Vec<Folder>,
    /// The target's own mode and time, of before.
    mode: u32,
    mtime: (i64, i64),
}

/// One name in the target that comes to stand for something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Name {
    /// Where it is: what was asked for, or the highest folder above that is not there.
    path: String,
    /// What it will stand for.
    inode: u64,
    /// Its mode, where it is a folder that its owner may not write to: it cannot be moved as it is.
    closed: Option<u32>,
}

/// A folder below the target that a name is in, as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Folder {
    path: String,
    mode: u32,
    mtime: (i64, i64),
}

/// What of the target is touched.
#[derive(Debug, Default)]
struct Found {
    names: Vec<String>,
    folders: Vec<Folder>,
}

impl Within<'_> {
    /// Can these be put in place of what is there?
    ///
    /// # Errors
    /// They cannot, and nothing was changed.
    pub(in crate::restore) fn look(&self, paths: &[String]) -> Result<(), Failure> {
        self.find(paths).map(drop)
    }

    /// Puts these of the staging in place of what is there.
    pub(in crate::restore) fn put_paths_in_place(
        &self,
        restored: Restored,
        paths: &[String],
    ) -> Result<Restored, Failure> {
        let record = self.begin(restored, paths).inspect_err(|_| self.give_up())?;
        self.exchange_paths(record)
    }

    /// All that may fail and leave things as they are. With the record it is decided.
    fn begin(&self, restored: Restored, paths: &[String]) -> Result<Record, Failure> {
        let Found { names, folders } = self.find(paths)?;
        let root = self.root()?;
        let new = self.staging.join("new");
        super::make_dir(&new).map_err(|error| self.failed("make", error))?;
        let tree = open_folder(&self.tree()).map_err(|errno| self.failed("open", errno.into()))?;
        let new = open_folder(&new).map_err(|errno| self.failed("open", errno.into()))?;
        let mut moved = Vec::with_capacity(names.len());
        for (number, path) in names.into_iter().enumerate() {
            let taken = take(&tree, &path, &new, number);
            let (inode, closed) = taken.map_err(|errno| Failure::write("move", path.as_ref(), 0, errno))?;
            moved.push(Name { path, inode, closed });
        }
        let free = rustix::fs::fstatvfs(&root)
            .map(|found| found.f_bavail.saturating_mul(found.f_frsize))
            .map_err(|errno| self.failed("look at", errno.into()))?;
        let needed = ROOM_BYTES.saturating_mul(moved.len() as u64);
        if free < needed {
            return Err(Failure::NoSpace { needed });
        }
        self.sync()?;
        let (mode, mtime) = self.before;
        let record = Record { restored, paths: paths.to_vec(), names: moved, folders, mode, mtime };
        self.write(&record)?;
        Ok(record)
    }

    /// The names that these paths come down to, and the folders that those are in.
    fn find(&self, paths: &[String]) -> Result<Found, Failure> {
        let root = self.root()?;
        let mut found = Found::default();
        for path in paths {
            self.find_one(&root, path, &mut found)?;
        }
        Ok(found)
    }

    fn find_one(&self, root: &OwnedFd, path: &str, found: &mut Found) -> Result<(), Failure> {
        let failed = |what, at: &str, errno: Errno| Failure::write(what, at.as_ref(), 0, errno);
        let path = path.trim_matches('/');
        let first = path.split('/').next().unwrap_or_default();
        if first == LOST_AND_FOUND || self.staging.file_name().is_some_and(|staging| staging == first) {
            return Err(Failure::NoPath { path: path.chars().take(200).collect() });
        }
        let mut folder: Option<OwnedFd> = None;
        let mut above = String::new();
        for part in path.split('/') {
            let at = below(&above, part);
            let within = folder.as_ref().unwrap_or(root);
            let there = rustix::fs::statat(within, part, AtFlags::SYMLINK_NOFOLLOW);
            let is_last = at.len() == path.len();
            match there {
                Ok(stat) if !is_last && is_folder(&stat) => {
                    // Who cannot write to it could not go through with the exchange.
                    movable(&stat).map_err(|errno| failed("write to", &at, errno))?;
                    let opened = open_beneath(within.as_fd(), part, DIRECTORY);
                    folder = Some(opened.map_err(|errno| failed("open", &at, errno))?);
                    above = at;
                }
                Ok(_) if !is_last => return Err(Failure::InTheWay { path: at.into() }),
                Ok(stat) if is_folder(&stat) => {
                    movable(&stat).map_err(|errno| failed("move", &at, errno))?;
                    return note(found, folder.as_ref(), above, at);
                }
                Ok(_) | Err(Errno::NOENT) => return note(found, folder.as_ref(), above, at),
                Err(errno) => return Err(failed("look at", &at, errno)),
            }
        }
        Ok(())
    }

    /// Goes through with it, from wherever it is.
    pub(super) fn exchange_paths(&self, record: Record) -> Result<Restored, Failure> {
        let root = self.root()?;
        for folder in &record.folders {
            set(&root, &folder.path, folder.mode | OWNER_ALL, None)?;
        }
        for (number, name) in record.names.iter().enumerate() {
            let put = self.put(&root, number, name);
            put.map_err(|errno| Failure::write("put in place", name.path.as_ref(), 0, errno))?;
        }
        self.sync()?;
        // Folders before what is in them: backwards.
        let mut folders: Vec<&Folder> = record.folders.iter().collect();
        folders.sort_by(|a, b| b.path.cmp(&a.path));
        for folder in folders {
            set(&root, &folder.path, folder.mode, Some(folder.mtime))?;
        }
        self.end(record.mode, record.mtime)?;
        Ok(record.restored)
    }

    /// One name comes to stand for what is new, unless it does.
    fn put(&self, root: &OwnedFd, number: usize, name: &Name) -> Result<(), Errno> {
        let (above, last) = split(&name.path);
        let folder = open(root, above)?;
        let there = rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW);
        let there = match there {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        if there.as_ref().is_none_or(|stat| stat.st_ino != name.inode) {
            let new = open_folder(&self.staging.join("new"))?;
            let numbered = number.to_string();
            if let Some(old) = there.as_ref().filter(|old| is_folder(old)) {
                open_for_move(&folder, last, old)?;
            }
            let how = if there.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
            rustix::fs::renameat_with(&new, numbered.as_str(), &folder, last, how)?;
        }
        match name.closed {
            // It is what was moved here, so no link.
            Some(mode) => rustix::fs::chmodat(&folder, last, Mode::from_raw_mode(mode), AtFlags::empty()),
            None => Ok(()),
        }
    }

    fn root(&self) -> Result<OwnedFd, Failure> {
        open_folder(self.target).map_err(|errno| self.failed("open", errno.into()))
    }
}

/// Moves what the staging has at a path to its number, and tells its inode, and its mode where that had to be changed.
fn take(tree: &OwnedFd, path: &str, new: &OwnedFd, number: usize) -> Result<(u64, Option<u32>), Errno> {
    let (above, last) = split(path);
    // These were made for what is in them, and go with the staging.
    let mut so_far = String::new();
    rustix::fs::fchmod(tree, Mode::from_raw_mode(OWNER_ALL))?;
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let folder = open(tree, &so_far)?;
        rustix::fs::chmodat(&folder, part, Mode::from_raw_mode(OWNER_ALL), AtFlags::empty())?;
        so_far = below(&so_far, part);
    }
    let folder = open(tree, above)?;
    let stat = rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW)?;
    let closed = if is_folder(&stat) { open_for_move(&folder, last, &stat)? } else { None };
    rustix::fs::renameat_with(&folder, last, new, number.to_string().as_str(), RenameFlags::NOREPLACE)?;
    Ok((stat.st_ino, closed))
}

/// Whoever moves a folder elsewhere needs the right to write in that folder, too. Its mode, where that was lacking.
fn open_for_move(within: &OwnedFd, name: &str, stat: &Stat) -> Result<Option<u32>, Errno> {
    let mode = stat.st_mode & 0o7777;
    if mode & OWNER_WRITES != 0 {
        return Ok(None);
    }
    let open = Mode::from_raw_mode(mode | OWNER_WRITES);
    rustix::fs::chmodat(within, name, open, AtFlags::empty())?;
    Ok(Some(mode))
}

/// Sets a folder's mode, and its time.
fn set(root: &OwnedFd, path: &str, mode: u32, mtime: Option<(i64, i64)>) -> Result<(), Failure> {
    let set = open(root, path).and_then(|folder| {
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
        mtime.map_or(Ok(()), |mtime| set_time(&folder, mtime))
    });
    set.map_err(|errno| Failure::write("set what belongs to", path.as_ref(), 0, errno))
}

/// Remembers a name once, with the folder that it is in.
fn note(found: &mut Found, folder: Option<&OwnedFd>, above: String, name: String) -> Result<(), Failure> {
    if found.names.contains(&name) {
        return Ok(());
    }
    found.names.push(name);
    let Some(folder) = folder.filter(|_| found.folders.iter().all(|known| known.path != above)) else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(folder);
    let stat = stat.map_err(|errno| Failure::write("look at", above.as_ref(), 0, errno))?;
    found.folders.push(Folder {
        path: above,
        mode: stat.st_mode & 0o7777,
        mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
    });
    Ok(())
}

/// A folder's mode can be set by its owner only.
fn movable(stat: &Stat) -> Result<(), Errno> {
    let me = rustix::process::geteuid();
    if me.is_root() || me.as_raw() == stat.st_uid { Ok(()) } else { Err(Errno::PERM) }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// A folder below another one, or that one itself.
fn open(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    open_beneath(root.as_fd(), if path.is_empty() { "." } else { path }, DIRECTORY)
}

/// The folder and the last name of a path.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}
