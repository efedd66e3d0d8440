//! The bytes of the key store and of its backups.
//!
//! ```text
//! magic and form, 8 bytes | body (bincode) | SHA-256 over all before it
//! ```
//!
//! The hash tells damage; that nobody has put other keys in, the wrapping of each entry tells.

use std::collections::BTreeMap;

use berth_shared::codec::{self, CodecError};
use berth_shared::ids::{KeyId, UserId};
use berth_shared::time::UnixMs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::wrap::{Entry, FleetKey, RecoveryPublic, WrapError};

/// Largest file that is read, in bytes: 20,000 users have 4 MiB.
pub(super) const FILE_BYTES_MAX: usize = 64 << 20;

const HASH_BYTES: usize = 32;
const MAGIC_BYTES: usize = 8;
const STORE_MAGIC: &[u8; MAGIC_BYTES] = b"BERTHKS1";
const BACKUP_MAGIC: &[u8; MAGIC_BYTES] = b"BERTHKB1";

/// All keys, wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    /// The fleet key that wraps the entries.
    pub(super) fleet: KeyId,
    /// The fleet key is sealed to this.
    pub(super) recovery: RecoveryPublic,
    sealed_fleet: Vec<u8>,
    pub(super) entries: BTreeMap<UserId, Entry>,
}

/// When a backup was made, and until when it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupMark {
    pub(super) made_at: UnixMs,
    pub(super) expires_at: UnixMs,
}

/// The store's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreForm {
    pub(super) contents: Contents,
    /// Backups that have not expired when this was written.
    pub(super) backups: Vec<BackupMark>,
    /// Users whose keys were destroyed while backups held them, and until when the last of those is kept.
    pub(super) destroyed: BTreeMap<UserId, UnixMs>,
}

/// A backup's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupForm {
    pub(super) mark: BackupMark,
    pub(super) contents: Contents,
}

/// Why bytes are not such a file.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// Another beginning.
    #[error("it is not such a file, or of a newer release")]
    Magic,
    /// What is in it is not what was written.
    #[error("its hash is wrong: it is damaged or cut short")]
    Hash,
    /// Not by us.
    #[error("its bytes are not what its beginning says")]
    Body(#[source] CodecError),
}

impl Contents {
    pub(super) fn new(fleet: &FleetKey, recovery: RecoveryPublic) -> Result<Self, WrapError> {
        let sealed_fleet = recovery.seal(fleet)?;
        Ok(Self { fleet: fleet.id, recovery, sealed_fleet, entries: BTreeMap::new() })
    }

    /// Of entries that nothing opens, for the fuzz targets.
    pub(super) fn sample(recovery: RecoveryPublic, entries: BTreeMap<UserId, Entry>) -> Self {
        Self { fleet: KeyId::from_random([5; 16]), recovery, sealed_fleet: vec![6; 80], entries }
    }

    /// The fleet key, by its recovery key.
    pub(super) fn open(&self, recovery: &super::wrap::RecoveryKey) -> Result<FleetKey, WrapError> {
        recovery.open(self.fleet, &self.sealed_fleet)
    }

    /// The same keys under another fleet key.
    pub(super) fn rewrapped(&self, from: &FleetKey, to: &FleetKey) -> Result<Self, WrapError> {
        let mut next = Self::new(to, self.recovery)?;
        for (user, entry) in &self.entries {
            let key = from.unwrap(*user, entry)?;
            next.entries.insert(*user, to.wrap(*user, &key, entry.made_at));
        }
        Ok(next)
    }
}

impl StoreForm {
    pub(super) const fn new(contents: Contents) -> Self {
        Self { contents, backups: vec![], destroyed: BTreeMap::new() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        encode(STORE_MAGIC, self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormError> {
        decode(STORE_MAGIC, bytes)
    }
}

impl BackupForm {
    pub(super) fn encode(&self) -> Vec<u8> {
        encode(BACKUP_MAGIC, self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormError> {
        decode(BACKUP_MAGIC, bytes)
    }
}

fn encode(magic: &[u8; MAGIC_BYTES], form: &impl Serialize) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(codec::encode(form).expect("maps and byte strings of known length always encode"));
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

fn decode<T: DeserializeOwned>(magic: &[u8; MAGIC_BYTES], bytes: &[u8]) -> Result<T, FormError> {
    let body = bytes.strip_prefix(magic).ok_or(FormError::Magic)?;
    let (body, hash) = body.split_last_chunk::<HASH_BYTES>().ok_or(FormError::Hash)?;
    let hashed = bytes.get(..bytes.len() - HASH_BYTES).ok_or(FormError::Hash)?;
    if Sha256::digest(hashed).as_slice() != hash {
        return Err(FormError::Hash);
    }
    codec::decode(body, FILE_BYTES_MAX).map_err(FormError::Body)
}
