//! Format version 1 as bytes that never change: `golden/v1` is decoded, and written again identically.

use super::{Fact, append, expected, open};
use crate::sim::SimDisk;
use crate::{Options, verify};

const FIRST: (&str, &[u8]) =
    ("00000000000000000001.log", include_bytes!("../../golden/v1/00000000000000000001.log"));
const SECOND: (&str, &[u8]) =
    ("00000000000000000005.log", include_bytes!("../../golden/v1/00000000000000000005.log"));
const SYNCED: (&str, &[u8]) = ("synced", include_bytes!("../../golden/v1/synced"));

/// The disk's seed goes into the segment ids.
const SEED: u64 = 0x0123_4567_89ab_cdef;

fn groups() -> [Vec<Fact>; 4] {
    let versioned = Fact { kind: 0xfffe, version: 0x0203, payload: (0..=255).collect() };
    [
        vec![Fact::new(1, "first")],
        vec![Fact::new(2, ""), versioned, Fact::new(0, [0; 300])],
        vec![Fact::new(513, "in the second segment")],
        vec![Fact::new(u16::MAX, "last")],
    ]
}

fn options() -> Options {
    Options { segment_bytes: 2048, ..Options::default() }
}

#[test]
fn version_1_is_read_as_it_was_written() {
    let disk = SimDisk::new(0);
    [FIRST, SECOND, SYNCED].into_iter().for_each(|(name, bytes)| disk.put(name, bytes.to_vec()));
    let verified = verify(&disk.mount(), "").unwrap();
    assert_eq!((verified.segments, verified.groups, verified.records), (2, 4, 6));
    let (.., read) = open(disk.mount(), options()).unwrap();
    assert_eq!(read, expected(&groups().concat()));
}

#[test]
fn version_1_is_written_as_it_was_written() {
    let disk = SimDisk::new(SEED);
    let (mut journal, ..) = open(disk.mount(), options()).unwrap();
    for group in groups() {
        append(&mut journal, &group).unwrap();
    }
    journal.close().unwrap();
    let files: Vec<(String, Vec<u8>)> = disk.files().into_iter().collect();
    let golden = [FIRST, SECOND, SYNCED].map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    assert_eq!(files, golden);
}
