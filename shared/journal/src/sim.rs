//! A disk in memory, for tests: it loses what was not synced, tears writes by the sector, runs full, fails syncs, and
//! can stop at any operation. Everything follows from its seed.
//!
//! The disk keeps two truths per file: what a running process reads (the cache) and what is on the platter. A test
//! holds the [`SimDisk`] and gives [`SimStorage`]s, made by [`SimDisk::mount`], to the code under test. After
//! [`SimDisk::kill`] or [`SimDisk::lose_power`] all earlier mounts and files are dead; mount again.
//!
//! ```
//! use berth_journal::sim::SimDisk;
//! use berth_journal::{Journal, KindId, KindVersion, NewRecord, Options};
//!
//! let disk = SimDisk::new(7);
//! let keep = |_: berth_journal::Record<'_>| Ok::<_, std::convert::Infallible>(());
//! let (mut journal, _) = Journal::open(disk.mount(), Options::default(), keep)?;
//! let record = NewRecord { kind: KindId(1), version: KindVersion(1), payload: b"acknowledged" };
//! journal.append_group(&[record])?;
//! drop(journal);
//! disk.lose_power();
//! let (_, recovery) = Journal::open(disk.mount(), Options::default(), keep)?;
//! assert_eq!(recovery.records, 1);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
#![expect(clippy::indexing_slicing, reason = "only used in tests: an index out of range is a bug to be seen")]

mod platter;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::{Access, File, LockError, Storage};
use platter::{FileNumber, Platter};

/// The disk, as the test sees it. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    platter: Arc<Mutex<Platter>>,
}

/// The disk, as a process sees it.
#[derive(Debug)]
pub struct SimStorage {
    platter: Arc<Mutex<Platter>>,
    boot: u64,
    mount: u64,
}

/// An open file.
#[derive(Debug)]
pub struct SimFile {
    platter: Arc<Mutex<Platter>>,
    boot: u64,
    number: FileNumber,
}

impl SimDisk {
    /// An empty disk. Equal seeds and equal operations give equal disks.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { platter: Arc::new(Mutex::new(Platter::new(seed))) }
    }

    /// A new process on this disk.
    #[must_use]
    pub fn mount(&self) -> SimStorage {
        let mut platter = self.lock();
        platter.mounts += 1;
        SimStorage { platter: Arc::clone(&self.platter), boot: platter.boot, mount: platter.mounts }
    }

    /// Ends all processes; the cache stays, as after `kill -9`.
    pub fn kill(&self) {
        self.lock().restart();
    }

    /// Ends all processes and loses, in any part, what was not synced: each unsynced sector is old or new, or, where
    /// nothing was before, garbage, zeros, or a block of another file; names likewise.
    pub fn lose_power(&self) {
        self.lock().lose_power();
    }

    /// Stops the machine at the operation after the next `operations`: that one takes effect in part or not at all,
    /// it and all after it fail, until [`kill`](Self::kill) or [`lose_power`](Self::lose_power).
    pub fn stop_after(&self, operations: u32) {
        self.lock().fuse = Some(operations);
    }

    /// From now on files may grow by this many bytes, then writes fail with ENOSPC; `None`: without end.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Lets the next `count` file syncs fail. What such a sync did not write reads on as if written and is *never*
    /// written by a later sync, as on Linux, unless it is written to again.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().failing_syncs = count;
    }

    /// Lets the next `count` syncs of the directory fail.
    pub fn fail_directory_syncs(&self, count: u32) {
        self.lock().failing_directory_syncs = count;
    }

    /// Lets the next `count` truncations fail.
    pub fn fail_truncates(&self, count: u32) {
        self.lock().failing_truncates = count;
    }

    /// How many file syncs have succeeded, by file name at that time.
    #[must_use]
    pub fn syncs(&self) -> BTreeMap<String, u64> {
        self.lock().syncs.clone()
    }

    /// How many syncs of the directory have succeeded.
    #[must_use]
    pub fn directory_syncs(&self) -> u64 {
        self.lock().directory_syncs
    }

    /// All files as a process reads them.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().visible()
    }

    /// Puts a whole file onto the platter, as from a backup or a vandal.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.lock().put(name, bytes);
    }

    /// Takes a file off the platter.
    pub fn take_away(&self, name: &str) {
        self.lock().take_away(name);
    }

    /// Flips one bit on the platter and in the cache.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u32) {
        let mut bytes = self.files().remove(name).expect("the file exists");
        bytes[offset] ^= 1 << bit;
        self.put(name, bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        lock(&self.platter)
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn lock(&self) -> Result<(), LockError> {
        let mut platter = lock(&self.platter);
        platter.step(self.boot).map_err(LockError::Io)?;
        match platter.locked_by {
            Some(holder) if holder != self.mount => Err(LockError::Held),
            Some(_) | None => {
                platter.locked_by = Some(self.mount);
                Ok(())
            }
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut platter = lock(&self.platter);
        platter.step(self.boot)?;
        Ok(platter.visible().into_keys().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let number = self.at_platter(|platter| platter.create(name))?;
        Ok(SimFile { platter: Arc::clone(&self.platter), boot: self.boot, number })
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<SimFile> {
        let number = self.at_platter(|platter| platter.find(name))?;
        Ok(SimFile { platter: Arc::clone(&self.platter), boot: self.boot, number })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.at_platter(|platter| platter.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.at_platter(|platter| platter.remove(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.at_platter(Platter::sync_directory)
    }

    fn fresh_id(&self) -> io::Result<[u8; 16]> {
        self.at_platter(|platter| Ok(platter.fresh_id()))
    }
}

impl SimStorage {
    fn at_platter<T>(&self, act: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        let mut platter = lock(&self.platter);
        platter.step(self.boot)?;
        act(&mut platter)
    }
}

impl Drop for SimStorage {
    fn drop(&mut self) {
        let mut platter = lock(&self.platter);
        if platter.locked_by == Some(self.mount) {
            platter.locked_by = None;
        }
    }
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.at_platter(|platter, number| Ok(platter.file(number).size()))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.at_platter(|platter, number| Ok(platter.file(number).read(offset, buffer)))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut platter = lock(&self.platter);
        match platter.step(self.boot) {
            Ok(()) => platter.write(self.number, offset, bytes),
            Err(error) => {
                platter.write_while_stopping(self.boot, self.number, offset, bytes);
                Err(error)
            }
        }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.at_platter(|platter, number| platter.truncate(number, length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.at_platter(Platter::sync)
    }
}

impl SimFile {
    fn at_platter<T>(&self, act: impl FnOnce(&mut Platter, FileNumber) -> io::Result<T>) -> io::Result<T> {
        let mut platter = lock(&self.platter);
        platter.step(self.boot)?;
        act(&mut platter, self.number)
    }
}

/// A test that panicked while it held the disk has already failed; others may go on.
fn lock(platter: &Mutex<Platter>) -> MutexGuard<'_, Platter> {
    platter.lock().unwrap_or_else(PoisonError::into_inner)
}
