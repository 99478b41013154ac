//! The seller's and the buyer's programs as child processes that can be killed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::chain::local::LocalChain;
use farthing_protocol::keystore::Passphrase;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::chaos::{ChaosError, INPUT_PRICE, OUTPUT_PRICE, PAYOUT};
use crate::street::MODEL;
use crate::upstream::MockUpstream;

/// How long a program may take to be ready or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// What unlocks the keys of a test.
const PASSPHRASE: &str = "chaos is only a test";

/// The programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `farthing-node`.
    pub seller: PathBuf,
    /// `farthing`.
    pub buyer: PathBuf,
}

/// Seeded dice: a run can be repeated.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number between these, both included (splitmix64).
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + (z ^ (z >> 31)) % (high - low + 1)
    }
}

/// One program on one data directory.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    dir: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Program {
    fn new(path: &Path, dir: &Path) -> Result<Self, ChaosError> {
        std::fs::create_dir_all(dir)?;
        let secret = dir.join("passphrase");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&secret)?;
        std::io::Write::write_all(&mut file, PASSPHRASE.as_bytes())?;
        let args = vec![
            "--data-dir".into(),
            dir.join("data").display().to_string(),
            "--passphrase-file".into(),
            secret.display().to_string(),
        ];
        Ok(Self {
            path: path.to_owned(),
            dir: dir.to_owned(),
            args,
            child: None,
        })
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.args
            .extend(["--set".to_owned(), format!("{key}={value}")]);
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .arg(what)
            .args(&self.args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn once(&self, what: &str) -> Result<String, ChaosError> {
        let output = self.command(what).output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ChaosError::Process(format!(
            "{} {what} failed: {error}",
            self.path.display()
        )))
    }

    fn start(&mut self, what: &str) -> Result<(), ChaosError> {
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let child = self
            .command(what)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    async fn kill(&mut self) -> Result<(), ChaosError> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Asks it to stop, as an operator does, and waits.
    async fn stop(&mut self) -> Result<(), ChaosError> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if let Some(pid) = child.id() {
            Command::new("kill")
                .args(["-TERM", &pid.to_string()])
                .status()
                .await?;
        }
        match timeout(PATIENCE, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            other => Err(ChaosError::Process(format!(
                "{} did not stop in order ({other:?}); log: {}",
                self.path.display(),
                self.log().display()
            ))),
        }
    }

    fn died(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }
}

/// The seller's program.
#[derive(Debug)]
pub struct NodeProcess {
    program: Program,
    port: u16,
    /// Who it is.
    pub node: String,
    /// Its claim key, which needs gas.
    pub claim: Address,
}

impl NodeProcess {
    /// `farthing-node init`, and a configuration for this street.
    ///
    /// # Errors
    /// [`ChaosError`].
    pub async fn set_up(
        programs: &Programs,
        dir: &Path,
        anvil: &LocalChain,
        upstream: &MockUpstream,
    ) -> Result<Self, ChaosError> {
        let mut program = Program::new(&programs.seller, dir)?;
        let port = free_port()?;
        let said = program.once("init").await?;
        let word = |label: &str| {
            let line = said.lines().find(|line| line.starts_with(label));
            line.and_then(|line| line.split_whitespace().last())
                .unwrap_or_default()
                .to_owned()
        };
        let config = dir.join("data/node.toml");
        let model = format!(
            "\n[[models]]\nid = \"{MODEL}\"\nendpoints = [\"chat\"]\ncontext = 8192\nmax_output = 1024\nslots = 64\nprices = {{ input = {INPUT_PRICE}, output = {OUTPUT_PRICE} }}\n"
        );
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, text + &model)?;
        program.set("chain.rpc", format_args!("[\"{}\"]", anvil.url()));
        program.set("chain.payout", PAYOUT);
        program.set("upstream.base_url", upstream.base_url());
        program.set(
            "network.listen",
            format_args!("[\"/ip4/127.0.0.1/tcp/{port}\"]"),
        );
        program.set("network.mdns", false);
        program.set("limits.purchases_per_buyer", 64);
        let claim = word("claim key")
            .parse()
            .map_err(|_| ChaosError::Process(format!("no claim key in: {said}")))?;
        Ok(Self {
            program,
            port,
            node: word("node"),
            claim,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", self.port, self.node)
    }

    /// Its disk.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.program.dir.join("data")
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn start(&mut self) -> Result<(), ChaosError> {
        self.program.start("run")?;
        let port = self.port;
        until("the node listens", &mut self.program, async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// The system's.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.program.kill().await
    }

    /// Stops it in order: it claims.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn stop(&mut self) -> Result<(), ChaosError> {
        self.program.stop().await
    }
}

/// The buyer's program.
#[derive(Debug)]
pub struct Gateway {
    program: Program,
    port: u16,
    /// Whose tokens are spent.
    pub payer: Address,
}

impl Gateway {
    /// `farthing init`, and a configuration for this street.
    ///
    /// # Errors
    /// [`ChaosError`].
    pub async fn set_up(
        programs: &Programs,
        dir: &Path,
        anvil: &LocalChain,
        node: &NodeProcess,
    ) -> Result<Self, ChaosError> {
        let mut program = Program::new(&programs.buyer, dir)?;
        let port = free_port()?;
        program.once("init").await?;
        let passphrase = Passphrase::new(PASSPHRASE.to_owned());
        let passphrase = passphrase.map_err(|e| ChaosError::Process(e.to_string()))?;
        let keys = farthing_client::client::Keys::open(&dir.join("data"), &passphrase);
        let keys = keys.map_err(|e| ChaosError::Process(e.to_string()))?;
        program.set("chain.rpc", anvil.url());
        program.set("network.listen", "/ip4/127.0.0.1/tcp/0");
        program.set("network.mdns", false);
        program.set("network.bootstrap", node.address());
        program.set("gateway.listen", format_args!("127.0.0.1:{port}"));
        for limit in ["per_seller", "per_day", "total"] {
            program.set(&format!("spend.{limit}"), "1000000000");
        }
        Ok(Self {
            program,
            port,
            payer: keys.wallet.payer.address(),
        })
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its disk.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.program.dir.join("data")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.program.log()
    }

    /// Starts it and waits until it can buy.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn start(&mut self) -> Result<(), ChaosError> {
        self.program.start("gateway")?;
        let url = format!("{}/health", self.url());
        until("the gateway is ready", &mut self.program, async || {
            let asked = crate::chaos::traffic::client().get(&url).send().await;
            asked.is_ok_and(|response| response.status().is_success())
        })
        .await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// The system's.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.program.kill().await
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn stop(&mut self) -> Result<(), ChaosError> {
        self.program.stop().await
    }
}

/// Asks until it is so, unless the program dies.
async fn until(
    what: &str,
    program: &mut Program,
    ready: impl AsyncFn() -> bool,
) -> Result<(), ChaosError> {
    let log = program.log();
    let failed = |how: &str| {
        ChaosError::Process(format!(
            "{what}: {how}; log: {}\n{}",
            log.display(),
            tail(&log)
        ))
    };
    let waiting = async {
        loop {
            if ready().await {
                return Ok(());
            }
            if program.died() {
                return Err("it died");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(PATIENCE, waiting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(how)) => Err(failed(how)),
        Err(_) => Err(failed("not in time")),
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn free_port() -> Result<u16, ChaosError> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
