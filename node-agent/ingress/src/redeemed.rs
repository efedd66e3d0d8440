//! Which login links were used. A link's nonce is on disk before its cookie goes out, so that killing the process at
//! any moment never makes a link good twice.
//!
//! The file `redeemed` holds records of [`RECORD_BYTES`]: nonce, expiry, CRC. Only links with a good signature get
//! this far, so only the coordinator can make it grow; entries go when their link has expired anyway.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berth_daemon::durable;
use berth_daemon::exit::Exit;
use berth_shared::credential::LoginTicket;
use berth_shared::time::{Millis, UnixMs};

const FILE: &str = "redeemed";
const LOCK_FILE: &str = "lock";
const RECORD_BYTES: usize = 16 + 8 + 4;

/// Most links remembered at a time. More than any coordinator makes in the life of a link.
const ENTRIES_MAX: usize = 100_000;

/// How long an entry outlives its link: room for a wall clock that is set back.
const KEPT_AFTER_EXPIRY: Millis = Millis::minutes(24 * 60);

/// Records that nobody needs any more before the file is written anew.
const DEAD_MAX: usize = 1_000;

/// Why the list could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("another ingress uses the state folder {}", .0.display())]
    InUse(PathBuf),
    #[error("the state folder's lock {} could not be taken", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the list of used login links {} could not be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the list of used login links {} is damaged at byte {at}; move it away only if all links made before have expired", path.display())]
    Corrupt { path: PathBuf, at: usize },
    #[error("the list of used login links {} could not be written", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::InUse(_) => Exit::TempFail,
            Self::Lock { .. } | Self::Write { .. } => Exit::CantCreate,
            Self::Read { .. } => Exit::Io,
            Self::Corrupt { .. } => Exit::DataCorrupt,
        }
    }
}

/// Why a link was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedeemError {
    #[error("the login link was used before")]
    Used,
    #[error("{ENTRIES_MAX} used login links are remembered already")]
    Full,
    #[error("a used login link could not be recorded")]
    Write(#[source] io::Error),
    #[error("an earlier record failed, so it is not known what is on the disk")]
    Poisoned,
}

#[derive(Debug)]
pub(crate) struct Redeemed {
    path: PathBuf,
    file: File,
    entries: BTreeMap<[u8; 16], UnixMs>,
    /// Records in the file.
    records: usize,
    /// A write or sync failed: what is on the disk is not known, so no link is taken until a restart looks.
    poisoned: bool,
    /// Held as long as the process lives.
    _lock: File,
}

impl Redeemed {
    /// Opens the list of a state folder and takes the folder for this process. What has expired is forgotten, a
    /// record that was torn by a crash is cut off: its cookie had not gone out.
    pub(crate) fn open(state_dir: &Path, now: UnixMs) -> Result<Self, OpenError> {
        let lock_path = state_dir.join(LOCK_FILE);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|source| OpenError::Lock { path: lock_path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(state_dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(OpenError::Lock { path: lock_path, source });
            }
        }
        let path = state_dir.join(FILE);
        let mut entries = read(&path)?;
        entries.retain(|_, expires| now < expires.after(KEPT_AFTER_EXPIRY));
        let file =
            rewrite(&path, &entries).map_err(|source| OpenError::Write { path: path.clone(), source })?;
        Ok(Self { path, file, records: entries.len(), entries, poisoned: false, _lock: lock })
    }

    /// Takes a link, once. When this returns, the disk knows. Blocks.
    pub(crate) fn redeem(&mut self, ticket: &LoginTicket, now: UnixMs) -> Result<(), RedeemError> {
        if self.poisoned {
            return Err(RedeemError::Poisoned);
        }
        if self.entries.contains_key(&ticket.nonce) {
            return Err(RedeemError::Used);
        }
        self.tidy(now).map_err(|source| self.poison(source))?;
        if self.entries.len() >= ENTRIES_MAX {
            return Err(RedeemError::Full);
        }
        self.entries.insert(ticket.nonce, ticket.expires_at);
        self.records += 1;
        let record = record(&ticket.nonce, ticket.expires_at);
        let written = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        written.map_err(|source| self.poison(source))
    }

    fn poison(&mut self, source: io::Error) -> RedeemError {
        self.poisoned = true;
        RedeemError::Write(source)
    }

    fn tidy(&mut self, now: UnixMs) -> io::Result<()> {
        if self.records < DEAD_MAX && self.entries.len() < ENTRIES_MAX {
            return Ok(());
        }
        self.entries.retain(|_, expires| now < expires.after(KEPT_AFTER_EXPIRY));
        if self.records - self.entries.len() >= DEAD_MAX {
            self.file = rewrite(&self.path, &self.entries)?;
            self.records = self.entries.len();
        }
        Ok(())
    }
}

pub(crate) fn record(nonce: &[u8; 16], expires: UnixMs) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let (body, sum) = bytes.split_at_mut(RECORD_BYTES - 4);
    let (head, tail) = body.split_at_mut(16);
    head.copy_from_slice(nonce);
    tail.copy_from_slice(&expires.0.to_le_bytes());
    let crc = crc32fast::hash(body);
    sum.copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<([u8; 16], UnixMs)> {
    let nonce = bytes.first_chunk::<16>()?;
    let expires = UnixMs(u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?));
    (record(nonce, expires) == *bytes).then_some((*nonce, expires))
}

fn read(path: &Path) -> Result<BTreeMap<[u8; 16], UnixMs>, OpenError> {
    let wrap = |source| OpenError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(wrap(error)),
    };
    // Live entries, and at most as many dead ones as are borne, twice over.
    let bytes_max = (ENTRIES_MAX + 2 * DEAD_MAX) * RECORD_BYTES;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() > bytes_max {
        return Err(OpenError::Corrupt { path: path.to_owned(), at: bytes_max });
    }
    read_records(&bytes).map_err(|at| OpenError::Corrupt { path: path.to_owned(), at })
}

/// The entries of a list, or the byte where it is damaged.
pub(crate) fn read_records(bytes: &[u8]) -> Result<BTreeMap<[u8; 16], UnixMs>, usize> {
    let (records, _torn) = bytes.as_chunks::<RECORD_BYTES>();
    let mut entries = BTreeMap::new();
    for (at, record) in records.iter().enumerate() {
        match parse(record) {
            Some((nonce, expires)) => {
                entries.insert(nonce, expires);
            }
            // A power cut can leave the last record's length without its bytes.
            None if at + 1 == records.len() => break,
            None => return Err(at * RECORD_BYTES),
        }
    }
    Ok(entries)
}

fn rewrite(path: &Path, entries: &BTreeMap<[u8; 16], UnixMs>) -> io::Result<File> {
    let bytes: Vec<u8> = entries.iter().flat_map(|(nonce, expires)| record(nonce, *expires)).collect();
    durable::write_atomic(path, &bytes, 0o600)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::ids::UserId;

    fn ticket(seed: u16, expires_at: u64) -> LoginTicket {
        let mut nonce = [0; 16];
        nonce[..2].copy_from_slice(&seed.to_le_bytes());
        LoginTicket { user: UserId::from_random([1; 16]), nonce, expires_at: UnixMs(expires_at) }
    }

    #[test]
    fn a_link_is_taken_once_also_across_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut list = Redeemed::open(folder.path(), UnixMs(0)).unwrap();
        list.redeem(&ticket(1, 1_000), UnixMs(0)).unwrap();
        assert!(matches!(list.redeem(&ticket(1, 1_000), UnixMs(0)), Err(RedeemError::Used)));
        drop(list);
        let mut list = Redeemed::open(folder.path(), UnixMs(5)).unwrap();
        assert!(matches!(list.redeem(&ticket(1, 1_000), UnixMs(5)), Err(RedeemError::Used)));
        list.redeem(&ticket(2, 1_000), UnixMs(5)).unwrap();
    }

    #[test]
    fn a_torn_last_record_is_cut_off_and_anything_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut list = Redeemed::open(folder.path(), UnixMs(0)).unwrap();
        for seed in 0..3 {
            list.redeem(&ticket(seed, 1_000), UnixMs(0)).unwrap();
        }
        drop(list);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let list = Redeemed::open(folder.path(), UnixMs(0)).unwrap();
            assert_eq!(list.entries.len(), cut / RECORD_BYTES);
        }
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let error = Redeemed::open(folder.path(), UnixMs(0)).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { at: 0, .. }));
        assert_eq!(error.exit(), Exit::DataCorrupt);
    }

    #[test]
    fn expired_entries_go_and_the_file_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let mut list = Redeemed::open(folder.path(), UnixMs(0)).unwrap();
        for seed in 0..1_000 {
            list.entries.insert(ticket(seed, 10).nonce, UnixMs(10));
        }
        list.records = 1_000;
        let late = UnixMs(10).after(KEPT_AFTER_EXPIRY);
        list.redeem(&ticket(5_000, late.0 + 1), late).unwrap();
        assert_eq!((list.entries.len(), list.records), (1, 1));
        assert_eq!(std::fs::metadata(folder.path().join(FILE)).unwrap().len(), RECORD_BYTES as u64);
    }

    #[test]
    fn two_processes_cannot_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Redeemed::open(folder.path(), UnixMs(0)).unwrap();
        assert!(matches!(Redeemed::open(folder.path(), UnixMs(0)), Err(OpenError::InUse(_))));
    }
}
