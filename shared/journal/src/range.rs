//! Reads records that are known to be committed, up to a mark: any fault in them is damage, never a torn write.

use crate::error::{Fault, JournalError, ReadError, Witness};
use crate::group::Damage;
use crate::record::{Mark, Record, Seq};
use crate::segment::{self, SegmentReader, Step};
use crate::storage::{Access, File, Storage};
use crate::walk;

/// Has this journal the history that `mark` was made of? Cheap: reads one header and one commit marker, which holds
/// the chain over all that is before it. Whether those older bytes are still readable is another question:
/// [`check_before`].
///
/// # Errors
/// [`JournalError::Read`] when the segment could not be read; one that is missing is an answer: no.
pub fn fits<S: Storage>(storage: &S, mark: &Mark) -> Result<bool, JournalError> {
    match SegmentReader::open_at(storage, mark) {
        Ok(reader) => Ok(reader.is_some()),
        Err(JournalError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many bytes [`check_before`] has to read.
///
/// # Errors
/// [`JournalError::Read`].
pub fn bytes_before<S: Storage>(storage: &S, mark: &Mark) -> Result<u64, JournalError> {
    let (segments, _leftovers) = walk::list(storage, "")?;
    let mut bytes = mark.end;
    for first in segments.into_iter().filter(|first| *first < mark.segment) {
        let name = segment::name_of(first);
        let size = storage.open(&name, Access::Read).and_then(|file| file.size());
        bytes = bytes.saturating_add(size.map_err(|source| JournalError::read(name, source))?);
    }
    Ok(bytes)
}

/// Reads and checks all that is before a mark, and that its history is the mark's. Takes no lock, and may run beside
/// the one that writes the journal, as long as no segments are dropped. `visit` may end it early by an error.
///
/// # Errors
/// [`JournalError::Corrupt`] names the first damaged place; [`ReadError::Refused`] when `visit` fails.
pub fn check_before<S, E>(
    storage: &S,
    mark: &Mark,
    advice: &str,
    visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>>
where
    S: Storage,
    E: std::error::Error + 'static,
{
    let (mut segments, _leftovers) = walk::list(storage, advice)?;
    walk::check_floor(storage, &segments, walk::read_synced(storage)?, advice)?;
    segments.retain(|first| *first <= mark.segment);
    let witness = Witness::Marked { seq: mark.head.seq };
    Range { segments, end: *mark, witness }.read(storage, advice, visit)
}

/// Segments one after another, up to a mark in the last of them.
pub(crate) struct Range {
    pub(crate) segments: Vec<Seq>,
    pub(crate) end: Mark,
    /// How it is known that all of it was committed.
    pub(crate) witness: Witness,
}

impl Range {
    /// Gives all records to `visit`, in order. Memory: one group.
    pub(crate) fn read<S, E>(
        &self,
        storage: &S,
        advice: &str,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>>
    where
        S: Storage,
        E: std::error::Error + 'static,
    {
        let Self { end, witness, .. } = *self;
        let mut before = None;
        for first in self.segments.iter().copied() {
            let limit = (first == end.segment).then_some(end.end);
            let mut reader = SegmentReader::open(storage, first, before, limit)?.map_err(|fault| {
                segment::corrupt(segment::name_of(first), 0, first, fault, witness, advice)
            })?;
            loop {
                match reader.step()? {
                    Step::End => break,
                    Step::Damaged(damage) => return Err(reader.corrupt(damage, witness, advice).into()),
                    Step::Group => {
                        for record in reader.records() {
                            let Record { seq, at, .. } = record;
                            visit(record).map_err(|source| ReadError::Refused { seq, at, source })?;
                        }
                    }
                }
            }
            if first == end.segment && reader.head != end.head {
                let (synced, expected) = (end.head.seq, end.head.chain);
                let fault = Fault::OtherHistory { synced, expected };
                let damage = Damage { offset: reader.offset, seq: synced, fault };
                return Err(reader.corrupt(damage, witness, advice).into());
            }
            before = Some(reader.head);
        }
        match self.segments.last() {
            Some(last) if *last == end.segment => Ok(()),
            Some(_) | None => {
                let name = segment::name_of(end.segment);
                let fault = Fault::SegmentGap { expected: end.segment };
                Err(segment::corrupt(name, 0, end.segment, fault, witness, advice).into())
            }
        }
    }
}
