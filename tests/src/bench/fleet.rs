//! The processes: chain, model server, node, gateway.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use farthing_protocol::chain::local::{ARTIFACTS, LocalChain};
use farthing_protocol::testing;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::bench::roles::{self, Counts, Ready};
use crate::bench::{BenchError, Effort, machine};
use crate::street::{StreetError, anvil};

/// How long a part may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a part is left alone before its idle memory is read.
const REST: Duration = Duration::from_secs(2);
/// Their directories, and what they are called.
const NODE: &str = "node";
const GATEWAY: &str = "gateway";
/// Gas for the node.
const GAS: u128 = 10_000_000_000_000_000_000;

/// How the buyer reaches the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// As by default: QUIC first, TCP else.
    Both,
    /// QUIC.
    Quic,
    /// TCP, noise and yamux.
    Tcp,
}

impl Transport {
    fn listen(self) -> Vec<String> {
        let quic = "/ip4/127.0.0.1/udp/0/quic-v1".to_owned();
        let tcp = "/ip4/127.0.0.1/tcp/0".to_owned();
        match self {
            Self::Both => vec![quic, tcp],
            Self::Quic => vec![quic],
            Self::Tcp => vec![tcp],
        }
    }
}

/// What the processes are told at their start.
#[derive(Debug, Clone)]
pub struct Shape {
    /// How the buyer reaches the node.
    pub transport: Transport,
    /// Where the ledgers are: the disk that is measured. The system's temporary directory if none.
    pub disk: Option<PathBuf>,
    /// Purchases at once.
    pub slots: u32,
    /// Whether the model server is also the buyer's own, and asked before any seller.
    pub own: bool,
    /// Bytes of each token of the model server, instead of words. They cost next to nothing: a whole
    /// answer is paid for by the first promise.
    pub token_bytes: Option<usize>,
}

impl Shape {
    /// What most rounds are measured on.
    #[must_use]
    pub fn new(transport: Transport, disk: Option<&Path>) -> Self {
        Self {
            transport,
            disk: disk.map(Path::to_owned),
            slots: roles::SLOTS,
            own: false,
            token_bytes: None,
        }
    }
}

/// What is left when every process has ended.
#[derive(Debug)]
pub struct Remains {
    /// The chain, which still runs.
    pub chain: LocalChain,
    disk: TempDir,
}

impl Remains {
    /// The node's directory.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.disk.path().join(NODE)
    }

    /// The gateway's.
    #[must_use]
    pub fn gateway(&self) -> PathBuf {
        self.disk.path().join(GATEWAY)
    }
}

/// Something of each process that is measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Each<T> {
    /// The model server.
    pub upstream: T,
    /// The node.
    pub node: T,
    /// The gateway.
    pub gateway: T,
    /// The process that makes the load.
    pub load: T,
}

/// What the processes have used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Processor time.
    pub cpu: Each<Duration>,
    /// What the node counted.
    pub node: Counts,
    /// What the gateway counted.
    pub gateway: Counts,
}

/// A child process that speaks in lines.
#[derive(Debug)]
struct Member {
    name: &'static str,
    child: Child,
    pid: u32,
    words: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Member {
    fn start(name: &'static str, command: &mut Command) -> Result<Self, BenchError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let gone = || BenchError::Part(format!("the {name} ended at once"));
        let out = child.stdout.take().ok_or_else(gone)?;
        Ok(Self {
            name,
            pid: child.id().ok_or_else(gone)?,
            words: child.stdin.take(),
            lines: BufReader::new(out).lines(),
            child,
        })
    }

    async fn line<T: DeserializeOwned>(&mut self) -> Result<T, BenchError> {
        let name = self.name;
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.map_err(|_| BenchError::Part(format!("the {name} says nothing")))??;
        let line = line.ok_or_else(|| BenchError::Part(format!("the {name} has ended")))?;
        serde_json::from_str(&line)
            .map_err(|error| BenchError::Part(format!("the {name} says {line}: {error}")))
    }

    async fn counts(&mut self) -> Result<Counts, BenchError> {
        if let Some(words) = &mut self.words {
            words.write_all(b"counts\n").await?;
        }
        self.line().await
    }

    /// Ends its input and waits for it.
    async fn stop(&mut self) {
        self.words = None;
        // What does not end in time is killed when dropped.
        timeout(PATIENCE, self.child.wait()).await.ok();
    }
}

/// All processes of a bench.
#[derive(Debug)]
pub struct Fleet {
    /// The model server's base URL.
    pub direct: String,
    /// The gateway's.
    pub paid: String,
    upstream: Member,
    node: Member,
    gateway: Member,
    // Last: the others end first.
    remains: Remains,
}

/// The mock upstream's first line.
#[derive(serde::Deserialize)]
struct Listening {
    base_url: String,
}

impl Fleet {
    /// Starts every process as most rounds need it.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn start(effort: &Effort) -> Result<Self, BenchError> {
        Self::open(&Shape::new(effort.transport, effort.disk.as_deref())).await
    }

    /// Starts every process and waits until the gateway knows the node's offer.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn open(shape: &Shape) -> Result<Self, BenchError> {
        let disk = match &shape.disk {
            Some(dir) => TempDir::new_in(dir)?,
            None => TempDir::new()?,
        };
        let chain = chain().await?;
        let remains = Remains { chain, disk };
        let mut upstream = Member::start("model server", &mut mock(shape)?)?;
        let direct = upstream.line::<Listening>().await?.base_url;
        let mut command = role(NODE, &remains.node(), remains.chain.url())?;
        command.args(["--upstream", &direct]);
        command.args(["--slots", &shape.slots.to_string()]);
        if shape.token_bytes.is_some() {
            command.args(["--output", "1"]);
        }
        for address in shape.transport.listen() {
            command.args(["--listen", &address]);
        }
        let mut node = Member::start(NODE, &mut command)?;
        let at = node.line::<Ready>().await?;
        let mut command = role(GATEWAY, &remains.gateway(), remains.chain.url())?;
        command.args(["--listen", "/ip4/127.0.0.1/tcp/0"]);
        command.args(["--slots", &shape.slots.to_string()]);
        if shape.own {
            command.args(["--upstream", &direct]);
        }
        for address in &at.addresses {
            command.args(["--bootstrap", address]);
        }
        let mut gateway = Member::start(GATEWAY, &mut command)?;
        let paid = gateway.line::<Ready>().await?.url;
        tokio::time::sleep(REST).await;
        Ok(Self {
            direct,
            paid,
            upstream,
            node,
            gateway,
            remains,
        })
    }

    /// The processes' ids.
    #[must_use]
    pub fn pids(&self) -> Each<u32> {
        Each {
            upstream: self.upstream.pid,
            node: self.node.pid,
            gateway: self.gateway.pid,
            load: std::process::id(),
        }
    }

    /// The memory of each process now, in bytes.
    ///
    /// # Errors
    /// When one has ended.
    pub fn memory(&self) -> Result<Each<u64>, BenchError> {
        Ok(self.pids().each(machine::memory)?)
    }

    /// What was used so far.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn used(&mut self) -> Result<Used, BenchError> {
        Ok(Used {
            cpu: self.pids().each(machine::cpu)?,
            node: self.node.counts().await?,
            gateway: self.gateway.counts().await?,
        })
    }

    /// Lets what was begun come to its end.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn settle(&mut self) -> Result<(), BenchError> {
        tokio::time::sleep(REST / 4).await;
        self.used().await.map(drop)
    }

    /// The node's and the gateway's directories.
    #[must_use]
    pub fn disks(&self) -> [PathBuf; 2] {
        [self.remains.node(), self.remains.gateway()]
    }

    /// Ends every process, the gateway first; the books stay until what is returned is dropped.
    pub async fn stop(mut self) -> Remains {
        self.gateway.stop().await;
        self.node.stop().await;
        // The model server does not listen to its input, and has nothing to lose.
        self.upstream.child.kill().await.ok();
        self.remains
    }
}

impl Each<u32> {
    /// The same of each.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn each<T>(&self, of: impl Fn(u32) -> std::io::Result<T>) -> std::io::Result<Each<T>> {
        Ok(Each {
            upstream: of(self.upstream)?,
            node: of(self.node)?,
            gateway: of(self.gateway)?,
            load: of(self.load)?,
        })
    }
}

async fn chain() -> Result<LocalChain, BenchError> {
    let chain = LocalChain::start(&anvil()?, testing::network(), ARTIFACTS.as_ref()).await;
    let chain = chain.map_err(StreetError::from)?;
    let claim = roles::claim_key().address();
    chain.fund(claim, GAS).await.map_err(StreetError::from)?;
    let payer = roles::payer_key().address();
    let minted = chain.mint(payer, roles::wealth()).await;
    minted.map_err(StreetError::from)?;
    Ok(chain)
}

/// This program's neighbour, built with it.
fn mock(shape: &Shape) -> Result<Command, BenchError> {
    let mock: PathBuf = std::env::current_exe()?.with_file_name("mock_upstream");
    if !mock.exists() {
        let hint = "build it too: cargo build --release -p farthing-tests --bins";
        return Err(BenchError::Part(format!("no {}; {hint}", mock.display())));
    }
    let mut command = Command::new(mock);
    command.args(["--tokens", "1024"]);
    if let Some(bytes) = shape.token_bytes {
        command.args(["--token-bytes", &bytes.to_string()]);
    }
    Ok(command)
}

/// This program again, as one of its children.
fn role(name: &str, data: &Path, chain: &str) -> Result<Command, BenchError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).arg("--data").arg(data);
    command.args(["--chain", chain]);
    Ok(command)
}
