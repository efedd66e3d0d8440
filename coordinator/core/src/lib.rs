//! The coordinator's decisions, with no I/O, no clock and no randomness: callers pass `now`, ids and secrets in.
//!
//! ```text
//! command ── Fleet::decide ──> events ── journal ──> Fleet::apply ──> desired state of each node
//!                  │
//!                  └─> Refusal: a code, and in words what was in the way
//! ```
//!
//! | module | decides |
//! |---|---|
//! | [`actor`] | who gave a command |
//! | [`command`] | what can be asked of the fleet, and how a refusal is told |
//! | [`event`] | the facts that follow, and their bytes in the journal |
//! | [`fleet`] | the state: users, nodes, tokens, assignments with their generations |
//! | [`placement`] | which node a cell goes to, and why |
//! | [`keys`] | what can be asked about keys: rotation, revocation, locks, joining again |
//! | [`liveness`] | what was last heard of nodes and cells: asked for again, never journaled |
//! | [`silence`] | how long nodes were not heard |
//! | [`moves`] | when users of a node that is away may be given to another one |
//! | [`snapshots`] | what can be asked about users' repositories: keys, HEAD, orphans |
//! | [`reports`] | how many reports of one node are written down at a time |
//! | [`rebuild`] | HEADs out of a listing of the bucket |
//! | [`personal`] | what of facts is personal, and how it is carried: sealed |
//! | [`upkeep`] | when users' repositories are pruned and checked, and when a prune has to wait |
//! | [`pending`] | commands that were sent to a node and wait for their answer |
//! | [`check_up`] | what can be said of a node's and the fleet's health

pub mod actor;
pub mod check_up;
pub mod command;
pub mod event;
pub mod fleet;
pub mod keys;
pub mod liveness;
pub mod moves;
pub mod pending;
pub mod personal;
pub mod placement;
pub mod rebuild;
pub mod reports;
pub mod silence;
pub mod snapshots;
pub mod upkeep;

pub use actor::Actor;
pub use command::{Command, Refusal};
pub use event::{Event, Fact};
pub use fleet::Fleet;
