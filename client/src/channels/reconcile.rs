//! Coming to terms with a seller after a crash or a lost answer.
//!
//! The seller shows its receipts, which are booked once each, and what it has charged in all,
//! which is believed only up to a voucher that carries our own signature.

use farthing_protocol::amount::Amount;
use farthing_protocol::frame::{Answer, Call, RECEIPT_PAGE, Statement};
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::x402::{ChannelConfig, ChannelId};

use crate::channels::{CALL_WAIT, ChannelError, Channels};
use crate::ledger::{Account, Base, LedgerError, Note, Standing};

impl Channels {
    /// Fetches the receipts we do not have, books them, and settles what was in doubt.
    ///
    /// # Errors
    /// Any [`ChannelError`]; [`ChannelError::Liar`] when the seller's words are not proven.
    pub async fn reconcile(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
    ) -> Result<(), ChannelError> {
        // What comes into doubt later, the statement may not know yet.
        let doubts = self.ledger.doubts(id);
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let statement = self.statement(offer, account.config).await?;
        let proven = self.proven(id, &statement)?;
        if statement.receipts < self.ledger.booked(id) {
            return self.leave(offer, id).await;
        }
        self.adopt(id, Amount::ZERO, proven).await?;
        self.fetch(offer, id, statement.receipts).await?;
        self.adopt(id, statement.charged, proven).await?;
        self.ledger.settle_doubts(id, &doubts);
        tracing::info!(channel = %id.short(), charged = %statement.charged, "reconciled with the seller");
        Ok(())
    }

    /// Leaves a channel whose seller has lost its books: it shows fewer receipts than it has
    /// signed, and new ones would contradict them. Nobody lied: the seller is bought from on the
    /// next lane, and asked to send the rest of this one back. What it did not claim it forfeits.
    async fn leave(&self, offer: &VerifiedOffer, id: ChannelId) -> Result<(), ChannelError> {
        tracing::warn!(channel = %id.short(), "the seller has lost its books; the channel is left");
        let doubts = self.ledger.doubts(id);
        self.stand(id, Standing::Left).await?;
        self.ledger.settle_doubts(id, &doubts);
        if let Err(error) = self.refunded(offer, id).await {
            tracing::warn!(channel = %id.short(), %error, "the rest was not sent back; `farthing channels withdraw` takes it");
        }
        self.refresh(id).await.map(drop)
    }

    /// Where to start with a channel that our books have forgotten: old receipts stay with the
    /// seller, its proven counters are the start of new books.
    pub(in crate::channels) async fn base(
        &self,
        offer: &VerifiedOffer,
        config: ChannelConfig,
    ) -> Result<Base, ChannelError> {
        let id = config.id(self.chain.network());
        let statement = self.statement(offer, config).await?;
        let ceiling = self.proven(id, &statement)?;
        if statement.charged > ceiling {
            return Err(ChannelError::Liar("charges that no voucher of ours covers"));
        }
        Ok(Base {
            charged: statement.charged,
            receipts: statement.receipts,
            ceiling,
        })
    }

    /// Reconciles the channel in use with this seller.
    ///
    /// # Errors
    /// As [`Channels::reconcile`].
    pub async fn reconcile_with(&self, offer: &VerifiedOffer) -> Result<(), ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        match self.current(offer) {
            Some((id, _)) => self.reconcile(offer, id).await,
            None => Ok(()),
        }
    }

    /// Has the seller sign the root over all receipts of a channel, if some are under none.
    ///
    /// # Errors
    /// Any [`ChannelError`]. A seller that cannot compare it now is no error.
    pub async fn cover(&self, offer: &VerifiedOffer, id: ChannelId) -> Result<(), ChannelError> {
        let Some(ours) = self.wallet.acknowledge_all(id).await? else {
            return Ok(());
        };
        match self.call(offer, &Call::Root(ours), CALL_WAIT).await? {
            Answer::Root(word) => Ok(self.wallet.countersigned(&ours, *word).await?),
            Answer::Refused(refusal) => Err(ChannelError::Refused(refusal)),
            _ => Err(ChannelError::Liar("another answer than to a root")),
        }
    }

    async fn statement(
        &self,
        offer: &VerifiedOffer,
        config: ChannelConfig,
    ) -> Result<Statement, ChannelError> {
        let proof = self.wallet.proof(config.id(self.chain.network()));
        let call = Call::Channel { config, proof };
        match self.call(offer, &call, CALL_WAIT).await? {
            Answer::Channel(statement) => Ok(*statement),
            Answer::Refused(refusal) => Err(ChannelError::Refused(refusal)),
            _ => Err(ChannelError::Liar(
                "another answer than to a question about a channel",
            )),
        }
    }

    async fn fetch(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
        count: u64,
    ) -> Result<(), ChannelError> {
        let mut from = self.ledger.booked(id);
        while from < count {
            let call = Call::Receipts {
                channel: id,
                proof: self.wallet.proof(id),
                from,
            };
            let receipts = match self.call(offer, &call, CALL_WAIT).await? {
                Answer::Receipts(receipts) if receipts.len() <= RECEIPT_PAGE => receipts,
                Answer::Refused(refusal) => return Err(ChannelError::Refused(refusal)),
                _ => return Err(ChannelError::Liar("another answer than receipts")),
            };
            if receipts.is_empty() {
                return Err(ChannelError::Liar(
                    "it counts receipts that it does not show",
                ));
            }
            for receipt in receipts {
                if receipt.receipt.seq != from {
                    return Err(ChannelError::Liar("receipts out of order"));
                }
                self.recover(offer.offer().seller, id, receipt).await?;
                from = from.saturating_add(1);
            }
        }
        Ok(())
    }

    async fn recover(
        &self,
        seller: NodeId,
        id: ChannelId,
        receipt: farthing_protocol::receipt::SignedReceipt,
    ) -> Result<(), ChannelError> {
        let receipt = receipt.verify(seller);
        let receipt = receipt.map_err(|_| ChannelError::Liar("a receipt it did not sign"))?;
        if receipt.receipt().channel != id {
            return Err(ChannelError::Liar("a receipt of another channel"));
        }
        let charged = receipt.receipt().charged;
        let now = self.clock.now();
        match self.ledger.book(receipt, Note::default(), now).await {
            Ok(_) => Ok(()),
            Err(LedgerError::Rejected(_)) if self.is_beyond(id, charged) => {
                Err(ChannelError::Liar("a receipt beyond what we promised"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether so much more would be charged than ever was promised.
    fn is_beyond(&self, id: ChannelId, charged: Amount) -> bool {
        self.ledger.account(id).is_none_or(|account| {
            let channel = account.channel;
            channel.charged().saturating_add(charged) > channel.ceiling()
        })
    }

    /// The ceiling that the seller can prove with our own signature.
    fn proven(&self, id: ChannelId, statement: &Statement) -> Result<Amount, ChannelError> {
        match statement.voucher {
            None => Ok(Amount::ZERO),
            Some(voucher) if voucher.message.channel == id && self.wallet.is_ours(&voucher) => {
                Ok(voucher.message.ceiling)
            }
            Some(_) => Err(ChannelError::Liar("a voucher we did not sign")),
        }
    }

    /// Takes over what the seller has charged, as far as our own signature covers it.
    async fn adopt(
        &self,
        id: ChannelId,
        charged: Amount,
        proven: Amount,
    ) -> Result<(), ChannelError> {
        let known = self
            .ledger
            .account(id)
            .ok_or(LedgerError::NoChannel)?
            .channel;
        if charged <= known.charged() && proven <= known.ceiling() {
            return Ok(());
        }
        let adopt = |account: &mut Account| {
            let channel = &mut account.channel;
            // Charges of purchases that run now come with their own receipts.
            let charged = charged
                .saturating_sub(channel.reserved())
                .max(channel.charged());
            channel.adopt(charged, channel.receipts(), proven.max(channel.ceiling()))
        };
        match self.ledger.update(id, adopt).await {
            Ok(_) => Ok(()),
            Err(LedgerError::Rejected(_)) => {
                Err(ChannelError::Liar("charges that no voucher of ours covers"))
            }
            Err(error) => Err(error.into()),
        }
    }
}
