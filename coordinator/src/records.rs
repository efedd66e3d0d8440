//! `journal verify` and `journal show`: the journal as a person reads it, whether a coordinator runs or not.
//!
//! Both read only and take no lock. What is shown of a record is its event's debug form: every type that holds a
//! secret, or the hash of one, shows `***` there.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::{Event, Fleet};
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::journal;
use berth_journal::{JournalError, ReadError, Record, Seq, StdStorage, scan};
use serde_json::json;

use crate::store::{ADVICE, replay_event};

/// Looks at the whole journal and tells what it found: its bytes, and whether its events follow from each other.
pub fn verify(folder: &Path, as_json: bool) -> Exit {
    let mut fleet = Fleet::new(FIRST_EPOCH);
    journal::verify(folder, as_json, ADVICE, |record| replay_event(&mut fleet, &record).map(drop))
}

/// Which records are shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// The first.
    pub from: u64,
    /// At most so many; `None`: all.
    pub limit: Option<u64>,
    /// One JSON object per line instead of text.
    pub as_json: bool,
}

/// Why no more is shown.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("as many as asked for")]
    Enough,
    #[error("the output is gone")]
    Out(#[source] io::Error),
}

/// Lists records, one per line.
///
/// # Errors
/// There is no journal, it cannot be read, or it is damaged behind what was shown.
pub fn show(folder: &Path, shown: Shown, out: &mut impl Write) -> Result<(), ExitError> {
    let storage = StdStorage::existing(folder).map_err(|error| Exit::NoInput.because(error))?;
    let mut left = shown.limit;
    let listed = scan(&storage, ADVICE, Seq::new(shown.from), |record| {
        if left == Some(0) {
            return Err(Stop::Enough);
        }
        left = left.map(|left| left.saturating_sub(1));
        let line =
            Line { record, event: Event::decode(record.kind.0, record.version.0, record.payload).ok() };
        let written = if shown.as_json { writeln!(out, "{}", line.json()) } else { writeln!(out, "{line}") };
        written.map_err(Stop::Out)
    });
    match listed {
        Ok(()) | Err(ReadError::Refused { source: Stop::Enough, .. }) => Ok(()),
        // As with `head`: whoever reads has seen enough.
        Err(ReadError::Refused { source: Stop::Out(error), .. })
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            Ok(())
        }
        Err(ReadError::Refused { source: Stop::Out(error), .. }) => Err(Exit::Io.because(error)),
        Err(ReadError::Journal(error)) => Err(match &error {
            JournalError::Missing => Exit::NoInput.because(error),
            JournalError::Corrupt(_) => Exit::DataCorrupt.because(error),
            _ => Exit::Io.because(error),
        }),
    }
}

/// One record; without an event where this release cannot read it.
struct Line<'a> {
    record: Record<'a>,
    event: Option<Event>,
}

impl Line<'_> {
    fn json(&self) -> serde_json::Value {
        let Record { seq, at, kind, version, chain, payload } = self.record;
        let event = self.event.as_ref();
        json!({
            "sequence": seq.get(),
            "at": event.map(|event| event.at.to_string()),
            "actor": event.map(|event| event.actor.to_string()),
            "event": event.map(|event| format!("{:?}", event.fact)),
            "kind": kind.0,
            "version": version.0,
            "bytes": payload.len(),
            "segment": at.segment_name(),
            "offset": at.offset,
            "chain": chain.to_string(),
        })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { seq, kind, version, payload, .. } = self.record;
        match &self.event {
            Some(event) => write!(f, "{:>8}  {}  {}  {:?}", seq.get(), event.at, event.actor, event.fact),
            None => write!(
                f,
                "{:>8}  not readable by this release: kind {}, version {}, {} bytes",
                seq.get(),
                kind.0,
                version.0,
                payload.len()
            ),
        }
    }
}

#[cfg(test)]
mod tests;
