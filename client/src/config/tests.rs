use std::collections::BTreeSet;
use std::io::Write;

use toml::{Table, Value};

use super::layers::{LoadError, Sources, keys};
use super::*;

const EXAMPLE: &str = include_str!("../../client.example.toml");

fn file(text: &str) -> (tempfile::NamedTempFile, Sources) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("is written");
    let sources = Sources {
        file: Some(file.path().to_owned()),
        ..Sources::default()
    };
    (file, sources)
}

fn load(text: &str) -> Result<Config, String> {
    file(text).1.load().map_err(|e| e.to_string())
}

fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    given.iter().map(own).collect()
}

#[test]
fn the_example_file_is_the_default() {
    assert_eq!(load(EXAMPLE), Ok(Config::default()));
    assert_eq!(Config::default().check(), Ok(()));
}

#[test]
fn the_example_file_lists_every_key_with_a_comment() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let table: Table = toml::from_str(&uncommented).expect("is TOML");
    let mut listed = BTreeSet::new();
    for (name, value) in &table {
        match value {
            Value::Table(inner) if name != "aliases" => {
                let keys = inner.iter().filter(|(_, value)| !value.is_table());
                listed.extend(keys.map(|(key, _)| format!("{name}.{key}")));
            }
            Value::Table(_) => {}
            Value::Array(_) if ["x402", "upstream", "auto"].contains(&name.as_str()) => {}
            _ => {
                listed.insert(name.clone());
            }
        }
    }
    let known: BTreeSet<_> = keys().map(str::to_owned).collect();
    assert_eq!(listed, known);
    for line in EXAMPLE.lines().filter(|line| line.contains(" = ")) {
        assert!(line.contains(" # "), "{line} has no comment");
    }
}

#[test]
fn flags_go_over_the_environment_and_that_over_the_file() {
    let (_file, mut sources) =
        file("[gateway]\nmax_body = 1\ndeadline = \"1s\"\nkeep_alive = \"1s\"");
    sources.environment = pairs(&[
        ("FARTHING_GATEWAY_DEADLINE", "2s"),
        ("FARTHING_GATEWAY_KEEP_ALIVE", "2s"),
        ("FARTHING_CHAIN_RPC", "http://a, http://b"),
        ("FARTHING_SPEND_PER_DAY", "7"),
        ("HOME", "/home/agent"),
    ]);
    sources.flags = pairs(&[("gateway.keep_alive", "3s"), ("network.mdns", "false")]);
    let config = sources.load().expect("loads");
    assert_eq!(config.gateway.max_body, 1);
    assert_eq!(config.gateway.deadline, Duration::from_secs(2));
    assert_eq!(config.gateway.keep_alive, Duration::from_secs(3));
    assert_eq!(config.chain.rpc, ["http://a", "http://b"]);
    assert_eq!(config.spend.per_day, Amount::atoms(7));
    assert!(!config.network.mdns);
    let data_dir = "/home/agent/.local/share/farthing/client";
    assert_eq!(config.data_dir, PathBuf::from(data_dir));
}

#[test]
fn an_error_names_the_key() {
    for (text, key) in [
        ("[gateway]\nlisen = \"x\"", "lisen"),
        ("[spend]\nper_day = 5", "per_day"),
        ("[spend]\nper_day = \"-5\"", "per_day"),
        ("[router]\nidle = \"soon\"", "idle"),
        ("[router]\nidle = \"0s\"", "router.idle"),
        ("[router]\nhedge = 101", "router.hedge"),
        ("[gateway]\nlisten = \"0.0.0.0:1\"", "gateway.listen"),
        ("[gateway]\nmax_body = 99000000", "gateway.max_body"),
        ("[spend]\ndeposit = \"99000000\"", "spend.deposit"),
        ("[chain]\nrpc = []", "chain.rpc"),
        ("[router]\nexplore = 101", "router.explore"),
        ("[[auto]]\ntasks = [\"code\"]", "auto.models"),
        (
            "[[upstream]]\nurl = \"http://elsewhere.example/v1\"\nmodels = { \"a/b\" = \"b\" }",
            "upstream.url",
        ),
        (
            "[[upstream]]\nurl = \"http://127.0.0.1:1/v1\"\nmodels = {}",
            "upstream.models",
        ),
        ("[[auto]]\nmodels = [\"m\"]\ntasks = [\"dance\"]", "dance"),
    ] {
        let error = load(text).expect_err(text);
        assert!(error.contains(key), "{error}");
    }
    let sources = |environment: &[(&str, &str)], flags: &[(&str, &str)]| Sources {
        file: None,
        environment: pairs(environment),
        flags: pairs(flags),
    };
    let error = sources(&[("FARTHING_SPEND_TOTAL", "lots")], &[]).load();
    let error = error.expect_err("is refused").to_string();
    assert!(
        error.contains("spend.total") && error.contains("FARTHING_SPEND_TOTAL"),
        "{error}"
    );
    let error = sources(&[], &[("spend.all", "1")]).load();
    assert!(matches!(error, Err(LoadError::UnknownKey { .. })));
}

#[test]
fn another_chain_must_be_written_out_in_full() {
    let error = load("[chain]\nchain_id = 8453").expect_err("is refused");
    assert!(
        error.contains("chain.rpc") && error.contains("8453"),
        "{error}"
    );
    let full = r#"
        [chain]
        rpc = ["https://base.example"]
        chain_id = 8453
        settlement = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
        collector = "0x4020806089470a89826cB9fB1f4059150b550004"
        token = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
        token_name = "USD Coin"
        token_version = "2"
        token_symbol = "USDC"
        token_decimals = 6
    "#;
    assert_eq!(
        load(full).expect("loads").chain.network().token_name,
        "USD Coin"
    );
    for line in full
        .lines()
        .filter(|line| line.contains(" = ") && !line.contains("chain_id"))
    {
        let key = line.trim().split(' ').next().expect("a key");
        let error = load(&full.replace(line, "")).expect_err(key);
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn a_public_address_is_allowed_with_keys() {
    let text = "[gateway]\nlisten = \"0.0.0.0:8402\"\napi_keys_file = \"keys\"";
    assert!(load(text).is_ok());
}
