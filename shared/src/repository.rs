//! What a node needs to write a user's snapshots and to read them back: where the bucket is, the user's place in it, its
//! key, and the snapshot to begin from. Travels over the link only, to the node that the user lives on.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::ids::{CellId, Generation, KeyId, UserId};
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::time::Millis;

/// Bytes of a [`MasterKey`].
pub const MASTER_KEY_BYTES: usize = 64;

/// Most users that one [`CoordinatorFrame::Repositories`](crate::wire::CoordinatorFrame::Repositories) tells of: with all
/// texts at their longest it fits into a frame.
pub const REPOSITORIES_MAX: usize = 256;

/// A repository's master key as restic has it: 32 bytes to encrypt, 16 and 16 to authenticate. Never printed; wiped when
/// dropped.
#[derive(Clone, Serialize, Deserialize)]
pub struct MasterKey([u8; 32], [u8; 32]);

impl MasterKey {
    /// Takes the bytes in: encrypt, then `k`, then `r` of the authentication.
    pub fn from_bytes(bytes: &[u8; MASTER_KEY_BYTES]) -> Self {
        let (mut encrypt, mut mac) = ([0; 32], [0; 32]);
        for (to, from) in encrypt.iter_mut().chain(&mut mac).zip(bytes) {
            *to = *from;
        }
        Self(encrypt, mac)
    }

    /// The 32 bytes that encrypt. Do not log them.
    pub const fn expose_encrypt(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 16 bytes `k` and the 16 bytes `r` that authenticate. Do not log them.
    pub const fn expose_mac(&self) -> &[u8; 32] {
        &self.1
    }
}

impl PartialEq for MasterKey {
    fn eq(&self, other: &Self) -> bool {
        (self.0.ct_eq(&other.0) & self.1.ct_eq(&other.1)).into()
    }
}

impl Eq for MasterKey {}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.0.zeroize();
        self.1.zeroize();
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(***)")
    }
}

/// A user's repository key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryKey {
    /// Names it in the journal.
    pub id: KeyId,
    /// Opens the repository.
    pub master: MasterKey,
    /// Opens it, too, for stock `restic`: the repository's first key file is made of it.
    pub password: Secret,
}

/// Where snapshots go, and with which rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// `https://host[:port]` of the S3 service; `None`: the service's own name for the region.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// Its name.
    pub bucket: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// Names the credential.
    pub access_key: String,
    /// Signs with it.
    pub secret_key: Secret,
    /// A cell that is up is snapshotted when its newest snapshot is this old.
    pub every: Millis,
}

/// One user's place in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRepository {
    /// Whose.
    pub user: UserId,
    /// Its home cell.
    pub cell: CellId,
    /// The assignment for which this is told. Snapshots of it, and of no other, are written below `prefix`.
    pub generation: Generation,
    /// The repository's keys in the bucket begin with it; it ends with `/`.
    pub prefix: String,
    /// The same for snapshots of this generation when it is not in force any more.
    pub orphans_prefix: String,
    /// The key.
    pub key: RepositoryKey,
    /// The snapshot to begin from, where the node does not hold the cell's data; `None`: there is none.
    pub head: Option<Snapshot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown_and_keeps_its_bytes() {
        let bytes: [u8; MASTER_KEY_BYTES] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let key = RepositoryKey {
            id: KeyId::from_random([1; 16]),
            master: MasterKey::from_bytes(&bytes),
            password: Secret::new("a password"),
        };
        let shown = format!("{key:?}");
        assert!(shown.contains("MasterKey(***)") && !shown.contains("a password"), "{shown}");
        assert_eq!([*key.master.expose_encrypt(), *key.master.expose_mac()].concat(), bytes);
        let bytes = crate::codec::encode(&key).unwrap();
        assert_eq!(crate::codec::decode::<RepositoryKey>(&bytes, 256).unwrap(), key);
        assert_ne!(key.master, MasterKey::from_bytes(&[0; MASTER_KEY_BYTES]));
    }
}
