//! The signed frame of DESIGN section 4, whatever it carries.
//!
//! ```text
//! on a stream:  length u32 BE | envelope
//! envelope:     version u8 | stream kind u8 | sender key 32 | sequence u64 BE | channel binding 32
//!               | payload length u32 BE | payload (bincode) | Ed25519 signature 64
//! ```
//!
//! The signature covers every byte before it, as received. A receiver verifies first and decodes after. The channel
//! binding is the TLS exporter's value of this very connection (RFC 8446, section 7.5), so that a frame recorded on
//! one connection cannot be played on another; the sequence counts from 0 in each direction without a gap.

use serde::Serialize;

use crate::codec::{self, CodecError};
use crate::signing::{PublicKey, Purpose, SIGNATURE_BYTES, SignatureError, SigningKey};

/// TLS exporter label of the channel binding.
pub const BINDING_LABEL: &[u8] = b"EXPORTER-berth-link-1";

/// The envelope's version byte.
pub const ENVELOPE_VERSION: u8 = 1;

/// Largest payload of a control frame: a desired state of 2,000 cells has room.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

const HEADER_BYTES: usize = 1 + 1 + 32 + 8 + 32 + 4;

/// Largest envelope, header and signature included.
pub const ENVELOPE_BYTES_MAX: usize = HEADER_BYTES + PAYLOAD_BYTES_MAX + SIGNATURE_BYTES;

/// What a stream is for. A frame of one kind is refused on a stream of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Control frames, both ways, for the connection's life.
    Control = 1,
}

/// Binds frames to one connection: 32 bytes from the TLS exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

/// Why a frame was refused. Any of these closes the stream.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header, or its lengths do not add up.
    #[error("the frame is cut short or its lengths do not add up")]
    Length,
    /// Larger than [`ENVELOPE_BYTES_MAX`].
    #[error("a frame of {0} bytes is too large")]
    TooLarge(u64),
    /// Not our envelope.
    #[error("envelope version {0} is not spoken here")]
    Version(u8),
    /// A frame of another stream's kind.
    #[error("a frame of stream kind {0} does not belong on this stream")]
    StreamKind(u8),
    /// Signed by another key than the connection's.
    #[error("the frame is by {0}, not by this connection's peer")]
    Sender(PublicKey),
    /// Replayed, reordered or lost.
    #[error("frame {got} came where {expected} was expected")]
    Sequence {
        /// The number it carries.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// Recorded on another connection.
    #[error("the frame belongs to another connection")]
    Binding,
    /// The signature does not fit.
    #[error("the frame's signature was refused")]
    Signature(#[source] SignatureError),
    /// The payload is not one of our frames.
    #[error("the frame's payload could not be read")]
    Payload(#[source] CodecError),
    /// A frame of a newer version than the session speaks.
    #[error("a frame of version {since} on a session of version {spoken}")]
    Newer {
        /// The version that added the frame.
        since: u16,
        /// The version that the session speaks.
        spoken: u16,
    },
}

impl FrameError {
    /// A short name for metrics and close reasons.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::TooLarge(_) => "too_large",
            Self::Version(_) => "version",
            Self::StreamKind(_) => "stream_kind",
            Self::Sender(_) => "sender",
            Self::Sequence { .. } => "sequence",
            Self::Binding => "binding",
            Self::Signature(_) => "signature",
            Self::Payload(_) => "payload",
            Self::Newer { .. } => "frame_too_new",
        }
    }
}

/// Signs the frames of one direction of one stream, counting them.
#[derive(Debug)]
pub struct Sealer {
    key: SigningKey,
    kind: StreamKind,
    binding: ChannelBinding,
    sequence: u64,
}

impl Sealer {
    /// Starts at sequence 0.
    pub const fn new(key: SigningKey, kind: StreamKind, binding: ChannelBinding) -> Self {
        Self { key, kind, binding, sequence: 0 }
    }

    /// The next envelope, holding `payload`.
    ///
    /// # Errors
    /// The payload cannot be encoded or is too large; the sequence does not advance then.
    pub fn seal<T: Serialize>(&mut self, payload: &T) -> Result<Vec<u8>, FrameError> {
        let payload = codec::encode(payload).map_err(FrameError::Payload)?;
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= PAYLOAD_BYTES_MAX)
            .ok_or(FrameError::TooLarge(payload.len() as u64))?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + SIGNATURE_BYTES);
        bytes.push(ENVELOPE_VERSION);
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(self.key.public().bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.binding.0);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&payload);
        let signature = self.key.sign(Purpose::LinkFrame, &bytes);
        bytes.extend_from_slice(&signature);
        self.sequence += 1;
        Ok(bytes)
    }
}

/// Checks the frames of one direction of one stream.
#[derive(Debug)]
pub struct Opener {
    peer: PublicKey,
    kind: StreamKind,
    binding: ChannelBinding,
    sequence: u64,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(FrameError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError::Length)
    }
}

impl Opener {
    /// Expects frames by `peer` from sequence 0 on.
    pub const fn new(peer: PublicKey, kind: StreamKind, binding: ChannelBinding) -> Self {
        Self { peer, kind, binding, sequence: 0 }
    }

    /// Verifies an envelope, then decodes its payload.
    ///
    /// # Errors
    /// Anything wrong at all; the stream has to be closed then.
    pub fn open<T: serde::de::DeserializeOwned>(&mut self, envelope: &[u8]) -> Result<T, FrameError> {
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return Err(FrameError::TooLarge(envelope.len() as u64));
        }
        let mut reader = Reader(envelope);
        let [version] = reader.array()?;
        if version != ENVELOPE_VERSION {
            return Err(FrameError::Version(version));
        }
        let [kind] = reader.array()?;
        if kind != self.kind as u8 {
            return Err(FrameError::StreamKind(kind));
        }
        let sender = PublicKey::from_bytes(reader.array()?);
        if sender != self.peer {
            return Err(FrameError::Sender(sender));
        }
        let sequence = u64::from_be_bytes(reader.array()?);
        let binding = ChannelBinding(reader.array()?);
        let length = u32::from_be_bytes(reader.array()?);
        let payload = reader.take(usize::try_from(length).map_err(|_| FrameError::Length)?)?;
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        if !reader.0.is_empty() {
            return Err(FrameError::Length);
        }
        let signed = envelope.get(..envelope.len() - SIGNATURE_BYTES).ok_or(FrameError::Length)?;
        self.peer.verify(Purpose::LinkFrame, signed, &signature).map_err(FrameError::Signature)?;
        if binding != self.binding {
            return Err(FrameError::Binding);
        }
        if sequence != self.sequence {
            return Err(FrameError::Sequence { got: sequence, expected: self.sequence });
        }
        let frame = codec::decode(payload, PAYLOAD_BYTES_MAX).map_err(FrameError::Payload)?;
        self.sequence += 1;
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CommandOutcome, CoordinatorFrame, NodeFrame};
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([seed; 32]))
    }

    const BINDING: ChannelBinding = ChannelBinding([9; 32]);

    fn pair() -> (Sealer, Opener) {
        let sealer = Sealer::new(key(1), StreamKind::Control, BINDING);
        (sealer, Opener::new(key(1).public(), StreamKind::Control, BINDING))
    }

    #[test]
    fn frames_arrive_in_order_and_each_once() {
        let (mut sealer, mut opener) = pair();
        let first = sealer.seal(&CoordinatorFrame::Heard).unwrap();
        let second = sealer.seal(&CoordinatorFrame::Heard).unwrap();
        assert_eq!(opener.open::<CoordinatorFrame>(&first).unwrap(), CoordinatorFrame::Heard);
        let replayed = opener.open::<CoordinatorFrame>(&first).unwrap_err();
        assert!(matches!(replayed, FrameError::Sequence { got: 0, expected: 1 }));
        assert!(opener.open::<CoordinatorFrame>(&second).is_ok());
    }

    #[test]
    fn a_frame_of_another_connection_or_key_is_refused() {
        let (mut sealer, _) = pair();
        let frame = sealer.seal(&CoordinatorFrame::Heard).unwrap();
        let mut elsewhere = Opener::new(key(1).public(), StreamKind::Control, ChannelBinding([8; 32]));
        assert!(matches!(elsewhere.open::<CoordinatorFrame>(&frame), Err(FrameError::Binding)));
        let mut other = Opener::new(key(2).public(), StreamKind::Control, BINDING);
        assert!(matches!(other.open::<CoordinatorFrame>(&frame), Err(FrameError::Sender(_))));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let (mut sealer, _) = pair();
        let frame = sealer.seal(&CoordinatorFrame::Heard).unwrap();
        for bit in 0..frame.len() * 8 {
            let mut altered = frame.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let (_, mut opener) = pair();
            assert!(opener.open::<CoordinatorFrame>(&altered).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_payload_that_is_too_large_is_not_sealed() {
        let (mut sealer, _) = pair();
        let lines = vec!["x".repeat(1024); 2100];
        let frame = NodeFrame::CommandDone { seq: 1, outcome: Ok(CommandOutcome::Logs(lines)) };
        assert!(matches!(sealer.seal(&frame), Err(FrameError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_opener(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (_, mut opener) = pair();
            prop_assert!(opener.open::<NodeFrame>(&bytes).is_err());
        }
    }
}
