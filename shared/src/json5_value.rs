//! JSON5 from a hostile folder. The reader that we use goes down one level of its stack per level of nesting and has no
//! bound of its own: a megabyte of `[` would end the daemon. So the value is built here, and counts.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting that is read: the same as `serde_json` has for plain JSON.
const DEPTH_MAX: usize = 127;

/// Reads JSON or JSON5, nested at most 127 deep. Upstream reads JSON5; plain JSON is tried first because it is what most
/// programs write.
///
/// # Errors
/// It is neither.
pub fn parse(text: &str) -> Result<Value, json5::Error> {
    serde_json::from_str(text).or_else(|_| json5::from_str::<Document>(text).map(|Document(value)| value))
}

struct Document(Value);

impl<'de> serde::Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Within(DEPTH_MAX).deserialize(deserializer).map(Self)
    }
}

/// A value that may be nested this much deeper.
#[derive(Clone, Copy)]
struct Within(usize);

impl Within {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("it is nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Within {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Within {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    /// Infinities and NaN have no JSON; they become what `JSON.stringify` makes of them.
    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let within = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(within)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let within = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key()? {
            map.insert(key, entries.next_value_seed(within)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json5_is_read_as_its_values() {
        let text = "{ // a comment\n a: 'x', \"b\": [+1, -2, .5, 0x1F, true, null, Infinity,], c: {}, }";
        let expected = json!({ "a": "x", "b": [1, -2, 0.5, 31, true, null, null], "c": {} });
        assert_eq!(parse(text).unwrap(), expected);
        for bad in ["", "{", "[1 2]", "{} x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nesting_that_no_stack_bears_is_an_error() {
        for part in ["[", "{a:", "[{a:"] {
            let error = parse(&part.repeat(300_000)).unwrap_err();
            assert!(error.to_string().contains("nested too deeply"), "{error}");
        }
        let bearable = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(parse(&bearable).is_ok());
    }
}
