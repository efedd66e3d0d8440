//! Reads a whole journal, oldest segment first, and decides whether it is whole: used by open and by [`verify`].

use std::convert::Infallible;
use std::ops::Range;

use crate::error::{Fault, JournalError, ReadError, Witness};
use crate::format::{Header, SECTOR, Synced};
use crate::group::Damage;
use crate::record::{Head, Mark, Record, Seq};
use crate::segment::{self, FileKind, SegmentReader, Step};
use crate::storage::{Access, File, Storage, read_exact_at};
use crate::tail;

/// Name of the file that says how far the journal is known to be synced.
pub(crate) const SYNCED_NAME: &str = "synced";
/// The directory itself, in errors.
pub(crate) const DIRECTORY_NAME: &str = ".";

/// What a walk found; all of it is whole, but for the tail.
pub(crate) struct Walked {
    /// First sequences, rising.
    pub(crate) segments: Vec<Seq>,
    /// Files of segments that were never finished.
    pub(crate) leftovers: Vec<String>,
    pub(crate) synced: Option<Synced>,
    pub(crate) head: Head,
    pub(crate) records: u64,
    pub(crate) groups: u64,
    /// `None` when there is no segment at all.
    pub(crate) last: Option<LastSegment>,
}

/// The segment that is appended to.
pub(crate) struct LastSegment {
    pub(crate) header: Header,
    /// Behind the last commit marker.
    pub(crate) end: u64,
    pub(crate) file_bytes: u64,
    pub(crate) last_group: Option<Range<u64>>,
    /// What stands behind `end`, if anything.
    pub(crate) torn: Option<Damage>,
}

/// What [`verify`] found in a journal without damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The oldest sequence that is here; one behind `head` in a journal without records.
    pub first: Seq,
    /// The newest record.
    pub head: Head,
    /// How many segments.
    pub segments: usize,
    /// How many commits.
    pub groups: u64,
    /// How many records.
    pub records: u64,
    /// What stands behind the last commit marker.
    pub tail: Tail,
}

/// What stands behind the last commit marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// A group that is being written right now, or that a crash cut short; the next open would cut it.
    Incomplete {
        /// Where it starts in the last segment.
        offset: u64,
        /// To the end of the file.
        bytes: u64,
    },
}

/// Reads and checks a whole journal without changing or locking anything. A journal in use may be verified: the group
/// that is being written shows as [`Tail::Incomplete`]. When segments are being dropped at that moment the walk may
/// fail with [`JournalError::Read`]; try again.
///
/// `advice` is what the error shall tell a person to do about damage.
///
/// # Errors
/// [`JournalError::Corrupt`] names the first damaged place; [`JournalError::Missing`] when there is no journal.
pub fn verify<S: Storage>(storage: &S, advice: &str) -> Result<Verified, JournalError> {
    let walked = match walk(storage, advice, Begin::Oldest, &mut |_| Ok::<_, Infallible>(())) {
        Ok(walked) => walked,
        Err(ReadError::Journal(error)) => return Err(error),
        Err(ReadError::Refused { source, .. }) => match source {},
    };
    let (Some(last), Some(first)) = (&walked.last, walked.segments.first()) else {
        return Err(JournalError::Missing);
    };
    let tail = match last.torn {
        None => Tail::Clean,
        Some(_) => Tail::Incomplete { offset: last.end, bytes: last.file_bytes.saturating_sub(last.end) },
    };
    let Walked { segments, head, groups, records, .. } = &walked;
    let (head, groups, records) = (*head, *groups, *records);
    Ok(Verified { first: *first, head, segments: segments.len(), groups, records, tail })
}

/// Where reading begins.
#[derive(Clone, Copy)]
pub(crate) enum Begin<'a> {
    /// At the oldest record.
    Oldest,
    /// Behind a mark that [`fits`](crate::fits).
    Mark(&'a Mark),
    /// At the start of the segment that holds this record.
    Holding(Seq),
}

/// Reads from a place on, without changing or locking anything, and gives each record to `visit`: a listing. What is
/// before the segment that holds `from` is not looked at.
///
/// `advice` is what the error shall tell a person to do about damage.
///
/// # Errors
/// [`JournalError::Corrupt`] behind the records that were given until then; [`ReadError::Refused`] when `visit` fails.
pub fn scan<S, E>(
    storage: &S,
    advice: &str,
    from: Seq,
    mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>>
where
    S: Storage,
    E: std::error::Error + 'static,
{
    let walked = walk(storage, advice, Begin::Holding(from), &mut |record: Record<'_>| {
        if record.seq < from { Ok(()) } else { visit(record) }
    })?;
    if walked.last.is_none() { Err(JournalError::Missing.into()) } else { Ok(()) }
}

/// Reads all segments from where it shall begin, and gives each record of each whole group to `visit`.
pub(crate) fn walk<S, E>(
    storage: &S,
    advice: &str,
    begin: Begin<'_>,
    visit: &mut impl FnMut(Record<'_>) -> Result<(), E>,
) -> Result<Walked, ReadError<E>>
where
    S: Storage,
    E: std::error::Error + 'static,
{
    // Before the listing: in a journal in use it must not know of more than the listing shows.
    let synced = read_synced(storage)?;
    let (segments, leftovers) = list(storage, advice)?;
    check_floor(storage, &segments, synced, advice)?;
    let mut walked =
        Walked { segments, leftovers, synced, head: Head::EMPTY, records: 0, groups: 0, last: None };
    let mut before = None;
    let oldest = match begin {
        Begin::Oldest => Seq::ZERO,
        Begin::Mark(mark) => mark.segment,
        Begin::Holding(seq) => {
            walked.segments.iter().copied().filter(|first| *first <= seq).max().unwrap_or_default()
        }
    };
    let mut mark = if let Begin::Mark(mark) = begin { Some(mark) } else { None };
    let mut firsts = walked.segments.iter().copied().filter(|first| *first >= oldest).peekable();
    while let Some(first) = firsts.next() {
        let is_last = firsts.peek().is_none();
        let opened = match mark.take() {
            Some(mark) => SegmentReader::open_at(storage, mark)?.ok_or_else(|| {
                let (synced, expected) = (mark.head.seq, mark.head.chain);
                Fault::OtherHistory { synced, expected }
            }),
            None => SegmentReader::open(storage, first, before, None)?,
        };
        let mut reader = opened.map_err(|fault| {
            segment::corrupt(segment::name_of(first), 0, first, fault, Witness::NeverTorn, advice)
        })?;
        check_history(&reader, None, synced, advice)?;
        let torn = loop {
            let came_from = reader.head.seq;
            match reader.step()? {
                Step::End => break None,
                Step::Damaged(damage) => match tail::witness(&reader, is_last, synced)? {
                    Some(witness) => return Err(reader.corrupt(damage, witness, advice).into()),
                    None => break Some(damage),
                },
                Step::Group => {
                    check_history(&reader, Some(came_from), synced, advice)?;
                    walked.groups = walked.groups.saturating_add(1);
                    for record in reader.records() {
                        walked.records = walked.records.saturating_add(1);
                        let Record { seq, at, .. } = record;
                        visit(record).map_err(|source| ReadError::Refused { seq, at, source })?;
                    }
                }
            }
        };
        if is_last {
            check_end(&reader, synced, advice)?;
            walked.last = Some(LastSegment {
                header: reader.header,
                end: reader.offset,
                file_bytes: reader.limit,
                last_group: reader.last_group(),
                torn,
            });
        }
        walked.head = reader.head;
        before = Some(reader.head);
    }
    Ok(walked)
}

/// Reads `synced`; anything that is not certainly one is as if it were not there.
pub(crate) fn read_synced(storage: &impl Storage) -> Result<Option<Synced>, JournalError> {
    let failed = |source| JournalError::read(SYNCED_NAME, source);
    let file = match storage.open(SYNCED_NAME, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut sector = vec![0; SECTOR];
    let whole = file.size().map_err(failed)? == crate::format::wide(SECTOR)
        && read_exact_at(&file, 0, &mut sector).map_err(failed)?;
    Ok(if whole { Synced::decode(&sector) } else { None })
}

pub(crate) fn list(storage: &impl Storage, advice: &str) -> Result<(Vec<Seq>, Vec<String>), JournalError> {
    let (mut segments, mut leftovers) = (Vec::new(), Vec::new());
    for name in storage.list().map_err(|source| JournalError::read(DIRECTORY_NAME, source))? {
        match segment::kind_of(&name) {
            FileKind::Segment(first) => segments.push(first),
            FileKind::NewSegment => leftovers.push(name),
            FileKind::Misnamed => {
                return Err(segment::corrupt(name, 0, Seq::ZERO, Fault::Name, Witness::NeverTorn, advice));
            }
            FileKind::Foreign => {}
        }
    }
    segments.sort_unstable();
    Ok((segments, leftovers))
}

/// The oldest segments must be here, unless they were dropped on purpose.
pub(crate) fn check_floor(
    storage: &impl Storage,
    segments: &[Seq],
    synced: Option<Synced>,
    advice: &str,
) -> Result<(), JournalError> {
    let reaches = |synced: &Synced| segments.first().is_some_and(|first| *first <= synced.floor);
    // Read again: in a journal in use, segments may have been dropped between the first look and the listing.
    match synced.filter(|synced| !reaches(synced)).and(read_synced(storage)?) {
        Some(synced) if !reaches(&synced) => {
            let seq = synced.floor;
            let fault = Fault::FirstSegmentMissing { seq };
            Err(segment::corrupt(segment::name_of(seq), 0, seq, fault, Witness::NeverTorn, advice))
        }
        Some(_) | None => Ok(()),
    }
}

/// Is the history at the synced sequence the one that was synced? `came_from` is the sequence before the group that
/// was just read, `None` at the start of a segment.
fn check_history<F: File>(
    reader: &SegmentReader<F>,
    came_from: Option<Seq>,
    synced: Option<Synced>,
    advice: &str,
) -> Result<(), JournalError> {
    let Some(Synced { head: known, .. }) = synced else { return Ok(()) };
    let passed_over = came_from.is_some_and(|from| from < known.seq && known.seq < reader.head.seq);
    let differs = known.seq == reader.head.seq && known.chain != reader.head.chain;
    if !passed_over && !differs {
        return Ok(());
    }
    let fault = Fault::OtherHistory { synced: known.seq, expected: known.chain };
    let offset = reader.last_group().map_or(0, |group| group.start);
    let damage = Damage { offset, seq: known.seq, fault };
    Err(reader.corrupt(damage, Witness::Synced { seq: known.seq }, advice))
}

/// Does the journal reach as far as it was synced?
fn check_end<F: File>(
    reader: &SegmentReader<F>,
    synced: Option<Synced>,
    advice: &str,
) -> Result<(), JournalError> {
    match synced.map(|synced| synced.head.seq) {
        Some(seq) if seq > reader.head.seq => {
            let expected = reader.head.seq.checked_add(1).unwrap_or(seq);
            let damage =
                Damage { offset: reader.offset, seq: expected, fault: Fault::EndsEarly { synced: seq } };
            Err(reader.corrupt(damage, Witness::Synced { seq }, advice))
        }
        Some(_) | None => Ok(()),
    }
}
