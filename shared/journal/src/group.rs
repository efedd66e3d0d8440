//! The bytes of one group, and what exactly is wrong with bytes that should be one.

use crate::error::{Fault, JournalError};
use crate::format::{
    GROUP_BYTES_MAX, GROUP_RECORDS_MAX, MARKER_BYTES, Marker, OPENING_BYTES, Opening, PAYLOAD_BYTES_MAX,
    RECORD_HEAD_BYTES, RecordHead, SECTOR, SegmentId, is_zero, wide,
};
use crate::record::{At, Head, NewRecord, Record, Seq};

/// Length on disk of a group with payloads of these lengths: what counts against
/// [`GROUP_BYTES_MAX`].
#[must_use]
pub fn group_bytes(payload_bytes: impl IntoIterator<Item = usize>) -> usize {
    let records = payload_bytes
        .into_iter()
        .fold(0_usize, |sum, payload| sum.saturating_add(RECORD_HEAD_BYTES).saturating_add(payload));
    let bytes = records.saturating_add(OPENING_BYTES + MARKER_BYTES);
    bytes.checked_next_multiple_of(SECTOR).unwrap_or(usize::MAX)
}

/// Where a group goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) id: SegmentId,
    pub(crate) offset: u64,
    /// The record before the group's first.
    pub(crate) before: Head,
}

/// Something wrong at a place where a group should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) offset: u64,
    /// Expected at `offset`.
    pub(crate) seq: Seq,
    pub(crate) fault: Fault,
}

/// Refuses groups that break a bound, before any byte is made.
pub(crate) fn check_bounds(records: &[NewRecord<'_>]) -> Result<(), JournalError> {
    if records.is_empty() {
        return Err(JournalError::EmptyGroup);
    }
    if records.len() > GROUP_RECORDS_MAX {
        return Err(JournalError::TooManyRecords { records: records.len() });
    }
    if let Some(long) = records.iter().find(|record| record.payload.len() > PAYLOAD_BYTES_MAX) {
        return Err(JournalError::PayloadTooLong { bytes: long.payload.len() });
    }
    let bytes = group_bytes(records.iter().map(|record| record.payload.len()));
    if bytes > GROUP_BYTES_MAX {
        return Err(JournalError::GroupTooLong { bytes });
    }
    Ok(())
}

/// Fills `out` with the group; returns the head after it. `records` must have passed [`check_bounds`].
pub(crate) fn encode(
    out: &mut Vec<u8>,
    place: Place,
    records: &[NewRecord<'_>],
) -> Result<Head, JournalError> {
    let total = group_bytes(records.iter().map(|record| record.payload.len()));
    let narrow = |length: usize| u32::try_from(length).expect("bounded by check_bounds, far below 4 GiB");
    let next = |seq: Seq| seq.checked_add(1).ok_or(JournalError::SequenceExhausted);
    out.clear();
    let opening = Opening {
        bytes: narrow(total),
        records: narrow(records.len()),
        offset: place.offset,
        first: next(place.before.seq)?,
        id: place.id,
    };
    opening.encode(out);
    let mut head = place.before;
    for record in records {
        head.seq = next(head.seq)?;
        let payload_bytes = narrow(record.payload.len());
        head.chain =
            RecordHead::encode(out, record.kind, record.version, head, record.payload, payload_bytes);
    }
    out.resize(total.saturating_sub(MARKER_BYTES), 0);
    let marker = Marker {
        bytes: opening.bytes,
        records: opening.records,
        offset: place.offset,
        last: head.seq,
        id: place.id,
        chain: head.chain,
    };
    marker.encode(out);
    Ok(head)
}

/// The opening of the group that belongs at `place`, or why these bytes are not it.
pub(crate) fn decode_opening(bytes: &[u8], place: Place) -> Result<Opening, Fault> {
    let opening = Opening::decode(bytes)?;
    if opening.id != place.id {
        return Err(Fault::OpeningForeign { id: opening.id.0 });
    }
    if opening.offset != place.offset {
        return Err(Fault::OpeningMoved { offset: opening.offset });
    }
    if Some(opening.first) != place.before.seq.checked_add(1) {
        return Err(Fault::OpeningSequence { found: opening.first });
    }
    let length = usize::try_from(opening.bytes).unwrap_or(usize::MAX);
    let records = usize::try_from(opening.records).unwrap_or(usize::MAX);
    let fits = (SECTOR..=GROUP_BYTES_MAX).contains(&length) && length.is_multiple_of(SECTOR);
    if !fits || !(1..=GROUP_RECORDS_MAX).contains(&records) {
        return Err(Fault::GroupSize);
    }
    Ok(opening)
}

/// Checks a whole group, `bytes` being as long as its opening says; returns the head after it.
pub(crate) fn check(bytes: &[u8], opening: &Opening, place: Place) -> Result<Head, Damage> {
    let mut head = place.before;
    let body_end = bytes.len().saturating_sub(MARKER_BYTES);
    let mut at = OPENING_BYTES;
    for _ in 0..opening.records {
        let seq = head.seq.checked_add(1).unwrap_or(head.seq);
        let damage = |fault| Damage { offset: place.offset.saturating_add(wide(at)), seq, fault };
        let rest = bytes.get(at..body_end).ok_or_else(|| damage(Fault::RecordLength))?;
        let (record, payload) = split_record(rest).ok_or_else(|| damage(Fault::RecordLength))?;
        if !record.checksum_holds(rest, payload) {
            return Err(damage(Fault::RecordChecksum));
        }
        if record.seq != seq || seq == head.seq {
            return Err(damage(Fault::RecordSequence { found: record.seq }));
        }
        if !record.chain_holds(head.chain, rest, payload) {
            return Err(damage(Fault::RecordChain));
        }
        head = Head { seq, chain: record.chain };
        at = at.saturating_add(RECORD_HEAD_BYTES).saturating_add(payload.len());
    }
    let damage = |at: usize, fault| Damage {
        offset: place.offset.saturating_add(wide(at)),
        seq: head.seq.checked_add(1).unwrap_or(head.seq),
        fault,
    };
    if !bytes.get(at..body_end).is_some_and(is_zero) {
        return Err(damage(at, Fault::Padding));
    }
    let marker = Marker::decode_end(bytes).map_err(|fault| damage(body_end, fault))?;
    let expected = Marker {
        bytes: opening.bytes,
        records: opening.records,
        offset: place.offset,
        last: head.seq,
        id: place.id,
        chain: head.chain,
    };
    if marker != expected {
        return Err(damage(body_end, Fault::MarkerMismatch));
    }
    Ok(head)
}

/// The records of a group that [`check`] found whole.
pub(crate) fn records<'a>(
    bytes: &'a [u8],
    segment: Seq,
    opening: &Opening,
) -> impl Iterator<Item = Record<'a>> {
    let group = At { segment, offset: opening.offset };
    let mut at = OPENING_BYTES;
    (0..opening.records).map_while(move |_| {
        let (head, payload) = split_record(bytes.get(at..)?)?;
        at = at.saturating_add(RECORD_HEAD_BYTES).saturating_add(payload.len());
        let RecordHead { seq, kind, version, chain, .. } = head;
        Some(Record { seq, at: group, kind, version, payload, chain })
    })
}

fn split_record(rest: &[u8]) -> Option<(RecordHead, &[u8])> {
    let head = RecordHead::decode(rest)?;
    let length = usize::try_from(head.payload_bytes).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX)?;
    Some((head, rest.get(RECORD_HEAD_BYTES..)?.get(..length)?))
}
