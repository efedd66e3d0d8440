//! Where snapshots are kept: a sled database. The one place that knows sled.
//!
//! sled's `flush` does not survive a power cut (it uses `sync_file_range`), and a damaged database may answer with an
//! error, with other bytes, with a panic, or not at all. So what is here is never the only copy of anything, every
//! value carries its own hash, and only [`keeper`](super::keeper) calls this, from a thread that nobody waits for
//! without a bound.

use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

/// Memory that sled may use for its cache: a start reads two values, and then only writes.
const CACHE_BYTES: u64 = 4 << 20;

/// The file that sled locks.
const SLED_FILE: &str = "db";

/// A part of a snapshot has the key `snapshot/`, the snapshot's sequence and the part's number, both big-endian: the
/// order of keys is that of the journal, and of the parts.
const PREFIX: &[u8] = b"snapshot/";

/// Length of a part. sled puts values of about half a megabyte into files of their own, and does not remove those.
const PART_BYTES: usize = 32 << 10;

/// There while the whole journal has to be read at the next start.
const CHECK_KEY: &[u8] = b"check";

/// Why the shelf cannot be used. Nothing is lost by it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShelfError {
    #[error("another process has the snapshots open")]
    InUse,
    #[error("the snapshots' folder cannot be used")]
    Folder(#[source] io::Error),
    #[error("the snapshots cannot be opened")]
    Open(#[source] sled::Error),
    #[error("the snapshots cannot be read")]
    Read(#[source] sled::Error),
    #[error("a snapshot cannot be written")]
    Write(#[source] sled::Error),
}

pub(crate) struct Shelf {
    db: sled::Db,
}

impl Shelf {
    pub(crate) fn open(folder: &Path) -> Result<Self, ShelfError> {
        std::fs::create_dir_all(folder).map_err(ShelfError::Folder)?;
        refuse_in_use(folder)?;
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // Flushed after each write, by name: no thread that does it unasked.
            .flush_every_ms(None);
        Ok(Self { db: config.open().map_err(ShelfError::Open)? })
    }

    /// All snapshots with their sequences, newest first. Parts may be missing: the bytes have a hash of their own.
    pub(crate) fn all(&self) -> Result<Vec<(u64, Vec<u8>)>, ShelfError> {
        let mut found: Vec<(u64, Vec<u8>)> = vec![];
        for entry in self.db.scan_prefix(PREFIX) {
            let (key, part) = entry.map_err(ShelfError::Read)?;
            let Some((seq, _part)) = read_key(&key) else { continue };
            match found.last_mut().filter(|(last, _)| *last == seq) {
                Some((_, bytes)) => bytes.extend_from_slice(&part),
                None => found.push((seq, part.to_vec())),
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Puts a snapshot up; when this returns, it survives the end of this process.
    pub(crate) fn put(&self, seq: u64, bytes: &[u8]) -> Result<(), ShelfError> {
        // One of the same sequence may be longer.
        self.remove(|found| found == seq)?;
        for (part, bytes) in (0_u32..).zip(bytes.chunks(PART_BYTES)) {
            self.db.insert(key_of(seq, part), bytes).map_err(ShelfError::Write)?;
            crate::failpoint::SHELF_PUT.reach();
        }
        self.flush()
    }

    /// Removes all snapshots but these.
    pub(crate) fn retain(&self, kept: &[u64]) -> Result<(), ShelfError> {
        self.remove(|seq| !kept.contains(&seq))?;
        self.flush()
    }

    fn remove(&self, is_gone: impl Fn(u64) -> bool) -> Result<(), ShelfError> {
        for key in self.db.scan_prefix(PREFIX).keys() {
            let key = key.map_err(ShelfError::Read)?;
            if read_key(&key).is_none_or(|(seq, _part)| is_gone(seq)) {
                self.db.remove(key).map_err(ShelfError::Write)?;
                crate::failpoint::SHELF_REMOVED.reach();
            }
        }
        Ok(())
    }

    /// Has the whole journal to be read before any snapshot counts?
    pub(crate) fn is_check_wanted(&self) -> Result<bool, ShelfError> {
        self.db.contains_key(CHECK_KEY).map_err(ShelfError::Read)
    }

    pub(crate) fn want_check(&self, wanted: bool) -> Result<(), ShelfError> {
        let changed = if wanted { self.db.insert(CHECK_KEY, b"") } else { self.db.remove(CHECK_KEY) };
        changed.map_err(ShelfError::Write)?;
        self.flush()
    }

    fn flush(&self) -> Result<(), ShelfError> {
        self.db.flush().map(drop).map_err(ShelfError::Write)
    }
}

fn key_of(seq: u64, part: u32) -> Vec<u8> {
    [PREFIX, &seq.to_be_bytes(), &part.to_be_bytes()].concat()
}

fn read_key(key: &[u8]) -> Option<(u64, u32)> {
    let (seq, part) = key.strip_prefix(PREFIX)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*seq), part.try_into().ok().map(u32::from_be_bytes)?))
}

/// sled says "locked" in the words of its error only; so the same lock is tried first.
fn refuse_in_use(folder: &Path) -> Result<(), ShelfError> {
    let file = match rustix::fs::open(folder.join(SLED_FILE), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(ShelfError::Folder(error.into())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ShelfError::InUse),
        Err(error) => Err(ShelfError::Folder(error.into())),
    }
}
