//! The state folder: what survives a restart of the cell.
//!
//! `test-cell.json` (who this cell is and how often it started), `values/<key>` (small values of a test) and
//! `mode.json` (owned by [`crate::mode`]). Files are replaced by rename, so a kill leaves the old or the new one.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Largest `test-cell.json` that is read.
const RECORD_BYTES_MAX: u64 = 4096;
/// Largest value of `POST /state/<key>`.
pub(crate) const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Longest key.
const KEY_BYTES_MAX: usize = 64;

/// What is remembered about this cell's data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Random, made when the folder was first used: the same value means the same data.
    pub(crate) data_id: String,
    /// How often a cell started on this folder, this start included.
    pub(crate) starts: u64,
}

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{path} could not be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {max} bytes")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} could not be written")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a key is 1 to {KEY_BYTES_MAX} letters, digits, '-' or '_'")]
    Key,
    #[error("no random numbers")]
    Random(#[source] getrandom::Error),
}

/// The open state folder.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    record: Record,
}

impl Store {
    /// Opens the folder, counts this start and writes the count back.
    pub(crate) fn open(dir: PathBuf) -> Result<Store, StoreError> {
        let path = dir.join("test-cell.json");
        let old = match read_bounded(&path, RECORD_BYTES_MAX)? {
            None => Record { data_id: random_id()?, starts: 0 },
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| StoreError::Damaged { path: path.clone(), source })?,
        };
        let record = Record { starts: old.starts.saturating_add(1), ..old };
        let bytes = serde_json::to_vec(&record)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        replace_file(&path, &bytes)?;
        Ok(Store { dir, record })
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn mode_path(&self) -> PathBuf {
        self.dir.join("mode.json")
    }

    /// The value kept under `key`, if any.
    pub(crate) fn value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        read_bounded(&self.value_path(key)?, VALUE_BYTES_MAX as u64)
    }

    /// Keeps `value` under `key`.
    pub(crate) fn set_value(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let path = self.value_path(key)?;
        let values = self.dir.join("values");
        std::fs::create_dir_all(&values).map_err(|source| StoreError::Write { path: values, source })?;
        replace_file(&path, value)
    }

    fn value_path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let fits = (1..=KEY_BYTES_MAX).contains(&key.len());
        if fits && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            Ok(self.dir.join("values").join(key))
        } else {
            Err(StoreError::Key)
        }
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_id() -> Result<String, StoreError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(StoreError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Reads a whole file of at most `max` bytes; `None` when there is none.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let read = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > max {
        return Err(StoreError::TooLarge { path: path.to_owned(), max });
    }
    Ok(Some(bytes))
}

/// Writes a file beside `path`, syncs it and renames it into place.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = |source| StoreError::Write { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut file = std::fs::File::create(&temporary).map_err(write)?;
    file.write_all(bytes).map_err(write)?;
    file.sync_all().map_err(write)?;
    std::fs::rename(&temporary, path).map_err(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_the_data_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path().to_owned()).unwrap().record().clone();
        let second = Store::open(dir.path().to_owned()).unwrap().record().clone();
        assert_eq!((first.starts, second.starts), (1, 2));
        assert_eq!(first.data_id, second.data_id);
    }

    #[test]
    fn values_survive_and_keys_cannot_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_owned()).unwrap();
        store.set_value("a-1", b"x").unwrap();
        assert_eq!(store.value("a-1").unwrap().as_deref(), Some(&b"x"[..]));
        assert_eq!(store.value("b").unwrap(), None);
        assert!(matches!(store.value("../mode.json"), Err(StoreError::Key)));
        assert!(matches!(store.value(""), Err(StoreError::Key)));
    }
}
