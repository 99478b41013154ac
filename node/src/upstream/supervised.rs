//! A model server the node starts itself: one command, watched and restarted.
//!
//! The command runs in a process group of its own, which is killed when the supervisor ends, is
//! dropped, or gives up on a start. (If the node itself is killed with SIGKILL, nobody is left to
//! do that.) Its output goes to the log at level debug: it may quote prompts.

use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::CommandConfig;

/// How often a starting server is asked whether it is ready.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// How long the command may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// The longest piece of output logged as one line.
const MAX_LINE: usize = 4096;

/// What the command is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Process {
    /// It runs but does not answer yet.
    Starting,
    /// It answered.
    Ready,
    /// It does not run: why, and when it will.
    Down(String),
}

impl Process {
    /// Why there is nobody to ask.
    pub(super) fn not_ready(&self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::Starting => Some("its command is starting".into()),
            Self::Down(reason) => Some(reason.clone()),
        }
    }
}

/// How soon a command that ended is started again: each time twice as late, until it ran steadily.
#[derive(Debug, Clone, Copy)]
struct Pace {
    first: Duration,
    most: Duration,
    steady: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            most: Duration::from_secs(60),
            steady: Duration::from_secs(60),
        }
    }
}

/// Runs the command until it is stopped. `probe` says whether the server answers.
pub(super) struct Supervisor<P> {
    command: CommandConfig,
    probe: P,
    pace: Pace,
    state: watch::Sender<Process>,
    stop: CancellationToken,
}

impl<P, F> Supervisor<P>
where
    P: Fn() -> F + Send + Sync,
    F: Future<Output = bool> + Send,
{
    /// A supervisor, and what tells of its command.
    pub(super) fn new(
        command: CommandConfig,
        probe: P,
        stop: CancellationToken,
    ) -> (Self, watch::Receiver<Process>) {
        let (state, receiver) = watch::channel(Process::Starting);
        let supervisor = Self {
            command,
            probe,
            pace: Pace::default(),
            state,
            stop,
        };
        (supervisor, receiver)
    }

    /// Starts the command again and again. Ends when stopped.
    pub(super) async fn run(self) {
        let mut wait = self.pace.first;
        loop {
            let started = Instant::now();
            let Some(reason) = self.live().await else {
                break;
            };
            if started.elapsed() >= self.pace.steady {
                wait = self.pace.first;
            }
            tracing::warn!(%reason, ?wait, "the model server's command ended and will be restarted");
            let reason = format!("its command {reason}; restarting in {wait:?}");
            self.state.send_replace(Process::Down(reason));
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(self.pace.most);
        }
        self.state
            .send_replace(Process::Down("its command is stopped".into()));
    }

    /// One life of the command: why it ended, or none when it was stopped.
    async fn live(&self) -> Option<String> {
        self.state.send_replace(Process::Starting);
        let mut group = match Group::spawn(&self.command) {
            Ok(group) => group,
            Err(error) => {
                let program = self.command.program.display();
                return Some(format!("cannot be started: {program}: {error}"));
            }
        };
        let last_line = Mutex::new(String::new());
        let (out, err) = (group.child.stdout.take(), group.child.stderr.take());
        let end = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            // Before the end is noticed: the last words are why.
            () = forward(out, &last_line) => None,
            () = forward(err, &last_line) => None,
            status = group.child.wait() => Some(match status {
                Ok(status) => format!("ended ({status})"),
                Err(error) => format!("cannot be watched: {error}"),
            }),
            reason = self.until_late() => Some(reason),
        };
        group.end().await;
        let line = last_line.into_inner().unwrap_or_default();
        end.map(|reason| match line.as_str() {
            "" => reason,
            line => format!("{reason}, saying: {line}"),
        })
    }

    /// Tells when the server is ready. Returns only if that does not happen in time.
    async fn until_late(&self) -> String {
        let ready = async {
            while !(self.probe)().await {
                sleep(PROBE_EVERY).await;
            }
        };
        let patience = self.command.ready_timeout;
        if timeout(patience, ready).await.is_err() {
            return format!("did not answer within {patience:?}");
        }
        self.state.send_replace(Process::Ready);
        std::future::pending().await
    }
}

/// Logs what the command prints, and keeps its last line. Never returns.
async fn forward(output: Option<impl AsyncRead + Unpin>, last_line: &Mutex<String>) {
    if let Some(mut output) = output {
        let mut line = Vec::new();
        let mut buffer = [0_u8; 2048];
        while let Ok(read @ 1..) = output.read(&mut buffer).await {
            for byte in buffer.iter().take(read) {
                if *byte != b'\n' && line.len() < MAX_LINE {
                    line.push(*byte);
                    continue;
                }
                say(&line, last_line);
                line.clear();
            }
        }
        say(&line, last_line);
    }
    std::future::pending().await
}

fn say(line: &[u8], last_line: &Mutex<String>) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    tracing::debug!(target: "farthing_node::upstream::command", "{text}");
    if let Ok(mut last) = last_line.lock() {
        text.clone_into(&mut last);
    }
}

/// The command and all it started. Killed when dropped.
struct Group {
    child: Child,
    #[cfg(unix)]
    id: Option<rustix::process::Pid>,
}

impl Group {
    fn spawn(config: &CommandConfig) -> std::io::Result<Self> {
        let mut command = Command::new(&config.program);
        command
            .args(&config.args)
            .envs(&config.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let child = command.spawn()?;
        Ok(Self {
            #[cfg(unix)]
            id: child
                .id()
                .and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)),
            child,
        })
    }

    /// Asks the group to end, waits a while, and kills what is left of it.
    async fn end(mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::TERM);
        #[cfg(not(unix))]
        self.child.start_kill().ok();
        if timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!("the model server's command did not end when asked to");
        }
    }

    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(id) = self.id {
            // It may be gone already, which is what is wanted.
            rustix::process::kill_process_group(id, signal).ok();
        }
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        // Also what the command started: else a restarted server finds its port taken.
        self.signal(rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests;
