//! Reads a tar of strangers, with or without gzip around it, entry by entry. Nothing of it is trusted: what is held at a
//! time is one block, one long name or one extended header, each bounded; what is read has a bound before and behind the
//! gzip; and an archive without its end is not whole.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::entry::{Header, PATH_BYTES_MAX};
use crate::error::Failure;

/// Everything in a tar is a multiple of this, in bytes.
const BLOCK: usize = 512;

/// Largest extended header, in bytes: attributes of 64 KiB may be in it.
const EXTENDED_BYTES_MAX: u64 = 256 * 1024;

/// Longest target of a link that is passed over, in bytes.
const LINK_BYTES_MAX: u64 = 64 * 1024;

/// Most that may be behind the end of an archive: `tar` fills its last record.
const TAIL_BYTES_MAX: u64 = 1024 * 1024;

/// First bytes of a gzip.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// What is held of the stream at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// What an entry says, with the names that headers before it gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    path: Vec<u8>,
    kind: u8,
    mode: u32,
    pub(super) bytes: u64,
    pub(super) mtime: u64,
}

impl Found {
    pub(super) fn header(&self) -> Header<'_> {
        Header { path: &self.path, kind: self.kind, mode: self.mode, bytes: self.bytes }
    }

    /// The name for people.
    pub(super) fn name(&self) -> String {
        readable(&self.path)
    }
}

/// A stranger's name for people: short, and nothing in it that a terminal obeys.
pub(super) fn readable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    name.chars().take(200).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// An archive that is read.
pub(super) struct Archive<'a> {
    input: Box<dyn Read + 'a>,
    /// Content of the last entry that was not read yet, and the filling behind it.
    rest: u64,
    filling: u64,
}

impl<'a> Archive<'a> {
    /// Of at most so many bytes, with gzip and without.
    pub(super) fn new(input: impl Read + 'a, bytes_max: u64) -> Result<Self, Failure> {
        let mut input = Bounded::new(input, bytes_max);
        let mut begin = vec![];
        (&mut input).take(GZIP_MAGIC.len() as u64).read_to_end(&mut begin).map_err(broken)?;
        let is_gzip = begin == GZIP_MAGIC;
        let whole = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(begin).chain(input));
        let input: Box<dyn Read + 'a> = if is_gzip {
            Box::new(Bounded::new(MultiGzDecoder::new(whole), bytes_max))
        } else {
            Box::new(whole)
        };
        Ok(Self { input, rest: 0, filling: 0 })
    }

    /// The next entry; `None` at the archive's end, behind which there is nothing.
    pub(super) fn next(&mut self) -> Result<Option<Found>, Failure> {
        self.pass(self.rest.saturating_add(self.filling))?;
        (self.rest, self.filling) = (0, 0);
        let (mut long, mut extended) = (None, Extended::default());
        loop {
            let Some(header) = self.header()? else {
                self.tail()?;
                return Ok(None);
            };
            let bytes = header.entry_size().map_err(|_| bad("the size in a header is no number"))?;
            match header.entry_type().as_byte() {
                b'L' => long = Some(self.text(bytes, PATH_BYTES_MAX as u64 + 1)?),
                b'K' => drop(self.text(bytes, LINK_BYTES_MAX)?),
                b'x' => extended = Extended::parse(&self.text(bytes, EXTENDED_BYTES_MAX)?)?,
                // What is said for all entries says nothing that is taken over.
                b'g' => drop(self.text(bytes, EXTENDED_BYTES_MAX)?),
                kind => {
                    let bytes = extended.size.unwrap_or(bytes);
                    let path =
                        extended.path.or(long.map(without_nul)).unwrap_or_else(|| header.path_bytes().into());
                    let mode = header.mode().unwrap_or(0);
                    let mtime = header.mtime().unwrap_or(0);
                    self.rest = bytes;
                    self.filling = filling(bytes);
                    return Ok(Some(Found { path, kind, mode, bytes, mtime }));
                }
            }
        }
    }

    /// One header; `None` at the two empty blocks that end an archive.
    fn header(&mut self) -> Result<Option<::tar::Header>, Failure> {
        let block = self.block()?;
        if block.iter().all(|byte| *byte == 0) {
            if self.block()?.iter().any(|byte| *byte != 0) {
                return Err(bad("there is an empty block before the end"));
            }
            return Ok(None);
        }
        let header = ::tar::Header::from_byte_slice(&block).clone();
        let stated = header.cksum().map_err(|_| bad("it is no tar, nor one in gzip"))?;
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if stated != sum {
            return Err(bad("it is no tar, nor one in gzip"));
        }
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<[u8; BLOCK], Failure> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(broken)?;
        Ok(block)
    }

    /// The content of a header that is more than a block.
    fn text(&mut self, bytes: u64, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        if bytes > bytes_max {
            return Err(bad(format!("a header says more than {bytes_max} bytes")));
        }
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.input.read_exact(&mut text).map_err(broken)?;
        self.pass(filling(bytes))?;
        Ok(text)
    }

    /// A part of the entry's content; none at its end.
    pub(super) fn content(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        let most = usize::try_from(self.rest).unwrap_or(usize::MAX).min(into.len());
        let part = into.get_mut(..most).unwrap_or_default();
        if part.is_empty() {
            return Ok(0);
        }
        let read = self.input.read(part).map_err(broken)?;
        if read == 0 {
            return Err(cut());
        }
        self.rest -= read as u64;
        Ok(read)
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Failure> {
        let passed = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink()).map_err(broken)?;
        if passed == bytes { Ok(()) } else { Err(cut()) }
    }

    /// Only filling may be behind the end; with gzip its checksum is there.
    fn tail(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; BLOCK];
        let mut passed = 0;
        loop {
            let read = self.input.read(&mut buffer).map_err(broken)?;
            passed += read as u64;
            if read == 0 {
                return Ok(());
            }
            if passed > TAIL_BYTES_MAX || buffer.iter().take(read).any(|byte| *byte != 0) {
                return Err(bad("there is something behind its end"));
            }
        }
    }
}

fn filling(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

/// What is taken of an extended header: `LENGTH NAME=VALUE\n`, again and again.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    fn parse(mut text: &[u8]) -> Result<Self, Failure> {
        let wrong = || bad("an extended header cannot be read");
        let mut found = Self::default();
        while !text.is_empty() {
            let space = text.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = std::str::from_utf8(text.get(..space).unwrap_or_default()).ok();
            let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
            let record = text.get(space + 1..length).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (name, value) =
                (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
            match name {
                b"path" => found.path = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                    found.size = Some(size.ok_or_else(wrong)?);
                }
                name if name.starts_with(b"GNU.sparse.") => return Err(bad("it holds a sparse file")),
                _ => {}
            }
            text = text.get(length..).unwrap_or_default();
        }
        Ok(found)
    }
}

/// Reads no further than so many bytes.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
    const fn new(inner: R, bytes_max: u64) -> Self {
        Self { inner, left: bytes_max }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(read)
    }
}

pub(super) fn bad(detail: impl Into<String>) -> Failure {
    Failure::BadArchive { detail: detail.into() }
}

fn cut() -> Failure {
    bad("it breaks off before its end")
}

fn broken(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut(),
        io::ErrorKind::FileTooLarge => Failure::ArchiveTooLarge { what: "bytes" },
        _ => bad(error.to_string()),
    }
}
