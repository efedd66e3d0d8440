//! The real file layer: a directory, reached through one descriptor, so that renaming a parent changes nothing.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};

use super::{Access, File, LockError, Storage};
use crate::failpoint::WRITE_TORN;

const DIRECTORY_MODE: u32 = 0o700;

/// A journal's directory on a file system.
#[derive(Debug)]
pub struct StdStorage {
    directory: OwnedFd,
}

impl StdStorage {
    /// Opens the directory to write in it; makes it (mode 0700), but not its parents, when it is missing, and makes
    /// its name durable. Takes no lock yet: [`Journal::open`](crate::Journal::open) does.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let created = match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        let opened = Self::existing(directory)?;
        // Also for a directory that was there: a process that made it may have been killed before this line.
        match fs::File::open(parent_of(directory)).and_then(|parent| parent.sync_all()) {
            Ok(()) => {}
            // Somebody else made it in a folder that we may not read, so it was theirs to make durable.
            Err(error) if !created && error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
        Ok(opened)
    }

    /// Opens a directory that must be there, for [`verify`](crate::verify): makes nothing and syncs nothing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn existing(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: rustix::fs::open(directory, flags, Mode::empty())? })
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<fs::File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }
}

impl Storage for StdStorage {
    type File = fs::File;

    fn lock(&self) -> Result<(), LockError> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held),
            Err(error) => Err(LockError::Io(error.into())),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            // A name that is not UTF-8 cannot be one of ours.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<fs::File> {
        self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<fs::File> {
        match access {
            Access::Read => self.open_at(name, OFlags::RDONLY),
            Access::Write => self.open_at(name, OFlags::RDWR),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.directory, from, &self.directory, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    fn fresh_id(&self) -> io::Result<[u8; 16]> {
        let mut id = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
        Ok(id)
    }
}

impl File for fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        // Some of the bytes may always be written without the others: a test has the process die there.
        if WRITE_TORN.is_armed() {
            FileExt::write_all_at(self, bytes.split_at(bytes.len() / 2).0, offset)?;
        }
        WRITE_TORN.check()?;
        FileExt::write_at(self, bytes, offset)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

fn parent_of(directory: &Path) -> &Path {
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => directory,
    }
}
