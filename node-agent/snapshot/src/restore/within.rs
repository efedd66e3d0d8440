//! A restore into a folder that cannot be renamed, because it is a mount point: what is in it is exchanged, entry by
//! entry, once the new one is whole and verified beside it.
//!
//! ```text
//!  target/.berth-restore/tree     the new content, verified and synced
//!  record: phase `out`     the entries of target ──▶ target/.berth-restore/old
//!  record: phase `in`      target/.berth-restore/tree ──▶ target, then the folder's own mode, attributes and time
//!  .berth-restore is removed, then the record: target is whole
//! ```
//!
//! A restore that fails leaves all as it was. One that is killed before there is a record has changed nothing but the mode and
//! the time of the folder itself.
//!
//! Of single files and folders: see [`paths`].
//!
//! The record lies out of the cell's reach. As long as it is there the folder is neither the old state nor the new one;
//! whoever finds it goes on where it says, without the store. Renames within one file system are all that is done then.

mod paths;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Restored;
use super::remove::remove_tree;
use crate::error::Failure;
use crate::walk::{open_folder, xattrs};

/// Made by ext4 in its root, for root alone.
const LOST_AND_FOUND: &str = "lost+found";

/// Right to write for the owner: who moves a folder elsewhere needs it in that folder, too.
const OWNER_WRITES: u32 = 0o200;
const OWNER_ALL: u32 = 0o700;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    Out,
    In,
}

/// What the exchange is doing, and what it ends with.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    phase: Phase,
    restored: Restored,
    /// The new folder's own mode and time, which are set last.
    mode: u32,
    mtime: (i64, i64),
    /// Folders in it that their owner may not write to, with their modes: they cannot be moved as they are.
    closed: Vec<(OsString, u32)>,
}

/// A record as it is read.
#[derive(Debug)]
enum Read {
    Whole(Record),
    Paths(paths::Record),
}

/// The folder, its staging, and the record.
#[derive(Debug)]
pub(super) struct Within<'a> {
    target: &'a Path,
    staging: &'a Path,
    record: &'a Path,
    /// Mode and time of the target before anything was made in it.
    before: (u32, (i64, i64)),
}

impl<'a> Within<'a> {
    pub(super) fn new(target: &'a Path, staging: &'a Path, record: &'a Path) -> Result<Self, Failure> {
        if staging.parent() != Some(target) {
            return Err(Failure::bad_job("the staging has to be in the folder whose content is exchanged"));
        }
        Ok(Self { target, staging, record, before: own(target)? })
    }

    /// A cell may have closed its own folder.
    pub(super) fn open_up(&self) -> Result<(), Failure> {
        fs::set_permissions(self.target, Permissions::from_mode(OWNER_ALL))
            .map_err(|error| self.failed("open", error))
    }

    /// Nothing came of it.
    pub(super) fn put_back(&self) {
        let (mode, mtime) = self.before;
        let _as_good_as_can_be = self.set_time(mtime);
        let _as_good_as_can_be = fs::set_permissions(self.target, Permissions::from_mode(mode));
    }

    /// Ends an exchange that was cut short. `Some`: what the folder holds since, and of which paths; of all where there is none.
    pub(super) fn settle(&mut self) -> Result<Option<(Restored, Vec<String>)>, Failure> {
        let settled = self.settle_record()?;
        if settled.is_some() {
            // The time of the half-done folder is none to go back to.
            self.before = own(self.target)?;
        }
        Ok(settled)
    }

    fn settle_record(&self) -> Result<Option<(Restored, Vec<String>)>, Failure> {
        let text = match fs::read(self.record) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("read the record of", error)),
        };
        // It is written whole, or not at all.
        let record = serde_json::from_slice(&text)
            .map(Read::Whole)
            .or_else(|_| serde_json::from_slice(&text).map(Read::Paths))
            .map_err(|error| self.failed("read the record of", io::Error::other(error)))?;
        self.open_up()?;
        match record {
            Read::Whole(record) => Ok(Some((self.exchange(record)?, vec![]))),
            Read::Paths(record) => {
                let paths = record.paths.clone();
                Ok(Some((self.exchange_paths(record)?, paths)))
            }
        }
    }

    /// Puts the staging's tree in place of what is in the target.
    pub(super) fn put_in_place(&self, restored: Restored) -> Result<Restored, Failure> {
        let record = self.begin_all(restored).inspect_err(|_| self.give_up())?;
        self.exchange(record)
    }

    /// Leaves the target as it was, unless there is a record: one whose sync failed counts as written, and what it is about has
    /// to stay.
    fn give_up(&self) {
        if !self.record.exists() {
            let _left_for_the_next = remove_tree(self.staging);
            self.put_back();
        }
    }

    /// All that may fail and leave things as they are. With the record it is decided.
    fn begin_all(&self, restored: Restored) -> Result<Record, Failure> {
        let tree = fs::symlink_metadata(self.tree()).map_err(|error| self.failed("look at", error))?;
        self.open_tree()?;
        let mut closed = vec![];
        for entry in fs::read_dir(self.tree()).map_err(|error| self.failed("read", error))? {
            let entry = entry.map_err(|error| self.failed("read", error))?;
            let meta = entry.metadata().map_err(|error| self.failed("look at", error))?;
            if meta.is_dir() && meta.mode() & OWNER_WRITES == 0 {
                closed.push((entry.file_name(), meta.mode() & 0o7777));
            }
        }
        let (mode, mtime) = (tree.mode() & 0o7777, (tree.mtime(), tree.mtime_nsec()));
        let record = Record { phase: Phase::Out, restored, mode, mtime, closed };
        self.write(&record)?;
        Ok(record)
    }

    /// The new folder has a mode that may shut its owner out, who is to take things out of it.
    fn open_tree(&self) -> Result<(), Failure> {
        fs::set_permissions(self.tree(), Permissions::from_mode(OWNER_ALL))
            .map_err(|error| self.failed("open", error))
    }

    fn exchange(&self, mut record: Record) -> Result<Restored, Failure> {
        let old = self.staging.join("old");
        if record.phase == Phase::Out {
            make_dir(&old).map_err(|error| self.failed("make", error))?;
            let keep = [self.staging.file_name().unwrap_or_default(), OsStr::new(LOST_AND_FOUND)];
            move_all(self.target, &old, &keep).map_err(|error| self.failed("empty", error))?;
            self.sync()?;
            record.phase = Phase::In;
            self.write(&record)?;
        }
        // Not there: all of this was done, and the removal of the staging was cut short.
        if self.tree().exists() {
            self.open_tree()?;
            move_all(&self.tree(), self.target, &[]).map_err(|error| self.failed("fill", error))?;
            self.set_own(&record).map_err(|error| self.failed("set what belongs to", error))?;
            self.sync()?;
        }
        self.end(record.mode, record.mtime)?;
        Ok(record.restored)
    }

    /// All is where it belongs: what is left of the restore goes, the record last. Where that cannot be removed the next restore
    /// tries again: the folder is whole, and the cell need not wait for it.
    fn end(&self, mode: u32, mtime: (i64, i64)) -> Result<(), Failure> {
        let target = open_folder(self.target).map_err(|errno| self.failed("open", errno.into()))?;
        let _left_for_the_next = remove_tree(self.staging);
        set_time(&target, mtime)
            .and_then(|()| rustix::fs::fchmod(&target, Mode::from_raw_mode(mode)))
            .map_err(|errno| self.failed("set mode and time of", errno.into()))?;
        rustix::fs::syncfs(&target).map_err(|errno| self.failed("sync", errno.into()))?;
        fs::remove_file(self.record)
            .and_then(|()| sync_folder(self.record.parent()))
            .map_err(|error| self.failed("end the record of", error))
    }

    /// What belongs to the folder itself, and to folders in it that had to be opened for their move.
    fn set_own(&self, record: &Record) -> io::Result<()> {
        for (name, mode) in &record.closed {
            fs::set_permissions(self.target.join(name), Permissions::from_mode(*mode))?;
        }
        let (tree, target) = (open_folder(&self.tree())?, open_folder(self.target)?);
        for (name, _) in xattrs(target.as_fd()) {
            rustix::fs::fremovexattr(&target, os_str(&name))?;
        }
        for (name, value) in xattrs(tree.as_fd()) {
            rustix::fs::fsetxattr(&target, os_str(&name), &value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn set_time(&self, mtime: (i64, i64)) -> io::Result<()> {
        Ok(set_time(&open_folder(self.target)?, mtime)?)
    }

    fn tree(&self) -> PathBuf {
        self.staging.join("tree")
    }

    fn sync(&self) -> Result<(), Failure> {
        open_folder(self.target)
            .and_then(|folder| rustix::fs::syncfs(&folder))
            .map_err(|errno| self.failed("sync", errno.into()))
    }

    fn write(&self, record: &impl Serialize) -> Result<(), Failure> {
        let failed = |error| self.failed("write the record of", error);
        let text = serde_json::to_vec(record).map_err(|error| failed(io::Error::other(error)))?;
        let temporary = self.record.with_extension("new");
        File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, self.record))
            .and_then(|()| sync_folder(self.record.parent()))
            .map_err(failed)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> Failure {
        Failure::write(what, self.target, 0, source)
    }
}

fn set_time(folder: &OwnedFd, (tv_sec, tv_nsec): (i64, i64)) -> Result<(), Errno> {
    let time = Timespec { tv_sec, tv_nsec };
    rustix::fs::futimens(folder, &Timestamps { last_access: time, last_modification: time })
}

/// A folder's own mode and time.
fn own(folder: &Path) -> Result<(u32, (i64, i64)), Failure> {
    let meta = fs::symlink_metadata(folder).map_err(|error| Failure::write("look at", folder, 0, error))?;
    Ok((meta.mode() & 0o7777, (meta.mtime(), meta.mtime_nsec())))
}

fn os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(OWNER_ALL).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Moves every entry but these. What was moved before is not there any more, so this can be cut short and repeated.
fn move_all(from: &Path, to: &Path, but: &[&OsStr]) -> io::Result<()> {
    let names: Vec<OsString> =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    for name in names.iter().filter(|name| !but.contains(&name.as_os_str())) {
        let (source, target) = (from.join(name), to.join(name));
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() && meta.mode() & OWNER_WRITES == 0 {
            fs::set_permissions(&source, Permissions::from_mode(meta.mode() & 0o7777 | OWNER_WRITES))?;
        }
        rustix::fs::renameat_with(CWD, &source, CWD, &target, RenameFlags::NOREPLACE)?;
    }
    Ok(())
}

fn sync_folder(folder: Option<&Path>) -> io::Result<()> {
    File::open(folder.unwrap_or(Path::new("/")))?.sync_all()
}
