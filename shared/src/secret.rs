//! Values that must not be shown: their `Debug` prints `***`, and their memory is wiped when they are dropped.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// A text that is never printed. Use [`Secret::expose`] at the one place that needs it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Do not log it, do not put it into an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What replaces a secret in a text.
pub const REDACTED: &str = "***";

/// Shortest secret that [`redact`] looks for, in bytes: shorter ones would tear ordinary words apart.
pub const REDACTED_BYTES_MIN: usize = 4;

/// Replaces each of the secrets in `text` by `***`, the longest first, so that a secret that holds another goes whole.
pub fn redact<'a>(text: &str, secrets: impl IntoIterator<Item = &'a Secret>) -> String {
    let mut known: Vec<&str> =
        secrets.into_iter().map(Secret::expose).filter(|secret| secret.len() >= REDACTED_BYTES_MIN).collect();
    known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    known.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, REDACTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_stars() {
        let secret = Secret::new("hunter22");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }

    #[test]
    fn redaction_takes_the_longest_secret_first() {
        let secrets = [Secret::new("abcd"), Secret::new("abcdefgh"), Secret::new("xy")];
        assert_eq!(redact("k=abcdefgh abcd xy", &secrets), "k=*** *** xy");
    }
}
