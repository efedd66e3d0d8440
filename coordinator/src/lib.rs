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
//! | [`bucket`] | whether the bucket can be used, and what to do when it cannot |
//! | [`config`] | which settings there are, and which fit together |
//! | [`daemon`] | the order of start and stop |
//! | [`install`] | the first start: one operator key |
//! | [`store`] | the one writer of fleet and journal |
//! | [`records`] | the journal as a person reads it |
//! | [`hub`] | sessions, observations, commands that wait |
//! | [`link`] | who may open a session, and what it is sent |
//! | [`keys`] | the coordinator's own key and the one that is to follow it |
//! | [`keystore`] | where users' repository keys and record keys lie, how they are wrapped, and how they end |
//! | [`key_backups`] | when the key store is backed up in the bucket, and how it comes back from there |
//! | [`personal`] | how personal texts of the journal are sealed, read and erased |
//! | [`heads`] | HEADs rebuilt from a listing of the bucket |
//! | [`vaults`] | users' repositories: keys made, told to nodes, destroyed |
//! | [`repositories`] | workers that look into users' repositories, and what they may cost |
//! | [`upkeep`] | prunes and checks of users' repositories, by time and on demand |
//! | [`http`] | the API: paths, bodies, who may call |
//! | [`metrics`] | what is counted |
//! | [`failpoint`] | where tests have it die (debug builds) |
//! | [`cli`] | the `berth` command line |
//! | [`fuzz`] | private parsers, for the fuzz targets |

pub mod bucket;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod failpoint;
pub mod fuzz;
pub mod heads;
pub mod http;
pub mod hub;
pub mod install;
pub mod key_backups;
pub mod keys;
pub mod keystore;
pub mod link;
pub mod metrics;
pub mod personal;
pub mod records;
pub mod repositories;
pub mod store;
mod system;
pub mod upkeep;
pub mod vaults;

pub use system::wall_now;

#[cfg(test)]
mod tests;
