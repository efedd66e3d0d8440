//! The file system's own quota per user: the kernel counts what a cell's uid holds, and ends it at a limit.
//!
//! A cell's uid is its own, and nothing in a cell can make a file that belongs to another, so the count holds against
//! a hostile cell. A project id would not: whoever owns a file may change it (decision 0004).
//!
//! ```text
//! <data_dir>/cells/<cell id>/files.<uid>        closed to everybody; the name says whom the kernel counts for
//! <data_dir>/cells/<cell id>/files.<uid>/root   the cell's files
//! <data_dir>/cells/<cell id>/data               where they are mounted (bind): the cell's folder
//! ```
//!
//! The limit lies with the kernel and nowhere else. It is set before the directory gets its name, and lifted before
//! what a cell leaves behind is moved away, which belongs to root from then on: the uid may be another cell's later.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use berth_daemon::program::command;
use berth_shared::units::Bytes;
use rustix::mount::MountFlags;

use super::place::{Place, PlaceLock};
use super::tool::Tool;
use super::{QuotaError, mounts};
use crate::failpoint;

/// One inode for so many bytes, as a disk of its own would have.
const BYTES_PER_INODE: u64 = 16 * 1024;

/// What the kernel counts in when it is asked by the quota programs.
const UNIT: u64 = 1024;

/// Whom the trial counts for: no cell's uid, and nobody's by any distribution's rules.
const TRIAL_UID: u32 = 2_147_480_147;

/// How much the trial may hold, and how much it tries to write.
const TRIAL_BYTES: Bytes = Bytes::mib(1);

/// How long the trial writes at the most.
const TRIAL_BOUND: Duration = Duration::from_secs(60);

/// `f_type` of statfs(2).
const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;

/// A kind of file system whose kernel code counts per user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ext4,
    Xfs,
}

/// What is counted for one uid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) used: Bytes,
    /// Zero: no limit.
    pub(crate) limit: Bytes,
    pub(crate) inodes_limit: u64,
}

/// Who counts.
#[derive(Debug)]
enum Counter {
    /// The kernel, asked by the quota programs about the file system that is mounted here.
    Kernel(PathBuf),
    /// Nobody: limits are kept, used bytes are those of the files, and nothing ends at a limit.
    #[cfg(test)]
    Fake { root: PathBuf, limits: std::sync::Mutex<BTreeMap<u32, Count>> },
}

/// The file system below the data directory, as one that counts.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) kind: Kind,
    counter: Counter,
}

impl Counted {
    /// Finds out by trying: writes more than a limit lets, below `data_dir`, for a uid that nobody has.
    pub(super) async fn detect(data_dir: &Path, place: &Place) -> Result<Self, QuotaError> {
        let look_failed = |source: io::Error| QuotaError::Look { path: data_dir.to_path_buf(), source };
        let stat = rustix::fs::statfs(data_dir).map_err(|errno| look_failed(errno.into()))?;
        let kind = match u64::try_from(stat.f_type) {
            Ok(EXT4) => Kind::Ext4,
            Ok(XFS) => Kind::Xfs,
            _ => return Err(QuotaError::NotCounted { path: data_dir.to_path_buf() }),
        };
        let counted = Self { kind, counter: Counter::Kernel(mounts::mount_point_of(data_dir)?) };
        let lock = place.lock().await?;
        place.remove_files(TRIAL_UID)?;
        let tried = counted.try_limit(place, &lock).await;
        let cleaned = place.remove_files(TRIAL_UID);
        let lifted = counted.lift(&lock, TRIAL_UID).await;
        place.remove_directories();
        tried.and(cleaned).and(lifted)?;
        Ok(counted)
    }

    async fn try_limit(&self, place: &Place, lock: &PlaceLock) -> Result<(), QuotaError> {
        self.limit(lock, TRIAL_UID, TRIAL_BYTES).await?;
        let files = place.make_files(TRIAL_UID)?;
        let written = write_too_much(&files.join("full"))
            .await
            .map_err(|source| QuotaError::Spawn { tool: "dd", source })?;
        let count = self.of(lock, TRIAL_UID).await?;
        let is_kept = (1..=TRIAL_BYTES.0).contains(&written) && count.limit == TRIAL_BYTES;
        if is_kept && count.used.0 >= written {
            Ok(())
        } else {
            Err(QuotaError::NotKept { written: Bytes(written), limit: TRIAL_BYTES })
        }
    }

    /// Lets this uid hold so much and no more.
    pub(super) async fn limit(&self, lock: &PlaceLock, uid: u32, size: Bytes) -> Result<(), QuotaError> {
        self.set(lock, uid, Count { used: Bytes::ZERO, limit: size, inodes_limit: size.0 / BYTES_PER_INODE })
            .await
    }

    /// Nothing limits this uid any more.
    pub(super) async fn lift(&self, lock: &PlaceLock, uid: u32) -> Result<(), QuotaError> {
        self.set(lock, uid, Count::default()).await
    }

    async fn set(&self, lock: &PlaceLock, uid: u32, count: Count) -> Result<(), QuotaError> {
        match &self.counter {
            Counter::Kernel(point) => {
                let (uid, blocks) = (uid.to_string(), (count.limit.0 / UNIT).to_string());
                let inodes = count.inodes_limit.to_string();
                Tool::SetQuota.run(lock, &["-u", &uid, "0", &blocks, "0", &inodes], &[point]).await?;
                Ok(())
            }
            #[cfg(test)]
            Counter::Fake { limits, .. } => {
                let mut limits = limits.lock().unwrap();
                if count == Count::default() {
                    limits.remove(&uid)
                } else {
                    limits.insert(uid, count)
                };
                Ok(())
            }
        }
    }

    /// What is counted for this uid.
    pub(super) async fn of(&self, lock: &PlaceLock, uid: u32) -> Result<Count, QuotaError> {
        Ok(self.all(lock).await?.remove(&uid).unwrap_or_default())
    }

    /// What is counted for everybody.
    pub(super) async fn all(&self, lock: &PlaceLock) -> Result<BTreeMap<u32, Count>, QuotaError> {
        match &self.counter {
            Counter::Kernel(point) => {
                let said = Tool::ReportQuota.run(lock, &["-u", "-n", "-v", "-O", "csv"], &[point]).await?;
                parse(&said).ok_or(QuotaError::Report { path: point.clone() })
            }
            #[cfg(test)]
            Counter::Fake { root, limits } => {
                let mut counts = limits.lock().unwrap().clone();
                tests::add_used(root, &mut counts);
                Ok(counts)
            }
        }
    }

    /// Makes the cell's directory, with its limit; worthless until it has its name.
    pub(super) async fn make(
        &self,
        place: &Place,
        lock: &PlaceLock,
        uid: u32,
        size: Bytes,
    ) -> Result<(), QuotaError> {
        self.limit(lock, uid, size).await?;
        place.make_files(uid).map(drop)
    }
}

/// Tries to write three times what the trial may hold into a file of its uid, and tells how much went in.
async fn write_too_much(path: &Path) -> io::Result<u64> {
    let file = std::fs::File::create_new(path)?;
    std::os::unix::fs::fchown(&file, Some(TRIAL_UID), Some(TRIAL_UID))?;
    let write = |uid: Option<u32>| -> io::Result<_> {
        let mut dd = command("dd");
        dd.args(["if=/dev/zero", "bs=65536", "count=48"]);
        if let Some(uid) = uid {
            dd.uid(uid).gid(uid);
        }
        dd.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(Stdio::null()).spawn()
    };
    // Root may exceed a limit, except where the capability for that is taken from it, as that of being another user is.
    let mut child = match write(Some(TRIAL_UID)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => write(None)?,
        other => other?,
    };
    // It fails at the limit: how far it came is what counts.
    let ended = tokio::time::timeout(TRIAL_BOUND, child.wait()).await;
    ended.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(file.metadata()?.len())
}

/// Gives what the cell has to root: who gets the uid next begins with nothing.
pub(super) async fn disown(place: &Place, lock: &PlaceLock, uid: u32) -> Result<(), QuotaError> {
    Tool::Own.run(lock, &["-hR", "0:0", "--"], &[&place.files_holder(uid)]).await.map(drop)
}

/// Mounts the cell's files at its folder, if they are not, with what a disk of its own would be mounted with.
pub(super) fn mount(place: &Place, files: &Path) -> Result<(), QuotaError> {
    place.make_mount_point()?;
    let failed =
        |errno: rustix::io::Errno| QuotaError::Mount { path: place.data.clone(), source: errno.into() };
    match mounts::mounted(place)? {
        mounts::Mounted::Other { what } => {
            return Err(QuotaError::Occupied { path: place.data.clone(), what });
        }
        mounts::Mounted::Not => {
            rustix::mount::mount_bind(files, &place.data).map_err(failed)?;
            failpoint::QUOTA_BOUND
                .check()
                .map_err(|source| QuotaError::Mount { path: place.data.clone(), source })?;
        }
        mounts::Mounted::Ours { .. } => {}
    }
    // Also where it is mounted already: an agent may have died in between.
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount_remount(&place.data, flags, "").map_err(failed)
}

/// repquota(8), csv: a header that names the columns, then `#uid,…` in units of 1 KiB.
pub(crate) fn parse(said: &[u8]) -> Option<BTreeMap<u32, Count>> {
    let text = std::str::from_utf8(said).ok()?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.by_ref().find(|line| line.contains("HardLimit"))?.split(',').collect();
    let column = |names: [&str; 2]| header.iter().position(|name| names.contains(name));
    let (used, limit) = (column(["BlockUsed", "SpaceUsed"])?, column(["BlockHardLimit", "SpaceHardLimit"])?);
    let inodes = header.iter().position(|name| *name == "FileHardLimit")?;
    let mut counts = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let Some(uid) = fields.first().and_then(|name| name.strip_prefix('#')?.parse().ok()) else {
            continue;
        };
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let count = Count {
            used: Bytes(number(used)?.saturating_mul(UNIT)),
            limit: Bytes(number(limit)?.saturating_mul(UNIT)),
            inodes_limit: number(inodes)?,
        };
        counts.insert(uid, count);
    }
    Some(counts)
}

impl Place {
    const FILES: &str = "files.";
    const NEW: &str = "files-new.";
    const ROOT: &str = "root";

    /// Where the files of a cell of this uid lie. Nobody but root gets at them there: neither `nosuid` nor `nodev` holds.
    pub(super) fn files(&self, uid: u32) -> PathBuf {
        self.files_holder(uid).join(Self::ROOT)
    }

    /// The directory that holds them.
    pub(super) fn files_holder(&self, uid: u32) -> PathBuf {
        self.dir.join(format!("{}{uid}", Self::FILES))
    }

    /// Whose files lie here, `None` where there are none.
    pub(super) fn files_of(&self) -> Result<Option<u32>, QuotaError> {
        let failed = |source| QuotaError::Look { path: self.dir.clone(), source };
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if let Some(uid) = name.to_str().and_then(|name| name.strip_prefix(Self::FILES)?.parse().ok()) {
                return Ok(Some(uid));
            }
        }
        Ok(None)
    }

    /// Makes the directory under a temporary name, gives it to its uid, and names it, durably.
    fn make_files(&self, uid: u32) -> Result<PathBuf, QuotaError> {
        let make = || {
            let new = self.dir.join(format!("{}{uid}", Self::NEW));
            super::place::make_dir(&new, 0o700)?;
            failpoint::QUOTA_FILES_MADE.check()?;
            let root = new.join(Self::ROOT);
            super::place::make_dir(&root, 0o755)?;
            std::os::unix::fs::chown(&root, Some(uid), Some(uid))?;
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, self.files_holder(uid))?;
            failpoint::QUOTA_FILES_NAMED.check()?;
            std::fs::File::open(&self.dir)?.sync_all()?;
            Ok(self.files(uid))
        };
        make().map_err(|source| QuotaError::Prepare { path: self.dir.clone(), source })
    }

    /// Is this name one of a directory that was never finished?
    pub(super) fn is_new_files(name: &str) -> bool {
        name.starts_with(Self::NEW)
    }

    pub(super) fn remove_files(&self, uid: u32) -> Result<(), QuotaError> {
        for path in [self.files_holder(uid), self.dir.join(format!("{}{uid}", Self::NEW))] {
            remove_tree(&path).map_err(|source| QuotaError::Prepare { path, source })?;
        }
        Ok(())
    }
}

/// Removes a directory with everything in it; follows no link. Nothing to do is fine.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Are these one and the same directory?
pub(super) fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (std::fs::metadata(one)?, std::fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

#[cfg(test)]
pub(super) mod tests;
