//! What some stories need beside a [`World`](crate::world::World): Docker behind a proxy that can be closed, the door's
//! wire tapped, an internet of one's own, images that only a registry has, small disks, and raw HTTP.
//!
//! | module | what |
//! |---|---|
//! | [`engine_proxy`] | Docker's API through a socket of the test: counted, refused on demand, gone on demand |
//! | [`tap`] | counts the bytes between ingress and agent |
//! | [`internet`] | a network namespace with addresses of everywhere, reachable from cells and by nobody else |
//! | [`relay`] | the line between one node and the coordinator, to be cut |
//! | [`kills`] | how often daemons are killed at each failpoint, written down for `scripts/kills` |
//! | [`registry`] | images that only a registry has, which is `berth-test-registry` |
//! | [`small_disk`] | a file system that can be filled |
//! | [`raw`] | HTTP/1.1 by hand: connections that are kept, requests that no library would send |
//! | [`shell`] | programs of the machine |

pub mod engine_proxy;
pub mod internet;
pub mod kills;
pub mod raw;
pub mod registry;
pub mod relay;
pub mod shell;
pub mod small_disk;
pub mod tap;
