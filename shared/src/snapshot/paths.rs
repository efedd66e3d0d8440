//! Files and folders of a cell that are named one by one: which of them a restore is about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Most paths that are named at a time.
pub const PATHS_MAX: usize = 64;

/// Longest they may be in all, in bytes: with all else it fits into a frame, and into what a worker is told.
pub const PATHS_BYTES_MAX: usize = 16 * 1024;

/// One or more paths below a cell's folder, each the name of a file or of a folder with all that is in it. None is empty,
/// begins with `/`, or has a part that is empty, `.` or `..`, or a zero byte; none is there twice or lies within another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Paths(Vec<String>);

/// Why these are no [`Paths`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathsError {
    /// There is none.
    #[error("no path is named")]
    None,
    /// There are too many.
    #[error("there are {0} paths, at most {PATHS_MAX} are taken at a time: name the folder that they are in")]
    TooMany(usize),
    /// They are too long.
    #[error("the paths have {0} bytes, at most {PATHS_BYTES_MAX} are taken at a time")]
    TooLong(usize),
    /// One of them leads elsewhere, or nowhere.
    #[error(
        "`{0}` is no path below the cell's folder: write it relative to that, such as `agents/main`, without `.` and `..`"
    )]
    NotBelow(String),
    /// One of them is in another one.
    #[error("`{0}` lies within another path that is named: leave one of the two out")]
    Within(String),
}

impl Paths {
    /// Takes paths as somebody has written them. A `/` at the end of one is left out.
    ///
    /// # Errors
    /// [`PathsError`].
    pub fn new(mut paths: Vec<String>) -> Result<Self, PathsError> {
        if paths.is_empty() {
            return Err(PathsError::None);
        }
        if paths.len() > PATHS_MAX {
            return Err(PathsError::TooMany(paths.len()));
        }
        let bytes = paths.iter().map(String::len).sum();
        if bytes > PATHS_BYTES_MAX {
            return Err(PathsError::TooLong(bytes));
        }
        for path in &mut paths {
            path.truncate(path.trim_end_matches('/').len());
        }
        if let Some(bad) = paths.iter().find(|path| !is_below(path)) {
            return Err(PathsError::NotBelow(shown(bad)));
        }
        let mut known = BTreeSet::new();
        let twice = paths.iter().find(|path| !known.insert(path.as_str()));
        let within = paths.iter().find(|path| above(path).any(|folder| known.contains(folder)));
        match twice.or(within) {
            Some(bad) => Err(PathsError::Within(shown(bad))),
            None => Ok(Self(paths)),
        }
    }

    /// They, as text.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// How many: one or more.
    pub const fn count(&self) -> usize {
        self.0.len()
    }
}

impl TryFrom<Vec<String>> for Paths {
    type Error = PathsError;

    fn try_from(paths: Vec<String>) -> Result<Self, PathsError> {
        Self::new(paths)
    }
}

impl From<Paths> for Vec<String> {
    fn from(Paths(paths): Paths) -> Self {
        paths
    }
}

fn is_below(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}

/// The folders that a path lies in, below the cell's own.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at))
}

/// Short enough for a message.
fn shown(path: &str) -> String {
    path.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[&str]) -> Result<Paths, PathsError> {
        Paths::new(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn paths_are_relative_plain_and_apart_from_one_another() {
        for good in [&["a"][..], &["a/b", "a/c", "ab"], &["...", "a b/ü\n"], &["agents/main/"]] {
            of(good).unwrap();
        }
        assert_eq!(of(&["agents/main//"]).unwrap().as_slice(), ["agents/main"]);
        for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a/./b", "./a", "a//b", "a\0b", "//a"] {
            assert!(matches!(of(&["x", bad]), Err(PathsError::NotBelow(_))), "{bad:?}");
        }
        for bad in [&["a", "a"][..], &["a", "a/"], &["a/b/c", "a"], &["a/b", "x", "a/b/c/d"]] {
            assert!(matches!(of(bad), Err(PathsError::Within(_))), "{bad:?}");
        }
    }

    #[test]
    fn they_are_few_and_short() {
        let many = |count| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(Paths::new(vec![]), Err(PathsError::None));
        assert_eq!(Paths::new(many(PATHS_MAX)).unwrap().count(), PATHS_MAX);
        assert_eq!(Paths::new(many(PATHS_MAX + 1)), Err(PathsError::TooMany(PATHS_MAX + 1)));
        assert!(of(&[&"x".repeat(PATHS_BYTES_MAX)]).is_ok());
        assert_eq!(of(&[&"x".repeat(PATHS_BYTES_MAX), "y"]), Err(PathsError::TooLong(PATHS_BYTES_MAX + 1)));
    }

    #[test]
    fn whatever_is_read_is_looked_at_too() {
        assert!(serde_json::from_str::<Paths>("[\"a/b\"]").is_ok());
        for bad in ["[]", "[\"..\"]", "[\"a\",\"a/b\"]", "\"a\""] {
            assert!(serde_json::from_str::<Paths>(bad).is_err(), "{bad}");
        }
        let bytes = crate::codec::encode(&vec!["..".to_owned()]).unwrap();
        assert!(crate::codec::decode::<Paths>(&bytes, 100).is_err());
    }
}
