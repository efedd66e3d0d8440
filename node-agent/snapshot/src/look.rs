//! Looking into snapshots: lists, folders, differences, single files. Reads only.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use berth_shared::api::{EntryChange, SnapshotChange, SnapshotEntry};
use rustic_core::repofile::{Node, NodeType, SnapshotFile};
use rustic_core::{IndexedFullStatus, LsOptions, Repository};

use crate::error::Failure;
use crate::labels::Labels;
use crate::protocol::{DATA_BYTES_MAX, Line, SnapshotLine};
use crate::repository::OpenRepository;
use crate::restore::{in_snapshot, plain_path};
use crate::source::{SNAPSHOT_ROOT, unix_mode};

/// Most entries of one snapshot that a diff holds.
const DIFF_ENTRIES_MAX: usize = 1_000_000;

pub(crate) type Say<'a> = &'a mut dyn FnMut(Line) -> Result<(), Failure>;
pub(crate) type Indexed = Repository<IndexedFullStatus>;

pub(crate) fn snapshot_line(file: &SnapshotFile) -> SnapshotLine {
    let labels = Labels::parse(file.tags.iter());
    let hex = |id: &rustic_core::repofile::SnapshotId| id.to_hex().as_str().to_owned();
    let summary = file.summary.as_ref();
    SnapshotLine {
        id: hex(&file.id),
        time: file.time.timestamp().to_string(),
        tree: labels.as_ref().map(|(_, tree)| tree.clone()),
        labels: labels.map(|(labels, _)| labels),
        parent: file.parent.as_ref().map(hex),
        entries: summary.map(|summary| summary.total_files_processed + summary.total_dirs_processed),
        bytes: summary.map(|summary| summary.total_bytes_processed),
    }
}

/// One snapshot, if it has all of these paths.
pub(crate) fn show(
    repository: OpenRepository,
    snapshot: &str,
    paths: &[String],
) -> Result<SnapshotLine, Failure> {
    let file = repository.snapshot(snapshot)?;
    if !paths.is_empty() {
        let (indexed, failed) = index(repository)?;
        for path in paths {
            find(&indexed, &file, path, &failed)?;
        }
    }
    Ok(snapshot_line(&file))
}

pub(crate) fn list(repository: &OpenRepository, say: Say<'_>) -> Result<u64, Failure> {
    let all = repository.snapshots()?;
    for (file, _) in &all {
        say(Line::Snapshot(snapshot_line(file)))?;
    }
    Ok(all.len() as u64)
}

pub(crate) fn ls(
    repository: OpenRepository,
    snapshot: &str,
    path: &str,
    recursive: bool,
    say: Say<'_>,
) -> Result<u64, Failure> {
    let file = repository.snapshot(snapshot)?;
    let (indexed, failed) = index(repository)?;
    let node = find(&indexed, &file, path, &failed)?;
    let folder = Path::new(path.trim_matches('/'));
    if !node.is_dir() {
        say(Line::Entry(listed(folder, &node)))?;
        return Ok(1);
    }
    let options = LsOptions::default().recursive(recursive);
    let mut count = 0;
    for found in indexed.ls(&node, &options).map_err(&failed)? {
        let (below, node) = found.map_err(&failed)?;
        say(Line::Entry(listed(&folder.join(below), &node)))?;
        count += 1;
    }
    Ok(count)
}

pub(crate) fn diff(repository: OpenRepository, from: &str, to: &str, say: Say<'_>) -> Result<u64, Failure> {
    let (from, to) = (repository.snapshot(from)?, repository.snapshot(to)?);
    let (indexed, failed) = index(repository)?;
    let mut before = entries(&indexed, &from, &failed)?;
    let mut count = 0;
    let mut tell = |path: &Path, how, (bytes_before, bytes_after)| {
        count += 1;
        let path = path.to_string_lossy().into_owned();
        say(Line::Change(SnapshotChange { path, how, bytes_before, bytes_after }))
    };
    for (path, new) in entries(&indexed, &to, &failed)? {
        match before.remove(&path) {
            None => tell(&path, EntryChange::Added, (0, size(&new)))?,
            Some(old) => {
                if let Some(how) = difference(&old, &new) {
                    tell(&path, how, (size(&old), size(&new)))?;
                }
            }
        }
    }
    for (path, old) in before {
        tell(&path, EntryChange::Removed, (size(&old), 0))?;
    }
    Ok(count)
}

/// Writes one file's content to `to`, or says it in `data` lines. How many bytes it has.
pub(crate) fn dump(
    repository: OpenRepository,
    snapshot: &str,
    path: &str,
    to: Option<&Path>,
    say: Say<'_>,
) -> Result<u64, Failure> {
    let file = repository.snapshot(snapshot)?;
    let (indexed, failed) = index(repository)?;
    let node = find(&indexed, &file, path, &failed)?;
    if !node.is_file() {
        return Err(Failure::NoPath { path: path.chars().take(200).collect() });
    }
    let mut sink = Sink::says(say);
    if let Some(to) = to {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(to);
        sink.to = Some((made.map_err(|source| Failure::write("make", to, 0, source))?, to));
    }
    let dumped = indexed.dump(&node, &mut sink);
    sink.failed()?;
    dumped.map_err(&failed)?;
    Ok(sink.count)
}

/// Where a file's content goes.
pub(crate) struct Sink<'a> {
    to: Option<(std::fs::File, &'a Path)>,
    say: Say<'a>,
    count: u64,
    failure: Option<Failure>,
}

impl<'a> Sink<'a> {
    /// Into `data` lines.
    pub(crate) fn says(say: Say<'a>) -> Self {
        Self { to: None, say, count: 0, failure: None }
    }

    /// Bytes so far.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Why the last write failed, which the library would only wrap.
    pub(crate) fn failed(&mut self) -> Result<(), Failure> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let part = bytes.get(..bytes.len().min(DATA_BYTES_MAX)).unwrap_or_default();
        let written = match &mut self.to {
            Some((file, path)) => {
                file.write_all(part).map_err(|source| Failure::write("write", path, self.count, source))
            }
            None => (self.say)(Line::Data { base64: data_encoding::BASE64.encode(part) }),
        };
        match written {
            Ok(()) => {
                self.count += part.len() as u64;
                Ok(part.len())
            }
            Err(failure) => {
                self.failure = Some(failure);
                Err(std::io::Error::other("the content could not be handed on"))
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.as_mut().map_or(Ok(()), |(file, _)| file.flush())
    }
}

pub(crate) type Failed = Box<dyn Fn(Box<rustic_core::RusticError>) -> Failure>;

pub(crate) fn index(repository: OpenRepository) -> Result<(Indexed, Failed), Failure> {
    let OpenRepository { store, inner, .. } = repository;
    let failed: Failed = Box::new(move |error| Failure::library(&store, &error));
    let indexed = inner.to_indexed().map_err(&failed)?;
    Ok((indexed, failed))
}

pub(crate) fn find(
    indexed: &Indexed,
    file: &SnapshotFile,
    path: &str,
    failed: &Failed,
) -> Result<Node, Failure> {
    let place = if path.trim_matches('/').is_empty() {
        PathBuf::from(SNAPSHOT_ROOT)
    } else if plain_path(path) {
        in_snapshot(path)
    } else {
        return Err(Failure::NoPath { path: path.chars().take(200).collect() });
    };
    indexed.node_from_snapshot_and_path(file, place.to_str().unwrap_or_default()).map_err(
        |error| match failed(error) {
            Failure::Internal { .. } => Failure::NoPath { path: path.chars().take(200).collect() },
            other => other,
        },
    )
}

fn entries(
    indexed: &Indexed,
    file: &SnapshotFile,
    failed: &Failed,
) -> Result<BTreeMap<PathBuf, Node>, Failure> {
    let root = find(indexed, file, "", failed)?;
    let mut all = BTreeMap::new();
    for found in indexed.ls(&root, &LsOptions::default()).map_err(failed)? {
        let (path, node) = found.map_err(failed)?;
        all.insert(path, node);
        if all.len() > DIFF_ENTRIES_MAX {
            return Err(Failure::TooManyEntries { entries_max: DIFF_ENTRIES_MAX as u64 });
        }
    }
    Ok(all)
}

pub(crate) fn size(node: &Node) -> u64 {
    if node.is_file() { node.meta.size } else { 0 }
}

fn difference(old: &Node, new: &Node) -> Option<EntryChange> {
    let same_kind = std::mem::discriminant(&old.node_type) == std::mem::discriminant(&new.node_type);
    let metadata = |node: &Node| {
        let meta = &node.meta;
        (meta.mode, meta.mtime, meta.uid, meta.gid, meta.extended_attributes.clone())
    };
    if !same_kind {
        Some(EntryChange::Kind)
    } else if old.content != new.content || old.node_type != new.node_type {
        Some(EntryChange::Content)
    } else if metadata(old) != metadata(new) {
        Some(EntryChange::Metadata)
    } else {
        None
    }
}

fn listed(path: &Path, node: &Node) -> SnapshotEntry {
    let (kind, target) = match &node.node_type {
        NodeType::Dir => ("dir", None),
        NodeType::File => ("file", None),
        NodeType::Symlink { .. } => {
            ("symlink", Some(node.node_type.to_link().to_string_lossy().into_owned()))
        }
        NodeType::Dev { .. } | NodeType::Chardev { .. } => ("device", None),
        NodeType::Fifo => ("fifo", None),
        NodeType::Socket => ("socket", None),
    };
    SnapshotEntry {
        path: path.to_string_lossy().into_owned(),
        kind: kind.to_owned(),
        mode: unix_mode(node.meta.mode.unwrap_or_default()),
        bytes: size(node),
        modified: node.meta.mtime.map(|time| time.to_string()),
        target,
    }
}
