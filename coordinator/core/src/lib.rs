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
//! | [`liveness`] | what was last heard of nodes and cells: asked for again, never journaled |
//! | [`pending`] | commands that were sent to a node and wait for their answer |
//! | [`why`] | how a cell's state is told to a person |

pub mod actor;
pub mod command;
pub mod event;
pub mod fleet;
pub mod liveness;
pub mod pending;
pub mod placement;
pub mod why;

pub use actor::Actor;
pub use command::{Command, Refusal};
pub use event::{Event, Fact};
pub use fleet::Fleet;
