//! Payments for one purchase: checked and recorded like any promise, then signed by the payer.

use alloy::primitives::B256;
use farthing_protocol::eip712::Signed;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::{Permit, SignedPermit, SignedTransfer};

use crate::ledger::once::{Once, OpenOnce};
use crate::ledger::{LedgerError, Payment};
use crate::wallet::tab::Line;
use crate::wallet::{Order, Payer, Wallet};

/// A payment with the payer's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedOnce {
    /// In full.
    Exact(SignedTransfer),
    /// At most so much.
    Upto(SignedPermit),
}

/// What became of a payment when nobody holds it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has not left this machine.
    Kept,
    /// The seller may have it.
    Sent,
    /// It is booked.
    Settled,
}

/// A payment of a running purchase. Dropped before it is settled, it counts as spent until its
/// time is over and the chain shows that it was not taken.
#[derive(Debug)]
#[must_use = "dropping it leaves the payment in doubt"]
pub struct OnceHold {
    wallet: Wallet,
    line: Line,
    request: RequestId,
    /// A person's word that it uses up.
    approval: Option<B256>,
    end: End,
}

impl Wallet {
    /// Records a payment within every limit, then signs it: the one function that does.
    ///
    /// # Errors
    /// [`LedgerError::Elsewhere`] when the payer's key is not on this machine; the limits'; the
    /// store's.
    pub async fn once(
        &self,
        opened: &OpenOnce,
        order: Order<'_>,
    ) -> Result<(OnceHold, SignedOnce), LedgerError> {
        let inside = &self.0;
        let Payer::Here(key) = &inside.keys.payer else {
            return Err(LedgerError::Elsewhere(self.payer()));
        };
        let line = order.tab.open(opened.request, order.wish.max_cost)?;
        // First the guard: whoever asked may go while the payment is being written.
        let mut hold = OnceHold {
            wallet: self.clone(),
            line,
            request: opened.request,
            approval: None,
            end: End::Kept,
        };
        hold.approval = self.allowed(order).await?;
        inside.ledger.open_once(opened, &inside.limits).await?;
        let network = &inside.network;
        let signed = match opened.once {
            Once::Exact(message) => {
                SignedOnce::Exact(Signed::sign(message, &network.token_domain(), key))
            }
            Once::Upto(message) => {
                let domain = Permit::domain(network.chain_id);
                SignedOnce::Upto(Signed::sign(message, &domain, key))
            }
        };
        Ok((hold, signed))
    }
}

impl OnceHold {
    /// From here on the seller may have it: call it before it is sent.
    pub fn at_risk(&mut self) {
        self.end = End::Sent;
    }

    /// It has not reached the seller after all: it counts for nothing any more.
    ///
    /// # Errors
    /// The store's.
    pub async fn unsent(&mut self) -> Result<(), LedgerError> {
        self.end = End::Kept;
        self.wallet.0.ledger.void_once(self.request).await
    }

    /// Books what was taken of it.
    ///
    /// # Errors
    /// The store's.
    pub async fn settle(&mut self, payment: &Payment) -> Result<(), LedgerError> {
        self.wallet.0.ledger.settle_once(payment).await?;
        self.line.charged(payment.charged);
        self.end = End::Settled;
        Ok(())
    }
}

impl Drop for OnceHold {
    fn drop(&mut self) {
        let ledger = &self.wallet.0.ledger;
        if let Some(id) = self.approval {
            ledger.end_approval(id, self.end != End::Kept);
        }
        if self.end == End::Kept {
            self.line.is_free();
        }
        // One that was not sent is found by its time too: a crash may hide that it was not.
        ledger.leave_once(self.request);
    }
}
