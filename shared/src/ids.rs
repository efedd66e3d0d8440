//! Names and identifiers. A name is chosen by a person and validated; an id is 128 random bits with a prefix
//! that tells what it names, so that one kind of id is never taken for another in a log or a command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest slug or node name, in bytes: Fleet's rule for a tenant's name, shorter than a DNS label (RFC 1035: 63).
pub const LABEL_BYTES_MAX: usize = 40;

/// Why a text is not a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not a lower-case DNS label of 1 to 40 characters.
    #[error("`{0}` is not a name: use 1 to 40 of a-z, 0-9 and `-`, not starting or ending with `-`")]
    Label(String),
    /// The text does not start with the prefix of this kind of id.
    #[error("`{text}` is not an id of this kind: it has to start with `{prefix}_`")]
    Prefix {
        /// What was given, cut to a readable length.
        text: String,
        /// The prefix that was expected.
        prefix: &'static str,
    },
    /// The part behind the prefix is not 26 characters of base 32.
    #[error("`{0}` is not an id: 26 characters of a-z and 2-7 are expected behind the prefix")]
    Digits(String),
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= LABEL_BYTES_MAX
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_label(text) { Ok(Self(text.to_owned())) } else { Err(IdError::Label(shown(text))) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

label! {
    /// A user's name: `^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$`, Fleet's rule. The user lives at `<slug>.<domain>`.
    Slug
}
label! {
    /// A node's name, chosen when its join token is made. Same alphabet as a [`Slug`].
    NodeName
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The prefix of the text form, before the `_`.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an id of 16 random bytes that the caller drew.
            pub const fn from_random(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&id_text(Self::PREFIX, &self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_id(Self::PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(d).map(Self)
                }
            }
        }
    };
}

id! {
    /// A user, for ever: a slug can be given to somebody else later, an id cannot.
    UserId, "usr"
}
id! {
    /// A cell. A user has one home cell and may have task cells.
    CellId, "cell"
}
id! {
    /// A node, given by the coordinator at its join. The node's *key* may rotate, this stays.
    NodeId, "node"
}
id! {
    /// A join token's public part: it names the token in lists and in the journal.
    TokenId, "tok"
}
id! {
    /// An operator's API key's public part.
    OperatorKeyId, "op"
}
id! {
    /// One HTTP request, in logs and in problem bodies.
    RequestId, "req"
}
id! {
    /// One session of the link: drawn by the node before each hello, so that a retried hello is recognised.
    SessionNonce, "ses"
}
id! {
    /// A user's repository key. The journal knows keys by these only; what they name lies in the key store.
    KeyId, "key"
}
id! {
    /// One boot of a machine: the kernel's `/proc/sys/kernel/random/boot_id`.
    BootId, "boot"
}

fn base32() -> data_encoding::Encoding {
    let mut spec = data_encoding::Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("the alphabet above has 32 distinct ASCII symbols")
}

fn id_text(prefix: &str, bytes: &[u8; 16]) -> String {
    format!("{prefix}_{}", base32().encode(bytes))
}

fn parse_id(prefix: &'static str, text: &str) -> Result<[u8; 16], IdError> {
    let digits = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .ok_or_else(|| IdError::Prefix { text: shown(text), prefix })?;
    base32()
        .decode(digits.as_bytes())
        .ok()
        .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
        .ok_or_else(|| IdError::Digits(shown(text)))
}

/// The fencing token of an assignment. Ordered: a later one always wins.
///
/// The epoch grows when the coordinator starts from a restored journal, the number at every move of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Generation {
    /// How often the coordinator's journal was restored. Compared first.
    pub epoch: u32,
    /// Grows at each assignment of this user within the epoch. The first is 1.
    pub number: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

/// How often a node has opened a session with its coordinator; stored durably on both sides before use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct JoinCounter(pub u64);

impl fmt::Display for JoinCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slugs_follow_fleets_rule() {
        for good in ["a", "0", "demo", "a-b", "x".repeat(40).as_str()] {
            assert!(good.parse::<Slug>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "é", " a", "x".repeat(41).as_str()] {
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_slug_is_refused_inside_json() {
        assert!(serde_json::from_str::<Slug>("\"-x\"").is_err());
    }

    #[test]
    fn an_id_of_one_kind_is_not_read_as_another() {
        let user = UserId::from_random([7; 16]);
        assert!(user.to_string().parse::<CellId>().is_err());
    }

    #[test]
    fn a_later_epoch_beats_any_number() {
        let old = Generation { epoch: 1, number: u64::MAX };
        assert!(Generation { epoch: 2, number: 1 } > old);
    }

    proptest! {
        #[test]
        fn ids_survive_text_json_and_bincode(bytes: [u8; 16]) {
            let id = UserId::from_random(bytes);
            prop_assert_eq!(id.to_string().parse::<UserId>().unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<UserId>(&json).unwrap(), id);
            let bin = crate::codec::encode(&id).unwrap();
            prop_assert_eq!(crate::codec::decode::<UserId>(&bin, 64).unwrap(), id);
        }

        #[test]
        fn no_text_panics_the_parsers(text in ".{0,80}") {
            let _ = text.parse::<Slug>();
            let _ = text.parse::<NodeId>();
        }
    }
}
