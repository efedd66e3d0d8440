//! The JSON of the coordinator's HTTP API under `/v1`, shared by the coordinator and the `berth` command line.
//!
//! Times are RFC 3339 in UTC, sizes are bytes, ids are text with a prefix. Unknown fields in a request are an error.

use serde::{Deserialize, Serialize};

use crate::cell::{CellSize, CellStatus, IdleRest, ImageRef, Workload};
use crate::ids::{CellId, Generation, NodeId, NodeName, RequestId, Slug, TokenId, UserId};
use crate::problem::Code;
use crate::secret::Secret;
use crate::time::{Millis, UnixMs};
use crate::units::{Bytes, MilliCpus};
use crate::wire::{NodeFacts, NodeLoad};

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
    /// How many bearer tokens let a program in.
    pub bearers: u32,
    /// Why this node: one line per node that was looked at. Only in the answer to the creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placement: Vec<String>,
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
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names it.
    pub id: TokenId,
    /// For which node.
    pub node: NodeName,
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

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// For ever.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// When it joined.
    pub joined_at: UnixMs,
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
    /// Cells that live here.
    pub cells: u32,
    /// Memory promised to them.
    pub memory_promised: Bytes,
    /// Disk promised to them.
    pub disk_promised: Bytes,
    /// Swap promised to them.
    pub swap_promised: Bytes,
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
}

/// Puts a cell to sleep: `POST /v1/cells/{slug}/sleep`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SleepRequest {
    /// Pause instead of stop.
    #[serde(default)]
    pub freeze: bool,
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
