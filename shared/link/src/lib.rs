//! The link on real sockets: QUIC by quinn, TLS 1.3 by rustls, and the drivers of the pure machines of
//! [`berth_shared::link`].
//!
//! Identity is an Ed25519 key and nothing else. TLS carries it as a raw public key (RFC 7250), every frame is signed
//! with it again and bound to its connection. The dialling side pins the coordinator's key; the listening side takes
//! any key and leaves it to the first frame whether its holder is let in.
//!
//! | module | decides |
//! |---|---|
//! | [`keyfile`] | how a private key lies on disk, and which files are refused |
//! | [`tls`] | what the handshake proves |
//! | [`close`] | the codes and names that a connection is closed with |
//! | [`stream`] | frames on the control stream: lengths, limits, what survives a cancelled wait |
//! | [`dial`](mod@dial) | from `host:port` and a key to a connection |
//! | [`listen`](mod@listen) | how many strangers are listened to at once, and for how long |
//! | [`join`](mod@join) | a node's first contact, once |
//! | [`clock`] | the clock of deadlines |
//! | `failpoint` | where tests have the process die (debug builds) |
//! | [`drive`] | the node's session, again and again; the coordinator's end of one connection |

pub mod clock;
pub mod close;
pub mod dial;
pub mod drive;
mod failpoint;
pub mod join;
pub mod keyfile;
pub mod listen;
pub mod stream;
pub mod tls;
mod transport;

pub use clock::{BootClock, Clock, boot_now};
pub use dial::{Connected, DialError, Target, dial};
pub use drive::node::{LinkState, LinkStatus, NodeDriver, NodeDriverError, NodeSide};
pub use drive::peer::{FirstFrame, Judge, PeerEnd, PeerEnded, Stops, run_peer};
pub use failpoint::POINTS as FAILPOINTS;
pub use join::{JoinError, Joined, join};
pub use keyfile::KeyFileError;
pub use listen::{Handshaken, Incoming, ListenError, ListenLimits, Listener, listen};
pub use stream::{FrameReceiver, FrameSender, LinkError};
