//! One purchase from an x402 seller: plain HTTP, paid by a voucher over its exact price.
//!
//! The seller is known by its address only, so nothing it says is believed but what we can check:
//! contracts and token are pinned, a price is quoted before it is paid, what is charged is at most
//! that price and adds up, and a counter that differs from ours is taken over only with our own
//! signature as proof. One purchase at a time per seller: its vouchers follow each other.

mod ask;
mod door;
mod events;
mod money;

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Keccak256;
use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::payment::SettlementResponse;
use farthing_protocol::purchase::{Endpoint, Mode, Refusal, RequestId};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::x402::ChannelId;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::market::WebOffer;
use crate::purchase::PurchaseError;
pub use crate::purchase::web::ask::Unpayable;
use crate::purchase::web::door::{Body, Door, Said};
use crate::purchase::web::events::{Events, Item, Price};
pub use crate::purchase::web::money::{Purse, WebShop};
use crate::wallet::Hold;

/// The most bytes of one document.
const DOCUMENT_LIMIT: usize = 48 * 1024 * 1024;

/// What is bought from whom.
#[derive(Debug, Clone)]
pub struct WebDeal {
    /// The purchase's name, here only.
    pub request: RequestId,
    /// The seller.
    pub offer: Arc<WebOffer>,
    /// The model.
    pub model: String,
    /// Where.
    pub endpoint: Endpoint,
    /// How the answer comes.
    pub mode: Mode,
    /// The request.
    pub body: Bytes,
    /// What our own reckoning makes of its prices, if they are stated.
    pub reckoned: Option<Amount>,
    /// The most it may cost.
    pub max_cost: Amount,
    /// Until when something must have come.
    pub first_by: Instant,
    /// Between two pieces.
    pub idle: Duration,
    /// Until when it must be over.
    pub deadline: Instant,
}

/// What such a purchase yields.
#[derive(Debug)]
pub enum WebStep {
    /// One event, or the document.
    Data(Bytes),
    /// The end.
    End(Box<WebEnd>),
}

/// How it ended.
#[derive(Debug)]
pub struct WebEnd {
    /// What was charged; none when the seller did not say.
    pub charged: Option<Amount>,
    /// Whether the answer is whole.
    pub whole: bool,
    /// What is wrong with the price.
    pub dispute: Option<&'static str>,
    /// The receipt, if the seller signs such.
    pub receipt: Option<SignedReceipt>,
}

/// The money of a running purchase; none when it was given away.
#[derive(Debug)]
struct Paid {
    hold: Hold,
    /// The price that was agreed.
    amount: Amount,
    /// What the seller had charged before.
    before: Amount,
}

/// A running purchase. Dropping it hangs up; its money is in doubt until the next one.
pub struct WebPurchase {
    deal: WebDeal,
    paid: Option<Paid>,
    settlement: Option<SettlementResponse>,
    body: Body,
    events: Events,
    price: Option<Price>,
    hash: Keccak256,
    over: bool,
    next_by: Instant,
    _turn: OwnedMutexGuard<()>,
}

impl std::fmt::Debug for WebPurchase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebPurchase({})", self.deal.request.short())
    }
}

impl WebPurchase {
    /// The deal.
    #[must_use]
    pub const fn deal(&self) -> &WebDeal {
        &self.deal
    }

    /// The seller.
    #[must_use]
    pub fn seller(&self) -> NodeId {
        self.deal.offer.id
    }

    /// The channel that pays, if one does.
    #[must_use]
    pub fn channel(&self) -> Option<ChannelId> {
        self.paid.as_ref().map(|paid| paid.hold.channel())
    }

    /// What is set aside.
    #[must_use]
    pub fn held(&self) -> Amount {
        self.paid.as_ref().map_or(Amount::ZERO, |paid| paid.amount)
    }

    /// Ends the money side once the charge is booked.
    pub fn settled(&mut self) {
        if let Some(paid) = &mut self.paid {
            paid.hold.settled();
        }
    }

    /// The next thing that happens. Not to be called after [`WebStep::End`] or an error.
    ///
    /// # Errors
    /// [`PurchaseError`].
    pub async fn next(&mut self) -> Result<WebStep, PurchaseError> {
        match self.deal.mode {
            Mode::Plain => self.document().await,
            Mode::Stream => self.event().await,
        }
    }

    async fn document(&mut self) -> Result<WebStep, PurchaseError> {
        if self.over {
            return Ok(self.end(true));
        }
        let document = self.body.whole(DOCUMENT_LIMIT, self.deal.deadline).await?;
        self.hash.update(&document);
        self.over = true;
        Ok(WebStep::Data(document))
    }

    async fn event(&mut self) -> Result<WebStep, PurchaseError> {
        loop {
            match self.events.next() {
                Some(Item::Data(data)) => {
                    self.hash.update(&data);
                    self.next_by = (Instant::now() + self.deal.idle).min(self.deal.deadline);
                    return Ok(WebStep::Data(data));
                }
                Some(Item::Price(price)) => self.price = Some(*price),
                Some(Item::Done) => return Ok(self.end(true)),
                None => match self.body.next(self.next_by).await? {
                    Some(piece) => {
                        let fed = self.events.feed(&piece);
                        fed.map_err(|_| PurchaseError::Protocol("an event without end"))?;
                    }
                    None => return Ok(self.end(false)),
                },
            }
        }
    }

    fn end(&mut self, whole: bool) -> WebStep {
        let (charged, total, receipt) = self.told();
        let dispute = self.paid.as_ref().and_then(|paid| {
            let charged = charged?;
            let follows = paid.before.saturating_add(charged);
            let checks = [
                ("it charges more than it quoted", charged <= paid.amount),
                (
                    "its total is not what it was and the charge",
                    total.is_none_or(|total| total == follows),
                ),
                (
                    "its receipt is not about this purchase",
                    receipt.as_ref().is_none_or(|r| self.is_ours(r, charged)),
                ),
            ];
            checks
                .into_iter()
                .find(|(_, holds)| !holds)
                .map(|(what, _)| what)
        });
        WebStep::End(Box::new(WebEnd {
            charged: match self.paid {
                Some(_) => charged,
                None => Some(Amount::ZERO),
            },
            whole,
            dispute,
            receipt,
        }))
    }

    /// What the seller says it charged, its total, and its receipt. A stream's head cannot know
    /// its price: zero there says nothing.
    fn told(&self) -> (Option<Amount>, Option<Amount>, Option<SignedReceipt>) {
        if let Some(price) = self.price.clone() {
            let Price {
                charged_amount,
                charged_cumulative_amount,
                receipt,
            } = price;
            return (Some(charged_amount), charged_cumulative_amount, receipt);
        }
        let Some(settlement) = &self.settlement else {
            return (None, None, None);
        };
        let said = settlement.batch();
        let charged = said.as_ref().and_then(|extra| extra.charged_amount);
        let vague = self.deal.mode == Mode::Stream && charged.is_some_and(Amount::is_zero);
        if vague {
            return (None, None, None);
        }
        let state = said.and_then(|extra| extra.channel_state);
        let total = state.and_then(|state| state.charged_cumulative_amount);
        let ours = settlement.extensions.get("farthing");
        let receipt = ours.and_then(|ours| ours.get("receipt").cloned());
        let receipt = receipt.and_then(|receipt| serde_json::from_value(receipt).ok());
        (charged, total, receipt)
    }

    /// A receipt that a Farthing seller sends along.
    fn is_ours(&self, signed: &SignedReceipt, charged: Amount) -> bool {
        let receipt = &signed.receipt;
        signed.clone().verify(signed.seller).is_ok()
            && Some(receipt.channel) == self.channel()
            && receipt.charged == charged
            && receipt.request_hash == alloy::primitives::keccak256(&self.deal.body)
            && (self.deal.mode == Mode::Stream
                || receipt.response_hash == self.hash.clone().finalize())
    }
}

fn refused(status: u16, body: Bytes) -> PurchaseError {
    PurchaseError::Refused(match status {
        429 | 503 => Refusal::Busy {
            retry_after_ms: 1_000,
        },
        _ => Refusal::Upstream { status, body },
    })
}
