//! One segment: its name, its header, and reading it group by group in bounded memory.

use std::ops::Range;

use crate::error::{Corruption, Fault, JournalError, Witness};
use crate::format::{Header, Marker, OPENING_BYTES, Opening, SECTOR, wide};
use crate::group::{self, Damage, Place};
use crate::record::{Head, Mark, Record, Seq};
use crate::storage::{Access, File, Storage, read_exact_at};

const NAME_DIGITS: usize = 20;
const SUFFIX: &str = ".log";
const SUFFIX_NEW: &str = ".log.new";

/// File name of the segment that starts at `first`.
pub(crate) fn name_of(first: Seq) -> String {
    format!("{:0NAME_DIGITS$}{SUFFIX}", first.get())
}

/// Name of that segment while it is made.
pub(crate) fn new_name_of(first: Seq) -> String {
    format!("{:0NAME_DIGITS$}{SUFFIX_NEW}", first.get())
}

/// What a file in the journal's directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment(Seq),
    /// Left by a crash while a segment was made.
    NewSegment,
    /// Ends like a segment, but has no sequence: somebody renamed it.
    Misnamed,
    /// Not the journal's.
    Foreign,
}

pub(crate) fn kind_of(name: &str) -> FileKind {
    let number = |digits: &str| {
        let plain = digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten().filter(|number| *number > 0).map(Seq::new)
    };
    if let Some(digits) = name.strip_suffix(SUFFIX) {
        number(digits).map_or(FileKind::Misnamed, FileKind::Segment)
    } else if name.strip_suffix(SUFFIX_NEW).and_then(number).is_some() {
        FileKind::NewSegment
    } else {
        FileKind::Foreign
    }
}

/// A segment that is being read, from its first group on.
pub(crate) struct SegmentReader<F> {
    pub(crate) file: F,
    pub(crate) name: String,
    pub(crate) header: Header,
    /// Bytes behind this are not looked at.
    pub(crate) limit: u64,
    /// Start of the next group.
    pub(crate) offset: u64,
    /// The last record before `offset`.
    pub(crate) head: Head,
    opening: Option<Opening>,
    group: Vec<u8>,
}

/// What stands at the reader's place.
pub(crate) enum Step {
    /// A whole group, now in [`SegmentReader::records`]; the reader stands behind it.
    Group,
    /// The limit.
    End,
    /// Something that is not the group that belongs here; the reader stands before it.
    Damaged(Damage),
}

impl<F: File> SegmentReader<F> {
    /// Opens the segment that starts at `first` and should follow on `before` (`None`: the oldest that is here).
    /// The inner error is damage of the header, at offset 0.
    pub(crate) fn open<S: Storage<File = F>>(
        storage: &S,
        first: Seq,
        before: Option<Head>,
        limit: Option<u64>,
    ) -> Result<Result<Self, Fault>, JournalError> {
        let name = name_of(first);
        let failed = |source| JournalError::read(name.clone(), source);
        let file = storage.open(&name, Access::Read).map_err(failed)?;
        let limit = match limit {
            Some(limit) => limit,
            None => file.size().map_err(failed)?,
        };
        let mut sector = vec![0; SECTOR];
        if limit < wide(SECTOR) || !read_exact_at(&file, 0, &mut sector).map_err(failed)? {
            return Ok(Err(Fault::HeaderCut));
        }
        let header = match Header::decode(&sector) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        if header.first != first {
            return Ok(Err(Fault::HeaderSequence { found: header.first }));
        }
        // The first segment of all continues from nothing, whatever its header says.
        let genesis = (first == Seq::FIRST).then_some(Head::EMPTY);
        if let Some(before) = before.or(genesis) {
            match before.seq.checked_add(1) {
                Some(expected) if expected == first => {}
                _ => {
                    let expected = before.seq.checked_add(1).unwrap_or(before.seq);
                    return Ok(Err(Fault::SegmentGap { expected }));
                }
            }
            if header.continues != before.chain {
                let (expected, found) = (before.chain, header.continues);
                return Ok(Err(Fault::SegmentChain { expected, found }));
            }
        }
        let head = Head { seq: first.previous().unwrap_or_default(), chain: header.continues };
        let (offset, group) = (wide(SECTOR), Vec::new());
        Ok(Ok(Self { file, name, header, limit, offset, head, opening: None, group }))
    }

    /// Opens the segment of a mark, with the reader behind the mark. The inner `None`: this is not the history that
    /// the mark was made of. Looks at the segment's header and at the commit marker before the mark, which holds the
    /// chain, and so stands for all that is before it.
    pub(crate) fn open_at<S: Storage<File = F>>(
        storage: &S,
        mark: &Mark,
    ) -> Result<Option<Self>, JournalError> {
        let mut reader = match Self::open(storage, mark.segment, None, None)? {
            Ok(reader) => reader,
            Err(_damaged) => return Ok(None),
        };
        if mark.end == wide(SECTOR) {
            return Ok((reader.head == mark.head).then_some(reader));
        }
        if mark.end < wide(SECTOR) || mark.end > reader.limit || !mark.end.is_multiple_of(wide(SECTOR)) {
            return Ok(None);
        }
        let mut sector = vec![0; SECTOR];
        let whole = read_exact_at(&reader.file, mark.end.saturating_sub(wide(SECTOR)), &mut sector)
            .map_err(|source| JournalError::read(reader.name.clone(), source))?;
        let Some(marker) = Marker::decode_end(&sector).ok().filter(|_| whole) else { return Ok(None) };
        let first =
            marker.last.get().checked_sub(u64::from(marker.records)).map(|before| Seq::new(before + 1));
        let fits = marker.id == reader.header.id
            && marker.offset.checked_add(u64::from(marker.bytes)) == Some(mark.end)
            && (Head { seq: marker.last, chain: marker.chain }) == mark.head;
        let Some(first) = first.filter(|_| fits) else { return Ok(None) };
        reader.opening = Some(Opening {
            bytes: marker.bytes,
            records: marker.records,
            offset: marker.offset,
            first,
            id: marker.id,
        });
        reader.offset = mark.end;
        reader.head = mark.head;
        Ok(Some(reader))
    }

    /// Reads the next group and checks all of it.
    pub(crate) fn step(&mut self) -> Result<Step, JournalError> {
        let left = self.limit.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Step::End);
        }
        let place = self.place();
        let damaged = |fault| {
            let seq = place.before.seq.checked_add(1).unwrap_or(place.before.seq);
            Ok(Step::Damaged(Damage { offset: place.offset, seq, fault }))
        };
        if left < wide(SECTOR) {
            return damaged(Fault::EndsInside);
        }
        self.group.resize(OPENING_BYTES, 0);
        if !self.fill()? {
            return damaged(Fault::EndsInside);
        }
        let opening = match group::decode_opening(&self.group, place) {
            Ok(opening) => opening,
            Err(fault) => return damaged(fault),
        };
        if left < u64::from(opening.bytes) {
            return damaged(Fault::EndsInside);
        }
        self.group.resize(usize::try_from(opening.bytes).expect("decode_opening bounds it"), 0);
        if !self.fill()? {
            return damaged(Fault::EndsInside);
        }
        match group::check(&self.group, &opening, place) {
            Ok(head) => {
                self.offset = self.offset.saturating_add(u64::from(opening.bytes));
                self.head = head;
                self.opening = Some(opening);
                Ok(Step::Group)
            }
            Err(damage) => Ok(Step::Damaged(damage)),
        }
    }

    /// The records of the group that the last [`step`](Self::step) read; only after [`Step::Group`].
    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.opening.iter().flat_map(|opening| group::records(&self.group, self.header.first, opening))
    }

    /// Where the group that was read last starts and ends; `None` before the first.
    pub(crate) fn last_group(&self) -> Option<Range<u64>> {
        self.opening.map(|opening| opening.offset..self.offset)
    }

    pub(crate) fn place(&self) -> Place {
        Place { id: self.header.id, offset: self.offset, before: self.head }
    }

    pub(crate) fn corrupt(&self, damage: Damage, witness: Witness, advice: &str) -> JournalError {
        let Damage { offset, seq, fault } = damage;
        corrupt(self.name.clone(), offset, seq, fault, witness, advice)
    }

    fn fill(&mut self) -> Result<bool, JournalError> {
        read_exact_at(&self.file, self.offset, &mut self.group)
            .map_err(|source| JournalError::read(self.name.clone(), source))
    }
}

pub(crate) fn corrupt(
    segment: String,
    offset: u64,
    seq: Seq,
    fault: Fault,
    witness: Witness,
    advice: &str,
) -> JournalError {
    JournalError::Corrupt(Box::new(Corruption {
        segment,
        offset,
        seq,
        fault,
        witness,
        advice: advice.to_owned(),
    }))
}
