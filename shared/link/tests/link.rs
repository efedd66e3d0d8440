//! The link on real UDP sockets of the loopback interface.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic in a test is the report; clippy allows this in test functions, not in what they share"
)]

mod link {
    mod frames;
    mod handshake;
    mod nodes;
    mod peers;
    mod support;
}
