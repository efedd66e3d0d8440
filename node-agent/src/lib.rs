//! Berth's node agent: carries out what `berth_node_agent_core` decides.
//!
//! | module | does |
//! |---|---|
//! | [`daemon`] | puts the parts together |
//! | [`driver`] | owns the agent machine and the journal: journal first, then act |
//! | [`hands`] | carries each operation out with real parts |
//! | [`runtime`] | the container engine |
//! | [`snapshots`] | the workers that take and restore snapshots |
//! | [`reading`] | users' repositories, read by their owners |
//! | [`swap`] | the node's swap, and whether cells can be frozen onto it |
//! | [`folder`], [`quota`] | a cell's folder, which is hostile, and its sized disk |
//! | [`netrules`] | the packet rules between cells, the node and the world |
//! | [`door`] | the ingress's connection |
//! | [`link`], [`join`] | the coordinator's connection |
//! | [`cell_http`] | probes and the handshake |
//! | [`doctor`] | the check-up of this machine, and what to do about each finding
//! | [`store`] | the node's journal |
//! | [`facts`], [`metrics`], [`notes`] | what is measured, counted and logged |
//! | [`failpoint`] | where tests kill the agent (debug builds) |
//! | [`config`] | what can be configured |

pub mod cell_http;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod door;
pub mod driver;
pub mod facts;
pub mod failpoint;
pub mod folder;
#[doc(hidden)]
pub mod fuzz;
pub mod hands;
pub mod join;
pub mod keys;
pub mod link;
pub mod metrics;
pub mod netrules;
mod notes;
mod one_request;
pub mod projection;
pub mod quota;
pub mod reading;
pub mod runtime;
pub mod snapshots;
pub mod store;
pub mod swap;
