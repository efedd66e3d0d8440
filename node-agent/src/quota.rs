//! A cell's disk with its quota: makes, mounts, grows and releases it. Owns everything below `<data_dir>/cells` that
//! is not a cell's own content, and says by name how quotas are kept ([`Backend`]).
//!
//! ```text
//! <data_dir>/cells/<cell id>/disk.img             a sparse file of exactly the cell's disk size, holding ext4
//! <data_dir>/cells/<cell id>/disk.img.new-*       one that is being made; worthless until it is renamed
//! <data_dir>/cells/<cell id>/files.<uid>          instead of an image: the cell's files themselves, see `counted.rs`
//! <data_dir>/cells/<cell id>/data                 where either is mounted: the cell's folder
//! <data_dir>/removed/<cell id>-<unix ms>.img      what a removed cell leaves to the operator; `.files` for a directory
//! <data_dir>/left-behind/<cell id>-<generation>.img   what is here of a cell that lives on another node now; likewise
//! ```
//!
//! `user-ext4` and `user-xfs` leave the counting to the node's own file system, where that is mounted with quotas per
//! user (`usrquota`) and the quota programs are installed. Otherwise `loop-ext4` is used. Which one is found out at
//! start, for new cells: one that has a disk keeps its kind. Where nothing works then, as on a full disk, it is tried again
//! when a cell needs a disk; one that is there is mounted all the same.
//!
//! `loop-ext4` works on every file system that can hold a sparse file. The quota is the size of the file system
//! itself, so nothing in a cell can exceed it, and a cell's inodes, journal and hard links are its own.
//!
//! Every call looks first and then does what is missing, so each can be repeated after a crash at any point. Calls
//! about one cell exclude one another by a lock on its directory. The lock is given to the child processes, so that
//! it outlives an agent that is killed for as long as a child of its is still at work.
//!
//! While the file system is not mounted, `data` is a directory that only root can enter: a container that is started
//! without its disk fails, it does not fill the node's.
//!
//! The agent has to share its mount namespace with the container engine, or the engine does not see these mounts.

pub(crate) mod counted;
mod error;
mod found;
pub(crate) mod mounts;
mod place;
pub(crate) mod superblock;
mod tool;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_shared::ids::{CellId, Generation};
use berth_shared::units::Bytes;
use tokio::time::Instant;

use counted::Counted;
pub use error::QuotaError;
pub use found::Backend;
use found::{Found, TRIED_AGAIN_AFTER};
use mounts::{Attached, Mounted};
pub(crate) use place::make_dir;
use place::{Place, PlaceLock};
use superblock::Superblock;
use tool::Tool;

use crate::failpoint;

/// Smallest disk of a cell: below this ext4 has hardly room for its own tables.
pub const DISK_BYTES_MIN: Bytes = Bytes::mib(16);
/// Largest: far above any VPS disk, far below what ext4 can do.
pub const DISK_BYTES_MAX: Bytes = Bytes::gib(16 * 1024);

/// Room that stays free on the node's own file system whatever cells are given.
const HOST_RESERVE: Bytes = Bytes::mib(256);

/// At its end a file system may leave this much of its device unused: a last block group too small to hold its own
/// tables. A smaller difference does not count as "has to grow".
const TAIL_BYTES_MAX: u64 = 8 << 20;

/// How long an unmount is tried again while something still holds the file system.
const BUSY_TRIES_MAX: u32 = 15;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Folder of the disks of cells that live on other nodes now.
const LEFT_BEHIND: &str = "left-behind";

const IMAGE_END: &str = ".img";
const FILES_END: &str = ".files";

/// How full a cell's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes in use.
    pub used: Bytes,
    /// Bytes that there are, the file system's own tables not counted.
    pub size: Bytes,
}

/// The disks of this node's cells.
#[derive(Debug)]
pub struct Quota {
    data_dir: PathBuf,
    found: Mutex<Arc<Found>>,
    /// When that was; held while it is tried again.
    tried_at: tokio::sync::Mutex<Instant>,
    /// Cells without a disk that come back to one of this size.
    kept_for: Mutex<BTreeMap<CellId, Bytes>>,
}

impl Quota {
    /// Finds out by trying whether the file system keeps quotas per user below `data_dir`, or else whether a sized file
    /// system can be made, mounted and released there.
    ///
    /// # Errors
    /// `data_dir` cannot be used at all. A node where loop devices do not work is not an error: see [`Backend`].
    pub async fn detect(data_dir: &Path) -> Result<Self, QuotaError> {
        let prepare = |path: &Path| {
            std::fs::create_dir_all(path.join("cells"))?;
            std::fs::create_dir_all(path.join("removed"))?;
            std::fs::create_dir_all(path.join(LEFT_BEHIND))?;
            path.canonicalize()
        };
        let data_dir = prepare(data_dir)
            .map_err(|source| QuotaError::Prepare { path: data_dir.to_path_buf(), source })?;
        let found = Mutex::new(Arc::new(Found::by_trying(&data_dir).await));
        let tried_at = tokio::sync::Mutex::new(Instant::now());
        Ok(Self { data_dir, found, tried_at, kept_for: Mutex::default() })
    }

    /// Keeps room for these cells, which have left the disk and come back to one of that size. Those of before are forgotten.
    pub fn keep_room(&self, sizes: BTreeMap<CellId, Bytes>) {
        *self.kept_for.lock().unwrap_or_else(PoisonError::into_inner) = sizes;
    }

    /// How quotas are kept here, as of the last try.
    pub fn backend(&self) -> Backend {
        self.found().backend.clone()
    }

    /// As [`Self::backend`]; where nothing has worked it is tried again, once for all who ask meanwhile, unless it was tried
    /// a moment ago: the disk may only have been full.
    pub async fn try_again(&self) -> Backend {
        if self.found().is_none() {
            let mut tried_at = self.tried_at.lock().await;
            if self.found().is_none() && tried_at.elapsed() >= TRIED_AGAIN_AFTER {
                let found = Found::by_trying(&self.data_dir).await;
                *tried_at = Instant::now();
                if !found.is_none() {
                    tracing::info!(quota = found.backend.as_str(), "disk quotas can be kept here now");
                }
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
            }
        }
        self.backend()
    }

    fn found(&self) -> Arc<Found> {
        Arc::clone(&self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a cell's folder is, mounted or not.
    pub fn folder(&self, cell: CellId) -> PathBuf {
        self.place(cell).data
    }

    /// The cells that have a disk here, mounted or not, in order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn cells(&self) -> Result<Vec<CellId>, QuotaError> {
        let path = self.data_dir.join("cells");
        let failed = |source| QuotaError::Prepare { path: path.clone(), source };
        let mut cells = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(cell) = entry.file_name().to_str().and_then(|name| name.parse::<CellId>().ok()) {
                let place = self.place(cell);
                if place.image.exists() || place.files_of()?.is_some() {
                    cells.push(cell);
                }
            }
        }
        cells.sort();
        Ok(cells)
    }

    /// Sees to it that the cell's folder is there, mounted, of this size, and its root directory the cell's. Makes,
    /// checks, mounts and grows what has to be; changes nothing where all is well. Returns the folder.
    ///
    /// # Errors
    /// [`QuotaError::Shrink`] when the disk is larger already; otherwise whatever could not be done. Can be repeated.
    pub async fn ensure(&self, cell: CellId, uid: u32, size: Bytes) -> Result<PathBuf, QuotaError> {
        let size = checked_size(size)?;
        let place = self.place(cell);
        // A disk that is there needs nothing but to be mounted, whatever could be made for others.
        if place.image_bytes()?.is_none() {
            self.usable().await?;
        }
        let lock = place.lock().await?;
        place.remove_leftovers()?;
        let image = place.image_bytes()?;
        // What a cell has is kept, whatever new ones get.
        let is_counted =
            place.files_of()?.is_some() || image.is_none() && self.backend() != Backend::LoopExt4;
        if is_counted {
            return self.ensure_counted(cell, &place, &lock, uid, size).await;
        }
        match image {
            None => {
                self.check_room(cell, &lock, size).await?;
                make(&place, &lock, uid, size).await?;
            }
            Some(have) if size < have => return Err(QuotaError::Shrink { have, want: size }),
            Some(have) if size > have => {
                self.check_room(cell, &lock, size.saturating_sub(have)).await?;
                place.extend_image(size)?;
            }
            Some(_) => {}
        }
        mount_and_grow(&place, &lock).await?;
        Ok(place.data)
    }

    async fn ensure_counted(
        &self,
        cell: CellId,
        place: &Place,
        lock: &PlaceLock,
        uid: u32,
        size: Bytes,
    ) -> Result<PathBuf, QuotaError> {
        let counted = self.counted()?;
        match place.files_of()? {
            Some(have) if have != uid => {
                return Err(QuotaError::Owner { path: place.dir.clone(), have, want: uid });
            }
            Some(_) => {
                let have = counted.of(lock, uid).await?.limit;
                if size < have {
                    return Err(QuotaError::Shrink { have, want: size });
                }
                if size > have {
                    self.check_room(cell, lock, size.saturating_sub(have)).await?;
                    counted.limit(lock, uid, size).await?;
                }
            }
            None => {
                self.check_room(cell, lock, size).await?;
                counted.make(place, lock, uid, size).await?;
            }
        }
        counted::mount(place, &place.files(uid))?;
        Ok(place.data.clone())
    }

    /// Unmounts the cell's folder and gives its loop device back. Nothing to do is fine.
    ///
    /// # Errors
    /// [`QuotaError::Busy`] while something still uses it; it is never unmounted lazily, since a disk that only looks
    /// released could be written to from two places.
    pub async fn release(&self, cell: CellId) -> Result<(), QuotaError> {
        let place = self.place(cell);
        if !place.dir.exists() {
            return Ok(());
        }
        let lock = place.lock().await?;
        release(&place, &lock).await
    }

    /// How full the cell's disk is. Works unmounted too, with what the file system noted at its last unmount.
    ///
    /// # Errors
    /// The cell has no disk here, or it cannot be read.
    pub async fn usage(&self, cell: CellId) -> Result<DiskUsage, QuotaError> {
        let place = self.place(cell);
        if let Some(uid) = place.files_of()? {
            let lock = place.lock().await?;
            let count = self.counted()?.of(&lock, uid).await?;
            return Ok(DiskUsage { used: count.used, size: count.limit });
        }
        match mounts::mounted(&place)? {
            Mounted::Ours { .. } => {
                let stat = rustix::fs::statvfs(&place.data)
                    .map_err(|errno| QuotaError::Look { path: place.data.clone(), source: errno.into() })?;
                let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
                let size = stat.f_blocks.saturating_mul(stat.f_frsize);
                Ok(DiskUsage { used: Bytes(used), size: Bytes(size) })
            }
            Mounted::Not => {
                let superblock = Superblock::read(&place.image)?;
                Ok(DiskUsage { used: superblock.used(), size: superblock.size() })
            }
            Mounted::Other { what } => Err(QuotaError::Occupied { path: place.data, what }),
        }
    }

    /// Takes the cell's disk out of use and keeps it for the operator: returns where the image lies now, `None`
    /// where the cell had none.
    ///
    /// # Errors
    /// As [`Self::release`], or the image cannot be moved. Can be repeated.
    pub async fn remove(&self, cell: CellId) -> Result<Option<PathBuf>, QuotaError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        self.take_away(cell, self.data_dir.join("removed").join(format!("{cell}-{now}"))).await
    }

    /// Takes the cell's disk out of use and destroys it. Nothing to do is fine.
    ///
    /// # Errors
    /// As [`Self::release`], or it cannot be removed. Can be repeated.
    pub async fn discard(&self, cell: CellId) -> Result<(), QuotaError> {
        let place = self.place(cell);
        if !place.dir.exists() {
            return Ok(());
        }
        let lock = place.lock().await?;
        release(&place, &lock).await?;
        place.remove_leftovers()?;
        let uid = place.files_of()?;
        let gone = place.clone();
        // Gives blocks back by the gigabyte: not for the threads that answer.
        let remove = move || {
            gone.remove_image()?;
            uid.map_or(Ok(()), |uid| gone.remove_files(uid))
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        removed.map_err(|lost| QuotaError::Prepare { path: place.dir.clone(), source: lost.into() })??;
        failpoint::QUOTA_DISCARDED.reach();
        if let (Some(uid), Ok(counted)) = (uid, &self.found().counted) {
            counted.lift(&lock, uid).await?;
        }
        place.remove_directories();
        Ok(())
    }

    /// Takes the disk of a cell that lives on another node now out of use and keeps it as what this node holds of it
    /// under this generation: it may be the only copy. As [`Self::remove`] otherwise.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub async fn set_aside(
        &self,
        cell: CellId,
        generation: Generation,
    ) -> Result<Option<PathBuf>, QuotaError> {
        self.take_away(cell, self.left_behind(cell, generation)).await
    }

    /// Destroys what [`Self::set_aside`] kept. Nothing to do is fine.
    ///
    /// # Errors
    /// It cannot be removed. Can be repeated.
    pub async fn purge(&self, cell: CellId, generation: Generation) -> Result<(), QuotaError> {
        let path = with_end(self.left_behind(cell, generation), IMAGE_END);
        let files = with_end(self.left_behind(cell, generation), FILES_END);
        let (purged, folder) = (path.clone(), self.data_dir.join(LEFT_BEHIND));
        // Gives blocks back by the gigabyte: not for the threads that answer.
        let remove = move || match std::fs::remove_file(&purged) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => {
                counted::remove_tree(&files)?;
                failpoint::QUOTA_PURGED.reach();
                std::fs::File::open(folder)?.sync_all()
            }
        };
        let ended = tokio::task::spawn_blocking(remove).await.unwrap_or_else(|lost| Err(lost.into()));
        ended.map_err(|source| QuotaError::Prepare { path, source })
    }

    fn left_behind(&self, cell: CellId, generation: Generation) -> PathBuf {
        self.data_dir.join(LEFT_BEHIND).join(format!("{cell}-{generation}"))
    }

    async fn take_away(&self, cell: CellId, kept: PathBuf) -> Result<Option<PathBuf>, QuotaError> {
        let place = self.place(cell);
        if !place.dir.exists() {
            return Ok(None);
        }
        let lock = place.lock().await?;
        release(&place, &lock).await?;
        place.remove_leftovers()?;
        if let Some(uid) = place.files_of()? {
            counted::disown(&place, &lock, uid).await?;
            // Where nobody counts any more, no limit holds.
            if let Ok(counted) = &self.found().counted {
                counted.lift(&lock, uid).await?;
            }
            let kept = with_end(kept, FILES_END);
            place.move_away(&place.files_holder(uid), &kept)?;
            place.remove_directories();
            return Ok(Some(kept));
        }
        let kept = with_end(kept, IMAGE_END);
        let moved = place.move_image(&kept)?;
        place.remove_directories();
        drop(lock);
        Ok(moved.then_some(kept))
    }

    fn place(&self, cell: CellId) -> Place {
        Place::at(self.data_dir.join("cells").join(cell.to_string()))
    }

    /// Can a disk be made here?
    async fn usable(&self) -> Result<(), QuotaError> {
        match self.try_again().await {
            Backend::LoopExt4 | Backend::UserExt4 | Backend::UserXfs => Ok(()),
            Backend::None { reason } => Err(QuotaError::Unsupported { reason }),
        }
    }

    fn counted(&self) -> Result<Arc<Counted>, QuotaError> {
        self.found().counted.clone().map_err(|reason| QuotaError::Unsupported { reason })
    }

    /// Is there room for so many bytes more of this cell's, when every disk that was given out fills up, and others that left
    /// theirs come back? A sparse image takes its room later, when a refusal would hit a running cell.
    async fn check_room(&self, cell: CellId, lock: &PlaceLock, needed: Bytes) -> Result<(), QuotaError> {
        let free = found::free(&self.data_dir)?;
        let kept = self.kept_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let others = kept.iter().filter(|(other, _)| **other != cell);
        let mut promised = others.fold(Bytes::ZERO, |sum, (_, size)| sum.saturating_add(*size));
        let mut uids = vec![];
        for cell in self.cells()? {
            let place = self.place(cell);
            promised = promised.saturating_add(place.image_growth()?);
            uids.extend(place.files_of()?);
        }
        if !uids.is_empty() {
            let counts = self.counted()?.all(lock).await?;
            for count in uids.iter().filter_map(|uid| counts.get(uid)) {
                promised = promised.saturating_add(count.limit.saturating_sub(count.used));
            }
        }
        if free < needed.saturating_add(promised).saturating_add(HOST_RESERVE) {
            return Err(QuotaError::NoRoom { needed, free, promised });
        }
        Ok(())
    }
}

/// What is kept of a disk is a file or a directory, and each is told by its name's end.
fn with_end(path: PathBuf, end: &str) -> PathBuf {
    let mut path = path.into_os_string();
    path.push(end);
    path.into()
}

fn checked_size(size: Bytes) -> Result<Bytes, QuotaError> {
    if size < DISK_BYTES_MIN || size > DISK_BYTES_MAX {
        return Err(QuotaError::Size { size });
    }
    // Whole blocks: the file system's end is the image's end.
    Ok(Bytes(size.0.next_multiple_of(1 << 20)))
}

/// Makes the image under a temporary name and renames it when it is whole.
async fn make(place: &Place, lock: &PlaceLock, uid: u32, size: Bytes) -> Result<(), QuotaError> {
    let temporary = place.create_temporary(size)?;
    let owner = format!("lazy_itable_init=1,nodiscard,root_owner={uid}:{uid}");
    // No blocks reserved for root, who is not the one to log in here; a journal of 4 MiB, the smallest there is;
    // 4 KiB blocks and one inode per 16 KiB at every size, where small sizes would get other defaults.
    let options = ["-q", "-F", "-m", "0", "-b", "4096", "-i", "16384", "-J", "size=4", "-E", &owner];
    let made = Tool::Mkfs.run(lock, &options, &[&temporary]).await;
    if let Err(error) = made {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    place.put_image(&temporary)
}

/// Mounts the disk if it is not, and makes the file system as large as its image.
async fn mount_and_grow(place: &Place, lock: &PlaceLock) -> Result<(), QuotaError> {
    place.make_mount_point()?;
    match mounts::mounted(place)? {
        Mounted::Other { what } => return Err(QuotaError::Occupied { path: place.data.clone(), what }),
        Mounted::Not => {}
        Mounted::Ours { device } => {
            // The superblock of a mounted file system is up to date on its device, not in its image.
            if !has_to_grow(place, &device)? {
                return Ok(());
            }
            if grow_mounted(lock, &device).await.is_ok() && !has_to_grow(place, &device)? {
                return Ok(());
            }
            // Growing a mounted file system needs CAP_SYS_RESOURCE. An unmounted one grows without it, and a disk is
            // seldom in use when its size is changed.
            unmount(place).await.map_err(|error| match error {
                QuotaError::Busy { path } => QuotaError::GrowBusy { path },
                other => other,
            })?;
        }
    }
    check_and_mount(place, lock).await
}

async fn grow_mounted(lock: &PlaceLock, device: &Path) -> Result<(), QuotaError> {
    Tool::Losetup.run(lock, &["--set-capacity"], &[device]).await?;
    Tool::Resize.run(lock, &[], &[device]).await.map(drop)
}

/// Brings the unmounted file system in order, as large as its image, and mounts it.
async fn check_and_mount(place: &Place, lock: &PlaceLock) -> Result<(), QuotaError> {
    // A device that a killed mount left behind would be a second way into the same image.
    wait_detached(place, lock).await?;
    if has_to_grow(place, &place.image)? {
        // resize2fs insists on a full check of what is not mounted.
        Tool::Check.run(lock, &["-f", "-p"], &[&place.image]).await?;
        Tool::Resize.run(lock, &[], &[&place.image]).await?;
    } else {
        // Looks at the superblock only, unless the last end was unclean: then it plays the journal and repairs
        // what can be repaired without losing data.
        Tool::Check.run(lock, &["-p"], &[&place.image]).await?;
    }
    if has_to_grow(place, &place.image)? {
        return Err(QuotaError::NotGrown { path: place.image.clone() });
    }
    // `discard` gives the node back what a cell deletes; an error stops writing instead of spreading.
    let options = "loop,nosuid,nodev,noatime,discard,errors=remount-ro";
    Tool::Mount.run(lock, &["-t", "ext4", "-o", options], &[&place.image, &place.data]).await?;
    match mounts::mounted(place)? {
        Mounted::Ours { .. } => Ok(()),
        Mounted::Not => Err(QuotaError::Occupied { path: place.data.clone(), what: "nothing".to_owned() }),
        Mounted::Other { what } => Err(QuotaError::Occupied { path: place.data.clone(), what }),
    }
}

/// Is the file system, as seen in `superblock_in`, smaller than its image?
fn has_to_grow(place: &Place, superblock_in: &Path) -> Result<bool, QuotaError> {
    let image = place.image_bytes()?.unwrap_or(Bytes::ZERO);
    let size = Superblock::read(superblock_in)?.size();
    Ok(image.saturating_sub(size).0 >= TAIL_BYTES_MAX)
}

async fn release(place: &Place, lock: &PlaceLock) -> Result<(), QuotaError> {
    if let Mounted::Ours { .. } = mounts::mounted(place)? {
        unmount(place).await?;
    }
    wait_detached(place, lock).await
}

/// Unmounts, trying again for a while when it is in use.
async fn unmount(place: &Place) -> Result<(), QuotaError> {
    failpoint::QUOTA_UNMOUNT.reach();
    for attempt in 0.. {
        let data = place.data.clone();
        let unmount = move || rustix::mount::unmount(&data, rustix::mount::UnmountFlags::NOFOLLOW);
        // Writes back what is dirty: not for the threads that answer.
        let ended = tokio::task::spawn_blocking(unmount).await;
        match ended.map_err(|source| QuotaError::Look { path: place.data.clone(), source: source.into() })? {
            Ok(()) => break,
            // Not mounted any more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::BUSY) if attempt < BUSY_TRIES_MAX => tokio::time::sleep(BUSY_PAUSE).await,
            Err(rustix::io::Errno::BUSY) => return Err(QuotaError::Busy { path: place.data.clone() }),
            Err(errno) => return Err(QuotaError::Unmount { path: place.data.clone(), source: errno.into() }),
        }
    }
    failpoint::QUOTA_UNMOUNTED.reach();
    Ok(())
}

/// Waits until no loop device leads to the image: the kernel lets go of it shortly after the unmount.
async fn wait_detached(place: &Place, lock: &PlaceLock) -> Result<(), QuotaError> {
    for attempt in 0.. {
        let Some(Attached { device, autoclear }) = mounts::attached(place)? else { break };
        if attempt >= BUSY_TRIES_MAX {
            return Err(QuotaError::Busy { path: device });
        }
        if !autoclear {
            Tool::Losetup.run(lock, &["--detach"], &[&device]).await?;
        }
        tokio::time::sleep(BUSY_PAUSE / 10 * attempt.min(10)).await;
    }
    Ok(())
}
