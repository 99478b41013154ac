//! Whole numbers as decimal text, as x402 writes times and nonces.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serializer};

/// The digits of the largest 256-bit number.
const MOST_DIGITS: usize = 78;

/// Writes a number as its digits.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: Display, S: Serializer>(number: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// Reads digits, and nothing but digits.
///
/// # Errors
/// Anything else, and what does not fit.
pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    let plain = !text.is_empty()
        && text.len() <= MOST_DIGITS
        && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| serde::de::Error::custom("not decimal digits that fit"))
}
