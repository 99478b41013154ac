//! A value in a header: JSON in base64, in both directions bounded.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of a header that is read or written: more does not pass most proxies.
pub const HEADER_LIMIT: usize = 16 * 1024;

/// The standard alphabet. Padding is written and need not be there to be read.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a header holds no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too long to be looked at.
    #[error("the payment header has more than the {HEADER_LIMIT} bytes that are read")]
    TooLarge,
    /// Not base64.
    #[error("the payment header is not base64")]
    NotBase64,
    /// Not the JSON of such a value.
    #[error("the payment header does not hold what it should: {0}")]
    NotJson(String),
}

/// A value as the text of a header.
///
/// # Errors
/// [`HeaderError::TooLarge`]; [`HeaderError::NotJson`] for what has no JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<String, HeaderError> {
    let json = serde_json::to_vec(value).map_err(|e| HeaderError::NotJson(e.to_string()))?;
    let text = BASE64.encode(json);
    if text.len() > HEADER_LIMIT {
        return Err(HeaderError::TooLarge);
    }
    Ok(text)
}

/// The value in the bytes of a header.
///
/// # Errors
/// Any [`HeaderError`].
pub fn decode<T: DeserializeOwned>(header: &[u8]) -> Result<T, HeaderError> {
    if header.len() > HEADER_LIMIT {
        return Err(HeaderError::TooLarge);
    }
    let json = BASE64.decode(header).map_err(|_| HeaderError::NotBase64)?;
    // A list would be read as the fields in their order.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(HeaderError::NotJson("not a JSON object".into()));
    }
    serde_json::from_slice(&json).map_err(|e| HeaderError::NotJson(e.to_string()))
}
