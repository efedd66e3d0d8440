//! What a node needs to write a user's snapshots and to read them back: where the bucket is, the user's place in it, its
//! key, and the snapshot to begin from. Travels over the link only, to the node that the user lives on. And what a
//! repository is made of: restic's kinds of objects.

use std::fmt;
use std::str::FromStr;

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

/// Where owners read their repository, on their host name, by restic's REST interface.
pub const RESTIC_PATH: &str = "/.berth/restic/";

/// Kinds of objects of a repository in restic's format that have names. Locks are not among them: Berth takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Packs of files' content and of folders' listings.
    Data,
    /// What is in which pack.
    Index,
    /// The master key under a password.
    Keys,
    /// Snapshots.
    Snapshots,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Data, Self::Index, Self::Keys, Self::Snapshots];

    /// The name of its folder.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Index => "index",
            Self::Keys => "keys",
            Self::Snapshots => "snapshots",
        }
    }
}

impl FromStr for ObjectKind {
    type Err = NoObject;

    fn from_str(text: &str) -> Result<Self, NoObject> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(NoObject)
    }
}

/// The name of an object: the 64 hexadecimal digits of its hash, in lower case. Nothing else can be in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

/// Digits of an [`ObjectName`].
pub const OBJECT_NAME_DIGITS: usize = 64;

impl ObjectName {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = NoObject;

    fn from_str(text: &str) -> Result<Self, NoObject> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (digits && text.len() == OBJECT_NAME_DIGITS).then(|| Self(text.to_owned())).ok_or(NoObject)
    }
}

impl TryFrom<String> for ObjectName {
    type Error = NoObject;

    fn try_from(text: String) -> Result<Self, NoObject> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.0
    }
}

/// One object of a repository. Written as restic's REST interface has it: `config`, or `KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// The one without a name.
    Config,
    /// Any other.
    Named(ObjectKind, ObjectName),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Named(kind, name) => write!(f, "{}/{}", kind.as_str(), name.as_str()),
        }
    }
}

impl FromStr for Object {
    type Err = NoObject;

    fn from_str(text: &str) -> Result<Self, NoObject> {
        if text == "config" {
            return Ok(Self::Config);
        }
        let (kind, name) = text.split_once('/').ok_or(NoObject)?;
        Ok(Self::Named(kind.parse()?, name.parse()?))
    }
}

/// No repository has an object of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a repository has no object of this name")]
pub struct NoObject;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_names_of_restic_and_no_others() {
        let hex = "0123456789abcdef".repeat(4);
        for good in ["config".to_owned(), format!("data/{hex}"), format!("keys/{hex}")] {
            assert_eq!(good.parse::<Object>().unwrap().to_string(), good);
        }
        for bad in [
            String::new(),
            "config/".into(),
            "Config".into(),
            format!("locks/{hex}"),
            format!("data//{hex}"),
            format!("data/01/{hex}"),
            format!("data/{}", &hex[1..]),
            format!("data/{hex}0"),
            format!("data/{}", hex.to_uppercase()),
            format!("/data/{hex}"),
            format!("../{hex}"),
            "keys/../config".into(),
            format!("keys/{}/..{}", &hex[..30], &hex[..30]),
            format!("keys/%2e%2e%2f{}", &hex[..55]),
        ] {
            assert_eq!(bad.parse::<Object>(), Err(NoObject), "{bad}");
        }
        let object: Object = format!("index/{hex}").parse().unwrap();
        let json = serde_json::to_string(&object).unwrap();
        assert_eq!(serde_json::from_str::<Object>(&json).unwrap(), object);
        assert!(serde_json::from_str::<Object>(&json.replace("01234", "../..")).is_err());
    }

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
