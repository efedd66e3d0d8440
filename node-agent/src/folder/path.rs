//! Which texts are paths below a cell's folder. They come from Berth's own code; what a cell may choose is only what
//! lies at them.

use super::{FolderError, shown};

/// Most components of a path.
const COMPONENTS_MAX: usize = 32;
/// Longest component, in bytes (`NAME_MAX`).
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest path, in bytes (`PATH_MAX` without its NUL).
const PATH_BYTES_MAX: usize = 4095;

/// A relative path of plain components: no `..`, no `.`, nothing empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Relative<'a>(&'a str);

impl<'a> Relative<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, FolderError> {
        let plain = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.len() <= COMPONENT_BYTES_MAX
                && !part.contains('\0')
        };
        let fits = text.len() <= PATH_BYTES_MAX && text.split('/').count() <= COMPONENTS_MAX;
        if fits && text.split('/').all(plain) {
            Ok(Self(text))
        } else {
            Err(FolderError::Path { path: shown(text) })
        }
    }

    pub(super) const fn as_str(self) -> &'a str {
        self.0
    }

    pub(super) fn components(self) -> impl Iterator<Item = &'a str> {
        self.0.split('/')
    }

    /// All but the last component, `None` where there is one only.
    pub(super) fn parent(self) -> Option<&'a str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The last component.
    pub(super) fn name(self) -> &'a str {
        self.0.rsplit_once('/').map_or(self.0, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_taken() {
        for good in ["a", "a/b", ".openclaw/openclaw.json", "a..b", "..."] {
            assert!(Relative::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        let deep = vec!["d"; 33].join("/");
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", &long, &deep] {
            assert!(Relative::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_parent_and_name() {
        let path = Relative::parse("a/b/c").unwrap();
        assert_eq!((path.parent(), path.name()), (Some("a/b"), "c"));
        let path = Relative::parse("a").unwrap();
        assert_eq!((path.parent(), path.name()), (None, "a"));
    }
}
