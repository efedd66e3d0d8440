//! The store as the library that writes restic's format sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};
use sha2::{Digest, Sha256};

use super::early::Early;
use super::{S3Store, StoreError};

/// Restic's layout: packs in 256 folders, the config without an id.
pub(crate) fn name(kind: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    let hex = hex.as_str();
    match kind {
        FileType::Config => "config".to_owned(),
        FileType::Pack => format!("data/{}/{hex}", hex.get(..2).unwrap_or_default()),
        FileType::Index | FileType::Key | FileType::Snapshot => format!("{}/{hex}", kind.dirname()),
    }
}

fn read_full(store: &S3Store, kind: FileType, id: &Id) -> Result<Bytes, StoreError> {
    // Every file but the config is named by its own hash.
    let expected = (kind != FileType::Config).then(|| id.to_hex().as_str().to_owned());
    store.get(&name(kind, id), None, |bytes| expected.as_deref().is_none_or(|hex| hex_of(bytes) == hex))
}

fn listed(store: &S3Store, kind: FileType) -> Result<Listed, StoreError> {
    let objects = store.list(&format!("{}/", kind.dirname()))?;
    // Whatever else lies there is not ours and not restic's.
    let ours = objects.into_iter().filter_map(|(name, size)| {
        let (_, hex) = name.rsplit_once('/')?;
        let id = (hex.len() == 64).then(|| hex.parse::<Id>().ok()).flatten()?;
        Some((id, u32::try_from(size).ok()?))
    });
    Ok(ours.collect())
}

/// The store, with a gate before snapshots: while it is closed, a snapshot that the library writes is not written.
///
/// The library ends a backup by writing the snapshot. Berth can tell only then whether all of it could be read, what
/// its tree hash is (a tag of that snapshot), and whether anything has changed at all. So the gate is closed during
/// the backup; the snapshot is written afterwards, with its tags, or not at all.
///
/// The library makes a repository by writing its config, and a key only then. While the config is held back, it is
/// written when everything else is there.
///
/// What a job is sure to need is asked for before the library asks, all at a time: from far away each answer that waits
/// for another costs a way there and back.
#[derive(Debug)]
pub struct SnapshotGate {
    store: Arc<S3Store>,
    closed: AtomicBool,
    written: Mutex<Option<Id>>,
    holds_config: AtomicBool,
    config: Mutex<Option<Bytes>>,
    /// The config that was found, for the library, which looks whether there is one and then reads it.
    found_config: Mutex<Option<Bytes>>,
    /// The one snapshot that was asked for early. The library reads it more than once.
    snapshot: OnceLock<(Id, Early<Bytes>)>,
    /// The listing of index files that was asked for early. Good for one use: it grows old.
    index: Mutex<Option<Early<Listed>>>,
}

/// Names and sizes, as the library wants them.
type Listed = Vec<(Id, u32)>;

impl SnapshotGate {
    /// An open gate.
    pub fn new(store: Arc<S3Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            closed: AtomicBool::new(false),
            written: Mutex::default(),
            holds_config: AtomicBool::new(false),
            config: Mutex::default(),
            found_config: Mutex::default(),
            snapshot: OnceLock::new(),
            index: Mutex::default(),
        })
    }

    /// What the library is told, which wraps it in its own words.
    fn failed(&self, error: StoreError) -> Box<RusticError> {
        RusticError::with_source(ErrorKind::Backend, "the store failed", self.store.noted(error))
    }

    /// Asks for a snapshot now. Only the first one that is asked for so comes early.
    pub(crate) fn snapshot_early(&self, id: Id) {
        let store = Arc::clone(&self.store);
        self.snapshot.get_or_init(|| (id, Early::new(move || read_full(&store, FileType::Snapshot, &id))));
    }

    /// Asks for the listing of index files now.
    pub(crate) fn index_early(&self) {
        let store = Arc::clone(&self.store);
        let early = Early::new(move || listed(&store, FileType::Index));
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Some(early);
    }

    /// Holds a config back that the library writes, or lets it through.
    pub(crate) fn hold_config(&self, holds: bool) {
        self.holds_config.store(holds, Ordering::Release);
    }

    /// Writes the config that was held back.
    pub(crate) fn write_config(&self) -> Result<(), StoreError> {
        let held = self.config.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map_or(Ok(()), |config| self.store.put("config", config))
    }

    /// Lets snapshots through, or not.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Release);
    }

    /// The id of the snapshot that went through last, taken out.
    pub fn take_written(&self) -> Option<Id> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ReadBackend for SnapshotGate {
    fn location(&self) -> String {
        format!("s3:{}/{}", self.store.bucket, self.store.prefix)
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Listed> {
        match kind {
            FileType::Config => {
                let found = self.store.find("config").map_err(|error| self.failed(error))?;
                let size = |config: &Bytes| u32::try_from(config.len()).unwrap_or(u32::MAX);
                let listed = found.iter().map(|config| (Id::default(), size(config))).collect();
                *self.found_config.lock().unwrap_or_else(PoisonError::into_inner) = found;
                Ok(listed)
            }
            FileType::Index => {
                let early = self.index.lock().unwrap_or_else(PoisonError::into_inner).take();
                early
                    .map_or_else(|| listed(&self.store, kind), |early| early.get())
                    .map_err(|error| self.failed(error))
            }
            _ => listed(&self.store, kind).map_err(|error| self.failed(error)),
        }
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        if kind == FileType::Config
            && let Some(config) = self.found_config.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Ok(config);
        }
        if kind == FileType::Snapshot
            && let Some((_, early)) = self.snapshot.get().filter(|(early, _)| early == id)
        {
            return early.get().map_err(|error| self.failed(error));
        }
        read_full(&self.store, kind, id).map_err(|error| self.failed(error))
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let name = name(kind, id);
        if let Some(bytes) = self.store.held(&name, offset, length) {
            return Ok(bytes);
        }
        if cacheable {
            // A folder's listing: those of its neighbours lie beside it and are asked for next, one by one.
            return self.store.get_ahead(&name, offset, length).map_err(|error| self.failed(error));
        }
        self.store.get(&name, Some((offset, length)), |_| true).map_err(|error| self.failed(error))
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.store.key(&name(kind, id))
    }
}

impl WriteBackend for SnapshotGate {
    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        if kind == FileType::Snapshot && self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut parts = content.into_vec();
        let bytes = match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => only,
            (last, _) => {
                let mut joined = BytesMut::new();
                for part in parts.into_iter().chain(last) {
                    joined.extend_from_slice(&part);
                }
                joined.freeze()
            }
        };
        if kind == FileType::Config && self.holds_config.load(Ordering::Acquire) {
            *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
            return Ok(());
        }
        self.store.put(&name(kind, id), bytes).map_err(|error| self.failed(error))?;
        if kind == FileType::Snapshot {
            *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(*id);
        }
        Ok(())
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        self.store.delete(&name(kind, id)).map_err(|error| self.failed(error))
    }
}

fn hex_of(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}
