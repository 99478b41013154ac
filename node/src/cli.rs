//! The command line: flags in, text and an exit code out. The only file that prints.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line talks to people"
)]

mod check;
mod control;
mod init;
mod keys;
mod table;
mod show;
mod receipts;

use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use farthing_protocol::chain::ChainError;
use farthing_protocol::clock::Clock;
use farthing_protocol::descriptors;
use farthing_protocol::keystore::{KeyError, Passphrase};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::check::Check;
use crate::cli::control::{ControlError, Question};
use crate::cli::receipts::ExportError;
use crate::config::{self, Config, ConfigError, LogConfig, LogFormat, Override};
use crate::control::{Control, serve_metrics};
use crate::node::{self, Node, Outside, StartError};
use crate::report::{Claimed, Earnings, SoldPage, Status};

/// Sells inference from a model server you run, and is paid as the answer streams.
#[derive(Debug, Parser)]
#[command(name = "farthing-node", version)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
struct Global {
    /// The configuration; by default `node.toml` in the data directory, if there is one.
    #[arg(long, global = true, value_name = "FILE", env = "FARTHING_NODE_CONFIG")]
    config: Option<PathBuf>,
    /// Where keys, ledger and control socket live.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FARTHING_NODE_DATA_DIR"
    )]
    data_dir: Option<PathBuf>,
    /// A file whose first line unlocks the keys; without it the program asks.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "FARTHING_NODE_PASSPHRASE_FILE"
    )]
    passphrase_file: Option<PathBuf>,
    /// Sets any key of the configuration, as in `--set limits.slots=8`.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sell.
    Run,
    /// Write a commented configuration and make the keys.
    Init,
    /// Prove the set-up, and say what to do for each problem.
    Check,
    /// How the running node is.
    Status(Form),
    /// What was charged, claimed and settled, and what is at risk and why.
    Earnings(Form),
    /// Claim now what is worth claiming later.
    Claim(Form),
    /// What was sold, to whom, and through which door.
    #[command(subcommand)]
    Receipts(Receipts),
}

#[derive(Debug, Subcommand)]
enum Receipts {
    /// The newest.
    List {
        /// How many, at most 256.
        #[arg(long, default_value_t = 20)]
        most: usize,
        #[command(flatten)]
        form: Form,
    },
    /// All in the books, signed, as lines of JSON.
    Export {
        /// A file that does not exist yet; the standard output without one.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, Args)]
struct Form {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--set` without a value.
    #[error("`--set {0}` has no `=`: write --set KEY=VALUE")]
    Set(String),
    /// The keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There are none.
    #[error("there are no keys in {}: run `farthing-node init` first", .0.display())]
    NoKeys(PathBuf),
    /// The two entries differ.
    #[error("the two passphrases differ: try again")]
    Differ,
    /// The terminal, a file or the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The log's filter.
    #[error("`log.level`: {0}")]
    Log(String),
    /// The node.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The chain's settings.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The running node.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Receipts that were not all written.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    main_by(Clock::system())
}

/// The whole program, by this clock.
#[must_use]
pub fn main_by(clock: Clock) -> ExitCode {
    let cli = Cli::parse();
    match execute(&cli, clock) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: &Cli, clock: Clock) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Runtime::new().map_err(system("cannot start threads"))?;
    runtime.block_on(Box::pin(dispatch(cli, clock)))
}

async fn dispatch(cli: &Cli, clock: Clock) -> Result<ExitCode, CliError> {
    let global = &cli.global;
    match &cli.command {
        Command::Init => init(global),
        Command::Check => checks(global).await,
        Command::Run => run(global.load()?, clock).await,
        Command::Status(form) => tell(global, Question::Status, *form, show_status).await,
        Command::Earnings(form) => tell(global, Question::Earnings, *form, show_earnings).await,
        Command::Claim(form) => tell(global, Question::Claim, *form, show_claimed).await,
        Command::Receipts(Receipts::List { most, form }) => {
            tell(global, Question::Newest(*most), *form, show_sold).await
        }
        Command::Receipts(Receipts::Export { output }) => export(global, output.as_deref()).await,
    }
}

impl Global {
    /// What the flags and the environment set: the environment first.
    fn overrides(&self) -> Result<Vec<Override>, CliError> {
        let mut changes = config::environment()?;
        for (flag, key, path) in [
            ("--data-dir", "data_dir", &self.data_dir),
            (
                "--passphrase-file",
                "passphrase_file",
                &self.passphrase_file,
            ),
        ] {
            if let Some(path) = path {
                changes.push(Override::flag(flag, key, path.display()));
            }
        }
        for set in &self.set {
            let (key, value) = set
                .split_once('=')
                .ok_or_else(|| CliError::Set(set.clone()))?;
            changes.push(Override::flag(&format!("--set {set}"), key, value));
        }
        Ok(changes)
    }

    /// The data directory, as far as it is known without the configuration.
    fn data_dir(&self, overrides: &[Override]) -> Result<PathBuf, CliError> {
        let here: Vec<Override> = overrides
            .iter()
            .filter(|change| change.key == "data_dir")
            .cloned()
            .collect();
        Ok(Config::load(None, &here)?.data_dir)
    }

    /// The configuration's file, whether it exists or not.
    fn file(&self, overrides: &[Override]) -> Result<PathBuf, CliError> {
        match &self.config {
            Some(path) => Ok(path.clone()),
            None => Ok(init::default_file(&self.data_dir(overrides)?)),
        }
    }

    fn load(&self) -> Result<Config, CliError> {
        let overrides = self.overrides()?;
        let file = self.file(&overrides)?;
        // A file that is asked for must be there; the default one may be.
        let file = Some(file.as_path()).filter(|file| self.config.is_some() || file.exists());
        Ok(Config::load(file, &overrides)?)
    }
}

fn init(global: &Global) -> Result<ExitCode, CliError> {
    let overrides = global.overrides()?;
    let data_dir = global.data_dir(&overrides)?;
    keys::private_folder(&data_dir)?;
    let file = global.file(&overrides)?;
    let written = init::write_config(&file, &data_dir)
        .map_err(system(&format!("cannot write {}", file.display())))?;
    let config = Config::load(Some(&file), &overrides)?;
    let is_new = !keys::exist(&config.data_dir);
    let passphrase = passphrase(&config, is_new)?;
    let keys = keys::create(&config.data_dir, &passphrase)?;
    match written {
        init::Written::New => println!("wrote  {}", file.display()),
        init::Written::Kept => println!("kept   {} (it was there)", file.display()),
    }
    let verb = if is_new { "made " } else { "kept " };
    println!("{verb}  {}", keys::node_file(&config.data_dir).display());
    println!("{verb}  {}", keys::claim_file(&config.data_dir).display());
    println!("\nnode       {}", keys.node.id());
    println!("claim key  {}", keys.claim.address());
    println!(
        "\nBack up the keys and their passphrase: nobody else can restore them.\n\
         Next: give the models prices in {}, send the claim key some gas, then\n\
         `farthing-node check` and `farthing-node run`.",
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}

async fn checks(global: &Global) -> Result<ExitCode, CliError> {
    let checks = match global.load() {
        Ok(config) => {
            let file = config.passphrase_file.as_deref();
            let passphrase = file.map(Passphrase::from_file).transpose()?;
            check::all(&config, passphrase.as_ref()).await
        }
        Err(CliError::Config(error)) => {
            let todo = "mend it there; `farthing-node init` writes a commented example";
            vec![Check::problem("configuration", error, todo)]
        }
        Err(other) => return Err(other),
    };
    print!("{}", check::show(&checks));
    let failed = checks.iter().any(Check::is_problem);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn run(config: Config, clock: Clock) -> Result<ExitCode, CliError> {
    start_log(&config.log)?;
    if !keys::exist(&config.data_dir) {
        return Err(CliError::NoKeys(config.data_dir));
    }
    let keys = keys::open(&config.data_dir, &passphrase(&config, false)?)?;
    if config.chain.payout.is_none() {
        let claim = keys.claim.address();
        tracing::warn!(%claim, "no payout address: earnings go to the claim key");
    }
    if let Err(error) = descriptors::need(node::descriptors(&config)) {
        tracing::warn!(%error, "too few files for what the configuration allows at once");
    }
    let mut terminated = signal(SignalKind::terminate()).map_err(system("cannot await signals"))?;
    let outside = Outside::by(clock, &config)?;
    let node = Arc::new(Box::pin(Node::start(config.clone(), keys, outside)).await?);
    for address in node.addresses() {
        tracing::info!(%address, "listening");
    }
    let stop = CancellationToken::new();
    let control =
        Control::open(&config.data_dir).map_err(system("cannot open the control socket"))?;
    if let Some(address) = config.metrics.listen {
        let serving = serve_metrics(address, Arc::clone(&node), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%address, %error, "metrics are not served; see metrics.listen");
            }
        });
    }
    let controlled = tokio::spawn(control.serve(Arc::clone(&node), config, stop.clone()));
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.map_err(system("cannot await signals"))?,
        _ = terminated.recv() => {}
    }
    tracing::info!("stopping: running purchases end, then a last claim");
    stop.cancel();
    if let Ok(Err(error)) = controlled.await {
        tracing::warn!(%error, "the control socket failed");
    }
    node.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The passphrase, from its file or the terminal; a new one is asked for twice.
fn passphrase(config: &Config, is_new: bool) -> Result<Passphrase, CliError> {
    if let Some(file) = &config.passphrase_file {
        return Ok(Passphrase::from_file(file)?);
    }
    let ask = |prompt: &str| rpassword::prompt_password(prompt).map_err(no_terminal);
    let text = ask("Passphrase of the keys: ")?;
    if is_new && ask("The same again: ")? != text {
        return Err(CliError::Differ);
    }
    Ok(Passphrase::new(text)?)
}

fn no_terminal(source: io::Error) -> CliError {
    system("cannot ask for the passphrase; give --passphrase-file")(source)
}

fn start_log(config: &LogConfig) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&config.level).map_err(|e| CliError::Log(e.to_string()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Asks the running node and prints what it says.
async fn tell<T: DeserializeOwned + Serialize>(
    global: &Global,
    question: Question,
    form: Form,
    show: fn(&T) -> String,
) -> Result<ExitCode, CliError> {
    let data_dir: &Path = &global.load()?.data_dir;
    let report: T = control::ask(data_dir, question).await?;
    if form.json {
        let json = serde_json::to_string_pretty(&report).map_err(io::Error::from);
        println!("{}", json.map_err(system("cannot write JSON"))?);
    } else {
        print!("{}", show(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn show_status(report: &Status) -> String {
    show::status(report)
}

fn show_earnings(report: &Earnings) -> String {
    show::earnings(report, Clock::system().now())
}

fn show_sold(report: &SoldPage) -> String {
    receipts::list(report, Clock::system().now())
}

/// Writes what was sold where it is wanted. A file that is there is left alone.
async fn export(global: &Global, output: Option<&Path>) -> Result<ExitCode, CliError> {
    let data_dir = global.load()?.data_dir;
    let Some(path) = output else {
        let mut to = io::stdout().lock();
        receipts::export(&data_dir, &mut to).await?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(system(&format!("cannot write {}", path.display())))?;
    let mut to = io::BufWriter::new(file);
    let written = receipts::export(&data_dir, &mut to).await;
    if written.is_err() {
        // Half a list would pass for a whole one, and stand in the way of the next try.
        std::fs::remove_file(path).map_err(system(&format!("cannot remove {}", path.display())))?;
    }
    let count = written?;
    eprintln!("wrote {count} receipts to {}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn show_claimed(report: &Claimed) -> String {
    show::claimed(report)
}

/// The system's error with what was tried.
fn system(what: &str) -> impl FnOnce(io::Error) -> CliError {
    let what = what.to_owned();
    |source| CliError::System { what, source }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_make_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_on_either_side_of_the_command() {
        for line in [
            ["farthing-node", "--data-dir", "/x", "status", "--json"],
            ["farthing-node", "status", "--json", "--data-dir", "/x"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert_eq!(cli.global.data_dir, Some(PathBuf::from("/x")));
            assert!(matches!(cli.command, Command::Status(Form { json: true })));
        }
    }

    #[test]
    fn the_configuration_is_looked_for_in_the_data_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let here = dir.path().to_str().expect("text");
        let line = ["farthing-node", "run", "--data-dir", here, "--set"];
        let cli = |set: &str| Cli::try_parse_from(line.iter().copied().chain([set]));
        std::fs::write(dir.path().join("node.toml"), "[limits]\nslots = 3").expect("writes");
        let cli_set = cli("limits.purchases_per_buyer=2").expect("parses");
        let config = cli_set.global.load().expect("loads");
        assert_eq!(config.data_dir, dir.path());
        assert_eq!(config.limits.slots, 3);
        assert_eq!(config.limits.purchases_per_buyer, 2);
        let wrong = cli("limits.slots").expect("parses").global.load();
        assert!(matches!(wrong, Err(CliError::Set(_))));
    }
}
