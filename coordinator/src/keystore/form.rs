//! The bytes of the key store and of its backups.
//!
//! ```text
//! magic and form, 8 bytes | body (bincode) | SHA-256 over all before it
//! ```
//!
//! The hash tells damage; that nobody has put other keys in, the wrapping of each entry tells.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::codec::{self, CodecError};
use berth_shared::ids::{KeyId, UserId};
use berth_shared::time::{Millis, UnixMs};
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::wrap::{Entry, FleetKey, ProofKey, RecoveryKey, RecoveryPublic, WrapError};

/// Largest file that is read, in bytes: 20,000 users have 4 MiB, and 6.3 MiB where each has a record key.
pub(super) const FILE_BYTES_MAX: usize = 64 << 20;

/// Ends the name of a backup.
pub(super) const BACKUP_SUFFIX: &str = ".keys";

/// Longest that any config has a backup kept: ten years.
const KEPT_MAX: Millis = Millis::minutes(3_650 * 24 * 60);

const HASH_BYTES: usize = 32;
const MAGIC_BYTES: usize = 8;
const STORE_MAGIC: &[u8; MAGIC_BYTES] = b"BERTHKS1";
const BACKUP_MAGIC: &[u8; MAGIC_BYTES] = b"BERTHKB1";

/// All keys, wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    /// The fleet key that wraps the entries.
    pub(super) fleet: KeyId,
    /// `None` in a store that was made for record keys only: nothing of it can be backed up.
    recovery: Option<Recovery>,
    /// Users' repository keys.
    pub(super) entries: BTreeMap<UserId, Entry>,
    /// Users' record keys.
    pub(super) records: BTreeMap<UserId, Entry>,
}

/// What a recovery key is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recovery {
    /// The fleet key is sealed to this.
    public: RecoveryPublic,
    sealed_fleet: Vec<u8>,
    /// What backups are proven with, wrapped by the fleet key.
    wrapped_proof: Vec<u8>,
}

/// When a backup was made, and until when it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BackupMark {
    pub(crate) made_at: UnixMs,
    pub(crate) expires_at: UnixMs,
}

/// A backup in the bucket, and which change of the store was the last that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InBucket {
    pub(super) revision: u64,
    pub(crate) mark: BackupMark,
}

/// The store's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreForm {
    pub(super) contents: Contents,
    /// How often the contents were changed.
    pub(super) revision: u64,
    /// Backups that have not expired when this was written, but for those that say nothing beside a newer one.
    pub(super) backups: Vec<BackupMark>,
    /// The newest backup that the bucket has taken.
    pub(super) in_bucket: Option<InBucket>,
    /// Users whose keys were destroyed while backups held them, and until when the last of those is kept.
    pub(super) destroyed: BTreeMap<UserId, UnixMs>,
}

/// A backup's file: the store as it was, with all that it knew of backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupForm {
    pub(super) mark: BackupMark,
    pub(super) store: StoreForm,
    /// That it was written by an installation of the recovery key.
    proof: Vec<u8>,
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
    /// An older backup, or another's, under a newer name.
    #[error("it is another backup than its name says")]
    Name,
}

impl BackupMark {
    /// The name of its object in the bucket.
    pub(crate) fn name(&self) -> String {
        format!("{}_{}{BACKUP_SUFFIX}", self.made_at, self.expires_at)
    }

    /// `None`: no backup has this name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let time = |text: &str| UnixMs::deserialize(StrDeserializer::<ValueError>::new(text)).ok();
        let (made_at, expires_at) = name.strip_suffix(BACKUP_SUFFIX)?.split_once('_')?;
        let mark = Self { made_at: time(made_at)?, expires_at: time(expires_at)? };
        let possible = mark.expires_at.since(mark.made_at) <= KEPT_MAX;
        (possible && mark.name() == name).then_some(mark)
    }
}

impl Contents {
    pub(super) fn new(
        fleet: &FleetKey,
        recovery: RecoveryPublic,
        proof: &ProofKey,
    ) -> Result<Self, WrapError> {
        let mut contents = Self::without_recovery(fleet);
        contents.give_recovery(fleet, recovery, proof)?;
        Ok(contents)
    }

    pub(super) const fn without_recovery(fleet: &FleetKey) -> Self {
        Self { fleet: fleet.id, recovery: None, entries: BTreeMap::new(), records: BTreeMap::new() }
    }

    pub(super) fn give_recovery(
        &mut self,
        fleet: &FleetKey,
        public: RecoveryPublic,
        proof: &ProofKey,
    ) -> Result<(), WrapError> {
        let (sealed_fleet, wrapped_proof) = (public.seal(fleet)?, fleet.wrap_proof(proof));
        self.recovery = Some(Recovery { public, sealed_fleet, wrapped_proof });
        Ok(())
    }

    /// The recovery key's public half, where there is one.
    pub(super) fn recovery(&self) -> Option<RecoveryPublic> {
        self.recovery.as_ref().map(|recovery| recovery.public)
    }

    /// All keys of a user's.
    pub(super) fn of(&self, user: UserId) -> impl Iterator<Item = &Entry> {
        self.entries.get(&user).into_iter().chain(self.records.get(&user))
    }

    /// Everybody who has a key.
    pub(super) fn users(&self) -> BTreeSet<UserId> {
        self.entries.keys().chain(self.records.keys()).copied().collect()
    }

    /// Of entries that nothing opens, for the fuzz targets.
    pub(super) fn sample(recovery: RecoveryPublic, entries: BTreeMap<UserId, Entry>) -> Self {
        let recovery = Recovery { public: recovery, sealed_fleet: vec![6; 80], wrapped_proof: vec![7; 72] };
        let records = entries.clone();
        Self { fleet: KeyId::from_random([5; 16]), recovery: Some(recovery), entries, records }
    }

    /// The fleet key, by its recovery key.
    pub(super) fn open(&self, recovery: &RecoveryKey) -> Result<FleetKey, WrapError> {
        let sealed = self.recovery.as_ref().ok_or(WrapError::Opens)?;
        recovery.open(self.fleet, &sealed.sealed_fleet)
    }

    /// What backups are proven with.
    fn proof_key(&self, fleet: &FleetKey) -> Result<ProofKey, WrapError> {
        fleet.unwrap_proof(&self.recovery.as_ref().ok_or(WrapError::Opens)?.wrapped_proof)
    }

    /// The same keys under another fleet key.
    pub(super) fn rewrapped(&self, from: &FleetKey, to: &FleetKey) -> Result<Self, WrapError> {
        let mut next = Self::without_recovery(to);
        if let Some(public) = self.recovery() {
            next.give_recovery(to, public, &self.proof_key(from)?)?;
        }
        for (user, entry) in &self.entries {
            let key = from.unwrap(*user, entry)?;
            next.entries.insert(*user, to.wrap(*user, &key, entry.made_at));
        }
        for (user, entry) in &self.records {
            let key = from.unwrap_record(*user, entry)?;
            next.records.insert(*user, to.wrap_record(&key, entry.made_at));
        }
        Ok(next)
    }
}

impl StoreForm {
    pub(super) const fn new(contents: Contents) -> Self {
        Self { contents, revision: 0, backups: vec![], in_bucket: None, destroyed: BTreeMap::new() }
    }

    /// Has it know of a backup. One that was made later and may be kept longer holds every key of now that an older one
    /// holds: so that one needs not be known any more.
    pub(super) fn know(&mut self, new: BackupMark) {
        let says =
            |old: &BackupMark, new: &BackupMark| old.made_at > new.made_at || old.expires_at > new.expires_at;
        if self.backups.iter().all(|old| says(&new, old)) {
            self.backups.retain(|old| says(old, &new));
            self.backups.push(new);
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        encode(STORE_MAGIC, self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormError> {
        decode(STORE_MAGIC, bytes)
    }
}

impl BackupForm {
    pub(super) fn new(mark: BackupMark, store: StoreForm, fleet: &FleetKey) -> Result<Self, WrapError> {
        let proof = store.contents.proof_key(fleet)?.prove(&proven(&mark, &store));
        Ok(Self { mark, store, proof })
    }

    /// Of which nothing is proven, for the fuzz targets.
    pub(super) fn sample(mark: BackupMark, store: StoreForm) -> Self {
        Self { mark, store, proof: vec![8; 40] }
    }

    /// Was it written by an installation of this recovery key?
    pub(super) fn is_of(&self, recovery: &RecoveryKey) -> bool {
        recovery.proof_key().proves(&self.proof, &proven(&self.mark, &self.store))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        encode(BACKUP_MAGIC, self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormError> {
        decode(BACKUP_MAGIC, bytes)
    }
}

/// What the proof of a backup is of.
fn proven(mark: &BackupMark, store: &StoreForm) -> Vec<u8> {
    body(&(mark, store))
}

fn body(form: &impl Serialize) -> Vec<u8> {
    codec::encode(form).expect("maps and byte strings of known length always encode")
}

fn encode(magic: &[u8; MAGIC_BYTES], form: &impl Serialize) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(body(form));
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
