//! The seller's and the buyer's programs as child processes that can be killed.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::keystore::Passphrase;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::chaos::hands::Hands;
use crate::chaos::{ChaosError, INPUT_PRICE, OUTPUT_PRICE, PAYOUT};
use crate::street::MODEL;
use crate::upstream::MockUpstream;

/// How long a program may take to be ready or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Unclaimed atoms that are worth a claim here: a dozen answers.
const CLAIM_AT: u64 = 800;
/// Atoms of a deposit: it lasts for two dozen answers.
const DEPOSIT: u64 = 2_500;
/// Blocks after which a transaction counts as final; reorganisations are less deep.
pub const CONFIRMATIONS: u64 = 3;
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
    /// By how much its clock is wrong is said here, line by line.
    clock: Option<ChildStdin>,
}

/// Starts a program that a full disk does not end: its writes fail instead.
const NO_SIGXFSZ: &str = "trap '' XFSZ; exec \"$@\"";

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
            clock: None,
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
        let mut command = Command::new("sh");
        command
            .args(["-c", NO_SIGXFSZ, "sh"])
            .arg(&self.path)
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

    /// Starts it and waits until it says this in its log.
    async fn start(&mut self, what: &str, sign: &'static str) -> Result<(), ChaosError> {
        let mut child = self
            .command(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        self.clock = child.stdin.take();
        let (said, heard) = oneshot::channel();
        if let Some(words) = child.stderr.take() {
            tokio::spawn(keep(words, self.log(), sign, said));
        }
        self.child = Some(child);
        let how = match timeout(PATIENCE, heard).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => "it died",
            Err(_) => "not in time",
        };
        let (path, log) = (self.path.display(), self.log());
        Err(ChaosError::Process(format!(
            "{path} does not say {sign:?}: {how}; log: {}\n{}",
            log.display(),
            tail(&log)
        )))
    }

    /// Makes its clock wrong by so many milliseconds.
    async fn jump(&mut self, millis: i64) -> Result<(), ChaosError> {
        if let Some(clock) = &mut self.clock {
            clock.write_all(format!("{millis}\n").as_bytes()).await?;
        }
        Ok(())
    }

    fn hands(&self) -> Result<Hands, ChaosError> {
        let id = self.child.as_ref().and_then(Child::id);
        let hands = id.and_then(Hands::on);
        hands.ok_or_else(|| ChaosError::Process(format!("{} does not run", self.path.display())))
    }

    async fn kill(&mut self) -> Result<(), ChaosError> {
        self.clock = None;
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
        let ended = timeout(PATIENCE, child.wait()).await;
        self.clock = None;
        match ended {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            other => Err(ChaosError::Process(format!(
                "{} did not stop in order ({other:?}); log: {}",
                self.path.display(),
                self.log().display()
            ))),
        }
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
        rpc: &str,
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
        program.set("chain.rpc", format_args!("[\"{rpc}\"]"));
        program.set("chain.payout", PAYOUT);
        program.set("chain.min_deposit", "1000");
        // Much happens on the chain, and waits for no more than it must.
        program.set("settlement.claim_at", CLAIM_AT);
        program.set("settlement.poll_interval", "300ms");
        program.set("settlement.confirmations", CONFIRMATIONS);
        program.set("upstream.first_token_timeout", "3s");
        program.set("upstream.idle_timeout", "2s");
        program.set("upstream.health_interval", "1s");
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
        self.program.start("run", "listening").await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// The system's.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.program.kill().await
    }

    /// What can be done to it from outside.
    ///
    /// # Errors
    /// [`ChaosError::Process`] when it does not run.
    pub fn hands(&self) -> Result<Hands, ChaosError> {
        self.program.hands()
    }

    /// Cuts every connection to its buyers.
    ///
    /// # Errors
    /// The system's.
    pub fn cut(&self) -> Result<usize, ChaosError> {
        Ok(self.hands()?.cut(self.port)?)
    }

    /// Makes its clock wrong by so many milliseconds.
    ///
    /// # Errors
    /// The system's.
    pub async fn jump(&mut self, millis: i64) -> Result<(), ChaosError> {
        self.program.jump(millis).await
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
        rpc: &str,
        node: &NodeProcess,
    ) -> Result<Self, ChaosError> {
        let mut program = Program::new(&programs.buyer, dir)?;
        let port = free_port()?;
        program.once("init").await?;
        let passphrase = Passphrase::new(PASSPHRASE.to_owned());
        let passphrase = passphrase.map_err(|e| ChaosError::Process(e.to_string()))?;
        let keys = farthing_client::client::Keys::open(&dir.join("data"), &passphrase, None);
        let keys = keys.map_err(|e| ChaosError::Process(e.to_string()))?;
        program.set("chain.rpc", rpc);
        program.set("spend.deposit", DEPOSIT);
        program.set("router.first_token", "10s");
        program.set("router.idle", "8s");
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

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn start(&mut self) -> Result<(), ChaosError> {
        self.program.start("gateway", "gateway listens").await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// The system's.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.program.kill().await
    }

    /// What can be done to it from outside.
    ///
    /// # Errors
    /// [`ChaosError::Process`] when it does not run.
    pub fn hands(&self) -> Result<Hands, ChaosError> {
        self.program.hands()
    }

    /// Makes its clock wrong by so many milliseconds.
    ///
    /// # Errors
    /// The system's.
    pub async fn jump(&mut self, millis: i64) -> Result<(), ChaosError> {
        self.program.jump(millis).await
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// [`ChaosError::Process`].
    pub async fn stop(&mut self) -> Result<(), ChaosError> {
        self.program.stop().await
    }
}

/// Writes a program's words into its log until it ends, and tells when it has said the sign.
async fn keep(
    words: ChildStderr,
    log: PathBuf,
    sign: &'static str,
    said: oneshot::Sender<()>,
) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    let mut log = options.create(true).append(true).open(log).await?;
    let mut lines = BufReader::new(words).lines();
    let mut said = Some(said);
    while let Some(line) = lines.next_line().await? {
        log.write_all(format!("{line}\n").as_bytes()).await?;
        if line.contains(sign)
            && let Some(said) = said.take()
        {
            log.flush().await?;
            // Whoever waited may have lost patience.
            said.send(()).ok();
        }
    }
    log.flush().await
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
