//! Tests of the single checks; the whole list is tested end to end.

use farthing_protocol::testing;

use super::*;
use crate::cli::keys;

fn todo(check: &Check) -> &str {
    match &check.outcome {
        Outcome::Ok(_) => "nothing",
        Outcome::Warning { todo, .. } | Outcome::Problem { todo, .. } => todo,
    }
}

fn model(id: &str) -> ModelConfig {
    let text = format!("id = \"{id}\"\ncontext = 4096\nprices = {{ input = 1, output = 1 }}");
    toml::from_str(&text).expect("parses")
}

#[test]
fn the_list_is_readable_and_says_what_to_do() {
    let checks = [
        Check::ok("one", "fine"),
        Check::warning("two", "hm", "think"),
        Check::problem("three", "bad\nworse", "mend it"),
    ];
    let expected = "ok    one    fine\nnote  two    hm\n             → think\nFAIL  three  bad\n             worse\n             → mend it\n\n1 problem.\n";
    assert_eq!(show(&checks), expected);
    assert!(show(&checks[..2]).ends_with("Ready: `farthing-node run`.\n"));
}

#[test]
fn keys_are_missing_closed_open_or_exposed() {
    let dir = tempfile::tempdir().expect("a directory");
    let secret = Passphrase::new("correct horse battery".into()).expect("long enough");
    let (check, _) = keys_open(dir.path(), Some(&secret));
    assert!(check.is_problem() && todo(&check).contains("init"));
    keys::create(dir.path(), &secret).expect("makes");
    let (check, opened) = keys_open(dir.path(), None);
    assert!(!check.is_problem() && opened.is_none());
    let (check, opened) = keys_open(dir.path(), Some(&secret));
    assert!(matches!(check.outcome, Outcome::Ok(_)) && opened.is_some());
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(keys::claim_file(dir.path()), readable).expect("sets");
    let (check, _) = keys_open(dir.path(), Some(&secret));
    assert!(check.is_problem(), "{check:?}");
}

#[test]
fn a_payout_address_must_be_the_operators_own() {
    let mut config = ChainConfig::default();
    let claim = testing::evm_key(1).address();
    assert!(matches!(
        addresses(&config, None).outcome,
        Outcome::Warning { .. }
    ));
    config.payout = Some(config.token);
    assert!(addresses(&config, None).is_problem());
    config.payout = Some(claim);
    assert!(matches!(
        addresses(&config, Some(claim)).outcome,
        Outcome::Warning { .. }
    ));
    config.payout = Some(testing::payout());
    assert!(matches!(
        addresses(&config, Some(claim)).outcome,
        Outcome::Ok(_)
    ));
}

#[test]
fn each_model_is_looked_for_at_the_server() {
    let discovered = ["b".to_owned(), "c".to_owned()];
    let config = UpstreamConfig::default();
    let checks = found(&config, &[model("a/b"), model("a/x")], &discovered);
    let problems: Vec<bool> = checks.iter().map(Check::is_problem).collect();
    assert_eq!(problems, [false, false, true]);
    assert!(todo(&checks[2]).contains("upstream_name"));
    assert!(todo(&found(&config, &[], &discovered)[1]).contains("[[models]]"));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_a_problem_with_its_reason() {
    let free = TcpListener::bind("127.0.0.1:0").expect("binds");
    let config = UpstreamConfig {
        base_url: format!("http://{}/v1", free.local_addr().expect("bound")),
        command: None,
        ..UpstreamConfig::default()
    };
    drop(free);
    let check = silent(&config, "refused");
    assert!(check.is_problem() && todo(&check).contains("base_url"));
}

#[test]
fn what_the_chain_lacks_is_told_apart() {
    let config = ChainConfig::default();
    assert!(!chain_verified(&config, Ok(())).is_problem());
    let away = chain_verified(&config, Err(ChainError::Unavailable("refused".into())));
    assert!(todo(&away).contains("make demo"), "{away:?}");
    let absent = ChainError::ContractAbsent {
        what: "token",
        address: config.token,
    };
    assert!(todo(&chain_verified(&config, Err(absent))).contains("chain.settlement"));
    let claim = testing::evm_key(1).address();
    assert!(claim_gas(claim, Ok((1, 2))).is_problem());
    assert!(!claim_gas(claim, Ok((0, 0))).is_problem());
    assert!(!claim_gas(claim, Ok((10, 2))).is_problem());
}

#[test]
fn a_port_in_use_may_be_this_nodes() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let number = taken.local_addr().expect("bound").port();
    let check = port(&format!("/ip4/127.0.0.1/tcp/{number}"));
    assert!(
        matches!(check.outcome, Outcome::Warning { .. }),
        "{check:?}"
    );
    let check = port("/ip4/127.0.0.1/udp/0/quic-v1");
    assert!(matches!(check.outcome, Outcome::Ok(_)), "{check:?}");
    let elsewhere = port("/ip4/203.0.113.1/tcp/4801");
    assert!(elsewhere.is_problem(), "{elsewhere:?}");
    assert_eq!(socket_of("/dns4/localhost/tcp/1"), None);
}

#[test]
fn the_data_directory_is_tried_by_writing() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(!data_dir(&dir.path().join("a/b")).is_problem());
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writes");
    assert!(data_dir(&file.join("x")).is_problem());
}
