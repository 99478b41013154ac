//! What every hop of a purchase may use: handles and limits, assembled once by `node.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::{Domain, EvmKey};
use farthing_protocol::identity::NodeKey;
use farthing_protocol::purchase::{Load, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::catalog::Catalog;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::shelf::Shelf;
use crate::upstream::Upstream;

/// What a purchase may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request body.
    pub max_body: u64,
    /// Unclaimed atoms on one channel before service stops.
    pub exposure: Amount,
    /// How long work waits for a voucher.
    pub unpaid_wait: Duration,
    /// The longest a purchase may take, whatever the buyer asks.
    pub deadline: Duration,
    /// How often a running stream is checkpointed.
    pub checkpoint: Duration,
}

/// The seller's parts as a purchase sees them.
#[derive(Debug)]
pub struct Shop {
    /// The time of day.
    pub clock: Clock,
    /// Signs receipts.
    pub key: NodeKey,
    /// Signs roots over receipts.
    pub claim: EvmKey,
    /// The domain vouchers are signed in.
    pub domain: Domain,
    /// The domain roots are signed in.
    pub roots: Domain,
    /// The books.
    pub ledger: Ledger,
    /// The offers we honour.
    pub shelf: Shelf,
    /// What is on sale.
    pub catalog: Catalog,
    /// The model server.
    pub upstream: Upstream,
    /// Limits of one purchase.
    pub limits: Limits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Seats per model.
    pub seats: Seats,
}

/// Purchases of each model that may run at once.
#[derive(Debug)]
pub struct Seats {
    models: HashMap<String, Seat>,
}

#[derive(Debug)]
struct Seat {
    free: Arc<Semaphore>,
    slots: u32,
}

/// A guess at how long a purchase keeps its seat.
pub const RETRY_AFTER_MS: u64 = 500;

impl Seats {
    /// So many seats for each model.
    #[must_use]
    pub fn new(models: impl IntoIterator<Item = (String, u32)>) -> Self {
        let seat = |slots: u32| Seat {
            free: Arc::new(Semaphore::new(slots as usize)),
            slots,
        };
        Self {
            models: models
                .into_iter()
                .map(|(id, slots)| (id, seat(slots)))
                .collect(),
        }
    }

    /// Takes a seat; it is free again when the guard is dropped.
    ///
    /// # Errors
    /// [`Refusal::Busy`], [`Refusal::UnknownModel`].
    pub fn take(&self, model: &str) -> Result<OwnedSemaphorePermit, Refusal> {
        let seat = self.models.get(model).ok_or(Refusal::UnknownModel)?;
        let busy = Refusal::Busy {
            retry_after_ms: RETRY_AFTER_MS,
        };
        Arc::clone(&seat.free).try_acquire_owned().map_err(|_| busy)
    }

    /// How full each model is.
    #[must_use]
    pub fn loads(&self) -> Vec<Load> {
        self.models.keys().map(|model| self.load(model)).collect()
    }

    /// How full a model is; all models together when it is not one of ours.
    #[must_use]
    pub fn load(&self, model: &str) -> Load {
        let of = |seat: &Seat| {
            let free = u32::try_from(seat.free.available_permits()).unwrap_or(u32::MAX);
            Load {
                running: seat.slots.saturating_sub(free),
                slots: seat.slots,
            }
        };
        self.models.get(model).map(of).unwrap_or_default()
    }
}
