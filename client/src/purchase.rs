//! One purchase with one seller: ask, pay ahead, count, check the receipt.
//!
//! The buyer never signs more than one window ahead of what it has itself counted
//! ([`crate::wallet`] enforces the limits), pays beside the stream and not in its way, and
//! believes a receipt only if it is signed, about this very exchange, and within the buyer's own
//! bounds. This file does not know the market: what was measured is returned.

mod count;
mod near;
mod lines;
mod silence;
pub mod web;
mod receipt;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Keccak256;
use bytes::{Bytes, BytesMut};
use farthing_protocol::amount::Amount;
use farthing_protocol::frame::{CHUNK_LIMIT, Part, ToBuyer, ToSeller};
use farthing_protocol::net::OpenError;
use farthing_protocol::net::session::RecvError;
use farthing_protocol::net::wire::WireError;
use farthing_protocol::offer::{ModelOffer, VerifiedOffer};
use farthing_protocol::pricing::{self, Demand};
use farthing_protocol::purchase::{Ask, Load, Mode, Refusal, RequestId, Usage};
use farthing_protocol::receipt::VerifiedReceipt;
use farthing_protocol::root::{RootWord, SignedRoot};
use farthing_protocol::voucher::SignedVoucher;
use tokio::time::Instant;

use crate::channels::ChannelError;
use crate::ledger::LedgerError;
use crate::policy::Terms;
use crate::purchase::count::Counter;
use crate::purchase::lines::Line;
pub use crate::purchase::lines::Lines;
pub use crate::purchase::receipt::Dispute;
use crate::purchase::silence::Silence;
use crate::wallet::Hold;

/// The `tracing` target of one event per voucher sent, for whoever wants to watch money flow:
/// `request`, `ceiling`, `set_aside` and `events` (stream events counted by then).
pub const VOUCHERS: &str = "farthing::events::voucher";
/// The most bytes of one document: embeddings of many inputs are large.
const DOCUMENT_LIMIT: usize = 48 * 1024 * 1024;
/// The most bytes of one event of a stream: what a node takes from its model server.
const EVENT_LIMIT: usize = 4 * 1024 * 1024;

/// Why a purchase ended early.
#[derive(Debug, thiserror::Error)]
pub enum PurchaseError {
    /// No stream to the seller. Nothing was asked.
    #[error("the seller cannot be reached: {0}")]
    Unreachable(#[from] OpenError),
    /// The seller refused before it had a payment for this purchase alone. Nothing is charged,
    /// or what is shows on the channel.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It has a payment made for this purchase alone, which it may take whatever it says; so
    /// nobody else is paid for the same purchase.
    #[error(
        "it has the payment and does not sell: {0}; it may still take it, so no other seller is paid"
    )]
    Taken(String),
    /// The stream broke. It is not known whether the seller worked or charged; its receipt will
    /// be asked for.
    #[error("the stream broke: {0}")]
    Broken(WireError),
    /// The seller sent what it may not. It is not known whether it charged.
    #[error("the seller broke the protocol: {0}")]
    Protocol(&'static str),
    /// Nothing came in time. It is not known whether the seller worked.
    #[error("no {0} in time")]
    Late(&'static str),
    /// An address does not answer. Nothing was asked.
    #[error("the seller cannot be reached: {0}")]
    Unreached(String),
    /// The connection, or the deal over it, was lost. What was charged shows with the next one.
    #[error("lost: {0}")]
    Lost(String),
    /// What a 402 asks for is not paid.
    #[error(transparent)]
    Unpayable(#[from] web::Unpayable),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] Box<ChannelError>),
    /// The seller wants a voucher beyond what this purchase can owe.
    #[error("the seller asks for a ceiling of {asked} atoms, {allowed} at most are due")]
    Overreach {
        /// What it asks for.
        asked: Amount,
        /// What we would sign.
        allowed: Amount,
    },
    /// The spend policy, the deposit or the store forbid going on.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl PurchaseError {
    /// Whether the seller may still be heard: its receipt can be asked for at once.
    #[must_use]
    pub const fn leaves_the_stream(&self) -> bool {
        matches!(
            self,
            Self::Late(_) | Self::Overreach { .. } | Self::Ledger(_)
        )
    }
}

impl From<ChannelError> for PurchaseError {
    fn from(error: ChannelError) -> Self {
        Self::Channel(Box::new(error))
    }
}

impl From<WireError> for PurchaseError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Recv(RecvError::Deadline) => Self::Late("word from the seller"),
            other => Self::Broken(other),
        }
    }
}

/// What a purchase yields.
#[derive(Debug)]
pub enum Step {
    /// The seller is working.
    Accepted(Load),
    /// One whole event, or the document.
    Data(Bytes),
    /// The end.
    Done {
        /// The receipt, signature checked.
        receipt: Box<VerifiedReceipt>,
        /// What is wrong with it, if anything.
        dispute: Option<Dispute>,
        /// The seller's load.
        load: Load,
    },
}

/// What is bought from whom.
#[derive(Debug, Clone)]
pub struct Deal {
    /// The purchase's name.
    pub request: RequestId,
    /// The seller's offer.
    pub offer: Arc<VerifiedOffer>,
    /// The model in it.
    pub model: ModelOffer,
    /// The most it can use.
    pub demand: Demand,
    /// The most it may cost: the quote, or the policy's limit if that is lower.
    pub max_cost: Amount,
    /// How far to sign ahead, in output tokens.
    pub window: u64,
}

impl Deal {
    /// What is set aside before the ask is sent.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be represented.
    pub fn opening(&self) -> Result<Amount, LedgerError> {
        Ok(self
            .demand
            .opening(&self.model.prices, pricing::FIRST_WINDOW.max(self.window))?
            .min(self.max_cost))
    }

    /// What to sign ahead when something must be signed.
    #[must_use]
    pub fn headroom(&self) -> Amount {
        pricing::window_value(&self.model.prices, self.window)
    }
}

type Payment = Pin<Box<dyn Future<Output = Result<SignedVoucher, LedgerError>> + Send>>;

/// A running purchase. Dropping it hangs up; the seller charges what it delivered.
pub struct Purchase {
    deal: Deal,
    lines: Lines,
    line: Line,
    /// The seller waits on the line for another ask.
    open: bool,
    hold: Hold,
    /// The highest ceiling that was sent on this stream.
    sent: Amount,
    /// An extension that is being recorded and signed, and by how much.
    paying: Option<(Amount, Payment)>,
    counter: Counter,
    /// What the seller says was used so far.
    used: Usage,
    /// The root that was sent along.
    ack: Option<SignedRoot>,
    /// What the seller says to it.
    root: Option<RootWord>,
    request_hash: alloy::primitives::B256,
    hash: Keccak256,
    event: BytesMut,
    /// A ceiling the seller waits for.
    demanded: Option<Amount>,
    /// What was signed on demand beyond our own count: see [`Purchase::pay_on_demand`].
    advanced: Amount,
    cancelled: bool,
    silence: Silence,
}

impl std::fmt::Debug for Purchase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Purchase")
            .field("request", &self.deal.request)
            .finish_non_exhaustive()
    }
}

impl Purchase {
    /// Takes a line to the seller and asks. `hold` covers the deal's opening and `voucher` covers `hold`.
    ///
    /// # Errors
    /// [`PurchaseError::Unreachable`] (nothing was asked) or [`PurchaseError::Broken`].
    pub async fn ask(
        lines: &Lines,
        deal: Deal,
        terms: &Terms,
        mut hold: Hold,
        voucher: SignedVoucher,
    ) -> Result<Self, PurchaseError> {
        let offer = deal.offer.offer();
        let mut line = lines.line(&deal.offer, terms.deadlines.connect).await?;
        let ack = hold.acknowledge().await?;
        let ask = Ask {
            request: deal.request,
            offer: deal.offer.hash(),
            model: deal.model.id.clone(),
            endpoint: terms.endpoint,
            mode: terms.mode,
            max_cost: deal.max_cost,
            deadline_ms: u64::try_from(terms.deadlines.total.as_millis()).unwrap_or(u64::MAX),
            channel: hold.channel(),
            voucher: Some(voucher),
            ack,
            body: terms.body.clone(),
        };
        tracing::debug!(request = %deal.request.short(), seller = %offer.seller.short(), "asking");
        let ceiling = ask
            .voucher
            .map_or(Amount::ZERO, |voucher| voucher.message.ceiling);
        hold.at_risk();
        line.speaks.send(&ToSeller::Ask(Box::new(ask))).await?;
        let now = Instant::now();
        let deadline = now + terms.deadlines.total;
        let purchase = Self {
            lines: lines.clone(),
            line,
            open: false,
            hold,
            sent: ceiling,
            paying: None,
            counter: Counter::new(terms.endpoint, terms.mode),
            used: Usage::default(),
            ack,
            root: None,
            request_hash: alloy::primitives::keccak256(&terms.body),
            hash: Keccak256::new(),
            event: BytesMut::new(),
            demanded: None,
            advanced: Amount::ZERO,
            cancelled: false,
            silence: Silence::new(
                now + terms.deadlines.first_token,
                terms.deadlines.idle,
                deadline,
            ),
            deal,
        };
        purchase.tell();
        Ok(purchase)
    }

    /// Tells whoever watches that a voucher was sent.
    fn tell(&self) {
        tracing::debug!(
            target: VOUCHERS,
            request = %self.deal.request,
            ceiling = %self.sent,
            set_aside = %self.hold.amount(),
            events = self.counter.events(),
            "sent a voucher"
        );
    }

    async fn pay(&mut self, voucher: SignedVoucher) -> Result<(), PurchaseError> {
        self.sent = voucher.message.ceiling;
        self.line.speaks.send(&ToSeller::Pay(voucher)).await?;
        self.tell();
        Ok(())
    }

    /// The deal.
    #[must_use]
    pub const fn deal(&self) -> &Deal {
        &self.deal
    }

    /// The channel that pays.
    #[must_use]
    pub const fn channel(&self) -> farthing_protocol::x402::ChannelId {
        self.hold.channel()
    }

    /// What the seller says was used so far, as far as we believe it.
    #[must_use]
    pub fn used(&self) -> Usage {
        let most = |count: u32, bound: u64| count.min(u32::try_from(bound).unwrap_or(u32::MAX));
        let prompt = most(self.used.prompt, self.deal.demand.prompt);
        Usage {
            prompt,
            cached: self.used.cached.min(prompt),
            completion: most(self.used.completion, self.counter.bound()),
        }
    }

    /// What is set aside.
    #[must_use]
    pub const fn held(&self) -> Amount {
        self.hold.amount()
    }

    /// Ends the money side once a receipt over so much is booked.
    pub fn settled(&mut self, charged: Amount) {
        self.hold.settled(charged);
    }

    /// Nothing more is paid: the seller is about to be told to stop.
    pub fn stops(&self) {
        self.hold.stops();
    }

    /// Leaves the line to the next purchase, if the seller waits there for one.
    pub fn leave(self) {
        if self.open && !self.cancelled {
            self.lines.keep(self.deal.offer.offer().seller, self.line);
        }
    }

    /// Takes what the seller said to the root that went with the ask. A seller that answers
    /// nothing, or is not asked, is asked again later.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn heard_root(&mut self) -> Result<(), LedgerError> {
        match (self.ack.take(), self.root.take()) {
            (Some(ours), Some(word)) => self.hold.countersigned(&ours, word).await,
            _ => Ok(()),
        }
    }

    /// Sets aside what a receipt charges, if the seller was ahead of us on older promises.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn cover(&mut self, charged: Amount) -> Result<(), LedgerError> {
        if let Some((more, payment)) = self.paying.take() {
            payment.await?;
            self.hold.extended(more);
        }
        let more = charged.saturating_sub(self.hold.amount());
        if !more.is_zero() {
            self.hold.extend(more, Amount::ZERO).await?;
            self.hold.extended(more);
        }
        Ok(())
    }

    /// The next thing that happens. Payments are made meanwhile. Not to be called after
    /// [`Step::Done`] or an error, but for [`OverDeposit`](farthing_protocol::channel::Rejected::OverDeposit): when the channel has been
    /// topped up, it goes on.
    ///
    /// # Errors
    /// Any [`PurchaseError`] but [`PurchaseError::Unreachable`].
    pub async fn next(&mut self) -> Result<Step, PurchaseError> {
        loop {
            if let Some(asked) = self.demanded {
                self.pay_on_demand(asked).await?;
                self.demanded = None;
            }
            let word = tokio::select! {
                biased;
                paid = payment(&mut self.paying) => {
                    self.paid(paid).await?;
                    continue;
                }
                word = self.line.hears.expect::<ToBuyer>(CHUNK_LIMIT, self.silence.by()) => word?,
            };
            if let Some(step) = self.heard(word).await? {
                return Ok(step);
            }
        }
    }

    async fn heard(&mut self, word: ToBuyer) -> Result<Option<Step>, PurchaseError> {
        match word {
            ToBuyer::Accepted { load } => {
                if self.deal.demand.mode == Mode::Plain {
                    // A document comes whole and at the end: only the deadline is too late.
                    self.silence.excuse();
                }
                Ok(Some(Step::Accepted(load)))
            }
            ToBuyer::Refused { refusal, .. } if self.counter.nothing() => {
                self.hold.refused();
                Err(PurchaseError::Refused(refusal))
            }
            ToBuyer::Refused { .. } => Err(PurchaseError::Protocol(
                "a refusal after a part of the answer",
            )),
            ToBuyer::NeedVoucher { ceiling, .. } => {
                self.demanded = (!self.cancelled).then_some(ceiling);
                Ok(None)
            }
            ToBuyer::Chunk { data, part, usage } => {
                self.used = usage;
                self.chunk(&data, part)
            }
            ToBuyer::Done {
                receipt,
                load,
                root,
                open,
            } => {
                self.open = open;
                self.root = root.map(|word| *word);
                let checked = receipt.verify_by(self.deal.offer.signer());
                let receipt =
                    checked.map_err(|_| PurchaseError::Protocol("a receipt it did not sign"))?;
                let dispute = self.check(receipt.receipt()).err();
                Ok(Some(Step::Done {
                    receipt: Box::new(receipt),
                    dispute,
                    load,
                }))
            }
        }
    }

    fn chunk(&mut self, data: &Bytes, part: Part) -> Result<Option<Step>, PurchaseError> {
        let limit = match self.deal.demand.mode {
            Mode::Plain => DOCUMENT_LIMIT,
            Mode::Stream => EVENT_LIMIT,
        };
        if self.event.len() + data.len() > limit {
            return Err(PurchaseError::Protocol("an event without end"));
        }
        self.hash.update(data);
        if part == Part::More {
            // A long event takes its time, but its pieces without end are no news.
            if self.event.is_empty() {
                self.silence.heard(self.counter.text(), Instant::now());
            }
            self.event.extend_from_slice(data);
            return Ok(None);
        }
        let event = if self.event.is_empty() {
            data.clone()
        } else {
            self.event.extend_from_slice(data);
            self.event.split().freeze()
        };
        self.counter.count(&event);
        self.silence.heard(self.counter.text(), Instant::now());
        self.pay_ahead();
        Ok(Some(Step::Data(event)))
    }

    /// Starts to raise the ceiling when less than half a window is left: an honest stream never
    /// has to wait.
    fn pay_ahead(&mut self) {
        if self.deal.demand.mode == Mode::Plain || self.paying.is_some() || self.cancelled {
            return;
        }
        let (Some(soon), Some(target)) = (
            self.worth(self.deal.window / 2),
            self.worth(self.deal.window),
        ) else {
            return;
        };
        if soon > self.hold.amount() && target > self.hold.amount() {
            self.extend(target);
        }
    }

    /// What this purchase may cost when `ahead` more tokens have come: by our own count.
    fn worth(&self, ahead: u64) -> Option<Amount> {
        let output = self
            .counter
            .output()
            .saturating_add(ahead)
            .min(self.deal.demand.output);
        let cost = self
            .deal
            .demand
            .up_to(&self.deal.model.prices, output)
            .ok()?;
        Some(cost.ceil().min(self.deal.max_cost))
    }

    fn extend(&mut self, target: Amount) {
        let more = target.saturating_sub(self.hold.amount());
        let payment = self.hold.extend(more, self.deal.headroom());
        self.paying = Some((more, Box::pin(payment)));
    }

    async fn paid(
        &mut self,
        paid: Result<SignedVoucher, LedgerError>,
    ) -> Result<(), PurchaseError> {
        let Some((more, _)) = self.paying.take() else {
            return Ok(());
        };
        if self.cancelled {
            // It is promised, and not sent any more.
            if paid.is_ok() {
                self.hold.extended(more);
            }
            return Ok(());
        }
        let voucher = paid?;
        self.hold.extended(more);
        // Covered by slack: this stream has carried the voucher already.
        if voucher.message.ceiling <= self.sent {
            return Ok(());
        }
        self.pay(voucher).await
    }

    /// The seller has stopped and names the ceiling it needs: signs up to one window ahead of our
    /// own count. Purchases share a channel's slack, and the seller may have spent some on another
    /// one whose chunks we have not read; so what it lacks for this one is signed on top, in all
    /// at most what this purchase is worth.
    async fn pay_on_demand(&mut self, asked: Amount) -> Result<(), PurchaseError> {
        if let Some((_, payment)) = self.paying.as_mut() {
            let paid = payment.await;
            self.paid(paid).await?;
        }
        let mut voucher = self.hold.newest().await?;
        if voucher.message.ceiling < asked {
            let ahead = self.deal.window.saturating_add(pricing::FIRST_WINDOW);
            let target = self.worth(ahead).unwrap_or_default();
            let more = target.saturating_sub(self.hold.amount());
            voucher = self.hold.extend(more, self.deal.headroom()).await?;
            self.hold.extended(more);
        }
        let allowed = voucher.message.ceiling;
        if allowed < asked {
            let advanced = self.advanced.saturating_add(asked.saturating_sub(allowed));
            if advanced > self.hold.amount() {
                return Err(PurchaseError::Overreach { asked, allowed });
            }
            voucher = self.hold.raise(asked).await?;
            self.advanced = advanced;
        }
        self.pay(voucher).await
    }

    /// Tells the seller to stop, and signs nothing more. The receipt for what it delivered may
    /// still come within `wait`.
    ///
    /// # Errors
    /// [`PurchaseError::Broken`].
    pub async fn cancel(&mut self, wait: Duration) -> Result<(), PurchaseError> {
        self.cancelled = true;
        self.stops();
        self.demanded = None;
        self.silence = Silence::until(Instant::now() + wait);
        Ok(self.line.speaks.send(&ToSeller::Cancel).await?)
    }
}

/// The running payment's end; never, when none is running.
async fn payment(paying: &mut Option<(Amount, Payment)>) -> Result<SignedVoucher, LedgerError> {
    match paying {
        Some((_, payment)) => payment.await,
        None => std::future::pending().await,
    }
}
