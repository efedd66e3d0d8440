//! The coordinator's own key and the one that is to follow it.
//!
//! Files below the data folder: `coordinator.key` and, while one is announced, `coordinator.key.next`. The journal says
//! which key is in force, so that a crash at any step leads on: a next key that lies there and was never announced is
//! announced by the next call; one that the journal has switched to takes its name at the next start.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_link::{KeyFileError, ListenError, Listener, keyfile};
use berth_shared::signing::{self, PublicKey, Purpose, Signature, SigningKey};
use berth_shared::wire::CoordinatorFrame;

/// File of the coordinator's key below the data folder.
pub const KEY_FILE: &str = "coordinator.key";

/// File of the key that is to follow it.
pub const NEXT_KEY_FILE: &str = "coordinator.key.next";

/// Why a key is not in force.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file cannot be used.
    #[error("the coordinator's key cannot be used")]
    File(#[from] KeyFileError),
    /// The file of the next key could not take the name of the present one.
    #[error("the file of the coordinator's next key could not take its name")]
    Rename(#[source] std::io::Error),
    /// The journal and the files disagree: files of another coordinator, or of an old backup.
    #[error("the journal says that the coordinator's key is {expected}, and no key file holds it")]
    Lost {
        /// The key in force.
        expected: PublicKey,
    },
    /// The key that the journal has taken does not lie here.
    #[error("the next key that was taken does not lie in its file")]
    NoNext,
    /// The listener did not take it.
    #[error("the link could not take the next key")]
    Link(#[source] ListenError),
}

struct Held {
    present: SigningKey,
    next: Option<SigningKey>,
}

/// The keys. Clones are the same.
#[derive(Clone)]
pub struct Keys {
    folder: PathBuf,
    held: Arc<Mutex<Held>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("present", &self.present().public()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the present key, or makes the first one. The folder must be there.
    ///
    /// # Errors
    /// A key file cannot be used.
    pub fn open(folder: &Path) -> Result<Self, KeyFileError> {
        let present = keyfile::load_or_create(&folder.join(KEY_FILE))?;
        let next = keyfile::load_if_there(&folder.join(NEXT_KEY_FILE))?;
        let held = Arc::new(Mutex::new(Held { present, next }));
        Ok(Self { folder: folder.to_owned(), held })
    }

    /// Goes on with the key that the journal says is in force.
    ///
    /// # Errors
    /// No file holds it, or it could not take its name.
    pub fn settle(&self, in_force: Option<PublicKey>) -> Result<(), KeysError> {
        let Some(expected) = in_force else { return Ok(()) };
        let mut held = self.lock();
        if held.present.public() == expected {
            return Ok(());
        }
        let next = held.next.take().filter(|next| next.public() == expected);
        let Some(next) = next else { return Err(KeysError::Lost { expected }) };
        self.take_name()?;
        held.present = next;
        Ok(())
    }

    /// The key in force.
    pub fn present(&self) -> SigningKey {
        self.lock().present.clone()
    }

    /// The next key, durably: the one that lies there, else a fresh one.
    ///
    /// # Errors
    /// Its file cannot be made or used.
    pub fn make_next(&self) -> Result<PublicKey, KeyFileError> {
        let mut held = self.lock();
        let key = keyfile::load_or_create(&self.folder.join(NEXT_KEY_FILE))?;
        Ok(held.next.insert(key).public())
    }

    /// Does the private half of this announced key lie in its file? Looks there, whatever was known before.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn holds_next(&self, announced: PublicKey) -> Result<bool, KeyFileError> {
        let mut held = self.lock();
        held.next = keyfile::load_if_there(&self.folder.join(NEXT_KEY_FILE))?;
        Ok(held.next.as_ref().is_some_and(|next| next.public() == announced))
    }

    /// What nodes are told of the announced next key; `None` when this is not the one that lies here.
    pub fn announcement(&self, announced: PublicKey) -> Option<CoordinatorFrame> {
        let held = self.lock();
        let next = held.next.as_ref().filter(|next| next.public() == announced)?;
        let said = signing::next_coordinator_key(&held.present.public(), &announced);
        let proof = Signature(next.sign(Purpose::CoordinatorKey, &said));
        Some(CoordinatorFrame::NextKey { key: announced, proof })
    }

    /// Puts the next key in force, on the link and on the disk. `in_force`: which it is, by the journal.
    ///
    /// # Errors
    /// It does not lie here, or the link or the disk refuse; a new start goes on from the journal.
    pub fn switch(&self, in_force: Option<PublicKey>, listener: &Listener) -> Result<PublicKey, KeysError> {
        let mut held = self.lock();
        let next = held.next.clone().filter(|next| Some(next.public()) == in_force);
        let next = next.ok_or(KeysError::NoNext)?;
        listener.use_key(&next).map_err(KeysError::Link)?;
        held.present = next;
        held.next = None;
        self.take_name()?;
        Ok(held.present.public())
    }

    fn take_name(&self) -> Result<(), KeysError> {
        keyfile::replace(&self.folder.join(NEXT_KEY_FILE), &self.folder.join(KEY_FILE))
            .map_err(KeysError::Rename)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_key_counts_as_long_as_its_file_is_there_and_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let announced = keys.make_next().unwrap();
        assert!(keys.holds_next(announced).unwrap());
        std::fs::remove_file(folder.path().join(NEXT_KEY_FILE)).unwrap();
        assert!(!keys.holds_next(announced).unwrap(), "it was in memory still");
        assert!(keys.announcement(announced).is_none());
        let another = keys.make_next().unwrap();
        assert_ne!(another, announced);
        assert!(!keys.holds_next(announced).unwrap() && keys.holds_next(another).unwrap());
    }

    #[test]
    fn a_crash_behind_the_journals_switch_is_made_good_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let first = keys.present().public();
        let next = keys.make_next().unwrap();
        assert_eq!(keys.make_next().unwrap(), next, "made once");
        assert!(keys.announcement(first).is_none() && keys.announcement(next).is_some());
        drop(keys);

        let keys = Keys::open(folder.path()).unwrap();
        keys.settle(None).unwrap();
        assert_eq!(keys.present().public(), first, "the journal does not say so yet");
        keys.settle(Some(next)).unwrap();
        assert_eq!(keys.present().public(), next);
        assert!(!folder.path().join(NEXT_KEY_FILE).exists());
        let keys = Keys::open(folder.path()).unwrap();
        keys.settle(Some(next)).unwrap();
        assert!(matches!(keys.settle(Some(first)), Err(KeysError::Lost { .. })), "old files");
    }
}
