//! What travels over the link. An [`Envelope`] is the signed frame of DESIGN section 4; [`NodeFrame`] and
//! [`CoordinatorFrame`] are its payloads.
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

use serde::{Deserialize, Serialize};

use crate::cell::{Assignment, CellStatus};
use crate::codec::{self, CodecError};
use crate::doctor::Finding;
use crate::ids::{BootId, CellId, Generation, JoinCounter, NodeId, NodeName, SessionNonce, Slug, TokenId};
use crate::problem::{Code, Problem};
use crate::secret::Secret;
use crate::signing::{PublicKey, Purpose, SIGNATURE_BYTES, Signature, SignatureError, SigningKey};
use crate::time::{Millis, UnixMs};
use crate::units::Bytes;

/// ALPN of the link (RFC 7301).
pub const ALPN: &[u8] = b"berth/1";

/// TLS exporter label of the channel binding.
pub const BINDING_LABEL: &[u8] = b"EXPORTER-berth-link-1";

/// The envelope's version byte.
pub const ENVELOPE_VERSION: u8 = 1;

/// Oldest and newest version of the frames that this build speaks.
///
/// A version adds variants at the end of [`NodeFrame`] and [`CoordinatorFrame`] and changes none that is there: a build
/// reads every frame of an older version as it was written. What a session speaks is the newest version that both ends
/// know; no frame of a newer one goes over it ([`Versioned`]). Joining and greeting are of every version.
///
/// | version | what it added |
/// |---|---|
/// | 1 | joining, sessions, desired state, commands |
/// | 2 | new keys of a node and of the coordinator; what a node holds, disks left behind; what a node finds |
pub const FRAMES_VERSION_MIN: u16 = 1;
/// See [`FRAMES_VERSION_MIN`].
pub const FRAMES_VERSION_MAX: u16 = 2;

/// The version that added the frames about keys.
pub const KEYS_SINCE: u16 = 2;

/// The version that added [`NodeFrame::Holding`] and [`CommandVerb::Purge`].
pub const HOLDING_SINCE: u16 = 2;

/// The version that added [`NodeFrame::Findings`].
pub const FINDINGS_SINCE: u16 = 2;

/// Most disks left behind that a node tells of: as many as its cells, and as many again.
pub const LEFT_BEHIND_MAX: usize = 4_000;

/// Most removed cells that a desired state names. A node that missed more sets their disks aside instead.
pub const REMOVED_MAX: usize = 256;

/// The newest version that both ends speak; `None` when there is none.
pub const fn common_version(min: u16, max: u16) -> Option<u16> {
    let newest = if max < FRAMES_VERSION_MAX { max } else { FRAMES_VERSION_MAX };
    if newest < min || newest < FRAMES_VERSION_MIN { None } else { Some(newest) }
}

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

/// What a node is made of: for placement and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Version of the node agent.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Version of the container engine, empty while it does not answer.
    pub engine_version: String,
    /// Memory in all; zero where it is not known, and nothing is placed there then.
    pub memory: Bytes,
    /// CPUs.
    pub cpus: u32,
    /// Size of the file system that holds the cells; zero as for memory.
    pub disk: Bytes,
    /// Swap in all.
    pub swap: Bytes,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// How disk quotas are kept, such as `loop-ext4`.
    pub quota_backend: String,
}

/// How a node fares right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NodeLoad {
    /// `MemAvailable` of proc(5); zero, as everything here, where it cannot be read: the careful side.
    pub memory_available: Bytes,
    /// Room on the cells' file system.
    pub disk_available: Bytes,
    /// Free swap.
    pub swap_free: Bytes,
    /// Memory pressure: share of the last 10 s in which some task waited for memory, in hundredths of a percent
    /// (`some avg10` of `/proc/pressure/memory`). `None` where the kernel does not tell.
    pub memory_pressure_some: Option<u32>,
    /// Time since boot.
    pub uptime: Millis,
}

/// A node's first frame with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Which token.
    pub token: TokenId,
    /// What proves it.
    pub secret: Secret,
    /// Oldest version of the frames that the node speaks.
    pub version_min: u16,
    /// Newest version of the frames that the node speaks.
    pub version_max: u16,
    /// The node's wall clock: how old a token is depends on two clocks.
    pub wall: UnixMs,
    /// What the node is made of.
    pub facts: NodeFacts,
}

/// A node's first frame in every later session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version of the frames that the node speaks.
    pub version_min: u16,
    /// Newest version of the frames that the node speaks.
    pub version_max: u16,
    /// Who it is.
    pub node: NodeId,
    /// Stored durably by the node before this frame was sent.
    pub counter: JoinCounter,
    /// Drawn when the counter was stored: a hello repeated after a crash carries the same.
    pub nonce: SessionNonce,
    /// Which boot of the machine.
    pub boot: BootId,
    /// The node's wall clock.
    pub wall: UnixMs,
    /// What the node is made of.
    pub facts: NodeFacts,
}

/// From a node to its coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeFrame {
    /// Lets the node in, once.
    Join(JoinRequest),
    /// Opens a session.
    Hello(Hello),
    /// Everything that the node sees, after the hello.
    Observed {
        /// All cells.
        cells: Vec<CellStatus>,
    },
    /// Load, and the cells that changed since the last one.
    Heartbeat {
        /// The node's load.
        load: NodeLoad,
        /// Changed cells.
        cells: Vec<CellStatus>,
        /// The revision of the desired state that the node holds durably.
        desired: u64,
    },
    /// The end of a command.
    CommandDone {
        /// Which command.
        seq: u64,
        /// How it ended.
        outcome: Result<CommandOutcome, Problem>,
    },
    /// The node has made a new key and holds it durably. Since version 2; answered by
    /// [`CoordinatorFrame::KeyJudged`].
    NewKey {
        /// Its public half.
        key: PublicKey,
        /// By the new key, over [`new_node_key`](crate::signing::new_node_key). The frame itself is signed by the old.
        proof: Signature,
    },
    /// The node holds the coordinator's next key durably. Since version 2.
    PinStored {
        /// Which key.
        key: PublicKey,
    },
    /// What the node holds durably beside its desired state: after each welcome, and when it changes. Since version 2.
    Holding {
        /// How long it works alone after the last contact, `None` without end.
        autonomy: Option<Millis>,
        /// Disks of cells that do not live here any more, at most [`LEFT_BEHIND_MAX`].
        left_behind: Vec<LeftBehind>,
    },
    /// What the node found when it examined itself: after each welcome, and now and then. Since version 2.
    Findings {
        /// At most [`FINDINGS_MAX`](crate::doctor::FINDINGS_MAX); whoever receives them bounds their texts.
        findings: Vec<Finding>,
    },
}

/// A disk that stayed on a node when its cell was given to another one: it may be the only copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Whose cell.
    pub slug: Slug,
    /// Which cell.
    pub cell: CellId,
    /// The assignment under which it was written last here.
    pub generation: Generation,
}

/// What the coordinator wants of a node: all of it, every time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredState {
    /// Grows with each change of what this node is given.
    pub revision: u64,
    /// Users live at `<slug>.<domain>`.
    pub domain: String,
    /// The cells of this node.
    pub assignments: Vec<Assignment>,
    /// Cells whose users were removed while they lived here, newest last, at most [`REMOVED_MAX`]: their data is not
    /// needed any more. A cell that is in neither list lives elsewhere now; its disk is kept aside.
    pub removed: Vec<CellId>,
}

/// A one-off command about a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Grows by one per node; a repeated one is answered from memory, not done again.
    pub seq: u64,
    /// Which cell.
    pub cell: CellId,
    /// For this assignment only.
    pub generation: Generation,
    /// Counted from receipt: after this it is not begun any more.
    pub ttl: Millis,
    /// What to do.
    pub verb: CommandVerb,
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandVerb {
    /// Wake the cell and say when it is ready.
    Wake,
    /// Put the cell to sleep, by the handshake. `frozen` instead of stopped, where asked.
    Sleep {
        /// Pause instead of stop.
        freeze: bool,
    },
    /// Stop it by the handshake and start it again. Ends a crash loop.
    Restart,
    /// The newest lines of its log, secrets taken out.
    Logs {
        /// How many lines at the most.
        lines: u32,
    },
    /// Destroy the disk that this cell left behind under this generation. Since version 2.
    Purge,
}

/// How a command ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandOutcome {
    /// The cell is where it was wanted.
    Cell(Box<CellStatus>),
    /// Log lines, oldest first.
    Logs(Vec<String>),
    /// The disk is gone. Since version 2.
    Purged,
}

/// From the coordinator to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorFrame {
    /// The node is in. It says hello on a new connection from now on.
    Joined {
        /// Its id for ever.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// The session is open.
    Welcome {
        /// The version of the frames to be spoken from now on.
        version: u16,
        /// The coordinator's wall clock.
        wall: UnixMs,
        /// How long the node may work alone after this session, `None` without end.
        autonomy: Option<Millis>,
        /// Heartbeats are expected this often.
        heartbeat: Millis,
    },
    /// No session. The connection is closed after this.
    Rejected {
        /// Why.
        code: Code,
        /// In words.
        detail: String,
    },
    /// What the node shall run.
    Desired(DesiredState),
    /// Do this once.
    Command(Command),
    /// The node's heartbeat was heard.
    Heard,
    /// Make a new key and tell it by [`NodeFrame::NewKey`]. Since version 2.
    RotateKey,
    /// What became of a new key. Since version 2.
    KeyJudged {
        /// Which.
        key: PublicKey,
        /// Accepted: the node says hello with it from now on.
        outcome: Result<(), Problem>,
    },
    /// The coordinator will have this key: pin it beside the present one and answer [`NodeFrame::PinStored`]. Since
    /// version 2.
    NextKey {
        /// The next key.
        key: PublicKey,
        /// By the next key, over [`next_coordinator_key`](crate::signing::next_coordinator_key). The frame itself is
        /// signed by the present one.
        proof: Signature,
    },
}

/// Which version of the frames added a frame.
pub trait Versioned {
    /// A session of an older version must not carry it.
    fn since(&self) -> u16;
}

impl Versioned for NodeFrame {
    fn since(&self) -> u16 {
        match self {
            Self::CommandDone { outcome: Ok(CommandOutcome::Purged), .. } => HOLDING_SINCE,
            Self::Join(_)
            | Self::Hello(_)
            | Self::Observed { .. }
            | Self::Heartbeat { .. }
            | Self::CommandDone { .. } => FRAMES_VERSION_MIN,
            Self::NewKey { .. } | Self::PinStored { .. } => KEYS_SINCE,
            Self::Holding { .. } => HOLDING_SINCE,
            Self::Findings { .. } => FINDINGS_SINCE,
        }
    }
}

impl Versioned for CoordinatorFrame {
    fn since(&self) -> u16 {
        match self {
            Self::Joined { .. }
            | Self::Welcome { .. }
            | Self::Rejected { .. }
            | Self::Desired(_)
            | Self::Heard => FRAMES_VERSION_MIN,
            Self::Command(command) if command.verb == CommandVerb::Purge => HOLDING_SINCE,
            Self::Command(_) => FRAMES_VERSION_MIN,
            Self::RotateKey | Self::KeyJudged { .. } | Self::NextKey { .. } => KEYS_SINCE,
        }
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;
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
