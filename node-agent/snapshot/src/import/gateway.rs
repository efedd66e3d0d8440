//! Takes out of an OpenClaw state folder what opens the gateway that it comes from: whoever held a token, a password or a
//! paired device there gets in nowhere by it. What the user's own accounts elsewhere need (model providers, channels)
//! stays.
//!
//! The list is that of OpenClaw 2026.9.6. Berth's nodes put `gateway.auth` in as they need it, at each start.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use berth_shared::json5_value;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde_json::Value;

use super::NAMES_MAX;
use super::archive::{bad, readable};
use super::layout::{CONFIG, DATABASE, small};
use super::unpack::has_room;
use crate::error::Failure;

/// Largest configuration that is read: the node reads no larger one.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Keys of the configuration that are taken out.
const DROPPED: &[&[&str]] = &[
    &["gateway", "auth"],
    &["gateway", "remote", "token"],
    &["gateway", "remote", "password"],
    &["hooks", "gmail", "pushToken"],
];

/// The secret of webhooks is made new: a gateway with hooks does not start without one.
const HOOKS_TOKEN: &[&str] = &["hooks", "token"];

/// Variables of `.env` that are taken out. With one of the first two a gateway behind a proxy does not even start.
const VARIABLES: &[&str] =
    &["OPENCLAW_GATEWAY_TOKEN", "OPENCLAW_GATEWAY_PASSWORD", "OPENCLAW_GATEWAY_SECRET"];
const ENVIRONMENT: &str = ".env";
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Files of versions before the database, which a newer one takes up.
const FILES: &[&str] = &[
    "devices/paired.json",
    "devices/pending.json",
    "devices/bootstrap.json",
    "identity/device.json",
    "identity/device-auth.json",
    "nodes/paired.json",
    "nodes/pending.json",
];

/// Tables that are emptied: devices and their tokens, what a device is paired with, credentials of workers, the
/// gateway's own identity, and copies of the configuration.
const TABLES: &[&str] = &[
    "device_auth_tokens",
    "device_bootstrap_tokens",
    "device_identities",
    "device_pair_setup_completions",
    "device_pairing_join_codes",
    "device_pairing_paired",
    "device_pairing_pending",
    "gateway_origin_device_tokens",
    "worker_environment_credentials",
    "config_health_entries",
];

/// Sections of the configuration that hold variables, too.
const ENVIRONMENTS: &[&[&str]] = &[&["env"], &["env", "vars"]];

/// Does it, and tells what there was.
pub(super) fn rotate(root: &Path, notes: &mut Vec<String>) -> Result<Vec<String>, Failure> {
    let mut rotated = vec![];
    configuration(root, &mut rotated, notes)?;
    copies(root, &mut rotated)?;
    environment(root, &mut rotated)?;
    for name in FILES {
        if root.join(name).exists() {
            remove(&root.join(name))?;
            rotated.push((*name).to_owned());
        }
    }
    database(root, &mut rotated)?;
    Ok(rotated)
}

fn configuration(root: &Path, rotated: &mut Vec<String>, notes: &mut Vec<String>) -> Result<(), Failure> {
    let path = root.join(CONFIG);
    if !path.exists() {
        return Ok(());
    }
    let text = small(&path, CONFIG_BYTES_MAX).and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| bad(format!("{CONFIG} is not text, or larger than 1 MiB")))?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let mut config = json5_value::parse(&text).map_err(|error| bad(format!("{CONFIG}: {error}")))?;
    if text.contains("$include") {
        notes.push(format!(
            "{CONFIG} includes other files: secrets of the gateway in those stay as they were"
        ));
    }
    let before = rotated.len();
    for path in DROPPED {
        if take(&mut config, path).is_some() {
            rotated.push(format!("{CONFIG}: {}", path.join(".")));
        }
    }
    for (section, name) in
        ENVIRONMENTS.iter().flat_map(|section| VARIABLES.iter().map(move |name| (section, name)))
    {
        let path = [*section, &[*name][..]].concat();
        if take(&mut config, &path).is_some() {
            rotated.push(format!("{CONFIG}: {}", path.join(".")));
        }
    }
    if let Some(token) = find(&mut config, HOOKS_TOKEN) {
        *token = Value::String(fresh()?);
        rotated.push(format!("{CONFIG}: {}, made new", HOOKS_TOKEN.join(".")));
    }
    if rotated.len() == before {
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&config).map_err(|error| bad(error.to_string()))?;
    write(&path, text.as_bytes())
}

/// The value at a path of keys.
fn find<'v>(value: &'v mut Value, path: &[&str]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, key| value.as_object_mut()?.get_mut(*key))
}

fn take(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    find(value, parents)?.as_object_mut()?.remove(*last)
}

fn fresh() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Failure::Internal { detail: error.to_string() })?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

/// Copies of the configuration, which a gateway goes back to when the one that it has is wrong. There may be thousands.
fn copies(root: &Path, rotated: &mut Vec<String>) -> Result<(), Failure> {
    let entries = fs::read_dir(root).map_err(|error| Failure::io("read folder", root, error))?;
    let mut found = 0_usize;
    for entry in entries {
        let entry = entry.map_err(|error| Failure::io("read folder", root, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_copy =
            name.strip_prefix(CONFIG).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('-'));
        if is_copy && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove(&entry.path())?;
            found += 1;
            if found <= NAMES_MAX {
                rotated.push(readable(name.as_bytes()));
            }
        }
    }
    if let Some(more @ 1..) = found.checked_sub(NAMES_MAX) {
        rotated.push(format!("{more} more copies of {CONFIG}"));
    }
    Ok(())
}

fn environment(root: &Path, rotated: &mut Vec<String>) -> Result<(), Failure> {
    let path = root.join(ENVIRONMENT);
    if !path.exists() {
        return Ok(());
    }
    let bytes =
        small(&path, CONFIG_BYTES_MAX).ok_or_else(|| bad(format!("{ENVIRONMENT} is larger than 1 MiB")))?;
    let mut kept = Vec::with_capacity(bytes.len());
    let mut taken = BTreeSet::new();
    for line in lines(&bytes) {
        match variable(line) {
            Some(name) => drop(taken.insert(name)),
            None => kept.extend_from_slice(line),
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    rotated.extend(taken.into_iter().map(|name| format!("{ENVIRONMENT}: {name}")));
    write(&path, &kept)
}

/// Lines with their ends, as `dotenv` takes them: what it reads them with is a regular expression of JavaScript, for which
/// two more characters end lines.
fn lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const ENDS: [&[u8]; 4] = [b"\n", b"\r", "\u{2028}".as_bytes(), "\u{2029}".as_bytes()];
    std::iter::from_fn(move || {
        let ends = (0..bytes.len()).find_map(|at| {
            let rest = bytes.get(at..)?;
            ENDS.iter().find(|end| rest.starts_with(end)).map(|end| at + end.len())
        });
        let (line, rest) = bytes.split_at(ends.unwrap_or(bytes.len()));
        bytes = rest;
        (!line.is_empty()).then_some(line)
    })
}

/// Which variable a line sets.
fn variable(line: &[u8]) -> Option<&'static str> {
    // What JavaScript takes for white space, which is more than ASCII's.
    let space = |c: char| c.is_whitespace() || c == BYTE_ORDER_MARK;
    let line = String::from_utf8_lossy(line);
    let line = line.trim_matches(space);
    let exported = line.strip_prefix("export").filter(|rest| rest.starts_with(space));
    let name = exported.unwrap_or(line).split(['=', ':']).next()?.trim_matches(space);
    VARIABLES.iter().find(|known| **known == name).copied()
}

/// Tables that had rows, and how many.
type Emptied = Vec<(&'static str, usize)>;

/// The database is a stranger's, too: nothing in its schema is let act.
fn database(root: &Path, rotated: &mut Vec<String>) -> Result<(), Failure> {
    let path = root.join(DATABASE);
    if !path.exists() {
        return Ok(());
    }
    // Memory of the processes that had it open there.
    let _none = fs::remove_file(root.join(format!("{DATABASE}-shm")));
    let beside = |suffix| fs::metadata(root.join(format!("{DATABASE}{suffix}"))).map_or(0, |meta| meta.len());
    // SQLite would play it back, and such a journal may name another file, anywhere, that it removes behind that (a
    // super-journal: sqlite.org/atomiccommit.html, section 5). OpenClaw's database has a write-ahead log instead.
    if beside("-journal") > 0 {
        return Err(bad(format!(
            "{DATABASE}-journal: the database was in the middle of a change; stop the gateway, then copy its folder"
        )));
    }
    // Each page that is emptied is written twice.
    has_room(root, beside("").saturating_add(beside("-wal")))?;
    let emptied = empty_tables(&path).map_err(|error| bad(format!("{DATABASE}: {error}")))?;
    let emptied = emptied.map_err(|why| bad(format!("{DATABASE}: {why}")))?;
    rotated.extend(emptied.into_iter().map(|(table, rows)| format!("{DATABASE}: {table}, {rows} rows")));
    Ok(())
}

/// Which tables had how many rows; or what in the schema would bring rows back, or only looks like a table.
fn empty_tables(path: &Path) -> Result<Result<Emptied, &'static str>, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    // What is taken out is not to be found in the file either.
    database.execute_batch("PRAGMA secure_delete = ON; PRAGMA foreign_keys = OFF; PRAGMA mmap_size = 0;")?;
    let mut emptied = vec![];
    for table in TABLES {
        let kind = "SELECT type, ifnull(sql, '') LIKE 'create virtual%' FROM sqlite_schema
            WHERE name = ?1 COLLATE NOCASE AND type <> 'index'";
        let kind = database.query_row(kind, [table], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
        match kind.optional()?.as_ref().map(|(kind, is_virtual)| (kind.as_str(), *is_virtual)) {
            None => continue,
            Some(("table", false)) => {}
            Some(_) => return Ok(Err("a list of devices is not the table that it has to be")),
        }
        // OpenClaw has triggers for its search only. One that names such a table could fill it again.
        let named = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'
            AND (instr(lower(sql), ?1) > 0 OR tbl_name = ?1 COLLATE NOCASE)";
        if database.query_row(named, [table], |row| row.get::<_, i64>(0))? > 0 {
            return Ok(Err("a trigger of it is about a list of devices"));
        }
        let rows = database.execute(&format!("DELETE FROM main.\"{table}\""), [])?;
        if rows > 0 {
            emptied.push((*table, rows));
        }
    }
    // The log may hold pages of before.
    if !emptied.is_empty() {
        database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    database.close().map_err(|(_, error)| error)?;
    Ok(Ok(emptied))
}

fn remove(path: &Path) -> Result<(), Failure> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error| Failure::write("remove", path, 0, error))
}

/// In place: the folder is nobody else's, and what is cut short becomes no snapshot.
fn write(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let file = fs::OpenOptions::new().write(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text)).map_err(|error| Failure::write("write", path, 0, error))
}
