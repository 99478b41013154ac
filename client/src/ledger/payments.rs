//! What was paid over plain HTTP, where a charge has no place in a row of receipts.

use farthing_protocol::channel::Lesson;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::model_hash;
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::ChannelId;

use crate::ledger::books::Books;
use crate::ledger::once::NO_CHANNEL;
use crate::ledger::{Account, CHANNELS, Ledger, LedgerError, MODEL_DAYS, PAYMENTS};
pub use crate::report::{Payment, Scheme};

/// The longest words of a seller that are kept beside a payment.
pub const MAX_WORDS: usize = 700;

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
        // What holds a stranger's words may not fit: nothing is changed before it is seen to.
        let paid = Batch::new().put(&PAYMENTS, &(id.0, payment.request.0), payment)?;
        let durable = {
            let mut books = self.books();
            let account = books.pay(id, payment, lesson)?;
            let (model, day) = (model_hash(&payment.model), payment.at.day());
            let spent = books.models.charge(model, payment.charged, day);
            let batch =
                paid.put(&CHANNELS, &id.0, &account)?
                    .put(&MODEL_DAYS, &(day, model), &spent)?;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// The payment of one purchase, and its channel if one paid.
    ///
    /// # Errors
    /// The store's.
    pub fn payment(
        &self,
        request: RequestId,
    ) -> Result<Option<(Option<ChannelId>, Payment)>, LedgerError> {
        let channels = self.accounts().into_iter().map(|(id, _)| Some(id));
        for channel in channels.chain([None]) {
            let place = channel.map_or(NO_CHANNEL, |id| id.0);
            if let Some(payment) = self.store.get(&PAYMENTS, &(place, request.0))? {
                return Ok(Some((channel, payment)));
            }
        }
        Ok(None)
    }

    /// Every payment over HTTP, with its channel if one paid.
    ///
    /// # Errors
    /// The store's.
    pub fn all_payments(&self) -> Result<Vec<(Option<ChannelId>, Payment)>, LedgerError> {
        let rows = self.store.scan(&PAYMENTS, .., Order::Up, usize::MAX)?;
        let channel = |place| (place != NO_CHANNEL).then_some(ChannelId(place));
        let rows = rows.into_iter();
        Ok(rows
            .map(|((place, _), payment)| (channel(place), payment))
            .collect())
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
