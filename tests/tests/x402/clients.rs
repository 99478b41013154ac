//! Stock x402 clients, unmodified, against a seller's HTTP door on a real chain. After each one
//! the chain's balances equal the receipts to the atom.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use farthing_node::config::Config as SellerConfig;
use farthing_protocol::amount::Amount;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::payment::{PAYMENT_RESPONSE, SettlementResponse, decode};
use farthing_protocol::testing;
use farthing_protocol::x402::Network;
use farthing_tests::llama::{self, Llama};
use farthing_tests::street::{Ledgers, MODEL, Seller, Street, TestNet, WEALTH, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use x402_chain_eip155::V2Eip155ExactClient;
use x402_reqwest::{ReqwestWithPayments, ReqwestWithPaymentsBuild, X402Client};

/// The smallest deposit the seller takes here: little, so that a top-up comes soon.
const MIN_DEPOSIT: Amount = Amount::atoms(1_000);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `tests/tools/setup.sh` must have put it there: a client that is left out has proven nothing.
fn installed(tool: &str) -> PathBuf {
    let path = root().join(".tools").join(tool);
    assert!(
        path.exists(),
        "no .tools/{tool}: run tests/tools/setup.sh x402"
    );
    path
}

/// A seller with an open door, a chain, and a wallet that has never heard of Farthing.
struct Stage {
    street: Street,
    network: Network,
    wallet: EvmKey,
}

impl Stage {
    async fn on(network: Network) -> Self {
        Self::with(network, |_| {}).await
    }

    async fn with(
        network: Network,
        tweak: impl Fn(&mut SellerConfig) + Send + Sync + 'static,
    ) -> Self {
        let net = TestNet::new()
            .buyers(0)
            .anvil()
            .network(network.clone())
            .http()
            .seller_config(move |_, config| {
                config.chain.min_deposit = MIN_DEPOSIT;
                tweak(config);
            });
        let street = net.start().await.expect("starts");
        let wallet = testing::evm_key(200);
        let rich = street.ledgers.mint(wallet.address(), WEALTH).await;
        rich.expect("mints");
        Self {
            street,
            network,
            wallet,
        }
    }

    fn seller(&self) -> &Seller {
        &self.street.sellers[0]
    }

    /// Runs a client to its end; it says what it saw and what it was charged.
    async fn run(&self, command: Command, settings: &[(&str, &str)]) -> Value {
        let Ledgers::Anvil(anvil) = &self.street.ledgers else {
            unreachable!("stands on anvil");
        };
        let mut command = command;
        command
            .env("SELLER", self.seller().http_url())
            .env("MODEL", MODEL)
            .env("RPC", anvil.url())
            .env("ASSET", self.network.token.to_string())
            .env(
                "PRIVATE_KEY",
                alloy::hex::encode_prefixed(self.wallet.secret()),
            )
            // Whatever proxy the machine has, this is about loopback.
            .env("NO_PROXY", "127.0.0.1")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // Only where they know the token by themselves are they told nothing of it.
        if self.network.token != testing::base_sepolia().token {
            command.env("TOKEN", self.network.token.to_string());
        }
        let output = command.output().await.expect("starts");
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        println!("{out}");
        assert!(output.status.success(), "{out}\n{err}");
        let said: Value = serde_json::from_str(out.trim()).expect("one line of JSON");
        let payer = said["payer"].as_str().expect("an address").parse();
        assert_eq!(payer, Ok(self.wallet.address()));
        said
    }

    async fn holds(&self, account: Address) -> Amount {
        let chain = self.street.ledgers.chain().expect("a chain");
        chain.token_balance(account).await.expect("answers")
    }

    /// The sum of all receipts, once nothing runs any more. The books say the same.
    async fn sold(&self) -> Amount {
        let ledger = self.seller().node().ledger();
        let idle = eventually("the seller is idle", || ledger.running() == 0);
        idle.await.expect("in time");
        let channels = self.seller().channels().into_iter();
        let receipts = channels.flat_map(|(id, _)| {
            let receipts = ledger.receipts(id, 0, usize::MAX);
            receipts.expect("are on disk")
        });
        let charges = receipts.map(|receipt| receipt.charged);
        let sum = charges.fold(Amount::ZERO, Amount::saturating_add);
        assert_eq!(sum, self.seller().charged());
        sum
    }

    /// What the client says it was charged is what the receipts say, and what the chain says:
    /// the payer is poorer by it, the seller richer, and nothing is left between them.
    async fn assert_settled(&self, said: &Value) {
        let charged = said["charged"].as_str().expect("digits").parse();
        let charged = Amount::atoms(charged.expect("atoms"));
        assert!(!charged.is_zero());
        assert_eq!(self.sold().await, charged);
        let claimed = self.seller().node().settlement().claim().await;
        claimed.expect("claims");
        assert_eq!(self.holds(self.seller().payout()).await, charged);
        let left = self.holds(self.network.settlement).await;
        let spent = charged.add(left).expect("small");
        let payer = self.holds(self.wallet.address()).await;
        assert_eq!(payer.add(spent), Ok(WEALTH));
        // What is left in the contract is what the chain holds of these channels.
        let chain = self.street.ledgers.chain().expect("a chain");
        let mut unspent = Amount::ZERO;
        for (id, _) in self.seller().channels() {
            let channel = chain.channel(id).await.expect("answers");
            let rest = channel.balance.sub(channel.claimed).expect("covered");
            unspent = unspent.saturating_add(rest);
        }
        assert_eq!(unspent, left);
    }
}

/// The scripts in a folder whose packages are those of `.tools/x402`.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let packages = installed("x402/node_modules/@x402/fetch");
        let packages = packages.ancestors().nth(2).expect("two up");
        let packages = packages.canonicalize().expect("is there");
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(packages, folder.path().join("node_modules")).expect("linked");
        let scripts = std::fs::read_dir(root().join("tests/clients/x402")).expect("is there");
        for script in scripts {
            let script = script.expect("an entry").path();
            let name = script.file_name().expect("a name");
            std::fs::copy(&script, folder.path().join(name)).expect("copied");
        }
        Self { folder }
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("node");
        command.arg(self.folder.path().join(name));
        command
    }
}

fn python() -> Command {
    let mut command = Command::new(installed("x402-python/bin/python"));
    command.arg(root().join("tests/clients/x402/agent.py"));
    command
}

async fn lives_through_everything(network: Network) {
    let (node, stage) = (Node::new(), Stage::on(network).await);
    let said = stage.run(node.script("batch.mjs"), &[]).await;
    stage.assert_settled(&said).await;
    // Everything that was not spent has come back.
    assert_eq!(stage.holds(stage.network.settlement).await, Amount::ZERO);
    stage.street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_fetch_takes_a_channel_through_its_whole_life_on_anvil() {
    lives_through_everything(testing::network()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_fetch_needs_no_configuration_on_base_sepolia_s_id_on_anvil() {
    lives_through_everything(testing::base_sepolia()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_over_a_paying_fetch_buys_documents_and_streams_on_anvil() {
    let (node, stage) = (Node::new(), Stage::on(testing::base_sepolia()).await);
    stage.run(node.script("openai.mjs"), &[]).await;
    let said = json!({ "charged": stage.sold().await.to_string() });
    stage.assert_settled(&said).await;
    stage.street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_extensions_believes_the_sellers_signed_offers_and_receipts_and_no_tampered_one() {
    let node = Node::new();
    installed("x402/node_modules/@x402/extensions");
    for scheme in ["batch", "exact"] {
        let stage = Stage::on(testing::network()).await;
        let claim = stage.seller().node().terms().claim.to_checksum(None);
        let settings = [("SCHEME", scheme), ("CLAIM", claim.as_str())];
        let said = stage.run(node.script("receipts.mjs"), &settings).await;
        stage.assert_settled(&said).await;
        stage.street.stop().await;
    }
}

/// An agent copies them from there: they must be what is run here.
#[test]
fn the_snippets_of_the_documentation_are_what_is_run() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("is there");
    let plain = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    };
    let page = read("docs/x402.md");
    let sources = [
        "tests/clients/x402/batch.mjs",
        "tests/clients/x402/openai.mjs",
        "tests/clients/x402/agent.py",
        "tests/tests/x402/clients.rs",
    ];
    for source in sources {
        let text = read(source);
        let (rest, _) = text.rsplit_once("docs:end").expect("a mark");
        let (_, snippet) = rest.rsplit_once("docs:begin").expect("a mark");
        let mut snippet = plain(snippet);
        // What is left of the mark's own line.
        snippet.pop();
        let shown = page
            .split("```")
            .map(plain)
            .any(|block| block.ends_with(&snippet));
        assert!(shown && snippet.len() > 2, "{source}: {snippet:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_x402_pays_by_channel_on_anvil() {
    for network in [testing::network(), testing::base_sepolia()] {
        let stage = Stage::on(network).await;
        let said = stage.run(python(), &[("SCHEME", "batch")]).await;
        stage.assert_settled(&said).await;
        stage.street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_over_a_paying_fetch_buys_from_the_real_model_on_anvil() {
    assert!(
        Llama::is_installed(),
        "no model server: run tests/tools/setup.sh model"
    );
    let logs = tempfile::tempdir().expect("a folder");
    let llama = Llama::start(4, &logs.path().join("llama.log")).await;
    let llama = llama.expect("starts");
    let upstream = llama.base_url().to_owned();
    let tweak = move |config: &mut SellerConfig| {
        config.upstream.base_url.clone_from(&upstream);
        for model in &mut config.models {
            llama::MODEL.clone_into(&mut model.id);
            model.context = llama::CONTEXT;
            model.slots = 8;
        }
    };
    let (node, stage) = (
        Node::new(),
        Stage::with(testing::base_sepolia(), tweak).await,
    );
    let settings = [("MODEL", llama::MODEL)];
    stage.run(node.script("openai.mjs"), &settings).await;
    let said = json!({ "charged": stage.sold().await.to_string() });
    stage.assert_settled(&said).await;
    stage.street.stop().await;
    llama.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_reqwest_pays_exactly_on_anvil() {
    for network in [testing::network(), testing::base_sepolia()] {
        let stage = Stage::on(network).await;
        let said = buy_with_x402_reqwest(&stage).await;
        stage.assert_settled(&said).await;
        stage.street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_fetch_pays_exactly_and_up_to_on_anvil() {
    let node = Node::new();
    for network in [testing::network(), testing::base_sepolia()] {
        for scheme in ["exact", "upto"] {
            let stage = Stage::on(network.clone()).await;
            // Only the approval of Permit2 costs the wallet gas.
            if scheme == "upto" {
                let funded = stage.street.ledgers.fund(stage.wallet.address()).await;
                funded.expect("funds");
            }
            let said = stage
                .run(node.script("once.mjs"), &[("SCHEME", scheme)])
                .await;
            stage.assert_settled(&said).await;
            stage.street.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x402_fetch_1_2_pays_by_the_first_version_on_anvil() {
    let (node, stage) = (Node::new(), Stage::on(testing::base_sepolia()).await);
    // This version's answers do not say what was charged: the receipts and the chain do.
    stage.run(node.script("v1.mjs"), &[]).await;
    let said = json!({ "charged": stage.sold().await.to_string() });
    stage.assert_settled(&said).await;
    stage.street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_x402_pays_exactly_on_anvil() {
    let stage = Stage::on(testing::base_sepolia()).await;
    let said = stage.run(python(), &[("SCHEME", "exact")]).await;
    stage.assert_settled(&said).await;
    stage.street.stop().await;
}

/// Two answers over `x402-reqwest`, by scheme `exact`.
async fn buy_with_x402_reqwest(stage: &Stage) -> Value {
    // docs:begin
    let signer = PrivateKeySigner::from_slice(&stage.wallet.secret()).expect("a key");
    let wallet = X402Client::new().register(V2Eip155ExactClient::new(Arc::new(signer)));
    let http = reqwest::Client::new().with_payments(wallet).build();
    // docs:end
    let url = format!("{}/chat/completions", stage.seller().http_url());
    let body = json!({
        "model": MODEL,
        "max_tokens": 64,
        "messages": [{ "role": "user", "content": "Name a colour." }],
    });
    let mut charged = Amount::ZERO;
    for _ in 0..2 {
        let request = http.post(&url).header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await;
        let response = response.expect("is paid");
        assert_eq!(response.status(), 200);
        let paid: SettlementResponse = response
            .headers()
            .get(PAYMENT_RESPONSE)
            .and_then(|header| decode(header.as_bytes()).ok())
            .expect("a settlement");
        assert!(paid.success && paid.transaction.starts_with("0x"));
        let amount: Amount = Amount::atoms(paid.amount.expect("exact").parse().expect("digits"));
        charged = charged.saturating_add(amount);
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["object"], "chat.completion");
    }
    json!({ "charged": charged.to_string() })
}
