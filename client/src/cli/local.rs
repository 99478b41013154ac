//! The commands that run here: `gateway` and `init`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use farthing_protocol::clock::Clock;
use farthing_protocol::descriptors;
use farthing_protocol::keystore::Passphrase;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::{Failure, render};
use crate::client::{Client, Keys, OpenError, Outside};
use crate::config::{Config, Log, LogFormat};
use crate::gateway::Gateway;
use crate::gateway::control::Control;
use crate::metrics::Metrics;

/// Every setting at its default, with comments.
const EXAMPLE: &str = include_str!("../../client.example.toml");
/// Files and sockets that may be open: two for each of some thousand requests under way, and peers.
const DESCRIPTORS: u64 = 8_192;

/// Runs the buyer until it is interrupted, and stops it in reverse order.
///
/// # Errors
/// Any [`Failure`].
pub async fn gateway(config: Config, passphrase: &Passphrase, clock: Clock) -> Result<(), Failure> {
    start_log(&config.log);
    make_dir(&config.data_dir)?;
    if let Err(error) = descriptors::need(DESCRIPTORS) {
        tracing::warn!(%error, "too few files for many requests at once");
    }
    let metrics = Metrics::default();
    let keys = Keys::open(&config.data_dir, passphrase, config.wallet.payer)?;
    let outside = Outside::by(clock, &config).map_err(OpenError::from)?;
    let client = Client::start(config.clone(), keys, outside).await?;
    let control = Control::bind(client.clone(), &config.data_dir).await?;
    let gateway = Gateway::bind(client.clone(), config.gateway, metrics).await?;
    tracing::info!(address = %gateway.address(), "gateway listens");
    let until = CancellationToken::new();
    let (served, controlled, interrupted) = tokio::join!(
        ending(gateway.serve(until.clone()), &until),
        ending(control.serve(until.clone()), &until),
        ending(interruption(until.clone()), &until),
    );
    client.stop().await;
    served.map_err(Failure::io("the gateway failed"))?;
    controlled.map_err(Failure::io("the control socket failed"))?;
    interrupted.map_err(Failure::io("signals cannot be heard"))
}

/// When one part ends, all do.
async fn ending<T>(part: impl Future<Output = T>, until: &CancellationToken) -> T {
    let result = part.await;
    until.cancel();
    result
}

async fn interruption(until: CancellationToken) -> std::io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed,
        _ = terminated.recv() => Ok(()),
        () = until.cancelled() => Ok(()),
    }
}

/// What is logged. The library of MCP prints messages, and prompts are in them: that is never
/// logged, whatever is asked for.
#[must_use]
pub fn filter(text: &str) -> EnvFilter {
    let filter = EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new("info"));
    let quiet = "rmcp=warn".parse().ok();
    quiet.into_iter().fold(filter, EnvFilter::add_directive)
}

/// Logs go to standard error, so that standard output stays the program's own.
pub(in crate::cli) fn start_log(log: &Log) {
    let filter = filter(&log.filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "log already started");
    }
}

/// Makes the keys and, unless there is one, the configuration file.
///
/// # Errors
/// Any [`Failure`].
pub async fn init(
    config: &Config,
    file: &Path,
    passphrase: &Passphrase,
) -> Result<String, Failure> {
    make_dir(&config.data_dir)?;
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(file);
    let written = match made {
        Ok(mut new) => {
            let failed = Failure::io(format!("cannot write {}", file.display()));
            new.write_all(EXAMPLE.as_bytes()).map_err(failed)?;
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => {
            return Err(Failure::io(format!("cannot write {}", file.display()))(
                error,
            ));
        }
    };
    let report = Client::init(config, passphrase)?;
    Ok(render::init(&report, config.chain.chain_id, file, written))
}

/// Makes a directory that only its owner can look into.
fn make_dir(dir: &Path) -> Result<(), Failure> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(Failure::io(format!("cannot make {}", dir.display())))
}
