//! The JSON of the coordinator's HTTP API under `/v1`, shared by the coordinator and the `berth` command line.
//!
//! Times are RFC 3339 in UTC, sizes are bytes, ids are text with a prefix. Unknown fields in a request are an error.

use serde::{Deserialize, Serialize};

use crate::cell::{CellSize, CellStatus, IdleRest, ImageRef, SleepStatus, SleepTerms, Workload};
use crate::doctor::Finding;
use crate::ids::{CellId, Generation, KeyId, NodeId, NodeName, RequestId, Slug, TokenId, UserId};
use crate::problem::Code;
use crate::secret::Secret;
use crate::signing::PublicKey;
use crate::snapshot::{Retention, Snapshot, SnapshotId};
use crate::time::{Millis, UnixMs};
use crate::units::{Bytes, MilliCpus};
use crate::wire::{self, LeftBehind, NodeFacts, NodeLoad};

/// Content type of a problem body (RFC 9457).
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// An error's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemBody {
    /// A URI that names the kind of problem: `urn:berth:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The stable code.
    pub code: Code,
    /// What to do about it.
    pub advice: String,
    /// Finds this request in the coordinator's log.
    pub request: RequestId,
}

/// A list of things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List<T> {
    /// The things, in a stable order.
    pub items: Vec<T>,
}

/// Creates a user: `POST /v1/users`. Everything but the slug has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The user's name. Checked by the server, so that the answer is `bad_slug` and not a JSON error.
    pub slug: String,
    /// Which image; the coordinator's default where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Which workload profile; `openclaw` where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// CPU limit in thousandths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpus>,
    /// Disk quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// What the cell does when idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<IdleRest>,
    /// Idle for how long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_after: Option<Millis>,
    /// Only on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// As this user, whose snapshots were found in the bucket after the journal was lost: it begins from its HEAD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_over: Option<UserId>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// For ever.
    pub id: UserId,
    /// The host name's first label.
    pub slug: Slug,
    /// `<slug>.<domain>`.
    pub host: String,
    /// When it was created.
    pub created_at: UnixMs,
    /// Its home cell.
    pub cell: CellId,
    /// Where the cell lives.
    pub node: NodeName,
    /// The assignment's fencing token.
    pub generation: Generation,
    /// How the cell's container is handled.
    pub workload: Workload,
    /// What it runs.
    pub image: ImageRef,
    /// Its limits.
    pub size: CellSize,
    /// What it does when idle.
    pub rest: IdleRest,
    /// Idle for how long.
    pub idle_after: Millis,
    /// What else is said of its sleep.
    #[serde(default)]
    pub sleep: SleepTerms,
    /// How many bearer tokens let a program in.
    pub bearers: u32,
    /// Its newest snapshot, if there is one.
    #[serde(default)]
    pub head: Option<Snapshot>,
    /// Why this node: one line per node that was looked at. Only in the answer to the creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placement: Vec<String>,
}

/// Gives a user another image: `PUT /v1/users/{slug}/image`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetImage {
    /// Which. Checked by the server, so that the answer is `bad_image` and not a JSON error.
    pub image: String,
}

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

/// A login link: `POST /v1/users/{slug}/login-link`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginLink {
    /// Path and query behind the user's host name; opens a page with one button.
    pub path: Secret,
    /// The whole URL as the installation's public address has it.
    pub url: Secret,
    /// Worthless after this, and after its first use.
    pub expires_at: UnixMs,
}

/// A bearer token: `POST /v1/users/{slug}/bearers`. Shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bearer {
    /// Send it as `Authorization: Bearer …`.
    pub token: Secret,
}

/// Makes a join token: `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The name that the node will have.
    pub node: String,
    /// How long it can be used; 15 minutes where not given, a day at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Millis>,
    /// For the machine of a node that is there already, and locked or revoked: it comes back as the same node.
    #[serde(default)]
    pub rejoin: bool,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names it.
    pub id: TokenId,
    /// For which node.
    pub node: NodeName,
    /// Does it let a machine in again as this node, which is there already?
    pub rejoin: bool,
    /// When it was made.
    pub created_at: UnixMs,
    /// Worthless after this.
    pub expires_at: UnixMs,
    /// When it was used, if it was.
    pub used_at: Option<UnixMs>,
    /// The token itself. Only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// How a node stands with its coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStanding {
    /// As it should be.
    Active,
    /// A join counter repeated: it keeps its cells and is given no new one, until an operator decides.
    Locked,
    /// Not let in any more.
    Revoked,
}

/// The coordinator's key on the link: `GET /v1/coordinator-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorKey {
    /// The key that nodes pin.
    pub key: PublicKey,
    /// The one that is to follow it, if one was announced.
    pub next: Option<NextCoordinatorKey>,
}

/// A key that is to follow the coordinator's present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextCoordinatorKey {
    /// Which.
    pub key: PublicKey,
    /// Since when it is announced.
    pub since: UnixMs,
    /// Nodes that hold it.
    pub stored: Vec<NodeName>,
    /// Nodes that do not yet. After the switch they have to join again.
    pub missing: Vec<NodeName>,
}

/// Takes the next key: `POST /v1/coordinator-key/switch`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchKey {
    /// Also when nodes do not hold it yet.
    #[serde(default)]
    pub anyway: bool,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// For ever.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// When it joined.
    pub joined_at: UnixMs,
    /// Its key on the link.
    pub key: PublicKey,
    /// Since when that is its key.
    pub key_since: UnixMs,
    /// Since when a new key is good beside it; the node has not used that one yet.
    pub next_key_since: Option<UnixMs>,
    /// Is it let in, and given new cells?
    pub standing: NodeStanding,
    /// Since when it is locked or revoked.
    pub standing_since: Option<UnixMs>,
    /// The version of the frames that its open session speaks.
    pub link_version: Option<u16>,
    /// Is a session open?
    pub connected: bool,
    /// When it was last heard.
    pub last_heard: Option<UnixMs>,
    /// Its clock minus the coordinator's, in milliseconds, as of the last hello.
    pub clock_offset_ms: Option<i64>,
    /// What it is made of.
    pub facts: NodeFacts,
    /// How it fares.
    pub load: Option<NodeLoad>,
    /// Its swap, and whether cells are frozen onto it; `None` before it has told, or where its agent is too old to tell.
    #[serde(default)]
    pub swap: Option<NodeSwap>,
    /// Cells that live here.
    pub cells: u32,
    /// Memory promised to them.
    pub memory_promised: Bytes,
    /// Disk promised to them.
    pub disk_promised: Bytes,
    /// Swap promised to them: what those that rest frozen need, where the node freezes.
    pub swap_promised: Bytes,
    /// How long it may work alone; `None` before its first session.
    pub lease: Option<NodeLease>,
    /// Since when it is known to be off, by an operator's word.
    pub off_since: Option<UnixMs>,
    /// Disks of cells that live on other nodes now, as last heard.
    pub left_behind: Vec<LeftBehind>,
}

/// A node's swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSwap {
    /// Are cells frozen here? Where not, those that should be are stopped.
    pub freezes: bool,
    /// By which file of the kernel their memory is pushed out; or why none is frozen.
    pub detail: String,
    /// Swap in all.
    pub total: Bytes,
    /// Swap that nothing lies in.
    pub free: Bytes,
    /// Written to it within a day.
    pub written_in_a_day: Bytes,
    /// What may be written within a day; `None` without end.
    pub budget: Option<Bytes>,
}

impl From<wire::NodeSwap> for NodeSwap {
    fn from(swap: wire::NodeSwap) -> Self {
        let freezes = swap.freezes.is_ok();
        let (Ok(detail) | Err(detail)) = swap.freezes;
        let wire::NodeSwap { total, free, written_in_a_day, budget, .. } = swap;
        Self { freezes, detail, total, free, written_in_a_day, budget }
    }
}

/// How long a node may work alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLease {
    /// After its last contact; `None` without end.
    pub length: Option<Millis>,
    /// Of a node that is not connected: after so long its users can be moved. `None`: not by itself.
    pub movable_in: Option<Millis>,
}

/// Says that a machine is off: `POST /v1/nodes/{name}/off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclareOff {
    /// Has to be true: whoever asks answers for it.
    #[serde(default)]
    pub node_is_off: bool,
}

/// Gives a user to another node: `POST /v1/users/{slug}/move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveUser {
    /// Only to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeName>,
    /// Also where no snapshot of the user is known, so that it begins with an empty folder.
    #[serde(default)]
    pub without_data: bool,
}

/// Disks that were destroyed: `DELETE /v1/nodes/{name}/left-behind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Which.
    pub purged: Vec<LeftBehind>,
    /// How many are there still: ask again.
    pub remaining: u32,
}

/// A cell: what it shall be and what was last heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Whose.
    pub user: Slug,
    /// Which.
    pub cell: CellId,
    /// Where.
    pub node: NodeName,
    /// Is the node connected? If not, the status is what was heard before.
    pub connected: bool,
    /// What the node said last; `None` when nothing was ever heard.
    pub status: Option<CellStatus>,
    /// What the node said last of its sleep; `None` when nothing was heard, or the node's agent is too old to tell.
    #[serde(default)]
    pub sleep: Option<SleepStatus>,
    /// When the user's newest snapshot was taken; `None` before the first.
    #[serde(default)]
    pub snapshot_at: Option<UnixMs>,
    /// An operator holds it awake until then, or did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awake_until: Option<UnixMs>,
    /// Why and since when an operator has cut it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

/// Cuts a cell off: `POST /v1/cells/{slug}/quarantine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineRequest {
    /// Why, in one line of at most 200 bytes. It is kept in the journal.
    pub reason: String,
}

/// A cell that is cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since when.
    pub since: UnixMs,
    /// The operator's words.
    pub reason: String,
}

/// Puts a cell to sleep: `POST /v1/cells/{slug}/sleep`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SleepRequest {
    /// Pause instead of stop.
    #[serde(default)]
    pub freeze: bool,
}

/// Sets a user's terms of sleep: `PUT /v1/users/{slug}/sleep`. What is not given stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSleep {
    /// How long the cell stays frozen before it is stopped, in milliseconds: from a minute to 365 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<Millis>,
    /// May it sleep although a channel of its own dials out, which nothing can wake it for?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_out_may_sleep: Option<bool>,
}

/// Holds a cell awake: `POST /v1/cells/{slug}/hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// For how long from now, in milliseconds: 30 days at the most.
    #[serde(rename = "for")]
    pub span: Millis,
}

/// Puts a cell's data back to a snapshot: `POST /v1/cells/{slug}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Its id, or `latest`.
    pub snapshot: String,
}

/// A cell whose data was put back: the answer to [`RestoreRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRestored {
    /// What somebody should look at.
    pub notes: Vec<String>,
    /// The cell, which has it.
    pub cell: Cell,
}

/// Data that a user brought along: `PUT /v1/users/{slug}/data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The snapshot that it became.
    pub snapshot: SnapshotId,
    /// Bytes of its files.
    pub bytes: Bytes,
    /// Files and folders in it.
    pub entries: u64,
    /// What the archive was taken for.
    pub layout: ImportedAs,
    /// Symbolic links that were left out.
    pub links: u64,
    /// Some of their names.
    pub left_out: Vec<String>,
    /// What opened the gateway that the data comes from, and does no more.
    pub rotated: Vec<String>,
    /// What somebody should look at.
    pub notes: Vec<String>,
    /// The cell, which has it.
    pub cell: Cell,
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportedAs {
    /// A state folder of OpenClaw.
    StateFolder,
    /// What `openclaw fleet backup` writes.
    FleetBackup,
    /// Files of another workload.
    Files,
}

/// Why a cell is as it is: `GET /v1/cells/{slug}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The cell.
    pub cell: Cell,
    /// The story in sentences, newest first.
    pub lines: Vec<String>,
}

/// Log lines: `GET /v1/cells/{slug}/logs?lines=N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Oldest first, secrets taken out.
    pub lines: Vec<String>,
}

/// The check-up: `GET /v1/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doctor {
    /// Of the coordinator's machine and of the fleet as a whole.
    pub coordinator: Vec<Finding>,
    /// Of each node, by name.
    pub nodes: Vec<NodeFindings>,
}

/// What was found about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFindings {
    /// Which.
    pub node: NodeName,
    /// What the coordinator sees of it, then what its agent found there.
    pub findings: Vec<Finding>,
}
