//! A chain node over JSON-RPC: several addresses, the first that answers is used.
//!
//! Each attempt has a deadline. A node that fails hands over to the next, which is kept until it
//! fails in turn. No node is believed before it has named the chain it serves. Addresses often
//! carry an API key, so errors and logs show their host only.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::rpc::types::{BlockNumberOrTag, Filter, Log, TransactionRequest};
use alloy::transports::{RpcError, TransportError};
use reqwest::Url;
use tokio::sync::OnceCell;

use crate::chain::abi;
use crate::chain::error::ChainError;
use crate::chain::words::{Block, Call, Fees, LogQuery, Outcome};

/// A chain on this machine mines at once and is asked for nothing: do not let it wait.
const LOCAL_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How to reach chain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcConfig {
    /// Addresses of nodes of the same chain; the first that answers is used.
    pub urls: Vec<String>,
    /// How long one node may take for one answer.
    pub timeout: Duration,
    /// How often to ask whether a transaction is mined. A node on this machine is asked every
    /// 20 ms.
    pub poll_interval: Duration,
    /// The most blocks one question for events spans; public nodes refuse wide ones.
    pub log_range: u64,
}

impl Default for RpcConfig {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:8545".to_owned()],
            timeout: Duration::from_secs(10),
            poll_interval: Duration::from_millis(500),
            log_range: 2_000,
        }
    }
}

/// The nodes we may ask.
#[derive(Debug, Clone)]
pub(super) struct Rpc(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoints: Vec<Endpoint>,
    /// Index of the node that answered last.
    current: AtomicUsize,
    chain_id: u64,
    config: RpcConfig,
}

#[derive(Debug)]
struct Endpoint {
    url: Url,
    provider: RootProvider,
    /// Set when the node has named the right chain.
    checked: OnceCell<()>,
}

impl Rpc {
    /// Nodes of chain `chain_id`. Asks nothing yet.
    pub(super) fn new(config: RpcConfig, chain_id: u64) -> Result<Self, ChainError> {
        if config.urls.is_empty() {
            return Err(ChainError::Config("name at least one node url".into()));
        }
        let endpoint = |url: &String| Endpoint::new(url, config.timeout);
        let endpoints = config.urls.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            endpoints,
            current: AtomicUsize::new(0),
            chain_id,
            config,
        })))
    }

    pub(super) fn poll_interval(&self) -> Duration {
        let interval = self.0.config.poll_interval;
        if self.0.endpoints.iter().all(Endpoint::is_local) {
            return interval.min(LOCAL_POLL_INTERVAL);
        }
        interval
    }

    /// Asks node after node, beginning with the one that answered last.
    async fn ask<T, F, A>(&self, question: F) -> Result<T, ChainError>
    where
        F: Fn(RootProvider) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let count = self.0.endpoints.len();
        let first = self.0.current.load(Ordering::Relaxed);
        let mut last = ChainError::Unavailable("no node configured".into());
        for index in (first..first.saturating_add(count)).map(|i| i % count) {
            let Some(endpoint) = self.0.endpoints.get(index) else {
                continue;
            };
            match self.ask_one(endpoint, &question).await {
                Err(error @ (ChainError::Unavailable(_) | ChainError::WrongChain { .. })) => {
                    tracing::debug!(node = endpoint.host(), %error, "chain node is of no use");
                    last = error;
                }
                answer => {
                    self.0.current.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        Err(last)
    }

    async fn ask_one<T, F, A>(&self, endpoint: &Endpoint, question: &F) -> Result<T, ChainError>
    where
        F: Fn(RootProvider) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let limit = self.0.config.timeout;
        let chain_id = self.0.chain_id;
        let check = || endpoint.check(chain_id, limit);
        endpoint.checked.get_or_try_init(check).await?;
        endpoint
            .within(limit, question(endpoint.provider.clone()))
            .await
    }

    /// As [`super::door::Door::check_chain`].
    pub(super) async fn check_chain(&self, chain_id: u64) -> Result<(), ChainError> {
        let mut away = None;
        let mut present = false;
        for endpoint in &self.0.endpoints {
            match endpoint.check(chain_id, self.0.config.timeout).await {
                Ok(()) => present = true,
                Err(error) if error.is_unavailable() => away = Some(error),
                Err(error) => return Err(error),
            }
        }
        match away {
            Some(error) if !present => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        self.ask(|node| async move { Ok(!node.get_code_at(address).await?.is_empty()) })
            .await
    }

    pub(super) async fn gas_balance(&self, account: Address) -> Result<u128, ChainError> {
        let balance: U256 = self
            .ask(|node| async move { Ok(node.get_balance(account).await?) })
            .await?;
        Ok(balance.saturating_to())
    }

    pub(super) async fn call(&self, call: &Call) -> Result<Bytes, ChainError> {
        let request = request(call);
        self.ask(|node| {
            let request = request.clone();
            async move { Ok(node.call(request).block(BlockId::latest()).await?) }
        })
        .await
    }

    pub(super) async fn estimate(&self, call: &Call) -> Result<u64, ChainError> {
        let request = request(call);
        self.ask(|node| {
            let request = request.clone();
            async move { Ok(node.estimate_gas(request).block(BlockId::latest()).await?) }
        })
        .await
    }

    pub(super) async fn fees(&self) -> Result<Fees, ChainError> {
        let fees = self
            .ask(|node| async move { Ok(node.estimate_eip1559_fees().await?) })
            .await?;
        Ok(Fees {
            max: fees.max_fee_per_gas,
            priority: fees.max_priority_fee_per_gas,
        })
    }

    pub(super) async fn next_nonce(&self, account: Address) -> Result<u64, ChainError> {
        self.ask(|node| async move { Ok(node.get_transaction_count(account).pending().await?) })
            .await
    }

    /// As [`super::door::Door::send`].
    pub(super) async fn send(&self, raw: &Bytes) -> Result<(), ChainError> {
        let sent = self
            .ask(|node| {
                let raw = raw.clone();
                async move {
                    match node.send_raw_transaction(&raw).await {
                        Ok(_) => Ok(()),
                        Err(RpcError::ErrorResp(reply)) => pool_reply(&reply),
                        Err(error) => Err(error.into()),
                    }
                }
            })
            .await;
        // A mined transaction answers "nonce too low" when it is sent again.
        if sent == Err(ChainError::NonceUsed) && self.outcome(keccak256(raw)).await?.is_some() {
            return Ok(());
        }
        sent
    }

    pub(super) async fn outcome(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        let receipt = self
            .ask(|node| async move { Ok(node.get_transaction_receipt(hash).await?) })
            .await?;
        Ok(receipt.and_then(|receipt| {
            Some(Outcome {
                block: receipt.block_number?,
                success: receipt.status(),
                gas: receipt.gas_used,
                gas_price: receipt.effective_gas_price,
            })
        }))
    }

    pub(super) async fn latest(&self) -> Result<Block, ChainError> {
        let latest = BlockNumberOrTag::Latest;
        let block = self
            .ask(|node| async move { Ok(node.get_block_by_number(latest).await?) })
            .await?
            .ok_or_else(|| ChainError::Unavailable("the node has no latest block".into()))?;
        Ok(Block {
            number: block.header.number,
            timestamp: block.header.timestamp,
        })
    }

    pub(super) async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>, ChainError> {
        let mut logs = Vec::new();
        let step = self.0.config.log_range.max(1);
        let (mut from, end) = (*query.blocks.start(), *query.blocks.end());
        while from <= end {
            let to = end.min(from.saturating_add(step - 1));
            let filter = Filter::new()
                .address(query.address)
                .event_signature(query.topics.clone())
                .from_block(from)
                .to_block(to);
            let filter = &filter;
            let ask = |node: RootProvider| async move { Ok(node.get_logs(filter).await?) };
            logs.extend(self.ask(ask).await?);
            from = to.saturating_add(1);
        }
        Ok(logs)
    }
}

fn request(call: &Call) -> TransactionRequest {
    TransactionRequest::default()
        .from(call.from)
        .to(call.to)
        .input(call.data.clone().into())
}

impl Endpoint {
    fn new(url: &str, timeout: Duration) -> Result<Self, ChainError> {
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
        })
    }

    fn is_local(&self) -> bool {
        is_loopback(&self.url)
    }

    fn host(&self) -> &str {
        self.url.host_str().unwrap_or("a node")
    }

    async fn check(&self, expected: u64, limit: Duration) -> Result<(), ChainError> {
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

    async fn within<T>(
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

    fn classify(&self, error: &TransportError) -> ChainError {
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

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Why a question has no answer, before it is sorted.
enum Fault {
    Answer(ChainError),
    Transport(TransportError),
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// The code geth gives a revert that carries data.
const REVERT_CODE: i64 = 3;

fn revert_reply(reply: &ErrorPayload) -> Option<ChainError> {
    if let Some(data) = reply.as_revert_data() {
        return Some(abi::reverted(&data));
    }
    let reverted = reply.code == REVERT_CODE || reply.message.contains("execution reverted");
    reverted.then(|| abi::reverted(&[]))
}

/// JSON-RPC codes by which nodes refuse a transaction for good.
const REFUSAL_CODES: [i64; 3] = [-32000, -32003, -32602];

/// A transaction pool's answer by its words: they are the same in geth, reth, erigon and anvil,
/// the codes are not.
fn pool_reply(reply: &ErrorPayload) -> Result<(), Fault> {
    let text = reply.message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["already known", "already imported", "alreadyknown"]) {
        return Ok(());
    }
    let error = if has(&["nonce too low", "oldnonce"]) {
        ChainError::NonceUsed
    } else if has(&["underpriced", "replacementnotallowed", "fee too low"]) {
        ChainError::Underpriced
    } else if !reply.is_retry_err() && REFUSAL_CODES.contains(&reply.code) {
        ChainError::Refused(reply.message.chars().take(200).collect())
    } else {
        ChainError::Unavailable(reply.message.chars().take(200).collect())
    };
    Err(Fault::Answer(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: i64, message: &'static str) -> ErrorPayload {
        ErrorPayload {
            code,
            message: message.into(),
            data: None,
        }
    }

    #[test]
    fn a_pools_answer_is_read_by_its_words() {
        let read = |code, message| match pool_reply(&reply(code, message)) {
            Ok(()) => Ok(()),
            Err(Fault::Answer(error)) => Err(error),
            Err(Fault::Transport(_)) => Err(ChainError::Unavailable("transport".into())),
        };
        assert_eq!(read(-32000, "already known"), Ok(()));
        assert_eq!(read(-32003, "transaction already imported"), Ok(()));
        assert_eq!(
            read(-32000, "nonce too low: next nonce 5, tx nonce 4"),
            Err(ChainError::NonceUsed)
        );
        assert_eq!(
            read(-32000, "replacement transaction underpriced"),
            Err(ChainError::Underpriced)
        );
        assert!(matches!(
            read(-32000, "gas limit too high"),
            Err(ChainError::Refused(_))
        ));
        assert!(matches!(
            read(-32005, "rate limit"),
            Err(ChainError::Unavailable(_))
        ));
    }

    #[test]
    fn a_key_in_an_address_is_not_shown() {
        let url = "https://node.example/v2/SECRET";
        let endpoint = Endpoint::new(url, Duration::from_secs(1)).expect("a url");
        let error =
            RpcError::ErrorResp(reply(-32603, "no route for https://node.example/v2/SECRET"));
        assert!(!endpoint.classify(&error).to_string().contains("SECRET"));
    }

    #[tokio::test]
    async fn nobody_at_home_is_unavailable() {
        let config = RpcConfig {
            urls: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
            timeout: Duration::from_secs(1),
            ..RpcConfig::default()
        };
        let rpc = Rpc::new(config, 31337).expect("a valid configuration");
        assert!(rpc.latest().await.is_err_and(|e| e.is_unavailable()));
        assert!(
            rpc.check_chain(31337)
                .await
                .is_err_and(|e| e.is_unavailable())
        );
    }
}
