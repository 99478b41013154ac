//! Answers in which several sellers had a part: one purchase for each, and what they came to.

use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::store::Batch;
use serde::{Deserialize, Serialize};

use crate::ledger::{JOINTS, Ledger, LedgerError};

/// An answer that more than one receipt is about, or none as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// What all sellers charged, in atoms; of one that sent no receipt, what it may charge at most.
    pub charged: Amount,
    /// Their purchases that have a receipt, in order.
    pub purchases: Vec<RequestId>,
}

impl Ledger {
    /// Keeps what an answer came to, under the purchase it is named after. It is on its way to
    /// disk when this returns: each purchase has a receipt of its own, and money hangs on none of
    /// this.
    ///
    /// # Errors
    /// The store's.
    pub async fn join(&self, named: RequestId, joint: &Joint) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        permit.later(Batch::new().put(&JOINTS, &named.0, joint)?)?;
        Ok(())
    }

    /// What an answer came to, if several sellers had a part in it.
    ///
    /// # Errors
    /// The store's.
    pub fn joint(&self, named: RequestId) -> Result<Option<Joint>, LedgerError> {
        Ok(self.store.get(&JOINTS, &named.0)?)
    }
}
