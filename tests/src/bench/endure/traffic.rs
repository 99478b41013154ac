//! The applications of a long run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::bench::BenchError;
use crate::street::MODEL;

/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a slow reader stands still, twice in each answer.
const SLOW: Duration = Duration::from_secs(2);
/// Pieces after which somebody hangs up.
const ENOUGH: usize = 10;
/// Different surprises that are told.
const TOLD: usize = 5;

/// How an application behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for a document.
    Plain,
    /// Reads a paced stream to its end.
    Stream,
    /// Stands still in the middle of a stream, and reads the rest.
    Slow,
    /// Leaves in the middle of a stream.
    HangUp,
    /// Asks for a model that nobody sells.
    Unknown,
    /// Sends what is no request.
    Nonsense,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Plain,
        Self::Stream,
        Self::Slow,
        Self::HangUp,
        Self::Unknown,
        Self::Nonsense,
    ];

    /// What it does, in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain answers of 16 tokens",
            Self::Stream => "streams of 64 tokens, one every 5 ms",
            Self::Slow => "streams of 512 tokens, read slowly",
            Self::HangUp => "streams of 200 tokens, left after 10 pieces",
            Self::Unknown => "refused: no such model",
            Self::Nonsense => "refused: no JSON",
        }
    }

    /// How many applications do this.
    const fn many(self) -> usize {
        match self {
            Self::Plain | Self::Slow => 4,
            Self::Stream => 8,
            Self::HangUp => 2,
            Self::Unknown | Self::Nonsense => 1,
        }
    }

    /// How long one waits after its answer.
    const fn pause(self) -> Duration {
        match self {
            Self::Plain => Duration::from_millis(30),
            Self::Stream | Self::HangUp => Duration::from_millis(20),
            Self::Slow => Duration::ZERO,
            Self::Unknown | Self::Nonsense => Duration::from_millis(100),
        }
    }

    const fn refused(self) -> Option<StatusCode> {
        match self {
            Self::Unknown => Some(StatusCode::NOT_FOUND),
            Self::Nonsense => Some(StatusCode::BAD_REQUEST),
            _ => None,
        }
    }

    fn body(self) -> String {
        let (model, stream, tokens, pace) = match self {
            Self::Plain => (MODEL, false, 16, 0),
            Self::Stream => (MODEL, true, 64, 5_000),
            Self::Slow => (MODEL, true, 512, 0),
            Self::HangUp => (MODEL, true, 200, 5_000),
            Self::Unknown => ("nobody/sells-this", false, 16, 0),
            Self::Nonsense => return "{\"model\":".to_owned(),
        };
        format!(
            r#"{{"model":"{model}","stream":{stream},"max_tokens":{tokens},"mock":{{"pace_us":{pace}}},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
        )
    }
}

/// What the applications have seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Answers, whole or left or refused as they should be, in the order of [`Kind::ALL`].
    pub as_expected: [u64; Kind::ALL.len()],
    /// Those that were not.
    pub surprises: u64,
    /// Some of the reasons.
    pub reasons: Vec<String>,
}

/// The applications.
#[derive(Debug)]
pub struct Traffic {
    http: reqwest::Client,
    url: String,
    counts: [AtomicU64; Kind::ALL.len()],
    surprises: AtomicU64,
    reasons: Mutex<Vec<String>>,
}

impl Traffic {
    /// Applications of this gateway.
    ///
    /// # Errors
    /// [`BenchError::Http`].
    pub fn new(base: &str) -> Result<Self, BenchError> {
        let http = reqwest::Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        Ok(Self {
            http,
            url: format!("{base}/chat/completions"),
            counts: Default::default(),
            surprises: AtomicU64::new(0),
            reasons: Mutex::default(),
        })
    }

    /// Lets all of them ask until then.
    pub fn start(self: &Arc<Self>, until: Instant) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            for _ in 0..kind.many() {
                let traffic = Arc::clone(self);
                running.spawn(async move {
                    while Instant::now() < until {
                        let went = traffic.once(kind).await;
                        traffic.enter(place, went);
                        sleep(kind.pause()).await;
                    }
                });
            }
        }
        running
    }

    /// Requests that have ended.
    #[must_use]
    pub fn answered(&self) -> u64 {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        counts.sum()
    }

    /// What was seen.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        Seen {
            as_expected: std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed)),
            surprises: self.surprises.load(Ordering::Relaxed),
            reasons: reasons.clone(),
        }
    }

    fn enter(&self, place: usize, went: Result<(), BenchError>) {
        let Err(error) = went else {
            self.counts[place].fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.surprises.fetch_add(1, Ordering::Relaxed);
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < TOLD {
            reasons.push(error.to_string());
        }
    }

    async fn once(&self, kind: Kind) -> Result<(), BenchError> {
        let request = self.http.post(&self.url);
        let request = request.header(CONTENT_TYPE, "application/json");
        let response = request.body(kind.body()).send().await?;
        let status = response.status();
        let expected = kind.refused().unwrap_or(StatusCode::OK);
        if status != expected {
            let text = response.text().await?;
            return Err(BenchError::Answer(format!("{kind:?}: {status}: {text}")));
        }
        match kind {
            Kind::Plain | Kind::Unknown | Kind::Nonsense => {
                response.bytes().await?;
                Ok(())
            }
            Kind::Stream => whole(response, false).await,
            Kind::Slow => whole(response, true).await,
            Kind::HangUp => some(response).await,
        }
    }
}

/// Reads a stream to its end, which must be a good one.
async fn whole(mut response: Response, slowly: bool) -> Result<(), BenchError> {
    let (mut tail, mut pieces) = (Vec::new(), 0);
    while let Some(bytes) = response.chunk().await? {
        tail.extend_from_slice(&bytes);
        tail.drain(..tail.len().saturating_sub(64));
        pieces += 1;
        if slowly && pieces <= 2 {
            sleep(SLOW).await;
        }
    }
    let tail = String::from_utf8_lossy(&tail);
    match tail.contains("data: [DONE]") {
        true => Ok(()),
        false => Err(BenchError::Answer(format!("a stream ended with {tail}"))),
    }
}

/// Reads some pieces and leaves.
async fn some(mut response: Response) -> Result<(), BenchError> {
    for _ in 0..ENOUGH {
        if response.chunk().await?.is_none() {
            return Err(BenchError::Answer("a stream ended too early".into()));
        }
    }
    Ok(())
}
