//! A chain node over JSON-RPC: several addresses, the first that answers is used.
//!
//! Each attempt has a deadline. A node that fails hands over to the next and rests, longer each
//! time; then it is asked first again. When all rest, all are asked all the same. One whose head
//! is behind what others have shown hands over too, whatever it is asked (`heads.rs`): with several
//! nodes each shows its head before it is believed, and again every few seconds. No node is
//! believed before it has named the chain it serves. Addresses often carry an API key, so errors
//! and logs show their host only.

mod endpoint;
mod heads;
mod everywhere;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::rpc::types::{BlockNumberOrTag, Filter, Log, TransactionRequest};
use alloy::transports::{RpcError, TransportError};
use tokio::time::Instant;

use crate::chain::abi;
use crate::chain::error::ChainError;
use crate::chain::rpc::endpoint::Endpoint;
use crate::chain::rpc::heads::{Heads, MOST_BEHIND};
use crate::chain::words::{Block, Call, Fees, LogQuery, Nonces, Outcome};

/// A chain on this machine mines at once and is asked for nothing: do not let it wait.
const LOCAL_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a node is waited for that is asked for its head for the sake of others only.
const GLANCE: Duration = Duration::from_secs(2);

/// How to reach chain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcConfig {
    /// Addresses of nodes of the same chain, the preferred first.
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
    /// The heads that nodes have shown.
    heads: Mutex<Heads>,
    chain_id: u64,
    config: RpcConfig,
}

impl Rpc {
    /// Nodes of chain `chain_id`. Asks nothing yet.
    pub(super) fn new(config: RpcConfig, chain_id: u64) -> Result<Self, ChainError> {
        if config.urls.is_empty() {
            return Err(ChainError::Config("name at least one node url".into()));
        }
        let endpoint = |url: &String| Endpoint::new(url, config.timeout);
        let endpoints = config.urls.iter().map(endpoint);
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        Ok(Self(Arc::new(Inner {
            heads: Mutex::new(Heads::of(endpoints.len())),
            endpoints,
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

    /// Blocks by which two answers may be apart: none if one node gives all.
    pub(super) fn most_behind(&self) -> u64 {
        if self.0.endpoints.len() > 1 {
            MOST_BEHIND
        } else {
            0
        }
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        // Plain data, whole at every step.
        self.0.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes and their places, in the order in which to ask: by preference, those that rest
    /// last.
    fn in_order(&self) -> Vec<(usize, &Endpoint)> {
        let now = Instant::now();
        let mut order: Vec<_> = self.0.endpoints.iter().enumerate().collect();
        // Stable: preference decides between those that are awake.
        order.sort_by_key(|(_, endpoint)| endpoint.rests_until().filter(|until| *until > now));
        order
    }

    /// Asks node after node until one answers.
    async fn ask<T, F, A>(&self, question: F) -> Result<T, ChainError>
    where
        F: Fn(RootProvider) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let mut last = ChainError::Unavailable("no node configured".into());
        for (place, endpoint) in self.in_order() {
            let told = match Box::pin(self.keeps_up(place, endpoint)).await {
                Ok(()) => self.ask_one(endpoint, &question).await,
                Err(error) => Err(error),
            };
            match told {
                Err(error @ (ChainError::Unavailable(_) | ChainError::WrongChain { .. })) => {
                    tracing::debug!(node = endpoint.host(), %error, "chain node is of no use");
                    endpoint.failed(Instant::now());
                    last = error;
                }
                answer => {
                    endpoint.answered();
                    return answer;
                }
            }
        }
        Err(last)
    }

    /// A node that is behind the others is of no use, whatever it is asked.
    async fn keeps_up(&self, place: usize, endpoint: &Endpoint) -> Result<(), ChainError> {
        if self.heads().is_trusted(place, Instant::now()) {
            return Ok(());
        }
        self.glance_at_others(place).await;
        let head = self.ask_one(endpoint, &head_of).await?;
        let behind = self.heads().show(place, head, Instant::now());
        behind.map_or(Ok(()), |blocks| {
            let host = endpoint.host();
            let why = format!("{host} is at block {head}, {blocks} behind another");
            Err(ChainError::Unavailable(why))
        })
    }

    /// Asks those for their heads who have not shown them for long: else one that stands still
    /// would be found out only when another is needed.
    async fn glance_at_others(&self, but: usize) {
        let now = Instant::now();
        let silent = self.heads().silent(but, now);
        let awake = silent.into_iter().filter_map(|place| {
            let endpoint = self.0.endpoints.get(place)?;
            let rests = endpoint.rests_until().is_some_and(|until| until > now);
            (!rests).then_some((place, endpoint))
        });
        let looks = awake.map(|(place, endpoint)| async move {
            let limit = GLANCE.min(self.0.config.timeout);
            let head = tokio::time::timeout(limit, self.ask_one(endpoint, &head_of)).await;
            match head {
                Ok(Ok(head)) => drop(self.heads().show(place, head, Instant::now())),
                Ok(Err(_)) | Err(_) => endpoint.failed(Instant::now()),
            }
        });
        futures::future::join_all(looks).await;
    }

    async fn ask_one<T, F, A>(&self, endpoint: &Endpoint, question: &F) -> Result<T, ChainError>
    where
        F: Fn(RootProvider) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let limit = self.0.config.timeout;
        endpoint.checked(self.0.chain_id, limit).await?;
        endpoint.within(limit, question(endpoint.node())).await
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

    /// As [`super::door::Door::call_at`].
    pub(super) async fn call_at(&self, call: &Call, block: u64) -> Result<Bytes, ChainError> {
        let request = request(call);
        self.ask(|node| {
            let request = request.clone();
            async move { Ok(node.call(request).block(BlockId::number(block)).await?) }
        })
        .await
    }

    pub(super) async fn nonces(&self, account: Address) -> Result<Nonces, ChainError> {
        self.ask(|node| async move {
            let mined = node.get_transaction_count(account).await?;
            let free = node.get_transaction_count(account).pending().await?;
            Ok(Nonces { mined, free })
        })
        .await
    }

    /// As [`super::door::Door::send`].
    pub(super) async fn send(&self, raw: &Bytes) -> Result<(), ChainError> {
        // Whether a node that was given it has said nothing: it may have taken it.
        let open = AtomicBool::new(false);
        let open = &open;
        let sent = self.ask(|node| async move {
            // Also if nobody waits for the answer any more.
            let before = open.swap(true, Ordering::Relaxed);
            let told = hand_in(node, raw.clone()).await;
            if !may_have_arrived(&told) {
                open.store(before, Ordering::Relaxed);
            }
            told
        });
        match self.or_mined(raw, sent.await).await {
            Err(word) if !word.is_unavailable() && open.load(Ordering::Relaxed) => {
                let why = format!("one node fell silent and may have it; another says: {word}");
                Err(ChainError::Unavailable(why))
            }
            told => told,
        }
    }

    /// A mined transaction answers "nonce too low" when it is sent again.
    async fn or_mined(&self, raw: &Bytes, sent: Result<(), ChainError>) -> Result<(), ChainError> {
        let mined = async || self.outcome_anywhere(keccak256(raw)).await;
        if sent == Err(ChainError::NonceUsed) && mined().await?.is_some() {
            return Ok(());
        }
        sent
    }

    pub(super) async fn outcome(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        self.ask(|node| outcome_of(node, hash)).await
    }

    pub(super) async fn latest(&self) -> Result<Block, ChainError> {
        self.ask(|node| async move {
            let block = block_of(&node, BlockNumberOrTag::Latest).await?;
            block.ok_or_else(|| unavailable("it has no latest block".into()))
        })
        .await
    }

    pub(super) async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        self.ask(|node| async move { Ok(block_of(&node, number.into()).await?) })
            .await
    }

    pub(super) async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>, ChainError> {
        let mut logs = Vec::new();
        let step = self.0.config.log_range.max(1);
        let (mut from, end) = (*query.blocks.start(), *query.blocks.end());
        while from <= end {
            let to = end.min(from.saturating_add(step - 1));
            let mut filter = Filter::new()
                .address(query.address)
                .event_signature(query.topics.clone())
                .from_block(from)
                .to_block(to);
            if let Some(about) = query.about {
                filter = filter.topic1(about);
            }
            let filter = &filter;
            let ask = |node: RootProvider| async move { Ok(node.get_logs(filter).await?) };
            logs.extend(self.ask(ask).await?);
            from = to.saturating_add(1);
        }
        Ok(logs)
    }
}

async fn block_of(
    node: &RootProvider,
    which: BlockNumberOrTag,
) -> Result<Option<Block>, TransportError> {
    let block = node.get_block_by_number(which).await?;
    Ok(block.map(|block| Block {
        number: block.header.number,
        hash: block.header.hash,
        timestamp: block.header.timestamp,
    }))
}

async fn head_of(node: RootProvider) -> Result<u64, Fault> {
    Ok(node.get_block_number().await?)
}

async fn outcome_of(node: RootProvider, hash: B256) -> Result<Option<Outcome>, Fault> {
    let receipt = node.get_transaction_receipt(hash).await?;
    Ok(receipt.and_then(|receipt| {
        Some(Outcome {
            block: receipt.block_number?,
            success: receipt.status(),
            gas: receipt.gas_used,
            gas_price: receipt.effective_gas_price,
        })
    }))
}

/// Whether a node that was given a transaction may have it although it did not say so.
fn may_have_arrived(told: &Result<(), Fault>) -> bool {
    match told {
        Ok(()) | Err(Fault::Answer(_)) => false,
        Err(Fault::Transport(error)) => !endpoint::is_unreached(error),
    }
}

async fn hand_in(node: RootProvider, raw: Bytes) -> Result<(), Fault> {
    match node.send_raw_transaction(&raw).await {
        Ok(_) => Ok(()),
        Err(RpcError::ErrorResp(reply)) => pool_reply(&reply),
        Err(error) => Err(error.into()),
    }
}

const fn unavailable(why: String) -> Fault {
    Fault::Answer(ChainError::Unavailable(why))
}

fn request(call: &Call) -> TransactionRequest {
    TransactionRequest::default()
        .from(call.from)
        .to(call.to)
        .input(call.data.clone().into())
}

/// Why a question has no answer, before it is sorted.
pub(super) enum Fault {
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

/// Words that say that a dearer transaction would be taken.
const TOO_CHEAP: [&str; 4] = [
    "underpriced",
    "replacementnotallowed",
    "fee too low",
    "less than block base fee",
];

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
    } else if has(&TOO_CHEAP) {
        ChainError::Underpriced
    } else if !reply.is_retry_err() && REFUSAL_CODES.contains(&reply.code) {
        ChainError::Refused(reply.message.chars().take(200).collect())
    } else {
        ChainError::Unavailable(reply.message.chars().take(200).collect())
    };
    Err(Fault::Answer(error))
}

#[cfg(test)]
mod tests;
