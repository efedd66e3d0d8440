//! What a worker is told and what it says.
//!
//! The caller writes one [`Request`] as a line of JSON to the worker's standard input, behind it the archive of an import,
//! the object of a `put` or the [`Ask`]s of a `read`, and closes it: so no secret is in a process list or an environment. The
//! worker writes [`Line`]s to its standard output, one JSON object per line, each at most [`LINE_BYTES_MAX`] bytes: `hello`
//! first, then progress and entries, and at last `done` or `failed`. Standard error is for people. The exit code is 0 after `done`, and [`Reason::exit`] after `failed`.

use std::path::PathBuf;

use berth_shared::api::{SnapshotChange, SnapshotEntry};
use berth_shared::repository::{Object, ObjectKind};
use berth_shared::secret::Secret;
use serde::{Deserialize, Serialize};

use crate::check::Checked;
use crate::error::{Reason, plain};
use crate::import::{ImportJob, Imported};
use crate::labels::Labels;
use crate::prune::{PruneJob, Pruned};
use crate::repository::{Chunking, RepositoryKey};
use crate::restore::verify::{Verified, VerifyJob};
use crate::restore::{RestoreJob, Restored};
use crate::snapshot::{SnapshotJob, Taken};
use crate::store::{StoreCheck, StoreConfig, Traffic};

/// The version of this protocol. Caller and worker are one program, so another one means an upgrade under way.
pub const VERSION: u32 = 1;

/// Longest request, in bytes.
pub const REQUEST_BYTES_MAX: u64 = 256 * 1024;

/// Longest line that a worker writes and a caller reads, in bytes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Content in one line of a `dump`, in bytes before base64.
pub(crate) const DATA_BYTES_MAX: usize = 32 * 1024;

/// All that a worker needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Where the repository is.
    pub store: StoreConfig,
    /// The user's key. Not needed for `check_store`, `folders`, `read` and whole objects.
    #[serde(default)]
    pub key: Option<RepositoryKey>,
    /// What to do.
    pub job: Job,
    /// Bounds of the process.
    #[serde(default)]
    pub process: ProcessLimits,
}

/// Bounds that a worker sets to itself before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessLimits {
    /// Private memory, in bytes (`RLIMIT_DATA`): allocations beyond it fail, and the worker ends. Default 1 GiB, of
    /// which stacks of threads are much; what it really holds is a fifth of that.
    pub memory_bytes: u64,
    /// What is added to its niceness, 0 to 19. Default 10.
    pub nice: u8,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self { memory_bytes: 1 << 30, nice: 10 }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Is the bucket there, and what may the credential do?
    CheckStore,
    /// Make the repository, with a second key under this password for stock `restic`.
    Init {
        /// Drawn at random by the caller, 20 bytes or more.
        password: Secret,
        /// How files are cut.
        #[serde(default)]
        chunking: Chunking,
    },
    /// Take a snapshot.
    Snapshot(Box<SnapshotJob>),
    /// Take a snapshot of what is in the archive behind the request.
    Import(Box<ImportJob>),
    /// Restore one.
    Restore(Box<RestoreJob>),
    /// Prove that a snapshot can be read back whole, and is what is in a folder.
    Verify(VerifyJob),
    /// Is everything there that the snapshots need? Reads a sample of the data.
    Check {
        /// How much of the data is read, in per cent.
        #[serde(default)]
        read_percent: u8,
    },
    /// Forget snapshots by a rule, and remove data that none needs any more.
    Prune(PruneJob),
    /// The folders right below the prefix: which users' repositories a bucket has. Needs no key.
    Folders,
    /// Give out objects of the repository as they lie in the store: what is asked for by the [`Ask`]s behind the request,
    /// one after the other, until there are no more. Needs no key.
    Read,
    /// The objects right below the prefix. Needs no key, as the three behind it.
    Objects,
    /// The content of one of them.
    Fetch {
        /// Which.
        name: String,
    },
    /// Write one, of what is behind the request. What is there already is replaced.
    Put {
        /// Which.
        name: String,
        /// So many bytes come: where fewer or more do, nothing is written.
        bytes: u64,
    },
    /// Remove these.
    Remove {
        /// Which.
        names: Vec<String>,
    },
    /// The snapshots.
    List,
    /// What is in a folder of a snapshot.
    Ls {
        /// Which snapshot.
        snapshot: String,
        /// The folder; empty for the cell's own.
        #[serde(default)]
        path: String,
        /// Also what is in its folders.
        #[serde(default)]
        recursive: bool,
    },
    /// One snapshot.
    Show {
        /// Which.
        snapshot: String,
        /// Only where it has all of these paths.
        #[serde(default)]
        paths: Vec<String>,
    },
    /// What is different between two snapshots.
    Diff {
        /// The older one.
        from: String,
        /// The newer one.
        to: String,
    },
    /// A whole snapshot as a tar stream, in `data` lines.
    Tar {
        /// Which.
        snapshot: String,
    },
    /// One file's content.
    Dump {
        /// Which snapshot.
        snapshot: String,
        /// Which file.
        path: String,
        /// A file to make; without it the content comes as `data` lines.
        #[serde(default)]
        to: Option<PathBuf>,
    },
}

/// Longest line of an [`Ask`], in bytes.
pub(crate) const ASK_BYTES_MAX: u64 = 1024;

/// What a `read` is asked for: one line of JSON. Answered by lines of which [`Line::Answered`] or [`Line::Unanswered`] is
/// the last; only then the next is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// All objects of a kind: [`Line::Listed`] for each.
    List(ObjectKind),
    /// How large it is: [`Line::Object`].
    Size(Object),
    /// [`Line::Object`], then its bytes from `from` to `to`, that one included, or to its end, as `data` lines.
    Object {
        /// Which.
        object: Object,
        /// The first byte.
        from: u64,
        /// The last one; none: the object's own last.
        to: Option<u64>,
    },
}

/// One line of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// How far it is. About twice a second.
    Progress {
        /// Entries gone through.
        entries: u64,
        /// Bytes gone through.
        bytes: u64,
    },
    /// Of `folders`: one folder.
    Folder {
        /// Its name.
        name: String,
    },
    /// Of `list`: one snapshot.
    Snapshot(SnapshotLine),
    /// Of `ls`: one entry.
    Entry(SnapshotEntry),
    /// Of `diff`: one difference.
    Change(SnapshotChange),
    /// Of `read` and `objects`: one object of a listing.
    Listed {
        /// Its name: of `read` all digits.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// Of `read` and `fetch`: what there is of an object.
    Object {
        /// So many bytes of it follow.
        bytes: u64,
        /// So many it has.
        total: u64,
    },
    /// Of `read`: the newest ask is answered whole.
    Answered,
    /// Of `read`: the newest ask is not answered, or what came of it so far is not whole.
    Unanswered {
        /// What to decide by. `not_found`: there is no such object; `bad_job`: it has no such part.
        reason: Reason,
        /// For people. Holds no secret.
        detail: String,
    },
    /// Of `dump`, `tar`, `read` and `fetch`: the next part of the content, in base64.
    Data {
        /// At most 32 KiB of it.
        base64: String,
    },
    /// The last: it is done.
    Done {
        /// What it came to.
        outcome: Outcome,
        /// What was asked of the store.
        traffic: Traffic,
        /// The most memory that the worker held, in bytes (its resident set's peak).
        memory_bytes_peak: u64,
    },
    /// The last: it is not done.
    Failed {
        /// What to decide by.
        reason: Reason,
        /// For people. Holds no secret.
        detail: String,
    },
}

impl Line {
    /// The same with its text for people as it may be shown: a worker names files of a cell, and runs as the cell's user.
    pub(crate) fn told(self) -> Self {
        match self {
            Self::Failed { reason, detail } => Self::Failed { reason, detail: plain(&detail) },
            Self::Unanswered { reason, detail } => Self::Unanswered { reason, detail: plain(&detail) },
            other => other,
        }
    }
}

/// A snapshot, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLine {
    /// Its whole id.
    pub id: String,
    /// When it was taken, RFC 3339 in UTC.
    pub time: String,
    /// Its labels; `None` where it is not Berth's (somebody wrote it with `restic`).
    pub labels: Option<Labels>,
    /// Its tree hash.
    pub tree: Option<String>,
    /// The snapshot before.
    pub parent: Option<String>,
    /// Files, folders and links.
    pub entries: Option<u64>,
    /// Bytes of its files.
    pub bytes: Option<u64>,
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of `check_store`.
    StoreChecked(StoreCheck),
    /// Of `init`.
    Initialised,
    /// Of `snapshot`.
    Taken(Taken),
    /// Of `import`.
    Imported(Imported),
    /// Of `restore`.
    Restored(Restored),
    /// Of `verify`.
    Verified(Verified),
    /// Of `check`.
    Checked(Checked),
    /// Of `prune`.
    Pruned(Pruned),
    /// Of `show`.
    Shown(SnapshotLine),
    /// Of `folders`, `read`, `objects`, `fetch`, `list`, `ls`, `diff`, `dump` and `tar`: all lines of it were written. Of `put`
    /// and `remove`: it is done.
    Told {
        /// How many lines, asks or objects, or how many bytes of a `dump`, `tar`, `fetch` or `put`.
        count: u64,
    },
}
