//! The bytes of format version 1: header, opening, record head, marker and the `synced` file. The table is in the
//! crate's documentation. Decides nothing but whether bytes are one of these; who may follow whom is `group` and `walk`.

use crate::error::Fault;
use crate::record::{Chain, Head, KindId, KindVersion, Seq};

/// Longest payload of one record.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Most records in one group.
pub const GROUP_RECORDS_MAX: usize = 4096;
/// Longest group, with everything around its payloads, as [`group_bytes`](crate::group_bytes) counts.
pub const GROUP_BYTES_MAX: usize = 4 << 20;

/// What a disk writes wholly or not at all.
pub(crate) const SECTOR: usize = 512;
pub(crate) const OPENING_BYTES: usize = 48;
pub(crate) const RECORD_HEAD_BYTES: usize = 52;
pub(crate) const MARKER_BYTES: usize = 80;

const FORMAT_VERSION: u16 = 1;
const SECTOR_FIELD: u16 = 512;
const HEADER_MAGIC: [u8; 8] = *b"BERTHJNL";
const SYNCED_MAGIC: [u8; 8] = *b"BERTHSYN";
const OPENING_MAGIC: [u8; 4] = *b"Bgrp";
const MARKER_MAGIC: [u8; 4] = *b"Bcmt";
const CRC_BYTES: usize = 4;
/// The part of a record head that the chain hash covers: length, kind, version, sequence.
const RECORD_CHAINED_BYTES: usize = 16;

/// A length in memory as a length in a file.
pub(crate) const fn wide(length: usize) -> u64 {
    length as u64
}

/// Random bytes that tell a segment from every other, also from a deleted one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentId(pub(crate) [u8; 16]);

/// First sector of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) first: Seq,
    pub(crate) id: SegmentId,
    /// The chain before `first`.
    pub(crate) continues: Chain,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR);
        out.extend(HEADER_MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend(SECTOR_FIELD.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.first.get().to_le_bytes());
        out.extend(self.id.0);
        out.extend(self.continues.as_bytes());
        seal_sector(out)
    }

    pub(crate) fn decode(sector: &[u8]) -> Result<Self, Fault> {
        let mut fields = Fields(unseal(sector).ok_or(Fault::HeaderChecksum)?);
        if fields.take() != Some(HEADER_MAGIC) {
            return Err(Fault::HeaderMagic);
        }
        let version = fields.u16().ok_or(Fault::HeaderMagic)?;
        if version != FORMAT_VERSION {
            return Err(Fault::FormatVersion { found: version });
        }
        let body = |mut fields: Fields<'_>| {
            let sector_bytes = fields.u16()?;
            let zero = fields.u32()?;
            let header = Self {
                first: Seq::new(fields.u64()?),
                id: SegmentId(fields.take()?),
                continues: Chain::from_bytes(fields.take()?),
            };
            (sector_bytes == SECTOR_FIELD && zero == 0 && is_zero(fields.0)).then_some(header)
        };
        body(fields).ok_or(Fault::HeaderFields)
    }
}

/// Start of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// Whole group, from this opening to the end of its marker.
    pub(crate) bytes: u32,
    pub(crate) records: u32,
    /// Of this opening in its segment.
    pub(crate) offset: u64,
    pub(crate) first: Seq,
    pub(crate) id: SegmentId,
}

impl Opening {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend(OPENING_MAGIC);
        out.extend(self.bytes.to_le_bytes());
        out.extend(self.records.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.first.get().to_le_bytes());
        out.extend(self.id.0);
        seal(out, from);
    }

    /// An opening at the start of `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let sealed = bytes.get(..OPENING_BYTES).ok_or(Fault::EndsInside)?;
        if !sealed.starts_with(&OPENING_MAGIC) {
            return Err(Fault::NoOpening);
        }
        let body = |mut fields: Fields<'_>| {
            let _magic: [u8; 4] = fields.take()?;
            Some(Self {
                bytes: fields.u32()?,
                records: fields.u32()?,
                offset: fields.u64()?,
                first: Seq::new(fields.u64()?),
                id: SegmentId(fields.take()?),
            })
        };
        unseal(sealed).and_then(|fields| body(Fields(fields))).ok_or(Fault::OpeningChecksum)
    }
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) payload_bytes: u32,
    pub(crate) kind: KindId,
    pub(crate) version: KindVersion,
    pub(crate) seq: Seq,
    pub(crate) chain: Chain,
    crc: u32,
}

impl RecordHead {
    /// Writes head and payload; returns the chain after the record.
    pub(crate) fn encode(
        out: &mut Vec<u8>,
        kind: KindId,
        version: KindVersion,
        at: Head,
        payload: &[u8],
        payload_bytes: u32,
    ) -> Chain {
        let mut head = Vec::with_capacity(RECORD_HEAD_BYTES);
        head.extend(payload_bytes.to_le_bytes());
        head.extend(kind.0.to_le_bytes());
        head.extend(version.0.to_le_bytes());
        head.extend(at.seq.get().to_le_bytes());
        let chain = at.chain.after(&head, payload);
        head.extend(chain.as_bytes());
        let crc = crc_of(&head, payload);
        head.extend(crc.to_le_bytes());
        out.extend(head);
        out.extend(payload);
        chain
    }

    /// Reads the fields; nothing is checked but that there are enough bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes.get(..RECORD_HEAD_BYTES)?);
        Some(Self {
            payload_bytes: fields.u32()?,
            kind: KindId(fields.u16()?),
            version: KindVersion(fields.u16()?),
            seq: Seq::new(fields.u64()?),
            chain: Chain::from_bytes(fields.take()?),
            crc: fields.u32()?,
        })
    }

    /// Is the record, whose bytes start with this head, what was written?
    pub(crate) fn checksum_holds(&self, bytes: &[u8], payload: &[u8]) -> bool {
        bytes
            .get(..RECORD_HEAD_BYTES.saturating_sub(CRC_BYTES))
            .is_some_and(|head| crc_of(head, payload) == self.crc)
    }

    /// Does the record follow on `before`?
    pub(crate) fn chain_holds(&self, before: Chain, bytes: &[u8], payload: &[u8]) -> bool {
        bytes.get(..RECORD_CHAINED_BYTES).is_some_and(|head| before.after(head, payload) == self.chain)
    }
}

/// End of a group: with it the group is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) bytes: u32,
    pub(crate) records: u32,
    /// Of the group's opening in its segment.
    pub(crate) offset: u64,
    pub(crate) last: Seq,
    pub(crate) id: SegmentId,
    /// After the last record: the group's hash, and that of all before it.
    pub(crate) chain: Chain,
}

impl Marker {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend(MARKER_MAGIC);
        out.extend(self.bytes.to_le_bytes());
        out.extend(self.records.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.last.get().to_le_bytes());
        out.extend(self.id.0);
        out.extend(self.chain.as_bytes());
        seal(out, from);
    }

    /// A marker at the end of `bytes`.
    pub(crate) fn decode_end(bytes: &[u8]) -> Result<Self, Fault> {
        let from = bytes.len().checked_sub(MARKER_BYTES).ok_or(Fault::EndsInside)?;
        let sealed = bytes.get(from..).ok_or(Fault::EndsInside)?;
        if !sealed.starts_with(&MARKER_MAGIC) {
            return Err(Fault::NoMarker);
        }
        let body = |mut fields: Fields<'_>| {
            let _magic: [u8; 4] = fields.take()?;
            Some(Self {
                bytes: fields.u32()?,
                records: fields.u32()?,
                offset: fields.u64()?,
                last: Seq::new(fields.u64()?),
                id: SegmentId(fields.take()?),
                chain: Chain::from_bytes(fields.take()?),
            })
        };
        unseal(sealed).and_then(|fields| body(Fields(fields))).ok_or(Fault::MarkerChecksum)
    }
}

/// Content of the `synced` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    /// A segment that starts here or before must exist.
    pub(crate) floor: Seq,
    /// All up to here was synced.
    pub(crate) head: Head,
}

impl Synced {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR);
        out.extend(SYNCED_MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([0; 6]);
        out.extend(self.floor.get().to_le_bytes());
        out.extend(self.head.seq.get().to_le_bytes());
        out.extend(self.head.chain.as_bytes());
        seal_sector(out)
    }

    /// `None` for anything that is not wholly and certainly a `synced` sector: it is then as if it were not there.
    pub(crate) fn decode(sector: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(sector)?);
        let (magic, version, zero) = (fields.take()?, fields.u16()?, fields.take()?);
        if (magic, version, zero) != (SYNCED_MAGIC, FORMAT_VERSION, [0; 6]) {
            return None;
        }
        let floor = Seq::new(fields.u64()?);
        let head = Head { seq: Seq::new(fields.u64()?), chain: Chain::from_bytes(fields.take()?) };
        is_zero(fields.0).then_some(Self { floor, head })
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn crc_of(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// Appends the CRC of everything from `from` on.
fn seal(out: &mut Vec<u8>, from: usize) {
    let crc = crc32fast::hash(out.get(from..).unwrap_or_default());
    out.extend(crc.to_le_bytes());
}

/// Fills up to a whole sector whose last four bytes are its CRC.
fn seal_sector(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(SECTOR - CRC_BYTES, 0);
    seal(&mut out, 0);
    out
}

/// The bytes before the CRC they end with, if it holds.
fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (body, crc) = sealed.split_last_chunk::<CRC_BYTES>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(body)
}

/// Takes little-endian fields from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
