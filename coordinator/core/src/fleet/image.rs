//! The whole state as bytes, so that a start need not apply every event again.
//!
//! An image is derived and thrown away freely: the journal is what counts. So it has no versions that stay readable.
//! It belongs to the code that made it, named by [`CODE`]: after any change to this crate or to `berth-shared` (a new
//! field, another way to apply an event) all older images are of other code, and the journal is replayed once. Nobody
//! has to remember to raise a number, and a mended `apply` mends the state too.

use berth_shared::codec::{self, CodecError};

use super::Fleet;

/// Names the code that decides what the state is and how it looks in an image: a hash over the sources of this crate
/// and of `berth-shared`, made by the build script.
pub const CODE: &str = env!("BERTH_FLEET_CODE");

/// Largest image, in bytes. An installation of [`USERS_MAX`](super::USERS_MAX) users and a century of users that came
/// and went stays below; more is not read, and the journal is replayed.
pub const IMAGE_BYTES_MAX: usize = 256 << 20;

impl Fleet {
    /// The epoch that generations are given in.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The whole state as bytes, for the same [`CODE`] only.
    ///
    /// # Errors
    /// Never for a state that fits into memory.
    pub fn to_image(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// The state of an image. The caller makes sure that the bytes are those that [`Fleet::to_image`] of the same
    /// [`CODE`] made: nothing here could tell.
    ///
    /// # Errors
    /// The bytes are no image, or more than [`IMAGE_BYTES_MAX`].
    pub fn from_image(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes, IMAGE_BYTES_MAX)
    }
}
