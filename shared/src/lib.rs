//! What Berth's daemons agree on: names, units, the cell's spec and status, the bytes on the wire and the
//! state machines that speak them. No I/O, no clock, no randomness: callers pass `now` and random numbers in.
//!
//! | module | decides |
//! |---|---|
//! | [`ids`] | what a slug, a node name, a cell id looks like |
//! | [`units`], [`money`], [`time`] | integers that cannot be mixed up |
//! | [`cell`] | what a cell shall be (`CellSpec`) and what it is (`CellStatus`, with *unknown*) |
//! | [`problem`] | every error code that a person can meet, its status and what to do |
//! | [`secret`], [`signing`], [`credential`] | keys, signatures, join tokens, bearer tokens, login tickets |
//! | [`snapshot`] | what is known of a snapshot of a cell's data, and what becomes of it at the coordinator |
//! | [`repository`] | what a node needs to write and read a user's snapshots: bucket, place, key |
//! | [`codec`], [`wire`] | bincode behind one door; the signed envelope and the link's frames |
//! | [`link`] | the link's two state machines: the node's session and the coordinator's |
//! | [`doctor`] | the words of a check-up: findings, how bad, what to do
//! | [`door`] | what the node agent and its ingress say to each other |
//! | [`json5_value`] | configuration that users write, read without trust |
//! | [`why`] | how a cell's state is told to a person: an operator, or whose cell it is |
//! | [`backoff`] | how long to wait before trying again |
//! | [`api`] | the JSON of the coordinator's HTTP API |

pub mod api;
pub mod backoff;
pub mod cell;
pub mod codec;
pub mod credential;
pub mod doctor;
pub mod door;
pub mod ids;
pub mod json5_value;
pub mod link;
pub mod money;
pub mod problem;
pub mod repository;
pub mod secret;
pub mod signing;
pub mod snapshot;
pub mod time;
pub mod units;
pub mod why;
pub mod wire;
