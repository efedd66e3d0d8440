//! What can go wrong with a cell's disk.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use berth_shared::problem::{Code, Problem};
use berth_shared::units::Bytes;

use super::{DISK_BYTES_MAX, DISK_BYTES_MIN};

/// Why a cell's disk could not be made, mounted, grown, looked at or released.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// Disk quotas do not work on this node.
    #[error("no way of keeping disk quotas works on this node: {reason}")]
    Unsupported {
        /// What was tried and failed.
        reason: String,
    },
    /// The size is out of bounds.
    #[error("a cell's disk has {DISK_BYTES_MIN} to {DISK_BYTES_MAX}, not {size}")]
    Size {
        /// What was asked for.
        size: Bytes,
    },
    /// A file system with data in it is not made smaller.
    #[error("the disk has {have} already and is not shrunk to {want}")]
    Shrink {
        /// Its size.
        have: Bytes,
        /// What was asked for.
        want: Bytes,
    },
    /// The node's own disk is too full.
    #[error(
        "{needed} needed for the disk, {free} free on the node, of which {promised} are other cells' to fill"
    )]
    NoRoom {
        /// How much it takes.
        needed: Bytes,
        /// What is free.
        free: Bytes,
        /// What other cells' disks may still grow by.
        promised: Bytes,
    },
    /// A directory or file of Berth's own could not be made, read or moved.
    #[error("{path} could not be prepared")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The state of a disk could not be found out.
    #[error("{path} could not be looked at")]
    Look {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another call about the same cell did not end.
    #[error("{path} is still being worked on")]
    Locked {
        /// The cell's directory.
        path: PathBuf,
    },
    /// The image holds no file system that we made.
    #[error("{path} holds no ext4 file system")]
    NotExt4 {
        /// The image.
        path: PathBuf,
    },
    /// A program could not be started.
    #[error("`{tool}` could not be run")]
    Spawn {
        /// Which.
        tool: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program was ended because it did not end by itself.
    #[error("`{tool}` took longer than {seconds} s")]
    Timeout {
        /// Which.
        tool: &'static str,
        /// Its bound.
        seconds: u64,
    },
    /// A program failed.
    #[error("`{tool}` failed ({status}): {output}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Exit code or signal.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// The file system is damaged beyond what may be repaired without a person.
    #[error("the file system in {path} is damaged; look at it with e2fsck: {output}")]
    Damaged {
        /// The image.
        path: PathBuf,
        /// The end of what the check said.
        output: String,
    },
    /// Something else is mounted in its place.
    #[error("{what} is mounted at {path} instead of the cell's disk")]
    Occupied {
        /// The mount point.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// It is in use.
    #[error("{path} is still in use")]
    Busy {
        /// The mount point or device.
        path: PathBuf,
    },
    /// It can only grow while nobody uses it, and somebody does.
    #[error("the disk at {path} is in use and this node cannot grow a disk in use")]
    GrowBusy {
        /// The mount point.
        path: PathBuf,
    },
    /// The file system stayed smaller than its image.
    #[error("the file system in {path} could not be grown")]
    NotGrown {
        /// The image.
        path: PathBuf,
    },
    /// The file system is none whose quotas Berth uses.
    #[error("{path} lies on no file system that counts per user")]
    NotCounted {
        /// The data directory.
        path: PathBuf,
    },
    /// A limit was set and not kept.
    #[error("{written} could be written, where {limit} were let")]
    NotKept {
        /// How much went in.
        written: Bytes,
        /// The limit.
        limit: Bytes,
    },
    /// What the file system counts cannot be understood.
    #[error("what repquota tells of {path} cannot be understood")]
    Report {
        /// Where the file system is mounted.
        path: PathBuf,
    },
    /// The cell's files here are counted for another uid.
    #[error("the files in {path} are those of uid {have}, not of {want}")]
    Owner {
        /// The cell's directory.
        path: PathBuf,
        /// Whom they are counted for.
        have: u32,
        /// The cell's uid.
        want: u32,
    },
    /// The cell's files could not be mounted.
    #[error("{path} could not be mounted")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file system could not be unmounted.
    #[error("{path} could not be unmounted")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl QuotaError {
    /// The error as an operator sees it.
    pub fn problem(&self) -> Problem {
        Problem::new(Code::QuotaFailed, chain(self))
    }

    /// May the same call succeed a little later, with nothing changed by a person?
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Busy { .. } | Self::GrowBusy { .. } | Self::Timeout { .. } => true,
            Self::Unsupported { .. }
            | Self::Size { .. }
            | Self::Shrink { .. }
            | Self::NoRoom { .. }
            | Self::Prepare { .. }
            | Self::Look { .. }
            | Self::NotExt4 { .. }
            | Self::Spawn { .. }
            | Self::Tool { .. }
            | Self::Damaged { .. }
            | Self::Occupied { .. }
            | Self::NotGrown { .. }
            | Self::NotCounted { .. }
            | Self::NotKept { .. }
            | Self::Report { .. }
            | Self::Owner { .. }
            | Self::Mount { .. }
            | Self::Unmount { .. } => false,
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
