//! The private parsers of this crate, for the fuzz targets of tests/fuzz. Nothing else may use this module: it decides
//! nothing, and its functions change with what they stand for.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::caller::{self, Done, WorkerFailed};
use crate::labels::Labels;
use crate::protocol::{Ask, Line};
use crate::read;

pub use crate::import::fuzz::{Entry, TakenIn, entries, taken_in};

/// Longest line that a reader of a repository takes for an ask.
pub const ASK_BYTES_MAX: u64 = crate::protocol::ASK_BYTES_MAX;

/// Longest text for people that is handed on of a worker.
pub const DETAIL_BYTES_MAX: usize = crate::error::DETAIL_BYTES_MAX;

/// What a snapshot's tags say, with the tree hash.
pub fn labels(tags: &[String]) -> Option<(Labels, String)> {
    Labels::parse(tags.iter())
}

/// The tags of a snapshot that is taken.
///
/// # Errors
/// None is taken with such labels.
pub fn tags(labels: &Labels, tree: &str) -> Result<Vec<String>, String> {
    labels.validate().map_err(|failure| failure.text())?;
    Ok(labels.tags(tree))
}

/// What is believed of a worker that wrote this to its standard output and error and ended with this status, as wait(2) has
/// it: the lines that are handed on, and what it came to. Read in pieces of so many bytes.
pub fn worker(
    (stdout, stderr): (&[u8], &[u8]),
    status: i32,
    piece: usize,
) -> (Vec<Line>, Result<Done, WorkerFailed>) {
    caller::believed((stdout, stderr), ExitStatus::from_raw(status), piece)
}

/// The asks that a worker would answer, and whether its input was asks to its end.
pub fn asks(mut stream: &[u8]) -> (Vec<Ask>, bool) {
    let mut asks = vec![];
    loop {
        match read::next(&mut stream) {
            Ok(Some(ask)) => asks.push(ask),
            Ok(None) => return (asks, true),
            Err(_) => return (asks, false),
        }
    }
}
