use clap::CommandFactory;
use farthing_protocol::clock::Timestamp;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::client::scripted::{channel, data, end, receipt, wallet, whole};
use crate::client::{Client, InferError};
use crate::gateway::Gateway;
use crate::gateway::control::Control;
use crate::metrics::Metrics;

fn client() -> Client {
    Client::scripted(|_| {
        let hello = r#"{"choices":[{"delta":{"content":"hel\u001b[2Jlo"}}]}"#;
        Ok(whole(vec![data(hello), end()]))
    })
}

fn view() -> render::View {
    render::View {
        token: wallet().token,
        json: false,
    }
}

/// A data directory with a control socket on it, served until the guard is dropped.
async fn controlled(client: Client) -> (tempfile::TempDir, Config, tokio_util::sync::DropGuard) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config {
        data_dir: dir.path().to_owned(),
        ..Config::default()
    };
    let control = Control::bind(client, dir.path()).await.expect("binds");
    let stop = CancellationToken::new();
    tokio::spawn(control.serve(stop.clone()));
    (dir, config, stop.drop_guard())
}

async fn asked(config: &Config, words: &[&str]) -> Result<String, Failure> {
    let words = ["farthing"].iter().chain(words);
    let cli = Cli::try_parse_from(words).expect("is a command");
    let Command::Receipts(command) = cli.command else {
        return ask(config, cli.command, cli.global.json).await;
    };
    let mut text = Vec::new();
    receipts::run(config, command, &view(), &mut text).await?;
    Ok(String::from_utf8(text).expect("text"))
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
    assert!(Cli::try_parse_from(["farthing", "receipts", "show", "0x12"]).is_err());
    assert!(Cli::try_parse_from(["farthing", "models", "--set", "x"]).is_err());
}

#[tokio::test]
async fn every_report_travels_over_the_control_socket() {
    let (_dir, config, _guard) = controlled(client()).await;
    let id = channel().id.to_string();
    let request = receipt().signed.receipt.request.to_string();
    for (words, expected) in [
        (vec!["models"], "test/model"),
        (vec!["offers"], "120 ms"),
        (vec!["offers", "no/such"], "No offer was heard yet."),
        (vec!["wallet"], "12.345678 USDC (12345678 atoms)"),
        (vec!["channels", "list"], "0.000040 USDC"),
        (
            vec!["channels", "top-up", &id, "500"],
            "TopUp { amount: Some(Amount(500)) }",
        ),
        (vec!["channels", "withdraw", &id], "Withdraw"),
        (vec!["channels", "finalize", &id], "Finalize"),
        (vec!["channels", "refund", &id], "Refund"),
        (vec!["receipts", "list"], "0.000011 USDC"),
        (
            vec!["receipts", "show", &request],
            "10 prompt (0 cached), 20 answer",
        ),
        (vec!["receipts", "export"], "\"signature\":\"0x"),
        (
            vec!["receipts", "export", "--format", "csv"],
            "\"test/model\",complete,10,0,20,11,",
        ),
        (vec!["wallet", "--json"], "\"balance\": \"12345678\""),
    ] {
        let text = asked(&config, &words).await.expect("is answered");
        assert!(text.contains(expected), "{words:?}: {text}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_said() {
    let (_dir, config, _guard) = controlled(client()).await;
    let other = format!("0x{}", "11".repeat(32));
    let error = asked(&config, &["channels", "refund", &other]).await;
    assert_eq!(
        error.expect_err("is refused").to_string(),
        format!("there is no channel {other}")
    );
}

#[tokio::test]
async fn without_a_gateway_the_user_is_told_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config {
        data_dir: dir.path().to_owned(),
        ..Config::default()
    };
    let error = asked(&config, &["wallet"]).await.expect_err("none runs");
    assert!(
        error
            .to_string()
            .contains("start one with `farthing gateway`"),
        "{error}"
    );
    // A socket that a crash left behind.
    let socket = dir.path().join(crate::gateway::control::SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    let error = asked(&config, &["wallet"]).await.expect_err("none runs");
    assert!(error.to_string().contains("no gateway runs"), "{error}");
    assert!(Control::bind(client(), dir.path()).await.is_ok());
}

#[tokio::test]
async fn one_data_directory_has_one_gateway() {
    let (dir, _config, _guard) = controlled(client()).await;
    let second = Control::bind(client(), dir.path()).await;
    assert!(
        second
            .expect_err("is taken")
            .to_string()
            .contains("control.sock")
    );
}

async fn chatted(client: Client) -> (String, Result<(), Failure>) {
    let (_dir, mut config, _guard) = controlled(client.clone()).await;
    config.gateway.listen.set_port(0);
    let gateway = Gateway::bind(client, config.gateway.clone(), Metrics::default()).await;
    let gateway = gateway.expect("binds");
    config.gateway.listen = gateway.address();
    let stop = CancellationToken::new();
    tokio::spawn(gateway.serve(stop.clone()));
    let question = chat::Question {
        model: None,
        max_tokens: Some(5),
        prompt: "hi".into(),
        api_key: None,
    };
    let mut out = Vec::new();
    let result = chat::chat(&config, question, &mut out).await;
    stop.cancel();
    (String::from_utf8(out).expect("is text"), result)
}

#[tokio::test]
async fn a_chat_prints_the_answer_then_seller_and_price() {
    let (text, result) = chatted(client()).await;
    result.expect("is answered");
    assert!(
        text.starts_with("hel[2Jlo\n\ntest/model from 12D3KooW"),
        "{text}"
    );
    assert!(
        text.contains("for 0.000011 USDC (11 atoms), receipt 3"),
        "{text}"
    );
    assert!(text.ends_with("chosen: the only one\n"), "{text}");
}

#[tokio::test]
async fn a_chat_that_fails_says_why() {
    let refusing = Client::scripted(|_| Err(InferError::SpendLimit("5 of 5 atoms today".into())));
    let (_, result) = chatted(refusing).await;
    let error = result.expect_err("is refused").to_string();
    assert_eq!(error, "spend limit reached: 5 of 5 atoms today");
    let breaking = Client::scripted(|_| {
        let gone = InferError::Interrupted("gone".into());
        Ok(whole(vec![data("{}"), Err(gone)]))
    });
    let (_, result) = chatted(breaking).await;
    let error = result.expect_err("breaks").to_string();
    assert_eq!(error, "the answer broke off: gone");
}

#[tokio::test]
async fn init_writes_a_configuration_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().join("new");
    let config = Config {
        data_dir: data_dir.clone(),
        ..Config::default()
    };
    let file = data_dir.join(CONFIG_FILE);
    let text = local::init(&config, &file, &passphrase())
        .await
        .expect("makes it");
    assert!(
        text.contains("(written)") && text.contains("Send USDC"),
        "{text}"
    );
    std::fs::write(&file, "# mine\n").expect("is written");
    let text = local::init(&config, &file, &passphrase())
        .await
        .expect("keeps it");
    assert!(text.contains("(kept as it was)"), "{text}");
    assert_eq!(
        std::fs::read_to_string(&file).expect("is there"),
        "# mine\n"
    );
}

#[test]
fn tables_align_and_hide_control_characters() {
    let mut channel = channel();
    let table = view().channels(std::slice::from_ref(&channel));
    let mut lines = table.lines();
    let (head, row) = (lines.next().expect("a head"), lines.next().expect("a row"));
    let column = |line: &str, text: &str| line.find(text).expect(text);
    assert_eq!(column(head, "SELLER"), column(row, &channel.seller.short()));
    let right = |line: &str, text: &str| column(line, text) + text.len();
    assert_eq!(right(head, "CHARGED"), right(row, "0.000040 USDC"));
    channel.phase = crate::report::ChannelPhase::Withdrawing {
        amount: Amount::atoms(1),
        ready: Timestamp(1_753_900_000_000),
    };
    let table = view().channels(&[channel]);
    assert!(
        table.contains("withdrawing until 2025-07-30 18:26:40Z"),
        "{table}"
    );
    assert_eq!(render::safe("a\u{1b}[2Jb\r\n"), "a[2Jb\n");
}

fn passphrase() -> Passphrase {
    Passphrase::new("a long enough secret".to_owned()).expect("long enough")
}
