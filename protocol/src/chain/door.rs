//! The narrow door: the few questions that anything can be asked which serves a chain. A node
//! over JSON-RPC is behind it, or the twin in memory; everything above is the same for both.

use alloy::primitives::{Address, B256, Bytes};
use alloy::rpc::types::Log;

use crate::chain::error::ChainError;
#[cfg(any(test, feature = "testing"))]
use crate::chain::memory::MemoryChain;
use crate::chain::rpc::Rpc;
use crate::chain::words::{Block, Call, Fees, LogQuery, Nonces, Outcome, Told};

/// Whoever answers.
#[derive(Debug, Clone)]
pub(super) enum Door {
    Rpc(Rpc),
    #[cfg(any(test, feature = "testing"))]
    Memory(MemoryChain),
}

/// Asks whoever is behind the door.
macro_rules! ask {
    ($door:expr, $method:ident($($argument:expr),*)) => {
        match $door {
            Door::Rpc(rpc) => rpc.$method($($argument),*).await,
            #[cfg(any(test, feature = "testing"))]
            Door::Memory(memory) => {
                // A test may let its world end at any await: before the twin acts, and after.
                tokio::task::yield_now().await;
                let answer = memory.$method($($argument),*);
                tokio::task::yield_now().await;
                answer
            }
        }
    };
}

impl Door {
    /// Every node must serve `chain_id`; those that are away are checked when they are needed.
    pub(super) async fn check_chain(&self, chain_id: u64) -> Result<(), ChainError> {
        ask!(self, check_chain(chain_id))
    }

    pub(super) async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        ask!(self, has_code(address))
    }

    pub(super) async fn gas_balance(&self, account: Address) -> Result<u128, ChainError> {
        ask!(self, gas_balance(account))
    }

    pub(super) async fn call(&self, call: &Call) -> Result<Bytes, ChainError> {
        ask!(self, call(call))
    }

    /// As [`Door::call`], but on the state after that block.
    pub(super) async fn call_at(&self, call: &Call, block: u64) -> Result<Bytes, ChainError> {
        ask!(self, call_at(call, block))
    }

    pub(super) async fn estimate(&self, call: &Call) -> Result<u64, ChainError> {
        ask!(self, estimate(call))
    }

    pub(super) async fn fees(&self) -> Result<Fees, ChainError> {
        ask!(self, fees())
    }

    pub(super) async fn nonces(&self, account: Address) -> Result<Nonces, ChainError> {
        ask!(self, nonces(account))
    }

    /// Hands in a signed transaction. One that is known already is taken again gladly.
    pub(super) async fn send(&self, raw: &Bytes) -> Result<(), ChainError> {
        ask!(self, send(raw))
    }

    /// As [`Door::send`], but to every node that there is; one that takes it is enough.
    pub(super) async fn spread(&self, raw: &Bytes) -> Told {
        ask!(self, spread(raw))
    }

    pub(super) async fn outcome(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        ask!(self, outcome(hash))
    }

    /// As [`Door::outcome`], but of every node that there is: one that knows it is enough and is
    /// not kept waiting for the others; one that answers is enough to say that none knows it.
    pub(super) async fn outcome_anywhere(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        ask!(self, outcome_anywhere(hash))
    }

    pub(super) async fn latest(&self) -> Result<Block, ChainError> {
        ask!(self, latest())
    }

    pub(super) async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        ask!(self, block(number))
    }

    pub(super) async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>, ChainError> {
        ask!(self, logs(query))
    }

    /// How often it is worth asking whether a transaction is mined.
    pub(super) fn poll_interval(&self) -> std::time::Duration {
        match self {
            Self::Rpc(rpc) => rpc.poll_interval(),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(_) => std::time::Duration::from_millis(2),
        }
    }

    /// Blocks by which two answers may be apart.
    pub(super) fn most_behind(&self) -> u64 {
        match self {
            Self::Rpc(rpc) => rpc.most_behind(),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(memory) => memory.most_behind(),
        }
    }
}
