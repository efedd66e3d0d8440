//! The tree that the layers are merged into. Every node knows where it was set; a later layer replaces values and
//! lists whole and merges tables key by key.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Origin, Problem, Sources};

/// One value and where it was set.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// From the environment or a flag: its type is that of the key it is for.
    Text(String),
    /// A string of a TOML file. Dates are strings too: nothing in a config of ours is a date.
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    pub(super) fn table(origin: Origin) -> Node {
        Node { value: Value::Table(BTreeMap::new()), origin }
    }

    pub(super) fn merge(&mut self, later: Node) {
        match (&mut self.value, later.value) {
            (Value::Table(ours), Value::Table(theirs)) => {
                for (key, node) in theirs {
                    match ours.get_mut(&key) {
                        Some(old) => old.merge(node),
                        None => {
                            ours.insert(key, node);
                        }
                    }
                }
            }
            (_, value) => *self = Node { value, origin: later.origin },
        }
    }

    pub(super) fn find(&self, key: &str) -> Option<&Node> {
        let mut node = self;
        for segment in key.split('.') {
            node = match &node.value {
                Value::Table(entries) => entries.get(segment)?,
                Value::Array(items) => items.get(segment.parse::<usize>().ok()?)?,
                Value::Text(_)
                | Value::String(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Boolean(_) => {
                    return None;
                }
            };
        }
        Some(node)
    }

    /// Takes away the innermost table entry on the way to `key`; false when there is none.
    pub(super) fn forget(&mut self, key: &str) -> bool {
        let Value::Table(entries) = &mut self.value else { return false };
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        let inner = entries.get_mut(first).is_some_and(|node| node.forget(rest));
        inner || entries.remove(first).is_some()
    }
}

/// Parses a config file; syntax errors become problems with their line, and what could be read is still looked at.
pub(super) fn from_file(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Node {
    let place = |offset: usize| {
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Origin::File { path: path.to_owned(), line }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let origin = place(error.span().map_or(0, |span| span.start));
        problems.push(Problem { key: String::new(), origin, text: format!("not TOML: {}", error.message()) });
    }
    let mut reader = Reader { place: &place, problems };
    Node { value: reader.table(table.get_ref(), ""), origin: Origin::Default }
}

/// Reads a text of the environment or a flag as one TOML value; `None` when it is not one.
pub(super) fn from_text(text: &str, origin: &Origin) -> Option<Node> {
    let parsed = DeValue::parse(text).ok()?;
    let mut problems = Vec::new();
    let place = |_| origin.clone();
    let mut reader = Reader { place: &place, problems: &mut problems };
    let value = reader.value(parsed.get_ref(), "")?;
    problems.is_empty().then(|| Node { value, origin: origin.clone() })
}

struct Reader<'a> {
    place: &'a dyn Fn(usize) -> Origin,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, at: &str) -> Value {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let origin = (self.place)(key.span().start);
            let path = join(at, key.get_ref());
            match self.value(value.get_ref(), &path) {
                Some(value) => {
                    entries.insert(key.get_ref().clone().into_owned(), Node { value, origin });
                }
                None => self.problems.push(Problem {
                    key: path,
                    origin,
                    text: "this number does not fit 64 bits".to_owned(),
                }),
            }
        }
        Value::Table(entries)
    }

    fn value(&mut self, value: &DeValue<'_>, at: &str) -> Option<Value> {
        Some(match value {
            DeValue::String(text) => Value::String(text.clone().into_owned()),
            DeValue::Integer(number) => {
                Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
            }
            DeValue::Float(number) => Value::Float(number.as_str().parse().ok()?),
            DeValue::Boolean(flag) => Value::Boolean(*flag),
            DeValue::Datetime(date) => Value::String(date.to_string()),
            DeValue::Array(items) => {
                let items: Option<Vec<Node>> = items.iter().map(|item| self.item(item, at)).collect();
                Value::Array(items?)
            }
            DeValue::Table(table) => self.table(table, at),
        })
    }

    fn item(&mut self, item: &Spanned<DeValue<'_>>, at: &str) -> Option<Node> {
        let origin = (self.place)(item.span().start);
        Some(Node { value: self.value(item.get_ref(), at)?, origin })
    }
}

/// Adds every variable with our prefix.
pub(super) fn add_env(tree: &mut Node, sources: &Sources<'_>, problems: &mut Vec<Problem>) {
    for (name, value) in sources.env.iter() {
        // A name with our prefix is ASCII up to where it is not UTF-8; such a key cannot exist, so it is reported.
        let name = name.to_string_lossy();
        let Some(key) = name.strip_prefix(sources.env_prefix) else { continue };
        if sources.env_ignored.contains(&name.as_ref()) {
            continue;
        }
        let segments: Vec<String> = key.split("__").map(str::to_lowercase).collect();
        let key = segments.join(".");
        let origin = Origin::Env { name: name.clone().into_owned() };
        match value.to_str() {
            Some(text) => set(tree, &key, &segments, text, origin, problems),
            None => problems.push(Problem { key, origin, text: "the value is not UTF-8".to_owned() }),
        }
    }
}

/// Sets one key to a text whose type is not known yet.
pub(super) fn set(
    tree: &mut Node,
    key: &str,
    segments: &[String],
    text: &str,
    origin: Origin,
    problems: &mut Vec<Problem>,
) {
    if segments.iter().any(String::is_empty) {
        let text = "a part of the key is empty".to_owned();
        problems.push(Problem { key: key.to_owned(), origin, text });
        return;
    }
    let leaf = Node { value: Value::Text(text.to_owned()), origin: origin.clone() };
    let node = segments.iter().rev().fold(leaf, |inner, segment| {
        let entries = BTreeMap::from([(segment.clone(), inner)]);
        Node { value: Value::Table(entries), origin: origin.clone() }
    });
    tree.merge(node);
}

pub(super) fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}
