//! One chain node: its address, which is never shown whole, and how it fares.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::transports::{RpcError, TransportError, TransportErrorKind};
use reqwest::Url;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::chain::error::ChainError;
use crate::chain::rpc::{Fault, revert_reply};

/// How long a node that failed once is asked last.
const FIRST_REST: Duration = Duration::from_secs(2);
/// The longest rest is so many times doubled: about a minute.
const MOST_DOUBLINGS: u32 = 5;

/// A node, and how it fares.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: Url,
    provider: RootProvider,
    /// Set when the node has named the right chain.
    checked: OnceCell<()>,
    health: Mutex<Health>,
}

/// Whether a node is to be asked before others.
#[derive(Debug, Default)]
struct Health {
    /// In a row.
    failures: u32,
    until: Option<Instant>,
}

impl Endpoint {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, ChainError> {
        // The url is not repeated: it may carry a key.
        let url: Url = url
            .parse()
            .map_err(|e| ChainError::Config(format!("a node url cannot be read: {e}")))?;
        let mut client = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&url) {
            // A proxy set for the outside world does not reach this machine's own node.
            client = client.no_proxy();
        }
        let client = client
            .build()
            .map_err(|e| ChainError::Config(format!("no HTTP client: {e}")))?;
        let provider = RootProvider::new(RpcClient::new_http_with_client(client, url.clone()));
        Ok(Self {
            url,
            provider,
            checked: OnceCell::new(),
            health: Mutex::default(),
        })
    }

    pub(super) fn node(&self) -> RootProvider {
        self.provider.clone()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when it is asked only after the others.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.health().until
    }

    /// It was of no use: it rests, twice as long as the last time.
    pub(super) fn failed(&self, now: Instant) {
        let mut health = self.health();
        let rest = FIRST_REST.saturating_mul(1 << health.failures.min(MOST_DOUBLINGS));
        health.until = now.checked_add(rest);
        health.failures = health.failures.saturating_add(1);
    }

    /// It did its work.
    pub(super) fn answered(&self) {
        *self.health() = Health::default();
    }

    /// Asks it once which chain it serves.
    pub(super) async fn checked(&self, chain_id: u64, limit: Duration) -> Result<(), ChainError> {
        let check = || self.check(chain_id, limit);
        self.checked.get_or_try_init(check).await.copied()
    }

    pub(super) fn is_local(&self) -> bool {
        is_loopback(&self.url)
    }

    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or("a node")
    }

    pub(super) async fn check(&self, expected: u64, limit: Duration) -> Result<(), ChainError> {
        let node = self.provider.clone();
        let question = async move { Ok(node.get_chain_id().await?) };
        let got = self.within(limit, question).await?;
        if got == expected {
            return Ok(());
        }
        Err(ChainError::WrongChain {
            url: self.host().to_owned(),
            expected,
            got,
        })
    }

    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, ChainError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Fault::Answer(error))) => Err(error),
            Ok(Err(Fault::Transport(error))) => Err(self.classify(&error)),
            Err(_) => Err(ChainError::Unavailable(format!(
                "{} took over {limit:?}",
                self.host()
            ))),
        }
    }

    pub(super) fn classify(&self, error: &TransportError) -> ChainError {
        if let RpcError::ErrorResp(reply) = error
            && let Some(reverted) = revert_reply(reply)
        {
            return reverted;
        }
        let text = error.to_string().replace(self.url.as_str(), self.host());
        // A node's words can be long (an HTML page); the beginning says enough.
        let text: String = text.chars().take(200).collect();
        ChainError::Unavailable(format!("{}: {text}", self.host()))
    }
}

/// Whether nothing was said to a node at all: no connection was made.
pub(super) fn is_unreached(error: &TransportError) -> bool {
    let RpcError::Transport(TransportErrorKind::Custom(cause)) = error else {
        return false;
    };
    let cause = cause.downcast_ref::<reqwest::Error>();
    cause.is_some_and(reqwest::Error::is_connect)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_fails_again_rests_longer_and_one_that_answers_is_forgiven() {
        let url = "http://node.example";
        let endpoint = Endpoint::new(url, Duration::from_secs(1)).expect("a url");
        let now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..8 {
            endpoint.failed(now);
            rests.extend(endpoint.rests_until().map(|until| until - now));
        }
        let seconds: Vec<_> = rests.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 64, 64]);
        endpoint.answered();
        assert_eq!(endpoint.rests_until(), None);
    }
}
