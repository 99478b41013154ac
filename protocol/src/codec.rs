//! Values as bytes: the only file that names the binary encoder.
//!
//! Every message starts with a version byte ([`VERSION`]); the rest is bincode 2 with its
//! `standard` configuration (little-endian, variable-length integers) through serde. Decoding
//! is always bounded, refuses trailing bytes and never panics.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version byte in front of every message and stored value.
pub const VERSION: u8 = 1;

/// The largest value [`decode`] accepts unless told otherwise: a stored record.
pub const RECORD_LIMIT: usize = 2 * 1024;

/// Why bytes are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More bytes than this kind of message may have.
    #[error("{len} bytes, but at most {max} are allowed here")]
    TooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The version byte is missing or of a version we do not speak.
    #[error(
        "version {got:?} of the encoding, but this program speaks {VERSION}; update the older side"
    )]
    Version {
        /// The first byte, if any.
        got: Option<u8>,
    },
    /// The bytes do not form the value.
    #[error("malformed bytes: {0}")]
    Malformed(String),
    /// Bytes are left over after the value.
    #[error("{0} bytes left over after the value")]
    Trailing(usize),
    /// The value cannot be encoded (a serializer refused it).
    #[error("the value cannot be encoded: {0}")]
    Unencodable(String),
}

/// The bytes of a value, version byte first.
///
/// # Errors
/// [`Error::Unencodable`] when the value's own serializer refuses.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(VERSION);
    encode_after(value, bytes)
}

/// Appends version byte and value to `bytes`: for a writer that has put a header in front.
///
/// # Errors
/// As [`encode`].
pub fn encode_into<T: Serialize>(value: &T, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    bytes.push(VERSION);
    encode_after(value, bytes)
}

fn encode_after<T: Serialize>(value: &T, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(|e| Error::Unencodable(e.to_string()))?;
    Ok(bytes)
}

/// The value in `bytes`, which may be at most `max` long.
///
/// # Errors
/// Any [`Error`] but [`Error::Unencodable`]. What is allocated stays in proportion to
/// `bytes.len()`, whatever lengths the bytes claim.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, Error> {
    if bytes.len() > max {
        return Err(Error::TooLarge {
            len: bytes.len(),
            max,
        });
    }
    let (version, body) = bytes.split_first().ok_or(Error::Version { got: None })?;
    if *version != VERSION {
        return Err(Error::Version {
            got: Some(*version),
        });
    }
    let (value, read) = decode_body(body)?;
    if read != body.len() {
        return Err(Error::Trailing(body.len().saturating_sub(read)));
    }
    Ok(value)
}

/// The most bytes of a small value.
const SMALL: usize = 4 * 1024;
/// The most bytes of a medium value.
const MEDIUM: usize = 64 * 1024;
/// Claimed per encoded byte at most: a one-byte `u128` claims the sixteen of its memory.
const CLAIM: usize = 16;
/// What decoding anything may claim.
const LARGE_CLAIM: usize = 16 * 1024 * 1024;

/// The encoder allocates what a length claims before it looks for the bytes, so its limit must
/// follow the size of what there is; it can only be a constant, hence three classes.
fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), Error> {
    if body.len() <= SMALL {
        decode_within::<T, { SMALL * CLAIM }>(body)
    } else if body.len() <= MEDIUM {
        decode_within::<T, { MEDIUM * CLAIM }>(body)
    } else {
        decode_within::<T, LARGE_CLAIM>(body)
    }
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(
    body: &[u8],
) -> Result<(T, usize), Error> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    bincode::serde::decode_from_slice(body, config).map_err(|e| Error::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same_value() {
        let value = (7_u64, "seven".to_owned(), vec![1_u8, 2, 3]);
        let bytes = encode(&value).expect("encodes");
        assert_eq!(decode(&bytes, 100), Ok(value));
    }

    #[test]
    fn each_kind_of_bad_bytes_has_its_error() {
        let bytes = encode(&7_u64).expect("encodes");
        assert_eq!(
            decode::<u64>(&bytes, 1),
            Err(Error::TooLarge { len: 2, max: 1 })
        );
        assert_eq!(decode::<u64>(&[], 1), Err(Error::Version { got: None }));
        assert_eq!(
            decode::<u64>(&[9, 7], 10),
            Err(Error::Version { got: Some(9) })
        );
        assert_eq!(decode::<u64>(&[1, 7, 7], 10), Err(Error::Trailing(1)));
        assert!(matches!(
            decode::<String>(&[1, 200], 10),
            Err(Error::Malformed(_))
        ));
    }

    #[test]
    fn the_densest_value_of_each_class_is_within_its_claim() {
        for count in [SMALL - 3, MEDIUM - 5, 1024 * 1024 - 5] {
            // One byte each, and each claims sixteen.
            let value = vec![0_u128; count];
            let bytes = encode(&value).expect("encodes");
            assert_eq!(decode(&bytes, bytes.len()), Ok(value));
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_bytes_allocates_nothing() {
        // A string that says it is 2^40 bytes long.
        let lie = [VERSION, 253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(matches!(
            decode::<String>(&lie, 100),
            Err(Error::Malformed(_))
        ));
    }
}
