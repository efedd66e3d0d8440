//! Snapshots of users' data, their repositories and what opens them.

use serde::{Deserialize, Serialize};

use crate::cell::Workload;
use crate::ids::{CellId, Generation, KeyId, NodeName, Slug, UserId};
use crate::secret::Secret;
use crate::snapshot::{Retention, Snapshot};
use crate::time::UnixMs;

/// What the coordinator knows of a user's snapshots: `GET /v1/users/{slug}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// Whose.
    pub user: UserId,
    /// Its name; `None` where HEAD was rebuilt and nobody has taken the user over yet.
    pub slug: Option<Slug>,
    /// Names the key of the repository.
    pub key: KeyId,
    /// The newest.
    pub head: Option<Snapshot>,
    /// Those behind it, newest first, as far as they are remembered.
    pub history: Vec<Snapshot>,
    /// Snapshots that did not become HEAD, because their generation was not in force.
    pub orphans: Vec<OrphanSnapshot>,
}

/// How many of a user's snapshots a prune leaves: `GET`, `PUT` and `DELETE /v1/users/{slug}/retention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRetention {
    /// Whose.
    pub user: UserId,
    /// Was it set for this user? Else it is what the coordinator's config says of all.
    pub own: bool,
    /// What is kept.
    pub keep: Retention,
}

/// Sets how many of a user's snapshots a prune leaves; what is not given stays as it is in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetRetention {
    /// The newest so many, 1 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u16>,
    /// And the newest one of each of so many hours in which there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u16>,
    /// Of days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u16>,
    /// Of weeks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u16>,
    /// Of months.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u16>,
}

impl SetRetention {
    /// What is kept then, where this was in force before.
    pub fn over(self, before: Retention) -> Retention {
        Retention {
            last: self.last.unwrap_or(before.last),
            hourly: self.hourly.unwrap_or(before.hourly),
            daily: self.daily.unwrap_or(before.daily),
            weekly: self.weekly.unwrap_or(before.weekly),
            monthly: self.monthly.unwrap_or(before.monthly),
        }
    }
}

/// A snapshot of a generation that was not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanSnapshot {
    /// Who took it; `None` where it was found in a listing, or the node is gone.
    pub node: Option<NodeName>,
    /// The generation that was in force; `None`: there was none.
    pub current: Option<Generation>,
    /// Where it lies in the bucket; `None` where the coordinator has none any more.
    pub prefix: Option<String>,
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// One snapshot, as its repository has it: `GET /v1/users/{slug}/snapshots/{id}`. What Berth adds to a snapshot is `None`
/// of one that somebody wrote with `restic`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDetail {
    /// Whose.
    pub user: UserId,
    /// Its whole id.
    pub id: String,
    /// Is it the user's newest?
    pub head: bool,
    /// When it was taken, RFC 3339 in UTC.
    pub taken_at: String,
    /// Of which cell.
    pub cell: Option<CellId>,
    /// Under which assignment.
    pub generation: Option<Generation>,
    /// Grows with each snapshot of the assignment.
    pub seq: Option<u64>,
    /// What the cell ran.
    pub image: Option<String>,
    /// What the image holds.
    pub workload: Option<Workload>,
    /// Hash over the files.
    pub tree: Option<String>,
    /// The snapshot before it, if it was made on top of one.
    pub parent: Option<String>,
    /// Files, folders and links.
    pub entries: Option<u64>,
    /// Bytes of its files.
    pub bytes: Option<u64>,
}

/// One entry of a snapshot: `GET /v1/users/{slug}/snapshots/{id}/files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Relative to the cell's folder.
    pub path: String,
    /// `dir`, `file` or `symlink`.
    pub kind: String,
    /// Permission bits.
    pub mode: u32,
    /// Of a file.
    pub bytes: u64,
    /// When its content changed last, RFC 3339 in UTC.
    pub modified: Option<String>,
    /// Of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// One difference between two snapshots: `GET /v1/users/{slug}/snapshots/{id}/diff?to=ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChange {
    /// Relative to the cell's folder.
    pub path: String,
    /// How.
    pub how: EntryChange,
    /// Of the file in the older one; 0 where it is not there or no file.
    pub bytes_before: u64,
    /// Of the file in the newer one.
    pub bytes_after: u64,
}

/// In what way an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryChange {
    /// Only in the newer one.
    Added,
    /// Only in the older one.
    Removed,
    /// Another content or target.
    Content,
    /// Another kind of thing.
    Kind,
    /// Only mode, owner, time or attributes.
    Metadata,
}

/// What a prune came to: `POST /v1/users/{slug}/prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryPruned {
    /// Whose repository.
    pub user: UserId,
    /// Snapshots that are gone.
    pub forgotten: u64,
    /// Snapshots that there are now.
    pub kept: u64,
    /// Bytes that were removed from the bucket.
    pub bytes_removed: u64,
    /// Bytes that no snapshot needs any more, and that are removed when they have waited for 30 days.
    pub bytes_marked: u64,
}

/// Asks for a check: `POST /v1/users/{slug}/check`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRepository {
    /// How much of the data is read, in percent; `None`: as much as by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_percent: Option<u8>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryChecked {
    /// Whose repository.
    pub user: UserId,
    /// Nothing that a snapshot needs is missing or damaged, as far as it was looked at.
    pub sound: bool,
    /// What was found, worst first, at most 20.
    pub findings: Vec<String>,
}

/// What opens a user's repository with stock `restic`: `POST /v1/users/{slug}/repository-password`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryAccess {
    /// Whose.
    pub user: UserId,
    /// Which key.
    pub key: KeyId,
    /// Where the repository is in the bucket.
    pub prefix: String,
    /// The password.
    pub password: Secret,
    /// Where the user reads it with a bearer token of their own, as `restic -r` takes it; `None` of one who was removed.
    #[serde(default)]
    pub url: Option<String>,
}

/// A user's keys were destroyed: `POST /v1/users/{slug}/purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPurged {
    /// Whose.
    pub user: UserId,
    /// Until then a backup of the key store may be kept that holds one; `None`: there is none.
    pub backups_until: Option<UnixMs>,
    /// Nobody removes backups from the bucket then: the coordinator has no credential that may delete.
    #[serde(default)]
    pub backups_stay: bool,
}
