//! A user's repository: opened with the master key, which no file in the store holds, and once made with a second key
//! under a password, so that stock `restic` opens it too.

use std::fmt;
use std::sync::Arc;

use berth_shared::secret::Secret;
use rustic_core::repofile::{MasterKey, SnapshotFile};
use rustic_core::{
    ConfigOptions, Credentials, KeyOptions, OpenStatus, Repository, RepositoryBackends, RepositoryOptions,
    RusticResult,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Failure;
use crate::labels::Labels;
use crate::store::{S3Store, SnapshotGate};

/// Size of a pack of data that is aimed at. A worker holds a few in memory.
const DATA_PACK_BYTES: u64 = 16 * 1024 * 1024;
/// Size of a pack of folders' listings.
const TREE_PACK_BYTES: u64 = 4 * 1024 * 1024;

/// Least length of the password of stock `restic`. It is drawn at random, never chosen.
const PASSWORD_BYTES_MIN: usize = 20;

/// A repository's master key: 32 bytes for AES-256-CTR, then 32 for Poly1305-AES (`k`, `r`).
///
/// As text, which is how it is handed over: the 64 bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositoryKey(Zeroizing<[u8; 64]>);

impl RepositoryKey {
    /// Takes 64 random bytes for a key.
    pub fn from_random(bytes: [u8; 64]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key as text. Not for logs.
    pub fn to_text(&self) -> Secret {
        Secret::new(data_encoding::BASE64.encode(self.0.as_slice()))
    }

    fn master_key(&self) -> Result<MasterKey, Failure> {
        let base64 = |from: usize, to: usize| {
            Zeroizing::new(data_encoding::BASE64.encode(self.0.get(from..to).unwrap_or_default()))
        };
        let json = serde_json::json!({
            "encrypt": base64(0, 32).as_str(),
            "mac": { "k": base64(32, 48).as_str(), "r": base64(48, 64).as_str() },
        });
        serde_json::from_value(json).map_err(|_| Failure::bad_job("the key has another shape"))
    }
}

impl From<&berth_shared::repository::MasterKey> for RepositoryKey {
    fn from(key: &berth_shared::repository::MasterKey) -> Self {
        let mut bytes = Zeroizing::new([0; 64]);
        let (encrypt, mac) = bytes.split_at_mut(32);
        encrypt.copy_from_slice(key.expose_encrypt());
        mac.copy_from_slice(key.expose_mac());
        Self(bytes)
    }
}

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for RepositoryKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_text().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RepositoryKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Secret::deserialize(deserializer)?;
        let bytes = data_encoding::BASE64.decode(text.expose().as_bytes()).map(Zeroizing::new);
        let bytes = bytes.ok().and_then(|bytes| <[u8; 64]>::try_from(bytes.as_slice()).ok());
        // What was read is not repeated: it may be most of a key.
        bytes.map(Self::from_random).ok_or_else(|| serde::de::Error::custom("a key is 64 bytes in base64"))
    }
}

/// How files are cut into chunks. Set when a repository is made and never changed: other cuts share nothing with the
/// chunks that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chunking {
    /// Size that is aimed at, in bytes, a power of two.
    pub average_bytes: u64,
    /// No chunk is smaller, but the last of a file.
    pub min_bytes: u64,
    /// No chunk is larger.
    pub max_bytes: u64,
}

impl Default for Chunking {
    /// 256 KiB, from 128 KiB to 2 MiB: a quarter of restic's own, since a page that changed in a database has its whole chunk
    /// sent anew (docs/decisions/0006, "Sizes of chunks").
    fn default() -> Self {
        Self { average_bytes: 256 << 10, min_bytes: 128 << 10, max_bytes: 2 << 20 }
    }
}

/// A snapshot, with its labels and tree hash where it is Berth's.
pub(crate) type Found = (SnapshotFile, Option<(Labels, String)>);

/// An open repository.
#[derive(Debug)]
pub struct OpenRepository {
    pub(crate) store: Arc<S3Store>,
    pub(crate) gate: Arc<SnapshotGate>,
    pub(crate) inner: Repository<OpenStatus>,
}

fn repository(gate: &Arc<SnapshotGate>) -> RusticResult<Repository<()>> {
    let mut options = RepositoryOptions::default();
    // A cache on the node would hold listings of users' files, and has to be kept in step: the index is small.
    options.no_cache = true;
    Repository::new(&options, &RepositoryBackends::new(Arc::clone(gate) as Arc<_>, None))
}

/// Makes the repository, with a second key under `password` for stock `restic`. That key is written first: a repository is
/// there once its config is, so none is ever there that its owner cannot open. One that lacks the key all the same is
/// given it.
///
/// # Errors
/// There is one already, the store fails, or the password is too short.
pub fn init(
    store: &Arc<S3Store>,
    key: &RepositoryKey,
    password: &Secret,
    chunking: Chunking,
) -> Result<OpenRepository, Failure> {
    if password.expose().len() < PASSWORD_BYTES_MIN {
        return Err(Failure::bad_job("the password is shorter than 20 bytes"));
    }
    let gate = SnapshotGate::new(Arc::clone(store));
    let failed = |error: Box<rustic_core::RusticError>| {
        let text = error.to_string();
        let failure = Failure::library(store, &error);
        let exists = text.contains("already exists");
        if exists && matches!(failure, Failure::Internal { .. }) {
            Failure::RepositoryExists
        } else {
            failure
        }
    };
    let mut config = ConfigOptions::default();
    config.set_chunk_size = size(chunking.average_bytes);
    config.set_chunk_min_size = size(chunking.min_bytes);
    config.set_chunk_max_size = size(chunking.max_bytes);
    config.set_datapack_size = size(DATA_PACK_BYTES);
    config.set_treepack_size = size(TREE_PACK_BYTES);
    let credentials = Credentials::Masterkey(key.master_key()?);
    gate.hold_config(true);
    let inner = repository(&gate).and_then(|made| made.init(&credentials, &KeyOptions::default(), &config));
    let inner = match inner.map_err(failed) {
        Err(Failure::RepositoryExists) => {
            mend_keys(store, key, password)?;
            return Err(Failure::RepositoryExists);
        }
        inner => inner?,
    };
    add_key(&inner, password).map_err(failed)?;
    gate.hold_config(false);
    gate.write_config()?;
    Ok(OpenRepository { store: Arc::clone(store), gate, inner })
}

fn add_key(inner: &Repository<OpenStatus>, password: &Secret) -> RusticResult<()> {
    // The host is left out: it would tell a user's key file which node made it.
    let options =
        KeyOptions::default().hostname("berth".to_owned()).username("berth".to_owned()).with_created(true);
    inner.add_key(password.expose(), &options).map(drop)
}

/// A repository of which only the config was written has no key that its owner could use.
fn mend_keys(store: &Arc<S3Store>, key: &RepositoryKey, password: &Secret) -> Result<(), Failure> {
    if !store.list("keys/")?.is_empty() {
        return Ok(());
    }
    let open = open(store, key)?;
    add_key(&open.inner, password).map_err(|error| open.failed(&error))
}

/// A repository that is about to be opened: what is sure to be needed of it can be asked for before, and comes while it
/// is opened, and while the caller does something else.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    store: &'a Arc<S3Store>,
    key: &'a RepositoryKey,
    gate: Arc<SnapshotGate>,
}

impl<'a> Opening<'a> {
    /// Nothing is asked yet.
    pub(crate) fn new(store: &'a Arc<S3Store>, key: &'a RepositoryKey) -> Self {
        Self { store, key, gate: SnapshotGate::new(Arc::clone(store)) }
    }

    /// Asks for this snapshot. An id that is not whole is found later, among all.
    pub(crate) fn ask_for_snapshot(&self, id: &str) {
        if let Some(id) = (id.len() == 64).then(|| id.parse().ok()).flatten() {
            self.gate.snapshot_early(id);
        }
    }

    /// Asks for the listing of the index.
    pub(crate) fn ask_for_index(&self) {
        self.gate.index_early();
    }

    /// See [`open`].
    pub(crate) fn open(self) -> Result<OpenRepository, Failure> {
        let Self { store, key, gate } = self;
        let credentials = Credentials::Masterkey(key.master_key()?);
        let inner = repository(&gate).and_then(|closed| closed.open(&credentials)).map_err(|error| {
            let text = error.to_string();
            match Failure::library(store, &error) {
                Failure::Internal { .. } if text.contains("No repository config file") => {
                    Failure::NoRepository
                }
                // The config is the first thing that is decrypted.
                Failure::Damaged { .. } => Failure::WrongKey,
                other => other,
            }
        })?;
        Ok(OpenRepository { store: Arc::clone(store), gate, inner })
    }
}

/// Opens a repository. One request reads its config.
///
/// # Errors
/// There is none, the key is another's, or the store fails.
pub fn open(store: &Arc<S3Store>, key: &RepositoryKey) -> Result<OpenRepository, Failure> {
    Opening::new(store, key).open()
}

impl OpenRepository {
    pub(crate) fn failed(&self, error: &rustic_core::RusticError) -> Failure {
        Failure::library(&self.store, error)
    }

    /// The snapshot of this id, or of the only one that begins so.
    pub(crate) fn snapshot(&self, id: &str) -> Result<SnapshotFile, Failure> {
        let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !plain {
            return Err(Failure::NoSnapshot { id: id.chars().take(64).collect() });
        }
        let found = self.inner.get_snapshots(&[id]).map_err(|error| match self.failed(&error) {
            Failure::Internal { .. } | Failure::Store(crate::store::StoreError::NotFound { .. }) => {
                Failure::NoSnapshot { id: id.to_owned() }
            }
            other => other,
        })?;
        found.into_iter().next().ok_or_else(|| Failure::NoSnapshot { id: id.to_owned() })
    }

    /// All snapshots, the oldest first.
    pub(crate) fn snapshots(&self) -> Result<Vec<Found>, Failure> {
        let mut all = self.inner.get_all_snapshots().map_err(|error| self.failed(&error))?;
        all.sort_by(|a, b| a.time.cmp(&b.time));
        Ok(all
            .into_iter()
            .map(|file| {
                let labels = Labels::parse(file.tags.iter());
                (file, labels)
            })
            .collect())
    }
}

/// The library's type of a size, which is another crate's.
fn size<T: std::str::FromStr>(bytes: u64) -> Option<T> {
    bytes.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_is_not_shown() {
        let key = RepositoryKey::from_random(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<RepositoryKey>(&json).unwrap(), key);
        assert_eq!(format!("{key:?}"), "***");
        key.master_key().unwrap();
        let cut = serde_json::from_str::<RepositoryKey>("\"AAECAwQF\"").unwrap_err().to_string();
        assert!(!cut.contains("AAEC"), "{cut}");
    }
}
