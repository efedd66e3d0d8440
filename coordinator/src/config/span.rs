//! Spans of time as people write them: `90s`, `15m`, `24h`, `7d`.

use std::fmt;
use std::str::FromStr;

use berth_shared::time::Millis;
use serde::Deserialize;

/// Why a text is not a span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a span of time: write a whole number and ms, s, m, h or d, such as 90s or 24h")]
pub struct SpanError(String);

/// A span of time: a whole number and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Millis);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError(text.chars().take(40).collect());
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let unit_ms = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        count.checked_mul(unit_ms).map(|ms| Self(Millis(ms))).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long a node may work alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Autonomy {
    /// Without end while it is the only node, since nobody else could have its users; else [`AUTONOMY_OF_A_FLEET`].
    Auto,
    /// Without end.
    Unlimited,
    /// For so long.
    For(Span),
}

/// What `auto` is where there is more than one node.
const AUTONOMY_OF_A_FLEET: Millis = Millis::minutes(24 * 60);

impl Autonomy {
    /// For a node of a fleet of so many; `None` without end.
    pub const fn of(self, nodes: usize) -> Option<Millis> {
        match self {
            Self::Auto if nodes > 1 => Some(AUTONOMY_OF_A_FLEET),
            Self::Auto | Self::Unlimited => None,
            Self::For(Span(span)) => Some(span),
        }
    }
}

impl TryFrom<String> for Autonomy {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "unlimited" => Ok(Self::Unlimited),
            span => span.parse().map(Self::For),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit_only() {
        for (text, ms) in
            [("250ms", 250), ("90s", 90_000), ("15 m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Millis(ms))), "{text}");
        }
        for bad in ["", "5", "-1s", "1.5h", "s", "99999999999999999999d", "18446744073709551615d", "1 week"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
