//! Decisions of the node agent and its ingress, with no I/O, no clock and no randomness.

pub mod front;
pub mod may_wake;
