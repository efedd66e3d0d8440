//! Berth's coordinator: which user lives on which node, decided once and written down before it takes effect.
//!
//! ```text
//!   berth (cli) ── HTTP /v1 ──> http ──command──> store: one writer ──group, one fdatasync──> journal
//!                                 │                      │ the new state, to all who watch
//!                                 v                      v
//!                                hub <──────────────── link <── QUIC ── nodes
//!                  who is connected, what they said,   a judge for first frames,
//!                  commands that wait for an answer    desired states pushed on change
//! ```
//!
//! | module | decides |
//! |---|---|
//! | [`config`] | which settings there are, and which fit together |
//! | [`daemon`] | the order of start and stop |
//! | [`install`] | the first start: one operator key |
//! | [`store`] | the one writer of fleet and journal |
//! | [`hub`] | sessions, observations, commands that wait |
//! | [`link`] | who may open a session, and what it is sent |
//! | [`http`] | the API: paths, bodies, who may call |
//! | [`metrics`] | what is counted |
//! | [`cli`] | the `berth` command line |

pub mod cli;
pub mod config;
pub mod daemon;
pub mod http;
pub mod hub;
pub mod install;
pub mod link;
pub mod metrics;
pub mod store;
mod system;

#[cfg(test)]
mod tests;
