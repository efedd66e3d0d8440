//! Where in an unpacked archive the workload's own folder is.
//!
//! OpenClaw's is known by its configuration or its database. It may be the archive itself, `.openclaw` in it, or lie
//! below folders with nothing else in them (as `restic` has it, whose snapshots hold whole paths). A fleet backup says in
//! its manifest that it is one; its `data` is the state folder, its `auth` a key for an old format, which a cell does not
//! have (OpenClaw 2026.9.6, `openclaw fleet backup`).

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use berth_shared::cell::{ImageRef, Workload};
use serde::Deserialize;

use super::archive::{bad, readable};
use super::{Layout, NAMES_MAX};
use crate::error::Failure;
use crate::walk::DEPTH_MAX;

/// OpenClaw's configuration, in its state folder.
pub(super) const CONFIG: &str = "openclaw.json";

/// Its database there.
pub(super) const DATABASE: &str = "state/openclaw.sqlite";

/// The state folder in a home.
const IN_HOME: &str = ".openclaw";

const MANIFEST: &str = "manifest.json";
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
const FLEET_BACKUP: &str = "openclaw-fleet-cell-backup";
const FLEET_VERSION: u64 = 1;
const FLEET_DATA: &str = "data";
const FLEET_AUTH: &str = "auth";

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) root: PathBuf,
    pub(super) layout: Layout,
    /// Under which image the data was written, where that is said.
    pub(super) image: Option<ImageRef>,
    pub(super) notes: Vec<String>,
}

/// Looks through what was unpacked. There are files and folders only.
pub(super) fn find(unpacked: &Path, workload: Workload) -> Result<Found, Failure> {
    let plain = |root, layout| Found { root, layout, image: None, notes: vec![] };
    match workload {
        Workload::Http => Ok(plain(unpacked.to_owned(), Layout::Files)),
        Workload::Openclaw => match fleet_backup(unpacked)? {
            Some(found) => Ok(found),
            None => {
                let root = state_folder(unpacked).ok_or_else(|| {
                    bad(format!(
                        "nothing in it looks like a state folder of OpenClaw ({CONFIG} or {DATABASE}) or like a fleet backup"
                    ))
                })?;
                let mut found = plain(root, Layout::StateFolder);
                if found.root.file_name().is_some_and(|name| name == IN_HOME)
                    && let Some(home) = found.root.parent()
                {
                    found.notes.extend(left_beside(home, &[IN_HOME]));
                }
                Ok(found)
            }
        },
    }
}

/// What is not taken in of the folder that the state folder lies in.
fn left_beside(folder: &Path, taken: &[&str]) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = entries
        .filter(|name| taken.iter().all(|taken| name != taken))
        .map(|name| readable(name.as_encoded_bytes()))
        .collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty())
        .then(|| format!("beside the state folder, and not taken in: {}{rest}", names.join(", ")))
}

fn state_folder(unpacked: &Path) -> Option<PathBuf> {
    let is_state = |folder: &Path| folder.join(CONFIG).is_file() || folder.join(DATABASE).is_file();
    let mut folder = unpacked.to_owned();
    for _ in 0..=DEPTH_MAX {
        if is_state(&folder) {
            return Some(folder);
        }
        let in_home = folder.join(IN_HOME);
        if is_state(&in_home) {
            return Some(in_home);
        }
        folder = only_folder(&folder)?;
    }
    None
}

/// The one folder in a folder that holds nothing else.
fn only_folder(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).ok()?;
    let only = entries.next()?.ok()?;
    (entries.next().is_none() && only.file_type().ok()?.is_dir()).then(|| only.path())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    kind: String,
    schema_version: u64,
    #[serde(default)]
    image: Option<String>,
}

fn fleet_backup(unpacked: &Path) -> Result<Option<Found>, Failure> {
    let data = unpacked.join(FLEET_DATA);
    let Some(text) = small(&unpacked.join(MANIFEST), MANIFEST_BYTES_MAX) else { return Ok(None) };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else { return Ok(None) };
    if manifest.kind != FLEET_BACKUP {
        return Ok(None);
    }
    if manifest.schema_version != FLEET_VERSION || !data.is_dir() {
        return Err(bad("it is a fleet backup of another version, or without its data"));
    }
    let mut notes = vec![];
    let has_key = fs::read_dir(unpacked.join(FLEET_AUTH)).is_ok_and(|mut entries| entries.next().is_some());
    if has_key {
        notes.push(
            "the key of old encrypted auth profiles (`auth`) was left out: sign in again where one is still in use".to_owned(),
        );
    }
    notes.extend(left_beside(unpacked, &[MANIFEST, FLEET_DATA, FLEET_AUTH]));
    let image = manifest.image.and_then(|image| image.parse().ok());
    Ok(Some(Found { root: data, layout: Layout::FleetBackup, image, notes }))
}

/// A file that is not larger than this.
pub(super) fn small(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let mut content = vec![];
    file.take(bytes_max + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= bytes_max).then_some(content)
}
