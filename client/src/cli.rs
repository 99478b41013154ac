//! The command line: `farthing gateway` runs the buyer, `farthing init` makes its keys, and the
//! other commands ask a running gateway through its control socket.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Clock;
use farthing_protocol::keystore::{KeyError, Passphrase};
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::ChannelId;

use crate::cli::receipts::ReceiptsCommand;
use crate::config::Config;
use crate::config::layers::{LoadError, Sources};
use crate::report::ChannelAction;

pub mod chat;
pub mod local;
mod mcp;
pub mod remote;
pub mod render;
pub mod wallet;
pub mod receipts;
pub mod route;

/// The configuration's name within the data directory.
pub const CONFIG_FILE: &str = "client.toml";

/// Buys model inference from peers, and pays for it by the token.
#[derive(Debug, Parser)]
#[command(name = "farthing", version)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The configuration file [default: client.toml in the data directory, if it is there]
    #[arg(long, global = true, env = "FARTHING_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where keys, ledger and control socket live
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A file with the passphrase of the keys; without it, it is asked for
    #[arg(
        long,
        global = true,
        env = "FARTHING_PASSPHRASE_FILE",
        value_name = "FILE"
    )]
    passphrase_file: Option<PathBuf>,
    /// Sets one key of the configuration, such as spend.per_day=1000000
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Prints JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the OpenAI-compatible endpoint
    Gateway,
    /// Makes keys and a configuration file, and says where to send money
    Init,
    /// Lists the models on offer
    Models,
    /// Lists every seller's offers and what was measured
    Offers {
        /// Only of this model
        model: Option<String>,
    },
    /// Shows what is believed of sellers, and why
    Sellers {
        /// Only of this one, or of those whose name ends so
        seller: Option<String>,
    },
    /// Sends one prompt and prints the answer, its seller and its price
    Chat {
        /// The model [default: the cheapest on offer]
        #[arg(long, short)]
        model: Option<String>,
        /// The most tokens of the answer
        #[arg(long)]
        max_tokens: Option<u32>,
        /// A key, for a gateway that asks for one
        #[arg(long, env = "FARTHING_API_KEY", hide_env_values = true)]
        api_key: Option<String>,
        /// The prompt; read from standard input if absent
        prompt: Vec<String>,
    },
    /// Gives an agent the market as tools (MCP over standard input and output), within `[mcp]`
    Mcp {
        /// A key, for a gateway that asks for one
        #[arg(long, env = "FARTHING_API_KEY", hide_env_values = true)]
        api_key: Option<String>,
    },
    /// Shows addresses, balances, and what was spent against the limits
    Wallet {
        #[command(subcommand)]
        command: Option<wallet::WalletCommand>,
    },
    /// Lists payment channels, or does something with one
    #[command(subcommand)]
    Channels(ChannelsCommand),
    /// Shows why a seller is asked, and checks recorded decisions
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Lists, shows, exports, checks or proves receipts
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
}

#[derive(Debug, Subcommand)]
enum ChannelsCommand {
    /// Lists all channels
    List,
    #[command(flatten)]
    Act(ChannelCommand),
}

#[derive(Debug, Subcommand)]
enum ChannelCommand {
    /// Deposits more
    TopUp {
        /// The channel
        channel: ChannelId,
        /// Atoms [default: `spend.deposit`]
        amount: Option<Amount>,
    },
    /// Asks the contract for the unspent rest; it can be taken out after the withdraw delay
    Withdraw {
        /// The channel
        channel: ChannelId,
    },
    /// Takes out what was asked for by `withdraw`
    Finalize {
        /// The channel
        channel: ChannelId,
    },
    /// Asks the seller to send the unspent rest back at once
    Refund {
        /// The channel
        channel: ChannelId,
    },
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The passphrase.
    #[error("cannot read the passphrase: {0}; give `--passphrase-file`")]
    Passphrase(String),
    /// The passphrase or the keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The client.
    #[error(transparent)]
    Open(#[from] crate::client::OpenError),
    /// The gateway.
    #[error(transparent)]
    Bind(#[from] crate::gateway::BindError),
    /// Asking a running gateway.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// Receipts.
    #[error(transparent)]
    Receipts(#[from] receipts::ReceiptsError),
    /// Routes.
    #[error(transparent)]
    Route(#[from] route::RouteError),
    /// An agent's host.
    #[error("this is the Model Context Protocol, for an agent's host to start: {0}")]
    Mcp(String),
    /// There is nothing to talk to.
    #[error("nobody offers a model now; `farthing offers` shows what is heard")]
    NoModel,
    /// A file or the terminal.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The whole program.
pub async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the program's last word to its user")]
            {
                eprintln!("farthing: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; what it has to say goes to standard output.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(cli: Cli) -> Result<(), Failure> {
    run_by(Clock::system(), cli).await
}

/// Runs a command by this clock.
///
/// # Errors
/// Any [`Failure`].
pub async fn run_by(clock: Clock, cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let config = global.load(matches!(command, Command::Init))?;
    let mut out = std::io::stdout();
    match command {
        Command::Gateway => {
            let passphrase = global.passphrase()?;
            return local::gateway(config, &passphrase, clock).await;
        }
        Command::Init => {
            let passphrase = global.new_passphrase()?;
            let file = global.config_file(&config);
            let text = local::init(&config, &file, &passphrase).await?;
            return say(&mut out, &text);
        }
        Command::Chat {
            model,
            max_tokens,
            api_key,
            prompt,
        } => {
            let prompt = match prompt.is_empty() {
                true => from_stdin()?,
                false => prompt.join(" "),
            };
            let question = chat::Question {
                model,
                max_tokens,
                prompt,
                api_key,
            };
            return chat::chat(&config, question, &mut out).await;
        }
        Command::Mcp { api_key } => {
            local::start_log(&config.log);
            return Box::pin(mcp::serve(config, api_key)).await;
        }
        Command::Receipts(command) => {
            let view = view(&config, global.json);
            return receipts::run(&config, command, &view, &mut out).await;
        }
        Command::Route(command) => {
            let text = command.run(&config, &view(&config, global.json)).await?;
            return say(&mut out, &text);
        }
        _ => {}
    }
    let text = ask(&config, command, global.json).await?;
    say(&mut out, &text)
}

fn view(config: &Config, json: bool) -> render::View {
    render::View {
        token: render::token(&config.chain),
        json,
    }
}

/// What a running gateway answers, as text.
async fn ask(config: &Config, command: Command, json: bool) -> Result<String, Failure> {
    let remote = remote::Remote::new(config)?;
    let view = view(config, json);
    Ok(match command {
        Command::Models => view.models(&remote.models().await?),
        Command::Offers { model } => {
            let mut offers = remote.offers().await?;
            offers.retain(|offer| model.as_ref().is_none_or(|model| *model == offer.model));
            view.offers(&offers)
        }
        Command::Sellers { seller } => {
            let mut sellers = remote.sellers().await?;
            let wanted = |name: &str| seller.as_ref().is_none_or(|end| name.ends_with(end));
            sellers.retain(|report| wanted(&report.seller.to_string()));
            view.sellers(&sellers)
        }
        Command::Wallet { command: None } => view.wallet(&remote.wallet().await?),
        Command::Wallet {
            command: Some(command),
        } => command.run(&remote, &view).await?,
        Command::Channels(ChannelsCommand::List) => view.channels(&remote.channels().await?),
        Command::Channels(ChannelsCommand::Act(command)) => {
            let (channel, action) = command.action();
            view.action(&remote.channel(channel, action).await?)
        }
        Command::Gateway
        | Command::Init
        | Command::Chat { .. }
        | Command::Mcp { .. }
        | Command::Receipts(_)
        | Command::Route(_) => String::new(),
    })
}

impl ChannelCommand {
    /// The channel and what to do with it.
    const fn action(&self) -> (ChannelId, ChannelAction) {
        match self {
            Self::TopUp { channel, amount } => (*channel, ChannelAction::TopUp { amount: *amount }),
            Self::Withdraw { channel } => (*channel, ChannelAction::Withdraw),
            Self::Finalize { channel } => (*channel, ChannelAction::Finalize),
            Self::Refund { channel } => (*channel, ChannelAction::Refund),
        }
    }
}

impl Global {
    fn load(&self, init: bool) -> Result<Config, LoadError> {
        let mut sources = Sources {
            file: None,
            environment: environment(),
            flags: self.set.clone(),
        };
        if let Some(dir) = &self.data_dir {
            let dir = dir.to_string_lossy().into_owned();
            sources.flags.push(("data_dir".into(), dir));
        }
        let config = match &self.config {
            Some(file) if !init || file.exists() => {
                sources.file = Some(file.clone());
                return sources.load();
            }
            _ => sources.load()?,
        };
        let file = config.data_dir.join(CONFIG_FILE);
        if self.config.is_some() || !file.exists() {
            return Ok(config);
        }
        sources.file = Some(file);
        sources.load()
    }

    /// Where `init` writes the configuration.
    fn config_file(&self, config: &Config) -> PathBuf {
        let default = || config.data_dir.join(CONFIG_FILE);
        self.config.clone().unwrap_or_else(default)
    }

    fn passphrase(&self) -> Result<Passphrase, Failure> {
        match &self.passphrase_file {
            Some(path) => Ok(Passphrase::from_file(path)?),
            None => Ok(Passphrase::new(prompt("Passphrase of the keys: ")?)?),
        }
    }

    /// A passphrase typed for the first time is typed twice.
    fn new_passphrase(&self) -> Result<Passphrase, Failure> {
        let Some(path) = &self.passphrase_file else {
            let first = prompt("Passphrase for the keys: ")?;
            if first != prompt("The same again: ")? {
                return Err(Failure::Passphrase("the two differ".into()));
            }
            return Ok(Passphrase::new(first)?);
        };
        Ok(Passphrase::from_file(path)?)
    }
}

fn prompt(text: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Passphrase("there is no terminal to ask".into()));
    }
    rpassword::prompt_password(text).map_err(|e| Failure::Passphrase(e.to_string()))
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let failed = Failure::io("cannot read the prompt");
    std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn say(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    let failed = Failure::io("cannot write to standard output");
    writeln!(out, "{}", text.trim_end()).map_err(failed)
}

/// The environment; a variable that is not text is not ours.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn request_id(text: &str) -> Result<RequestId, String> {
    text.parse()
        .map(RequestId)
        .map_err(|_| "not a request id: 0x and 64 hex digits".to_owned())
}

#[cfg(test)]
mod tests;
