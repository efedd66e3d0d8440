//! Envelopes out of the bytes of a stream, however these are cut into pieces. No I/O, so that it can be fuzzed.

use berth_shared::wire::ENVELOPE_BYTES_MAX;

use super::LinkError;

/// Bytes of the length before an envelope.
pub const LENGTH_BYTES: usize = 4;

/// The first allocation for an envelope; it grows with what has really come.
const FIRST_ALLOCATION_BYTES: usize = 16 * 1024;

/// Puts envelopes together. Never holds more than one.
#[derive(Debug)]
pub struct Assembly {
    limit: usize,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Length { bytes: [u8; LENGTH_BYTES], filled: usize },
    Envelope { bytes: Vec<u8>, length: usize },
}

const START: Part = Part::Length { bytes: [0; LENGTH_BYTES], filled: 0 };

impl Assembly {
    /// Takes envelopes of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(ENVELOPE_BYTES_MAX), part: START }
    }

    /// Sets the largest envelope from the next one on; never more than [`ENVELOPE_BYTES_MAX`].
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(ENVELOPE_BYTES_MAX);
    }

    /// How many bytes are missing of what is being put together; at least one.
    pub fn wants(&self) -> usize {
        match &self.part {
            Part::Length { filled, .. } => LENGTH_BYTES - filled,
            Part::Envelope { bytes, length } => length - bytes.len(),
        }
    }

    /// Is it between two envelopes, so that the stream may end here?
    pub const fn is_between(&self) -> bool {
        matches!(self.part, Part::Length { filled: 0, .. })
    }

    /// Takes the next bytes, at most as many as it [wants](Self::wants); gives the envelope that they complete.
    ///
    /// # Errors
    /// [`LinkError::Announced`]: the envelope would be larger than the limit. Nothing more may be given then.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Option<Vec<u8>>, LinkError> {
        match &mut self.part {
            Part::Length { bytes, filled } => {
                for (to, from) in bytes.iter_mut().skip(*filled).zip(chunk) {
                    *to = *from;
                    *filled += 1;
                }
                if *filled < LENGTH_BYTES {
                    return Ok(None);
                }
                let announced = u32::from_be_bytes(*bytes);
                let length = usize::try_from(announced)
                    .ok()
                    .filter(|length| *length <= self.limit)
                    .ok_or(LinkError::Announced { length: announced, limit: self.limit })?;
                let bytes = Vec::with_capacity(length.min(FIRST_ALLOCATION_BYTES));
                self.part = Part::Envelope { bytes, length };
            }
            Part::Envelope { bytes, length } => {
                let missing = *length - bytes.len();
                bytes.extend(chunk.iter().take(missing));
            }
        }
        Ok(self.take_whole())
    }

    fn take_whole(&mut self) -> Option<Vec<u8>> {
        match &mut self.part {
            Part::Envelope { bytes, length } if bytes.len() == *length => {
                let envelope = std::mem::take(bytes);
                self.part = START;
                Some(envelope)
            }
            Part::Envelope { .. } | Part::Length { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_come_out_whole_however_the_bytes_are_cut() {
        let stream = [&[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0], &[0, 0, 0, 1], b"z"].concat();
        for piece in 1..=stream.len() {
            let mut assembly = Assembly::new(3);
            let (mut rest, mut seen) = (stream.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(piece.min(assembly.wants()).min(rest.len()));
                seen.extend(assembly.push(chunk).unwrap());
                rest = after;
            }
            assert_eq!(seen, [b"abc".to_vec(), vec![], b"z".to_vec()], "in pieces of {piece}");
            assert!(assembly.is_between());
        }
    }

    #[test]
    fn an_envelope_above_the_limit_is_refused_before_any_of_it_is_read() {
        let mut assembly = Assembly::new(3);
        let refused = assembly.push(&[0, 0, 0, 4]);
        assert!(matches!(refused, Err(LinkError::Announced { length: 4, limit: 3 })));
        let mut assembly = Assembly::new(usize::MAX);
        assert!(assembly.push(&[255; 4]).is_err(), "no limit is above that of an envelope");
    }
}
