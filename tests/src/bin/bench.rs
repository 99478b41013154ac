//! `make bench`: what the market adds to a request, in time, processor, disk and memory.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use farthing_tests::bench::fleet::Transport;
use farthing_tests::bench::roles::{self, Setting};
use farthing_tests::bench::{self, BenchError, Effort, Soak};
use farthing_tests::section::BENCHMARKS;
use mimalloc::MiMalloc;
use tracing_subscriber::EnvFilter;

/// As in the programs that are measured.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measures a paid request against the same request straight to the model server.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Measure less: for trying things, not for the page.
    #[arg(long)]
    quick: bool,
    /// Write the figures into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// How the buyer reaches the node.
    #[arg(long, value_enum, default_value_t = Transport::Both)]
    transport: Transport,
    /// Directory for the ledgers, on the disk to be measured.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// In a soak, the gateway asks the model server itself, as one of its own.
    #[arg(long)]
    own: bool,
    /// The gateway has the first core alone; start the bench on the others (`taskset -c 1`).
    #[arg(long)]
    pinned: bool,
}

/// What else this program can be; the bench starts itself again as the first two.
#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// Only paid load, for a profiler to look at.
    Soak {
        /// Requests at once.
        #[arg(long, default_value_t = 64)]
        lines: usize,
        /// For how long.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Paced streams, one at a time, instead.
        #[arg(long)]
        streams: bool,
    },
    /// A node.
    #[command(hide = true)]
    Node(Setting),
    /// A buyer's gateway.
    #[command(hide = true)]
    Gateway(Setting),
}

#[tokio::main]
async fn main() -> Result<(), BenchError> {
    let quiet = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(quiet)
        .with_writer(std::io::stderr)
        .init();
    let options = Options::parse();
    match options.role.clone() {
        Some(Role::Node(setting)) => roles::node(setting).await,
        Some(Role::Gateway(setting)) => roles::gateway(setting).await,
        Some(Role::Soak {
            lines,
            seconds,
            streams,
        }) => {
            let time = Duration::from_secs(seconds);
            let soak = if streams {
                Soak::Streams
            } else {
                Soak::Requests { lines, time }
            };
            bench::soak(&effort(&options), soak, say).await
        }
        None => measure(&options).await,
    }
}

async fn measure(options: &Options) -> Result<(), BenchError> {
    let effort = effort(options);
    let report = bench::run(&effort, say).await?;
    writeln!(std::io::stdout(), "{report}")?;
    if options.write {
        report.write(BENCHMARKS.as_ref())?;
        say("written to docs/benchmarks.md");
    }
    Ok(())
}

fn say(line: &str) {
    // Whoever closed the terminal does not want to know.
    writeln!(std::io::stderr(), "bench: {line}").ok();
}

fn effort(options: &Options) -> Effort {
    let full = Effort {
        warm_up: 500,
        rounds: 9,
        requests: 400,
        at_once: 64,
        round: Duration::from_secs(5),
        streams: 20,
        paced: 20,
        chunks: 200,
        pace: Duration::from_millis(5),
        transport: options.transport,
        disk: options.disk.clone(),
        own: options.own,
        pinned: options.pinned,
    };
    if !options.quick {
        return full;
    }
    Effort {
        rounds: 3,
        round: Duration::from_secs(4),
        paced: 3,
        ..full
    }
}
