//! Decisions of the node agent and its ingress, with no I/O, no clock and no randomness.
//!
//! | module | decides |
//! |---|---|
//! | [`agent`] | which cells there are, which may start now, who gets which answer |
//! | [`cell`] | the lifecycle of one cell |
//! | [`memory`] | what is remembered across the agent's own death |
//! | [`may_wake`] | who may reach and wake a cell |
//! | [`front`] | which headers, paths and methods mean what, per workload |
//! | [`slot`] | which uid and which subnet a cell has on its node |
//! | [`workload`] | everything that is particular to OpenClaw |

pub mod agent;
pub mod cell;
pub mod front;
pub mod may_wake;
pub mod memory;
pub mod slot;
pub mod workload;
