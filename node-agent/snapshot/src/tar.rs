//! A snapshot as a tar stream: for whoever wants the files without any program of ours.
//!
//! POSIX's interchange format: names of any length and bytes, whole times and `user.` attributes are in extended headers.
//! Everything belongs to 0:0, since owners are those of a node. Nothing is collected: a folder's listing and a chunk of a
//! file are all that is held.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustic_core::LsOptions;
use rustic_core::repofile::{Node, NodeType};

use crate::error::Failure;
use crate::look::{Say, Sink, find, index, size};
use crate::repository::OpenRepository;
use crate::restore::plain_path;
use crate::source::unix_mode;

/// Everything in a tar is a multiple of this, in bytes.
const BLOCK: usize = 512;

/// Longest name that fits into a header, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// Eleven octal digits: sizes and times beyond it go into an extended header.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// Says the snapshot in `data` lines. How many bytes they were.
pub(crate) fn tar(repository: OpenRepository, snapshot: &str, say: Say<'_>) -> Result<u64, Failure> {
    let file = repository.snapshot(snapshot)?;
    let (indexed, failed) = index(repository)?;
    let root = find(&indexed, &file, "", &failed)?;
    let mut sink = Sink::says(say);
    sink.put(&head(Path::new("."), &root)?)?;
    for found in indexed.ls(&root, &LsOptions::default()).map_err(&failed)? {
        let (path, node) = found.map_err(&failed)?;
        // Who unpacks it may trust it more than it deserves.
        let plain = path.to_str().is_none_or(plain_path) && !path.is_absolute();
        let climbs = path.components().any(|part| !matches!(part, std::path::Component::Normal(_)));
        if !plain || climbs {
            let detail = format!("`{}`", path.to_string_lossy().chars().take(200).collect::<String>());
            return Err(Failure::HostileSnapshot { detail });
        }
        if !matches!(node.node_type, NodeType::Dir | NodeType::File | NodeType::Symlink { .. }) {
            continue;
        }
        sink.put(&head(&path, &node)?)?;
        if node.is_file() {
            let begun = sink.count();
            let dumped = indexed.dump(&node, &mut sink);
            sink.failed()?;
            dumped.map_err(&failed)?;
            let (written, told) = (sink.count() - begun, size(&node));
            if written != told {
                let detail = format!("a file of {told} bytes has {written}");
                return Err(Failure::Damaged { detail });
            }
            sink.put(&padding(written))?;
        }
    }
    sink.put(&[0; 2 * BLOCK])?;
    Ok(sink.count())
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.write_all(bytes);
        self.failed()?;
        written.map_err(|error| Failure::Internal { detail: error.to_string() })
    }
}

fn padding(bytes: u64) -> Vec<u8> {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    vec![0; if over == 0 { 0 } else { BLOCK - over }]
}

/// All headers of an entry.
fn head(path: &Path, node: &Node) -> Result<Vec<u8>, Failure> {
    let (kind, link) = match &node.node_type {
        NodeType::Dir => (b'5', &[][..]),
        NodeType::Symlink { .. } => (b'2', node.node_type.to_link().as_os_str().as_bytes()),
        _ => (b'0', &[][..]),
    };
    let mut name = path.as_os_str().as_bytes().to_vec();
    if kind == b'5' {
        name.push(b'/');
    }
    let mtime = node.meta.mtime.map_or(0, |mtime| mtime.as_nanosecond());
    let (seconds, nanos) = (mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
    let short_time = u64::try_from(seconds).ok().filter(|seconds| *seconds <= OCTAL_MAX);
    let bytes = size(node);
    let mut records = vec![];
    if name.len() > NAME_BYTES_MAX {
        record(&mut records, b"path", &name);
    }
    if link.len() > NAME_BYTES_MAX {
        record(&mut records, b"linkpath", link);
    }
    if bytes > OCTAL_MAX {
        record(&mut records, b"size", bytes.to_string().as_bytes());
    }
    if nanos != 0 || short_time.is_none() {
        record(&mut records, b"mtime", decimal(mtime).as_bytes());
    }
    for attribute in &node.meta.extended_attributes {
        let name = [b"SCHILY.xattr.", attribute.name.as_bytes()].concat();
        record(&mut records, &name, attribute.value.as_deref().unwrap_or_default());
    }
    let mode = unix_mode(node.meta.mode.unwrap_or_default());
    let mut all = vec![];
    if !records.is_empty() {
        all.extend(header(b"extended", b'x', 0o600, records.len() as u64, 0, &[]));
        let padding = padding(records.len() as u64);
        all.extend(records);
        all.extend(padding);
    }
    all.extend(header(&name, kind, mode, bytes.min(OCTAL_MAX), short_time.unwrap_or(0), link));
    Ok(all)
}

/// Nanoseconds since 1970 as seconds with a point, also before it.
fn decimal(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let all = nanoseconds.unsigned_abs();
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

/// `LENGTH NAME=VALUE\n`, where the length counts its own digits too.
fn record(to: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend(length.to_string().bytes());
    to.push(b' ');
    to.extend(name);
    to.push(b'=');
    to.extend(value);
    to.push(b'\n');
}

/// One block. What is too long was said before, in an extended header.
fn header(name: &[u8], kind: u8, mode: u32, size: u64, mtime: u64, link: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut field = |bytes: &[u8], width: usize| {
        block.extend(bytes.iter().copied().chain(std::iter::repeat(0)).take(width));
    };
    field(name, 100);
    field(format!("{mode:07o}").as_bytes(), 8);
    field(b"0000000", 8);
    field(b"0000000", 8);
    field(format!("{size:011o}").as_bytes(), 12);
    field(format!("{mtime:011o}").as_bytes(), 12);
    // The sum of all bytes, these eight taken as spaces.
    let before_sum = 148;
    field(b"        ", 8);
    field(&[kind], 1);
    field(link, 100);
    field(b"ustar", 6);
    field(b"00", 2);
    field(b"root", 32);
    field(b"root", 32);
    field(b"", 8 + 8 + 155 + 12);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block.splice(before_sum..before_sum + 8, format!("{sum:06o}\0 ").bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        let said = |value: &str| {
            let mut to = vec![];
            record(&mut to, b"path", value.as_bytes());
            String::from_utf8(to).unwrap()
        };
        assert_eq!(said("a"), "9 path=a\n");
        assert_eq!(said(""), "8 path=\n");
        for length in 0..2_000 {
            let said = said(&"x".repeat(length));
            assert_eq!(said.split_once(' ').unwrap().0.parse::<usize>().unwrap(), said.len());
        }
    }

    #[test]
    fn a_header_is_one_block_whatever_its_name() {
        for name in [&b"a"[..], &[0xff; 100], &[b'x'; 4096]] {
            assert_eq!(header(name, b'0', 0o644, OCTAL_MAX, OCTAL_MAX, name).len(), BLOCK);
        }
        assert_eq!(decimal(-1_500_000_000), "-1.500000000");
        assert_eq!(decimal(5), "0.000000005");
    }
}
