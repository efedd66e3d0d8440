//! Archives that users bring along, plain and in gzip.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | the bytes as they are: gzip or not, as they begin |
//! | 1 | the same with every header's check sum put right, so that changes reach what is behind it |

use std::path::Component;

use berth_snapshot::fuzz::entries;
use berth_snapshot::{ImportLimits, Reason};

use crate::input::{Input, seed};

/// Everything in a tar is a multiple of this.
const BLOCK: usize = 512;
/// Where a header's check sum is.
const SUM: std::ops::Range<usize> = 148..156;

const LIMITS: ImportLimits = ImportLimits { entries_max: 100, bytes_max: 64 * 1024 };

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(2) {
        0 => read(input.rest()),
        _ => read(&summed(input.rest())),
    }
}

fn read(bytes: &[u8]) {
    let (made, ended) = entries(bytes, LIMITS);
    for (path, mode, _) in &made {
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
        assert_eq!(mode & 0o7000, 0, "{path:?}");
        assert_eq!(mode & 0o600, 0o600, "{path:?}");
    }
    let stream: u64 = made.iter().map(|(_, _, bytes)| *bytes).sum();
    assert!(stream <= LIMITS.bytes_max + 4096 * LIMITS.entries_max, "{stream} bytes of {}", bytes.len());
    if let Err(reason) = ended {
        assert!(matches!(reason, Reason::BadArchive | Reason::TooLarge), "{reason:?}");
    }
}

/// Every block that is not empty gets the sum of a header.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        if let Some(sum) = block.get_mut(SUM) {
            sum.fill(b' ');
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        if let Some(place) = block.get_mut(SUM) {
            place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// A header and its content, filled up.
fn entry(path: &str, kind: u8, size: &str, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        block.iter_mut().skip(at).zip(text).for_each(|(to, from)| *to = *from);
    };
    put(0, path.as_bytes());
    put(100, b"0000644");
    put(124, size.as_bytes());
    put(136, b"00000000017");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let mut all = summed(&block);
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(BLOCK), 0);
    all
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let end = vec![0; 2 * BLOCK];
    let archives = [
        [entry("a/", b'5', "0", b""), entry("a/b", b'0', "7", b"content"), end.clone()].concat(),
        [
            entry("l", b'L', "5", b"long\0"),
            entry("cut", b'0', "0", b""),
            entry("x", b'2', "0", b""),
            end.clone(),
        ]
        .concat(),
        [entry("p", b'x', "16", b"16 path=../out\n"), entry("a", b'0', "0", b""), end.clone()].concat(),
        [entry("p", b'x', "9", b"9 size=3\n"), entry("a", b'0', "0", b"abc"), end].concat(),
    ];
    // An empty gzip, and one of stored bytes.
    let gzips = [
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1, 1, 0, 0xfe, 0xff, 0],
    ];
    let archives = archives.iter().flat_map(|archive| [seed(0, archive), seed(1, archive)]);
    archives.chain(gzips.iter().map(|gzip| seed(0, gzip))).collect()
}
