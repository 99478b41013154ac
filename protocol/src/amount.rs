//! Money and token counts: integers with checked operations only, never floats.
//!
//! [`Amount`] counts **atoms**, the smallest unit of the payment token (USDC: 1e-6 dollar).
//! [`Cost`] counts **micro-atoms** (1e-6 atom), the unit in which work is priced, so that one
//! cheap token still costs something. A quote is rounded up to atoms, a charge down
//! ([`Cost::ceil`], [`Cost::floor`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Micro-atoms in one atom.
pub const MICRO: u128 = 1_000_000;

/// A number did not fit: the sum or product exceeds what the unit can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the amount is too large to represent")]
pub struct Overflow;

/// A decimal amount could not be read: only digits are allowed, at most 39, fitting 128 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an amount in atoms: give decimal digits only, such as \"250000\"")]
pub struct InvalidAmount;

/// Atoms of the payment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(u128);

#[allow(
    clippy::should_implement_trait,
    reason = "the operators cannot refuse, these can"
)]
impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount the contract's `uint128` can hold.
    pub const MAX: Self = Self(u128::MAX);

    /// So many atoms.
    #[must_use]
    pub const fn atoms(atoms: u128) -> Self {
        Self(atoms)
    }

    /// The number of atoms.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }

    /// True for zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum.
    ///
    /// # Errors
    /// [`Overflow`] beyond 128 bits.
    pub fn add(self, other: Self) -> Result<Self, Overflow> {
        self.0.checked_add(other.0).map(Self).ok_or(Overflow)
    }

    /// The difference.
    ///
    /// # Errors
    /// [`Overflow`] when `other` is larger.
    pub fn sub(self, other: Self) -> Result<Self, Overflow> {
        self.0.checked_sub(other.0).map(Self).ok_or(Overflow)
    }

    /// The difference, or zero when `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or [`Amount::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// This amount as a cost.
    ///
    /// # Errors
    /// [`Overflow`] beyond 128 bits of micro-atoms.
    pub fn to_cost(self) -> Result<Cost, Overflow> {
        self.0.checked_mul(MICRO).map(Cost).ok_or(Overflow)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        // `u128::from_str` accepts a leading plus; the wire form does not.
        let digits =
            !text.is_empty() && text.len() <= 39 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits {
            return Err(InvalidAmount);
        }
        text.parse().map(Self).map_err(|_| InvalidAmount)
    }
}

/// As a decimal string in text formats (JSON numbers lose digits), as an integer in binary ones.
impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&self.0)
        } else {
            serializer.serialize_u128(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(deserializer).map(Self)
        }
    }
}

/// A cost in micro-atoms (1e-6 atom).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Cost(u128);

#[allow(
    clippy::should_implement_trait,
    reason = "the operators cannot refuse, these can"
)]
impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many micro-atoms.
    #[must_use]
    pub const fn micro_atoms(micro: u128) -> Self {
        Self(micro)
    }

    /// The number of micro-atoms.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }

    /// The sum.
    ///
    /// # Errors
    /// [`Overflow`] beyond 128 bits.
    pub fn add(self, other: Self) -> Result<Self, Overflow> {
        self.0.checked_add(other.0).map(Self).ok_or(Overflow)
    }

    /// The smallest amount that covers this cost: how a quote is rounded.
    #[must_use]
    pub const fn ceil(self) -> Amount {
        Amount(self.0.div_ceil(MICRO))
    }

    /// The whole atoms in this cost: how a charge is rounded.
    #[must_use]
    pub const fn floor(self) -> Amount {
        Amount(self.0 / MICRO)
    }

    /// What [`Cost::floor`] leaves: below [`MICRO`].
    #[must_use]
    pub const fn remainder(self) -> u32 {
        // Always below one million, so it fits.
        (self.0 % MICRO) as u32
    }
}

/// A price in micro-atoms per token (or per request): $0.50 per million tokens is 500 000.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Price(pub u64);

impl Price {
    /// The cost of so many tokens (or requests) at this price. Cannot overflow: 64 × 64 bits.
    #[must_use]
    pub const fn times(self, count: u64) -> Cost {
        Cost(self.0 as u128 * count as u128)
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_rounds_up_and_a_charge_rounds_down() {
        let cost = Price(500_000).times(3);
        assert_eq!(cost.ceil(), Amount::atoms(2));
        assert_eq!(cost.floor(), Amount::atoms(1));
        assert_eq!(cost.remainder(), 500_000);
    }

    #[test]
    fn only_plain_digits_are_an_amount() {
        for text in [
            "",
            "+1",
            "-1",
            "1e3",
            "1.0",
            " 1",
            "0x10",
            "9999999999999999999999999999999999999999",
        ] {
            assert_eq!(text.parse::<Amount>(), Err(InvalidAmount), "{text:?}");
        }
        assert_eq!(
            "340282366920938463463374607431768211455".parse(),
            Ok(Amount::MAX)
        );
        assert_eq!(
            "340282366920938463463374607431768211456".parse::<Amount>(),
            Err(InvalidAmount)
        );
    }

    #[test]
    fn arithmetic_refuses_to_wrap() {
        assert_eq!(Amount::MAX.add(Amount::atoms(1)), Err(Overflow));
        assert_eq!(Amount::ZERO.sub(Amount::atoms(1)), Err(Overflow));
        assert_eq!(Amount::MAX.to_cost(), Err(Overflow));
    }

    #[test]
    fn an_amount_is_a_string_in_json() {
        let text = serde_json::to_string(&Amount::atoms(7)).expect("serializes");
        assert_eq!(text, "\"7\"");
        assert_eq!(
            serde_json::from_str::<Amount>(&text).expect("parses"),
            Amount::atoms(7)
        );
        assert!(serde_json::from_str::<Amount>("7").is_err());
    }
}
