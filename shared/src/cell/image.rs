//! What a cell's container is made from ([`ImageRef`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest image reference, in bytes.
pub const IMAGE_REF_BYTES_MAX: usize = 255;

/// A container image: `name:tag`, `name@sha256:…` or `sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef(String);

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image reference: use name:tag, name@sha256:… or sha256:…")]
pub struct ImageRefError(String);

impl ImageRef {
    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does it name exact content? Only then may it be pulled from a registry; a tag has to be there already.
    pub fn is_pinned(&self) -> bool {
        self.0.starts_with("sha256:") || self.0.contains("@sha256:")
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;
    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:@".contains(c);
        let tag = |c: char| plain(c) || c.is_ascii_uppercase();
        let starts = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        let name_end = text.rfind('/').map_or(0, |slash| slash + 1);
        let (path, last) = text.split_at(name_end);
        let digest_ok = text.split_once("sha256:").is_none_or(|(_, hex)| {
            hex.len() == 64 && hex.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
        });
        if text.len() <= IMAGE_REF_BYTES_MAX
            && starts
            && path.chars().all(plain)
            && last.chars().all(tag)
            && !text.contains("//")
            && !text.ends_with([':', '@', '/'])
            && digest_ok
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageRefError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;
    fn try_from(text: String) -> Result<Self, ImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.0
    }
}

impl ImageRef {
    /// Is this certainly a newer release of the same image? Tells by tags that are versions of numbers, such as
    /// `2026.9.6`; of digests and words nothing is certain.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        match (self.release(), other.release()) {
            (Some((name, release)), Some((other_name, other))) => name == other_name && release > other,
            _ => false,
        }
    }

    fn release(&self) -> Option<(&str, Vec<u64>)> {
        let (name, _digest) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let (name, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
        let numbers = tag.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
        (numbers.len() > 1).then_some((name, numbers))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_checked() {
        let hex = "a".repeat(64);
        for good in [
            "berth/openclaw:2026.9.6",
            "ghcr.io/openclaw/openclaw:2026.9.6-RC1",
            "localhost:5000/x:y",
            &format!("a/b@sha256:{hex}"),
            &format!("sha256:{hex}"),
        ] {
            assert!(good.parse::<ImageRef>().is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "A/b:c", "a//b", "a:", "a@sha256:12", "a;b", &"x".repeat(256)] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
        assert!(!"a:b".parse::<ImageRef>().unwrap().is_pinned());
    }

    #[test]
    fn an_image_is_newer_where_its_tag_certainly_is() {
        let newer = |a: &str, b: &str| a.parse::<ImageRef>().unwrap().is_newer_than(&b.parse().unwrap());
        assert!(newer("a/b:2026.10.1", "a/b:2026.9.6"));
        assert!(newer("h:5000/b:1.2.1", "h:5000/b:1.2"));
        for (a, b) in [
            ("a/b:2026.9.6", "a/b:2026.9.6"),
            ("a/b:2026.9.5", "a/b:2026.9.6"),
            ("a/c:2026.10.1", "a/b:2026.9.6"),
            ("a/b:latest", "a/b:2026.9.6"),
            ("a/b:2026.10.1", "a/b:dev"),
            ("a/b:7", "a/b:6"),
            ("h:5000/b", "h:4000/b"),
        ] {
            assert!(!newer(a, b), "{a} {b}");
        }
    }
}
