//! The mock upstream as a process of its own, for benches and for trying things by hand.
//!
//! Prints one line of JSON when it listens; ends on Ctrl-C, on SIGTERM (by default), and when
//! the process that started it is gone.

use std::io::Write;
use std::os::unix::process::parent_id;
use std::time::Duration;

use clap::Parser;
use farthing_tests::upstream::{Behaviour, MockUpstream};

/// How often to look whether the parent is still there.
const PARENT_POLL: Duration = Duration::from_millis(250);

/// An OpenAI-compatible server that only pretends to think.
#[derive(Debug, Parser)]
struct Options {
    /// Port on 127.0.0.1; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Tokens in an answer, unless the request asks for fewer.
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Bytes of each token, instead of words.
    #[arg(long)]
    token_bytes: Option<usize>,
    /// Microseconds between two tokens.
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// Names of the models it serves, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "mock/model")]
    models: Vec<String>,
    /// Demand this bearer key.
    #[arg(long)]
    api_key: Option<String>,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let parent = parent_id();
    let options = Options::parse();
    let behaviour = Behaviour {
        models: options.models,
        tokens: options.tokens,
        token_bytes: options.token_bytes,
        pace: Duration::from_micros(options.pace_us),
        api_key: options.api_key,
        remember: false,
        ..Behaviour::default()
    };
    let upstream = MockUpstream::start_on(options.port, behaviour).await?;
    let (port, url) = (upstream.address().port(), upstream.base_url());
    let line = serde_json::json!({"ready": true, "port": port, "base_url": url});
    writeln!(std::io::stdout(), "{line}")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        () = orphaned(parent) => Ok(()),
    }
}

/// Return when `parent` is no longer the parent of this process.
async fn orphaned(parent: u32) {
    let mut ticks = tokio::time::interval(PARENT_POLL);
    while parent_id() == parent {
        ticks.tick().await;
    }
}
