//! `farthing mcp` as an agent has it: started by its host, spoken to over its standard input and
//! output, within what its session may spend.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use farthing_client::config::Strategy;
use farthing_client::gateway::control::Control;
use farthing_protocol::amount::Amount;
use farthing_tests::clients;
use farthing_tests::street::{Buyer, MODEL, PATIENCE, RunningGateway, Street, TestNet};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How an agent's host starts it on a data directory.
fn command(data_dir: &Path, gateway: &str, per_session: u32) -> Vec<String> {
    let set = |text: String| ["--set".to_owned(), text];
    let words = [env!("CARGO_BIN_EXE_agent").to_owned(), "mcp".to_owned()];
    let dir = data_dir.display();
    words
        .into_iter()
        .chain(["--data-dir".to_owned(), dir.to_string()])
        .chain(set(format!("gateway.listen={gateway}")))
        .chain(set("mcp.per_call=100".to_owned()))
        .chain(set(format!("mcp.per_session={per_session}")))
        .collect()
}

/// A buyer's gateway with its control socket.
async fn open(buyer: &Buyer) -> (RunningGateway, DropGuard) {
    let control = Control::bind(buyer.client().clone(), &buyer.config.data_dir).await;
    let stop = CancellationToken::new();
    tokio::spawn(control.expect("binds").serve(stop.clone()));
    let gateway = RunningGateway::free(buyer).await.expect("listens");
    (gateway, stop.drop_guard())
}

/// A session of the stock client; what it says that it bought.
async fn stock(server: &[String], settings: &[(&str, &str)]) -> Vec<Value> {
    let mut command = clients::python("agents", "mcp_agent.py");
    command
        .env("SERVER", json!(server).to_string())
        .env("MODEL", MODEL)
        .envs(settings.iter().copied());
    let out = clients::run(command).await;
    println!("{out}");
    let said: Value = serde_json::from_str(&out).expect("one line of JSON");
    said["bought"].as_array().expect("a list").clone()
}

async fn street(behaviour: Behaviour) -> Street {
    let net = TestNet::new().sellers(2).upstreams(behaviour);
    let net = net.buyer_config(|_, config| config.router.strategy = Strategy::Cheapest);
    net.start().await.expect("starts")
}

/// The stock client in one of its two ways to agree on a version.
async fn a_session(mode: &str) {
    let street = street(Behaviour::default()).await;
    let buyer = &street.buyers[0];
    let (gateway, _control) = open(buyer).await;
    let address = gateway.address().to_string();
    let server = command(&buyer.config.data_dir, &address, 150);
    let bought = stock(&server, &[("MODE", mode)]).await;
    let charged = bought.iter().map(|one| one["charged"].as_u64());
    let charged: u64 = charged.map(|atoms| atoms.expect("a number")).sum();
    let books = street.settled().await.expect("agrees");
    assert_eq!(books, Amount::atoms(charged.into()));
    let asked: u64 = street.sellers.iter().map(|one| one.upstream.count()).sum();
    assert_eq!(asked, bought.len() as u64, "what is refused reaches nobody");
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_host_buys_within_its_limits_and_not_beyond_them() {
    a_session("auto").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_host_of_an_older_protocol_finds_the_same() {
    a_session("legacy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_told_to_start_the_gateway_when_none_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    // A port that somebody else has, who never answers: it is not asked.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("an address").to_string();
    drop(nobody);
    let server = command(dir.path(), &address, 150);
    stock(&server, &[("NO_GATEWAY", "1")]).await;
}

/// The protocol by hand: a message is a line.
struct Host {
    child: Child,
    to: ChildStdin,
    from: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Host {
    async fn start(server: &[String]) -> Self {
        let (program, arguments) = server.split_first().expect("a command");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let to = child.stdin.take().expect("a pipe");
        let from = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut host = Self { child, to, from };
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "by hand", "version": "1"}});
        host.say(json!({"id": 1, "method": "initialize", "params": hello}))
            .await;
        assert_eq!(host.heard().await["id"], 1);
        host.say(json!({"method": "notifications/initialized"}))
            .await;
        host
    }

    async fn say(&mut self, mut message: Value) {
        message["jsonrpc"] = "2.0".into();
        let line = format!("{message}\n");
        self.to.write_all(line.as_bytes()).await.expect("is read");
    }

    async fn call(&mut self, id: u32, tool: &str, arguments: Value) {
        let params = json!({"name": tool, "arguments": arguments});
        self.say(json!({"id": id, "method": "tools/call", "params": params}))
            .await;
    }

    async fn heard(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.from.next_line()).await;
        let line = line.expect("in time").expect("a line").expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Closes its standard input, and waits until it has ended.
    async fn close(self) {
        drop(self.to);
        let mut child = self.child;
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        assert!(ended.expect("in time").expect("ends").success());
    }
}

fn question() -> Value {
    json!({"model": MODEL, "prompt": "How much?", "max_tokens": 16})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_stops_the_seller_and_counts_with_all_it_may_have_cost() {
    let slow = Fault::SlowFirstToken(Duration::from_secs(60));
    let street = street(Behaviour::default().fault(slow)).await;
    let buyer = &street.buyers[0];
    let (gateway, _control) = open(buyer).await;
    let address = gateway.address().to_string();
    let mut host = Host::start(&command(&buyer.config.data_dir, &address, 150)).await;
    host.call(2, "chat", question()).await;
    let upstream = &street.sellers[0].upstream;
    upstream.started(1).await;
    let params = json!({"requestId": 2, "reason": "enough"});
    host.say(json!({"method": "notifications/cancelled", "params": params}))
        .await;
    upstream.disconnected(1).await;
    host.call(3, "balance", json!({})).await;
    let answer = host.heard().await;
    assert_eq!(answer["id"], 3, "a cancelled call has no answer");
    let session = &answer["result"]["structuredContent"]["session"];
    assert_eq!(session["spent"]["atoms"], "100", "{session}");
    assert_eq!(session["left"]["atoms"], "50", "{session}");
    assert_eq!(street.settled().await.expect("agrees"), Amount::ZERO);
    host.close().await;
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_at_once_cannot_spend_more_than_the_session_has() {
    let street = street(Behaviour::default()).await;
    let buyer = &street.buyers[0];
    let (gateway, _control) = open(buyer).await;
    let address = gateway.address().to_string();
    let mut host = Host::start(&command(&buyer.config.data_dir, &address, 100)).await;
    for id in 2..10 {
        host.call(id, "chat", question()).await;
    }
    let mut charged = 0;
    for _ in 2..10 {
        let answer = host.heard().await;
        let result = &answer["result"];
        if result["isError"] == json!(true) {
            let text = result["content"][0]["text"].as_str().expect("words");
            assert!(text.contains("mcp.per_session"), "{text}");
            continue;
        }
        let atoms = result["structuredContent"]["charged"]["atoms"].as_str();
        let atoms: u128 = atoms.expect("text").parse().expect("a number");
        charged += atoms;
    }
    assert!((1..=100).contains(&charged), "{charged}");
    let books = street.settled().await.expect("agrees");
    assert_eq!(books, Amount::atoms(charged));
    host.close().await;
    gateway.stop().await;
    street.stop().await;
}
