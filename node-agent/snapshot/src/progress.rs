//! How far a job is, read by another thread than the one that does it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::source::Shared;

/// Counts what was gone through.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    source: Mutex<Option<Arc<Shared>>>,
    pub(crate) entries: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Meter {
    /// From now on the counts are this read's.
    pub(crate) fn watch(&self, source: &Arc<Shared>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(source));
    }

    /// So far it is, until a read is watched.
    pub(crate) fn count(&self, entries: u64, bytes: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Entries and bytes so far.
    pub(crate) fn read(&self) -> (u64, u64) {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        match source.as_ref() {
            Some(shared) => (shared.files.load(Ordering::Relaxed), shared.bytes.load(Ordering::Relaxed)),
            None => (self.entries.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)),
        }
    }
}
