//! Payments for one purchase whose end nobody told: when their time is over, the chain does.

use farthing_protocol::clock::Timestamp;

use crate::channels::{ChannelError, Channels};
use crate::ledger::Payment;
use crate::ledger::Scheme;
use crate::ledger::once::{Once, OpenOnce};

/// Seconds of the chain's time that must have passed since: a block may be taken back.
const PAST: u64 = 60;

impl Channels {
    /// Ends the payments whose time is over: what the chain shows as taken is booked in full (it
    /// does not show how much of a permit), what it shows as not taken is given back. Returns
    /// whether the chain's own time is behind for some.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn end_once(&self) -> Result<bool, ChannelError> {
        let now = self.clock.now();
        let left = self.ledger.left_once();
        let over = |opened: &OpenOnce| opened.once.until().saturating_add(PAST) < now.seconds();
        let over: Vec<_> = left.into_iter().filter(over).collect();
        let mut waits = false;
        if over.is_empty() {
            return Ok(waits);
        }
        let chain = self.chain.latest().await?.timestamp;
        for opened in over {
            if opened.once.until().saturating_add(PAST) >= chain {
                waits = true;
            } else {
                self.end_one(&opened, now).await?;
            }
        }
        Ok(waits)
    }

    async fn end_one(&self, opened: &OpenOnce, now: Timestamp) -> Result<(), ChannelError> {
        let (used, scheme) = match opened.once {
            Once::Exact(it) => {
                let used = self.chain.authorization_used(it.from, it.nonce).await?;
                (used, Scheme::Exact)
            }
            Once::Upto(it) => {
                let used = self.chain.permit_used(it.owner, it.nonce).await?;
                (used, Scheme::Upto)
            }
        };
        let (seller, request) = (opened.seller.short(), opened.request);
        if !used {
            tracing::info!(%seller, request = %request.short(), "a payment was not taken in its time and counts no more");
            return Ok(self.ledger.void_once(request).await?);
        }
        tracing::info!(%seller, request = %request.short(), "a payment was taken although its answer was lost");
        let amount = opened.once.ceiling();
        let payment = Payment {
            request,
            seller: opened.seller,
            url: opened.url.clone(),
            scheme,
            model: opened.model.clone(),
            signed: amount,
            charged: amount,
            at: now,
            dispute: None,
            receipt: None,
            words: None,
        };
        Ok(self.ledger.settle_once(&payment).await?)
    }
}
