//! How many purchases are at work, and how many streams wait for another one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The most streams that wait for another ask, of all buyers.
const KEPT: usize = 1_024;

/// A place; given back when dropped.
pub type Place = OwnedSemaphorePermit;

/// Lets purchases in while there is room. Clones share the room.
#[derive(Debug, Clone)]
pub struct Turnstile {
    purchases: Arc<Semaphore>,
    kept: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Turnstile {
    /// Room for `purchases` at once, until `stop`.
    #[must_use]
    pub fn new(purchases: usize, stop: CancellationToken) -> Self {
        Self {
            purchases: Arc::new(Semaphore::new(purchases)),
            kept: Arc::new(Semaphore::new(KEPT)),
            stop,
        }
    }

    /// A place for a purchase, unless all are taken.
    #[must_use]
    pub fn enter(&self) -> Option<Place> {
        Arc::clone(&self.purchases).try_acquire_owned().ok()
    }

    /// A place for a stream that waits, unless all are taken or the node stops.
    pub(in crate::serve) fn keep(&self) -> Option<Place> {
        if self.stop.is_cancelled() {
            return None;
        }
        Arc::clone(&self.kept).try_acquire_owned().ok()
    }

    /// Returns when the node stops.
    pub(in crate::serve) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}
