//! The files and directories of one cell's disk, and the lock on them.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use berth_shared::units::Bytes;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::QuotaError;
use crate::failpoint;

const IMAGE: &str = "disk.img";
const TEMPORARY_PREFIX: &str = "disk.img.new-";

/// How long a call waits for another about the same cell: longer than any program may run (`tool.rs`) would be
/// longer than any caller waits, so this is the bound of a caller's patience.
const LOCK_TRIES_MAX: u32 = 3_000;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Where a cell's disk lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) image: PathBuf,
    pub(super) data: PathBuf,
}

/// Held while something is done to a place.
#[derive(Debug)]
pub(super) struct PlaceLock(File);

impl PlaceLock {
    /// The same lock for a child process, as its standard input: it stays locked until both have let go.
    pub(super) fn shared(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }
}

impl Place {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { image: dir.join(IMAGE), data: dir.join("data"), dir }
    }

    fn prepare_failed(&self, source: io::Error) -> QuotaError {
        QuotaError::Prepare { path: self.dir.clone(), source }
    }

    /// Makes the directory if it is not there, and waits until it is ours.
    pub(super) async fn lock(&self) -> Result<PlaceLock, QuotaError> {
        for _ in 0..LOCK_TRIES_MAX {
            match self.try_lock() {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => tokio::time::sleep(LOCK_PAUSE).await,
                Err(source) => return Err(self.prepare_failed(source)),
            }
        }
        Err(QuotaError::Locked { path: self.dir.clone() })
    }

    fn try_lock(&self) -> io::Result<Option<PlaceLock>> {
        make_dir(&self.dir, 0o711)?;
        failpoint::QUOTA_PLACE.check()?;
        let dir = match File::open(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // The directory may have been removed, and made anew, while we waited for it.
        match std::fs::metadata(&self.dir) {
            Ok(now) if now.ino() == dir.metadata()?.ino() => Ok(Some(PlaceLock(dir))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The image's length, `None` where there is no image.
    pub(super) fn image_bytes(&self) -> Result<Option<Bytes>, QuotaError> {
        match std::fs::metadata(&self.image) {
            Ok(metadata) => Ok(Some(Bytes(metadata.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(QuotaError::Look { path: self.image.clone(), source }),
        }
    }

    /// How many bytes of the node's disk the image may still come to take.
    pub(super) fn image_growth(&self) -> Result<Bytes, QuotaError> {
        match std::fs::metadata(&self.image) {
            Ok(metadata) => {
                Ok(Bytes(metadata.len()).saturating_sub(Bytes(metadata.blocks().saturating_mul(512))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::ZERO),
            Err(source) => Err(QuotaError::Look { path: self.image.clone(), source }),
        }
    }

    /// An empty sparse file of this size under a name that nobody else uses.
    pub(super) fn create_temporary(&self, size: Bytes) -> Result<PathBuf, QuotaError> {
        let create = || {
            let mut random = [0_u8; 8];
            getrandom::fill(&mut random)?;
            let name = format!("{TEMPORARY_PREFIX}{}", data_encoding::HEXLOWER.encode(&random));
            let path = self.dir.join(name);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_len(size.0)?;
            failpoint::QUOTA_CREATED.check()?;
            Ok(path)
        };
        create().map_err(|source| self.prepare_failed(source))
    }

    /// Makes a whole image the cell's, durably.
    pub(super) fn put_image(&self, temporary: &Path) -> Result<(), QuotaError> {
        let put = || {
            File::open(temporary)?.sync_all()?;
            failpoint::QUOTA_SYNCED.check()?;
            std::fs::rename(temporary, &self.image)?;
            failpoint::QUOTA_NAMED.check()?;
            File::open(&self.dir)?.sync_all()
        };
        put().map_err(|source| self.prepare_failed(source))
    }

    pub(super) fn extend_image(&self, size: Bytes) -> Result<(), QuotaError> {
        let extend = || {
            let file = OpenOptions::new().write(true).open(&self.image)?;
            file.set_len(size.0)?;
            failpoint::QUOTA_EXTENDED.check()?;
            file.sync_all()
        };
        extend().map_err(|source| self.prepare_failed(source))
    }

    /// Removes images that were never finished.
    pub(super) fn remove_leftovers(&self) -> Result<(), QuotaError> {
        let remove = || {
            for entry in std::fs::read_dir(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if name.to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                    std::fs::remove_file(entry.path())?;
                } else if Self::is_new_files(&name.to_string_lossy()) {
                    // It gets its name before a cell writes into it.
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|source| self.prepare_failed(source))
    }

    /// The mount point: closed to everybody while nothing is mounted there.
    pub(super) fn make_mount_point(&self) -> Result<(), QuotaError> {
        let made = make_dir(&self.data, 0o700).and_then(|()| failpoint::QUOTA_POINT.check());
        made.map_err(|source| self.prepare_failed(source))
    }

    /// Moves the image away. `false` where there is none.
    pub(super) fn move_image(&self, to: &Path) -> Result<bool, QuotaError> {
        if self.image_bytes()?.is_none() {
            return Ok(false);
        }
        self.move_away(&self.image, to)?;
        Ok(true)
    }

    /// Moves the image or the files away, durably.
    pub(super) fn move_away(&self, from: &Path, to: &Path) -> Result<(), QuotaError> {
        let moved = || {
            std::fs::rename(from, to)?;
            failpoint::QUOTA_MOVED.check()?;
            let parent = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
            File::open(parent)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        moved().map_err(|source| self.prepare_failed(source))
    }

    pub(super) fn remove_image(&self) -> Result<(), QuotaError> {
        match std::fs::remove_file(&self.image) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.prepare_failed(error)),
            _ => Ok(()),
        }
    }

    /// Removes the empty directories. What others put there stays, and so does the directory then.
    pub(super) fn remove_directories(&self) {
        let _ = std::fs::remove_dir(&self.data);
        let _ = std::fs::remove_dir(&self.dir);
        failpoint::QUOTA_EMPTIED.reach();
    }
}

/// Makes one directory with exactly this mode, whatever the umask; one that is there stays as it is.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
