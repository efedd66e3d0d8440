//! Money is integers. One currency per installation; amounts are kept in billionths so that small prices add up
//! exactly, and every operation that could overflow or mix currencies says so.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A three-letter currency code of ISO 4217, such as `EUR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Reads a code of three capital letters; `None` for anything else.
    pub fn from_code(code: &str) -> Option<Self> {
        let bytes = <[u8; 3]>::try_from(code.as_bytes()).ok()?;
        bytes.iter().all(u8::is_ascii_uppercase).then_some(Self(bytes))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.0).unwrap_or("???"))
    }
}

/// Why two amounts could not be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The amounts are of two currencies.
    #[error("{0} and {1} cannot be put together")]
    Currencies(Currency, Currency),
    /// The result does not fit in 128 bits.
    #[error("the amount is out of range")]
    Range,
}

/// An amount of money, in billionths of the currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Which currency.
    pub currency: Currency,
    /// Billionths of one unit; negative is owed.
    pub nano: i128,
}

impl Money {
    /// The sum of two amounts of one currency.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Currencies(self.currency, other.currency));
        }
        let nano = self.nano.checked_add(other.nano).ok_or(MoneyError::Range)?;
        Ok(Self { currency: self.currency, nano })
    }

    /// The same amount, owed the other way.
    pub fn checked_neg(self) -> Result<Self, MoneyError> {
        Ok(Self { currency: self.currency, nano: self.nano.checked_neg().ok_or(MoneyError::Range)? })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nano < 0 { "-" } else { "" };
        let nano = self.nano.unsigned_abs();
        write!(f, "{sign}{}.{:09} {}", nano / 1_000_000_000, nano % 1_000_000_000, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur(nano: i128) -> Money {
        Money { currency: Currency::from_code("EUR").unwrap(), nano }
    }

    #[test]
    fn amounts_of_two_currencies_are_not_added() {
        let usd = Money { currency: Currency::from_code("USD").unwrap(), nano: 1 };
        assert!(matches!(eur(1).checked_add(usd), Err(MoneyError::Currencies(..))));
    }

    #[test]
    fn overflow_is_an_error_and_never_wraps() {
        assert_eq!(eur(i128::MAX).checked_add(eur(1)), Err(MoneyError::Range));
        assert_eq!(eur(i128::MIN).checked_neg(), Err(MoneyError::Range));
    }

    #[test]
    fn amounts_are_shown_whole() {
        assert_eq!(eur(-1_500_000_000).to_string(), "-1.500000000 EUR");
    }
}
