//! The real file layer, with its calls of `fdatasync` counted, or left out to make a journal quickly.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_journal::{Access, File, LockError, StdStorage, Storage};

/// What is done with a sync.
#[derive(Debug, Clone)]
pub(crate) enum Syncs {
    /// Done, and counted.
    Counted(Arc<AtomicU64>),
    /// Not done: for journals that are only read afterwards.
    LeftOut,
}

#[derive(Debug)]
pub(crate) struct Counting {
    inner: StdStorage,
    syncs: Syncs,
}

#[derive(Debug)]
pub(crate) struct CountingFile {
    inner: fs::File,
    syncs: Syncs,
}

impl Counting {
    pub(crate) fn new(inner: StdStorage, syncs: Syncs) -> Self {
        Self { inner, syncs }
    }

    fn file(&self, inner: fs::File) -> CountingFile {
        CountingFile { inner, syncs: self.syncs.clone() }
    }
}

impl Storage for Counting {
    type File = CountingFile;

    fn lock(&self) -> Result<(), LockError> {
        self.inner.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str) -> io::Result<CountingFile> {
        self.inner.create(name).map(|file| self.file(file))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<CountingFile> {
        self.inner.open(name, access).map(|file| self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.inner.sync_directory()
    }

    fn fresh_id(&self) -> io::Result<[u8; 16]> {
        self.inner.fresh_id()
    }
}

impl File for CountingFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        File::read_at(&self.inner, offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        File::write_at(&self.inner, offset, bytes)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        match &self.syncs {
            Syncs::Counted(count) => {
                count.fetch_add(1, Ordering::Relaxed);
                File::sync_data(&self.inner)
            }
            Syncs::LeftOut => Ok(()),
        }
    }
}
