//! A real model server: llama.cpp with a small language model, as `tests/tools/setup.sh model`
//! installs it and `tests/tools/model_server.py` starts it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// What the model is called on the market.
pub const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
/// The tokens of context each of its slots has.
pub const CONTEXT: u32 = 2048;
/// How long it may take to load and to prove itself; it takes 3 s.
const START_LIMIT: Duration = Duration::from_secs(120);

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/model/bin/python");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/model_server.py");

/// Why there is no model server.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// It is not installed.
    #[error("no model server at {0}; run tests/tools/setup.sh model")]
    Absent(PathBuf),
    /// It cannot be started.
    #[error("the model server cannot be started: {0}")]
    Start(#[from] std::io::Error),
    /// It ended before it was ready.
    #[error("the model server ended before it was ready; {} says why", .0.display())]
    Ended(PathBuf),
    /// It took too long.
    #[error("the model server was not ready after {START_LIMIT:?}; {} says why", .0.display())]
    Late(PathBuf),
}

/// A running llama.cpp. Killed on drop.
#[derive(Debug)]
pub struct Llama {
    base_url: String,
    child: Child,
}

#[derive(Deserialize)]
struct Ready {
    base_url: String,
}

impl Llama {
    /// Whether it is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        Path::new(PYTHON).exists()
    }

    /// Starts it with so many slots and returns when it has answered a question. Its own words go
    /// to the file `log`.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub async fn start(slots: u32, log: &Path) -> Result<Self, LlamaError> {
        Self::begin(slots, log, &[]).await
    }

    /// The same with a template that tells the model of tools. It calls one between the marks
    /// `<tool_call>` and `</tool_call>`, each on a line of its own.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub async fn start_with_tools(slots: u32, log: &Path) -> Result<Self, LlamaError> {
        Self::begin(slots, log, &["--tools"]).await
    }

    async fn begin(slots: u32, log: &Path, more: &[&str]) -> Result<Self, LlamaError> {
        if !Self::is_installed() {
            return Err(LlamaError::Absent(PYTHON.into()));
        }
        let mut child = Command::new(PYTHON)
            .arg(SCRIPT)
            .args(["--slots", &slots.to_string()])
            .args(["--context", &CONTEXT.to_string()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .kill_on_drop(true)
            .spawn()?;
        let ready = tokio::time::timeout(START_LIMIT, ready(&mut child)).await;
        let ready = ready.map_err(|_| LlamaError::Late(log.to_owned()))?;
        let ready = ready.ok_or_else(|| LlamaError::Ended(log.to_owned()))?;
        Ok(Self {
            base_url: ready.base_url,
            child,
        })
    }

    /// The base URL to configure as an upstream, ending in `/v1`.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Ends it, and waits until it is gone.
    pub async fn stop(mut self) {
        // One that has ended already is stopped too.
        self.child.kill().await.ok();
    }
}

async fn ready(child: &mut Child) -> Option<Ready> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    let line = lines.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}
