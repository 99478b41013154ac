//! Tests of the configuration as a whole.

use farthing_protocol::testing;

use super::*;

fn load(text: &str, overrides: &[Override]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).expect("writes");
    Config::load(Some(&path), overrides)
}

fn fault(text: &str, overrides: &[Override]) -> String {
    load(text, overrides).expect_err("refused").to_string()
}

fn env(name: &str, value: &str) -> Override {
    let pair = (OsString::from(name), OsString::from(value));
    from_variables([pair]).expect("text").remove(0)
}

/// The example with the keys that have no default taken in.
fn full_example() -> String {
    let uncomment = |line: &str| {
        let key = line
            .strip_prefix('#')
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['));
        key.unwrap_or(line).to_owned() + "\n"
    };
    EXAMPLE.lines().map(uncomment).collect()
}

#[test]
fn the_example_is_the_default() {
    let example: Config = toml::from_str(EXAMPLE).expect("parses");
    assert_eq!(example, Config::default());
    assert_eq!(example.validate(), []);
}

#[test]
fn the_example_shows_every_key_that_has_no_default() {
    let config: Config = toml::from_str(&full_example()).expect("parses");
    assert_eq!(config.validate(), []);
    let written = Value::try_from(&config).expect("serializes");
    for key in [
        "passphrase_file",
        "chain.payout",
        "upstream.api_key_file",
        "upstream.command.ready_timeout",
        "offer.region",
        "offer.data_policy",
        "metrics.listen",
        "http.listen",
        "http.tls_certificate",
        "http.tls_key",
        "http.public_url",
    ] {
        assert!(lookup(&written, key).is_some(), "{key}");
    }
    let model = written["models"][0].as_table().expect("a table");
    assert_eq!(model.len(), 10, "{model:?}");
    assert_eq!(model["prices"].as_table().map(Table::len), Some(4));
}

#[test]
fn the_default_network_is_the_development_network() {
    assert_eq!(Config::default().chain.network(), testing::network());
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let file = "[limits]\nslots = 2\n[upstream]\nbase_url = \"http://file/v1\"";
    let variable = env("FARTHING_NODE_UPSTREAM__BASE_URL", "http://env/v1");
    let flag = Override::flag("--set", "upstream.base_url", "http://flag/v1");
    let config = load(file, &[variable.clone(), flag]).expect("loads");
    assert_eq!(config.upstream.base_url, "http://flag/v1");
    let config = load(file, &[variable]).expect("loads");
    assert_eq!(config.upstream.base_url, "http://env/v1");
    assert_eq!(config.limits.slots, 2);
    assert_eq!(config.limits.purchases_per_buyer, 64);
}

#[test]
fn a_variable_is_read_as_its_key_is_written() {
    let set = [
        env("FARTHING_NODE_LIMITS__SLOTS", "7"),
        env("FARTHING_NODE_LIMITS__EXPOSURE_PER_PAYER", "123"),
        env("FARTHING_NODE_CHAIN__RPC", "[\"http://a\", \"http://b\"]"),
        env("FARTHING_NODE_NETWORK__MDNS", "false"),
        env(
            "FARTHING_NODE_CHAIN__PAYOUT",
            "0x7777777777777777777777777777777777777777",
        ),
        env("FARTHING_NODE_METRICS__LISTEN", "127.0.0.1:1"),
    ];
    let config = load("", &set).expect("loads");
    assert_eq!(config.limits.slots, 7);
    assert_eq!(config.limits.exposure_per_payer, Amount::atoms(123));
    assert_eq!(config.chain.rpc.len(), 2);
    assert!(!config.network.mdns);
    assert_eq!(config.chain.payout, Some(testing::payout()));
    assert!(config.metrics.listen.is_some());
}

#[test]
fn variables_of_the_command_line_are_no_keys() {
    let reserved = ENV_RESERVED.map(|name| (OsString::from(name), OsString::from("x")));
    assert_eq!(from_variables(reserved).expect("text"), []);
}

#[test]
fn errors_name_the_key_and_where_it_was_set() {
    let unknown = fault("[upstream]\nbase_ulr = \"http://a/v1\"", &[]);
    assert!(
        unknown.contains("base_ulr") && unknown.contains("node.toml"),
        "{unknown}"
    );
    let kind = fault("[limits]\nslots = \"many\"", &[]);
    assert!(kind.contains("slots") && kind.contains("line 2"), "{kind}");
    let amount = fault("[chain]\nmin_deposit = \"1.5\"", &[]);
    assert!(amount.contains("min_deposit"), "{amount}");
    let variable = fault("", &[env("FARTHING_NODE_LIMITS__SLOT", "1")]);
    assert!(
        variable.contains("slot") && variable.contains("FARTHING_NODE_LIMITS__SLOT"),
        "{variable}"
    );
}

#[test]
fn a_public_chain_must_be_written_out() {
    let mut text = "[chain]\nchain_id = 8453\n".to_owned();
    for (key, value) in [
        ("rpc", "[\"https://rpc\"]"),
        (
            "settlement",
            "\"0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003\"",
        ),
        (
            "collector",
            "\"0x4020806089470a89826cB9fB1f4059150b550004\"",
        ),
        ("token", "\"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913\""),
        ("token_name", "\"USD Coin\""),
        ("token_version", "\"2\""),
        ("payout", "\"0x7777777777777777777777777777777777777777\""),
    ] {
        let missing = fault(&text, &[]);
        assert!(missing.contains(&format!("`chain.{key}`")), "{missing}");
        text.push_str(&format!("{key} = {value}\n"));
    }
    assert!(!load(&text, &[]).expect("loads").chain.is_local());
}

#[test]
fn the_example_with_another_chain_id_alone_is_refused() {
    let text = EXAMPLE.replace("chain_id = 31337", "chain_id = 8453");
    let wrong = fault(&text, &[]);
    assert!(wrong.contains("`chain.token`"), "{wrong}");
    assert!(wrong.contains("`chain.payout`"), "{wrong}");
}

#[test]
fn values_without_sense_are_all_named() {
    let text = r#"
        [chain]
        rpc = ["ftp://x"]
        withdraw_delay = "1m"
        [network]
        listen = ["localhost:1"]
        [offer]
        refresh = "10m"
        [upstream]
        idle_timeout = "0s"
        [limits]
        max_body = 8388608
        [[models]]
        id = "noauthor"
        context = 16
        prices = { input = 1, output = 1 }
    "#;
    let found = match load(text, &[]) {
        Err(ConfigError::Invalid(found)) => found,
        _ => Vec::new(),
    };
    let keys: Vec<&str> = found.iter().map(|invalid| invalid.key.as_str()).collect();
    let expected = [
        "chain.rpc",
        "chain.withdraw_delay",
        "network.listen",
        "upstream.idle_timeout",
        "models[0].id",
        "models[0].max_output",
        "offer.refresh",
        "limits.max_body",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn a_relay_that_one_address_could_fill_is_refused_with_what_to_do() {
    let lends = |circuits: u32, serve: bool| {
        format!("[network.relay]\nserve = {serve}\ncircuits = {circuits}\ncircuits_per_peer = 4")
    };
    let told = fault(&lends(319, true), &[]);
    assert!(
        told.contains("`network.relay.circuits` is below 320")
            && told.contains("circuits_per_peer"),
        "{told}"
    );
    assert!(load(&lends(320, true), &[]).is_ok());
    assert!(load(&lends(128, false), &[]).is_ok(), "it lends nothing");
}

#[test]
fn the_http_door_is_not_opened_to_others_in_the_clear() {
    let public = "[http]\nlisten = \"0.0.0.0:4021\"\n";
    let told = fault(public, &[]);
    assert!(
        told.contains("http.tls_certificate") && told.contains("127.0.0.1"),
        "{told}"
    );
    let half = format!("{public}tls_certificate = \"/a\"");
    assert!(fault(&half, &[]).contains("`http.tls_certificate` is of no use without"));
    let whole = format!("{half}\ntls_key = \"/b\"");
    assert!(load(&whole, &[]).is_ok());
    assert!(load("[http]\nlisten = \"[::1]:4021\"", &[]).is_ok());
}

#[test]
fn home_is_expanded_when_loading() {
    let config = load("", &[]).expect("loads");
    assert!(config.data_dir.is_absolute(), "{:?}", config.data_dir);
}
