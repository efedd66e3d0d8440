//! Every target with the kept corpus and some thousand random changes of it, in a time that every test run can bear.
//! `scripts/fuzz` does the same guided by coverage, for as long as one likes.
//!
//! `FUZZ_SEED` chooses other changes, `FUZZ_INPUTS` how many. A finding names its input, which is kept; put into
//! `corpus/TARGET/` it is tried in every run from then on.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_fuzz::mutate::{Random, mutate};
use berth_fuzz::{TARGETS, Target};

/// Changes per target when nothing else is said.
const INPUTS: u64 = 2_500;

/// An input of some kilobytes that takes so long shows a loop that something outside decides about. Microseconds are
/// usual; the rest is for a machine that does other things.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);

/// What the kept corpus of all targets may take in the repository.
const CORPUS_BYTES_MAX: u64 = 2 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn corpus_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn kept(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(corpus_folder().join(target.name))
        .expect("each target has a folder")
        .map(|entry| entry.expect("a folder that can be read").path())
        .collect();
    files.sort_unstable();
    files.iter().map(|file| fs::read(file).expect("a file that can be read")).collect()
}

/// Tries an input. It is written first: what a stack overflow leaves is only this file.
fn check(target: &Target, input: &[u8]) {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
    fs::write(&place, input).expect("a place for temporary files");
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target.check(input)));
    let took = began.elapsed();
    assert!(result.is_ok(), "a finding: its input is kept in {}", place.display());
    assert!(took < INPUT_TIME_MAX, "it took {took:?}: the input is kept in {}", place.display());
}

fn run(name: &str) {
    let target = berth_fuzz::target(name).expect("it is in the table");
    let mut inputs = (target.seeds)();
    inputs.extend(kept(&target));
    for input in &inputs {
        check(&target, input);
    }
    let mut random = Random::new(number("FUZZ_SEED", 1));
    for _ in 0..number("FUZZ_INPUTS", INPUTS) {
        let from = random.one_of(&inputs).expect("every target has seeds");
        let input = mutate(&mut random, from, &inputs, target.input_bytes_max);
        check(&target, &input);
    }
}

#[test]
fn no_stream_harms_the_link() {
    run("link");
}

#[test]
fn no_archive_that_a_user_brings_along_harms_its_reader() {
    run("archive");
}

#[test]
fn no_damage_of_its_files_makes_a_journal_lie() {
    run("journal");
}

#[test]
fn no_payload_harms_whoever_reads_a_journal_or_the_door() {
    run("records");
}

#[test]
fn no_text_harms_whoever_reads_a_config() {
    run("config");
}

#[test]
fn no_stranger_gets_in_and_nothing_of_berths_gets_to_a_cell() {
    run("front");
}

#[test]
fn no_answer_of_a_cell_harms_the_agent() {
    run("workload");
}

#[test]
fn no_byte_of_a_socket_is_lost_overtaken_or_misunderstood() {
    run("socket");
}

#[test]
fn nothing_in_the_bucket_and_no_worker_harms_whoever_reads_it() {
    run("store");
}

#[test]
fn nothing_that_the_machine_says_harms_the_agent() {
    run("system");
}

#[test]
fn the_kept_corpus_is_small_and_of_the_targets_there_are() {
    let mut bytes = 0;
    for folder in fs::read_dir(corpus_folder()).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "there is no target `{name}`");
        for file in fs::read_dir(folder.path()).unwrap() {
            bytes += file.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}
