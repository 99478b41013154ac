//! Applications that buy through the gateway all the time and do not mind failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chaos::process::Dice;
use crate::street::MODEL;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_millis(20);

/// What came of all requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Whole answers.
    pub whole: u64,
    /// Broken or refused ones.
    pub failed: u64,
}

/// How a request wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One document.
    Plain,
    /// A stream, read to its end.
    Stream,
    /// A stream that is left in the middle.
    HangUp,
}

/// Running applications.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    whole: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

/// A client that gives up in time.
///
/// # Panics
/// Never: its settings are fixed and good.
#[must_use]
pub fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .tcp_nodelay(true);
    builder.build().unwrap_or_default()
}

impl Traffic {
    /// Starts so many applications.
    #[must_use]
    pub fn start(url: String, workers: usize, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let (whole, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for worker in 0..workers as u64 {
            let (url, stop) = (url.clone(), stop.clone());
            let (whole, failed) = (Arc::clone(&whole), Arc::clone(&failed));
            tasks.spawn(async move {
                let mut dice = Dice::new(seed.wrapping_add(worker * 7919 + 1));
                while !stop.is_cancelled() {
                    let kind = match dice.between(0, 9) {
                        0..=3 => Kind::Plain,
                        4..=8 => Kind::Stream,
                        _ => Kind::HangUp,
                    };
                    if once(&url, kind, &stop).await {
                        whole.fetch_add(1, Ordering::Relaxed);
                    } else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
        Self {
            stop,
            tasks,
            whole,
            failed,
        }
    }

    /// Ends them when their last requests have ended.
    pub async fn stop(mut self) -> Counts {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        Counts {
            whole: self.whole.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// The body of every request of a kind: receipts name it by its hash.
#[must_use]
pub fn body(kind: Kind) -> String {
    let stream = kind != Kind::Plain;
    let tokens = if stream { 200 } else { 20 };
    format!(
        r#"{{"model":"{MODEL}","stream":{stream},"max_tokens":{tokens},"messages":[{{"role":"user","content":"Count the farthings."}}]}}"#
    )
}

/// One request; true when its answer was whole (or left on purpose).
pub async fn once(url: &str, kind: Kind, _stop: &CancellationToken) -> bool {
    let stream = kind != Kind::Plain;
    let request = client()
        .post(format!("{url}/v1/chat/completions"))
        .body(body(kind));
    let Ok(mut response) = request
        .header("content-type", "application/json")
        .send()
        .await
    else {
        return false;
    };
    if !response.status().is_success() {
        return false;
    }
    let mut last = Vec::new();
    let mut chunks = 0;
    loop {
        match response.chunk().await {
            Ok(Some(bytes)) => last.extend_from_slice(&bytes),
            Ok(None) => break,
            Err(_) => return false,
        }
        chunks += 1;
        if kind == Kind::HangUp && chunks > 20 {
            return true;
        }
    }
    !stream || last.ends_with(b"data: [DONE]\n\n")
}
