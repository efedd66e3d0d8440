//! The codes and names that a connection is closed with. They travel, so they never change their meaning.

use quinn::{Connection, VarInt};

/// Application error code of a QUIC connection close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// All was said: a join was answered, a session is over.
    Done = 0,
    /// A frame could not be accepted; the reason is [`berth_shared::wire::FrameError::kind`] or another error's kind.
    BadFrame = 1,
    /// The handshake or the first frame took too long.
    Late = 2,
    /// The peer was silent for too long.
    Silent = 3,
    /// The first frame was judged and refused; the reason is the problem's code.
    Rejected = 4,
    /// A good frame at the wrong moment.
    OutOfOrder = 5,
    /// This side is shutting down.
    ShuttingDown = 6,
    /// The peer does not read what it is sent.
    Slow = 7,
    /// Too many connections wait to be let in.
    Busy = 8,
    /// This side gives the connection up; a new one may follow.
    GivenUp = 9,
    /// The peer sends more than it may.
    TooMuch = 10,
    /// The peer's key is not good any more.
    Revoked = 11,
}

impl CloseCode {
    /// The code as QUIC carries it.
    pub const fn varint(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// A short name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::BadFrame => "bad_frame",
            Self::Late => "late",
            Self::Silent => "silent",
            Self::Rejected => "rejected",
            Self::OutOfOrder => "out_of_order",
            Self::ShuttingDown => "shutting_down",
            Self::Slow => "slow",
            Self::Busy => "busy",
            Self::GivenUp => "given_up",
            Self::TooMuch => "too_much",
            Self::Revoked => "revoked",
        }
    }
}

/// Closes a connection at once; what is not yet sent is lost. `reason` is a short name, never outside text.
pub fn close(connection: &Connection, code: CloseCode, reason: &'static str) {
    connection.close(code.varint(), reason.as_bytes());
}
