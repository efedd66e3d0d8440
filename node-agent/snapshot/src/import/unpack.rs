//! Makes what [`judge`](super::entry::judge) allows, in an empty folder that nobody else has. Every name is opened below
//! that folder and never through a link, though none is ever made there.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::archive::{Archive, Found, bad};
use super::entry::{Verdict, judge};
use super::{ImportLimits, LeftOut};
use crate::beneath::{BENEATH, DIRECTORY, open_beneath};
use crate::error::Failure;
use crate::progress::Meter;
use crate::walk::open_folder;

/// Room that stays on the disk whatever an archive holds: the coordinator's journal may be on it.
const ROOM_BYTES: u64 = 512 * 1024 * 1024;

/// As many files and folders can still be made after it.
const ROOM_FILES: u64 = 10_000;

/// The room is looked at again behind so many bytes.
const LOOK_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// What an entry takes of the disk beside its content: its inode, its name, and the rest of its last block.
const ENTRY_BYTES: u64 = 8 * 1024;

/// What is copied at a time.
const PART_BYTES: usize = 64 * 1024;

/// Unpacks all of an archive into `folder`, which is empty. What was left out.
pub(super) fn unpack(
    mut archive: Archive<'_>,
    folder: &Path,
    limits: ImportLimits,
    meter: &Meter,
) -> Result<LeftOut, Failure> {
    let root = open_folder(folder).map_err(|errno| Failure::write("open", folder, 0, errno))?;
    let mut unpacking = Unpacking {
        root,
        limits,
        entries: 0,
        bytes: 0,
        unlooked: LOOK_EVERY_BYTES,
        left_out: LeftOut::default(),
    };
    while let Some(found) = archive.next()? {
        unpacking.take(&mut archive, &found)?;
        meter.count(unpacking.entries, unpacking.bytes);
    }
    Ok(unpacking.left_out)
}

struct Unpacking {
    root: OwnedFd,
    limits: ImportLimits,
    /// Files and folders that were made, links that were not.
    entries: u64,
    bytes: u64,
    /// Bytes that were written since the room was looked at.
    unlooked: u64,
    left_out: LeftOut,
}

impl Unpacking {
    fn take(&mut self, archive: &mut Archive<'_>, found: &Found) -> Result<(), Failure> {
        let refused = |why: &dyn std::fmt::Display| bad(format!("`{}`: {why}", found.name()));
        match judge(&found.header()).map_err(|why| refused(&why))? {
            Verdict::Link(_) => {
                self.count()?;
                self.left_out.link(found.name());
            }
            Verdict::Folder(path, mode) => {
                let folder = self.folder(&path).map_err(|failure| named(failure, found))?;
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))
                    .map_err(|errno| cannot(&path, errno))?;
            }
            Verdict::File(path, mode, bytes) => {
                self.bytes = self.bytes.saturating_add(bytes);
                if self.bytes > self.limits.bytes_max {
                    return Err(Failure::ArchiveTooLarge { what: "bytes" });
                }
                let file = self.make(&path).map_err(|failure| named(failure, found))?;
                self.fill(archive, &file, bytes).map_err(|failure| named(failure, found))?;
                finish(&file, mode, found.mtime)
                    .map_err(|errno| Failure::write("finish", &path, 0, errno))?;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Failure::ArchiveTooLarge { what: "entries" });
        }
        self.look(ENTRY_BYTES)
    }

    /// Opens a folder; makes it, and those that it lies in, where it is not there.
    fn folder(&mut self, path: &Path) -> Result<OwnedFd, Failure> {
        let failed = |errno| cannot(path, errno);
        if path.as_os_str().is_empty() {
            return self.root.try_clone().map_err(|error| Failure::write("open", path, 0, error));
        }
        match open_beneath(self.root.as_fd(), path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(failed),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(bad("an entry has no name"));
        };
        // At most as deep as a path may be.
        let parent = self.folder(parent)?;
        self.count()?;
        rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(failed)?;
        open_beneath(parent.as_fd(), Path::new(name), DIRECTORY).map_err(failed)
    }

    /// Makes a file that is not there yet.
    fn make(&mut self, path: &Path) -> Result<File, Failure> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(bad("an entry has no name"));
        };
        let parent = self.folder(parent)?;
        self.count()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat2(&parent, name, flags, Mode::RUSR | Mode::WUSR, BENEATH);
        made.map(File::from).map_err(|errno| cannot(path, errno))
    }

    fn fill(&mut self, archive: &mut Archive<'_>, mut file: &File, bytes: u64) -> Result<(), Failure> {
        let failed = |error| Failure::write("write", Path::new("the file"), bytes, error);
        let mut part = vec![0; PART_BYTES.min(usize::try_from(bytes).unwrap_or(PART_BYTES))];
        loop {
            let read = archive.content(&mut part)?;
            if read == 0 {
                return Ok(());
            }
            self.look(read as u64)?;
            file.write_all(part.get(..read).unwrap_or_default()).map_err(failed)?;
        }
    }

    /// Is there room still?
    fn look(&mut self, more: u64) -> Result<(), Failure> {
        self.unlooked += more;
        if self.unlooked < LOOK_EVERY_BYTES {
            return Ok(());
        }
        self.unlooked = 0;
        has_room_at(&self.root, 0)
    }
}

/// Can so many bytes more be written below `folder`?
pub(super) fn has_room(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let folder = open_folder(folder).map_err(|errno| Failure::write("open", folder, 0, errno))?;
    has_room_at(&folder, bytes)
}

fn has_room_at(folder: &OwnedFd, bytes: u64) -> Result<(), Failure> {
    let disk = rustix::fs::fstatvfs(folder)
        .map_err(|errno| Failure::write("look at", Path::new("the disk"), 0, errno))?;
    let needed = ROOM_BYTES.saturating_add(bytes);
    // A file system that makes inodes as it needs them shows none.
    let has_files = disk.f_files == 0 || disk.f_favail >= ROOM_FILES;
    if has_files && disk.f_bavail.saturating_mul(disk.f_frsize) >= needed {
        return Ok(());
    }
    Err(Failure::NoSpace { needed })
}

fn finish(file: &File, mode: u32, mtime: u64) -> Result<(), Errno> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    let at = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    rustix::fs::futimens(file, &Timestamps { last_access: at, last_modification: at })
}

/// Why something could not be made: mostly because the archive holds it twice.
fn cannot(path: &Path, errno: Errno) -> Failure {
    match errno {
        Errno::EXIST | Errno::ISDIR => bad("it is there twice"),
        Errno::NOTDIR | Errno::LOOP => bad("a file is there once, and once a folder of its name"),
        Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL => bad("no file can have its name"),
        errno => Failure::write("make", path, 0, errno),
    }
}

/// Which entry it was.
fn named(failure: Failure, found: &Found) -> Failure {
    match failure {
        Failure::BadArchive { detail } => bad(format!("`{}`: {detail}", found.name())),
        other => other,
    }
}
