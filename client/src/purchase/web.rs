//! One purchase from an x402 seller: plain HTTP, paid by a voucher over its exact price, or where
//! it takes no channel by a payment for this purchase alone (`web/once.rs`).
//!
//! The seller is known by its address only, so nothing it says is believed but what we can check:
//! contracts and token are pinned, a price is quoted before it is paid, what is charged is at most
//! that price and adds up, and a counter that differs from ours is taken over only with our own
//! signature as proof. One purchase at a time per seller: its vouchers follow each other.

mod ask;
mod door;
mod events;
mod money;
mod once;
mod own;
mod refund;

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Keccak256;
use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Lesson;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::payment::{Fields, SettlementResponse};
use farthing_protocol::purchase::{Endpoint, Mode, Refusal, RequestId};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::x402::ChannelId;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::ledger::payments::MAX_WORDS;
use crate::ledger::{Ledger, LedgerError, Payment, Scheme};
use crate::market::WebOffer;
use crate::purchase::PurchaseError;
use crate::purchase::count::Counter;
use crate::purchase::silence::Silence;
pub use crate::purchase::web::ask::Unpayable;
use crate::purchase::web::door::{Body, Door, Said, Turned};
use crate::purchase::web::events::{Events, Item, Price};
pub use crate::purchase::web::money::{Purse, WebShop};
use crate::purchase::web::once::PaidOnce;
use crate::wallet::{Hold, Tab};

/// The most bytes of one document.
const DOCUMENT_LIMIT: usize = 48 * 1024 * 1024;

/// The most characters of an address that are kept.
const MAX_URL: usize = 200;

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
    /// And with all others that are asked for the same.
    pub tab: Tab,
    /// Until when something must have come.
    pub first_by: Instant,
    /// Between two pieces.
    pub idle: Duration,
    /// Until when it must be over.
    pub deadline: Instant,
}

impl WebDeal {
    /// Where it is bought, as it is kept and shown: without what may be a secret.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut base = self.offer.base.clone();
        // What has no room for a name or a password has none.
        base.set_username("").ok();
        base.set_password(None).ok();
        base.set_query(None);
        base.as_str().chars().take(MAX_URL).collect()
    }
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
    /// What else it said of the payment, as JSON.
    pub words: Option<String>,
}

/// The money of a running purchase on a channel.
#[derive(Debug)]
struct PaidOn {
    hold: Hold,
    /// The price that was agreed.
    amount: Amount,
    /// What the seller had charged before.
    before: Amount,
}

/// The money of a running purchase; none when it was given away.
#[derive(Debug)]
enum Paid {
    Channel(PaidOn),
    Once(PaidOnce),
}

impl Paid {
    const fn amount(&self) -> Amount {
        match self {
            Self::Channel(paid) => paid.amount,
            Self::Once(paid) => paid.amount,
        }
    }
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
    counter: Counter,
    silence: Silence,
    _turn: Turn,
}

/// What lets a purchase be under way beside others.
#[derive(Debug)]
pub(in crate::purchase) enum Turn {
    /// Vouchers to one seller follow each other.
    Alone(#[expect(dead_code, reason = "held")] OwnedMutexGuard<()>),
    /// It has a slot of its own.
    Slot(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
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

    /// Whether it is paid for by a payment of its own.
    #[must_use]
    pub const fn is_paid_once(&self) -> bool {
        matches!(&self.paid, Some(Paid::Once(_)))
    }

    fn begin(
        deal: WebDeal,
        paid: Option<Paid>,
        (settlement, body): (Option<SettlementResponse>, Body),
        turn: Turn,
    ) -> Self {
        Self {
            counter: Counter::new(deal.endpoint, deal.mode),
            silence: Silence::new(deal.first_by, deal.idle, deal.deadline),
            deal,
            paid,
            settlement,
            body,
            events: Events::default(),
            price: None,
            hash: Keccak256::new(),
            over: false,
            _turn: turn,
        }
    }

    /// The channel that pays, if one does.
    #[must_use]
    pub const fn channel(&self) -> Option<ChannelId> {
        match &self.paid {
            Some(Paid::Channel(paid)) => Some(paid.hold.channel()),
            _ => None,
        }
    }

    /// What is set aside.
    #[must_use]
    pub fn held(&self) -> Amount {
        self.paid.as_ref().map_or(Amount::ZERO, Paid::amount)
    }

    /// Books what was charged, if the seller said so; without its word the money stays in doubt.
    ///
    /// # Errors
    /// The books'.
    pub async fn book(
        &mut self,
        end: &WebEnd,
        ledger: &Ledger,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        let (Some(said), Some(paid)) = (end.charged, &mut self.paid) else {
            return Ok(());
        };
        let mut payment = Payment {
            request: self.deal.request,
            seller: self.deal.offer.id,
            url: self.deal.shown(),
            scheme: Scheme::BatchSettlement,
            model: self.deal.model.clone(),
            signed: Amount::ZERO,
            charged: said.min(paid.amount()),
            at,
            dispute: end.dispute.map(str::to_owned),
            // What its signer has not signed proves nothing, and is no receipt.
            receipt: end.receipt.clone().filter(is_signed),
            words: end.words.clone().filter(|words| words.len() <= MAX_WORDS),
        };
        match paid {
            Paid::Channel(paid) => {
                let lesson = match (end.dispute, end.whole) {
                    (Some(_), _) => Lesson::Anew,
                    (None, true) => Lesson::Trust,
                    (None, false) => Lesson::Caution,
                };
                let id = paid.hold.channel();
                ledger.book_payment(id, &payment, lesson).await?;
                paid.hold.settled(payment.charged);
            }
            Paid::Once(paid) => {
                payment.scheme = paid.scheme;
                payment.signed = paid.amount;
                paid.hold.settle(&payment).await?;
            }
        }
        Ok(())
    }

    /// The next thing that happens. Not to be called after [`WebStep::End`] or an error.
    ///
    /// # Errors
    /// [`PurchaseError`].
    pub async fn next(&mut self) -> Result<WebStep, PurchaseError> {
        let next = match self.deal.mode {
            Mode::Plain => self.document().await,
            Mode::Stream => self.event().await,
        };
        next.map_err(|error| match self.paid {
            Some(Paid::Once(_)) => PurchaseError::Taken(error.to_string()),
            _ => error,
        })
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
                    self.counter.count(&data);
                    self.silence.heard(self.counter.text(), Instant::now());
                    return Ok(WebStep::Data(data));
                }
                Some(Item::Price(price)) => self.price = Some(*price),
                Some(Item::Done) => return Ok(self.end(true)),
                None => match self.body.next(self.silence.by()).await? {
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
        let words = self.words();
        let dispute = self.paid.as_ref().and_then(|paid| {
            let charged = charged?;
            let follows = match paid {
                Paid::Channel(paid) => Some(paid.before.saturating_add(charged)),
                Paid::Once(_) => None,
            };
            let checks = [
                ("it charges more than it quoted", charged <= paid.amount()),
                (
                    "its total is not what it was and the charge",
                    follows.is_none_or(|follows| total.is_none_or(|total| total == follows)),
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
            words,
        }))
    }

    /// What it said of the payment beside its receipt.
    fn words(&self) -> Option<String> {
        let words = match (&self.price, &self.settlement) {
            (Some(price), _) => serde_json::to_string(price),
            (None, Some(settlement)) => {
                let extensions = Fields::new();
                serde_json::to_string(&SettlementResponse {
                    extensions,
                    ..settlement.clone()
                })
            }
            (None, None) => return None,
        };
        words.ok()
    }

    /// What the seller says it charged, its total, and its receipt. A stream's head cannot know
    /// its price: zero there says nothing. What is paid in full costs its price whatever is said.
    fn told(&self) -> (Option<Amount>, Option<Amount>, Option<SignedReceipt>) {
        let full = match &self.paid {
            Some(Paid::Once(paid)) if paid.scheme == Scheme::Exact => Some(paid.amount),
            _ => None,
        };
        if let Some(price) = self.price.clone() {
            let Price {
                charged_amount,
                charged_cumulative_amount,
                receipt,
                ..
            } = price;
            return (
                Some(full.map_or(charged_amount, |full| full.max(charged_amount))),
                charged_cumulative_amount,
                receipt,
            );
        }
        let Some(settlement) = &self.settlement else {
            return (full, None, None);
        };
        let ours = settlement.extensions.get("farthing");
        let receipt = ours.and_then(|ours| ours.get("receipt").cloned());
        let receipt = receipt.and_then(|receipt| serde_json::from_value(receipt).ok());
        if let Some(Paid::Once(_)) = &self.paid {
            let moved = settlement.amount.as_deref();
            let moved = moved.and_then(|moved| moved.parse::<Amount>().ok());
            let vague = |moved: &Amount| self.deal.mode == Mode::Stream && moved.is_zero();
            let moved = moved.filter(|moved| settlement.success && !vague(moved));
            let charged = full.map(|full| moved.map_or(full, |moved| moved.max(full)));
            return (charged.or(moved), None, receipt);
        }
        let said = settlement.batch();
        let charged = said.as_ref().and_then(|extra| extra.charged_amount);
        let vague = self.deal.mode == Mode::Stream && charged.is_some_and(Amount::is_zero);
        if vague {
            return (None, None, None);
        }
        let state = said.and_then(|extra| extra.channel_state);
        let total = state.and_then(|state| state.charged_cumulative_amount);
        (charged, total, receipt)
    }

    /// A receipt that a Farthing seller sends along.
    fn is_ours(&self, signed: &SignedReceipt, charged: Amount) -> bool {
        let receipt = &signed.receipt;
        is_signed(signed)
            && self.channel().is_none_or(|id| receipt.channel == id)
            && receipt.charged == charged
            && receipt.request_hash == alloy::primitives::keccak256(&self.deal.body)
            && (self.deal.mode == Mode::Stream
                || receipt.response_hash == self.hash.clone().finalize())
    }
}

fn is_signed(receipt: &SignedReceipt) -> bool {
    receipt.clone().verify(receipt.seller).is_ok()
}

fn refused(turned: Turned) -> PurchaseError {
    let Turned {
        status,
        body,
        retry_after_ms,
    } = turned;
    PurchaseError::Refused(match status {
        429 | 503 => Refusal::Busy {
            retry_after_ms: retry_after_ms.unwrap_or(1_000),
        },
        _ => Refusal::Upstream { status, body },
    })
}
