//! What can be wrong with something in a cell's folder.

use std::fmt;
use std::io;

use berth_shared::problem::{Code, Problem};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Longest path shown in an error, in characters: a cell chooses its file names.
const SHOWN_CHARS_MAX: usize = 160;

/// What was found instead of what had to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A symbolic link, at the end of the path or on the way.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character or block device.
    Device,
    /// A directory, where a file had to be.
    Directory,
    /// Something else, where a directory had to be.
    NotADirectory,
    /// A file with so many names, of which all but one may lie elsewhere.
    HardLinks(u32),
    /// It belongs to this uid: neither the cell's nor root's.
    Owner(u32),
    /// More bytes than are read.
    TooLarge {
        /// How many there are, as far as was looked.
        bytes: u64,
        /// How many are taken.
        bytes_max: u64,
    },
    /// Directories nested deeper than is followed.
    TooDeep,
    /// Another file system is mounted there.
    OtherMount,
    /// It is not there, or not any more.
    Vanished,
    /// The cell holds a lease on it and would have to give it up first.
    Leased,
    /// The agent may not read it.
    Unreadable,
    /// The cell's disk is full.
    DiskFull,
    /// Of a type that this code does not know.
    UnknownType,
}

impl Found {
    pub(super) const fn unless_regular(kind: FileType) -> Option<Self> {
        match kind {
            FileType::RegularFile => None,
            FileType::Directory => Some(Self::Directory),
            other => Some(Self::odd(other)),
        }
    }

    /// What a thing that is neither file nor directory is.
    pub(super) const fn odd(kind: FileType) -> Self {
        match kind {
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            FileType::Directory => Self::Directory,
            FileType::RegularFile | FileType::Unknown => Self::UnknownType,
        }
    }

    pub(super) const fn from_errno(errno: Errno) -> Option<Self> {
        match errno {
            Errno::LOOP => Some(Self::Symlink),
            Errno::NOTDIR => Some(Self::NotADirectory),
            Errno::ISDIR => Some(Self::Directory),
            Errno::XDEV => Some(Self::OtherMount),
            Errno::NOENT => Some(Self::Vanished),
            Errno::AGAIN => Some(Self::Leased),
            Errno::ACCESS | Errno::PERM => Some(Self::Unreadable),
            Errno::NOSPC | Errno::DQUOT => Some(Self::DiskFull),
            _ => None,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symlink => f.write_str("is or passes a symbolic link"),
            Self::Fifo => f.write_str("is a named pipe"),
            Self::Socket => f.write_str("is a socket"),
            Self::Device => f.write_str("is a device"),
            Self::Directory => f.write_str("is a directory"),
            Self::NotADirectory => f.write_str("is not a directory or passes something that is none"),
            Self::HardLinks(count) => write!(f, "is a file with {count} names (hard links)"),
            Self::Owner(uid) => write!(f, "belongs to uid {uid}"),
            Self::TooLarge { bytes, bytes_max } => write!(f, "has {bytes} bytes, more than {bytes_max}"),
            Self::TooDeep => f.write_str("is nested too deep"),
            Self::OtherMount => f.write_str("leads into another file system"),
            Self::Vanished => f.write_str("is not there"),
            Self::Leased => f.write_str("is held by a file lease"),
            Self::Unreadable => f.write_str("may not be read"),
            Self::DiskFull => f.write_str("does not fit: the cell's disk is full"),
            Self::UnknownType => f.write_str("is of an unknown type"),
        }
    }
}

/// What was being done when the system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Opening.
    Open,
    /// Asking what it is.
    Look,
    /// Reading.
    Read,
    /// Making a file or directory.
    Create,
    /// Writing.
    Write,
    /// Setting owner and mode.
    Own,
    /// Waiting until it is on the disk.
    Sync,
    /// Putting it in place.
    Rename,
    /// Removing.
    Remove,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening",
            Self::Look => "looking at",
            Self::Read => "reading",
            Self::Create => "making",
            Self::Write => "writing",
            Self::Own => "setting the owner of",
            Self::Sync => "syncing",
            Self::Rename => "renaming to",
            Self::Remove => "removing",
        })
    }
}

/// Why something in a cell's folder was not touched. Paths are shortened and escaped: a cell chooses its names.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The caller's path is absolute, empty, too long, or has `.` or `..` in it.
    #[error("`{path}` is not a plain path below a cell's folder")]
    Path {
        /// The path.
        path: String,
    },
    /// There is something else than had to be there.
    #[error("`{path}` in the cell's folder {found}")]
    Hostile {
        /// Where, relative to the folder.
        path: String,
        /// What is there.
        found: Found,
    },
    /// The system refused, for none of the reasons in [`Found`].
    #[error("{doing} `{path}` in the cell's folder failed")]
    Io {
        /// What was being done.
        doing: Doing,
        /// Where, relative to the folder.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl FolderError {
    pub(super) fn hostile(path: &str, found: Found) -> Self {
        Self::Hostile { path: shown(path), found }
    }

    pub(super) fn io(doing: Doing, path: &str, source: io::Error) -> Self {
        Self::Io { doing, path: shown(path), source }
    }

    pub(super) fn from_errno(doing: Doing, path: &str, errno: Errno) -> Self {
        match Found::from_errno(errno) {
            Some(found) => Self::hostile(path, found),
            None => Self::io(doing, path, errno.into()),
        }
    }

    pub(super) fn io_or_hostile(doing: Doing, path: &str, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(errno) => Self::from_errno(doing, path, errno),
            None => Self::io(doing, path, source),
        }
    }

    /// What was found, where it is the folder that is wrong.
    pub const fn found(&self) -> Option<Found> {
        match self {
            Self::Hostile { found, .. } => Some(*found),
            Self::Path { .. } | Self::Io { .. } => None,
        }
    }

    /// The error as an operator sees it.
    pub fn problem(&self) -> Problem {
        let detail = match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            Self::Path { .. } | Self::Hostile { .. } => self.to_string(),
        };
        Problem::new(Code::HostileFolder, detail)
    }
}

/// A path fit for logs: no control characters, of bounded length.
pub(super) fn shown(path: &str) -> String {
    path.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect()
}
