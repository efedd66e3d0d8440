//! What end-to-end tests stand on: a whole Berth on this machine, made of the real programs.
//!
//! | module | what |
//! |---|---|
//! | [`world`] | coordinator, ingress, agent and users on a folder of their own; cleans up whatever happens |
//! | [`world::machine`] | one more machine with a node: Docker, agent and front door of its own |
//! | [`world::daemon`] | one program: killed, ended, started again, its words read |
//! | [`world::api`] | the coordinator's HTTP API, and the command line |
//! | [`world::front`] | what a user's browser and programs do: requests, streams, WebSockets, logins |
//! | [`world::engine`] | what Docker itself says of containers, networks and events |
//! | [`world::metrics`] | what a daemon counts |
//! | [`world::claw`] | the real OpenClaw in a cell: its socket, its admin RPC, work that is left behind |
//! | [`world::model`] | a model for the real OpenClaw, which counts who asked |
//! | [`world::wait`] | waiting for a condition, with a bound |
//! | [`lab`] | what some stories need beside: Docker behind a proxy, an internet of one's own, small disks |
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

pub mod lab;
pub mod world;
