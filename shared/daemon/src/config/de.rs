//! Deserialises the merged tree, with a place for every error, and finds the keys that nobody reads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

use super::tree::{Node, Value, from_text, join};
use super::{Origin, Problem};

/// Reads a tree as `T`; beside the result, the keys that no struct asked for.
pub(super) fn read<T: DeserializeOwned>(tree: &Node) -> (Result<T, Fault>, Vec<Problem>) {
    let unknown = RefCell::new(Vec::new());
    let result = T::deserialize(NodeDe { node: tree, key: String::new(), unknown: &unknown });
    (result, unknown.into_inner())
}

/// The first thing that could not be read. Gets its place from the innermost node it passes on its way out.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) problem: Problem,
    placed: bool,
    /// A required key is not set: there is no value to blame.
    pub(super) missing: bool,
}

impl Fault {
    fn new(text: String) -> Fault {
        let problem = Problem { key: String::new(), origin: Origin::Default, text };
        Fault { problem, placed: false, missing: false }
    }

    fn at(mut self, key: &str, origin: &Origin) -> Fault {
        if !self.placed {
            self.problem.key = join(key, &self.problem.key);
            if self.problem.key.ends_with('.') {
                self.problem.key.pop();
            }
            self.problem.origin = origin.clone();
            self.placed = true;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Fault {
        Fault::new(text.to_string())
    }

    fn missing_field(field: &'static str) -> Fault {
        let mut fault = Fault::new("this key is required and not set".to_owned());
        field.clone_into(&mut fault.problem.key);
        fault.missing = true;
        fault
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Fault {
        Fault::new(format!("unknown value `{variant}`{}", hint(variant, expected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Fault {
        let mut fault = Fault::new(unknown_key(field, expected));
        field.clone_into(&mut fault.problem.key);
        fault
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    format!("unknown key `{key}`{}", hint(key, known))
}

/// Names the nearest of the known words if it is near enough to be a slip, else all of them.
fn hint(word: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|candidate| (distance(word, candidate), *candidate)).min();
    match nearest {
        None => "; nothing can be set here".to_owned(),
        Some((steps, candidate)) if steps <= 1 + word.chars().count() / 3 => {
            format!("; did you mean `{candidate}`?")
        }
        Some(_) => format!("; known here: {}", known.join(", ")),
    }
}

/// Levenshtein's distance: how many letters must be put in, taken out or changed.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (line, a) in left.chars().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        if let Some(first) = row.first_mut() {
            *first = before;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(right.chars()) {
            let changed = diagonal + usize::from(a != b);
            diagonal = *cell;
            before = changed.min(before + 1).min(*cell + 1);
            *cell = before;
        }
    }
    row.last().copied().unwrap_or(0)
}

struct NodeDe<'a> {
    node: &'a Node,
    key: String,
    unknown: &'a RefCell<Vec<Problem>>,
}

impl<'a> NodeDe<'a> {
    fn place<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| fault.at(&self.key, &self.node.origin))
    }

    /// Runs `read` on the node that a text stands for when read as TOML.
    fn retyped<T>(
        &self,
        text: &str,
        expected: &str,
        read: impl FnOnce(NodeDe<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let node = from_text(text, &self.node.origin).filter(|node| !matches!(node.value, Value::Text(_)));
        match node {
            Some(node) => read(NodeDe { node: &node, key: self.key.clone(), unknown: self.unknown }),
            None => self.place(Err(Fault::new(format!("`{text}` is not {expected}")))),
        }
    }

    fn number<T: std::str::FromStr>(&self, text: &str, expected: &str) -> Result<T, Fault> {
        let digits = text.trim().replace('_', "");
        self.place(digits.parse().map_err(|_| Fault::new(format!("`{text}` is not {expected}"))))
    }

    fn entries<'b>(
        &'b self,
        entries: &'b BTreeMap<String, Node>,
        known: Option<&'static [&'static str]>,
    ) -> Entries<'b> {
        Entries { at: &self.key, entries: entries.iter(), known, value: None, unknown: self.unknown }
    }

    /// A table as a struct: keys that the struct does not have are noted and passed over.
    fn visit_struct<'de, V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Table(entries) => {
                let result = visitor.visit_map(self.entries(entries, Some(fields)));
                self.place(result)
            }
            _ => self.visit(visitor),
        }
    }

    /// The value as its own type says.
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Text(text) | Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            Value::Array(items) => visitor.visit_seq(Items {
                at: &self.key,
                items: items.iter().enumerate(),
                unknown: self.unknown,
            }),
            Value::Table(entries) => visitor.visit_map(self.entries(entries, None)),
        };
        self.place(result)
    }
}

/// Numbers: a text is parsed as the number asked for, anything else is shown to the visitor as it is.
macro_rules! numbers {
    ($($method:ident, $visit:ident, $type:ty, $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match &self.node.value {
                Value::Text(text) => {
                    let number = self.number::<$type>(text, $expected)?;
                    self.place(visitor.$visit(number))
                }
                _ => self.visit(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDe<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::Text(text) = &self.node.value else { return self.visit(visitor) };
        match from_text(text, &self.node.origin).map(|node| node.value) {
            Some(Value::Integer(number)) => self.place(visitor.visit_i64(number)),
            Some(Value::Float(number)) => self.place(visitor.visit_f64(number)),
            Some(Value::Boolean(flag)) => self.place(visitor.visit_bool(flag)),
            Some(Value::String(text)) => self.place(visitor.visit_string(text)),
            Some(Value::Text(_) | Value::Array(_) | Value::Table(_)) | None => self.visit(visitor),
        }
    }

    numbers! {
        deserialize_i8, visit_i8, i8, "a whole number from -128 to 127";
        deserialize_i16, visit_i16, i16, "a whole number from -32768 to 32767";
        deserialize_i32, visit_i32, i32, "a whole number that fits 32 bits";
        deserialize_i64, visit_i64, i64, "a whole number that fits 64 bits";
        deserialize_u8, visit_u8, u8, "a whole number from 0 to 255";
        deserialize_u16, visit_u16, u16, "a whole number from 0 to 65535";
        deserialize_u32, visit_u32, u32, "a whole number from 0 that fits 32 bits";
        deserialize_u64, visit_u64, u64, "a whole number from 0 that fits 64 bits";
        deserialize_f32, visit_f32, f32, "a number";
        deserialize_f64, visit_f64, f64, "a number";
        deserialize_bool, visit_bool, bool, "true or false";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => {
                self.retyped(text, r#"a list as in TOML: ["a", "b"]"#, |de| de.visit(visitor))
            }
            _ => self.visit(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => self.retyped(text, "a table as in TOML: { a = 1 }", |de| de.visit(visitor)),
            _ => self.visit(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => {
                self.retyped(text, "a table as in TOML: { a = 1 }", |de| de.visit_struct(fields, visitor))
            }
            _ => self.visit_struct(fields, visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Text(text) | Value::String(text) => {
                let variant: StrDeserializer<'_, Fault> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            Value::Table(entries) if entries.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(self.entries(entries, None)))
            }
            Value::Table(_) => Err(Fault::new("one key is expected here: the kind".to_owned())),
            Value::Integer(number) => Err(de::Error::invalid_type(Unexpected::Signed(*number), &"a word")),
            Value::Float(number) => Err(de::Error::invalid_type(Unexpected::Float(*number), &"a word")),
            Value::Boolean(flag) => Err(de::Error::invalid_type(Unexpected::Bool(*flag), &"a word")),
            Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"a word")),
        };
        self.place(result)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { bytes byte_buf unit unit_struct }
}

/// A list, item by item; an item's key is its index.
struct Items<'a> {
    at: &'a str,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    unknown: &'a RefCell<Vec<Problem>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        read_at(seed, node, join(self.at, &index.to_string()), self.unknown).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// A table, key by key.
struct Entries<'a> {
    at: &'a str,
    entries: btree_map::Iter<'a, String, Node>,
    /// The fields of the struct that is read; `None` when any key will do.
    known: Option<&'static [&'static str]>,
    value: Option<(&'a str, &'a Node)>,
    unknown: &'a RefCell<Vec<Problem>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for (key, node) in self.entries.by_ref() {
            if let Some(known) = self.known
                && !known.contains(&key.as_str())
            {
                self.unknown.borrow_mut().push(Problem {
                    key: join(self.at, key),
                    origin: node.origin.clone(),
                    text: unknown_key(key, known),
                });
                continue;
            }
            self.value = Some((key, node));
            let name: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
            return seed
                .deserialize(name)
                .map(Some)
                .map_err(|fault| fault.at(&join(self.at, key), &node.origin));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.value.take().expect("serde asks for a value only after its key");
        read_at(seed, node, join(self.at, key), self.unknown)
    }
}

/// Reads one value. A fault that comes from the type itself (`try_from` and the like) has no place yet: it is here.
fn read_at<'de, S: DeserializeSeed<'de>>(
    seed: S,
    node: &Node,
    key: String,
    unknown: &RefCell<Vec<Problem>>,
) -> Result<S::Value, Fault> {
    seed.deserialize(NodeDe { node, key: key.clone(), unknown }).map_err(|fault| fault.at(&key, &node.origin))
}
