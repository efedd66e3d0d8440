//! Tells all that is wrong with a journal, and of what kind each damage is. Changes nothing and takes no lock.
//!
//! Opening stops at the first damage, because nothing behind it can be trusted to follow from what is before. A person
//! who has to mend it wants to know more: is it one file or ten, and what happened to it. So here the walk goes on:
//! the segments behind a damaged one are checked on their own terms, from their own headers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;

use crate::error::{Corruption, Fault, JournalError, ReadError, Witness};
use crate::record::{At, Head, Record, Seq};
use crate::segment::{self, FileKind, SegmentReader, Step};
use crate::storage::{Access, File, Storage};
use crate::tail;
use crate::walk::{self, Begin, DIRECTORY_NAME, SYNCED_NAME, Tail};

/// Most damages that are told one by one.
const FINDINGS_MAX: usize = 32;

/// What has happened to a journal, as far as its bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageKind {
    /// Bytes are missing at the end of a file or of the journal.
    Cut,
    /// Bytes are not what was written: bit rot, a bad disk, a write by somebody else.
    Flipped,
    /// Records, groups or files stand where others were written.
    Reordered,
    /// At least one segment is not there.
    MissingSegment,
    /// Whole in itself and not of this history: from another journal, or rewritten together with its checksums.
    Spliced,
    /// A segment was given a name that is none.
    Renamed,
    /// Not damaged as far as can be told: of a format that only a newer release reads.
    Newer,
}

impl DamageKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Cut,
        Self::Flipped,
        Self::Reordered,
        Self::MissingSegment,
        Self::Spliced,
        Self::Renamed,
        Self::Newer,
    ];

    /// One word for lists and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Flipped => "flipped",
            Self::Reordered => "reordered",
            Self::MissingSegment => "missing_segment",
            Self::Spliced => "spliced",
            Self::Renamed => "renamed",
            Self::Newer => "newer",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Fault {
    /// What has happened, as far as this fault alone tells. [`inspect`] knows more of an opening of another segment:
    /// whether that segment is one of this journal.
    #[must_use]
    pub const fn kind(&self) -> DamageKind {
        match self {
            Self::Name => DamageKind::Renamed,
            Self::FirstSegmentMissing { .. } | Self::SegmentGap { .. } => DamageKind::MissingSegment,
            Self::HeaderCut | Self::EndsInside | Self::EndsEarly { .. } => DamageKind::Cut,
            Self::FormatVersion { .. } => DamageKind::Newer,
            Self::HeaderSequence { .. }
            | Self::OpeningMoved { .. }
            | Self::OpeningSequence { .. }
            | Self::RecordSequence { .. } => DamageKind::Reordered,
            Self::SegmentChain { .. }
            | Self::OpeningForeign { .. }
            | Self::RecordChain
            | Self::MarkerMismatch
            | Self::OtherHistory { .. } => DamageKind::Spliced,
            Self::HeaderChecksum
            | Self::HeaderMagic
            | Self::HeaderFields
            | Self::NoOpening
            | Self::OpeningChecksum
            | Self::GroupSize
            | Self::RecordLength
            | Self::RecordChecksum
            | Self::Padding
            | Self::NoMarker
            | Self::MarkerChecksum => DamageKind::Flipped,
        }
    }
}

/// One damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What has happened.
    pub kind: DamageKind,
    /// Where, what was expected, and how it is known not to be a torn write.
    pub corruption: Corruption,
}

/// What the file `synced` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// All up to this sequence had been synced.
    Synced(Seq),
    /// There is no such file: damage to the last group cannot be told from a torn write.
    Missing,
    /// It is there and not readable. The next open makes it anew; until then as if it were missing.
    Unreadable,
}

/// A whole record that its reader did not want.
#[derive(Debug)]
pub struct Refusal<E> {
    /// Which.
    pub seq: Seq,
    /// Where its group starts.
    pub at: At,
    /// Why.
    pub source: E,
}

/// All that is known of a journal.
#[derive(Debug)]
pub struct Inspection<E> {
    /// How many segment files.
    pub segments: usize,
    /// Their length together.
    pub bytes: u64,
    /// The oldest sequence that is here.
    pub first: Seq,
    /// File name of the newest segment, which is the one that is still appended to.
    pub newest_segment: Option<String>,
    /// The newest record before any damage.
    pub head: Head,
    /// Commits before any damage.
    pub groups: u64,
    /// Records before any damage.
    pub records: u64,
    /// What stands behind the last commit marker; `None` where damage hides it.
    pub tail: Option<Tail>,
    /// What is known of the end.
    pub known: Known,
    /// Damages, in the order of the files. At most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Damages beyond those.
    pub findings_left_out: u64,
    /// The first record that `visit` refused; it was not called again.
    pub refused: Option<Refusal<E>>,
}

impl<E> Inspection<E> {
    /// Is nothing wrong? A torn tail is not: the next open cuts it, and nobody was ever told that it was committed.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.refused.is_none()
    }
}

/// Looks at a whole journal. Each record before the first damage is given to `visit`, until that refuses one;
/// `progress` is called after each group with how many bytes of how many have been read.
///
/// A journal in use may be inspected: the group that is being written shows as [`Tail::Incomplete`].
///
/// # Errors
/// [`JournalError::Missing`] when there is no journal, [`JournalError::Read`] when it cannot be read. Damage is not an
/// error here.
pub fn inspect<S, E>(
    storage: &S,
    advice: &str,
    mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    progress: impl FnMut(u64, u64),
) -> Result<Inspection<E>, JournalError>
where
    S: Storage,
    E: std::error::Error + 'static,
{
    let known = known(storage)?;
    let mut look = Look::begin(storage, advice, progress)?;
    let mut refused = None;
    let (mut head, mut groups, mut records, mut group) = (Head::EMPTY, 0_u64, 0_u64, None);
    let walked = walk::walk(storage, advice, Begin::Oldest, &mut |record: Record<'_>| {
        if group != Some(record.at) {
            group = Some(record.at);
            groups = groups.saturating_add(1);
            look.tell(record.at);
        }
        head = Head { seq: record.seq, chain: record.chain };
        records = records.saturating_add(1);
        if refused.is_none()
            && let Err(source) = visit(record)
        {
            refused = Some(Refusal { seq: record.seq, at: record.at, source });
        }
        Ok::<_, Infallible>(())
    });
    let tail = match walked {
        Ok(walked) => {
            head = walked.head;
            let last = walked.last.ok_or(JournalError::Missing)?;
            Some(last.torn.map_or(Tail::Clean, |_| Tail::Incomplete {
                offset: last.end,
                bytes: last.file_bytes.saturating_sub(last.end),
            }))
        }
        Err(ReadError::Journal(JournalError::Corrupt(corruption))) => {
            look.add(*corruption);
            look.behind()?;
            None
        }
        Err(ReadError::Journal(error)) => return Err(error),
        Err(ReadError::Refused { source, .. }) => match source {},
    };
    let Look { sizes, bytes, findings, findings_left_out, .. } = look;
    let first = sizes.keys().next().copied().unwrap_or(Seq::FIRST);
    let segments = sizes.len();
    let newest_segment = sizes.keys().next_back().copied().map(segment::name_of);
    Ok(Inspection {
        segments,
        bytes,
        first,
        newest_segment,
        head,
        groups,
        records,
        tail,
        known,
        findings,
        findings_left_out,
        refused,
    })
}

fn known(storage: &impl Storage) -> Result<Known, JournalError> {
    if let Some(synced) = walk::read_synced(storage)? {
        return Ok(Known::Synced(synced.head.seq));
    }
    let names = storage.list().map_err(|source| JournalError::read(DIRECTORY_NAME, source))?;
    let is_there = names.iter().any(|name| name == SYNCED_NAME);
    Ok(if is_there { Known::Unreadable } else { Known::Missing })
}

/// The files, and what was found so far.
struct Look<'a, S, P> {
    storage: &'a S,
    advice: &'a str,
    progress: P,
    /// Where each segment starts in all of them put together.
    sizes: BTreeMap<Seq, u64>,
    bytes: u64,
    findings: Vec<Finding>,
    findings_left_out: u64,
}

impl<'a, S: Storage, P: FnMut(u64, u64)> Look<'a, S, P> {
    fn begin(storage: &'a S, advice: &'a str, progress: P) -> Result<Self, JournalError> {
        let names = storage.list().map_err(|source| JournalError::read(DIRECTORY_NAME, source))?;
        let firsts = names.iter().filter_map(|name| match segment::kind_of(name) {
            FileKind::Segment(first) => Some(first),
            FileKind::NewSegment | FileKind::Misnamed | FileKind::Foreign => None,
        });
        let (mut sizes, mut bytes) = (BTreeMap::new(), 0_u64);
        let firsts: std::collections::BTreeSet<Seq> = firsts.collect();
        for first in firsts {
            let name = segment::name_of(first);
            let size = storage.open(&name, Access::Read).and_then(|file| file.size());
            sizes.insert(first, bytes);
            bytes = bytes.saturating_add(size.map_err(|source| JournalError::read(name, source))?);
        }
        Ok(Self { storage, advice, progress, sizes, bytes, findings: vec![], findings_left_out: 0 })
    }

    fn tell(&mut self, at: At) {
        let before = self.sizes.get(&at.segment).copied().unwrap_or_default();
        (self.progress)(before.saturating_add(at.offset), self.bytes);
    }

    fn add(&mut self, corruption: Corruption) {
        let is_known = |finding: &Finding| {
            (&finding.corruption.segment, finding.corruption.fault) == (&corruption.segment, corruption.fault)
        };
        if self.findings.last().is_some_and(is_known) {
            return;
        }
        if self.findings.len() >= FINDINGS_MAX {
            self.findings_left_out = self.findings_left_out.saturating_add(1);
            return;
        }
        let kind = match corruption.fault {
            Fault::OpeningForeign { id } if self.is_our_segment(id) => DamageKind::Reordered,
            fault => fault.kind(),
        };
        self.findings.push(Finding { kind, corruption });
    }

    /// Does a segment of this journal have this id? One that cannot be read has not.
    fn is_our_segment(&self, id: [u8; 16]) -> bool {
        self.sizes.keys().any(|first| {
            let opened = SegmentReader::open(self.storage, *first, None, None);
            opened.is_ok_and(|reader| reader.is_ok_and(|reader| reader.header.id.0 == id))
        })
    }

    /// Checks the segments behind the first damage, each from its own header.
    fn behind(&mut self) -> Result<(), JournalError> {
        let Some(damaged) = self.findings.first().map(|finding| finding.corruption.clone()) else {
            return Ok(());
        };
        let from = match segment::kind_of(&damaged.segment) {
            // Damage at the start of a file may only mean that it does not follow on the one before.
            FileKind::Segment(first) if damaged.offset == 0 => Some(first),
            FileKind::Segment(first) => first.checked_add(1),
            FileKind::NewSegment | FileKind::Misnamed | FileKind::Foreign => Some(Seq::ZERO),
        };
        let Some(from) = from else { return Ok(()) };
        let segments: Vec<Seq> = self.sizes.keys().copied().filter(|first| *first >= from).collect();
        let last = segments.last().copied();
        let mut before = None;
        for first in segments {
            before = self.alone(first, before, Some(first) == last)?;
        }
        Ok(())
    }

    /// Checks one segment, that should follow on `before` where that is known. Gives its end, if it is whole.
    fn alone(
        &mut self,
        first: Seq,
        before: Option<Head>,
        is_last: bool,
    ) -> Result<Option<Head>, JournalError> {
        let advice = self.advice;
        let header = |fault| Corruption {
            segment: segment::name_of(first),
            offset: 0,
            seq: first,
            fault,
            witness: Witness::NeverTorn,
            advice: advice.to_owned(),
        };
        let mut opened = SegmentReader::open(self.storage, first, before, None)?;
        if before.is_some()
            && let Err(fault) = opened
        {
            self.add(header(fault));
            opened = SegmentReader::open(self.storage, first, None, None)?;
        }
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(fault) => {
                self.add(header(fault));
                return Ok(None);
            }
        };
        loop {
            match reader.step()? {
                Step::End => return Ok(Some(reader.head)),
                Step::Group => self.tell(At { segment: first, offset: reader.offset }),
                Step::Damaged(damage) => {
                    if let Some(witness) = tail::witness(&reader, is_last, walk::read_synced(self.storage)?)?
                        && let JournalError::Corrupt(corruption) = reader.corrupt(damage, witness, advice)
                    {
                        self.add(*corruption);
                    }
                    return Ok(None);
                }
            }
        }
    }
}
