//! Key files: private, encrypted, readable by other wallets, and clear about what is wrong.

#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use farthing_protocol::keystore::{Cost, KeyError, Passphrase, Secret, create_at, open};
use tempfile::{TempDir, tempdir};

/// The PBKDF2 example of the Web3 Secret Storage definition, passphrase `testpassword`.
const KNOWN: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},"ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2","kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256","salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},"mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},"id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;
/// A file at the cost the usual wallets choose; nobody knows its passphrase.
const HEAVY: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"83dbcc02d8ccb40e466191a123791e0e"},"ciphertext":"d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c","kdf":"scrypt","kdfparams":{"dklen":32,"n":262144,"p":1,"r":8,"salt":"ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19"},"mac":"2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097"},"id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;
const KNOWN_SECRET: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";

/// As the programs do, at the light cost.
fn create(path: &Path, secret: &Secret, passphrase: &Passphrase) -> Result<(), KeyError> {
    create_at(path, secret, passphrase, Cost::Light)
}

fn phrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned()).expect("long enough")
}

fn write(dir: &TempDir, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
    path
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn a_secret_comes_back_from_a_private_file() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("voucher.key");
    let secret = Secret::random().expect("random");
    let passphrase = phrase("correct horse battery");
    create(&path, &secret, &passphrase).expect("created");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(open(&path, &passphrase).expect("opened"), secret);
    let text = std::fs::read_to_string(&path).expect("read");
    let plain: String = secret
        .expose()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(!text.contains(&plain));
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("dir").count(),
        1,
        "no draft is left"
    );
}

#[test]
fn a_key_file_costs_as_much_to_guess_as_other_wallets_files() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("payer.key");
    let (secret, passphrase) = (Secret::new([7; 32]), phrase("correct horse battery"));
    farthing_protocol::keystore::create(&path, &secret, &passphrase).expect("created");
    let text = std::fs::read_to_string(&path).expect("read");
    let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let cost = &file["crypto"]["kdfparams"];
    assert_eq!((&cost["n"], &cost["r"]), (&(1 << 17).into(), &8.into()));
    assert_eq!(file["version"], 3);
    assert_eq!(open(&path, &passphrase).expect("opened"), secret);
    // Another implementation of the format reads it too.
    let other = eth_keystore::decrypt_key(&path, "correct horse battery").expect("reads");
    assert_eq!(other, secret.expose());
}

#[test]
fn another_wallets_file_opens() {
    let dir = tempdir().expect("dir");
    let path = write(&dir, "known", KNOWN, 0o600);
    let secret = open(&path, &phrase("testpassword")).expect("opened");
    let hex: String = secret
        .expose()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, KNOWN_SECRET);
}

#[test]
fn a_wrong_passphrase_has_its_own_error() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("key");
    create(
        &path,
        &Secret::new([7; 32]),
        &phrase("the right passphrase"),
    )
    .expect("created");
    let refused = open(&path, &phrase("the wrong passphrase")).expect_err("refused");
    assert!(
        matches!(&refused, KeyError::WrongPassphrase(at) if *at == path),
        "{refused}"
    );
}

#[test]
fn a_file_others_can_read_is_refused_with_the_command_that_mends_it() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("key");
    let passphrase = phrase("correct horse battery");
    create(&path, &Secret::new([7; 32]), &passphrase).expect("created");
    for bits in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(&path, Permissions::from_mode(bits)).expect("mode");
        let refused = open(&path, &passphrase).expect_err("refused");
        assert!(
            matches!(refused, KeyError::Exposed { mode, .. } if mode == bits),
            "{refused}"
        );
        assert!(
            refused
                .to_string()
                .contains(&format!("chmod 600 {}", path.display())),
            "{refused}"
        );
    }
    let exposed = write(&dir, "passphrase", "correct horse battery\n", 0o644);
    assert!(matches!(
        Passphrase::from_file(&exposed),
        Err(KeyError::Exposed { .. })
    ));
}

#[test]
fn an_existing_key_is_never_replaced() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("key");
    let passphrase = phrase("correct horse battery");
    create(&path, &Secret::new([1; 32]), &passphrase).expect("created");
    let refused = create(&path, &Secret::new([2; 32]), &passphrase).expect_err("refused");
    assert!(matches!(refused, KeyError::Exists(_)), "{refused}");
    assert_eq!(
        open(&path, &passphrase).expect("opened"),
        Secret::new([1; 32])
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("dir").count(),
        1,
        "no draft is left"
    );
}

#[test]
fn damaged_and_costly_files_are_refused_before_they_cost_anything() {
    let dir = tempdir().expect("dir");
    let changes = [
        ("\"version\":3", "\"version\":4"),
        ("\"n\":262144", "\"n\":262143"),
        ("\"n\":262144", "\"n\":2147483648"),
        ("\"p\":1", "\"p\":4000000"),
        ("\"r\":8", "\"r\":1"),
        ("\"dklen\":32", "\"dklen\":16"),
        ("83dbcc02d8ccb40e466191a123791e0e", "83dbcc02"),
        ("aes-128-ctr", "aes-256-ctr"),
        ("{\"crypto\"", "{\"cryptic\""),
    ];
    for (from, to) in changes {
        let path = write(&dir, "damaged", &HEAVY.replacen(from, to, 1), 0o600);
        let refused = open(&path, &phrase("testpassword")).expect_err(to);
        assert!(
            matches!(refused, KeyError::Damaged { .. }),
            "{to}: {refused}"
        );
    }
    let heavy =
        open(&write(&dir, "heavy", HEAVY, 0o600), &phrase("testpassword")).expect_err("wrong");
    assert!(matches!(heavy, KeyError::WrongPassphrase(_)), "{heavy}");
    let missing = open(&dir.path().join("missing"), &phrase("testpassword")).expect_err("missing");
    assert!(matches!(missing, KeyError::File { .. }), "{missing}");
}

#[test]
fn a_passphrase_is_the_first_line_of_its_file() {
    let dir = tempdir().expect("dir");
    let path = write(
        &dir,
        "passphrase",
        "correct horse battery\r\nsecond line\n",
        0o600,
    );
    let key = dir.path().join("key");
    create(
        &key,
        &Secret::new([9; 32]),
        &Passphrase::from_file(&path).expect("read"),
    )
    .expect("created");
    assert!(open(&key, &phrase("correct horse battery")).is_ok());
    assert!(matches!(
        Passphrase::new("short".to_owned()),
        Err(KeyError::Short)
    ));
}

#[test]
fn secrets_do_not_print() {
    let secret = Secret::new([171; 32]);
    let passphrase = phrase("correct horse battery");
    let printed = format!("{secret:?} {passphrase:?}");
    assert!(
        !printed.contains("171") && !printed.contains("horse"),
        "{printed}"
    );
    assert_ne!(
        Secret::random().expect("random"),
        Secret::random().expect("random")
    );
}

#[test]
#[ignore = "a measurement, for a release build"]
fn how_long_a_key_takes() {
    let dir = tempdir().expect("dir");
    let path = dir.path().join("key");
    let passphrase = phrase("correct horse battery");
    let start = std::time::Instant::now();
    let (key, cost) = (Secret::new([7; 32]), Cost::Standard);
    create_at(&path, &key, &passphrase, cost).expect("created");
    let created = start.elapsed();
    open(&path, &passphrase).expect("opened");
    let heavy = write(&dir, "heavy", HEAVY, 0o600);
    let opened = start.elapsed() - created;
    open(&heavy, &phrase("testpassword")).expect_err("wrong");
    let total = start.elapsed();
    let line = format!(
        "create {created:?}, open {opened:?}, N = 2^18 {:?}\n",
        total - opened - created
    );
    std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).expect("written");
}
