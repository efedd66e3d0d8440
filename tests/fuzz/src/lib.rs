//! Fuzz targets: each takes any bytes, gives them to parsers of what comes from outside, and checks what must be true
//! of every answer. A panic is a finding; so is an answer that breaks a rule, an input that takes seconds, and one that
//! takes more memory than its length explains.
//!
//! | target | what is parsed |
//! |---|---|
//! | [`link`] | the link's stream, envelopes, frames |
//! | [`journal`] | a journal's folder, damaged in any way |
//! | [`records`] | the payloads of both journals, the frames between agent and ingress |
//! | [`config`] | config files, variables and flags of the three daemons; key files |
//! | [`front`] | what strangers send to the front door; tokens, keys, links, cookies |
//! | [`workload`] | what a cell answers, and its hostile configuration |
//! | [`socket`] | what comes through an open WebSocket, from its client and its cell |
//! | [`archive`] | archives that users bring along |
//! | [`store`] | what lies in the bucket, what workers say and are asked, keys at rest, folders that users bring along |
//! | [`system`] | what the kernel, Docker and `nft` say; bodies of the HTTP API |
//!
//! The first byte of an input says which of a target's parsers is meant, so one corpus serves several. The same targets
//! are run in two ways: by `scripts/fuzz`, guided by coverage, for as long as one likes; and by `tests/bounded.rs`, with
//! the kept corpus and random changes, in every test run.

pub mod archive;
pub mod config;
pub mod front;
mod input;
pub mod journal;
pub mod link;
mod made;
pub mod mutate;
pub mod records;
pub mod socket;
pub mod store;
pub mod system;
pub mod workload;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process, so one input at a time.
static TURN: Mutex<()> = Mutex::new(());

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and its folder in `corpus/`.
    pub name: &'static str,
    /// Panics when something is wrong.
    run: fn(&[u8]),
    /// Inputs to begin with, made by the real encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input worth trying.
    pub input_bytes_max: usize,
    /// What an input may take whatever its length.
    memory_bytes: usize,
    /// What each byte of it may take on top.
    memory_per_byte: usize,
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target {
        name: "link",
        run: link::run,
        seeds: link::seeds,
        input_bytes_max: 4096,
        // serde allots up to 1 MiB for a list before its first element has been read, per level of nesting.
        memory_bytes: 4 << 20,
        memory_per_byte: 256,
    },
    Target {
        name: "archive",
        run: archive::run,
        seeds: archive::seeds,
        input_bytes_max: 8192,
        // A header of 256 KiB and a window of gzip's are allotted before what is in them has been read.
        memory_bytes: 1 << 20,
        memory_per_byte: 256,
    },
    Target {
        name: "journal",
        run: journal::run,
        seeds: journal::seeds,
        input_bytes_max: 8192,
        // The disk in memory keeps each file twice, and each is read twice.
        memory_bytes: 2 << 20,
        memory_per_byte: 256,
    },
    Target {
        name: "records",
        run: records::run,
        seeds: records::seeds,
        input_bytes_max: 4096,
        memory_bytes: 6 << 20,
        memory_per_byte: 512,
    },
    Target {
        name: "config",
        run: config::run,
        seeds: config::seeds,
        input_bytes_max: 4096,
        memory_bytes: 1 << 20,
        memory_per_byte: 4096,
    },
    Target {
        name: "front",
        run: front::run,
        seeds: front::seeds,
        input_bytes_max: 4096,
        memory_bytes: 256 << 10,
        memory_per_byte: 512,
    },
    Target {
        name: "workload",
        run: workload::run,
        seeds: workload::seeds,
        input_bytes_max: 16 << 10,
        memory_bytes: 512 << 10,
        memory_per_byte: 512,
    },
    Target {
        name: "socket",
        run: socket::run,
        seeds: socket::seeds,
        input_bytes_max: 4096,
        // Two queues, what is looked at of a text, and what the checks themselves keep.
        memory_bytes: 256 << 10,
        memory_per_byte: 512,
    },
    Target {
        name: "store",
        run: store::run,
        seeds: store::seeds,
        input_bytes_max: 4096,
        // A worker's line of 64 KiB is made of a few bytes, read twice and held as a tree in between.
        memory_bytes: 8 << 20,
        memory_per_byte: 1024,
    },
    Target {
        name: "system",
        run: system::run,
        seeds: system::seeds,
        input_bytes_max: 4096,
        memory_bytes: 1 << 20,
        memory_per_byte: 512,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

impl Target {
    /// Tries one input.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check(&self, input: &[u8]) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        (self.run)(input);
        let took = HEAP.peak_usage().saturating_sub(before);
        let most = self.memory_bytes.saturating_add(self.memory_per_byte.saturating_mul(input.len()));
        assert!(
            took <= most,
            "{} bytes of input took {took} bytes of memory, at most {most} are borne",
            input.len()
        );
    }

    /// Does what is done once, so that it is not counted as some input's memory, and writes the seeds into the folder
    /// that `FUZZ_SEEDS` names, if it does.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn prepare(&self) {
        let seeds = (self.seeds)();
        let Some(folder) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:03}")), seed)
                .expect("the folder can be written");
        }
    }
}
