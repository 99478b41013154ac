//! The node's two keys: made once, kept encrypted.

use std::path::{Path, PathBuf};

use farthing_protocol::eip712::EvmKey;
use farthing_protocol::identity::NodeKey;
use farthing_protocol::keystore::{self, KeyError, Passphrase, Secret};

use crate::node::Keys;

/// The keys' folder within the data directory.
const FOLDER: &str = "keys";

/// Where the node's identity is kept.
pub(super) fn node_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join("node.json")
}

/// Where the claim key is kept.
pub(super) fn claim_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join("claim.json")
}

/// True when both exist.
pub(super) fn exist(data_dir: &Path) -> bool {
    node_file(data_dir).exists() && claim_file(data_dir).exists()
}

/// Makes the keys that do not exist, and opens all.
pub(super) fn create(data_dir: &Path, passphrase: &Passphrase) -> Result<Keys, KeyError> {
    private_folder(&data_dir.join(FOLDER))?;
    for path in [node_file(data_dir), claim_file(data_dir)] {
        if !path.exists() {
            keystore::create(&path, &usable()?, passphrase)?;
        }
    }
    open(data_dir, passphrase)
}

/// Opens both keys.
pub(super) fn open(data_dir: &Path, passphrase: &Passphrase) -> Result<Keys, KeyError> {
    let seed = keystore::open(&node_file(data_dir), passphrase)?;
    let path = claim_file(data_dir);
    let secret = keystore::open(&path, passphrase)?;
    let claim = EvmKey::from_bytes(secret.expose()).map_err(|_| KeyError::Damaged {
        path,
        what: "its secret is not a secp256k1 key",
    })?;
    Ok(Keys {
        node: NodeKey::from_seed(seed.expose()),
        claim,
    })
}

/// A fresh secret that is also a key of the curve (all but 2^-128 of them are).
fn usable() -> Result<Secret, KeyError> {
    loop {
        let secret = Secret::random()?;
        if EvmKey::from_bytes(secret.expose()).is_ok() {
            return Ok(secret);
        }
    }
}

/// Makes a folder only its owner can enter.
pub(super) fn private_folder(path: &Path) -> Result<(), KeyError> {
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder.create(path).map_err(|source| KeyError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.into()).expect("long enough")
    }

    #[test]
    fn keys_are_made_once_and_open_with_their_passphrase_only() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!exist(dir.path()));
        let secret = passphrase("correct horse battery");
        let made = create(dir.path(), &secret).expect("makes");
        let again = create(dir.path(), &secret).expect("opens");
        assert_eq!(made.node.id(), again.node.id());
        assert_eq!(made.claim.address(), again.claim.address());
        assert!(exist(dir.path()));
        let wrong = open(dir.path(), &passphrase("wrong horse battery"));
        assert!(matches!(wrong, Err(KeyError::WrongPassphrase(_))));
    }
}
