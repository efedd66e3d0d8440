//! The records' bytes in the journal.
//!
//! Kinds and versions are fixed; a payload type is never edited after release, a new version gets a new number.

use berth_shared::codec::{self, CodecError};
use berth_shared::ids::CellId;
use berth_shared::time::BootMs;
use berth_shared::wire::PAYLOAD_BYTES_MAX;

use super::{Later, Memory, Record, Remembered, Report};

/// Kinds of records, with their version.
const JOINED: (u16, u16) = (1, 1);
const SESSION: (u16, u16) = (2, 1);
const DESIRED: (u16, u16) = (3, 1);
const INTENT: (u16, u16) = (4, 1);
/// Without the time: read only.
const REPORT_V1: (u16, u16) = (5, 1);
const REPORT: (u16, u16) = (5, 2);
/// As releases before [`SNAPSHOT`] wrote it: read only.
const SNAPSHOT_V1: (u16, u16) = (6, 1);
const SNAPSHOT: (u16, u16) = (6, 2);
const BOOTED: (u16, u16) = (7, 1);
const SLOT: (u16, u16) = (8, 1);
const KEY_USED: (u16, u16) = (20, 1);
const PIN_NEXT: (u16, u16) = (21, 1);
const PIN: (u16, u16) = (22, 1);
const LEASE: (u16, u16) = (25, 1);
const PURGED: (u16, u16) = (26, 1);
const TERMS: (u16, u16) = (27, 1);
const SCHEDULE: (u16, u16) = (30, 1);
const SCHEDULES: (u16, u16) = (31, 1);
const SNAPSHOT_STEP: (u16, u16) = (40, 1);
const KEPT: (u16, u16) = (41, 1);
const UNTOLD: (u16, u16) = (42, 1);
const ARCHIVED: (u16, u16) = (43, 1);
const ALL_ARCHIVED: (u16, u16) = (44, 1);
const MAY_HAVE_RUN: (u16, u16) = (45, 1);
const RUNS: (u16, u16) = (46, 1);
const ALL_RAN: (u16, u16) = (47, 1);
const HAPPENED: (u16, u16) = (48, 1);
const ALL_HAPPENED: (u16, u16) = (49, 1);
const PUTS_BACK: (u16, u16) = (50, 1);

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A kind or version that this build does not know.
    #[error("record kind {kind} version {version} is not known to this build")]
    Unknown {
        /// The kind.
        kind: u16,
        /// The version.
        version: u16,
    },
    /// The payload is not of its kind.
    #[error("the payload of record kind {kind} version {version} cannot be read")]
    Payload {
        /// The kind.
        kind: u16,
        /// The version.
        version: u16,
        /// Why.
        #[source]
        source: CodecError,
    },
}

impl Record {
    /// Kind, version and payload for the journal.
    pub fn encode(&self) -> Result<(u16, u16, Vec<u8>), CodecError> {
        let ((kind, version), payload) = match self {
            Self::Joined(body) => (JOINED, codec::encode(body)?),
            Self::Session(mark, welcomed) => (SESSION, codec::encode(&(mark, welcomed))?),
            Self::Desired(body) => (DESIRED, codec::encode(body)?),
            Self::Intent(body) => (INTENT, codec::encode(body)?),
            Self::Report(body) => (REPORT, codec::encode(&(body, body.at))?),
            Self::Booted(body) => (BOOTED, codec::encode(body)?),
            Self::Slot(cell, slot) => (SLOT, codec::encode(&(cell, slot))?),
            Self::KeyUsed(body) => (KEY_USED, codec::encode(body)?),
            Self::PinNext(body) => (PIN_NEXT, codec::encode(body)?),
            Self::Pin(body) => (PIN, codec::encode(body)?),
            Self::Lease(body) => (LEASE, codec::encode(body)?),
            Self::Purged(cell, generation) => (PURGED, codec::encode(&(cell, generation))?),
            Self::Terms(body) => (TERMS, codec::encode(body)?),
            Self::Schedule(cell, schedule) => (SCHEDULE, codec::encode(&(cell, schedule))?),
            Self::Schedules(body) => (SCHEDULES, codec::encode(body)?),
            Self::Step(body) => (SNAPSHOT_STEP, codec::encode(body)?),
            Self::Kept(body) => (KEPT, codec::encode(body)?),
            Self::Untold(body) => (UNTOLD, codec::encode(body)?),
            Self::Archived(cell, snapshot) => (ARCHIVED, codec::encode(&(cell, snapshot))?),
            Self::AllArchived(body) => (ALL_ARCHIVED, codec::encode(body)?),
            Self::PutsBack(cell, snapshot, paths) => (PUTS_BACK, codec::encode(&(cell, snapshot, paths))?),
            Self::MayHaveRun(body) => (MAY_HAVE_RUN, codec::encode(body)?),
            Self::Runs(cell, image) => (RUNS, codec::encode(&(cell, image))?),
            Self::AllRan(body) => (ALL_RAN, codec::encode(body)?),
            Self::Happened(cell, event) => (HAPPENED, codec::encode(&(cell, event))?),
            Self::AllHappened(body) => (ALL_HAPPENED, codec::encode(body)?),
            Self::Snapshot(body) => {
                let known = |(cell, known): (&CellId, &Remembered)| Some((*cell, known.frozen_at?));
                let frozen: Vec<(CellId, BootMs)> = body.cells.iter().filter_map(known).collect();
                (SNAPSHOT, codec::encode(&(body, &body.later, frozen))?)
            }
        };
        Ok((kind, version, payload))
    }

    /// Reads a record back.
    pub fn decode(kind: u16, version: u16, payload: &[u8]) -> Result<Self, RecordError> {
        fn read<T: serde::de::DeserializeOwned>(
            (kind, version): (u16, u16),
            payload: &[u8],
        ) -> Result<T, RecordError> {
            codec::decode(payload, PAYLOAD_BYTES_MAX).map_err(|source| RecordError::Payload {
                kind,
                version,
                source,
            })
        }
        let key = (kind, version);
        Ok(match key {
            JOINED => Self::Joined(read(key, payload)?),
            SESSION => {
                let (mark, welcomed) = read(key, payload)?;
                Self::Session(mark, welcomed)
            }
            DESIRED => Self::Desired(read(key, payload)?),
            INTENT => Self::Intent(read(key, payload)?),
            REPORT_V1 => Self::Report(read(key, payload)?),
            REPORT => {
                let (report, at): (Report, BootMs) = read(key, payload)?;
                Self::Report(Report { at, ..report })
            }
            BOOTED => Self::Booted(read(key, payload)?),
            SLOT => {
                let (cell, slot) = read(key, payload)?;
                Self::Slot(cell, slot)
            }
            KEY_USED => Self::KeyUsed(read(key, payload)?),
            PIN_NEXT => Self::PinNext(read(key, payload)?),
            PIN => Self::Pin(read(key, payload)?),
            LEASE => Self::Lease(read(key, payload)?),
            PURGED => {
                let (cell, generation) = read(key, payload)?;
                Self::Purged(cell, generation)
            }
            TERMS => Self::Terms(read(key, payload)?),
            SCHEDULE => {
                let (cell, schedule) = read(key, payload)?;
                Self::Schedule(cell, schedule)
            }
            SCHEDULES => Self::Schedules(read(key, payload)?),
            SNAPSHOT_STEP => Self::Step(read(key, payload)?),
            KEPT => Self::Kept(read(key, payload)?),
            UNTOLD => Self::Untold(read(key, payload)?),
            ARCHIVED => {
                let (cell, snapshot) = read(key, payload)?;
                Self::Archived(cell, snapshot)
            }
            ALL_ARCHIVED => Self::AllArchived(read(key, payload)?),
            PUTS_BACK => {
                let (cell, snapshot, paths) = read(key, payload)?;
                Self::PutsBack(cell, snapshot, paths)
            }
            MAY_HAVE_RUN => Self::MayHaveRun(read(key, payload)?),
            RUNS => {
                let (cell, image) = read(key, payload)?;
                Self::Runs(cell, image)
            }
            ALL_RAN => Self::AllRan(read(key, payload)?),
            HAPPENED => {
                let (cell, event) = read(key, payload)?;
                Self::Happened(cell, event)
            }
            ALL_HAPPENED => Self::AllHappened(read(key, payload)?),
            SNAPSHOT_V1 => Self::Snapshot(read(key, payload)?),
            SNAPSHOT => {
                let (memory, later, frozen): (Memory, Later, Vec<(CellId, BootMs)>) = read(key, payload)?;
                let mut memory = Box::new(Memory { later, ..memory });
                for (cell, at) in frozen {
                    if let Some(known) = memory.cells.get_mut(&cell) {
                        known.frozen_at = Some(at);
                    }
                }
                Self::Snapshot(memory)
            }
            (kind, version) => return Err(RecordError::Unknown { kind, version }),
        })
    }
}
