//! What a receipt must say to be believed.

use farthing_protocol::amount::Amount;
use farthing_protocol::pricing;
use farthing_protocol::receipt::Receipt;

use crate::purchase::Purchase;

/// What is wrong with a receipt. The seller that signed it is not paid again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Dispute {
    /// It is about something else.
    #[error("the receipt's {0} is not this purchase's")]
    Other(&'static str),
    /// It counts more than we got.
    #[error("the receipt counts {counted} {what} tokens, {bound} at most can have been used")]
    Count {
        /// Prompt or completion.
        what: &'static str,
        /// The seller's count.
        counted: u64,
        /// Our bound.
        bound: u64,
    },
    /// It charges more than its own count and prices make.
    #[error("the receipt charges {charged} atoms where its own count makes {due}")]
    Charge {
        /// What it charges.
        charged: Amount,
        /// What is due at most.
        due: Amount,
    },
    /// It charges more than the purchase may cost.
    #[error("the receipt charges {charged} atoms, {allowed} at most were allowed")]
    Promise {
        /// What it charges.
        charged: Amount,
        /// What the ask allowed, or what was signed to one that was told to stop.
        allowed: Amount,
    },
}

impl Purchase {
    /// Checks a receipt whose signature is good against what we asked, got and counted.
    pub(in crate::purchase) fn check(&self, receipt: &Receipt) -> Result<(), Dispute> {
        self.same_exchange(receipt)?;
        self.believable(receipt)?;
        let (charged, allowed) = (receipt.charged, self.allowed());
        // Before all else: what was signed is all that it gets.
        if self.cancelled && charged > allowed {
            return Err(Dispute::Promise { charged, allowed });
        }
        let due = pricing::cost(&receipt.usage, &self.deal.model.prices)
            .map_or(Amount::ZERO, farthing_protocol::amount::Cost::ceil);
        if charged > due {
            return Err(Dispute::Charge { charged, due });
        }
        if charged > allowed {
            return Err(Dispute::Promise { charged, allowed });
        }
        Ok(())
    }

    /// What a receipt may charge. No seller works beyond what is signed, and to one that was told to
    /// stop nothing more is: the rest of the request's money is there for the next.
    fn allowed(&self) -> Amount {
        match self.cancelled {
            true => self.deal.max_cost.min(self.hold.signed()),
            false => self.deal.max_cost,
        }
    }

    fn same_exchange(&self, receipt: &Receipt) -> Result<(), Dispute> {
        let same = [
            ("channel", receipt.channel == self.hold.channel()),
            ("request", receipt.request == self.deal.request),
            ("request hash", receipt.request_hash == self.request_hash),
            (
                "response hash",
                receipt.response_hash == self.hash.clone().finalize(),
            ),
            ("model", receipt.model_hash == self.hold.model()),
            ("offer", receipt.offer == self.deal.offer.hash()),
        ];
        match same.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(Dispute::Other(what)),
            None => Ok(()),
        }
    }

    fn believable(&self, receipt: &Receipt) -> Result<(), Dispute> {
        let bound = self.counter.bound().min(self.deal.demand.output);
        let counted = u64::from(receipt.usage.completion);
        // A seller may stop a little late at the limit it was given.
        if counted > bound.saturating_add(1) {
            return Err(Dispute::Count {
                what: "completion",
                counted,
                bound,
            });
        }
        let counted = u64::from(receipt.usage.prompt);
        let bound = self.deal.demand.prompt;
        if counted > bound {
            return Err(Dispute::Count {
                what: "prompt",
                counted,
                bound,
            });
        }
        Ok(())
    }
}
