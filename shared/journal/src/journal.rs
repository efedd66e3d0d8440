//! [`Journal`]: opens, appends, reads, rotates, drops. Owns the last segment's end, the head and the poison.
//!
//! ```text
//! ready --append, rotate, drop--> ready
//!   |  failed sync, or a failed write that could not be taken back
//!   v
//! poisoned   (refuses everything; the process ends)
//! ```

use std::io;

use crate::error::{JournalError, ReadError, Witness};
use crate::failpoint;
use crate::format::{Header, SECTOR, SegmentId, Synced, wide};
use crate::group::{self, Place};
use crate::range::Range;
use crate::record::{Chain, Head, Mark, NewRecord, Record, Seq};
use crate::segment;
use crate::storage::{Access, File, LockError, Storage, read_exact_at, write_all_at};
use crate::walk::{self, Begin, DIRECTORY_NAME, LastSegment, SYNCED_NAME};

/// Length at which a new segment is begun, when nothing else is said.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Memory that is kept for the next group between commits.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// A group that would make its segment longer than this goes to a new one. A segment holds at least one group,
    /// whatever its length. Default [`SEGMENT_BYTES_DEFAULT`].
    pub segment_bytes: u64,
    /// Begin a new journal when there is none. Default yes.
    pub create: bool,
    /// What errors about damage tell a person to do: name the restore command here.
    pub advice: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            create: true,
            advice:
                "Do not edit or remove segment files; keep a copy of the whole directory, then restore it \
                     from the newest verified backup"
                    .to_owned(),
        }
    }
}

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The oldest sequence that is here; one behind `head` in a journal without records.
    pub first: Seq,
    /// The newest record.
    pub head: Head,
    /// How many records were replayed.
    pub records: u64,
    /// The unfinished group that was cut, if there was one.
    pub cut: Option<Cut>,
}

/// An unfinished group that was cut at open. Nobody had been told that it was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// File name of the segment.
    pub segment: String,
    /// Where the group started.
    pub offset: u64,
    /// To the end of the file.
    pub bytes: u64,
}

/// A group that is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Sequence of its first record.
    pub first_seq: Seq,
    /// Sequence of its last record.
    pub last_seq: Seq,
    /// Chain after its last record.
    pub chain: Chain,
}

/// An open journal; the only one on its directory.
#[derive(Debug)]
pub struct Journal<S: Storage> {
    storage: S,
    options: Options,
    /// First sequences, rising; never empty.
    segments: Vec<Seq>,
    last: OpenSegment<S::File>,
    head: Head,
    /// What `synced` says of the oldest segments; never falls, so that a removal that failed half-way stays allowed.
    floor: Seq,
    synced_file: S::File,
    buffer: Vec<u8>,
    poisoned: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
struct OpenSegment<F> {
    file: F,
    name: String,
    id: SegmentId,
    /// Behind the last commit marker.
    end: u64,
}

impl<S: Storage> Journal<S> {
    /// Locks the directory, gives every record to `visit` in order, cuts what a crash left unfinished, and makes sure
    /// that all that was replayed is on stable storage before it returns. Memory: one group.
    ///
    /// What `visit` built must be thrown away when this fails: damage may show after many records.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] for damage, [`JournalError::Locked`], [`ReadError::Refused`] when `visit` fails.
    pub fn open<E>(
        storage: S,
        options: Options,
        visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Self, Recovery), ReadError<E>>
    where
        E: std::error::Error + 'static,
    {
        Self::open_from(storage, options, None, visit)
    }

    /// As [`open`](Self::open), but reads, checks and gives only what is behind `from`. The history before it is the
    /// one that `from` was made of, or this fails: its chain stands in the commit marker there. What those older bytes
    /// look like by now is not looked at: [`check_before`](crate::check_before) does that, at leisure.
    ///
    /// # Errors
    /// As [`open`](Self::open); a mark that does not [`fit`](crate::fits) is [`Fault::OtherHistory`].
    pub fn open_from<E>(
        storage: S,
        options: Options,
        from: Option<&Mark>,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Self, Recovery), ReadError<E>>
    where
        E: std::error::Error + 'static,
    {
        storage.lock().map_err(|error| match error {
            LockError::Held => JournalError::Locked,
            LockError::Io(source) => JournalError::Lock(source),
        })?;
        let begin = from.map_or(Begin::Oldest, Begin::Mark);
        let walked = walk::walk(&storage, &options.advice, begin, &mut visit)?;
        for name in &walked.leftovers {
            storage.remove(name).map_err(|source| JournalError::write(name, source))?;
        }
        // A name that an earlier process saw may not have reached the disk.
        sync_directory(&storage)?;
        let mut segments = walked.segments;
        let (last, cut) = match walked.last {
            Some(last) => {
                let witnessed = walked.synced.is_some_and(|synced| synced.head.seq >= walked.head.seq);
                adopt(&storage, last, witnessed)?
            }
            None if options.create => {
                segments.push(Seq::FIRST);
                (make_segment(&storage, Seq::FIRST, Head::EMPTY)?, None)
            }
            None => return Err(JournalError::Missing.into()),
        };
        let first = segments.first().copied().unwrap_or(Seq::FIRST);
        let floor = walked.synced.map_or(first, |synced| synced.floor.max(first));
        let synced_file = write_synced(&storage, Synced { floor, head: walked.head })?;
        let recovery = Recovery { first, head: walked.head, records: walked.records, cut };
        let (head, buffer) = (walked.head, Vec::new());
        let poisoned = false;
        let journal = Self { storage, options, segments, last, head, floor, synced_file, buffer, poisoned };
        Ok((journal, recovery))
    }

    /// The newest record.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The place behind the newest commit, for a later [`open_from`](Self::open_from).
    #[must_use]
    pub fn mark(&self) -> Mark {
        let segment = self.segments.last().copied().unwrap_or(Seq::FIRST);
        Mark { head: self.head, segment, end: self.last.end }
    }

    /// The oldest sequence that is here; one behind [`head`](Self::head) in a journal without records.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        self.segments.first().copied().unwrap_or(Seq::FIRST)
    }

    /// Has a fatal error put the journal out of use?
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Appends the records as one commit and returns when they are on stable storage, after one `fdatasync` (and those
    /// of making a segment, when one is full). All or none are appended.
    ///
    /// # Errors
    /// After [`JournalError::Full`] and [`JournalError::Write`] nothing was appended and the journal goes on; when
    /// [`JournalError::is_fatal`] it is unknown whether the group is there, and the journal is poisoned.
    pub fn append_group(&mut self, records: &[NewRecord<'_>]) -> Result<Committed, JournalError> {
        self.check_usable()?;
        group::check_bounds(records)?;
        let bytes = wide(group::group_bytes(records.iter().map(|record| record.payload.len())));
        let is_empty = self.last.end <= wide(SECTOR);
        let is_full = self.last.end.saturating_add(bytes) > self.options.segment_bytes;
        if !is_empty && (is_full || failpoint::SEGMENT_FULL.is_forced()) {
            self.rotate()?;
        }
        let place = Place { id: self.last.id, offset: self.last.end, before: self.head };
        let head = group::encode(&mut self.buffer, place, records)?;
        let written = failpoint::APPEND_BEGUN.check();
        if let Err(write) = written.and_then(|()| write_all_at(&self.last.file, self.last.end, &self.buffer))
        {
            return Err(self.take_back(write));
        }
        let written = failpoint::APPEND_WRITTEN.check();
        if let Err(source) = written.and_then(|()| self.last.file.sync_data()) {
            return Err(self.poison(JournalError::sync(self.last.name.clone(), source)));
        }
        let first_seq = self.head.seq.checked_add(1).ok_or(JournalError::SequenceExhausted)?;
        self.last.end = self.last.end.saturating_add(wide(self.buffer.len()));
        self.head = head;
        failpoint::APPEND_SYNCED.reach();
        self.note_synced();
        failpoint::APPEND_NOTED.reach();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(Committed { first_seq, last_seq: head.seq, chain: head.chain })
    }

    /// Gives the records from `from` on to `visit`, in order, up to [`head`](Self::head). Checks all that it reads,
    /// and reads the segment that holds `from` from its start. Memory: one group.
    ///
    /// # Errors
    /// [`JournalError::Dropped`] when `from` is older than the journal; [`JournalError::Corrupt`] when the disk no
    /// longer holds what was read or written before.
    pub fn read_from<E>(
        &self,
        from: Seq,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>>
    where
        E: std::error::Error + 'static,
    {
        self.check_usable()?;
        let (from, first) = (from.max(Seq::FIRST), self.first_seq());
        if from < first {
            return Err(JournalError::Dropped { asked: from, first }.into());
        }
        let holds = self.segments.partition_point(|segment| *segment <= from).saturating_sub(1);
        let segments: Vec<Seq> = self.segments.iter().skip(holds).copied().collect();
        let range = Range { segments, end: self.mark(), witness: Witness::Committed };
        range.read(&self.storage, &self.options.advice, |record| {
            if record.seq < from { Ok(()) } else { visit(record) }
        })
    }

    /// Begins a new segment, unless the last one is still empty. Before a snapshot record, so that all older segments
    /// can be dropped after it.
    ///
    /// # Errors
    /// As [`append_group`](Self::append_group).
    pub fn rotate(&mut self) -> Result<(), JournalError> {
        self.check_usable()?;
        if self.last.end <= wide(SECTOR) {
            return Ok(());
        }
        let first = self.head.seq.checked_add(1).ok_or(JournalError::SequenceExhausted)?;
        match make_segment(&self.storage, first, self.head) {
            Ok(last) => {
                self.last = last;
                self.segments.push(first);
                Ok(())
            }
            Err(error) => Err(self.poison_if_fatal(error)),
        }
    }

    /// Removes the segments that hold only records before `seq`, oldest first; the last segment always stays. Returns
    /// how many were removed. The removed segments cannot be asked for again, and from then on a journal that does
    /// not reach back to [`first_seq`](Self::first_seq) counts as damaged.
    ///
    /// # Errors
    /// After [`JournalError::Write`] some of the segments may still be there; try again later.
    pub fn drop_segments_before(&mut self, seq: Seq) -> Result<usize, JournalError> {
        self.check_usable()?;
        let keep = self.segments.partition_point(|first| *first <= seq).saturating_sub(1);
        let Some(floor) = self.segments.get(keep).copied().filter(|_| keep > 0) else { return Ok(0) };
        // First say that they may be missing, then remove them: a crash between leaves too many, not too few.
        self.floor = self.floor.max(floor);
        let synced = Synced { floor: self.floor, head: self.head };
        write_all_at(&self.synced_file, 0, &synced.encode())
            .map_err(|source| JournalError::write(SYNCED_NAME, source))?;
        if let Err(source) = self.synced_file.sync_data().and_then(|()| failpoint::DROP_SAID.check()) {
            return Err(self.poison(JournalError::sync(SYNCED_NAME, source)));
        }
        for _ in 0..keep {
            let oldest = segment::name_of(self.first_seq());
            self.storage.remove(&oldest).map_err(|source| JournalError::write(oldest, source))?;
            self.segments.remove(0);
            failpoint::DROP_REMOVED.reach();
            // One by one, so that no crash leaves a hole.
            if let Err(error) = sync_directory(&self.storage) {
                return Err(self.poison_if_fatal(error));
            }
        }
        Ok(keep)
    }

    /// Ends the use of the journal and syncs `synced`, so that even damage to the very last group will show. Dropping
    /// the journal instead loses no record.
    ///
    /// # Errors
    /// [`JournalError::Sync`]; all records are durable all the same.
    pub fn close(self) -> Result<(), JournalError> {
        self.check_usable()?;
        self.synced_file.sync_data().map_err(|source| JournalError::sync(SYNCED_NAME, source))
    }

    fn check_usable(&self) -> Result<(), JournalError> {
        if self.poisoned { Err(JournalError::Poisoned) } else { Ok(()) }
    }

    fn poison(&mut self, error: JournalError) -> JournalError {
        self.poisoned = true;
        error
    }

    fn poison_if_fatal(&mut self, error: JournalError) -> JournalError {
        if error.is_fatal() { self.poison(error) } else { error }
    }

    /// Cuts what a failed write left, durably: the next group must not share the file with its remains.
    fn take_back(&mut self, write: io::Error) -> JournalError {
        let name = self.last.name.clone();
        let cut = failpoint::UNDO_BEGUN.check().and_then(|()| self.last.file.truncate(self.last.end));
        match cut.and_then(|()| failpoint::UNDO_CUT.check()).and_then(|()| self.last.file.sync_data()) {
            Ok(()) => JournalError::write(name, write),
            Err(source) => self.poison(JournalError::Undo { name, write, source }),
        }
    }

    /// Writes `synced` without syncing it. A failure is not passed on: the group is committed, and an older `synced`
    /// only claims less; the next commit tries again.
    fn note_synced(&self) {
        let synced = Synced { floor: self.floor, head: self.head };
        let _claims_less = write_all_at(&self.synced_file, 0, &synced.encode());
    }
}

/// Takes over the last segment: cuts what is torn, and makes durable what was replayed.
fn adopt<S: Storage>(
    storage: &S,
    last: LastSegment,
    witnessed: bool,
) -> Result<(OpenSegment<S::File>, Option<Cut>), JournalError> {
    let name = segment::name_of(last.header.first);
    let file =
        storage.open(&name, Access::Write).map_err(|source| JournalError::read(name.clone(), source))?;
    let cut = last.torn.map(|_| Cut {
        segment: name.clone(),
        offset: last.end,
        bytes: last.file_bytes.saturating_sub(last.end),
    });
    if cut.is_some() {
        let cut = file.truncate(last.end).and_then(|()| failpoint::OPEN_CUT.check());
        cut.map_err(|source| JournalError::write(name.clone(), source))?;
    }
    // Pages that an earlier process failed to sync read as written but count as clean: writing them again makes them
    // dirty, so that the sync below means what it says. See "Writing" in the crate's documentation.
    if let Some(group) = last.last_group.filter(|_| !witnessed) {
        let length = usize::try_from(group.end.saturating_sub(group.start))
            .expect("the walk read this group, so its length is bounded");
        let mut bytes = vec![0; length];
        if read_exact_at(&file, group.start, &mut bytes)
            .map_err(|source| JournalError::read(name.clone(), source))?
        {
            write_all_at(&file, group.start, &bytes)
                .and_then(|()| failpoint::OPEN_REWRITTEN.check())
                .map_err(|source| JournalError::write(name.clone(), source))?;
        }
    }
    file.sync_data().map_err(|source| JournalError::sync(name.clone(), source))?;
    failpoint::OPEN_SYNCED.reach();
    Ok((OpenSegment { file, name, id: last.header.id, end: last.end }, cut))
}

/// Makes the segment that starts at `first`; when this returns, it and its name are durable.
fn make_segment<S: Storage>(
    storage: &S,
    first: Seq,
    before: Head,
) -> Result<OpenSegment<S::File>, JournalError> {
    let (name, new_name) = (segment::name_of(first), segment::new_name_of(first));
    let failed = |source| JournalError::write(new_name.clone(), source);
    let id = SegmentId(storage.fresh_id().map_err(failed)?);
    let header = Header { first, id, continues: before.chain }.encode();
    // Left by an attempt that ran out of room.
    match storage.remove(&new_name) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let file = storage.create(&new_name).map_err(failed)?;
    failpoint::SEGMENT_CREATED.check().map_err(failed)?;
    write_all_at(&file, 0, &header).map_err(failed)?;
    failpoint::SEGMENT_WRITTEN.check().map_err(failed)?;
    file.sync_data().map_err(|source| JournalError::sync(new_name.clone(), source))?;
    failpoint::SEGMENT_SYNCED.check().map_err(failed)?;
    storage.rename(&new_name, &name).map_err(failed)?;
    failpoint::SEGMENT_RENAMED.reach();
    sync_directory(storage)?;
    Ok(OpenSegment { file, name, id, end: wide(header.len()) })
}

/// Writes and syncs `synced`, making the file when it is missing.
fn write_synced<S: Storage>(storage: &S, synced: Synced) -> Result<S::File, JournalError> {
    let failed = |source| JournalError::write(SYNCED_NAME, source);
    let (file, made) = match storage.open(SYNCED_NAME, Access::Write) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = storage.create(SYNCED_NAME).map_err(failed)?;
            failpoint::SYNCED_CREATED.check().map_err(failed)?;
            (file, true)
        }
        Err(error) => return Err(failed(error)),
    };
    let sector = synced.encode();
    // Longer than it ever is: written by somebody else, and ignored when it was read.
    if file.size().map_err(failed)? > wide(sector.len()) {
        file.truncate(wide(sector.len())).map_err(failed)?;
    }
    write_all_at(&file, 0, &sector).map_err(failed)?;
    failpoint::SYNCED_WRITTEN.check().map_err(failed)?;
    file.sync_data().map_err(|source| JournalError::sync(SYNCED_NAME, source))?;
    if made {
        sync_directory(storage)?;
    }
    Ok(file)
}

fn sync_directory(storage: &impl Storage) -> Result<(), JournalError> {
    storage.sync_directory().map_err(|source| JournalError::sync(DIRECTORY_NAME, source))
}
