//! Reads a daemon's config from its layers: defaults in code, TOML file, environment, flags; later ones win.
//!
//! The layers are merged into one tree in which every value remembers where it was set, and the tree is then
//! deserialised by our own deserialiser (`de`). It sees which keys each struct has, so a key that nobody reads is
//! an error that names the key, the place and the nearest key that exists, and all such errors are reported
//! together. Structs need no `deny_unknown_fields`; `#[serde(flatten)]` hides the keys and must not be used.
//!
//! A secret is never a value of a config, only the path of its file (`secret_file`): reports may show values.
//!
//! Whether values make sense *together* is the daemon's own check, before anything binds; it reports in the same
//! form through [`Loaded::problem`].

mod de;
mod scheme;
mod tree;

pub use scheme::Scheme;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::env::Env;
use crate::exit::Exit;
use tree::Node;

/// A config file larger than this is not one of ours.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How many wrong values are looked for before the report is given.
const PROBLEMS_MAX: usize = 32;

/// Where a daemon's config comes from.
#[derive(Clone, Debug)]
pub struct Sources<'a> {
    /// The TOML file. It must exist when given; whether a default path is there is for the daemon to look.
    pub file: Option<PathBuf>,
    /// Variables with this prefix are config, as `BERTH_COORDINATOR_`. What follows is the key in upper case, with
    /// `__` between levels: `BERTH_COORDINATOR_LINK__LISTEN` sets `link.listen`.
    pub env_prefix: &'a str,
    /// Variables with the prefix that something else reads, by their full name (as the path of the config file).
    pub env_ignored: &'a [&'a str],
    /// The environment.
    pub env: &'a Env,
    /// `key.path` and value, in the order of the command line; the last one wins. Values of the environment and of
    /// flags are text, taken as whatever type the key has; lists and tables are written as in TOML.
    pub overrides: Vec<(String, String)>,
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the config file, counted from 1.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line of the key.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its full name.
        name: String,
    },
    /// A flag.
    Flag {
        /// The key that it set.
        key: String,
    },
    /// Nobody set it: it has the default that is in the code.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env { name } => write!(f, "environment variable {name}"),
            Origin::Flag { key } => write!(f, "command line, {key}"),
            Origin::Default => write!(f, "default"),
        }
    }
}

/// One thing that is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with dots between levels; empty when it is about the whole.
    pub key: String,
    /// Where it was set.
    pub origin: Origin,
    /// What is wrong with it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("config file {} could not be read", path.display())]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is larger than [`CONFIG_FILE_BYTES_MAX`].
    #[error("config file {} is larger than {CONFIG_FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file as it was named.
        path: PathBuf,
    },
    /// Keys or values are wrong: everything that was found, never empty. The text has this error's stable code
    /// (docs/errors.md).
    #[error("the config is wrong (config_invalid):{}", list(problems))]
    Invalid {
        /// In the order of the keys.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl ConfigError {
    /// [`Exit::NoInput`] when the file cannot be read, else [`Exit::Usage`].
    pub fn exit(&self) -> Exit {
        match self {
            ConfigError::Read { .. } => Exit::NoInput,
            ConfigError::TooLarge { .. } | ConfigError::Invalid { .. } => Exit::Usage,
        }
    }
}

/// A config and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The config.
    pub value: T,
    tree: Node,
}

impl<T> Loaded<T> {
    /// Where the value of a key (`link.listen`) was set; [`Origin::Default`] when nowhere.
    pub fn origin(&self, key: &str) -> Origin {
        self.tree.find(key).map_or(Origin::Default, |node| node.origin.clone())
    }

    /// A finding of the daemon's own check, told in the same form as those of the reader.
    pub fn problem(&self, key: &str, text: impl Into<String>) -> Problem {
        Problem { key: key.to_owned(), origin: self.origin(key), text: text.into() }
    }

    /// Ends the daemon's own check: the config, if no problem was found.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the problems given.
    pub fn check(self, problems: Vec<Problem>) -> Result<T, ConfigError> {
        if problems.is_empty() { Ok(self.value) } else { Err(ConfigError::Invalid { problems }) }
    }
}

/// Reads all layers into `T`.
///
/// # Errors
/// [`ConfigError`]; unknown keys are all named, wrong values as far as they can be told apart.
pub fn load<T: DeserializeOwned>(sources: &Sources<'_>) -> Result<T, ConfigError> {
    load_with_origins(sources).map(|loaded| loaded.value)
}

/// As [`load`], and remembers where each value came from.
///
/// # Errors
/// As [`load`].
pub fn load_with_origins<T: DeserializeOwned>(sources: &Sources<'_>) -> Result<Loaded<T>, ConfigError> {
    let mut problems = Vec::new();
    let mut tree = Node::table(Origin::Default);
    if let Some(path) = &sources.file {
        tree.merge(tree::from_file(path, &read_bounded(path)?, &mut problems));
    }
    tree::add_env(&mut tree, sources, &mut problems);
    for (key, text) in &sources.overrides {
        let origin = Origin::Flag { key: key.clone() };
        let segments: Vec<String> = key.split('.').map(str::to_owned).collect();
        tree::set(&mut tree, key, &segments, text, origin, &mut problems);
    }
    let deserialized = deserialize::<T>(&tree, &mut problems);
    match deserialized {
        Some(value) if problems.is_empty() => Ok(Loaded { value, tree }),
        Some(_) | None => Err(ConfigError::Invalid { problems }),
    }
}

/// Splits a `--set key=value` argument.
///
/// # Errors
/// A text for the user when there is no `=` or no key.
pub fn parse_override(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("`{argument}` is not of the form key=value")),
    }
}

/// Deserialises; when a value is wrong, notes it, forgets it (so that the default holds) and tries again, so that
/// one run tells of several.
fn deserialize<T: DeserializeOwned>(tree: &Node, problems: &mut Vec<Problem>) -> Option<T> {
    let mut remaining = tree.clone();
    let mut unknown = BTreeMap::new();
    let mut wrong: Vec<Problem> = Vec::new();
    let mut forgotten: Vec<String> = Vec::new();
    let value = loop {
        let (result, unread) = de::read::<T>(&remaining);
        unknown.extend(unread.into_iter().map(|problem| (problem.key.clone(), problem)));
        match result {
            Ok(value) => break Some(value),
            // A required key that we took away ourselves is no finding, and nothing after it can be read.
            Err(fault) if forgotten.contains(&fault.problem.key) => break None,
            Err(fault) => {
                let key = fault.problem.key.clone();
                let forget = !fault.missing && wrong.len() < PROBLEMS_MAX && remaining.forget(&key);
                wrong.push(fault.problem);
                if !forget {
                    break None;
                }
                forgotten.push(key);
            }
        }
    };
    problems.extend(unknown.into_values());
    problems.extend(wrong);
    value
}

fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    let wrap = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(wrap)?;
    let mut text = String::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(wrap)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > CONFIG_FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
