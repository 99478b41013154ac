//! What has become of a payment made for one purchase: whether it was used by us or taken back.
//!
//! The chain says of an authorization or a permit only that it is used up; so does one that its
//! payer has cancelled. Ours are told by our own journal: what is under way, and what was mined.

use farthing_protocol::eip712::Signed;
use farthing_protocol::store::Order;
use farthing_protocol::x402::ChannelId;

use crate::ledger::once::Once;
use crate::ledger::records::{MINED, Purpose, TRANSACTIONS};
use crate::settlement::{Settlement, SettlementError};

/// What has become of a payment made for one purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It can be taken.
    Open,
    /// A transaction of ours takes it, and is not final.
    UnderWay,
    /// A transaction of ours has taken it.
    Taken,
    /// It is used up, and not by us: its payer has cancelled it.
    Cancelled,
}

impl Settlement {
    /// What has become of a payment.
    ///
    /// # Errors
    /// The chain's, or the books'.
    pub async fn fate(&self, id: ChannelId, once: &Once) -> Result<Fate, SettlementError> {
        if let Some(fate) = self.ours(id)? {
            return Ok(fate);
        }
        let used = match once {
            Once::Exact(Signed { message, .. }) => {
                let used = self.chain.authorization_used(message.from, message.nonce);
                used.await?
            }
            Once::Upto(Signed { message, .. }) => {
                let used = self.chain.permit_used(message.owner, message.nonce);
                used.await?
            }
        };
        // What we began, or found mined, while the chain was asked.
        let meanwhile = self.ours(id)?;
        Ok(meanwhile.unwrap_or(if used { Fate::Cancelled } else { Fate::Open }))
    }

    /// What our own journal says of it: that stands, whatever a node that lags says.
    fn ours(&self, id: ChannelId) -> Result<Option<Fate>, SettlementError> {
        let (store, ours) = (self.ledger.store(), Purpose::Once(id));
        // In this order: what ends goes from the first table to the second in one step.
        let waiting = store.scan(&TRANSACTIONS, .., Order::Up, usize::MAX)?;
        if waiting.iter().any(|(_, pending)| pending.purpose == ours) {
            return Ok(Some(Fate::UnderWay));
        }
        let mined = store.scan(&MINED, .., Order::Up, usize::MAX)?;
        let mut mined = mined.iter().map(|(_, mined)| mined);
        let took = mined.any(|mined| mined.purpose == ours && mined.success);
        Ok(took.then_some(Fate::Taken))
    }
}
