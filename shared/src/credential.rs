//! Credentials that people carry: join tokens, operator keys, users' bearer tokens, login links.
//!
//! All are random; only their SHA-256 is stored, because 256 random bits need no slow hash. All compare in constant time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::codec;
use crate::ids::{OperatorKeyId, TokenId, UserId};
use crate::secret::Secret;
use crate::signing::{PublicKey, Purpose, SIGNATURE_BYTES, SigningKey};
use crate::time::UnixMs;

const JOIN_PREFIX: &str = "berth_join_";
const OPERATOR_PREFIX: &str = "berth_op_";
const BEARER_PREFIX: &str = "berth_user_";

/// Longest text of any credential, in bytes. Longer ones are refused before anything is computed.
pub const CREDENTIAL_BYTES_MAX: usize = 1024;

/// Why a text is not a credential. Says nothing of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The prefix, the alphabet, the length or the check sum is wrong: most often cut while copied.
    #[error("this is not a whole {0}: copy it again, from its prefix to its end")]
    Malformed(&'static str),
    /// The signature is not by the expected key.
    #[error("this {0} was not made by this installation")]
    Forged(&'static str),
    /// It was good once.
    #[error("this {0} has expired: ask for a new one")]
    Expired(&'static str),
}

/// What is stored of a secret: its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of a secret text.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Is this the hash of `secret`? Takes the same time whatever the answer.
    pub fn fits(&self, secret: &str) -> bool {
        self.0.ct_eq(&Self::of(secret).0).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(***)")
    }
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(bytes)
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    (text.len() <= CREDENTIAL_BYTES_MAX)
        .then(|| data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok())
        .flatten()
}

/// What a new node needs to find its coordinator and to be let in, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token in lists.
    pub id: TokenId,
    /// What proves it; the coordinator keeps the hash only.
    pub secret: Secret,
    /// The coordinator's key: the node trusts no other.
    pub coordinator: PublicKey,
    /// Where the coordinator listens, `host:port`.
    pub address: String,
}

#[derive(Serialize, Deserialize)]
struct JoinTokenBody {
    id: TokenId,
    secret: [u8; 32],
    coordinator: PublicKey,
    address: String,
}

impl JoinToken {
    const WHAT: &'static str = "join token";

    /// Makes a token of 32 random bytes.
    pub fn new(id: TokenId, random: [u8; 32], coordinator: PublicKey, address: String) -> Self {
        Self { id, secret: Secret::new(base64(&random)), coordinator, address }
    }

    /// The hash that the coordinator keeps.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.secret.expose())
    }

    /// The text that an operator copies to the node. Version byte, body, four bytes of check sum.
    pub fn to_text(&self) -> Secret {
        let secret = unbase64(self.secret.expose())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .expect("a join token's secret is made of 32 bytes, by `new` or by `from_str`");
        let body = JoinTokenBody {
            id: self.id,
            secret,
            coordinator: self.coordinator,
            address: self.address.clone(),
        };
        let mut bytes = vec![1];
        bytes.extend(codec::encode(&body).expect("fixed fields and a short text always encode"));
        let sum = Sha256::digest(&bytes);
        bytes.extend(sum.iter().take(4));
        Secret::new(format!("{JOIN_PREFIX}{}", base64(&bytes)))
    }
}

impl FromStr for JoinToken {
    type Err = CredentialError;

    fn from_str(text: &str) -> Result<Self, CredentialError> {
        let wrong = CredentialError::Malformed(Self::WHAT);
        let bytes = text.trim().strip_prefix(JOIN_PREFIX).and_then(unbase64).ok_or(wrong)?;
        let (signed, sum) = bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or(wrong)?;
        if !Sha256::digest(signed).starts_with(sum) || sum.len() != 4 {
            return Err(wrong);
        }
        let Some((1, body)) = signed.split_first() else { return Err(wrong) };
        let body: JoinTokenBody = codec::decode(body, CREDENTIAL_BYTES_MAX).map_err(|_| wrong)?;
        Ok(Self::new(body.id, body.secret, body.coordinator, body.address))
    }
}

/// An operator's key for the HTTP API: `berth_op_<id>_<secret>`. Shown once, stored hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorKey {
    /// Names the key in the journal: the actor of every command given with it.
    pub id: OperatorKeyId,
    secret: Secret,
}

impl OperatorKey {
    /// Makes a key of 32 random bytes.
    pub fn new(id: OperatorKeyId, random: [u8; 32]) -> Self {
        Self { id, secret: Secret::new(base64(&random)) }
    }

    /// The text that the operator keeps.
    pub fn to_text(&self) -> Secret {
        let id = self.id.to_string();
        let digits = id.strip_prefix("op_").unwrap_or(&id);
        Secret::new(format!("{OPERATOR_PREFIX}{digits}_{}", self.secret.expose()))
    }

    /// The hash that the coordinator keeps.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.secret.expose())
    }
}

impl FromStr for OperatorKey {
    type Err = CredentialError;

    fn from_str(text: &str) -> Result<Self, CredentialError> {
        let wrong = CredentialError::Malformed("operator key");
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(wrong);
        }
        let rest = text.trim().strip_prefix(OPERATOR_PREFIX).ok_or(wrong)?;
        let (digits, secret) = rest.split_once('_').ok_or(wrong)?;
        let id = format!("op_{digits}").parse().map_err(|_| wrong)?;
        if unbase64(secret).is_none_or(|bytes| bytes.len() != 32) {
            return Err(wrong);
        }
        Ok(Self { id, secret: Secret::new(secret) })
    }
}

/// A user's bearer token for programs: `berth_user_<secret>`.
pub fn bearer_token(random: [u8; 32]) -> Secret {
    Secret::new(format!("{BEARER_PREFIX}{}", base64(&random)))
}

/// Could this text be one of our bearer tokens? Cheap, and decides whether a hash is worth computing.
pub fn is_bearer_shaped(text: &str) -> bool {
    text.len() == BEARER_PREFIX.len() + 43 && text.starts_with(BEARER_PREFIX)
}

/// Does a header's value hold one of our bearer tokens anywhere? However it is written, it must not go to a cell.
pub fn holds_bearer(value: &[u8]) -> bool {
    value.windows(BEARER_PREFIX.len()).any(|part| part == BEARER_PREFIX.as_bytes())
}

/// What a login link says: this user may come in once, before it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginTicket {
    /// Who comes in.
    pub user: UserId,
    /// Makes it single: whoever redeems it records this number.
    pub nonce: [u8; 16],
    /// After this it is worthless.
    pub expires_at: UnixMs,
}

impl LoginTicket {
    const WHAT: &'static str = "login link";

    /// Signs it with the coordinator's key: nodes check it without asking anybody.
    pub fn sign(&self, key: &SigningKey) -> Secret {
        let mut bytes = codec::encode(self).expect("fixed fields always encode");
        let signature = key.sign(Purpose::LoginTicket, &bytes);
        bytes.extend_from_slice(&signature);
        Secret::new(base64(&bytes))
    }

    /// Reads a ticket and checks signature and expiry. Whether it was used already is the caller's to know.
    pub fn open(text: &str, key: &PublicKey, now: UnixMs) -> Result<Self, CredentialError> {
        let wrong = CredentialError::Malformed(Self::WHAT);
        let bytes = unbase64(text).ok_or(wrong)?;
        let split = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(wrong)?;
        let (body, signature) = bytes.split_at_checked(split).ok_or(wrong)?;
        let signature = <&[u8; SIGNATURE_BYTES]>::try_from(signature).map_err(|_| wrong)?;
        key.verify(Purpose::LoginTicket, body, signature).map_err(|_| CredentialError::Forged(Self::WHAT))?;
        let ticket: Self = codec::decode(body, 256).map_err(|_| wrong)?;
        if now >= ticket.expires_at {
            return Err(CredentialError::Expired(Self::WHAT));
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([seed; 32]))
    }

    fn join_token() -> JoinToken {
        JoinToken::new(TokenId::from_random([1; 16]), [2; 32], key(3).public(), "10.1.2.3:7443".into())
    }

    #[test]
    fn a_join_token_survives_its_text_and_any_cut_is_noticed() {
        let text = join_token().to_text();
        assert_eq!(text.expose().parse::<JoinToken>(), Ok(join_token()));
        for end in 0..text.expose().len() {
            assert!(text.expose()[..end].parse::<JoinToken>().is_err());
        }
    }

    #[test]
    fn an_operator_key_survives_its_text_and_fits_its_hash() {
        let key = OperatorKey::new(OperatorKeyId::from_random([9; 16]), [8; 32]);
        let read: OperatorKey = key.to_text().expose().parse().unwrap();
        assert_eq!(read.id, key.id);
        assert_eq!(read.hash(), key.hash());
    }

    #[test]
    fn a_bearer_token_has_the_shape_that_is_asked_for() {
        let token = bearer_token([5; 32]);
        assert!(is_bearer_shaped(token.expose()));
        assert!(SecretHash::of(token.expose()).fits(token.expose()));
        assert!(!SecretHash::of(token.expose()).fits("berth_user_other"));
        for value in [format!("Bearer\t{}", token.expose()), format!("Basic x,{}y", token.expose())] {
            assert!(holds_bearer(value.as_bytes()), "{value}");
        }
        assert!(!holds_bearer(b"Bearer berth_use") && !holds_bearer(b""));
    }

    #[test]
    fn a_login_ticket_is_refused_when_forged_altered_or_late() {
        let ticket =
            LoginTicket { user: UserId::from_random([1; 16]), nonce: [2; 16], expires_at: UnixMs(1_000) };
        let text = ticket.sign(&key(1));
        let open = |text: &str, seed, now| LoginTicket::open(text, &key(seed).public(), UnixMs(now));
        assert_eq!(open(text.expose(), 1, 999), Ok(ticket));
        assert_eq!(open(text.expose(), 1, 1_000), Err(CredentialError::Expired("login link")));
        assert_eq!(open(text.expose(), 2, 1), Err(CredentialError::Forged("login link")));
        let altered = format!("B{}", &text.expose()[1..]);
        assert_eq!(open(&altered, 1, 1), Err(CredentialError::Forged("login link")));
    }

    proptest! {
        #[test]
        fn no_text_panics_a_parser(text in ".{0,200}") {
            let _ = text.parse::<JoinToken>();
            let _ = text.parse::<OperatorKey>();
            let _ = LoginTicket::open(&text, &key(1).public(), UnixMs(0));
            let _ = format!("berth_join_{text}").parse::<JoinToken>();
        }
    }
}
