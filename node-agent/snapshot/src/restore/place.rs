//! The staging folder, and how it takes the target's place.
//!
//! The new folder is made as `staging/tree`. It takes the target's place by one `renameat2(RENAME_EXCHANGE)`, after
//! which `staging/tree` is what was there before and gets the name `previous`. Between these two a kill would leave
//! the old folder where the next restore would clean up. So before the exchange the new folder's inode is written to
//! `staging/exchange`; a restore that finds that file, and that inode under the target's name, knows that the exchange
//! was done and ends it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::remove::remove_tree;
use super::within::Within;
use super::{RestoreJob, Restored};
use crate::error::Failure;

/// Kept free on the file system beside what a restore needs. Not where a folder's content is exchanged: that may be a disk of
/// its own, which a cell has filled to its end.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// How long a restore waits for another one in the same place, which may be one that is just being killed.
const LOCK_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Staging<'a> {
    job: &'a RestoreJob,
    /// The folder that the staging is in, locked. The kernel gives up a dead process's lock.
    _lock: File,
    tree: PathBuf,
    marker: PathBuf,
    within: Option<Within<'a>>,
}

impl<'a> Staging<'a> {
    /// Looks at the three folders, and ends or removes what a killed restore has left; `Some`: what it has restored.
    pub(super) fn prepare(job: &'a RestoreJob) -> Result<(Self, Option<Restored>), Failure> {
        let lock = lock(job.staging.parent().unwrap_or(Path::new("/")))?;
        let within = job.within.as_deref().map(|record| Within::new(&job.target, &job.staging, record));
        let within = within.transpose()?;
        let mut staging = Self {
            job,
            _lock: lock,
            tree: job.staging.join("tree"),
            marker: job.staging.join("exchange"),
            within,
        };
        if let Some(within) = &mut staging.within {
            let settled = within.settle()?;
            if exists(&job.staging) {
                within.open_up()?;
                staging.remove();
            }
            let settled = settled.filter(|(_, paths)| *paths == job.paths);
            return Ok((staging, settled.map(|(restored, _)| restored)));
        }
        if let Ok(expected) = fs::read_to_string(&staging.marker)
            && inode(&job.target).is_some_and(|inode| inode.to_string() == expected)
            && staging.tree.exists()
        {
            staging.keep_previous()?;
        }
        remove_tree(&job.staging)?;
        if exists(&job.previous) {
            return Err(Failure::bad_job("the folder for what was there before is in use"));
        }
        if !job.paths.is_empty() && exists(&job.target) {
            return Err(Failure::bad_job(
                "single paths are restored into a new folder, and that one is there already",
            ));
        }
        Ok((staging, None))
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// Is there room for so much? A look before, so that a full disk is not filled first.
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), Failure> {
        let parent = self.job.staging.parent().unwrap_or(Path::new("/"));
        let free = rustix::fs::statvfs(parent)
            .map(|found| found.f_bavail.saturating_mul(found.f_frsize))
            .map_err(|errno| Failure::write("look at", parent, bytes, errno))?;
        let reserve = if self.within.is_some() { 0 } else { RESERVE_BYTES };
        if free < bytes.saturating_add(reserve) { Err(Failure::NoSpace { needed: bytes }) } else { Ok(()) }
    }

    pub(super) fn make(&self) -> Result<(), Failure> {
        if let Some(within) = &self.within {
            within.open_up()?;
        }
        let made = fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.job.staging)
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&self.tree));
        made.map_err(|source| Failure::write("make", &self.tree, 0, source))
    }

    /// Can what the job names be put in place at all? A look before, so that nothing is fetched in vain.
    pub(super) fn look(&self) -> Result<(), Failure> {
        match &self.within {
            Some(within) if !self.job.paths.is_empty() => within.look(&self.job.paths),
            _ => Ok(()),
        }
    }

    /// Removes what was made. Says nothing: the failure before counts.
    pub(super) fn remove(&self) {
        let _left_for_the_next = remove_tree(&self.job.staging);
        if let Some(within) = &self.within {
            within.put_back();
        }
    }

    /// Gives the new folder the target's name, or the target the new content.
    pub(super) fn put_in_place(&self, restored: Restored) -> Result<Restored, Failure> {
        if let Some(within) = &self.within {
            let paths = &self.job.paths;
            return if paths.is_empty() {
                within.put_in_place(restored)
            } else {
                within.put_paths_in_place(restored, paths)
            };
        }
        Ok(Restored { previous: self.take_the_name()?, ..restored })
    }

    /// Was there a target before?
    fn take_the_name(&self) -> Result<bool, Failure> {
        let job = self.job;
        let failed = |what, source| Failure::write(what, &job.target, 0, source);
        if !exists(&job.target) {
            let none = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(CWD, &self.tree, CWD, &job.target, none)
                .map_err(|errno| failed("rename to", errno.into()))?;
            sync_parent(&job.target).map_err(|source| failed("sync", source))?;
            self.remove();
            return Ok(false);
        }
        let new = inode(&self.tree).unwrap_or_default();
        let marked = File::create(&self.marker)
            .and_then(|mut file| {
                file.write_all(new.to_string().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| sync_parent(&self.marker));
        marked.map_err(|source| failed("mark", source))?;
        rustix::fs::renameat_with(CWD, &self.tree, CWD, &job.target, RenameFlags::EXCHANGE)
            .map_err(|errno| failed("exchange", errno.into()))?;
        sync_parent(&job.target).map_err(|source| failed("sync", source))?;
        self.keep_previous()?;
        self.remove();
        Ok(true)
    }

    fn keep_previous(&self) -> Result<(), Failure> {
        let previous = &self.job.previous;
        rustix::fs::renameat_with(CWD, &self.tree, CWD, previous, RenameFlags::NOREPLACE)
            .map_err(std::io::Error::from)
            .and_then(|()| sync_parent(previous))
            .map_err(|source| Failure::write("rename to", previous, 0, source))
    }
}

fn lock(folder: &Path) -> Result<File, Failure> {
    let failed = |source| Failure::write("lock", folder, 0, source);
    let file = File::open(folder).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
