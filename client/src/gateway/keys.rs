//! Who may use the gateway: everyone on this machine, or whoever has a key.
//!
//! Only hashes of keys are kept and compared, all of them every time, so that time tells nothing.
//! Without keys, a web page the user happens to visit must not spend the user's money: a request
//! that a browser sends for a page from elsewhere is refused.

use std::path::Path;

use alloy::primitives::{B256, keccak256};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, ORIGIN};

/// Where Anthropic's libraries put the key.
const API_KEY: &str = "x-api-key";
/// The largest key file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a request is turned away at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key.
    #[error("no API key was given; send `Authorization: Bearer <key>`")]
    Missing,
    /// A key nobody was given.
    #[error("the API key is not known here; see `gateway.api_keys_file`")]
    Unknown,
    /// A page from elsewhere.
    #[error(
        "a web page from another site may not use this gateway: it could spend your money; call it from a program"
    )]
    Foreign,
}

/// The accepted keys, as hashes.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    hashes: Option<Vec<B256>>,
}

impl Keys {
    /// No key is asked for.
    #[must_use]
    pub const fn none() -> Self {
        Self { hashes: None }
    }

    /// One key per line; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// When the file cannot be read, is too large, or holds no key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if size > MAX_FILE {
            return Err(format!("it has {size} bytes; at most {MAX_FILE} are read"));
        }
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        Self::parse(&text).ok_or_else(|| "it holds no key; write one per line".to_owned())
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let hashes: Vec<_> = keys.map(|key| keccak256(key.as_bytes())).collect();
        (!hashes.is_empty()).then_some(Self {
            hashes: Some(hashes),
        })
    }

    /// Whether a request with these headers may pass.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let Some(hashes) = &self.hashes else {
            return from_this_machine(headers);
        };
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let named = || headers.get(API_KEY).map(|value| value.as_bytes());
        let key = given.and_then(bearer).or_else(named);
        let key = key.ok_or(Denied::Missing)?;
        let hash = keccak256(key);
        let same = |known: &B256| {
            let different = known.iter().zip(hash.iter());
            different.fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
        };
        let found = hashes
            .iter()
            .fold(false, |found, known| found | same(known));
        if found { Ok(()) } else { Err(Denied::Unknown) }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !key.is_empty()).then_some(key)
}

/// Browsers name the page's origin; programs do not.
fn from_this_machine(headers: &HeaderMap) -> Result<(), Denied> {
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = origin.split_once("://").map_or("", |(_, host)| host);
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => host.split(':').next(),
    };
    match name.unwrap_or_default() {
        "localhost" | "127.0.0.1" | "::1" => Ok(()),
        _ => Err(Denied::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_a_known_key_passes() {
        let keys = Keys::parse("# ours\n\n one \ntwo\n").expect("two keys");
        for good in ["Bearer one", "bearer two"] {
            assert_eq!(keys.admit(&with(AUTHORIZATION, good)), Ok(()));
        }
        for bad in ["Bearer three", "Bearer # ours", "Bearer on"] {
            assert_eq!(keys.admit(&with(AUTHORIZATION, bad)), Err(Denied::Unknown));
        }
        for none in ["one", "Basic one", "Bearer ", "Bearer"] {
            assert_eq!(keys.admit(&with(AUTHORIZATION, none)), Err(Denied::Missing));
        }
        assert_eq!(keys.admit(&HeaderMap::new()), Err(Denied::Missing));
        assert!(Keys::parse("# nothing\n").is_none());
    }

    #[test]
    fn without_keys_a_page_from_elsewhere_is_kept_out() {
        let keys = Keys::none();
        assert_eq!(keys.admit(&HeaderMap::new()), Ok(()));
        for ours in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://[::1]:1",
        ] {
            assert_eq!(keys.admit(&with(ORIGIN, ours)), Ok(()));
        }
        for foreign in [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
        ] {
            assert_eq!(keys.admit(&with(ORIGIN, foreign)), Err(Denied::Foreign));
        }
    }
}
