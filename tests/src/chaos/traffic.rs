//! Applications that buy through the gateway all the time and do not mind failures.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chaos::process::Dice;
use crate::street::MODEL;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_millis(20);
/// Pieces after which somebody hangs up.
const ENOUGH: usize = 20;

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

/// One request of an application, and the fault during which it ended.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Its number, which is in its body.
    pub number: u64,
    /// The hash of its body: by this receipts name it.
    pub hash: B256,
    /// How it wanted its answer.
    pub kind: Kind,
    /// The newest fault when it ended.
    pub fault: usize,
}

/// What the applications have seen so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Pieces of answers.
    pub pieces: u64,
    /// Whole answers.
    pub whole: u64,
    /// Broken or refused ones.
    pub failed: u64,
    /// The newest era in which an answer began that became whole.
    pub healed: u64,
}

/// What applications and the storm know of each other.
#[derive(Debug)]
pub struct Pulse {
    /// The fault that strikes or was the last to strike.
    fault: AtomicUsize,
    /// Counts up whenever something changes for those who ask from now on.
    era: AtomicU64,
    numbers: AtomicU64,
    asked: Mutex<Vec<Asked>>,
    seen: watch::Sender<Seen>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            fault: AtomicUsize::new(0),
            era: AtomicU64::new(1),
            numbers: AtomicU64::new(0),
            asked: Mutex::default(),
            seen: watch::Sender::default(),
        }
    }
}

impl Pulse {
    /// From now on what ends is on the account of this fault.
    pub fn strikes(&self, fault: usize) {
        self.fault.store(fault, Ordering::SeqCst);
    }

    /// A new era begins; returns its number.
    pub fn new_era(&self) -> u64 {
        self.era.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Waits until it is so; false when it is not in this time.
    pub async fn until(&self, patience: Duration, holds: impl FnMut(&Seen) -> bool) -> bool {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(patience, seen.wait_for(holds));
        waited.await.is_ok_and(|held| held.is_ok())
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Every request that has ended.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.book().clone()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        // A list is whole at every step.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request from beginning to end; true when its answer was whole (or left on purpose).
    pub async fn once(&self, url: &str, kind: Kind) -> bool {
        let era = self.era.load(Ordering::SeqCst);
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let body = body(kind, number);
        let hash = keccak256(&body);
        let whole = self.read(url, kind, body).await;
        let fault = self.fault.load(Ordering::SeqCst);
        self.book().push(Asked {
            number,
            hash,
            kind,
            fault,
        });
        self.seen.send_modify(|seen| {
            if whole {
                seen.whole += 1;
                seen.healed = seen.healed.max(era);
            } else {
                seen.failed += 1;
            }
        });
        whole
    }

    async fn read(&self, url: &str, kind: Kind, body: String) -> bool {
        let request = client()
            .post(format!("{url}/v1/chat/completions"))
            .body(body)
            .header("content-type", "application/json");
        let Ok(mut response) = request.send().await else {
            return false;
        };
        if !response.status().is_success() {
            return false;
        }
        let (mut last, mut pieces) = (Vec::new(), 0);
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => last.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(_) => return false,
            }
            pieces += 1;
            self.seen.send_modify(|seen| seen.pieces += 1);
            if kind == Kind::HangUp && pieces > ENOUGH {
                return true;
            }
        }
        kind == Kind::Plain || last.ends_with(b"data: [DONE]\n\n")
    }
}

/// Running applications.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// A client that gives up in time.
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
    pub fn start(pulse: &Arc<Pulse>, url: &str, workers: usize, dice: &mut Dice) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let (url, stop, pulse) = (url.to_owned(), stop.clone(), Arc::clone(pulse));
            let mut dice = Dice::new(dice.between(0, u64::MAX - 1));
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    let kind = match dice.between(0, 9) {
                        0..=3 => Kind::Plain,
                        4..=8 => Kind::Stream,
                        _ => Kind::HangUp,
                    };
                    if !pulse.once(&url, kind).await {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
        Self { stop, tasks }
    }

    /// Ends them when their last requests have ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What a request's number is written after, in its body.
const NUMBER: &str = "\"user\":\"application ";

/// The body of a request: no two are the same, so that receipts and work can be told apart.
fn body(kind: Kind, number: u64) -> String {
    let stream = kind != Kind::Plain;
    let tokens = if stream { 200 } else { 20 };
    format!(
        r#"{{"model":"{MODEL}",{NUMBER}{number}","stream":{stream},"max_tokens":{tokens},"messages":[{{"role":"user","content":"Count the farthings."}}]}}"#
    )
}

/// The number of the request whose body this is, whoever has changed the rest of it.
#[must_use]
pub fn number(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once(NUMBER)?;
    rest.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_again_in_its_body() {
        assert_eq!(number(body(Kind::Stream, 17).as_bytes()), Some(17));
        assert_eq!(number(b"{}"), None);
        assert_ne!(body(Kind::Plain, 1), body(Kind::Plain, 2));
    }
}
