//! Secrets at rest: one encrypted file per key, in the Web3 Secret Storage format, version 3
//! (scrypt, AES-128-CTR, Keccak-256), so that other wallets can read what we wrote.
//!
//! A key file is made under a temporary name with mode 0600 before a byte is in it, forced to the
//! disk, and given its name only then; an existing file is never replaced. Files that others may
//! read are refused, with the command that mends them.
//!
//! A guess at the passphrase costs 128 MiB and about 0.4 s ([`Cost::Standard`], scrypt N = 2^17).
//! Files of other wallets are read at whatever bearable cost they were made.

mod seal;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use eth_keystore::{EthKeystore, KdfparamsType, KeystoreError};
use rand_08::RngCore;
use rand_08::rngs::OsRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub use seal::Cost;

/// Bytes of a secret: an ed25519 seed or a secp256k1 key.
pub const SECRET_LEN: usize = 32;

/// The fewest characters of a passphrase.
pub const MIN_PASSPHRASE: usize = 12;

/// The largest key or passphrase file that is read: both are far smaller.
const MAX_FILE: u64 = 16 * 1024;

/// The most memory a file may make us spend on deriving its key, `128 * N * r` bytes: what the
/// usual wallets ask for (N = 2^18, r = 8).
const MAX_SCRYPT_BYTES: u64 = 256 * 1024 * 1024;

/// The most rounds a file of the older kind (PBKDF2) may ask for.
const MAX_PBKDF2_ROUNDS: u32 = 10_000_000;

/// Permission bits of everyone but the owner.
const OTHERS: u32 = 0o077;

/// Thirty-two secret bytes, wiped from memory when dropped and never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; SECRET_LEN]);

impl Secret {
    /// These bytes, which the caller wipes on its side.
    #[must_use]
    pub const fn new(bytes: [u8; SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// Fresh bytes from the operating system.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has none to give.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; SECRET_LEN];
        OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self(bytes))
    }

    /// The bytes, to make a key of. Do not copy them further.
    #[must_use]
    pub const fn expose(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What opens a key file; wiped from memory when dropped and never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(String);

impl Passphrase {
    /// A passphrase as typed.
    ///
    /// # Errors
    /// [`KeyError::Short`] below [`MIN_PASSPHRASE`] characters.
    pub fn new(text: String) -> Result<Self, KeyError> {
        let passphrase = Self(text);
        if passphrase.0.chars().count() < MIN_PASSPHRASE {
            return Err(KeyError::Short);
        }
        Ok(passphrase)
    }

    /// The first line of a file that only its owner may read.
    ///
    /// # Errors
    /// [`KeyError::Exposed`], [`KeyError::File`] or [`KeyError::Short`].
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_private(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Damaged {
            path: path.to_path_buf(),
            what: "it is not UTF-8",
        })?;
        Self::new(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why a key file cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The passphrase opens nothing here.
    #[error("wrong passphrase for {}: try again; nobody can recover it", .0.display())]
    WrongPassphrase(PathBuf),
    /// Others may read the file.
    #[error("{} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is a file already.
    #[error("{} exists already, and a key is never overwritten: move it away or choose another name", .0.display())]
    Exists(PathBuf),
    /// The system refuses.
    #[error("{}: {source}; check that the file and its directory exist and are yours", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a key file of ours or of another wallet.
    #[error("{} is not a usable key file: {what}; restore it from a backup", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The passphrase is too short to protect anything.
    #[error("the passphrase has fewer than {MIN_PASSPHRASE} characters: choose a longer one")]
    Short,
    /// The key could not be encrypted.
    #[error("the key cannot be encrypted: {0}")]
    Encrypt(String),
    /// No random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// Writes `secret` to a new key file at `path`, at [`Cost::Standard`].
///
/// # Errors
/// [`KeyError::Exists`], [`KeyError::File`], [`KeyError::Encrypt`].
pub fn create(path: &Path, secret: &Secret, passphrase: &Passphrase) -> Result<(), KeyError> {
    create_at(path, secret, passphrase, Cost::Standard)
}

/// Writes `secret` to a new key file at `path`.
///
/// # Errors
/// As [`create`].
pub fn create_at(
    path: &Path,
    secret: &Secret,
    passphrase: &Passphrase,
    cost: Cost,
) -> Result<(), KeyError> {
    let failed = |source| KeyError::File {
        path: path.to_path_buf(),
        source,
    };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let text = seal::seal(secret, passphrase, cost)?;
    let mut draft = Draft::new(dir, &name.to_string_lossy())?;
    draft.file.write_all(text.as_bytes()).map_err(failed)?;
    draft.file.sync_all().map_err(failed)?;
    // Unlike a rename, a link refuses to replace what is there.
    std::fs::hard_link(&draft.path, path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_path_buf()),
        _ => failed(e),
    })?;
    drop(draft);
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

/// The secret in the key file at `path`.
///
/// # Errors
/// [`KeyError::WrongPassphrase`], [`KeyError::Exposed`], [`KeyError::File`] or
/// [`KeyError::Damaged`].
pub fn open(path: &Path, passphrase: &Passphrase) -> Result<Secret, KeyError> {
    let damaged = |what| KeyError::Damaged {
        path: path.to_path_buf(),
        what,
    };
    let text = read_private(path)?;
    let stored: EthKeystore =
        serde_json::from_slice(&text).map_err(|_| damaged("it is not Web3 Secret Storage"))?;
    check(&stored).map_err(damaged)?;
    let found = eth_keystore::decrypt_key(path, &passphrase.0).map_err(|e| match e {
        KeystoreError::MacMismatch => KeyError::WrongPassphrase(path.to_path_buf()),
        _ => damaged("it does not decrypt"),
    })?;
    let bytes = Zeroizing::new(found);
    let secret = bytes
        .as_slice()
        .try_into()
        .map_err(|_| damaged("its secret is not 32 bytes"))?;
    Ok(Secret(secret))
}

/// Whether the library can read the file without panicking and at a bearable cost.
fn check(stored: &EthKeystore) -> Result<(), &'static str> {
    let crypto = &stored.crypto;
    if stored.version != 3 || crypto.cipher != "aes-128-ctr" {
        return Err("it is of another version or cipher");
    }
    if crypto.cipherparams.iv.len() != 16 || crypto.ciphertext.len() != SECRET_LEN {
        return Err("its fields have the wrong length");
    }
    let (dklen, bearable) = match &crypto.kdfparams {
        KdfparamsType::Scrypt { dklen, n, p, r, .. } => {
            let bytes = 128_u64
                .saturating_mul((*n).into())
                .saturating_mul((*r).into());
            // RFC 7914: N is a power of two, below 2^(16 r).
            let small = n
                .checked_ilog2()
                .is_some_and(|log| log > 0 && log < r.saturating_mul(16));
            let usable = n.is_power_of_two() && small && (1..=16).contains(p);
            (*dklen, usable && bytes <= MAX_SCRYPT_BYTES)
        }
        KdfparamsType::Pbkdf2 { c, dklen, .. } => (*dklen, *c > 0 && *c <= MAX_PBKDF2_ROUNDS),
    };
    match (dklen, bearable) {
        (32, true) => Ok(()),
        (32, false) => Err("its key derivation is malformed or too costly"),
        _ => Err("its fields have the wrong length"),
    }
}

/// A file under a name of its own, private from its first moment and gone at its last.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(dir: &Path, name: &str) -> Result<Self, KeyError> {
        let name = format!(".{name}.{:016x}.new", OsRng.next_u64());
        let path = dir.join(&name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(KeyError::File { path, source }),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // If it stays, it is an encrypted file that only we may read.
        std::fs::remove_file(&self.path).ok();
    }
}

/// The bytes of a small file, which only its owner may read.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |source| KeyError::File {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let mode = about.mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(KeyError::Exposed {
            path: path.to_path_buf(),
            mode,
        });
    }
    if !about.is_file() || about.len() > MAX_FILE {
        return Err(KeyError::Damaged {
            path: path.to_path_buf(),
            what: "it is not a small file",
        });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE).unwrap_or(0)));
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}
