//! The node's key files, and which of them is in force.
//!
//! | file | holds |
//! |---|---|
//! | `node.key` | the key in force, but for the moment between the journal's word and a rename |
//! | `node.key.next` | a key that is to follow, told to the coordinator or not |
//! | `node.key.join` | a key that a `join --again` shows, until the coordinator has taken it |
//!
//! The journal says which key is in force. A crash before its word leaves the old key, one behind it the new one, and
//! the file takes its name at the next start. No private half ever leaves these files.

use std::path::{Path, PathBuf};

use berth_link::keyfile::{self, KeyFileError};
use berth_shared::signing::{PublicKey, SigningKey};

use crate::config::Config;

/// Why the node has no key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file cannot be used.
    #[error("the node's key cannot be used")]
    File(#[from] KeyFileError),
    /// A key file could not take its name.
    #[error("the file of the node's new key could not take its name")]
    Rename(#[source] std::io::Error),
    /// Files of another node, or of an old backup.
    #[error(
        "the journal says that the node's key is {expected}, and no key file holds it: join the node again with `join \
         --again` and a token of `berth node revoke NAME` and `berth token create NAME --rejoin`"
    )]
    Lost {
        /// The key in force.
        expected: PublicKey,
    },
}

/// What lies there.
#[derive(Debug)]
pub struct Keys {
    /// The key in force.
    pub present: SigningKey,
    /// A key that is to follow it.
    pub next: Option<SigningKey>,
}

/// The files of one node.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    present: PathBuf,
    next: PathBuf,
    join: PathBuf,
}

impl KeyFiles {
    /// Those of a config.
    pub fn of(config: &Config) -> Self {
        let present = config.key_file();
        let beside = |suffix: &str| {
            let mut name = present.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { next: beside(".next"), join: beside(".join"), present }
    }

    /// Reads the keys. `in_force` is what the journal says; `None` for a node whose key was never changed.
    ///
    /// # Errors
    /// A file cannot be used, or none holds the key in force.
    pub fn settle(&self, in_force: Option<PublicKey>) -> Result<Keys, KeysError> {
        let found = keyfile::load(&self.present)?;
        let present = match in_force {
            Some(expected) if found.public() != expected => self.promote(expected)?,
            Some(_) | None => found,
        };
        Ok(Keys { present, next: keyfile::load_if_there(&self.next)? })
    }

    /// The key of a first join: the present one, made where it is missing.
    ///
    /// # Errors
    /// The file cannot be made or used.
    pub fn first(&self) -> Result<SigningKey, KeysError> {
        Ok(keyfile::load_or_create(&self.present)?)
    }

    /// The key that joins again: fresh, but for one whose answer was lost.
    ///
    /// # Errors
    /// The file cannot be made or used.
    pub fn to_join(&self) -> Result<SigningKey, KeysError> {
        Ok(keyfile::load_or_create(&self.join)?)
    }

    /// The key that is to follow, durably.
    ///
    /// # Errors
    /// The file cannot be made or used.
    pub fn make_next(&self) -> Result<SigningKey, KeysError> {
        Ok(keyfile::load_or_create(&self.next)?)
    }

    /// Behind the journal's word that the key which joined is in force: it takes its name, and whatever was to follow the
    /// one of before is gone.
    ///
    /// # Errors
    /// A file could not be moved or removed; the next start does it.
    pub fn joined(&self) -> Result<(), KeysError> {
        keyfile::remove(&self.next).map_err(KeysError::Rename)?;
        take_name(&self.join, &self.present)
    }

    /// Behind the journal's word that the next key is in force.
    ///
    /// # Errors
    /// The file could not be moved; the next start does it.
    pub fn rotated(&self) -> Result<(), KeysError> {
        take_name(&self.next, &self.present)
    }

    /// What was not done before a crash, as [`KeyFiles::rotated`] or [`KeyFiles::joined`] does it.
    fn promote(&self, expected: PublicKey) -> Result<SigningKey, KeysError> {
        let holds = |path| -> Result<_, KeysError> {
            Ok(keyfile::load_if_there(path)?.filter(|key| key.public() == expected))
        };
        if let Some(key) = holds(&self.next)? {
            self.rotated()?;
            return Ok(key);
        }
        let key = holds(&self.join)?.ok_or(KeysError::Lost { expected })?;
        self.joined()?;
        Ok(key)
    }
}

fn take_name(from: &Path, to: &Path) -> Result<(), KeysError> {
    keyfile::replace(from, to).map_err(KeysError::Rename)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> KeyFiles {
        KeyFiles::of(&Config { data_dir: folder.to_owned(), ..Config::default() })
    }

    #[test]
    fn the_journal_says_which_key_is_in_force_at_every_step_of_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let old = files.first().unwrap().public();
        let new = files.make_next().unwrap().public();
        assert_eq!(files.make_next().unwrap().public(), new, "made once, told as often as needed");
        // Killed before the journal's word: the old one, and the new one is still there to be told.
        let keys = files.settle(None).unwrap();
        assert_eq!((keys.present.public(), keys.next.map(|key| key.public())), (old, Some(new)));
        // Killed behind it, before the rename.
        let keys = files.settle(Some(new)).unwrap();
        assert_eq!((keys.present.public(), keys.next.map(|key| key.public())), (new, None));
        let keys = files.settle(Some(new)).unwrap();
        assert_eq!(keys.present.public(), new);
        assert!(matches!(files.settle(Some(old)), Err(KeysError::Lost { .. })), "the old one is gone");
    }

    #[test]
    fn a_key_that_joins_again_is_the_same_until_it_is_taken_and_then_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let old = files.first().unwrap().public();
        files.make_next().unwrap();
        let fresh = files.to_join().unwrap().public();
        assert_ne!(fresh, old);
        assert_eq!(
            files.to_join().unwrap().public(),
            fresh,
            "an answer that was lost is asked for by the same key"
        );
        assert_eq!(files.settle(None).unwrap().present.public(), old, "not taken yet");
        files.joined().unwrap();
        let keys = files.settle(Some(fresh)).unwrap();
        assert_eq!((keys.present.public(), keys.next.is_none()), (fresh, true));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_kill_behind_the_journals_word_of_a_join_leaves_no_key_that_was_to_follow_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        files.first().unwrap();
        // It lies on every copy of the old disk, too, and may be dead at the coordinator.
        files.make_next().unwrap();
        let fresh = files.to_join().unwrap().public();
        let keys = files.settle(Some(fresh)).unwrap();
        assert_eq!((keys.present.public(), keys.next.map(|key| key.public())), (fresh, None));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_ne!(files.make_next().unwrap().public(), fresh);
    }
}
