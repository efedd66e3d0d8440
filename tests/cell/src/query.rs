//! Query parameters: small, percent-decoded, with bounds applied where they are read.

use std::collections::BTreeMap;

/// Parameters read from one query string; later ones are ignored.
const PARAMS_MAX: usize = 32;

/// The parsed query of one request.
#[derive(Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    /// Parses `a=1&b=x%20y`. The first value of a name counts.
    pub(crate) fn parse(raw: Option<&str>) -> Query {
        let mut params = BTreeMap::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).take(PARAMS_MAX) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.entry(decode(name)).or_insert_with(|| decode(value));
        }
        Query(params)
    }

    /// The value of `name`, if it was given.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Was `name` given, and not as `0` or `false`?
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "0" && value != "false")
    }

    /// The number `name`, at most `max`; `default` when absent or not a number.
    pub(crate) fn number(&self, name: &str, default: u64, max: u64) -> u64 {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default).min(max)
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let rest = bytes.clone();
                match (bytes.next().and_then(hex), bytes.next().and_then(hex)) {
                    (Some(high), Some(low)) => out.push(high * 16 + low),
                    // Not an escape after all: keep the sign and read on behind it.
                    _ => {
                        out.push(b'%');
                        bytes = rest;
                    }
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_broken_ones_kept() {
        let query = Query::parse(Some("a=x%20y+z&b=100%&c=%zz&a=second"));
        assert_eq!(query.get("a"), Some("x y z"));
        assert_eq!(query.get("b"), Some("100%"));
        assert_eq!(query.get("c"), Some("%zz"));
    }

    #[test]
    fn numbers_are_capped_and_default_when_unreadable() {
        let query = Query::parse(Some("n=99&m=x"));
        assert_eq!(query.number("n", 1, 10), 10);
        assert_eq!(query.number("m", 7, 10), 7);
        assert_eq!(query.number("none", 7, 10), 7);
    }
}
