//! The process environment as a value, so that whatever reads it can be tested without touching the real one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// A snapshot of environment variables.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    /// What this process was started with. Only `main` should call it.
    pub fn of_process() -> Env {
        Env(std::env::vars_os().collect())
    }

    /// The value as bytes of the system; `None` when not set.
    pub fn get_os(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The value, when set and UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_os(name)?.to_str()
    }

    /// All variables in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Env {
        Env(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_value_that_is_not_utf8_is_only_given_as_bytes() {
        let env: Env =
            [("A", OsString::from("x")), ("B", OsString::from_vec(vec![0xff]))].into_iter().collect();
        assert_eq!(env.get("A"), Some("x"));
        assert_eq!(env.get("B"), None);
        assert!(env.get_os("B").is_some());
        assert_eq!(env.get_os("C"), None);
    }
}
