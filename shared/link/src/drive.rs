//! The drivers of [`berth_shared::link`]'s machines: they wait, read, write and ask; the machines decide.
//!
//! A driver is one future without tasks of its own; whoever starts it supervises it.

pub mod node;
pub mod peer;
