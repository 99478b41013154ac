//! `make bench`: what the market adds to a request, in time, processor, disk and memory.
//! `make bench-peers`: the same beside others' gateways. `make bench-streams`: what a stream costs
//! when two thousand are open. `make soak`: whether anything grows.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use farthing_tests::bench::fleet::{Place, Transport};
use farthing_tests::bench::peers::{self, Contestant};
use farthing_tests::bench::roles::{self, Setting};
use farthing_tests::bench::{self, BenchError, Effort, Soak, endure, many};
use farthing_tests::section::{BENCHMARKS, Section};
use mimalloc::MiMalloc;
use tokio::runtime::{self, Runtime};
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
}

/// What else this program can be; the bench starts itself again as the last two.
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
    /// Many streams at once, and readers that stop.
    Streams {
        /// Streams open at once.
        #[arg(long, default_value_t = 2_000)]
        streams: usize,
        /// Bytes of each one's prompt.
        #[arg(long, default_value_t = 64)]
        prompt: usize,
        /// Milliseconds between two chunks of one.
        #[arg(long, default_value_t = 400)]
        pace_ms: u64,
        /// Seconds over which they are opened.
        #[arg(long, default_value_t = 10)]
        opening: u64,
        /// Readers that stop.
        #[arg(long, default_value_t = 50)]
        stopped: usize,
    },
    /// Mixed traffic for long.
    Endure {
        /// For how long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// What of it does not count.
        #[arg(long, default_value_t = 60)]
        warm_up: u64,
        /// Purchases made before.
        #[arg(long, default_value_t = 150_000)]
        fill: usize,
    },
    /// Our gateway beside LiteLLM's and Portkey's.
    Peers(Peers),
    /// A node.
    #[command(hide = true)]
    Node(Setting),
    /// A buyer's gateway.
    #[command(hide = true)]
    Gateway(Setting),
}

#[derive(Debug, Clone, Args)]
struct Peers {
    /// Who is measured beside the model server itself.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "litellm,portkey,own,paid"
    )]
    only: Vec<Contestant>,
    /// Rounds.
    #[arg(long)]
    rounds: Option<usize>,
}

fn main() -> Result<(), BenchError> {
    let quiet = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(quiet)
        .with_writer(std::io::stderr)
        .init();
    let options = Options::parse();
    if let Some(Role::Peers(peers)) = options.role.clone() {
        return compare(&options, peers);
    }
    Runtime::new()?.block_on(Box::pin(play(options)))
}

async fn play(options: Options) -> Result<(), BenchError> {
    match options.role.clone() {
        Some(Role::Node(setting)) => roles::node(setting).await,
        Some(Role::Gateway(setting)) => roles::gateway(setting).await,
        Some(Role::Streams {
            streams,
            prompt,
            pace_ms,
            opening,
            stopped,
        }) => {
            let pace = Duration::from_millis(pace_ms);
            let opening = Duration::from_secs(opening);
            let plan = many::Plan {
                streams,
                prompt,
                stopped,
                ..crowd(&options, pace, opening)
            };
            let report = many::run(&plan, say).await?;
            tell(&options, many::SECTION, &report.to_string())
        }
        Some(Role::Endure {
            seconds,
            warm_up,
            fill,
        }) => {
            let plan = endure::Plan {
                time: Duration::from_secs(seconds),
                fill,
                warm_up: Duration::from_secs(warm_up.min(seconds / 2)),
                every: Duration::from_secs(5),
                place: place(&options),
            };
            let report = endure::run(&plan, say).await?;
            tell(&options, endure::SECTION, &report.to_string())
        }
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
        Some(Role::Peers(_)) | None => measure(&options).await,
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

/// The cores are given out before there is a second thread, and the load needs no more than one.
fn compare(options: &Options, peers: Peers) -> Result<(), BenchError> {
    let core = peers::pin()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let effort = peers_effort(options, peers, core);
    let report = runtime.block_on(Box::pin(peers::run(&effort, say)))?;
    writeln!(std::io::stdout(), "{report}")?;
    if options.write {
        report.write(BENCHMARKS.as_ref())?;
        say("written to docs/benchmarks.md");
    }
    Ok(())
}

/// Shows figures, and writes them if that is wanted.
fn tell(options: &Options, section: Section, figures: &str) -> Result<(), BenchError> {
    writeln!(std::io::stdout(), "{figures}")?;
    if options.write {
        section.write(BENCHMARKS.as_ref(), figures)?;
        say("written to docs/benchmarks.md");
    }
    Ok(())
}

/// Streams that run long enough for all of them to be open together for twelve seconds.
fn crowd(options: &Options, pace: Duration, opening: Duration) -> many::Plan {
    let watch = Duration::from_secs(8);
    let lasts = opening + watch + Duration::from_secs(4);
    let chunks = lasts.as_millis() / pace.as_millis().max(1);
    many::Plan {
        streams: 0,
        prompt: 0,
        opening,
        chunks: usize::try_from(chunks)
            .unwrap_or(usize::MAX)
            .clamp(2, 1_024),
        pace,
        watch,
        probes: 100,
        stopped: 0,
        pause: Duration::from_secs(20),
        place: place(options),
    }
}

fn say(line: &str) {
    // Whoever closed the terminal does not want to know.
    writeln!(std::io::stderr(), "bench: {line}").ok();
}

fn place(options: &Options) -> Place {
    Place::new(options.transport, options.disk.clone())
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
        place: place(options),
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

fn peers_effort(options: &Options, peers: Peers, core: usize) -> peers::Effort {
    let rounds = if options.quick { 1 } else { 3 };
    peers::Effort {
        contestants: peers.only,
        rounds: peers.rounds.unwrap_or(rounds),
        warm_up: Duration::from_secs(2),
        single: Duration::from_secs(2),
        step: Duration::from_millis(800),
        full: Duration::from_secs(3),
        streams: Duration::from_secs(4),
        chunks: 64,
        pace: Duration::from_millis(20),
        place: Place {
            core: Some(core),
            ..place(options)
        },
    }
}
