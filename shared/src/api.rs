//! The JSON of the coordinator's HTTP API under `/v1`, shared by the coordinator and the `berth` command line.
//!
//! Times are RFC 3339 in UTC, sizes are bytes, ids are text with a prefix. Unknown fields in a request are an error.

mod nodes;
mod snapshots;

use serde::{Deserialize, Serialize};

use crate::cell::{CellSize, CellStatus, IdleRest, ImageRef, SleepStatus, SleepTerms, Workload};
use crate::doctor::Finding;
use crate::ids::{CellId, Generation, NodeName, RequestId, Slug, TokenId, UserId};
use crate::problem::Code;
use crate::secret::Secret;
use crate::snapshot::{Paths, Snapshot, SnapshotId};
use crate::time::{Millis, UnixMs};
use crate::units::{Bytes, MilliCpus};

pub use nodes::{
    CoordinatorKey, DeclareOff, NextCoordinatorKey, Node, NodeLease, NodeStanding, NodeSwap, Purged,
    SwitchKey,
};
pub use snapshots::{
    CheckRepository, EntryChange, KeyPurged, OrphanSnapshot, RepositoryAccess, RepositoryChecked,
    RepositoryPruned, SetRetention, SnapshotChange, SnapshotDetail, SnapshotEntry, Snapshots, UserRetention,
};

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
    /// Only these files and folders; all of it where they are not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Paths>,
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
