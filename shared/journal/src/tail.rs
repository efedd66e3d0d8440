//! Torn or damaged: looks for a witness that the place where a group should be, and is not, had been synced.
//!
//! The rules and why they are right are in the crate's documentation under "Torn or damaged". Their common ground is
//! that at any moment at most one group is unsynced, and nothing stands behind it.

use crate::error::{JournalError, Witness};
use crate::format::{GROUP_BYTES_MAX, Marker, Opening, SECTOR, Synced, wide};
use crate::group::Place;
use crate::segment::SegmentReader;
use crate::storage::{File, read_exact_at};

/// Why what stands at the reader's place cannot be the rest of an unsynced group; `None` when it can.
pub(crate) fn witness<F: File>(
    reader: &SegmentReader<F>,
    is_last_segment: bool,
    synced: Option<Synced>,
) -> Result<Option<Witness>, JournalError> {
    if !is_last_segment {
        return Ok(Some(Witness::LaterSegment));
    }
    if let Some(synced) = synced.filter(|synced| synced.head.seq > reader.head.seq) {
        return Ok(Some(Witness::Synced { seq: synced.head.seq }));
    }
    let left = reader.limit.saturating_sub(reader.offset);
    let Some(length) = usize::try_from(left).ok().filter(|length| *length <= GROUP_BYTES_MAX) else {
        return Ok(Some(Witness::TooLong { bytes: left }));
    };
    let mut tail = vec![0; length];
    let whole = read_exact_at(&reader.file, reader.offset, &mut tail)
        .map_err(|source| JournalError::read(reader.name.clone(), source))?;
    Ok(if whole { among(&tail, reader.place(), reader.limit) } else { None })
}

/// Looks at both ends of each sector: that is where openings and markers are.
fn among(tail: &[u8], place: Place, limit: u64) -> Option<Witness> {
    let mut at = place.offset;
    for sector in tail.chunks(SECTOR) {
        let end = at.saturating_add(wide(sector.len()));
        if let Ok(opening) = Opening::decode(sector)
            && opening.id == place.id
            && opening.offset == at
        {
            if at > place.offset {
                return Some(Witness::LaterGroup { offset: at });
            }
            let group_end = at.saturating_add(u64::from(opening.bytes));
            if group_end < limit {
                return Some(Witness::FileGoesOn { offset: group_end });
            }
        }
        if let Ok(marker) = Marker::decode_end(sector)
            && marker.id == place.id
            && marker.offset.checked_add(u64::from(marker.bytes)) == Some(end)
        {
            if marker.offset > place.offset {
                return Some(Witness::LaterGroup { offset: marker.offset });
            }
            if marker.offset == place.offset && end < limit {
                return Some(Witness::FileGoesOn { offset: end });
            }
        }
        at = end;
    }
    None
}
