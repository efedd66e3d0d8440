//! Decisions of the node agent and its ingress, with no I/O, no clock and no randomness.
//!
//! | module | decides |
//! |---|---|
//! | [`agent`] | which cells there are, which may start now, who gets which answer |
//! | [`burn`] | when a cell's use of CPU is worth telling
//! | [`cell`] | the lifecycle of one cell |
//! | [`lease`] | how long the node may work alone |
//! | [`memory`] | what is remembered across the agent's own death |
//! | [`may_wake`] | who may reach and wake a cell |
//! | [`heads`] | what follows from the coordinator's word on users' repositories |
//! | [`restic`] | what of restic's REST interface an owner gets of their repository |
//! | [`front`] | which headers, paths and methods mean what, per workload |
//! | [`frames`] | where a WebSocket's frames and messages end |
//! | [`socket`] | what of a WebSocket goes on, what is kept over a freeze, what is said meanwhile |
//! | [`schedule`] | when a cell is woken for its own schedule, and how long it is kept up |
//! | [`slot`] | which uid and which subnet a cell has on its node |
//! | [`workload`] | everything that is particular to OpenClaw |

pub mod agent;
pub mod burn;
pub mod cell;
pub mod cold;
pub mod disk;
pub mod frames;
pub mod front;
pub mod heads;
pub mod lease;
pub mod may_wake;
pub mod memory;
pub mod ram;
pub mod restic;
pub mod schedule;
pub mod slot;
pub mod snapshots;
pub mod socket;
pub mod swap;
pub mod workload;
