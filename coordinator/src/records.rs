//! `journal verify` and `journal show`: the journal as a person reads it, whether a coordinator runs or not.
//!
//! Both only read the journal, and do not lock it. A text that is sealed is opened where its key is at hand. What is shown of a record is its event's debug form: every type that holds a
//! secret, or the hash of one, shows `***` there.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::personal::Field;
use berth_coordinator_core::{Event, Fleet};
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::journal;
use berth_journal::{JournalError, ReadError, Record, Seq, StdStorage, scan};
use berth_shared::ids::UserId;
use serde_json::json;

use crate::keystore::{KeyStore, RecordKey};
use crate::personal::{keys_in, shown};
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
pub fn show(folder: &Path, keys: &KeyStore, shown: Shown, out: &mut impl Write) -> Result<(), ExitError> {
    let texts = Texts { keys, folder, opened: OnceCell::new() };
    let storage = StdStorage::existing(folder).map_err(|error| Exit::NoInput.because(error))?;
    let mut left = shown.limit;
    let listed = scan(&storage, ADVICE, Seq::new(shown.from), |record| {
        if left == Some(0) {
            return Err(Stop::Enough);
        }
        left = left.map(|left| left.saturating_sub(1));
        let event = Event::decode(record.kind.0, record.version.0, record.payload).ok();
        let text = event.as_ref().and_then(|event| texts.of(event));
        let line = Line { record, event, text };
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
    /// What is personal of it: what that is, and the text.
    text: Option<(Field, String)>,
}

/// The texts of the journal that are sealed.
struct Texts<'a> {
    keys: &'a KeyStore,
    folder: &'a Path,
    opened: OnceCell<Opened>,
}

/// What opens them.
#[derive(Default)]
struct Opened {
    keys: BTreeMap<UserId, RecordKey>,
    purged: BTreeSet<UserId>,
}

impl Texts<'_> {
    fn of(&self, event: &Event) -> Option<(Field, String)> {
        let (user, field, sealed) = event.fact.personal()?;
        let Opened { keys, purged } = self.opened.get_or_init(|| self.open());
        Some((field, shown(keys, purged.contains(&user), user, field, sealed)))
    }

    /// Reads the journal once more, as far as it can be read: a purge comes behind what it erases.
    fn open(&self) -> Opened {
        let (mut users, mut purged) = (BTreeSet::new(), BTreeSet::new());
        if let Ok(storage) = StdStorage::existing(self.folder) {
            // Damage is told by the listing itself.
            let _read = scan(&storage, ADVICE, Seq::FIRST, |record| {
                if let Ok(event) = Event::decode(record.kind.0, record.version.0, record.payload) {
                    users.extend(event.fact.personal().map(|(user, ..)| user));
                    purged.extend(event.fact.purges());
                }
                Ok::<_, Infallible>(())
            });
        }
        // Without keys there is a listing all the same: each text says that it cannot be read.
        Opened { keys: keys_in(self.keys, &users).unwrap_or_default(), purged }
    }
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
            "personal": self.text.as_ref().map(|(field, text)| json!({ field.name(): text })),
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
            Some(event) => {
                write!(f, "{:>8}  {}  {}  {:?}", seq.get(), event.at, event.actor, event.fact)?;
                self.text.as_ref().map_or(Ok(()), |(field, text)| write!(f, ", {}: {text}", field.name()))
            }
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
