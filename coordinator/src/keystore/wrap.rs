//! How keys are wrapped.
//!
//! ```text
//! recovery key (X25519, on paper) ──HPKE, RFC 9180──> fleet key ──XChaCha20-Poly1305──> each user's repository key
//!        only its public half is kept                 fleet.key, mode 0600              and record key (`record`)
//! ```
//!
//! Whoever has the public half can seal a fleet key of their own to it, and the public half is in every backup. So a backup
//! also has a proof, made with a second key that comes out of the recovery key; the store keeps that one wrapped, too.
//!
//! What is bound to an entry (user, key id, fleet key, form) is authenticated with it: an entry that was moved to another
//! user, or is of another fleet key, does not open.

use std::fmt;

use berth_shared::codec::{self, CodecError};
use berth_shared::ids::{KeyId, UserId};
use berth_shared::repository::{MASTER_KEY_BYTES, MasterKey, RepositoryKey};
use berth_shared::secret::Secret;
use berth_shared::time::UnixMs;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::system::random;

const FLEET_PREFIX: &str = "berth_fleet_";
const RECOVERY_PREFIX: &str = "berth_recovery_";
/// Longest text of either key, in bytes.
pub(crate) const KEY_TEXT_BYTES_MAX: usize = 256;
/// Names the form of an entry in what is authenticated with it.
const ENTRY_LABEL: &[u8] = b"berth key store entry, form 1";
/// The same for the sealed fleet key.
const FLEET_LABEL: &[u8] = b"berth fleet key, form 1";
/// The same for the key that backups are proven with, and what sets it apart from the recovery key it comes from.
const PROOF_LABEL: &[u8] = b"berth key store backup proof, form 1";
pub(super) const NONCE_BYTES: usize = 24;
/// Bytes of an encapsulated X25519 key.
const ENCAPSULATED_BYTES: usize = 32;
const SUM_BYTES: usize = 4;
/// Most bytes of an opened entry.
const PLAIN_BYTES_MAX: usize = 512;

type Sealing = X25519HkdfSha256;

/// Why a key did not open, or a text is no key. Says nothing of what it holds.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// The prefix, the alphabet, the length or the check sum is wrong: most often cut while copied.
    #[error("this is not a whole {0}: copy it again, from its prefix to its end")]
    Text(&'static str),
    /// It was wrapped for something else, with another key, or its bytes were changed.
    #[error("it does not open with this key")]
    Opens,
    /// It could not be sealed to the recovery key's public half, which is damaged.
    #[error("it cannot be sealed to this recovery key")]
    Seals,
    /// It has opened and holds something else.
    #[error("what was wrapped is not a key")]
    Form(#[source] CodecError),
}

/// Wraps users' keys. Never printed; wiped when dropped.
pub(crate) struct FleetKey {
    pub(crate) id: KeyId,
    secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetKey({}, ***)", self.id)
    }
}

/// A key of a user's, wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: KeyId,
    /// No backup from before this holds it.
    pub(crate) made_at: UnixMs,
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) wrapped: Vec<u8>,
}

impl FleetKey {
    pub(crate) fn draw() -> Self {
        Self { id: KeyId::from_random(random()), secret: Zeroizing::new(random()) }
    }

    /// One that is always the same, for the fuzz targets.
    pub(super) fn sample() -> Self {
        Self { id: KeyId::from_random([8; 16]), secret: Zeroizing::new([9; 32]) }
    }

    /// The line of its file.
    pub(crate) fn to_text(&self) -> Secret {
        let mut bytes = Zeroizing::new(self.id.bytes().to_vec());
        bytes.reserve_exact(32);
        bytes.extend_from_slice(self.secret.as_slice());
        to_text(FLEET_PREFIX, &bytes)
    }

    pub(crate) fn from_text(text: &str) -> Result<Self, WrapError> {
        let wrong = WrapError::Text("fleet key");
        let Some(bytes) = from_text(FLEET_PREFIX, text) else { return Err(wrong) };
        let Some((id, secret)) = bytes.split_first_chunk::<16>() else { return Err(wrong) };
        let Ok(secret) = <[u8; 32]>::try_from(secret) else { return Err(wrong) };
        Ok(Self { id: KeyId::from_random(*id), secret: Zeroizing::new(secret) })
    }

    /// Draws a key for a user, and wraps it.
    pub(crate) fn make(&self, user: UserId, made_at: UnixMs) -> Entry {
        let password = Zeroizing::new(random::<20>());
        let key = RepositoryKey {
            id: KeyId::from_random(random()),
            master: MasterKey::from_bytes(&Zeroizing::new(random::<MASTER_KEY_BYTES>())),
            password: Secret::new(data_encoding::BASE32_NOPAD.encode(password.as_slice())),
        };
        self.wrap(user, &key, made_at)
    }

    pub(crate) fn wrap(&self, user: UserId, key: &RepositoryKey, made_at: UnixMs) -> Entry {
        let plain = Zeroizing::new(codec::encode(key).expect("fixed fields and a short text always encode"));
        let nonce = random();
        let payload = Payload { msg: &plain, aad: &self.bound(user, key.id) };
        let wrapped = self.cipher().encrypt(&XNonce::from(nonce), payload);
        let wrapped = wrapped.expect("two hundred bytes are below the cipher's limit");
        Entry { key: key.id, made_at, nonce, wrapped }
    }

    pub(crate) fn unwrap(&self, user: UserId, entry: &Entry) -> Result<RepositoryKey, WrapError> {
        let payload = Payload { msg: &entry.wrapped, aad: &self.bound(user, entry.key) };
        let plain = self.cipher().decrypt(&XNonce::from(entry.nonce), payload);
        let plain = Zeroizing::new(plain.map_err(|_| WrapError::Opens)?);
        codec::decode(&plain, PLAIN_BYTES_MAX).map_err(WrapError::Form)
    }

    pub(super) fn wrap_proof(&self, proof: &ProofKey) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = random();
        let payload = Payload { msg: proof.0.as_slice(), aad: &self.bound_proof() };
        let wrapped = self.cipher().encrypt(&XNonce::from(nonce), payload);
        [nonce.as_slice(), &wrapped.expect("32 bytes are below the cipher's limit")].concat()
    }

    pub(super) fn unwrap_proof(&self, wrapped: &[u8]) -> Result<ProofKey, WrapError> {
        let (nonce, text) = wrapped.split_first_chunk::<NONCE_BYTES>().ok_or(WrapError::Opens)?;
        let payload = Payload { msg: text, aad: &self.bound_proof() };
        let plain = self.cipher().decrypt(&XNonce::from(*nonce), payload);
        let plain = Zeroizing::new(plain.map_err(|_| WrapError::Opens)?);
        let secret = <[u8; 32]>::try_from(plain.as_slice()).map_err(|_| WrapError::Opens)?;
        Ok(ProofKey(Zeroizing::new(secret)))
    }

    fn bound_proof(&self) -> Vec<u8> {
        [PROOF_LABEL, self.id.bytes()].concat()
    }

    pub(super) fn cipher(&self) -> XChaCha20Poly1305 {
        cipher(&self.secret)
    }

    fn bound(&self, user: UserId, key: KeyId) -> Vec<u8> {
        [ENTRY_LABEL, self.id.bytes(), user.bytes(), key.bytes()].concat()
    }
}

fn cipher(secret: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new_from_slice(secret).expect("a key of this cipher has 32 bytes")
}

/// Proves that a backup was written by an installation of this recovery key. Never printed; wiped when dropped.
pub(super) struct ProofKey(Zeroizing<[u8; 32]>);

impl ProofKey {
    pub(super) fn prove(&self, bytes: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = random();
        let tag = cipher(&self.0).encrypt(&XNonce::from(nonce), Payload { msg: &[], aad: bytes });
        [nonce.as_slice(), &tag.expect("a backup is below the cipher's limit")].concat()
    }

    pub(super) fn proves(&self, proof: &[u8], bytes: &[u8]) -> bool {
        let Some((nonce, tag)) = proof.split_first_chunk::<NONCE_BYTES>() else { return false };
        cipher(&self.0).decrypt(&XNonce::from(*nonce), Payload { msg: tag, aad: bytes }).is_ok()
    }
}

/// The public half of a recovery key: what the fleet key is sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveryPublic([u8; 32]);

impl RecoveryPublic {
    pub(crate) fn seal(&self, fleet: &FleetKey) -> Result<Vec<u8>, WrapError> {
        let public = <Sealing as Kem>::PublicKey::from_bytes(&self.0).map_err(|_| WrapError::Seals)?;
        let sealed = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Sealing>(
            &OpModeS::Base,
            &public,
            FLEET_LABEL,
            fleet.secret.as_slice(),
            fleet.id.bytes(),
        );
        let (encapsulated, text) = sealed.map_err(|_| WrapError::Seals)?;
        Ok([encapsulated.to_bytes().as_slice(), &text].concat())
    }
}

/// Opens the fleet key where nothing else is left. Shown once; never kept, never printed.
pub(crate) struct RecoveryKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(***)")
    }
}

impl RecoveryKey {
    /// One that is always the same, for the fuzz targets.
    pub(super) fn sample() -> Self {
        Self(Zeroizing::new([7; 32]))
    }

    pub(crate) fn draw() -> Self {
        Self(Zeroizing::new(random()))
    }

    pub(crate) fn to_text(&self) -> Secret {
        to_text(RECOVERY_PREFIX, self.0.as_slice())
    }

    pub(crate) fn from_text(text: &str) -> Result<Self, WrapError> {
        let wrong = WrapError::Text("recovery key");
        let Some(bytes) = from_text(RECOVERY_PREFIX, text) else { return Err(wrong) };
        let Ok(secret) = <[u8; 32]>::try_from(bytes.as_slice()) else { return Err(wrong) };
        Ok(Self(Zeroizing::new(secret)))
    }

    pub(crate) fn public(&self) -> RecoveryPublic {
        RecoveryPublic(<Sealing as Kem>::sk_to_pk(&self.private()).to_bytes().into())
    }

    /// What its backups are proven with.
    pub(super) fn proof_key(&self) -> ProofKey {
        let digest = Sha256::new().chain_update(PROOF_LABEL).chain_update(self.0.as_slice()).finalize();
        ProofKey(Zeroizing::new(digest.into()))
    }

    pub(crate) fn open(&self, id: KeyId, sealed: &[u8]) -> Result<FleetKey, WrapError> {
        let (encapsulated, text) = sealed.split_at_checked(ENCAPSULATED_BYTES).ok_or(WrapError::Opens)?;
        let encapsulated = <Sealing as Kem>::EncappedKey::from_bytes(encapsulated);
        let plain = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Sealing>(
            &OpModeR::Base,
            &self.private(),
            &encapsulated.map_err(|_| WrapError::Opens)?,
            FLEET_LABEL,
            text,
            id.bytes(),
        );
        let plain = Zeroizing::new(plain.map_err(|_| WrapError::Opens)?);
        let secret = <[u8; 32]>::try_from(plain.as_slice()).map_err(|_| WrapError::Opens)?;
        Ok(FleetKey { id, secret: Zeroizing::new(secret) })
    }

    fn private(&self) -> <Sealing as Kem>::PrivateKey {
        <Sealing as Kem>::PrivateKey::from_bytes(self.0.as_slice()).expect("any 32 bytes are such a key")
    }
}

/// `prefix` and base64url of a version byte, the bytes, and four bytes of check sum.
fn to_text(prefix: &str, bytes: &[u8]) -> Secret {
    let mut all = Zeroizing::new(Vec::with_capacity(1 + bytes.len() + SUM_BYTES));
    all.push(1);
    all.extend_from_slice(bytes);
    let sum = Sha256::digest(&*all);
    all.extend(sum.iter().take(SUM_BYTES));
    let digits = Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(&all));
    Secret::new(format!("{prefix}{}", *digits))
}

fn from_text(prefix: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits = text.trim().strip_prefix(prefix).filter(|digits| digits.len() <= KEY_TEXT_BYTES_MAX)?;
    let all = Zeroizing::new(data_encoding::BASE64URL_NOPAD.decode(digits.as_bytes()).ok()?);
    let (summed, sum) = all.split_at_checked(all.len().checked_sub(SUM_BYTES)?)?;
    let (version, bytes) = summed.split_first()?;
    let is_whole = Sha256::digest(summed).starts_with(sum) && *version == 1;
    is_whole.then(|| Zeroizing::new(bytes.to_vec()))
}
