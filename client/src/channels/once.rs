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
        let over = few_over(self.ledger.left_once(), now);
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

/// A few of those whose time is over, the oldest first: where the chain's time is behind for one,
/// it is for all after it.
fn few_over(mut left: Vec<OpenOnce>, now: Timestamp) -> Vec<OpenOnce> {
    left.retain(|opened| opened.once.until().saturating_add(PAST) < now.seconds());
    left.sort_by_key(|opened| opened.once.until());
    left.truncate(FEW);
    left
}

#[cfg(test)]
mod tests {
    use alloy::primitives::Address;
    use farthing_protocol::purchase::RequestId;
    use farthing_protocol::testing;
    use farthing_protocol::x402::Transfer;

    use super::*;

    fn opened(n: u8, until: u64) -> OpenOnce {
        OpenOnce {
            request: RequestId(B256::repeat_byte(n)),
            seller: testing::node_key(1).id(),
            url: "http://seller.example/v1".into(),
            model: "test/model".into(),
            once: Once::Exact(Transfer {
                from: Address::repeat_byte(1),
                to: Address::repeat_byte(2),
                amount: Amount::atoms(1),
                valid_after: 0,
                valid_before: until,
                nonce: B256::repeat_byte(n),
            }),
            at: Timestamp(0),
        }
    }

    #[test]
    fn regression_payments_whose_time_is_over_are_ended_a_few_at_a_time_the_oldest_first() {
        let left: Vec<_> = (1..=9).rev().map(|n| opened(n, u64::from(n))).collect();
        let now = |seconds: u64| Timestamp(seconds * 1_000);
        let ended = |now| -> Vec<_> {
            let few = few_over(left.clone(), now);
            few.iter().map(|opened| opened.once.until()).collect()
        };
        assert_eq!(ended(now(1_000)), [1, 2, 3, 4]);
        assert_eq!(ended(now(PAST + 3)), [1, 2]);
        assert!(ended(now(PAST)).is_empty());
    }
}
