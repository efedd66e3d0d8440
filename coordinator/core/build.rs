//! Names the code that makes the fleet's state: a hash over the sources of this crate and of `berth-shared`, in the
//! variable `BERTH_FLEET_CODE`. An image of the state is believed by the very same code only.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Relative to this crate's folder. All that decides what a state is, and how it looks in bytes.
const SOURCES: [&str; 2] = ["src", "../../shared/src"];

fn main() -> io::Result<()> {
    let mut files = BTreeMap::new();
    let mut out = io::stdout();
    for folder in SOURCES {
        writeln!(out, "cargo::rerun-if-changed={folder}")?;
        read(Path::new(folder), &mut files)?;
    }
    let mut hash = Fnv::default();
    for (path, bytes) in &files {
        hash.add(path.as_os_str().as_encoded_bytes());
        hash.add(bytes);
    }
    writeln!(out, "cargo::rustc-env=BERTH_FLEET_CODE={:032x}", hash.0)
}

fn read(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, files)?;
        } else {
            files.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(())
}

/// FNV-1a with 128 bits: tells versions of a source apart; nobody attacks it, so no crate is needed for it.
struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        let length = u128::try_from(bytes.len()).unwrap_or(u128::MAX).to_le_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 ^= u128::from(*byte);
            self.0 = self.0.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}
