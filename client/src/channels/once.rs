//! Payments for one purchase: what lets `upto` be paid, and the end of those that nobody told the
//! end of: when their time is over, the chain does.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ChainError, Write};
use farthing_protocol::clock::Timestamp;

use crate::channels::{ChannelError, Channels, DEPOSIT_WAIT};
use crate::ledger::once::{Once, OpenOnce};
use crate::ledger::{LedgerError, Payment, Scheme};

/// Seconds of the chain's time that must have passed since: a block may be taken back.
const PAST: u64 = 60;
/// The most that are ended at once: whoever asks has more to do.
const FEW: usize = 4;

impl Channels {
    /// Ends a few of the payments whose time is over, the oldest first: what the chain shows as taken is booked in full (it
    /// does not show how much of a permit), what it shows as not taken is given back. Returns
    /// whether the chain's own time is behind for some.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn end_once(&self) -> Result<bool, ChannelError> {
        let now = self.clock.now();
        let left = self.ledger.left_once();
        let over = |opened: &OpenOnce| opened.once.until().saturating_add(PAST) < now.seconds();
        let mut over: Vec<_> = left.into_iter().filter(over).collect();
        over.sort_by_key(|opened| opened.once.until());
        over.truncate(FEW);
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

    /// Lets Permit2 move so many atoms of the payer's tokens, which sellers that take `upto` only
    /// need. It moves nothing by itself: each payment is signed within the limits as before. The
    /// payer pays the gas. Returns the transaction.
    ///
    /// # Errors
    /// [`LedgerError::Elsewhere`]; the chain's.
    pub async fn allow_permit2(&self, amount: Amount) -> Result<B256, ChannelError> {
        let elsewhere = || LedgerError::Elsewhere(self.wallet.payer());
        let key = self.wallet.payer_key().ok_or_else(elsewhere)?;
        self.chain.verify_upto().await?;
        let write = Write::AllowPermit2 { amount };
        let prepared = self.chain.prepare(&write, key, None).await?;
        let hash = self.chain.broadcast(&prepared.raw).await?;
        let outcome = self.chain.wait(hash, 1, DEPOSIT_WAIT).await?;
        if !outcome.success {
            let name = format!("approve, in transaction {hash}");
            return Err(ChainError::Reverted { name }.into());
        }
        Ok(hash)
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
