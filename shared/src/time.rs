//! Points in time and spans, as integers of milliseconds that can be invented, stored and compared in tests.
//!
//! Two clocks, never mixed: [`UnixMs`] is what people read and what outlives a boot; [`BootMs`] only grows while
//! the machine is up, also through suspend (`CLOCK_BOOTTIME`, clock_gettime(2)), and is what deadlines and leases count.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Wall-clock time: milliseconds since 1970-01-01T00:00:00Z. May be stepped at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMs(pub u64);

/// Time since this boot in milliseconds, suspended time included. Means nothing on another boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootMs(pub u64);

/// A span of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// So many seconds.
    pub const fn secs(count: u64) -> Self {
        Self(count * 1000)
    }

    /// So many minutes.
    pub const fn minutes(count: u64) -> Self {
        Self(count * 60_000)
    }

    /// As the standard library's duration.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl fmt::Display for Millis {
    /// Short and rounded down: `250 ms`, `4.2 s`, `3 min 10 s`, `2 h 5 min`, `8 d 1 h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0 / 1000;
        let text = match secs {
            0 => format!("{} ms", self.0),
            1..=59 => format!("{}.{} s", secs, self.0 % 1000 / 100),
            60..=3599 => format!("{} min {} s", secs / 60, secs % 60),
            3600..=86_399 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
            _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
        };
        f.pad(&text)
    }
}

impl BootMs {
    /// This much later; the largest time where it does not fit.
    pub const fn after(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long ago `earlier` was; zero where it is in the future.
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl UnixMs {
    /// The last moment of the year 9999: RFC 3339 has no words for a later one, so that who reads it as JSON could not.
    pub const LAST_IN_WORDS: Self = Self(253_402_300_799_999);

    /// This much later; the largest time where it does not fit.
    pub const fn after(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long ago `earlier` was; zero where it is in the future.
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for UnixMs {
    /// RFC 3339 in UTC with milliseconds; a time past the year 9999 is shown as its number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
        match text {
            Some(text) => f.pad(&text),
            None => write!(f, "@{}ms", self.0),
        }
    }
}

impl Serialize for UnixMs {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for UnixMs {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if !d.is_human_readable() {
            return u64::deserialize(d).map(Self);
        }
        let text = String::deserialize(d)?;
        let at = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
            .map_err(|_| serde::de::Error::custom("not a time of RFC 3339, such as 2026-01-31T12:00:00Z"))?;
        // In UTC it could be in a year that is not written with four digits.
        let at = at
            .checked_to_offset(time::UtcOffset::UTC)
            .ok_or_else(|| serde::de::Error::custom("a time past the year 9999"))?;
        let ms = at.unix_timestamp_nanos() / 1_000_000;
        u64::try_from(ms).map(Self).map_err(|_| serde::de::Error::custom("a time before 1970"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_are_text_in_json_and_numbers_in_binary() {
        let at = UnixMs(1_700_000_000_123);
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<UnixMs>(&json).unwrap(), at);
        assert_eq!(crate::codec::encode(&at).unwrap().len(), 8);
    }

    #[test]
    fn whatever_time_is_read_is_written_as_the_same() {
        let last: UnixMs = serde_json::from_str("\"9999-12-31T22:59:59.999-01:00\"").unwrap();
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999Z");
        assert!(serde_json::from_str::<UnixMs>("\"9999-12-31T23:59:59.999-01:00\"").is_err());
    }

    #[test]
    fn the_last_time_that_is_read_back_is_known() {
        let last = UnixMs::LAST_IN_WORDS;
        let back = |at: UnixMs| serde_json::from_str::<UnixMs>(&serde_json::to_string(&at).unwrap());
        assert_eq!(back(last).unwrap(), last);
        assert!(back(last.after(Millis(1))).is_err());
    }

    #[test]
    fn far_times_are_shown_and_never_panic() {
        assert_eq!(UnixMs(u64::MAX).to_string(), format!("@{}ms", u64::MAX));
    }

    #[test]
    fn spans_are_short_to_read() {
        let shown: Vec<String> =
            [250, 4_200, 190_000, 7_500_000, 694_800_000].iter().map(|ms| Millis(*ms).to_string()).collect();
        assert_eq!(shown, ["250 ms", "4.2 s", "3 min 10 s", "2 h 5 min", "8 d 1 h"]);
    }

    #[test]
    fn a_clock_that_went_back_gives_a_span_of_zero() {
        assert_eq!(BootMs(5).since(BootMs(9)), Millis(0));
    }
}
