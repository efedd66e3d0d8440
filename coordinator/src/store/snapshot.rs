//! One snapshot as bytes: an image of the fleet, and the place in the journal that it belongs to.
//!
//! ```text
//! version u16 LE | body (bincode): code, sequence, chain, segment, byte behind the commit, epoch, image | SHA-256
//! ```
//!
//! The hash is over all before it. Where these bytes are kept is nothing to rely on, so whatever is not exactly right
//! is no snapshot: [`Unfit`] says why, for the log.

use berth_coordinator_core::Fleet;
use berth_coordinator_core::fleet::{CODE, FIRST_EPOCH, IMAGE_BYTES_MAX};
use berth_journal::{Chain, Head, Mark, Seq};
use berth_shared::codec::{self, CodecError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Of the envelope. The image's form has a name of its own: [`CODE`].
const VERSION: u16 = 1;

const HASH_BYTES: usize = 32;

/// Room for everything in the body that is not the image.
const BODY_BYTES_MAX: usize = IMAGE_BYTES_MAX + 1024;

#[derive(Serialize, Deserialize)]
struct Body {
    code: String,
    seq: u64,
    chain: [u8; Chain::BYTES],
    segment: u64,
    end: u64,
    image: Vec<u8>,
}

/// Why bytes are not a snapshot that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it is too short")]
    Short,
    #[error("its form {found} is of another release")]
    Version { found: u16 },
    #[error("its hash is wrong")]
    Hash,
    #[error("it is of another build")]
    Code,
    #[error("its bytes are not a snapshot")]
    Bytes(#[source] CodecError),
    #[error("it holds {found} events, its place in the journal is behind {expected}")]
    Events { found: u64, expected: u64 },
}

/// A snapshot that is whole and of this build. Whether it belongs to a journal, its mark tells.
pub(crate) struct Snapshot {
    pub(crate) mark: Mark,
    image: Vec<u8>,
}

impl Snapshot {
    /// The bytes that are kept of a state and its place.
    pub(crate) fn encode(fleet: &Fleet, mark: &Mark) -> Result<Vec<u8>, CodecError> {
        let body = Body {
            code: CODE.to_owned(),
            seq: mark.head.seq.get(),
            chain: *mark.head.chain.as_bytes(),
            segment: mark.segment.get(),
            end: mark.end,
            image: fleet.to_image()?,
        };
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend(codec::encode(&body)?);
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash);
        Ok(bytes)
    }

    /// Reads what [`Snapshot::encode`] of the same build made.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unfit> {
        let (version, _) = bytes.split_first_chunk::<2>().ok_or(Unfit::Short)?;
        let version = u16::from_le_bytes(*version);
        // Before anything else: what a newer release writes may have its hash elsewhere.
        if version != VERSION {
            return Err(Unfit::Version { found: version });
        }
        let (hashed, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(Unfit::Short)?;
        if Sha256::digest(hashed).as_slice() != hash {
            return Err(Unfit::Hash);
        }
        let body = hashed.get(2..).ok_or(Unfit::Short)?;
        let body: Body = codec::decode(body, BODY_BYTES_MAX).map_err(Unfit::Bytes)?;
        if body.code != CODE {
            return Err(Unfit::Code);
        }
        let head = Head { seq: Seq::new(body.seq), chain: Chain::from_bytes(body.chain) };
        let mark = Mark { head, segment: Seq::new(body.segment), end: body.end };
        Ok(Self { mark, image: body.image })
    }

    /// The state.
    pub(crate) fn fleet(&self) -> Result<Fleet, Unfit> {
        let fleet = Fleet::from_image(&self.image).map_err(Unfit::Bytes)?;
        let expected = self.mark.head.seq.get();
        if fleet.events() != expected || fleet.epoch() != FIRST_EPOCH {
            return Err(Unfit::Events { found: fleet.events(), expected });
        }
        Ok(fleet)
    }
}
