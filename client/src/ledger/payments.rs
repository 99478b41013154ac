//! What was paid over plain HTTP, where a charge has no place in a row of receipts.

use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Lesson;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::{SignedReceipt, model_hash};
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::ChannelId;
use serde::{Deserialize, Serialize};

use crate::ledger::books::Books;
use crate::ledger::{Account, CHANNELS, Ledger, LedgerError, MODEL_DAYS, PAYMENTS};

/// One payment over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The purchase.
    pub request: RequestId,
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// What was charged.
    pub charged: Amount,
    /// When.
    pub at: Timestamp,
    /// What is wrong with it, if we do not agree.
    pub dispute: Option<String>,
    /// The seller's receipt, if it signs such.
    pub receipt: Option<SignedReceipt>,
}

impl Ledger {
    /// Books what a seller charged for a purchase that money was set aside for.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when it is more than was set aside.
    pub async fn book_payment(
        &self,
        id: ChannelId,
        payment: &Payment,
        lesson: Lesson,
    ) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let account = books.pay(id, payment, lesson)?;
            let (model, day) = (model_hash(&payment.model), payment.at.day());
            let spent = books.models.charge(model, payment.charged, day);
            let batch = Batch::new()
                .put(&CHANNELS, &id.0, &account)?
                .put(&MODEL_DAYS, &(day, model), &spent)?
                .put(&PAYMENTS, &(id.0, payment.request.0), payment)?;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// The payments of a channel.
    ///
    /// # Errors
    /// The store's.
    pub fn payments(&self, id: ChannelId) -> Result<Vec<Payment>, LedgerError> {
        let rows = self
            .store
            .scan_prefix(&PAYMENTS, &id.0, Order::Up, usize::MAX)?;
        Ok(rows.into_iter().map(|(_, payment)| payment).collect())
    }
}

impl Books {
    fn pay(
        &mut self,
        id: ChannelId,
        payment: &Payment,
        lesson: Lesson,
    ) -> Result<Account, LedgerError> {
        let (held, model) = self.held(id, payment.request)?;
        let account = self.update(id, |account| {
            account.channel.settle(held, payment.charged)?;
            account.channel.learn(lesson, payment.charged);
            Ok(())
        })?;
        self.forget(id, payment.request);
        self.models.release(model, held);
        Ok(account)
    }
}
