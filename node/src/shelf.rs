//! The offers we have issued and still honour.
//!
//! An ask names the offer whose prices apply. The newest few are kept, each until it expires, so
//! a new price never moves underneath a buyer that has just chosen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::{Offer, OfferHash, VerifiedOffer};

/// Offers honoured at once: with one every ten seconds at most, all of their lifetime.
const KEPT: usize = 128;

/// A handle to the shelf; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shelf(Arc<Mutex<VecDeque<Arc<VerifiedOffer>>>>);

impl Shelf {
    /// Puts a new offer on the shelf; the oldest falls off.
    pub fn put(&self, offer: Arc<VerifiedOffer>) {
        let mut offers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offers.push_front(offer);
        offers.truncate(KEPT);
    }

    /// The offer with this hash, if it still holds.
    #[must_use]
    pub fn find(&self, hash: OfferHash, now: Timestamp) -> Option<Arc<VerifiedOffer>> {
        let offers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = offers.iter().find(|offer| offer.hash() == hash)?;
        (found.offer().expires > now).then(|| Arc::clone(found))
    }

    /// The newest offer.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<VerifiedOffer>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .front()
            .map(Arc::clone)
    }

    /// Whether the newest offer says what `offer` says, its times and number apart.
    #[must_use]
    pub fn says(&self, offer: &Offer) -> bool {
        self.newest().is_some_and(|newest| {
            let Offer {
                seq,
                issued,
                expires,
                ..
            } = *newest.offer();
            Offer {
                seq,
                issued,
                expires,
                ..offer.clone()
            } == *newest.offer()
        })
    }
}
