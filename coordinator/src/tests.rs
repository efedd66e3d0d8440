//! The coordinator as a whole, in this process: real HTTP, a real journal in a temporary folder, nodes over real
//! QUIC. Ports are chosen by the system.

mod api;
pub(crate) mod bucket;
mod docs;
mod imports;
mod key_backups;
mod keys;
mod links;
mod paths;
mod personal;
mod repositories;
mod restarts;
mod sleep;
pub(crate) mod snapshots;
mod stores;
mod upkeep;
pub(crate) mod world;
