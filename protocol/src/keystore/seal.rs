//! How a key file is made: scrypt derives two keys from the passphrase, one encrypts the secret
//! (AES-128-CTR), the other vouches for the ciphertext (Keccak-256).

use alloy::hex;
use alloy::primitives::keccak256;
use ctr::cipher::{KeyIvInit, StreamCipher};
use rand_08::RngCore;
use rand_08::rngs::OsRng;
use scrypt::Params;
use serde_json::json;
use zeroize::Zeroizing;

use crate::keystore::{KeyError, Passphrase, Secret};

type Cipher = ctr::Ctr128BE<aes::Aes128>;

/// Bytes that are derived: a key for the cipher, and one for the mark.
const DERIVED: usize = 32;
/// scrypt's block size; with N it makes the memory a guess costs, `128 * N * r` bytes.
const BLOCK: u32 = 8;

/// What it costs to try a passphrase on a key file, and so to open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cost {
    /// N = 2^17: 128 MiB and about 0.3 s for each guess.
    #[default]
    Standard,
    /// N = 2^12, 4 MiB: for keys that hold nothing, as in tests.
    Light,
}

impl Cost {
    const fn log_n(self) -> u8 {
        match self {
            Self::Standard => 17,
            Self::Light => 12,
        }
    }
}

/// The key file's text.
pub(super) fn seal(
    secret: &Secret,
    passphrase: &Passphrase,
    cost: Cost,
) -> Result<String, KeyError> {
    let refused = |what: &dyn std::fmt::Display| KeyError::Encrypt(what.to_string());
    let mut salt = [0; 32];
    let mut iv = [0; 16];
    let mut id = [0; 16];
    for bytes in [&mut salt[..], &mut iv, &mut id] {
        OsRng
            .try_fill_bytes(bytes)
            .map_err(|e| KeyError::Random(e.to_string()))?;
    }
    let params = Params::new(cost.log_n(), BLOCK, 1).map_err(|e| refused(&e))?;
    let mut derived = Zeroizing::new([0; DERIVED]);
    scrypt::scrypt(
        passphrase.0.as_bytes(),
        &salt,
        &params,
        derived.as_mut_slice(),
    )
    .map_err(|e| refused(&e))?;
    let (key, mark) = derived.split_at(DERIVED / 2);
    let mut text = *secret.expose();
    let mut cipher = Cipher::new_from_slices(key, &iv).map_err(|e| refused(&e))?;
    cipher.apply_keystream(&mut text);
    let mac = keccak256([mark, &text[..]].concat());
    Ok(json!({
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": { "iv": hex::encode(iv) },
            "ciphertext": hex::encode(text),
            "kdf": "scrypt",
            "kdfparams": {
                "dklen": DERIVED,
                "n": 1_u64 << cost.log_n(),
                "p": 1,
                "r": BLOCK,
                "salt": hex::encode(salt),
            },
            "mac": hex::encode(mac),
        },
        "id": uuid(id),
        "version": 3,
    })
    .to_string())
}

/// Random bytes in the form of a version 4 UUID.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    let parts = [
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ];
    parts.join("-")
}
