//! How a job fails, as the caller has to tell it apart.

use std::io;
use std::path::{Path, PathBuf};

use berth_daemon::exit::Exit;
use rustic_core::{ErrorKind, RusticError};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::store::{S3Store, StoreConfigError, StoreError};

/// Longest text for people that is kept, in bytes.
pub(crate) const DETAIL_BYTES_MAX: usize = 400;

/// What went wrong, in words that do not change: what the caller decides by. [`Reason::exit`] says it to a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The job cannot be understood or asks for something impossible.
    BadJob,
    /// The store did not answer, or not to the end.
    StoreUnreachable,
    /// The store answered with errors of its own.
    StoreFailing,
    /// The store asked to send less.
    StoreThrottled,
    /// The credential is wrong, or has not the right.
    StoreRefused,
    /// The bucket is not there.
    NoBucket,
    /// The store has no room.
    StoreFull,
    /// Something in the store is missing, short or changed.
    StoreDamaged,
    /// The repository is there already, or is not there.
    Repository,
    /// The key does not open the repository.
    WrongKey,
    /// There is no such snapshot, or no such path in it.
    NotFound,
    /// The folder cannot be read as a whole.
    Source,
    /// More entries or bytes than the job allows.
    TooLarge,
    /// No room on the disk of this machine.
    NoSpace,
    /// The folder to write to cannot be used.
    Target,
    /// What was restored is not what was stored; or what is stored is not what is in the folder.
    Verification,
    /// What is to be imported is not whole, not what it has to be, or made to do harm.
    BadArchive,
    /// What is to be imported was written by a newer image than the cell's.
    NewerImage,
    /// A bug, here or in a library.
    Internal,
    /// The worker ended without a word: killed, or out of memory. Said by the caller's side, never by the worker.
    Died,
    /// The worker did not end in time and was killed. Said by the caller's side.
    Deadline,
}

impl Reason {
    /// How a worker ends.
    pub const fn exit(self) -> Exit {
        match self {
            Self::BadJob => Exit::Usage,
            Self::StoreDamaged | Self::Verification | Self::BadArchive | Self::NewerImage => {
                Exit::DataCorrupt
            }
            Self::NotFound | Self::Source | Self::NoBucket | Self::Repository => Exit::NoInput,
            Self::StoreFull | Self::StoreFailing => Exit::Unavailable,
            Self::Internal | Self::Died => Exit::Software,
            Self::NoSpace | Self::Target | Self::TooLarge => Exit::CantCreate,
            Self::StoreUnreachable | Self::StoreThrottled | Self::Deadline => Exit::TempFail,
            Self::StoreRefused | Self::WrongKey => Exit::NoPerm,
        }
    }

    /// May the same job succeed later without anybody doing anything?
    pub const fn is_transient(self) -> bool {
        match self {
            Self::StoreUnreachable
            | Self::StoreFailing
            | Self::StoreThrottled
            | Self::Died
            | Self::Deadline => true,
            Self::BadJob
            | Self::StoreRefused
            | Self::NoBucket
            | Self::StoreFull
            | Self::StoreDamaged
            | Self::Repository
            | Self::WrongKey
            | Self::NotFound
            | Self::Source
            | Self::TooLarge
            | Self::NoSpace
            | Self::Target
            | Self::Verification
            | Self::BadArchive
            | Self::NewerImage
            | Self::Internal => false,
        }
    }
}

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The job itself.
    #[error("the job cannot be done: {detail}")]
    BadJob {
        /// What of it.
        detail: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's config.
    #[error(transparent)]
    StoreConfig(#[from] StoreConfigError),
    /// `init` of what is there already.
    #[error("there is a repository already")]
    RepositoryExists,
    /// Anything else without one.
    #[error("there is no repository yet")]
    NoRepository,
    /// The master key is another repository's.
    #[error("the key does not open this repository")]
    WrongKey,
    /// Snapshot ids are whole or begin one uniquely.
    #[error("there is no snapshot `{id}`, or more than one")]
    NoSnapshot {
        /// As it was asked for.
        id: String,
    },
    /// A path in a snapshot.
    #[error("the snapshot has no `{path}`")]
    NoPath {
        /// As it was asked for.
        path: String,
    },
    /// Reading the cell's folder.
    #[error("could not {what} `{}` of the folder", path.display())]
    Read {
        /// What was tried.
        what: &'static str,
        /// Relative to the folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder holds too much.
    #[error("the folder has more than {entries_max} entries")]
    TooManyEntries {
        /// The bound.
        entries_max: u64,
    },
    /// The snapshot holds too much for this restore.
    #[error("the snapshot holds {bytes} bytes in {entries} entries, more than this restore may write")]
    TooLarge {
        /// Of its files.
        bytes: u64,
        /// Files, folders and links.
        entries: u64,
    },
    /// ENOSPC or EDQUOT while restoring, or the look before.
    #[error("there is no room to restore: {needed} bytes are needed")]
    NoSpace {
        /// All of the restore.
        needed: u64,
    },
    /// Writing the restored folder.
    #[error("could not {what} `{}`", path.display())]
    Write {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is to be put back lies below something that is no folder any more.
    #[error("`{}` is no folder in what is there, so that nothing is put back below it: name it itself", path.display())]
    InTheWay {
        /// What is there: a link or a file.
        path: PathBuf,
    },
    /// A name in a snapshot that no folder can have: made by somebody who wants it written elsewhere.
    #[error("the snapshot holds an impossible entry: {detail}")]
    HostileSnapshot {
        /// Which.
        detail: String,
    },
    /// What was restored has another tree hash.
    #[error("what was restored is not what was stored: tree hash {found}, {expected} was expected")]
    Verification {
        /// Of the snapshot.
        expected: String,
        /// Of the restored files.
        found: String,
    },
    /// What is to be imported.
    #[error("the archive is not taken: {detail}")]
    BadArchive {
        /// Which entry, and what is wrong with it.
        detail: String,
    },
    /// It holds more than this import may bring.
    #[error("the archive has more {what} than this import may bring")]
    ArchiveTooLarge {
        /// Bytes or entries.
        what: &'static str,
    },
    /// An older image could not read it.
    #[error("its data was written under {image}, the cell has an older image")]
    NewerImage {
        /// As the archive says.
        image: String,
    },
    /// A snapshot that was to be proven the same as a folder.
    #[error("the snapshot is not what is in the folder: {detail}")]
    Differs {
        /// Where.
        detail: String,
    },
    /// Data in the repository that cannot be decrypted or does not have its hash.
    #[error("the repository is damaged: {detail}")]
    Damaged {
        /// What the library said.
        detail: String,
    },
    /// The rest.
    #[error("{detail}")]
    Internal {
        /// What the library said.
        detail: String,
    },
}

impl Failure {
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Read { what, path: path.to_owned(), source: source.into() }
    }

    /// A failed write of a restore that needs so many bytes.
    pub(crate) fn write(what: &'static str, path: &Path, needed: u64, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { needed },
            _ => Self::Write { what, path: path.to_owned(), source },
        }
    }

    pub(crate) fn bad_job(detail: impl Into<String>) -> Self {
        Self::BadJob { detail: detail.into() }
    }

    /// What a library's error means. The store's own error, where there was one, says more than the wrapping.
    pub(crate) fn library(store: &S3Store, error: &RusticError) -> Self {
        if let Some(error) = store.take_error() {
            return Self::Store(error);
        }
        let detail = one_line(&error.to_string());
        if error.is_incorrect_password() {
            return Self::WrongKey;
        }
        if detail.contains("ErrorKind::Cryptography") || detail.contains(&ErrorKind::Cryptography.to_string())
        {
            return Self::Damaged { detail };
        }
        Self::Internal { detail }
    }

    /// What the caller decides by.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadJob { .. } | Self::StoreConfig(_) => Reason::BadJob,
            Self::Store(error) => match error {
                StoreError::Unreachable { .. } => Reason::StoreUnreachable,
                StoreError::Failing { .. } | StoreError::Other { .. } => Reason::StoreFailing,
                StoreError::Throttled { .. } => Reason::StoreThrottled,
                StoreError::Refused { .. } => Reason::StoreRefused,
                StoreError::NoBucket { .. } => Reason::NoBucket,
                StoreError::NotFound { .. } | StoreError::Damaged { .. } => Reason::StoreDamaged,
                StoreError::Full => Reason::StoreFull,
                StoreError::TooMany { .. } => Reason::TooLarge,
            },
            Self::RepositoryExists | Self::NoRepository => Reason::Repository,
            Self::WrongKey => Reason::WrongKey,
            Self::NoSnapshot { .. } | Self::NoPath { .. } => Reason::NotFound,
            Self::Read { .. } => Reason::Source,
            Self::TooManyEntries { .. } | Self::TooLarge { .. } | Self::ArchiveTooLarge { .. } => {
                Reason::TooLarge
            }
            Self::BadArchive { .. } => Reason::BadArchive,
            Self::NewerImage { .. } => Reason::NewerImage,
            Self::NoSpace { .. } => Reason::NoSpace,
            Self::Write { .. } | Self::InTheWay { .. } => Reason::Target,
            Self::HostileSnapshot { .. } | Self::Verification { .. } | Self::Differs { .. } => {
                Reason::Verification
            }
            Self::Damaged { .. } => Reason::StoreDamaged,
            Self::Internal { .. } => Reason::Internal,
        }
    }

    /// The whole chain in one line.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            text.push_str(": ");
            text.push_str(&source.to_string());
            next = source.source();
        }
        plain(&text)
    }
}

/// A text for people in which names of strangers may be: short, and nothing in it that a terminal obeys.
pub(crate) fn plain(text: &str) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    berth_shared::problem::cut(&mut text, DETAIL_BYTES_MAX);
    text
}

/// The library writes its errors as a page: the lines behind `Message:` are the message.
fn one_line(page: &str) -> String {
    let message = page.split_once("Message:").map_or(page, |(_, rest)| rest);
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    berth_shared::problem::cut(&mut text, DETAIL_BYTES_MAX);
    text
}
