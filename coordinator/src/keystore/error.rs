//! Why the key store cannot be used, and what may be done all the same.

use std::io;
use std::path::{Path, PathBuf};

use berth_daemon::exit::Exit;
use berth_daemon::secret_file::SecretFileError;
use berth_shared::ids::KeyId;
use berth_shared::time::UnixMs;

use super::{FormError, LOCK_MAX, WrapError};

/// Why the key store cannot be used. Holds no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// Nothing was made yet.
    #[error("there is no key store in {}: make one with `berth-coordinator keys init`, or bring a backup back with \
             `keys restore`", folder.display())]
    Missing {
        /// Where it would be.
        folder: PathBuf,
    },
    /// It was made for record keys only.
    #[error("the key store in {} has no recovery key: give it one with `berth-coordinator keys init`", folder.display())]
    NoRecovery {
        /// Where.
        folder: PathBuf,
    },
    /// There is one.
    #[error("there is a key store in {} already; nothing was changed", folder.display())]
    Exists {
        /// Where.
        folder: PathBuf,
    },
    /// A file or folder could not be made, read, locked or written.
    #[error("{} could not be {doing}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Such as "read".
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else has it, for longer than any call takes.
    #[error("the key store is held by another process for {} s already", LOCK_MAX.as_secs())]
    Busy,
    /// The fleet key's file cannot be used.
    #[error("the fleet key cannot be used")]
    FleetFile(#[source] SecretFileError),
    /// A file is damaged.
    #[error("{what} is damaged")]
    Damaged {
        /// Which.
        what: String,
        /// How.
        #[source]
        source: FormError,
    },
    /// No file holds the fleet key that the store names.
    #[error("the key store is of fleet key {expected}, and no file holds it: files of different backups")]
    Lost {
        /// The one that is named.
        expected: KeyId,
    },
    /// A key could not be wrapped, opened or read.
    #[error("{what} cannot be used")]
    Key {
        /// Whose or which.
        what: String,
        /// Why.
        #[source]
        source: WrapError,
    },
    /// The recovery key is of another installation.
    #[error("the backup was not made for this recovery key")]
    OtherRecovery,
    /// It says that it is of this recovery key, and whoever made it did not have a key store of it.
    #[error("the backup was not made by an installation of this recovery key: it is forged")]
    Forged,
    /// The backup's time is over.
    #[error("the backup may not be kept since {at}: keys that were purged since could be in it")]
    Expired {
        /// Since when.
        at: UnixMs,
    },
    /// The change was stopped: by a test only.
    #[cfg(test)]
    #[error("stopped")]
    Stopped,
}

impl KeyStoreError {
    /// The exit code for a command or a daemon that ends because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing { .. } | Self::NoRecovery { .. } | Self::OtherRecovery | Self::Expired { .. } => {
                Exit::Config
            }
            Self::Exists { .. } => Exit::CantCreate,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Exit::NoInput,
            Self::File { .. } => Exit::Io,
            Self::Busy => Exit::TempFail,
            Self::FleetFile(error) => error.exit(),
            Self::Damaged { .. } | Self::Forged | Self::Lost { .. } | Self::Key { .. } => Exit::DataCorrupt,
            #[cfg(test)]
            Self::Stopped => Exit::Failure,
        }
    }

    /// May another backup be brought back although this one cannot?
    pub(crate) const fn is_of_the_backup(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Forged
            | Self::Key { .. }
            | Self::OtherRecovery
            | Self::Expired { .. } => true,
            Self::Missing { .. }
            | Self::NoRecovery { .. }
            | Self::Exists { .. }
            | Self::File { .. }
            | Self::Busy
            | Self::FleetFile(_)
            | Self::Lost { .. } => false,
            #[cfg(test)]
            Self::Stopped => false,
        }
    }
}

pub(super) fn file(path: &Path, doing: &'static str, source: io::Error) -> KeyStoreError {
    KeyStoreError::File { path: path.to_owned(), doing, source }
}

pub(super) fn damaged_backup(source: FormError) -> KeyStoreError {
    KeyStoreError::Damaged { what: "the backup".to_owned(), source }
}

pub(super) fn key(what: impl Into<String>, source: WrapError) -> KeyStoreError {
    KeyStoreError::Key { what: what.into(), source }
}
