//! Behaviour on demand: which way the cell misbehaves right now.
//!
//! Three layers, later ones win: the defaults (a healthy cell), `CELL_MODE` from the environment, and `mode.json` in
//! the state folder. `POST /control` edits the file, so a change survives a restart of the container; a test may also
//! write the file from outside, it is looked at again whenever it changed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::log;
use crate::store::{self, StoreError};

/// Largest mode file that is read.
pub(crate) const MODE_BYTES_MAX: u64 = 64 * 1024;

/// What `gateway.suspend.prepare` lies about. The cell is not fenced after any of these answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lie {
    /// `ready`, with fields of the wrong types.
    Garbage,
    /// A `status` nobody ever heard of.
    UnknownStatus,
    /// `ready` without a `suspensionId`.
    NoId,
    /// `ready` with a lease that ended a minute ago.
    Expired,
    /// 200 with an HTML page.
    Html,
    /// 200 with JSON that breaks off in the middle.
    Truncated,
    /// 200 with valid JSON of 8 MiB.
    Huge,
}

/// One blocker of a configured `busy` answer: a kind alone, or the whole upstream object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum ModeBlocker {
    Kind(String),
    Full { kind: String, count: u64, message: String },
}

/// The behaviour in force. Every field absent means a healthy, idle cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mode {
    /// Nothing listens for this long after the start: connections are refused.
    pub(crate) listen_delay_ms: u64,
    /// `/startupz` says `starting` for this long after the start.
    pub(crate) slow_start_ms: u64,
    /// `/startupz` says `starting` for ever.
    pub(crate) never_ready: bool,
    /// `/startupz` answers 200 with an HTML page, and the cell is not ready at all.
    pub(crate) html_ready: bool,
    /// Leave at once with this exit code.
    pub(crate) exit_at_start: Option<u8>,
    /// Only this many starts leave at once, then the cell is healthy; counted down in `mode.json`.
    pub(crate) exit_at_start_times: Option<u32>,
    /// Leave with exit code 1 this long after the start, or after the `POST /control` that set it.
    pub(crate) crash_after_ms: Option<u64>,
    /// `gateway.suspend.prepare` answers `busy` with these blockers.
    pub(crate) busy: Vec<ModeBlocker>,
    /// `/healthz` answers 500.
    pub(crate) sick: bool,
    /// `/healthz` is never answered (for at most ten minutes).
    pub(crate) hang_health: bool,
    /// `gateway.suspend.prepare` lies.
    pub(crate) lying: Option<Lie>,
    /// `gateway.suspend.*` does not exist, as in a release before it was added.
    pub(crate) old: bool,
    /// `gateway.suspend.prepare` is never answered (for at most ten minutes), and takes no lease.
    pub(crate) hang_prepare: bool,
    /// `gateway.suspend.prepare` decides at once and answers this much later, so part of the lease is gone.
    pub(crate) slow_prepare_ms: u64,
    /// `gateway.suspend.*` answers `UNAVAILABLE`, reason `scheduler-resume-failed`.
    pub(crate) recovering: bool,
    /// Length of a suspension lease; upstream's is two minutes.
    pub(crate) lease_ms: Option<u64>,
    /// No rate limit on prepare; upstream allows 30 per minute and client address.
    pub(crate) no_rate_limit: bool,
    /// SIGTERM is noticed, logged and ignored.
    pub(crate) ignore_term: bool,
    /// After SIGTERM and the end of all work, stay this much longer.
    pub(crate) drain_ms: u64,
    /// Print the platform key to stdout once at start.
    pub(crate) log_secret: bool,
    /// Print this many long lines to stdout at start.
    pub(crate) log_flood: u32,
    /// The only identities let in on user routes, compared exactly; empty: any.
    pub(crate) allow_users: Vec<String>,
    /// What `cron.status` reports as the next wake, in milliseconds since the Unix epoch.
    pub(crate) next_wake_at_ms: Option<u64>,
    /// How many jobs `cron.status` reports beside those there are.
    pub(crate) cron_jobs: u64,
    /// How often a gateway socket says `tick` once it is connected; upstream's is half a minute.
    pub(crate) tick_ms: Option<u64>,
    /// How long after the start jobs run that were missed; upstream's two minutes.
    pub(crate) missed_ms: Option<u64>,
    /// The host is told nothing of the jobs.
    pub(crate) no_projection: bool,
}

/// The wanted behaviour cannot be understood or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModeError {
    #[error("CELL_MODE is neither a JSON object nor a list of name=value")]
    Env(#[source] serde_json::Error),
    #[error("mode.json is not a JSON object")]
    File(#[source] serde_json::Error),
    #[error("mode.json could not be read")]
    Read(#[source] StoreError),
    #[error("mode.json could not be written")]
    Write(#[source] StoreError),
    #[error("unknown or ill-typed behaviour")]
    Fields(#[source] serde_json::Error),
}

/// What tells one version of the file from the next without reading it.
type Stamp = Option<(u64, u64, i64, i64)>;

struct Loaded {
    stamp: Stamp,
    mode: Mode,
}

/// Owner of the layers and of `mode.json`.
pub(crate) struct ModeSource {
    env: Map<String, Value>,
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

impl ModeSource {
    /// Reads both layers; anything unclear is an error, at start.
    pub(crate) fn load(env: Option<String>, path: PathBuf) -> Result<ModeSource, ModeError> {
        let env = env.as_deref().map(parse_env).transpose()?.unwrap_or_default();
        let stamp = stamp(&path);
        let mode = merge(&env, &read_file(&path)?)?;
        Ok(ModeSource { env, path, loaded: Mutex::new(Loaded { stamp, mode }) })
    }

    /// The behaviour in force now. A file that became unreadable while running changes nothing.
    pub(crate) fn current(&self) -> Mode {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.path);
        if stamp != loaded.stamp {
            loaded.stamp = stamp;
            match read_file(&self.path).and_then(|file| merge(&self.env, &file)) {
                Ok(mode) => loaded.mode = mode,
                Err(error) => log::error(&format!("mode.json ignored: {error}")),
            }
        }
        loaded.mode.clone()
    }

    /// Applies a patch to the file: `null` removes a key, anything else sets it. Returns the behaviour after it.
    pub(crate) fn patch(&self, patch: Map<String, Value>) -> Result<Mode, ModeError> {
        let mut file = read_file(&self.path)?;
        for (name, value) in patch {
            if value.is_null() {
                file.remove(&name);
            } else {
                file.insert(name, value);
            }
        }
        self.replace(&file)
    }

    /// Forgets the file layer: back to what the environment says.
    pub(crate) fn reset(&self) -> Result<Mode, ModeError> {
        self.replace(&Map::new())
    }

    fn replace(&self, file: &Map<String, Value>) -> Result<Mode, ModeError> {
        let mode = merge(&self.env, file)?;
        let bytes = serde_json::to_vec_pretty(file).map_err(ModeError::File)?;
        store::replace_file(&self.path, &bytes).map_err(ModeError::Write)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        *loaded = Loaded { stamp: stamp(&self.path), mode: mode.clone() };
        Ok(mode)
    }

    /// The exit code this start must leave with, if any; counts a bounded number of failing starts down.
    pub(crate) fn take_exit_at_start(&self) -> Result<Option<u8>, ModeError> {
        let mode = self.current();
        let Some(code) = mode.exit_at_start else { return Ok(None) };
        match mode.exit_at_start_times {
            None => Ok(Some(code)),
            Some(0) => Ok(None),
            Some(left) => {
                let mut patch = Map::new();
                patch.insert("exit_at_start_times".to_owned(), Value::from(left - 1));
                self.patch(patch)?;
                Ok(Some(code))
            }
        }
    }
}

/// `{"a":1}`, or `a=1,b` for command lines: a bare name means `true`, a value that is no JSON is a string.
fn parse_env(text: &str) -> Result<Map<String, Value>, ModeError> {
    let text = text.trim();
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(ModeError::Env);
    }
    Ok(text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| match item.split_once('=') {
            None => (item.to_owned(), Value::Bool(true)),
            Some((name, value)) => (
                name.trim().to_owned(),
                serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())),
            ),
        })
        .collect())
}

fn merge(env: &Map<String, Value>, file: &Map<String, Value>) -> Result<Mode, ModeError> {
    let mut all = env.clone();
    all.extend(file.iter().map(|(name, value)| (name.clone(), value.clone())));
    serde_json::from_value(Value::Object(all)).map_err(ModeError::Fields)
}

fn read_file(path: &Path) -> Result<Map<String, Value>, ModeError> {
    match store::read_bounded(path, MODE_BYTES_MAX).map_err(ModeError::Read)? {
        None => Ok(Map::new()),
        Some(bytes) => serde_json::from_slice(&bytes).map_err(ModeError::File),
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(env: Option<&str>) -> (tempfile::TempDir, ModeSource) {
        let dir = tempfile::tempdir().unwrap();
        let source = ModeSource::load(env.map(str::to_owned), dir.path().join("mode.json")).unwrap();
        (dir, source)
    }

    #[test]
    fn the_short_form_of_the_environment_sets_flags_numbers_and_words() {
        let (_dir, source) = source(Some("never_ready, slow_start_ms=20,lying=html"));
        let mode = source.current();
        assert!(mode.never_ready);
        assert_eq!(mode.slow_start_ms, 20);
        assert_eq!(mode.lying, Some(Lie::Html));
    }

    #[test]
    fn the_file_wins_over_the_environment_and_null_gives_it_back() {
        let (_dir, source) = source(Some(r#"{"slow_start_ms":20}"#));
        let set = serde_json::json!({"slow_start_ms": 5}).as_object().unwrap().clone();
        assert_eq!(source.patch(set).unwrap().slow_start_ms, 5);
        let unset = serde_json::json!({"slow_start_ms": null}).as_object().unwrap().clone();
        assert_eq!(source.patch(unset).unwrap().slow_start_ms, 20);
    }

    #[test]
    fn a_file_written_from_outside_is_noticed() {
        let (dir, source) = source(None);
        assert!(!source.current().sick);
        std::fs::write(dir.path().join("mode.json"), r#"{"sick":true}"#).unwrap();
        assert!(source.current().sick);
        std::fs::write(dir.path().join("mode.json"), "no json").unwrap();
        assert!(source.current().sick, "an unreadable file changes nothing");
    }

    #[test]
    fn a_misspelt_behaviour_is_refused_and_not_stored() {
        let (_dir, source) = source(None);
        let wrong = serde_json::json!({"sik": true}).as_object().unwrap().clone();
        assert!(source.patch(wrong).is_err());
        assert_eq!(source.current(), Mode::default());
    }

    #[test]
    fn failing_starts_are_counted_down() {
        let (_dir, source) = source(Some("exit_at_start=78,exit_at_start_times=2"));
        assert_eq!(source.take_exit_at_start().unwrap(), Some(78));
        assert_eq!(source.take_exit_at_start().unwrap(), Some(78));
        assert_eq!(source.take_exit_at_start().unwrap(), None);
    }
}
