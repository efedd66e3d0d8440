//! Ed25519 keys and signatures. A signature is always made for one purpose: the purpose's text is signed with the
//! bytes, so that a signature made for one kind of message can never be shown as another (domain separation).

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ids::NodeId;

/// Bytes of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// What a signature is for. The text is part of the signed bytes and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// One frame of the link.
    LinkFrame,
    /// A one-time login link.
    LoginTicket,
    /// A node's new key, told over a session of its present one: [`new_node_key`].
    NodeKey,
    /// The coordinator's next key, told to its nodes: [`next_coordinator_key`].
    CoordinatorKey,
}

impl Purpose {
    const fn domain(self) -> &'static [u8] {
        match self {
            Self::LinkFrame => b"berth/1 link frame\0",
            Self::LoginTicket => b"berth/1 login ticket\0",
            Self::NodeKey => b"berth/1 new node key\0",
            Self::CoordinatorKey => b"berth/1 next coordinator key\0",
        }
    }
}

/// A signature that travels inside a frame or stands in a command; which key and purpose it is of, its place says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; SIGNATURE_BYTES]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Two halves: serde knows arrays of at most 32.
        let mut halves = [[0_u8; SIGNATURE_BYTES / 2]; 2];
        for (to, from) in halves.iter_mut().flatten().zip(&self.0) {
            *to = *from;
        }
        halves.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let halves = <[[u8; SIGNATURE_BYTES / 2]; 2]>::deserialize(d)?;
        let mut bytes = [0; SIGNATURE_BYTES];
        for (to, from) in bytes.iter_mut().zip(halves.iter().flatten()) {
            *to = *from;
        }
        Ok(Self(bytes))
    }
}

/// Why a key or a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The bytes are not a point of the curve, or a weak one.
    #[error("the bytes are not an Ed25519 public key")]
    Key,
    /// The signature does not belong to these bytes, this key and this purpose.
    #[error("the signature does not fit")]
    Mismatch,
    /// The text is not `ed25519:` and 43 characters of base64url.
    #[error("not a public key: `ed25519:` and 43 characters are expected")]
    Text,
}

/// A public key: the identity of a node or of the coordinator. Text form `ed25519:<base64url>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes raw bytes; they are checked when a signature is verified.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Verifies strictly (no small-order keys, canonical encodings only): one message has one valid signature.
    pub fn verify(
        &self,
        purpose: Purpose,
        bytes: &[u8],
        signature: &[u8; SIGNATURE_BYTES],
    ) -> Result<(), SignatureError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| SignatureError::Key)?;
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        key.verify_strict(&with_domain(purpose, bytes), &signature).map_err(|_| SignatureError::Mismatch)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        text.strip_prefix("ed25519:")
            .and_then(|digits| data_encoding::BASE64URL_NOPAD.decode(digits.as_bytes()).ok())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Self)
            .ok_or(SignatureError::Text)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(d).map(Self)
        }
    }
}

/// A private key. Made where it is used and never sent; its memory is wiped when dropped.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte seed that the caller drew from the system's random source.
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, for the key file.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The key's public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs bytes for one purpose.
    pub fn sign(&self, purpose: Purpose, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(&with_domain(purpose, bytes)).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, private half ***)", self.public())
    }
}

/// What a node's new key signs ([`Purpose::NodeKey`]): whose it is, which key it follows, and itself. With the frame's
/// own signature by the old key, both private halves have spoken for the change.
pub fn new_node_key(node: NodeId, old: &PublicKey, new: &PublicKey) -> [u8; 80] {
    let mut bytes = [0; 80];
    let parts = node.bytes().iter().chain(old.bytes()).chain(new.bytes());
    for (to, from) in bytes.iter_mut().zip(parts) {
        *to = *from;
    }
    bytes
}

/// What the coordinator's next key signs ([`Purpose::CoordinatorKey`]): which key it follows, and itself.
pub fn next_coordinator_key(present: &PublicKey, next: &PublicKey) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (to, from) in bytes.iter_mut().zip(present.bytes().iter().chain(next.bytes())) {
        *to = *from;
    }
    bytes
}

fn with_domain(purpose: Purpose, bytes: &[u8]) -> Vec<u8> {
    [purpose.domain(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([seed; 32]))
    }

    #[test]
    fn a_signature_fits_only_its_purpose_key_and_bytes() {
        let signature = key(1).sign(Purpose::LinkFrame, b"hello");
        let public = key(1).public();
        assert_eq!(public.verify(Purpose::LinkFrame, b"hello", &signature), Ok(()));
        assert_eq!(public.verify(Purpose::LoginTicket, b"hello", &signature), Err(SignatureError::Mismatch));
        assert_eq!(public.verify(Purpose::LinkFrame, b"hellO", &signature), Err(SignatureError::Mismatch));
        assert!(key(2).public().verify(Purpose::LinkFrame, b"hello", &signature).is_err());
    }

    #[test]
    fn a_signature_survives_its_binary_form() {
        let signature = Signature(key(1).sign(Purpose::NodeKey, b"x"));
        let bytes = crate::codec::encode(&signature).unwrap();
        assert_eq!(bytes, signature.0);
        assert_eq!(crate::codec::decode::<Signature>(&bytes, 64).unwrap(), signature);
    }

    #[test]
    fn what_a_new_key_signs_differs_with_node_old_and_new_key() {
        let node = |seed| NodeId::from_random([seed; 16]);
        let said = [
            new_node_key(node(1), &key(1).public(), &key(2).public()),
            new_node_key(node(2), &key(1).public(), &key(2).public()),
            new_node_key(node(1), &key(3).public(), &key(2).public()),
            new_node_key(node(1), &key(1).public(), &key(3).public()),
        ];
        for (index, one) in said.iter().enumerate() {
            assert!(said.iter().skip(index + 1).all(|other| other != one));
        }
    }

    #[test]
    fn a_small_order_key_verifies_nothing() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let weak = PublicKey::from_bytes(identity);
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(weak.verify(Purpose::LinkFrame, b"anything", &signature).is_err());
    }

    #[test]
    fn keys_survive_their_text_form_and_hide_their_private_half() {
        let public = key(3).public();
        assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public));
        assert!(!format!("{:?}", key(3)).contains("[3"));
    }
}
