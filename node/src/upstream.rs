//! The model server, as one handle: a request in, an answer out.
//!
//! [`Upstream`] owns two tasks: one asks the server whether it is well, the other, when a command
//! is configured, runs that command. Both end with [`Upstream::stop`] or with the last handle.
//! It counts no tokens (`meter`) and knows no price. Requests and answers are never logged.

mod openai;
mod sse;
mod supervised;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::body::{Body, BodyError, quote};
use farthing_protocol::purchase::{Endpoint, Mode};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::UpstreamConfig;
use crate::metrics::{Counts, Metrics, count};

pub use openai::Events;

/// How soon a server that is down is asked again, when the configured interval is longer.
const RETRY: Duration = Duration::from_secs(1);
/// A server that was up is down after so many failed questions: a busy one may miss one.
const PATIENCE: u32 = 2;
/// The longest [`Upstream::stop`] waits; the command's own grace is shorter.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Whether the model server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Up,
    /// It does not, and why.
    Down(String),
}

/// What the model server answers.
#[derive(Debug)]
pub enum Reply {
    /// The whole document.
    Plain(Bytes),
    /// The events as they come. Dropping them cancels the generation.
    Stream(Box<Events>),
}

/// Why there is no upstream.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file with the API key cannot be read.
    #[error("cannot read the API key in {}: {source}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What the file holds cannot be a key.
    #[error("the first line of {} is not an API key", .0.display())]
    Key(PathBuf),
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client: {0}")]
    Http(String),
}

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection. The server has done nothing.
    #[error("the model server cannot be reached: {0}")]
    Unreachable(String),
    /// The server refuses. It has generated nothing.
    #[error("the model server answered {status}")]
    Status {
        /// Its HTTP status.
        status: u16,
        /// Its body, cut at [`farthing_protocol::frame::REFUSAL_BODY_LIMIT`].
        body: Bytes,
        /// When it says to try again.
        retry_after: Option<Duration>,
    },
    /// The connection broke before the answer began. It may have generated.
    #[error("the connection to the model server broke: {0}")]
    Lost(String),
    /// The stream's first event did not come in time. It may have generated.
    #[error("the model server sent no event in {0:?}")]
    NoFirstEvent(Duration),
    /// The stream's next event did not come in time.
    #[error("the model server fell silent for {0:?}")]
    Stalled(Duration),
    /// The request's deadline, or the longest an answer may take.
    #[error("the answer was not done in time")]
    Deadline,
    /// The stream ended before the answer did.
    #[error("the model server's answer was cut off")]
    Cut,
    /// The server reports a failure instead of (more of) an answer.
    #[error("the model server reports a failure")]
    Reported(Bytes),
    /// The answer is not in the form it should have.
    #[error("the model server's answer is malformed: {0}")]
    Malformed(&'static str),
    /// The answer, or one event of it, is larger than this.
    #[error("the model server's answer exceeds {0} bytes")]
    TooLarge(usize),
}

impl UpstreamError {
    /// True when the server may have worked for this request. (What the buyer got of it is what
    /// counts; this tells whether asking again may do the work twice.)
    #[must_use]
    pub const fn may_have_worked(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::Status { .. })
    }

    /// Its name in the metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Status { .. } => "status",
            Self::Lost(_) => "lost",
            Self::NoFirstEvent(_) => "no_first_event",
            Self::Stalled(_) => "stalled",
            Self::Deadline => "deadline",
            Self::Cut => "cut",
            Self::Reported(_) => "reported",
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) => "too_large",
        }
    }
}

/// The request as the model server shall get it: its own name for the model, no more output than
/// `max_output` (what is not limited by the buyer is limited by the offer, for that is what was
/// reserved) and, for a stream, usage at the end. All other bytes stay what they were.
///
/// # Errors
/// [`BodyError`] when `stream_options` is not an object or a limit is not a number.
pub fn prepare_body(
    body: &Body<'_>,
    model: &str,
    mode: Mode,
    max_output: Option<u32>,
) -> Result<Vec<u8>, BodyError> {
    let model = quote(model);
    let limit = max_output.map(|limit| limit.to_string());
    let mut changes = vec![("model", model.as_str())];
    if let Some(limit) = &limit {
        let fields = limited_fields(body, max_output)?;
        changes.extend(fields.into_iter().map(|field| (field, limit.as_str())));
    }
    let options = match mode {
        Mode::Plain => return Ok(body.with(&changes)),
        Mode::Stream => match body.raw("stream_options") {
            None => Cow::Borrowed(r#"{"include_usage":true}"#),
            Some(raw) => {
                let merged = Body::parse(raw.as_bytes())
                    .map_err(wrong_options)?
                    .with(&[("include_usage", "true")]);
                Cow::Owned(String::from_utf8_lossy(&merged).into_owned())
            }
        },
    };
    changes.push(("stream_options", &options));
    Ok(body.with(&changes))
}

/// The fields that must be set so that an answer ends at the offer's limit. A body that names both
/// is held to the one that [`farthing_protocol::pricing`] reads, whichever the server obeys.
fn limited_fields(
    body: &Body<'_>,
    max_output: Option<u32>,
) -> Result<Vec<&'static str>, BodyError> {
    const FIELDS: [&str; 2] = ["max_completion_tokens", "max_tokens"];
    let Some(max) = max_output else {
        return Ok(Vec::new());
    };
    let mut set = Vec::new();
    let mut named = false;
    for field in FIELDS {
        if let Some(asked) = body.get::<u64>(field)? {
            named = true;
            if asked > u64::from(max) {
                set.push(field);
            }
        }
    }
    if !named {
        set.push("max_tokens");
    }
    Ok(set)
}

fn wrong_options(error: BodyError) -> BodyError {
    BodyError::Field {
        field: "stream_options",
        reason: error.to_string(),
    }
}

/// The model server. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: openai::Client,
    health: watch::Receiver<Health>,
    failures: Counts,
    life: Arc<Life>,
}

/// Ends the tasks with the last handle.
#[derive(Debug)]
struct Life {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Upstream {
    /// Starts to watch the server, and the server itself if a command is configured. Does not
    /// wait until it is up: see [`Upstream::watch_health`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: &UpstreamConfig, metrics: &Metrics) -> Result<Self, StartError> {
        let client = openai::Client::new(config)?;
        let life = Life {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let process = config.command.clone().map(|command| {
            let probe = client.clone();
            let probe = move || {
                let probe = probe.clone();
                async move { probe.discover().await.is_ok() }
            };
            let (supervisor, process) =
                supervised::Supervisor::new(command, probe, life.stop.clone());
            life.tasks.spawn(supervisor.run());
            process
        });
        let (sender, health) = watch::channel(Health::Down("not asked yet".into()));
        let nurse = Nurse {
            client: client.clone(),
            interval: config.health_interval,
            process,
            health: sender,
            gauge: metrics.upstream_up.clone(),
            stop: life.stop.clone(),
        };
        life.tasks.spawn(nurse.run());
        Ok(Self {
            client,
            health,
            failures: metrics.upstream_failures.clone(),
            life: Arc::new(life),
        })
    }

    /// The models the server has.
    ///
    /// # Errors
    /// Any [`UpstreamError`] of a plain request.
    pub async fn discover(&self) -> Result<Vec<String>, UpstreamError> {
        self.client.discover().await
    }

    /// Whether the server answered when last asked.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Tells of every change of health.
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Asks for one answer. `body` is what [`prepare_body`] made; `deadline` counts from now and
    /// covers the whole answer. Dropping the future or the reply closes the connection, which
    /// cancels the generation.
    ///
    /// # Errors
    /// Any [`UpstreamError`] but [`UpstreamError::Stalled`] and [`UpstreamError::Cut`], which a
    /// stream ends with.
    pub async fn ask(
        &self,
        endpoint: Endpoint,
        mode: Mode,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Reply, UpstreamError> {
        let asked = match mode {
            Mode::Plain => {
                let document = self.client.document(endpoint, body, deadline);
                document.await.map(Reply::Plain)
            }
            Mode::Stream => {
                let events = self.client.events(endpoint, body, deadline);
                events.await.map(|events| Reply::Stream(Box::new(events)))
            }
        };
        asked.inspect_err(|error| count(&self.failures, error.name()))
    }

    /// Ends the tasks and the command, and waits for them.
    pub async fn stop(&self) {
        self.life.stop.cancel();
        self.life.tasks.close();
        if timeout(STOP_TIMEOUT, self.life.tasks.wait()).await.is_err() {
            tracing::warn!("the model server's command did not end in time");
        }
    }
}

/// Asks again and again whether the server is well.
struct Nurse {
    client: openai::Client,
    interval: Duration,
    process: Option<watch::Receiver<supervised::Process>>,
    health: watch::Sender<Health>,
    gauge: Gauge,
    stop: CancellationToken,
}

impl Nurse {
    async fn run(mut self) {
        let stop = self.stop.clone();
        // Ends between any two steps: nothing here must be finished.
        let _stopped: Option<()> = stop.run_until_cancelled(self.watch()).await;
    }

    async fn watch(&mut self) {
        let mut failed = 0;
        loop {
            let health = self.ask(&mut failed).await;
            let wait = match health {
                Health::Up => self.interval,
                Health::Down(_) => self.interval.min(RETRY),
            };
            self.publish(health);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed(self.process.as_mut()) => {}
            }
        }
    }

    async fn ask(&mut self, failed: &mut u32) -> Health {
        if let Some(process) = &mut self.process
            && let Some(reason) = process.borrow_and_update().not_ready()
        {
            return Health::Down(reason);
        }
        match self.client.discover().await {
            Ok(_) => {
                *failed = 0;
                Health::Up
            }
            Err(error) => {
                *failed = failed.saturating_add(1);
                let patient = error.may_have_worked() && *failed < PATIENCE;
                if patient && *self.health.borrow() == Health::Up {
                    return Health::Up;
                }
                Health::Down(error.to_string())
            }
        }
    }

    fn publish(&self, health: Health) {
        let up = health == Health::Up;
        self.gauge.set(i64::from(up));
        self.health.send_if_modified(|known| {
            let turned = (*known == Health::Up) != up;
            match (&health, turned) {
                (Health::Up, true) => tracing::info!("the model server is up"),
                (Health::Down(reason), true) => {
                    tracing::warn!(%reason, "the model server is down");
                }
                (_, false) => {}
            }
            let changed = *known != health;
            *known = health;
            changed
        });
    }
}

/// Until the process changes; for ever when there is none.
async fn changed(process: Option<&mut watch::Receiver<supervised::Process>>) {
    if let Some(process) = process
        && process.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
