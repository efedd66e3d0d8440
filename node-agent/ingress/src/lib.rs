//! Berth's front door: one unprivileged process that routes a user's host name to their cell, and holds requests
//! while the cell wakes. It has no container engine, no coordinator and no truth of its own: the node agent pushes
//! a route table through a Unix socket ([`berth_shared::door`]), and all it can ask for is a wake. While the agent is
//! away it goes on with what it knows.
//!
//! | module | decides |
//! |---|---|
//! | [`config`] | what can be configured, its bounds |
//! | `answer` | every answer that the ingress gives itself |
//! | `bell` | when a wake is asked for: once per cell and repeat, however many requests are held |
//! | `gate` | one cell: may a request go in now, who is held, what a fence sees |
//! | `table` | which host name leads to which cell |
//! | `door` | the connection to the node agent |
//! | `front_desk` | one request, from its head to its answer |
//! | `login` | login links, sessions, logging out |
//! | `repository` | a user's own repository, read with stock `restic` |
//! | `cell_page` | a user's own page: what their cell is doing, and why |
//! | `asking` | requests to the node agent, for those two |
//! | `session`, `redeemed` | the cookie's MAC; which links were used |
//! | `pass` | one request into a cell and its answer out |
//! | `upstream` | connections to cells, pooled |
//! | `tunnel`, `held_bytes` | WebSockets; how much of them is kept over a freeze |
//! | `body`, `stall` | bodies and sockets that must not stand still |
//! | `listener` | accepting, limits, drain |
//! | [`metrics`] | what is counted |
//! | [`daemon`] | puts the parts together |

mod answer;
mod asking;
mod bell;
mod body;
mod cell_page;
pub mod config;
pub mod daemon;
mod door;
mod front_desk;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod held_bytes;
mod listener;
mod login;
pub mod metrics;
mod pass;
mod redeemed;
mod repository;
mod session;
mod stall;
mod table;
mod tunnel;
mod upstream;
