//! Berth's journal: an ordered, hash-chained log of records in append-only segment files.
//!
//! The journal knows sequence numbers, kinds and bytes. It does not know what a payload means, has no clock, does
//! not log and does no asynchronous work: the daemon that owns it gives it a thread.
//!
//! # What a caller may rely on
//!
//! 1. When [`Journal::append_group`] returns `Ok`, all records of the group are on stable storage and every later
//!    [`Journal::open`] replays them, in order, or refuses to open.
//! 2. A group is replayed wholly or not at all.
//! 3. A group whose append did *not* return `Ok` is there after a restart or it is not; after
//!    [`JournalError::Full`] it is not.
//! 4. Damage is never repaired by guessing. Only an incomplete write behind the last commit marker is cut, at open;
//!    anything else is a [`Corruption`] that names the segment, the byte, the sequence, what was expected, how it is
//!    known to be damage, and what to do.
//! 5. The chain hash of a record stands for that record and all before it: two journals with the same
//!    `(sequence, chain)` have the same history.
//!
//! Guarantee 1 has one named limit, the *last group without witness*: see "Torn or damaged" below.
//!
//! # Files
//!
//! ```text
//! <directory>/                      locked (flock) by the one process that has it open
//!   00000000000000000001.log        segment; the name is its first sequence
//!   00000000000000000057.log
//!   synced                          512 bytes: how far the journal is known to be synced
//!   00000000000000000099.log.new    a segment being made; removed at open
//! ```
//!
//! All integers are little-endian. Everything is laid out in sectors of 512 bytes.
//!
//! ```text
//! segment = header (1 sector), then groups, then the end of the file
//!
//! header    0  magic "BERTHJNL"    8  format version u16 = 1   10  sector bytes u16 = 512   12  zero u32
//!          16  first sequence u64 24  segment id [16]          40  chain it continues from [32]
//!          72  zero               508 CRC-32 of bytes 0..508
//!
//! group   = opening, records, zeros, commit marker; starts and ends on a sector boundary
//!
//! opening   0  magic "Bgrp"        4  group bytes u32           8  record count u32
//!          12  offset in segment u64   20  first sequence u64  28  segment id [16]   44  CRC-32 of bytes 0..44
//! record    0  payload bytes u32   4  kind u16   6  kind version u16   8  sequence u64
//!          16  chain [32] = SHA-256(chain before, bytes 0..16, payload)
//!          48  CRC-32 of bytes 0..48 and the payload           52  payload
//! marker    0  magic "Bcmt"        4  group bytes u32           8  record count u32
//!          12  offset in segment u64   20  last sequence u64   28  segment id [16]
//!          44  chain after the last record [32]                76  CRC-32 of bytes 0..76
//!
//! synced    0  magic "BERTHSYN"    8  format version u16 = 1   10  zero   16  floor sequence u64
//!          24  synced sequence u64 32  chain there [32]        64  zero  508  CRC-32 of bytes 0..508
//! ```
//!
//! Every byte is under a CRC or must be zero. The chain runs over records only, so neither grouping nor segment
//! borders change it; the chain before sequence 1 is 32 zeros. The segment id is 16 random bytes.
//!
//! # Writing
//!
//! A commit is one write of whole sectors at the end of the last segment, and one `fdatasync`. The next group is not
//! written before that `fdatasync` has returned, and what a failed write left is cut *and the cut synced* before
//! anything else is written. So **at any moment at most one group is unsynced, and it is the last one**. No write
//! touches a sector that holds an acknowledged group (except the rewrite at open, below, with the same bytes).
//!
//! A segment is made under the name `*.log.new`: header, `fdatasync`, rename, sync of the directory; only then is it
//! appended to. So a segment under its own name has a whole header, always.
//!
//! After a failed `fdatasync` Linux may drop the pages it could not write and call them clean: a second `fdatasync`
//! would succeed and prove nothing. So a [`JournalError::Sync`] poisons the journal, and the process must end. For
//! the same reason open *writes the last group again* before it syncs, unless `synced` shows that its sync succeeded.
//!
//! # Torn or damaged
//!
//! When the bytes at the expected start `P` of a group are not a valid group, they are either the *torn* rest of the
//! one unsynced group, of which any subset of sectors may have reached the disk and the others hold old data, zeros
//! or blocks of deleted files; or they are a *damaged* group that had been acknowledged. The bytes of the group alone
//! cannot tell: both are a group with bad sectors. What can tell is a **witness** that something happened which only
//! happens after the group at `P` was synced:
//!
//! | witness | why it proves that the group at `P` had been synced |
//! |---|---|
//! | `P` is not in the last segment | a new segment is made after the last sync of the one before |
//! | a valid opening at a later sector, or a valid marker of a group that starts later | the next group is written after the sync |
//! | the opening, or the marker, of the group at `P` is whole, and the file goes on behind the group's end | so is any part of the next group |
//! | more than [`GROUP_BYTES_MAX`] bytes from `P` to the end | one group is never that long |
//! | `synced` names a sequence at or behind the group | it is written after the sync |
//!
//! With a witness it is corruption, and the error says which witness. Without one the tail is cut at `P`. Openings and
//! markers name their segment's id and their own offset, so neither a block of a deleted segment nor bytes inside a
//! payload can pose as a witness.
//!
//! `synced` is one sector, written in place after each commit's `fdatasync` and before the commit returns; it is
//! itself *not* synced then (that would double the cost of a commit), only at open, at [`Journal::close`], and before
//! segments are dropped. Written late or lost, it only claims less; it can never claim too much. Unreadable or absent,
//! it is ignored. It also shows a journal whose last groups, last segment or first segments were taken away cleanly,
//! which the chain cannot.
//!
//! | what happened | decided as |
//! |---|---|
//! | killed, panicked, out of memory (kernel lives on) | exact: `synced` is in the page cache; any damage to any acknowledged group is corruption |
//! | stopped by `close`, later damaged | exact: `synced` was synced |
//! | power cut | a damaged group is corruption if any group was begun after it, or if `synced` reached the disk (the kernel writes it back within about 30 s) |
//! | power cut, and bit rot in the very last acknowledged group, and `synced` of that commit not written back | **taken for torn and cut** |
//! | `synced` removed or not copied, last group damaged | **taken for torn and cut** |
//!
//! The two bold rows are the limit. The first needs a media fault in the newest sectors and a power cut within the
//! same half minute. Closing it would cost a second `fdatasync` per commit; a stronger witness would be
//! signed checkpoints that nodes and the bucket have seen, compared with [`Journal::head`]. There are none yet.
//!
//! Assumed of the disk: a sector is written or not, and writing one sector does not harm others. A disk that lies
//! about `fdatasync` loses the end of the journal; `synced` cannot show that, checkpoints could.
//!
//! # Copies and restores
//!
//! A copy of a journal in use is good when `synced` is copied *first*, then the segments, oldest first: the unfinished
//! group at its end is cut when the copy is opened. Copied last, `synced` knows of groups that the copy lacks, and the
//! copy is refused. A restore replaces the whole directory; an older copy beside a newer `synced` is refused on purpose,
//! with [`Fault::EndsEarly`], since records that had been acknowledged are missing.
//!
//! # Beginning at a mark
//!
//! Who keeps a summary of the records may keep the [`Mark`] behind the last of them with it. [`fits`] says whether the
//! journal has that history: the commit marker there holds the chain over all records before. [`Journal::open_from`] then
//! reads what is behind the mark only, with the same rules for torn and damaged; [`check_before`] reads the rest, at any
//! time, beside the one that writes.
//!
//! # Modules
//!
//! | module | decides |
//! |---|---|
//! | `record` | the words: sequence, chain, kind, record |
//! | `format` | the bytes of header, opening, record, marker and `synced` |
//! | `group` | the bytes of one group, and what is wrong with it |
//! | `segment` | segment names; reading one segment group by group |
//! | `tail` | torn or damaged |
//! | `walk` | reading a whole journal: replay and [`verify`] |
//! | `range` | reading what is known to be committed: [`check_before`] a mark, and the open journal's own records |
//! | `inspect` | telling all that is wrong with a journal, of what kind each damage is |
//! | `journal` | [`Journal`]: open, append, read, rotate, drop |
//! | `storage` | the file layer: [`Storage`], [`File`], [`StdStorage`] |
//! | `sim` | a file layer in memory that loses and tears what was not synced (feature `sim`) |
//! | `error` | every way it can fail |
//! | `failpoint` | where tests have the process die (debug builds) |

mod error;
mod failpoint;
mod format;
mod group;
mod inspect;
mod journal;
mod range;
mod record;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod storage;
mod tail;
mod walk;

#[cfg(test)]
mod tests;

pub use error::{Corruption, Fault, JournalError, ReadError, Witness};
pub use failpoint::POINTS as FAILPOINTS;
pub use format::{GROUP_BYTES_MAX, GROUP_RECORDS_MAX, PAYLOAD_BYTES_MAX};
pub use group::group_bytes;
pub use inspect::{DamageKind, Finding, Inspection, Known, Refusal, inspect};
pub use journal::{Committed, Cut, Journal, Options, Recovery, SEGMENT_BYTES_DEFAULT};
pub use range::{bytes_before, check_before, fits};
pub use record::{At, Chain, Head, KindId, KindVersion, Mark, NewRecord, Record, Seq};
pub use storage::{Access, File, LockError, StdStorage, Storage};
pub use walk::{Tail, Verified, scan, verify};
