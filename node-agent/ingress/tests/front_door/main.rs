//! The front door as a whole, in this process: real sockets, a node agent and cells that the tests play.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

mod cell_page;
mod hold;
mod inside;
mod people;
mod repository;
mod tabs;
mod world;
