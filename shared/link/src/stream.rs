//! Frames on the control stream: `length u32 BE | envelope`, both ways, for the connection's life.
//!
//! Waiting and progress are apart, so that a driver may drop any wait in a `select!`: [`FrameReceiver::recv`] keeps
//! what it has read so far, [`FrameSender::queue`] never waits, and [`FrameSender::flush`] goes on where it was left.
//! Two peers that both send much keep reading meanwhile and cannot block each other.

#[doc(hidden)]
pub mod assembly;

use std::collections::VecDeque;
use std::marker::PhantomData;

use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{
    BINDING_LABEL, ChannelBinding, ENVELOPE_BYTES_MAX, FRAMES_VERSION_MIN, FrameError, Opener, Sealer,
    StreamKind, Versioned,
};
use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::close::CloseCode;
use assembly::{Assembly, LENGTH_BYTES};

/// Largest envelope of a peer that is not let in yet: a join or a hello is well below 2 KiB.
pub const STRANGER_ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// What may wait to be sent: two frames of the largest kind. A peer that is further behind does not read.
pub const OUTBOX_BYTES_MAX: usize = 2 * (ENVELOPE_BYTES_MAX + LENGTH_BYTES);

/// Why no more frames go over a control stream. Each of these ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A frame came that is not acceptable, or one could not be made.
    #[error("a frame was refused")]
    Frame(#[source] FrameError),
    /// A length prefix announced more than is read at this point.
    #[error("a frame of {length} bytes was announced, at most {limit} are read here")]
    Announced {
        /// What was announced.
        length: u32,
        /// The limit at this point.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    CutShort,
    /// The peer ended the stream behind a whole frame.
    #[error("the peer has ended the stream")]
    Ended,
    /// The stream or its connection broke while reading.
    #[error("the control stream could not be read")]
    Read(#[source] ReadError),
    /// The stream or its connection broke while writing.
    #[error("the control stream could not be written")]
    Write(#[source] WriteError),
    /// [`OUTBOX_BYTES_MAX`] is reached.
    #[error("the peer does not read what it is sent")]
    PeerSlow,
}

impl LinkError {
    /// A short name for metrics and close reasons.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.kind(),
            Self::Announced { .. } => "too_large",
            Self::CutShort => "cut_short",
            Self::Ended => "ended",
            Self::Read(_) => "read",
            Self::Write(_) => "write",
            Self::PeerSlow => "peer_slow",
        }
    }

    /// The code to close the connection with.
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Frame(_) | Self::Announced { .. } | Self::CutShort => CloseCode::BadFrame,
            Self::Ended | Self::Read(_) | Self::Write(_) => CloseCode::GivenUp,
            Self::PeerSlow => CloseCode::Slow,
        }
    }

    /// Did the peer break the rules, in contrast to a connection that was merely lost?
    pub const fn is_misbehaviour(&self) -> bool {
        matches!(self.close_code(), CloseCode::BadFrame)
    }
}

/// The TLS exporter's value that binds frames to this connection.
pub(crate) fn channel_binding(connection: &quinn::Connection) -> ChannelBinding {
    let mut binding = [0; 32];
    connection
        .export_keying_material(&mut binding, BINDING_LABEL, b"")
        .expect("32 bytes are within the exporter's limit of 255 hashes (RFC 8446, section 7.5)");
    ChannelBinding(binding)
}

/// Sends frames of one type.
#[derive(Debug)]
pub struct FrameSender<T> {
    stream: SendStream,
    sealer: Sealer,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    sent_bytes: u64,
    /// The version that the session speaks.
    spoken: u16,
    frames: PhantomData<fn(&T)>,
}

impl<T: Serialize + Versioned> FrameSender<T> {
    pub(crate) fn new(stream: SendStream, key: SigningKey, binding: ChannelBinding) -> Self {
        let sealer = Sealer::new(key, StreamKind::Control, binding);
        Self {
            stream,
            sealer,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            sent_bytes: 0,
            spoken: FRAMES_VERSION_MIN,
            frames: PhantomData,
        }
    }

    /// From now on frames up to this version go out: the welcome was sent, or came. Before that only those that every
    /// version has.
    pub const fn speak(&mut self, version: u16) {
        self.spoken = version;
    }

    /// The version that the session speaks.
    pub const fn spoken(&self) -> u16 {
        self.spoken
    }

    /// Signs a frame and puts it behind those that wait to be sent.
    ///
    /// # Errors
    /// The frame is too large or of a newer version than is spoken, or [`OUTBOX_BYTES_MAX`] is reached. Nothing of it is
    /// sent then.
    pub fn queue(&mut self, frame: &T) -> Result<(), LinkError> {
        if self.outbox_bytes >= OUTBOX_BYTES_MAX {
            return Err(LinkError::PeerSlow);
        }
        let since = frame.since();
        if since > self.spoken {
            return Err(LinkError::Frame(FrameError::Newer { since, spoken: self.spoken }));
        }
        let envelope = self.sealer.seal(frame).map_err(LinkError::Frame)?;
        let length = u32::try_from(envelope.len()).expect("a sealed envelope is within ENVELOPE_BYTES_MAX");
        self.outbox_bytes += LENGTH_BYTES + envelope.len();
        self.outbox.push_back(Bytes::copy_from_slice(&length.to_be_bytes()));
        self.outbox.push_back(envelope.into());
        Ok(())
    }

    /// Is there nothing left for [`FrameSender::flush`]?
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// How many bytes QUIC has taken so far: whether they grow tells a slow peer from one that does not read.
    pub const fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Hands everything that waits to QUIC. Dropped and called again, it goes on where it was.
    ///
    /// # Errors
    /// The stream or its connection broke.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(front) = self.outbox.front_mut() {
            let written = self.stream.write(front).await.map_err(LinkError::Write)?;
            front.advance(written);
            self.outbox_bytes -= written;
            self.sent_bytes += written as u64;
            if front.is_empty() {
                self.outbox.pop_front();
            }
        }
        Ok(())
    }

    /// [`FrameSender::queue`] and [`FrameSender::flush`].
    ///
    /// # Errors
    /// As theirs.
    pub async fn send(&mut self, frame: &T) -> Result<(), LinkError> {
        self.queue(frame)?;
        self.flush().await
    }

    /// Sends what waits, ends the stream and waits until the peer's QUIC has all of it. The caller bounds the wait.
    ///
    /// # Errors
    /// The stream or its connection broke before that.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        self.flush().await?;
        // Only fails when it is finished already.
        let _ = self.stream.finish();
        self.stream.stopped().await.map_err(|error| LinkError::Write(error.into()))?;
        Ok(())
    }
}

/// Receives frames of one type.
#[derive(Debug)]
pub struct FrameReceiver<T> {
    stream: RecvStream,
    opener: Opener,
    assembly: Assembly,
    frames: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> FrameReceiver<T> {
    pub(crate) fn new(stream: RecvStream, peer: PublicKey, binding: ChannelBinding, limit: usize) -> Self {
        let opener = Opener::new(peer, StreamKind::Control, binding);
        Self { stream, opener, assembly: Assembly::new(limit), frames: PhantomData }
    }

    /// Sets the largest envelope that is read from the next frame on; never more than [`ENVELOPE_BYTES_MAX`].
    pub fn set_limit(&mut self, limit: usize) {
        self.assembly.set_limit(limit);
    }

    /// The next frame, verified. Dropped and called again, it goes on where it was.
    ///
    /// # Errors
    /// Anything wrong with the frame or the stream. The connection has to be closed then.
    pub async fn recv(&mut self) -> Result<T, LinkError> {
        loop {
            let Some(chunk) = read(&mut self.stream, self.assembly.wants()).await? else {
                return Err(if self.assembly.is_between() { LinkError::Ended } else { LinkError::CutShort });
            };
            if let Some(envelope) = self.assembly.push(&chunk)? {
                return self.opener.open(&envelope).map_err(LinkError::Frame);
            }
        }
    }
}

/// At most `max` further bytes; `None` at the end of the stream.
async fn read(stream: &mut RecvStream, max: usize) -> Result<Option<Bytes>, LinkError> {
    match stream.read_chunk(max, true).await {
        Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
        Err(error) => Err(LinkError::Read(error)),
    }
}
