//! Tests of the single checks; the whole list is tested end to end.

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::payment::{
    BatchExtra, Caip2, Fields, PAYMENT_REQUIRED, PaymentRequired, PaymentRequirements, Resource,
    encode, fields, scheme,
};
use farthing_protocol::testing;

use super::*;
use crate::cli::keys;
use crate::config::HttpConfig;
use crate::http::Certificate;

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

/// A certificate of so many days from `NOW` on, and its key, in files.
fn certificate(dir: &std::path::Path, name: &str, days: (i64, i64)) -> HttpConfig {
    let day = |days: i64| {
        rcgen::date_time_ymd(2026, 1, 1) + std::time::Duration::from_secs(86_400) * i32_of(days)
    };
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    (params.not_before, params.not_after) = (day(days.0), day(days.1));
    let key = rcgen::KeyPair::generate().expect("makes one");
    let made = params.self_signed(&key).expect("signs");
    let http = HttpConfig {
        tls_certificate: Some(dir.join(format!("{name}.pem"))),
        tls_key: Some(dir.join(format!("{name}.key"))),
        ..HttpConfig::default()
    };
    let write = |path: &Option<std::path::PathBuf>, text: String| {
        std::fs::write(path.as_ref().expect("given"), text).expect("writes");
    };
    write(&http.tls_certificate, made.pem());
    write(&http.tls_key, key.serialize_pem());
    http
}

fn i32_of(days: i64) -> u32 {
    u32::try_from(days).expect("small")
}

/// 2026-01-01.
const NEW_YEAR: Timestamp = Timestamp(1_767_225_600_000);

#[test]
fn a_certificate_is_read_fits_its_key_and_is_valid_or_it_is_said_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |http: &HttpConfig, days: u64| {
        let now = NEW_YEAR.plus(Duration::from_secs(86_400) * i32_of(days.cast_signed()));
        door::tls(&Certificate::read(http), now).expect("is checked")
    };
    let good = certificate(dir.path(), "good", (10, 100));
    let fine = check(&good, 50);
    assert!(matches!(fine.outcome, Outcome::Ok(_)), "{fine:?}");
    let soon = check(&good, 90);
    assert!(matches!(soon.outcome, Outcome::Warning { .. }), "{soon:?}");
    let gone = check(&good, 101);
    assert!(
        gone.is_problem() && todo(&gone).contains("renew"),
        "{gone:?}"
    );
    let early = check(&good, 1);
    assert!(
        early.is_problem() && todo(&early).contains("clock"),
        "{early:?}"
    );
    let other = certificate(dir.path(), "other", (0, 100));
    let mixed = HttpConfig {
        tls_key: other.tls_key.clone(),
        ..good.clone()
    };
    let mixed = check(&mixed, 50);
    assert!(mixed.is_problem(), "{mixed:?}");
    assert!(show(&[mixed]).contains("the key of another certificate"));
    let nothing = HttpConfig {
        tls_certificate: Some(dir.path().join("nothing.pem")),
        ..good
    };
    let nothing = check(&nothing, 50);
    assert!(
        nothing.is_problem() && todo(&nothing).contains("PEM"),
        "{nothing:?}"
    );
    let shut = door::tls(&Certificate::read(&HttpConfig::default()), NEW_YEAR);
    assert_eq!(shut, None);
}

/// What a node with this configuration answers without a payment.
fn required(config: &Config, claim: Address) -> PaymentRequired {
    let chain = &config.chain;
    let extra = BatchExtra {
        receiver_authorizer: claim,
        withdraw_delay: chain.withdraw_delay.as_secs(),
        name: chain.token_name.clone(),
        version: chain.token_version.clone(),
        min_deposit: Some(chain.min_deposit),
        channel_state: None,
        voucher_state: None,
    };
    PaymentRequired {
        x402_version: 2,
        error: None,
        resource: Resource {
            url: "https://node.example/v1/chat/completions".into(),
            ..Resource::default()
        },
        accepts: vec![PaymentRequirements {
            scheme: scheme::BATCH.into(),
            network: Caip2(chain.chain_id),
            amount: Amount::atoms(30),
            asset: chain.token,
            pay_to: chain.payout.unwrap_or(claim),
            max_timeout_seconds: 300,
            extra: fields(&extra),
        }],
        extensions: Fields::new(),
    }
}

/// A server that answers everything with this status and price.
async fn priced(status: u16, required: Option<PaymentRequired>) -> SocketAddr {
    let answer = move || async move {
        let mut headers = axum::http::HeaderMap::new();
        if let Some(required) = &required {
            let text = encode(required).expect("short");
            headers.insert(PAYMENT_REQUIRED, text.parse().expect("text"));
        }
        (
            axum::http::StatusCode::from_u16(status).expect("a status"),
            headers,
            "{}",
        )
    };
    let routes = axum::Router::new().fallback(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(axum::serve(listener, routes).into_future());
    address
}

#[tokio::test]
async fn a_running_door_is_asked_for_its_price_and_other_terms_are_named() {
    let claim = testing::evm_key(1).address();
    let mut config = Config {
        models: vec![model("a/b")],
        ..Config::default()
    };
    config.http.public_url = Some("https://node.example".into());
    let good = required(&config, claim);
    let asked = async |status, required| {
        let at = priced(status, required).await;
        door::asked(&config, Some(claim), (at, None)).await
    };
    let fine = asked(402, Some(good.clone())).await;
    assert!(matches!(fine.outcome, Outcome::Ok(_)), "{fine:?}");
    let with = |change: fn(&mut PaymentRequired)| {
        let mut other = good.clone();
        change(&mut other);
        Some(other)
    };
    for (status, required, named) in [
        (200, Some(good.clone()), "answers 200"),
        (402, None, "no node of ours"),
        (
            402,
            with(|it| it.accepts[0].pay_to = Address::ZERO),
            "payTo",
        ),
        (402, with(|it| it.accepts[0].asset = Address::ZERO), "asset"),
        (402, with(|it| it.accepts[0].network = Caip2(1)), "network"),
        (
            402,
            with(|it| it.accepts[0].amount = Amount::ZERO),
            "amount",
        ),
        (
            402,
            with(|it| it.accepts[0].scheme = "exact".into()),
            "batch-settlement",
        ),
        (
            402,
            with(|it| drop(it.accepts[0].extra.insert("minDeposit".into(), "7".into()))),
            "minDeposit",
        ),
        (
            402,
            with(|it| {
                drop(
                    it.accepts[0]
                        .extra
                        .insert("withdrawDelay".into(), 901.into()),
                )
            }),
            "withdrawDelay",
        ),
        (
            402,
            with(|it| it.resource.url = "http://elsewhere/v1".into()),
            "http.public_url",
        ),
    ] {
        let check = asked(status, required).await;
        assert!(check.is_problem(), "{named}: {check:?}");
        assert!(
            show(std::slice::from_ref(&check)).contains(named),
            "{named}: {check:?}"
        );
        assert!(todo(&check).contains("http.listen"));
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let free = taken.local_addr().expect("bound");
    drop(taken);
    config.http.listen = Some(free);
    let checks = door::door(&config, Some(claim), None).await;
    assert!(checks.iter().all(|check| !check.is_problem()), "{checks:?}");
}

#[test]
fn what_the_chain_lacks_for_single_payments_is_told_apart() {
    let absent = ChainError::ContractAbsent {
        what: "Permit2",
        address: Address::ZERO,
    };
    let lacking = door::upto(Err(absent.clone()));
    assert!(
        matches!(lacking.outcome, Outcome::Warning { .. }),
        "{lacking:?}"
    );
    assert!(door::exact(Err(absent)).is_problem());
    let away = || Err(ChainError::Unavailable("refused".into()));
    for check in [door::exact(away()), door::upto(away())] {
        assert!(todo(&check).contains("try again"), "{check:?}");
    }
    assert!(matches!(door::upto(Ok(())).outcome, Outcome::Ok(_)));
    let unsigned = door::public_url(&HttpConfig::default());
    assert!(todo(&unsigned.expect("is said")).contains("http.public_url"));
}

fn network(bootstrap: Vec<String>) -> Config {
    let mut config = Config::default();
    config.network.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
    config.network.mdns = false;
    config.network.bootstrap = bootstrap;
    config
}

#[tokio::test]
async fn a_node_that_nobody_can_find_or_whose_peers_are_away_is_told_so() {
    let nobody = reach::reach(&network(Vec::new()), &[]).await;
    assert!(nobody[0].is_problem() && todo(&nobody[0]).contains("network.bootstrap"));
    let free = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let peer = testing::node_key(9).id();
    let away = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{peer}");
    let in_use = [Check::warning("port", "in use", "set another")];
    let checks = reach::reach(&network(vec![away]), &in_use).await;
    assert!(
        todo(&checks[0]).contains("reaches the Internet"),
        "{checks:?}"
    );
    assert!(
        todo(&checks[1]).contains("farthing-node status"),
        "{checks:?}"
    );
}

#[test]
fn each_reason_why_strangers_cannot_come_is_told_with_what_to_do() {
    use farthing_protocol::net::{Barrier, ConnectError, Reachability};
    let config = network(Vec::new());
    for (barrier, remedy) in [
        (Barrier::NotListening, "network.listen"),
        (Barrier::Alone, "network.bootstrap"),
        (Barrier::PrivateAddress, "network.external"),
        (Barrier::PortClosed, "firewall"),
        (Barrier::NoRelay, "relay"),
        (Barrier::RelayRefused, "another relay"),
    ] {
        let check = reach::reached(&config, Reachability::Unreachable(barrier));
        assert!(
            check.is_problem() && todo(&check).contains(remedy),
            "{check:?}"
        );
        let relayed = Reachability::Relayed { relays: 1, barrier };
        let check = reach::reached(&config, relayed);
        assert!(
            !check.is_problem() && todo(&check).contains(remedy),
            "{check:?}"
        );
    }
    let open = reach::reached(&config, Reachability::Tested);
    assert!(matches!(open.outcome, Outcome::Ok(_)));
    let wrong = reach::bootstrap("/a", Some(ConnectError::WrongPeer));
    assert!(todo(&wrong).contains("/p2p/"));
}

#[test]
fn a_clock_that_is_ahead_or_behind_is_told_apart() {
    let now = Timestamp(1_790_000_000_000);
    let block = |seconds: i64| Ok((1_790_000_000 + seconds) as u64);
    assert!(matches!(
        reach::told(block(-5), now).outcome,
        Outcome::Ok(_)
    ));
    assert!(reach::told(block(3_600), now).is_problem());
    let ahead = reach::told(block(-3_600), now);
    assert!(
        !ahead.is_problem() && todo(&ahead).contains("timedatectl"),
        "{ahead:?}"
    );
}
