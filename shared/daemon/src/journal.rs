//! `journal verify`, as the daemons that have a journal share it: what is told about a journal, and with which exit
//! code. What the records mean is the daemon's own.
//!
//! It reads only, takes no lock, and may run beside the daemon: the group that is being written at that moment shows
//! as an unfinished one.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | whole; also with an unfinished write at its end, which the next start cuts |
//! | 65 | damaged, or a record that this release cannot make sense of |
//! | 66 | there is no journal |
//! | 74 | it could not be read |

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_journal::{
    DamageKind, Finding, Inspection, JournalError, Known, Record, StdStorage, Tail, inspect,
};
use serde_json::{Value, json};

use crate::exit::{Exit, chain};

/// Options of `journal verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The daemon's data folder, in which the journal is; else the one of the config.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How often a person is told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// Tells how far a long reading is, on stderr.
struct Progress<W> {
    to: W,
    due: Instant,
}

impl<W: Write> Progress<W> {
    fn tell(&mut self, done: u64, all: u64) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + TOLD_EVERY;
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100);
        // Nobody is left to be told that stderr is gone.
        let _unwritten = writeln!(self.to, "checked {} of {}, {percent} %", megabytes(done), megabytes(all));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

/// What a person should do about a damage. `advice_newest` is for damage that takes the newest records with it.
fn advice(finding: &Finding, is_newest: bool, newest: &str) -> String {
    let file = &finding.corruption.segment;
    let keep = "Stop the daemon and keep a copy of the whole folder.";
    match finding.kind {
        DamageKind::Newer => "Run the release that wrote it, or a newer one: nothing is damaged.".to_owned(),
        DamageKind::Renamed => {
            format!("Give {file} its name back: the 20 digits of its first sequence and `.log`.")
        }
        DamageKind::Cut | DamageKind::Flipped | DamageKind::Reordered | DamageKind::Spliced if is_newest => {
            format!("{keep} {newest}")
        }
        DamageKind::MissingSegment => {
            format!(
                "{keep} Put the missing segments back from a backup: a segment never changes once the next one was \
                 begun. Without them: {newest}"
            )
        }
        DamageKind::Cut | DamageKind::Flipped | DamageKind::Reordered | DamageKind::Spliced => {
            format!(
                "{keep} Put {file} back from any backup that was made after the next segment was begun: it never \
                 changed since. Then verify again. Without one: {newest}"
            )
        }
    }
}

/// Looks at the journal in a folder and tells what it found on stdout. `newest` says what to do where records are lost
/// for good; each record is given to `visit`, whose refusal is told as one of that record.
pub fn verify<E: Error + 'static>(
    folder: &Path,
    as_json: bool,
    newest: &str,
    visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> Exit {
    let mut out = io::stdout().lock();
    let progress = Progress { to: io::stderr(), due: Instant::now() + TOLD_EVERY };
    verify_to(&mut out, progress, folder, as_json, newest, visit)
}

fn verify_to<E: Error + 'static, W: Write>(
    out: &mut impl Write,
    mut progress: Progress<W>,
    folder: &Path,
    as_json: bool,
    newest: &str,
    visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> Exit {
    let looked = match StdStorage::existing(folder) {
        Ok(storage) => inspect(&storage, newest, visit, |done, all| progress.tell(done, all)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(JournalError::Missing),
        Err(source) => Err(JournalError::Read { name: folder.display().to_string(), source }),
    };
    let told = match &looked {
        Ok(inspection) if as_json => writeln!(out, "{}", as_value(folder, inspection, newest)),
        Ok(inspection) => text(out, folder, inspection, newest),
        Err(error) if as_json => {
            writeln!(out, "{}", json!({ "journal": folder.display().to_string(), "error": chain(error) }))
        }
        Err(error) => writeln!(out, "{}: {}", folder.display(), chain(error)),
    };
    match looked {
        _ if told.is_err() => Exit::Io,
        Ok(inspection) if inspection.is_sound() => Exit::Ok,
        Ok(_) => Exit::DataCorrupt,
        Err(JournalError::Missing) => Exit::NoInput,
        Err(_) => Exit::Io,
    }
}

fn is_newest<E>(finding: &Finding, inspection: &Inspection<E>) -> bool {
    inspection.newest_segment.as_ref() == Some(&finding.corruption.segment)
}

fn text<E: Error + 'static>(
    out: &mut impl Write,
    folder: &Path,
    inspection: &Inspection<E>,
    newest: &str,
) -> io::Result<()> {
    let Inspection { segments, bytes, first, head, groups, records, .. } = inspection;
    writeln!(out, "journal    {}", folder.display())?;
    writeln!(out, "files      {segments} segments, {}", megabytes(*bytes))?;
    writeln!(out, "records    {records} in {groups} commits, sequence {first} to {}", head.seq)?;
    writeln!(out, "chain      {}", head.chain)?;
    match inspection.known {
        Known::Synced(seq) => writeln!(out, "synced     known up to sequence {seq}")?,
        Known::Missing => writeln!(
            out,
            "synced     not known: the file `synced` is missing; a damaged last commit cannot be told from a torn one"
        )?,
        Known::Unreadable => writeln!(
            out,
            "synced     not known: the file `synced` is unreadable; the next start makes it anew"
        )?,
    }
    if let (Some(Tail::Incomplete { offset, bytes }), Some(segment)) =
        (inspection.tail, &inspection.newest_segment)
    {
        writeln!(
            out,
            "notice     {bytes} bytes of an unfinished commit at segment {segment}, byte {offset}: a write that a crash cut \
             short, or one under way. Nobody was told that it was committed; the next start cuts it."
        )?;
    }
    for finding in &inspection.findings {
        let Finding { kind, corruption } = finding;
        let berth_journal::Corruption { segment, offset, seq, fault, witness, .. } = corruption;
        writeln!(out, "DAMAGED    {kind}: segment {segment}, byte {offset}, sequence {seq}")?;
        writeln!(out, "           {fault}; {witness}.")?;
        writeln!(out, "           {}", advice(finding, is_newest(finding, inspection), newest))?;
    }
    if inspection.findings_left_out > 0 {
        writeln!(out, "DAMAGED    {} places more", inspection.findings_left_out)?;
    }
    if let Some(refused) = &inspection.refused {
        writeln!(out, "REFUSED    {}, sequence {}: {}", refused.at, refused.seq, chain(&refused.source))?;
        writeln!(out, "           {}", REFUSED_ADVICE)?;
    }
    writeln!(
        out,
        "{}",
        if inspection.is_sound() { "the journal is whole" } else { "the journal is not whole" }
    )
}

/// The bytes are what was written, so no backup has others.
const REFUSED_ADVICE: &str = "The bytes are as they were written, so a copy from a backup is no better. If a newer release \
                              ran here, run that one or a newer one. Else this is a bug of Berth: keep a copy of the folder \
                              and report it.";

fn as_value<E: Error + 'static>(folder: &Path, inspection: &Inspection<E>, newest: &str) -> Value {
    let findings: Vec<Value> = inspection
        .findings
        .iter()
        .map(|finding| {
            let berth_journal::Corruption { segment, offset, seq, fault, witness, .. } = &finding.corruption;
            json!({
                "kind": finding.kind.as_str(),
                "segment": segment,
                "offset": offset,
                "sequence": seq.get(),
                "fault": fault.to_string(),
                "known_by": witness.to_string(),
                "advice": advice(finding, is_newest(finding, inspection), newest),
            })
        })
        .collect();
    let torn = match inspection.tail {
        Some(Tail::Incomplete { offset, bytes }) => {
            json!({ "segment": inspection.newest_segment, "offset": offset, "bytes": bytes })
        }
        Some(Tail::Clean) | None => Value::Null,
    };
    let refused = inspection.refused.as_ref().map(|refused| {
        json!({
            "segment": refused.at.segment_name(),
            "offset": refused.at.offset,
            "sequence": refused.seq.get(),
            "reason": chain(&refused.source),
            "advice": REFUSED_ADVICE,
        })
    });
    let synced = match inspection.known {
        Known::Synced(seq) => json!(seq.get()),
        Known::Missing | Known::Unreadable => Value::Null,
    };
    json!({
        "journal": folder.display().to_string(),
        "whole": inspection.is_sound(),
        "segments": inspection.segments,
        "bytes": inspection.bytes,
        "first": inspection.first.get(),
        "last": inspection.head.seq.get(),
        "chain": inspection.head.chain.to_string(),
        "commits": inspection.groups,
        "records": inspection.records,
        "synced": synced,
        "torn": torn,
        "findings": findings,
        "findings_left_out": inspection.findings_left_out,
        "refused": refused,
    })
}

#[cfg(test)]
mod tests;
