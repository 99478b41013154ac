//! Who is let in: purchases at work in all and of each buyer, streams that wait for another
//! purchase, and buyers that are told that there is no room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use farthing_protocol::identity::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The most streams that wait for another ask, of all buyers.
const KEPT: usize = 1_024;
/// Buyers that are told politely that there is no room, at once.
const REFUSALS: usize = 64;

/// The place of one purchase; given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _seat: Seat,
}

/// Lets purchases in while there is room. Clones share the room.
#[derive(Debug, Clone)]
pub struct Turnstile {
    purchases: Arc<Semaphore>,
    kept: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    per_buyer: u32,
    buyers: Arc<Mutex<HashMap<NodeId, u32>>>,
    stop: CancellationToken,
}

impl Turnstile {
    /// Room for `purchases` at once, `per_buyer` of each buyer, until `stop`.
    #[must_use]
    pub fn new(purchases: usize, per_buyer: u32, stop: CancellationToken) -> Self {
        Self {
            purchases: Arc::new(Semaphore::new(purchases)),
            kept: Arc::new(Semaphore::new(KEPT)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            per_buyer,
            buyers: Arc::default(),
            stop,
        }
    }

    /// A place for a purchase of this buyer, unless all are taken.
    #[must_use]
    pub fn enter(&self, buyer: NodeId) -> Option<Place> {
        let permit = Arc::clone(&self.purchases).try_acquire_owned().ok()?;
        let seat = Seat::take(&self.buyers, buyer, self.per_buyer)?;
        Some(Place {
            _permit: permit,
            _seat: seat,
        })
    }

    /// A place from which to tell a buyer that there is none; a crowd beyond that hears nothing.
    #[must_use]
    pub fn turn_away(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.refusals).try_acquire_owned().ok()
    }

    /// A place for a stream that waits, unless all are taken or the node stops.
    pub(in crate::serve) fn keep(&self) -> Option<OwnedSemaphorePermit> {
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

/// One purchase of one buyer; given back when dropped.
#[derive(Debug)]
struct Seat {
    buyers: Arc<Mutex<HashMap<NodeId, u32>>>,
    buyer: NodeId,
}

impl Seat {
    fn take(buyers: &Arc<Mutex<HashMap<NodeId, u32>>>, buyer: NodeId, max: u32) -> Option<Self> {
        let mut counts = buyers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(buyer).or_default();
        if *count >= max {
            return None;
        }
        *count = count.saturating_add(1);
        drop(counts);
        Some(Self {
            buyers: Arc::clone(buyers),
            buyer,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.buyers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.buyer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.buyer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::testing;

    use super::*;

    #[test]
    fn a_buyer_has_its_share_and_all_have_theirs_together() {
        let turnstile = Turnstile::new(3, 2, CancellationToken::new());
        let [one, other] = [1, 2].map(|n| testing::node_key(n).id());
        let first = turnstile.enter(one);
        let second = turnstile.enter(one);
        assert!(first.is_some() && second.is_some());
        assert!(turnstile.enter(one).is_none(), "its share");
        let third = turnstile.enter(other);
        assert!(third.is_some(), "a refusal takes no place");
        assert!(turnstile.enter(other).is_none(), "all together");
        drop(first);
        assert!(turnstile.enter(other).is_some());
        assert!(turnstile.enter(one).is_some(), "its seat came back, too");
    }

    #[test]
    fn a_node_that_stops_keeps_no_stream() {
        let stop = CancellationToken::new();
        let turnstile = Turnstile::new(1, 1, stop.clone());
        assert!(turnstile.keep().is_some());
        stop.cancel();
        assert!(turnstile.keep().is_none());
    }
}
