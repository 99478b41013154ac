//! The processes: the fleet of the bench, a gateway of ours with a model server of its own, and the
//! others' gateways as their makers publish them.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::bench::fleet::{Fleet, Member, Place};
use crate::bench::load::plain;
use crate::bench::peers::line::{Line, Target};
use crate::bench::peers::{Contestant, KEY};
use crate::bench::roles::Ready;
use crate::bench::{BenchError, machine};
use crate::street::MODEL;

/// How long a gateway may take to answer for the first time: LiteLLM imports for ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often one that is starting is asked.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one may take to end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How much of a log is shown.
const TAIL: usize = 2_000;
/// Where `tests/tools/setup.sh peers` puts them.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools");
/// Lets Portkey's gateway listen on loopback only.
const LOOPBACK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/peers/loopback.mjs");

/// What a gateway has used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// Processor time of its whole process tree.
    pub(super) cpu: Duration,
    /// Its memory, in bytes.
    pub(super) memory: u64,
}

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    fleet: Fleet,
    own: Member,
    own_url: String,
    peers: Vec<(Contestant, Peer)>,
    disk: TempDir,
}

impl Stage {
    /// Starts whatever is needed for these contestants, and waits until each answers.
    pub(super) async fn start(
        place: &Place,
        contestants: &[Contestant],
        say: impl Fn(&str),
    ) -> Result<Self, BenchError> {
        let disk = match &place.disk {
            Some(dir) => TempDir::new_in(dir)?,
            None => TempDir::new()?,
        };
        let keys = disk.path().join("keys");
        std::fs::write(&keys, format!("{KEY}\n"))?;
        let place = Place {
            keys: Some(keys),
            ..place.clone()
        };
        say("starting chain, model server, node and our gateways");
        let fleet = Fleet::start(&place).await?;
        let mut command = place.buyer(&disk.path().join("own"), fleet.chain())?;
        command.args(["--upstream", &fleet.direct]);
        let mut own = Member::start("gateway with a model server of its own", &mut command)?;
        let own_url = own.line::<Ready>().await?.url;
        let mut stage = Self {
            fleet,
            own,
            own_url,
            peers: Vec::new(),
            disk,
        };
        for contestant in contestants {
            let peer = match contestant {
                Contestant::LiteLlm => stage.litellm(&place)?,
                Contestant::Portkey => stage.portkey(&place)?,
                _ => continue,
            };
            say(&format!("starting {}", contestant.name()));
            stage.peers.push((*contestant, peer));
            let target = stage.target(*contestant)?;
            if let Some((_, peer)) = stage.peers.last_mut() {
                peer.ready(&target).await?;
            }
        }
        Ok(stage)
    }

    fn litellm(&self, place: &Place) -> Result<Peer, BenchError> {
        let dir = self.disk.path();
        let (config, logs) = (dir.join("litellm.json"), dir.join("litellm.logs.json"));
        let direct = &self.fleet.direct;
        let model =
            json!({"model": format!("openai/{MODEL}"), "api_base": direct, "api_key": "none"});
        let settings = json!({
            "model_list": [{"model_name": MODEL, "litellm_params": model}],
            "general_settings": {"master_key": KEY},
        });
        // JSON is YAML.
        std::fs::write(&config, settings.to_string())?;
        let quiet = json!({
            "version": 1,
            "disable_existing_loggers": false,
            "loggers": {"uvicorn": {"level": "ERROR"}, "uvicorn.access": {"level": "CRITICAL"}},
        });
        std::fs::write(&logs, quiet.to_string())?;
        let port = free_port()?;
        let mut command = place.gateway(installed("peers/bin/litellm")?);
        command
            .arg("--config")
            .arg(config)
            .arg("--log_config")
            .arg(logs);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--num_workers", "1", "--telemetry", "False"]);
        command.env("LITELLM_LOG", "ERROR");
        command.env("LITELLM_MODE", "PRODUCTION");
        // Else it asks the network for prices when it starts.
        command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
        Peer::start("LiteLLM", port, command, dir)
    }

    fn portkey(&self, place: &Place) -> Result<Peer, BenchError> {
        let script = installed("peers-npm/node_modules/@portkey-ai/gateway/build/start-server.js")?;
        let port = free_port()?;
        let mut command = place.gateway("node");
        command.args(["--import", LOOPBACK]).arg(script);
        command.args([&format!("--port={port}"), "--headless"]);
        command.env("NODE_ENV", "production");
        Peer::start("Portkey", port, command, self.disk.path())
    }

    /// Where a contestant is asked.
    pub(super) fn target(&self, contestant: Contestant) -> Result<Target, BenchError> {
        match contestant {
            Contestant::Direct => Target::new(&self.fleet.direct),
            Contestant::Own => Target::new(&self.own_url),
            Contestant::Paid => Target::new(&self.fleet.paid),
            Contestant::LiteLlm => Target::new(&self.peer(contestant)?.url()),
            Contestant::Portkey => Target::new(&self.peer(contestant)?.url())?
                .with("x-portkey-provider", "openai")?
                .with("x-portkey-custom-host", &self.fleet.direct),
        }
    }

    /// What a contestant's gateway has used so far; nothing where there is none.
    pub(super) fn used(&self, contestant: Contestant) -> Result<Used, BenchError> {
        let root = match contestant {
            Contestant::Direct => return Ok(Used::default()),
            Contestant::Own => self.own.pid,
            Contestant::Paid => self.fleet.pids().gateway,
            _ => self.peer(contestant)?.pid,
        };
        let mut used = Used::default();
        for pid in machine::tree(root)? {
            let (cpu, memory) = (machine::cpu(pid), machine::memory(pid));
            // A child may have ended since.
            let gone = pid != root && (cpu.is_err() || memory.is_err());
            if !gone {
                used.cpu += cpu?;
                used.memory += memory?;
            }
        }
        Ok(used)
    }

    fn peer(&self, contestant: Contestant) -> Result<&Peer, BenchError> {
        let found = self.peers.iter().find(|(which, _)| *which == contestant);
        let (_, peer) = found.ok_or_else(|| BenchError::Part("it was not started".into()))?;
        Ok(peer)
    }

    /// Ends everything.
    pub(super) async fn stop(mut self) {
        for (_, peer) in &mut self.peers {
            peer.stop().await;
        }
        self.own.stop().await;
        self.fleet.stop().await;
    }
}

/// A part of [`TOOLS`], if it is there.
fn installed(path: &str) -> Result<PathBuf, BenchError> {
    let path = Path::new(TOOLS).join(path);
    if path.exists() {
        return Ok(path);
    }
    let hint = "run `tests/tools/setup.sh peers`";
    Err(BenchError::Part(format!("no {}; {hint}", path.display())))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Somebody else's gateway. It is killed when dropped.
#[derive(Debug)]
struct Peer {
    name: &'static str,
    child: Child,
    pid: u32,
    port: u16,
    log: PathBuf,
}

impl Peer {
    fn start(
        name: &'static str,
        port: u16,
        mut command: Command,
        dir: &Path,
    ) -> Result<Self, BenchError> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log)?;
        let child = command
            // The model server is on this machine.
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| BenchError::Part(format!("cannot start {name}: {error}")))?;
        let pid = child.id();
        let pid = pid.ok_or_else(|| BenchError::Part(format!("{name} ended at once")))?;
        Ok(Self {
            name,
            child,
            pid,
            port,
            log,
        })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Waits for its first answer.
    async fn ready(&mut self, target: &Target) -> Result<(), BenchError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let error = match first(target).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = self.child.try_wait()?;
            if ended.is_none() && Instant::now() < end {
                sleep(AGAIN).await;
                continue;
            }
            let what = ended.map_or(error.to_string(), |status| status.to_string());
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL)..]).into_owned();
            let text = format!("{} does not answer: {what}; it says:\n{log}", self.name);
            return Err(BenchError::Part(text));
        }
    }

    async fn stop(&mut self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).ok();
        }
        if timeout(FAREWELL, self.child.wait()).await.is_err() {
            self.child.kill().await.ok();
        }
    }
}

async fn first(target: &Target) -> Result<Duration, BenchError> {
    Line::open(target).await?.plain(plain()).await
}

/// The programs' versions as they tell them.
pub(super) async fn versions(contestants: &[Contestant]) -> Result<Vec<String>, BenchError> {
    let mut all = Vec::new();
    if contestants.contains(&Contestant::LiteLlm) {
        let says = "import sys, importlib.metadata as m; \
                    print(f'LiteLLM {m.version(\"litellm\")} on Python {sys.version.split()[0]}')";
        let mut python = Command::new(installed("peers/bin/python")?);
        all.push(line(python.args(["-c", says])).await?);
    }
    if contestants.contains(&Contestant::Portkey) {
        let package = installed("peers-npm/node_modules/@portkey-ai/gateway/package.json")?;
        let says = format!(
            "`Portkey ${{require({:?}).version}} on Node ${{process.version}}`",
            package.display().to_string()
        );
        all.push(line(Command::new("node").args(["-p", &says])).await?);
    }
    Ok(all)
}

async fn line(command: &mut Command) -> Result<String, BenchError> {
    let output = command.output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
