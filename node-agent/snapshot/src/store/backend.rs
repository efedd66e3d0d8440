//! The store as the library that writes restic's format sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};
use sha2::{Digest, Sha256};

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

fn failed(error: StoreError) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "the store failed", error)
}

/// The store, with a gate before snapshots: while it is closed, a snapshot that the library writes is not written.
///
/// The library ends a backup by writing the snapshot. Berth can tell only then whether all of it could be read, what
/// its tree hash is (a tag of that snapshot), and whether anything has changed at all. So the gate is closed during
/// the backup; the snapshot is written afterwards, with its tags, or not at all.
///
/// The library makes a repository by writing its config, and a key only then. While the config is held back, it is
/// written when everything else is there.
#[derive(Debug)]
pub struct SnapshotGate {
    store: Arc<S3Store>,
    closed: AtomicBool,
    written: Mutex<Option<Id>>,
    holds_config: AtomicBool,
    config: Mutex<Option<Bytes>>,
}

impl SnapshotGate {
    /// An open gate.
    pub fn new(store: Arc<S3Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            closed: AtomicBool::new(false),
            written: Mutex::default(),
            holds_config: AtomicBool::new(false),
            config: Mutex::default(),
        })
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

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        if kind == FileType::Config {
            let size = self.store.head("config").map_err(failed)?;
            return Ok(size
                .map(|size| (Id::default(), u32::try_from(size).unwrap_or(u32::MAX)))
                .into_iter()
                .collect());
        }
        let objects = self.store.list(&format!("{}/", kind.dirname())).map_err(failed)?;
        // Whatever else lies there is not ours and not restic's.
        let ours = objects.into_iter().filter_map(|(name, size)| {
            let (_, hex) = name.rsplit_once('/')?;
            let id = (hex.len() == 64).then(|| hex.parse::<Id>().ok()).flatten()?;
            Some((id, u32::try_from(size).ok()?))
        });
        Ok(ours.collect())
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        // Every file but the config is named by its own hash.
        let expected = (kind != FileType::Config).then(|| id.to_hex().as_str().to_owned());
        let whole = |bytes: &[u8]| expected.as_deref().is_none_or(|hex| hex_of(bytes) == hex);
        self.store.get(&name(kind, id), None, whole).map_err(failed)
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
            return self.store.get_ahead(&name, offset, length).map_err(failed);
        }
        self.store.get(&name, Some((offset, length)), |_| true).map_err(failed)
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
        self.store.put(&name(kind, id), bytes).map_err(failed)?;
        if kind == FileType::Snapshot {
            *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(*id);
        }
        Ok(())
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        self.store.delete(&name(kind, id)).map_err(failed)
    }
}

fn hex_of(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}
