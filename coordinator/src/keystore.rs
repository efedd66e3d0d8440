//! The key store: users' repository keys and record keys, small, mutable and encrypted, beside the journal, which holds key
//! ids, and texts sealed under record keys. So a key that is destroyed here is destroyed, and what it sealed is erased.
//!
//! Files below `keys/` in the data folder, all of mode 0600:
//!
//! | file | what |
//! |---|---|
//! | `store` | users' keys, wrapped by the fleet key; the fleet key, sealed to the recovery key's public half where there is one |
//! | `fleet.key` | the fleet key |
//! | `fleet.key.next` | only while it is being changed |
//! | `lock` | held for the length of one call, so that commands may run beside the daemon |
//!
//! Each file is replaced whole. Which fleet key is in force the store says, so that a change of it that is cut short at
//! any write is either done or not begun:
//!
//! ```text
//! fleet.key.next made ──> store replaced (names the next one) ──> fleet.key replaced
//!      not begun          │            done; the next call takes the last step
//! ```
//!
//! What was replaced is overwritten before its blocks are given back. Where a disk writes elsewhere (flash, copy on write)
//! that is not the end of the old bytes; a change of the fleet key after a purge is.

mod error;
mod form;
pub(crate) mod fuzz;
mod record;
pub mod verbs;
mod wrap;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_daemon::durable;
use berth_daemon::secret_file::read_secret_file;
use berth_shared::ids::{KeyId, UserId};
use berth_shared::repository::RepositoryKey;
use berth_shared::time::{Millis, UnixMs};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::failpoint;
use error::{damaged_backup, file, key};
use form::{BackupForm, Contents, FILE_BYTES_MAX, StoreForm};
use wrap::{FleetKey, KEY_TEXT_BYTES_MAX};

pub use error::KeyStoreError;
pub use form::FormError;
pub(crate) use form::{BackupMark, InBucket};
pub(crate) use record::RecordKey;
pub(crate) use wrap::RecoveryKey;
pub use wrap::WrapError;

/// Folder below the data folder.
pub const KEYS_FOLDER: &str = "keys";

const STORE_FILE: &str = "store";
const FLEET_FILE: &str = "fleet.key";
const NEXT_FLEET_FILE: &str = "fleet.key.next";
const LOCK_FILE: &str = "lock";
const FILE_MODE: u32 = 0o600;

/// How long a call waits for another one to end.
const LOCK_MAX: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The key store below a data folder. Clones are the same. Every call locks, reads and, where it changes something,
/// replaces the whole of it: a tenth of a second with 20,000 users, so not for an async task.
#[derive(Debug, Clone)]
pub struct KeyStore {
    folder: PathBuf,
}

/// The store while it is locked.
struct Held {
    form: StoreForm,
    fleet: FleetKey,
    _lock: File,
}

/// A step of a change of the fleet key: a write that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    NextMade,
    StoreReplaced,
    KeyReplaced,
}

/// A backup that is about to be put somewhere.
#[derive(Debug)]
pub(crate) struct Backup {
    pub(crate) bytes: Vec<u8>,
    /// What there is in the bucket, once it is there.
    pub(crate) taken: InBucket,
}

/// How far the store is backed up in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackedUp {
    /// Users whose keys there are.
    pub(crate) users: usize,
    /// Those of them whose keys are in no backup there.
    pub(crate) missing: usize,
    /// Nothing was changed since the newest one there.
    pub(crate) is_current: bool,
    /// The newest one there.
    pub(crate) newest: Option<BackupMark>,
}

/// What a change of the fleet key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// The fleet key from now on.
    pub fleet: KeyId,
    /// Keys of so many users were wrapped anew.
    pub users: usize,
}

impl KeyStore {
    /// The one below this data folder, whether it is there or not.
    pub fn below(data_dir: &Path) -> Self {
        Self { folder: data_dir.join(KEYS_FOLDER) }
    }

    /// Can it be used? Looks at everything but users' own keys.
    ///
    /// # Errors
    /// It is missing, damaged, or its fleet key is; or there is no recovery key.
    pub fn check(&self) -> Result<(), KeyStoreError> {
        self.hold().and_then(|held| self.must_be_recoverable(&held))
    }

    fn must_be_recoverable(&self, held: &Held) -> Result<(), KeyStoreError> {
        let none = || KeyStoreError::NoRecovery { folder: self.folder.clone() };
        held.form.contents.recovery().map(drop).ok_or_else(none)
    }

    /// Makes an empty store with a fresh fleet key, sealed to the recovery key. One that was made without a recovery key is
    /// given this one.
    fn init(&self, recovery: &RecoveryKey) -> Result<(), KeyStoreError> {
        let lock = self.lock(true)?;
        let not_sealed = |source| key("the recovery key", source);
        if self.folder.join(STORE_FILE).exists() {
            let mut held = self.read(lock)?;
            let Held { form, fleet, .. } = &mut held;
            if form.contents.recovery().is_some() {
                return Err(KeyStoreError::Exists { folder: self.folder.clone() });
            }
            let given = form.contents.give_recovery(fleet, recovery.public(), &recovery.proof_key());
            given.map_err(not_sealed)?;
            form.revision = form.revision.saturating_add(1);
            return self.replace(STORE_FILE, &form.encode());
        }
        let fleet = FleetKey::draw();
        let contents = Contents::new(&fleet, recovery.public(), &recovery.proof_key());
        self.put_first(&fleet, &StoreForm::new(contents.map_err(not_sealed)?))
    }

    /// The key's file before the store: one that lies there without a store is of a making that was cut short.
    fn put_first(&self, fleet: &FleetKey, form: &StoreForm) -> Result<(), KeyStoreError> {
        self.put_key(FLEET_FILE, fleet)?;
        self.replace(STORE_FILE, &form.encode())
    }

    fn put_key(&self, name: &str, fleet: &FleetKey) -> Result<(), KeyStoreError> {
        let line = Zeroizing::new(format!("{}\n", fleet.to_text().expose()));
        self.replace(name, line.as_bytes())
    }

    /// There is no store, or one that can still be given a recovery key.
    fn must_want_recovery(&self) -> Result<(), KeyStoreError> {
        match self.hold() {
            Ok(held) if held.form.contents.recovery().is_none() => Ok(()),
            Err(KeyStoreError::Missing { .. }) => Ok(()),
            Err(KeyStoreError::Busy) => Err(KeyStoreError::Busy),
            Ok(_) | Err(_) => Err(KeyStoreError::Exists { folder: self.folder.clone() }),
        }
    }

    /// Nothing but a whole making or bringing back leaves the store's file.
    fn must_be_empty(&self) -> Result<(), KeyStoreError> {
        if self.folder.join(STORE_FILE).exists() {
            return Err(KeyStoreError::Exists { folder: self.folder.clone() });
        }
        Ok(())
    }

    /// The users whose repository keys are there.
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn ids(&self) -> Result<BTreeMap<UserId, KeyId>, KeyStoreError> {
        let held = self.hold()?;
        Ok(held.form.contents.entries.iter().map(|(user, entry)| (*user, entry.key)).collect())
    }

    /// Sees to it that these users have repository keys, durably; gives their ids. A user's key is made once.
    ///
    /// # Errors
    /// The store cannot be used; no key was made then.
    pub fn ensure(&self, users: &[UserId], now: UnixMs) -> Result<Vec<(UserId, KeyId)>, KeyStoreError> {
        let mut held = self.hold()?;
        let entries = &mut held.form.contents.entries;
        let before = entries.len();
        let mut made = Vec::with_capacity(users.len());
        for user in users {
            let entry = entries.entry(*user).or_insert_with(|| held.fleet.make(*user, now));
            made.push((*user, entry.key));
        }
        if entries.len() > before {
            self.change(&mut held, now)?;
        }
        Ok(made)
    }

    /// The keys of these users, as far as they are there.
    ///
    /// # Errors
    /// The store cannot be used, or a key does not open.
    pub fn keys(&self, users: &[UserId]) -> Result<BTreeMap<UserId, RepositoryKey>, KeyStoreError> {
        let held = self.hold()?;
        let mut keys = BTreeMap::new();
        for user in users {
            let Some(entry) = held.form.contents.entries.get(user) else { continue };
            let opened = held.fleet.unwrap(*user, entry);
            keys.insert(*user, opened.map_err(|source| key(format!("the key of {user}"), source))?);
        }
        Ok(keys)
    }

    /// Destroys all keys of these users, where they are there. Gives for each until when the last backup may be kept that
    /// holds one; `None`: there is none. The same when it is asked again.
    ///
    /// # Errors
    /// The store cannot be used or replaced; nothing is destroyed then.
    pub fn destroy(
        &self,
        users: &[UserId],
        now: UnixMs,
    ) -> Result<BTreeMap<UserId, Option<UnixMs>>, KeyStoreError> {
        let mut held = self.hold()?;
        let StoreForm { contents, backups, destroyed, .. } = &mut held.form;
        let mut removed = false;
        for user in users {
            let Some(first) = contents.of(*user).map(|entry| entry.made_at).min() else { continue };
            contents.entries.remove(user);
            contents.records.remove(user);
            removed = true;
            let holds = backups.iter().filter(|backup| backup.made_at >= first);
            let last = holds.map(|backup| backup.expires_at).filter(|at| *at > now).max();
            let known = destroyed.get(user).copied();
            destroyed.extend(last.max(known).map(|at| (*user, at)));
        }
        if removed {
            self.change(&mut held, now)?;
        }
        let until = |user: &UserId| held.form.destroyed.get(user).copied().filter(|at| *at > now);
        Ok(users.iter().map(|user| (*user, until(user))).collect())
    }

    /// Removes the repository keys of these users, with which nothing was ever written.
    ///
    /// # Errors
    /// The store cannot be used or replaced; nothing is removed then.
    pub(crate) fn discard(&self, users: &[UserId], now: UnixMs) -> Result<(), KeyStoreError> {
        let mut held = self.hold()?;
        let entries = &mut held.form.contents.entries;
        let before = entries.len();
        entries.retain(|user, _| !users.contains(user));
        if entries.len() < before { self.change(&mut held, now) } else { Ok(()) }
    }

    /// Wraps all keys anew, with a fresh fleet key. Cut short at any moment it is done or not begun.
    ///
    /// # Errors
    /// The store cannot be used or replaced.
    pub fn rotate(&self, now: UnixMs) -> Result<Rotated, KeyStoreError> {
        self.rotate_with(now, |_| Ok(()))
    }

    fn rotate_with(
        &self,
        now: UnixMs,
        mut done: impl FnMut(Step) -> Result<(), KeyStoreError>,
    ) -> Result<Rotated, KeyStoreError> {
        let mut held = self.hold()?;
        let next = FleetKey::draw();
        let rewrapped = held.form.contents.rewrapped(&held.fleet, &next);
        held.form.contents = rewrapped.map_err(|source| key("a user's key", source))?;
        self.put_key(NEXT_FLEET_FILE, &next)?;
        done(Step::NextMade)?;
        self.change(&mut held, now)?;
        done(Step::StoreReplaced)?;
        self.take_next()?;
        done(Step::KeyReplaced)?;
        Ok(Rotated { fleet: next.id, users: held.form.contents.users().len() })
    }

    /// A backup that may be kept for so long, as bytes of a file. It opens with the recovery key only.
    ///
    /// # Errors
    /// The store cannot be used, or that there is a backup could not be written down.
    pub fn backup(&self, now: UnixMs, kept: Millis) -> Result<Vec<u8>, KeyStoreError> {
        Ok(self.back_up(now, kept)?.bytes)
    }

    /// The same for the bucket: [`KeyStore::backed_up`] is told once it is there.
    pub(crate) fn back_up(&self, now: UnixMs, kept: Millis) -> Result<Backup, KeyStoreError> {
        let mut held = self.hold()?;
        self.must_be_recoverable(&held)?;
        let mark = BackupMark { made_at: now, expires_at: now.after(kept) };
        // Before anybody has it: what is said at a purge must not be too early.
        held.form.know(mark);
        self.put(&mut held, now)?;
        let taken = InBucket { revision: held.form.revision, mark };
        let form = BackupForm::new(mark, held.form, &held.fleet);
        let form = form.map_err(|source| key("what backups are proven with", source))?;
        Ok(Backup { bytes: form.encode(), taken })
    }

    /// Writes down that the bucket has this backup.
    pub(crate) fn backed_up(&self, taken: InBucket, now: UnixMs) -> Result<(), KeyStoreError> {
        let mut held = self.hold()?;
        held.form.in_bucket = Some(taken);
        self.put(&mut held, now)
    }

    /// How far the bucket has what is here.
    pub(crate) fn in_bucket(&self) -> Result<BackedUp, KeyStoreError> {
        let StoreForm { contents, revision, in_bucket, .. } = self.hold()?.form;
        let newest = in_bucket.map(|taken| taken.mark);
        let is_current = in_bucket.is_some_and(|taken| taken.revision == revision);
        let is_missing = |made_at| newest.is_none_or(|newest| made_at > newest.made_at);
        let users = contents.users();
        let missing = users
            .iter()
            .filter(|user| !is_current && contents.of(**user).any(|entry| is_missing(entry.made_at)));
        Ok(BackedUp { missing: missing.count(), users: users.len(), is_current, newest })
    }

    /// Brings a backup back where there is no store. Gives how many users' keys that are. Beside it there can be newer ones
    /// that it does not know of: made by now, to be kept for so long at the most.
    pub(crate) fn restore(
        &self,
        backup: &[u8],
        recovery: &RecoveryKey,
        now: UnixMs,
        also_expired: bool,
        kept: Millis,
    ) -> Result<usize, KeyStoreError> {
        let form = BackupForm::decode(backup).map_err(damaged_backup)?;
        if now >= form.mark.expires_at && !also_expired {
            return Err(KeyStoreError::Expired { at: form.mark.expires_at });
        }
        if form.store.contents.recovery() != Some(recovery.public()) {
            return Err(KeyStoreError::OtherRecovery);
        }
        if !form.is_of(recovery) {
            return Err(KeyStoreError::Forged);
        }
        let BackupForm { mark, store, .. } = form;
        let contents = &store.contents;
        let fleet = contents.open(recovery).map_err(|source| key("the fleet key", source))?;
        for (user, entry) in &contents.entries {
            let opened = fleet.unwrap(*user, entry);
            opened.map_err(|source| key(format!("the key of {user}"), source))?;
        }
        for (user, entry) in &contents.records {
            let opened = fleet.unwrap_record(*user, entry);
            opened.map_err(|source| key(format!("the record key of {user}"), source))?;
        }
        let _lock = self.lock(true)?;
        self.must_be_empty()?;
        let users = contents.users().len();
        let mut form = StoreForm { in_bucket: None, ..store };
        // It goes on to be a backup, and so do those that it knew of.
        form.know(mark);
        form.know(BackupMark { made_at: now, expires_at: now.after(kept) });
        self.put_first(&fleet, &form)?;
        Ok(users)
    }

    /// Which backup of ours these bytes are.
    ///
    /// # Errors
    /// They are none.
    fn mark_of(bytes: &[u8]) -> Result<BackupMark, KeyStoreError> {
        BackupForm::decode(bytes).map(|backup| backup.mark).map_err(damaged_backup)
    }

    /// Are they the one with this mark? An older one under a newer name is not.
    pub(crate) fn is_backup(bytes: &[u8], mark: BackupMark) -> Result<(), KeyStoreError> {
        let found = Self::mark_of(bytes)?;
        if found == mark { Ok(()) } else { Err(damaged_backup(FormError::Name)) }
    }

    /// Until when a file that is a backup of ours may be kept; `None` for any other file.
    fn backup_expires(bytes: &[u8]) -> Option<UnixMs> {
        Self::mark_of(bytes).ok().map(|mark| mark.expires_at)
    }

    fn lock(&self, make: bool) -> Result<File, KeyStoreError> {
        if make {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.folder)
                .map_err(|source| file(&self.folder, "made", source))?;
        }
        let path = self.folder.join(LOCK_FILE);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(&path);
        let lock = opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => KeyStoreError::Missing { folder: self.folder.clone() },
            _ => file(&path, "opened", source),
        })?;
        let began = Instant::now();
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::WOULDBLOCK | Errno::INTR) if began.elapsed() < LOCK_MAX => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(KeyStoreError::Busy),
                Err(errno) => return Err(file(&path, "locked", errno.into())),
            }
        }
    }

    fn hold(&self) -> Result<Held, KeyStoreError> {
        self.lock(false).and_then(|lock| self.read(lock))
    }

    fn read(&self, lock: File) -> Result<Held, KeyStoreError> {
        let path = self.folder.join(STORE_FILE);
        let length = std::fs::metadata(&path).map(|found| found.len()).unwrap_or(0);
        if usize::try_from(length).map_or(true, |length| length > FILE_BYTES_MAX) {
            let source = FormError::Magic;
            return Err(KeyStoreError::Damaged { what: path.display().to_string(), source });
        }
        let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => KeyStoreError::Missing { folder: self.folder.clone() },
            _ => file(&path, "read", source),
        })?;
        let form = StoreForm::decode(&bytes)
            .map_err(|source| KeyStoreError::Damaged { what: path.display().to_string(), source })?;
        let fleet = self.fleet_key(form.contents.fleet)?;
        Ok(Held { form, fleet, _lock: lock })
    }

    /// The key that the store names; the last step of a change that was cut short is taken, or its first one undone.
    fn fleet_key(&self, expected: KeyId) -> Result<FleetKey, KeyStoreError> {
        let next = self.read_fleet(NEXT_FLEET_FILE)?;
        let present = self.read_fleet(FLEET_FILE)?.filter(|present| present.id == expected);
        match (present, next) {
            (Some(present), None) => Ok(present),
            (Some(present), Some(_not_begun)) => {
                let path = self.folder.join(NEXT_FLEET_FILE);
                shred(&path).map_err(|source| file(&path, "overwritten", source))?;
                std::fs::remove_file(&path).map_err(|source| file(&path, "removed", source))?;
                failpoint::KEYSTORE_NEXT_UNDONE.reach();
                Ok(present)
            }
            (None, Some(next)) if next.id == expected => {
                self.take_next()?;
                Ok(next)
            }
            (None, _) => Err(KeyStoreError::Lost { expected }),
        }
    }

    fn read_fleet(&self, name: &str) -> Result<Option<FleetKey>, KeyStoreError> {
        let path = self.folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_secret_file(&path, KEY_TEXT_BYTES_MAX).map_err(KeyStoreError::FleetFile)?;
        let text = bytes.expose_secret_text().ok_or(WrapError::Text("fleet key"));
        let fleet = text.and_then(FleetKey::from_text);
        fleet.map(Some).map_err(|source| key(path.display().to_string(), source))
    }

    fn take_next(&self) -> Result<(), KeyStoreError> {
        let (next, path) = (self.folder.join(NEXT_FLEET_FILE), self.folder.join(FLEET_FILE));
        let take = || {
            let old = open_old(&path)?;
            std::fs::rename(&next, &path)?;
            failpoint::KEYSTORE_NEXT_TAKEN.reach();
            File::open(&self.folder)?.sync_all()?;
            old.map_or(Ok(()), overwrite)
        };
        take().map_err(|source| file(&path, "replaced", source))
    }

    fn change(&self, held: &mut Held, now: UnixMs) -> Result<(), KeyStoreError> {
        held.form.revision = held.form.revision.saturating_add(1);
        self.put(held, now)
    }

    fn put(&self, held: &mut Held, now: UnixMs) -> Result<(), KeyStoreError> {
        held.form.backups.retain(|backup| backup.expires_at > now);
        held.form.destroyed.retain(|_, until| *until > now);
        self.replace(STORE_FILE, &held.form.encode())
    }

    /// Replaces a file, durably; what it held is overwritten.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), KeyStoreError> {
        let path = self.folder.join(name);
        let replace = || {
            let old = open_old(&path)?;
            durable::write_atomic(&path, bytes, FILE_MODE)?;
            failpoint::KEYSTORE_REPLACED.reach();
            old.map_or(Ok(()), overwrite)
        };
        replace().map_err(|source| file(&path, "replaced", source))
    }
}

fn open_old(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).open(path) {
        Ok(old) => Ok(Some(old)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn shred(path: &Path) -> io::Result<()> {
    open_old(path)?.map_or(Ok(()), overwrite)
}

/// Writes zeros over all of a file that has no name any more, or is about to lose it.
fn overwrite(mut old: File) -> io::Result<()> {
    let mut left = old.metadata()?.len();
    old.rewind()?;
    let zeros = [0; 4096];
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        old.write_all(zeros.get(..part).unwrap_or(&zeros))?;
        left -= u64::try_from(part).unwrap_or(u64::MAX).min(left);
    }
    old.sync_all()?;
    failpoint::KEYSTORE_OVERWRITTEN.reach();
    Ok(())
}

#[cfg(test)]
mod tests;
