//! Personal texts in facts: sealed bytes, which this crate carries and never opens.
//!
//! A fact is there for ever, and what it says of a person must not be. So the shell seals such a text under a key of the
//! user's, the *record key*, before it comes into a command. State, journal and images hold sealed bytes only; replay
//! needs no key, and when the key is destroyed the bytes mean nothing and the journal is as whole as before.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which text of which fact. Sealed bytes are bound to it, and to their user: moved elsewhere they do not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Why a user's cell is cut off: [`QuarantineFact::Quarantined`](crate::event::QuarantineFact::Quarantined).
    QuarantineReason,
}

impl Field {
    /// Its name, for people and in what the bytes are bound to: never changed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QuarantineReason => "quarantine reason",
        }
    }
}

/// A personal text, sealed. Which bytes these are is the shell's concern.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Sealed(Vec<u8>);

/// More bytes than a sealed text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed text has at most {} bytes, not {len}", Sealed::BYTES_MAX)]
pub struct TooLong {
    /// How many.
    pub len: usize,
}

impl Sealed {
    /// Most bytes.
    pub const BYTES_MAX: usize = 512;

    /// Nothing: the text could not be sealed, and is not kept.
    pub const fn not_kept() -> Self {
        Self(vec![])
    }

    /// Is there nothing to open?
    pub const fn is_not_kept(&self) -> bool {
        self.0.is_empty()
    }

    /// What there is to open.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Sealed {
    type Error = TooLong;

    fn try_from(bytes: Vec<u8>) -> Result<Self, TooLong> {
        if bytes.len() > Self::BYTES_MAX { Err(TooLong { len: bytes.len() }) } else { Ok(Self(bytes)) }
    }
}

impl From<Sealed> for Vec<u8> {
    fn from(sealed: Sealed) -> Self {
        sealed.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use berth_shared::codec;

    use super::*;

    #[test]
    fn sealed_bytes_are_bounded_from_wherever_they_come_and_are_not_shown() {
        let most = Sealed::try_from(vec![b'x'; Sealed::BYTES_MAX]).unwrap();
        let bytes = codec::encode(&most).unwrap();
        assert_eq!(codec::decode::<Sealed>(&bytes, 1024).unwrap(), most);
        let more = vec![b'x'; Sealed::BYTES_MAX + 1];
        assert_eq!(Sealed::try_from(more.clone()), Err(TooLong { len: 513 }));
        assert!(codec::decode::<Sealed>(&codec::encode(&more).unwrap(), 1024).is_err());
        assert_eq!(format!("{most:?}"), "Sealed(512 bytes)");
        assert!(Sealed::not_kept().is_not_kept() && !most.is_not_kept());
    }
}
