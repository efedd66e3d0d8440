//! The one place that knows bincode. Every decode has a size limit and must use up its input.
//!
//! bincode 1.3.3 with fixed-width little-endian integers: its format is complete and does not change any more.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value could not be encoded.
    #[error("the value could not be encoded")]
    Encode(#[source] bincode::Error),
    /// There are more bytes than this kind of value may have.
    #[error("{len} bytes, at most {max} are read")]
    TooLong {
        /// What was given.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are not such a value, or something is left over behind it.
    #[error("the bytes are not a value of the expected type")]
    Decode(#[source] bincode::Error),
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().reject_trailing_bytes()
}

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    options().serialize(value).map_err(CodecError::Encode)
}

/// Decodes a value from at most `max` bytes, all of which it must use.
///
/// A length field inside the bytes cannot make it allocate more than `max`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CodecError> {
    if bytes.len() > max {
        return Err(CodecError::TooLong { len: bytes.len(), max });
    }
    options().with_limit(max as u64).deserialize(bytes).map_err(CodecError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&7_u32).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes, 64), Err(CodecError::Decode(_))));
    }

    #[test]
    fn a_huge_length_field_is_refused_without_allocating() {
        let bytes = u64::MAX.to_le_bytes();
        assert!(matches!(decode::<Vec<u8>>(&bytes, 64), Err(CodecError::Decode(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<crate::wire::NodeFrame>(&bytes, 256);
            let _ = decode::<crate::wire::CoordinatorFrame>(&bytes, 256);
            let _ = decode::<crate::door::ToIngress>(&bytes, 256);
            let _ = decode::<crate::door::FromIngress>(&bytes, 256);
        }
    }
}
