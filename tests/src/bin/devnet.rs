//! `make dev`: a development network that stays up. Sellers on mock upstreams, a chain with the
//! contracts, a buyer with its endpoint; `make dev ARGS='--sellers 5 --pace-ms 20'`.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use alloy::primitives::Address;
use clap::Parser;
use farthing_protocol::amount::Amount;
use farthing_tests::show::{self, Logs, Page, Table, per_million};
use farthing_tests::street::{Ledgers, MODEL, RunningGateway, Street, TestNet};
use farthing_tests::upstream::Behaviour;
use tracing_subscriber::layer::Identity;

/// Sellers on mock upstreams, a chain, and a buyer's endpoint.
#[derive(Debug, Parser)]
struct Options {
    /// How many sellers; each is a little dearer than the one before it.
    #[arg(long, default_value_t = 2)]
    sellers: usize,
    /// Port of the buyer's endpoint; another free one if it is taken.
    #[arg(long, default_value_t = 8402)]
    port: u16,
    /// Tokens in an answer, unless the request asks for fewer.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Milliseconds between two tokens.
    #[arg(long, default_value_t = 10)]
    pace_ms: u64,
    /// The in-memory chain instead of anvil.
    #[arg(long)]
    memory: bool,
    /// An address that gets 100 test dollars and gas; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    fund: Vec<Address>,
    /// What is logged, to a file.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

/// What `--fund` gives.
const POCKET_MONEY: Amount = Amount::atoms(100_000_000);

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let logs = match Logs::new() {
        Ok(logs) => logs,
        Err(error) => return fail(&error.into(), None),
    };
    match run(&options, &logs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, Some(logs)),
    }
}

fn fail(error: &Failure, logs: Option<Logs>) -> ExitCode {
    let mut err = std::io::stderr();
    // Where standard error is closed, the exit code must do.
    writeln!(err, "\ndevnet: {error}").ok();
    if let Some(logs) = logs {
        writeln!(err, "devnet: the logs are in {}", logs.keep().display()).ok();
    }
    ExitCode::FAILURE
}

async fn run(options: &Options, logs: &Logs) -> Result<(), Failure> {
    logs.listen(&options.log, Identity::new())?;
    let page = Page::stdout();
    page.title("Farthing: a development network")?;
    let interrupted = show::interrupted();
    tokio::pin!(interrupted);
    let street = tokio::select! {
        street = plan(options, &page).start() => street?,
        ended = &mut interrupted => return Ok(ended?),
    };
    let settings = street.buyers[0].config.gateway.clone();
    let gateway = RunningGateway::open(&street.buyers[0], settings).await?;
    for address in &options.fund {
        street.ledgers.mint(*address, POCKET_MONEY).await?;
        street.ledgers.fund(*address).await?;
    }
    introduce(&page, &street, &gateway)?;
    page.line("")?;
    page.aside(&format!("logs: {}", logs.path().display()))?;
    page.aside("up until Ctrl-C")?;
    interrupted.await?;
    page.line("stopping")?;
    gateway.stop().await;
    street.stop().await;
    Ok(())
}

fn plan(options: &Options, page: &Page) -> TestNet {
    let behaviour = Behaviour {
        tokens: options.tokens,
        pace: Duration::from_millis(options.pace_ms),
        remember: false,
        ..Behaviour::default()
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], show::port_or_free(options.port)));
    let scribe = page.clone();
    let plan = TestNet::new()
        .sellers(options.sellers)
        .upstreams(behaviour)
        .buyer_config(move |_, config| config.gateway.listen = listen)
        .narrate(move |what| {
            // A page that cannot be written on fails what comes after.
            scribe.waiting(what).ok();
        });
    if options.memory { plan } else { plan.anvil() }
}

/// Who is there, and how each can be reached.
fn introduce(page: &Page, street: &Street, gateway: &RunningGateway) -> std::io::Result<()> {
    page.title("Sellers")?;
    let mut table = Table::new(&["peer", ">prompt", ">answer", "model server", "address"]);
    for seller in &street.sellers {
        let prices = seller.config.models.first().map(|model| model.prices);
        let price = |pick: fn(&farthing_node::config::PriceConfig) -> _| {
            prices.as_ref().map(pick).map(per_million)
        };
        table.row([
            format!("…{}", seller.id().short()),
            price(|prices| prices.input).unwrap_or_default(),
            price(|prices| prices.output).unwrap_or_default(),
            seller.config.upstream.base_url.clone(),
            seller.addresses().into_iter().next().unwrap_or_default(),
        ]);
    }
    page.table(&table)?;
    page.aside("prices in USDC per million tokens")?;
    page.title("Chain")?;
    let network = &street.network;
    if let Ledgers::Anvil(anvil) = &street.ledgers {
        page.line(&format!("JSON-RPC     {}", anvil.url()))?;
    }
    page.line(&format!("chain id     {}", network.chain_id))?;
    page.line(&format!("settlement   {}", network.settlement))?;
    page.line(&format!("token        {}", network.token))?;
    if let (Ledgers::Anvil(anvil), Some(seller)) = (&street.ledgers, street.sellers.first()) {
        join(
            page,
            anvil.url(),
            seller.addresses().first().map_or("", String::as_str),
        )?;
    }
    page.title("The buyer's endpoint")?;
    show::invite(page, &gateway.base_url(), MODEL)
}

/// How programs of one's own take part.
fn join(page: &Page, rpc: &str, bootstrap: &str) -> std::io::Result<()> {
    page.title("Join with your own")?;
    page.line(&format!(
        "farthing gateway --set chain.rpc={rpc} --set network.bootstrap={bootstrap} --set gateway.listen=127.0.0.1:8500"
    ))?;
    page.line(&format!(
        "farthing-node run --set 'chain.rpc=[\"{rpc}\"]' --set 'network.bootstrap=[\"{bootstrap}\"]'"
    ))?;
    page.aside("money for them: make dev ARGS='--fund <payer> --fund <claim key>', as their `init` prints them")
}
