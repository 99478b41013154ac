//! Tables and their keys: what a row is called before it is bytes.
//!
//! A row's key on disk is the table's name, a zero byte, then the key in an encoding whose byte
//! order is the key's own order. Names never contain a zero byte, so no table can reach into
//! another.

use std::fmt;
use std::marker::PhantomData;

use alloy::primitives::{Address, FixedBytes};

/// The longest table name.
pub const MAX_NAME: usize = 32;

/// Separates a table's name from the key.
const SEPARATOR: u8 = 0;

/// A value that can name a row. Its bytes sort as the value sorts.
pub trait Key: Sized {
    /// Appends the ordered bytes of the key.
    fn write(&self, out: &mut Vec<u8>);

    /// The key these bytes are, if they are one.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// A key that always takes the same number of bytes, and so can stand in front of another.
pub trait FixedKey: Key {
    /// How many bytes.
    const LEN: usize;
}

/// One table: its name, the version of its rows, and their types.
///
/// Declare it once, as a constant: `pub const CHANNELS: Table<B256, Record> =
/// Table::new("channels", 1);`. An older layout keeps its own constant under the same name with
/// its lower version, for the migration that reads it.
pub struct Table<K, V> {
    name: &'static str,
    version: u32,
    row: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Table<K, V> {
    /// The table `name` at `version`, which counts from 1. The name is lower-case ASCII letters,
    /// digits and dashes; [`crate::store::Store::open`] checks it.
    #[must_use]
    pub const fn new(name: &'static str, version: u32) -> Self {
        Self {
            name,
            version,
            row: PhantomData,
        }
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The version of the rows.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    pub(in crate::store) fn prefix(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.name.len() + 48);
        out.extend_from_slice(self.name.as_bytes());
        out.push(SEPARATOR);
        out
    }

    pub(in crate::store) fn row_key(&self, key: &impl Key) -> Vec<u8> {
        let mut out = self.prefix();
        key.write(&mut out);
        out
    }

    /// How many bytes of a row's key are the table's own.
    pub(in crate::store) const fn prefix_len(&self) -> usize {
        self.name.len() + 1
    }
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Table<K, V> {}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name, self.version)
    }
}

/// Whether a table may be called so.
pub(in crate::store) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(allowed)
}

/// The first byte string after every one that starts with `prefix`; `None` when there is none.
pub(in crate::store) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

macro_rules! integer_key {
    ($($int:ty),*) => {$(
        impl Key for $int {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_be_bytes)
            }
        }

        impl FixedKey for $int {
            const LEN: usize = size_of::<$int>();
        }
    )*};
}

integer_key!(u8, u16, u32, u64, u128);

macro_rules! array_key {
    ($type:ty, $len:expr $(, $n:ident)?) => {
        impl $(<const $n: usize>)? Key for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_slice());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                <[u8; $len]>::try_from(bytes).ok().map(Self::from)
            }
        }

        impl $(<const $n: usize>)? FixedKey for $type {
            const LEN: usize = $len;
        }
    };
}

array_key!([u8; N], N, N);
array_key!(FixedBytes<N>, N, N);
array_key!(Address, 20);

impl Key for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Key for Vec<u8> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl Key for String {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl<A: FixedKey, B: Key> Key for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (first, second) = bytes.split_at_checked(A::LEN)?;
        Some((A::read(first)?, B::read(second)?))
    }
}

impl<A: FixedKey, B: FixedKey> FixedKey for (A, B) {
    const LEN: usize = A::LEN + B::LEN;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(key: &impl Key) -> Vec<u8> {
        let mut out = Vec::new();
        key.write(&mut out);
        out
    }

    #[test]
    fn keys_sort_as_their_values_and_come_back() {
        let keys = [(1_u32, 300_u64), (1, 70_000), (2, 1), (256, 0)];
        for pair in keys.windows(2) {
            assert!(bytes(&pair[0]) < bytes(&pair[1]), "{pair:?}");
        }
        assert_eq!(<(u32, u64)>::read(&bytes(&keys[3])), Some(keys[3]));
        assert_eq!(
            <([u8; 2], String)>::read(b"abc"),
            Some((*b"ab", "c".to_owned()))
        );
        assert_eq!(<(u32, u64)>::read(&[0; 11]), None);
        assert_eq!(Address::read(&[7; 20]), Some(Address::repeat_byte(7)));
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(after_prefix(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(after_prefix(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after_prefix(&[255]), None);
        assert_eq!(after_prefix(&[]), None);
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name("channels") && is_name("raw-2"));
        assert!(
            !is_name("") && !is_name("a\0b") && !is_name("Ledger") && !is_name(&"x".repeat(33))
        );
    }
}
