//! One purchase from top to bottom: admit, reserve, run, meter, charge, sign.
//!
//! [`serve`] is the only function that calls the hops. The rule it keeps: nothing is delivered
//! that the reservation does not cover, and a reservation never exceeds the signed ceiling. What
//! was delivered is charged however the purchase ends; what was refused costs nothing.
//!
//! Buyers come over libp2p, and over HTTP ([`crate::http`]): the sale is the same, and what
//! differs is the counter at which it stands.

mod counter;
mod turnstile;
mod till;
mod stream;

use alloy::primitives::Keccak256;
use bytes::Bytes;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::channel::Rejected;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::frame::{CHUNK_PAYLOAD, Part};
use farthing_protocol::net::wire::WireError;
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Ask, Ending, Mode, Refusal, Usage};
use farthing_protocol::root::RootWord;
use farthing_protocol::x402::ChannelId;
use tokio::time::Instant;

use crate::admission::{self, Admitted};
use crate::ledger::{LedgerError, OpenPurchase, Reservation, Served};
use crate::meter::{Meter, NotAnAnswer};
use crate::roots;
pub(crate) use crate::serve::counter::{Counter, Flush};
pub use crate::serve::stream::{Entry, serve, turn_away};
pub use crate::serve::turnstile::{Place, Turnstile};
use crate::shop::Shop;
use crate::upstream::{Events, Reply, UpstreamError};

/// How long the word that a purchase is accepted waits for the first part of the answer, to leave
/// in one packet with it.
const NEWS_WAIT: std::time::Duration = std::time::Duration::from_millis(5);

/// The most events without content that are held back before the first with some.
const MOST_HELD: usize = 16;

/// The longest that a model server's word "try again later" is passed on as.
const LONGEST_BUSY: std::time::Duration = std::time::Duration::from_secs(3600);

/// Why a purchase ends without a receipt.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It is refused; nothing is charged.
    Refused(Refusal),
    /// The buyer is gone and got nothing.
    Gone(WireError),
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<WireError> for Halt {
    fn from(error: WireError) -> Self {
        Self::Gone(error)
    }
}

/// The hops of a purchase, in order. The ask's body, which may be long, is let go as soon as it is
/// admitted, and the model server's when it has it: an answer may take minutes.
pub(crate) async fn sell<C: Counter>(
    shop: &Shop,
    counter: &mut C,
    ask: &mut Ask,
) -> Result<Ending, Halt> {
    let started = shop.clock.now();
    let deadline = Instant::now() + ask.deadline().min(shop.limits.deadline);
    let mut admitted = admission::admit(shop, counter.payer(), ask).await?;
    let meter = Meter::new(std::mem::take(&mut ask.body).len());
    let _seat = shop.seats.take(&admitted.model.id)?;
    let reservation = counter.reserve(&admitted, deadline).await?;
    let root = match ask.ack {
        Some(ack) => Some(roots::answer(shop, ask.channel, ack).await),
        None => None,
    };
    let load = shop.seats.load(&admitted.model.id);
    counter.accepted(load).await?;
    let body = std::mem::take(&mut admitted.body);
    let asked = ask_upstream(shop, &admitted, body, deadline);
    let reply = unless_cancelled(counter, admitted.channel, deadline, asked).await??;
    let mut sale = Sale {
        shop,
        counter,
        admitted,
        reservation,
        root,
        meter,
        usage: Usage::default(),
        hash: Keccak256::new(),
        held: Vec::new(),
        delivered: false,
        started,
        deadline,
        checkpointed: (Instant::now(), 0),
    };
    let ended = match reply {
        Reply::Plain(document) => sale.document(document).await,
        Reply::Stream(mut events) => sale.events(&mut events).await,
    };
    let ending = sale.ending(ended)?;
    sale.finish(ending).await
}

/// Runs `work` unless the buyer cancels first. Vouchers that come meanwhile are taken; what is
/// queued for the buyer leaves when the work takes longer than [`NEWS_WAIT`].
async fn unless_cancelled<C: Counter, T>(
    counter: &mut C,
    channel: ChannelId,
    deadline: Instant,
    work: impl Future<Output = T>,
) -> Result<T, Halt> {
    tokio::pin!(work);
    let news = tokio::time::sleep(NEWS_WAIT);
    tokio::pin!(news);
    let mut waits = true;
    loop {
        let word = tokio::select! {
            word = counter.word(deadline) => word,
            done = &mut work => return Ok(done),
            () = &mut news, if waits => {
                waits = false;
                counter.flush().await?;
                continue;
            }
        };
        match counter.heard(channel, word).await {
            None => {}
            Some(Ending::Cancelled) => return Err(Halt::Gone(WireError::Ended)),
            Some(Ending::Unpaid) => {
                return Err(Refusal::Unavailable("a voucher was refused".to_owned()).into());
            }
            Some(_) => {
                let late = "the deadline passed before the model server answered";
                return Err(Refusal::Unavailable(late.to_owned()).into());
            }
        }
    }
}

async fn ask_upstream(
    shop: &Shop,
    admitted: &Admitted,
    body: Vec<u8>,
    deadline: Instant,
) -> Result<Reply, Refusal> {
    let left = deadline.saturating_duration_since(Instant::now());
    let asked = shop
        .upstream
        .ask(admitted.endpoint, admitted.mode, Bytes::from(body), left);
    asked.await.map_err(refused_upstream)
}

/// A failure of the model server before anything was delivered.
fn refused_upstream(error: UpstreamError) -> Refusal {
    match error {
        // It asks for patience and says how much.
        UpstreamError::Status {
            status: 429 | 503,
            retry_after: Some(wait),
            ..
        } => Refusal::Busy {
            retry_after_ms: u64::try_from(wait.min(LONGEST_BUSY).as_millis()).unwrap_or(u64::MAX),
        },
        UpstreamError::Status { status: 429, .. } => Refusal::Busy {
            retry_after_ms: crate::shop::RETRY_AFTER_MS,
        },
        UpstreamError::Status { status, body, .. } => Refusal::Upstream { status, body },
        other => Refusal::Unavailable(format!("the model server failed: {other}")),
    }
}

/// A purchase that is being delivered.
struct Sale<'a, C> {
    shop: &'a Shop,
    counter: &'a mut C,
    admitted: Admitted,
    reservation: Reservation,
    /// The answer to the ask's root.
    root: Option<RootWord>,
    meter: Meter,
    /// Of what was delivered.
    usage: Usage,
    hash: Keccak256,
    /// Events without content that came before any: they leave with the first that has some, so
    /// that a model server that fails before its first token has cost the buyer nothing.
    held: Vec<Bytes>,
    delivered: bool,
    started: Timestamp,
    deadline: Instant,
    /// When the last checkpoint was made, and how many tokens of the answer it had.
    checkpointed: (Instant, u32),
}

impl<C: Counter> Sale<'_, C> {
    /// Delivers a whole document. It was reserved in full before work started.
    async fn document(&mut self, document: Bytes) -> Result<Ending, Halt> {
        self.usage = self.meter.document(&document).map_err(not_an_answer)?;
        if let Some(ending) = self.cover(self.cost()?).await? {
            return Ok(ending);
        }
        self.counter.before(self.due()?).await?;
        let sent = self.chunks(&document, self.usage, Flush::Later).await;
        Ok(if sent.is_ok() {
            Ending::Complete
        } else {
            Ending::Cancelled
        })
    }

    /// Delivers a stream event by event, listening to the buyer between them.
    async fn events(&mut self, events: &mut Events) -> Result<Ending, Halt> {
        loop {
            if Instant::now() >= self.deadline {
                return self.stopped(Ending::Limit);
            }
            // Not biased: a buyer that talks without end does not keep its answer from coming.
            let next = tokio::select! {
                word = self.counter.word(self.deadline) => {
                    match self.counter.heard(self.admitted.channel, word).await {
                        Some(ending) => return self.stopped(ending),
                        None => continue,
                    }
                }
                event = events.next() => event,
            };
            // Not every server says `[DONE]`: of one that does not, all answers must have ended.
            let ended = || events.is_done() || self.meter.finished(self.admitted.choices);
            let is_cut = next.is_none() && !ended();
            match next.or(is_cut.then_some(Err(UpstreamError::Cut))) {
                Some(Ok(event)) => {
                    if let Some(ending) = self.event(event).await? {
                        return self.stopped(ending);
                    }
                }
                Some(Err(error)) if !self.delivered => return Err(refused_upstream(error).into()),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the model server failed in the middle of an answer");
                    return Ok(Ending::UpstreamFailed);
                }
                None => return self.completed().await,
            }
        }
    }

    /// The model server has said all. An answer without content is one, too.
    async fn completed(&mut self) -> Result<Ending, Halt> {
        if !self.held.is_empty() {
            let usage = self.meter.usage();
            if let Some(ending) = self.cover(self.priced(&usage)?).await? {
                return self.stopped(ending);
            }
            self.counter.before(self.due()?).await?;
            if self.release_held(usage).await.is_err() {
                return self.stopped(Ending::Cancelled);
            }
            self.usage = usage;
        }
        self.stopped(Ending::Complete)
    }

    /// What was delivered is charged, whatever came in the way of more.
    fn ending(&self, ended: Result<Ending, Halt>) -> Result<Ending, Halt> {
        match ended {
            Err(Halt::Gone(error)) if self.delivered => {
                tracing::debug!(%error, "the buyer hung up");
                Ok(Ending::Cancelled)
            }
            Err(Halt::Refused(refusal)) if self.delivered => {
                tracing::warn!(%refusal, "an answer ends in the middle");
                Ok(Ending::UpstreamFailed)
            }
            other => other,
        }
    }

    /// An end before anything was delivered is no sale.
    fn stopped(&self, ending: Ending) -> Result<Ending, Halt> {
        match ending {
            _ if self.delivered => Ok(ending),
            Ending::Unpaid => Err(Refusal::Unavailable("no voucher came in time".into()).into()),
            Ending::Limit => {
                Err(Refusal::Unavailable("the deadline passed before an answer".into()).into())
            }
            Ending::Complete => {
                Err(Refusal::Unavailable("the model server sent nothing".into()).into())
            }
            _ => Err(Halt::Gone(WireError::Ended)),
        }
    }

    /// Counts, covers and delivers one event.
    async fn event(&mut self, event: Bytes) -> Result<Option<Ending>, Halt> {
        if !self.shop.ledger.writes() {
            // What is delivered now could never be charged.
            return Err(Refusal::Unavailable("the seller's ledger failed".to_owned()).into());
        }
        let mut usage = self.meter.event(&event).map_err(not_an_answer)?;
        if !self.meter.is_reported() {
            // An estimate is not allowed to find more tokens than were asked for.
            let asked = u32::try_from(self.admitted.demand.output).unwrap_or(u32::MAX);
            usage.completion = usage.completion.min(asked);
        }
        if usage.completion == 0 && !self.delivered && self.held.len() < MOST_HELD {
            self.held.push(event);
            return Ok(None);
        }
        let bound = self
            .admitted
            .demand
            .up_to(&self.admitted.model.prices, u64::from(usage.completion));
        let cost = if self.meter.is_reported() {
            self.priced(&usage)?
        } else {
            bound.map_err(too_dear)?
        };
        if let Some(ending) = self.cover(cost).await? {
            return Ok(Some(ending));
        }
        if !self.delivered {
            self.counter.before(self.due()?).await?;
        }
        let sent = match self.release_held(usage).await {
            Ok(()) => self.chunks(&event, usage, Flush::Now).await,
            error => error,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the buyer hung up");
            return Ok(Some(Ending::Cancelled));
        }
        self.usage = usage;
        if self.delivered {
            // Nothing delivered may still be refused, and then leaves nothing behind.
            self.checkpoint().await;
        }
        Ok(None)
    }

    /// Sends what was held back, to leave with what follows.
    async fn release_held(&mut self, usage: Usage) -> Result<(), WireError> {
        for event in std::mem::take(&mut self.held) {
            self.chunks(&event, usage, Flush::Later).await?;
        }
        Ok(())
    }

    /// Sends one event or document in chunks of bounded size.
    async fn chunks(&mut self, data: &Bytes, usage: Usage, flush: Flush) -> Result<(), WireError> {
        if !self.counter.shows(data) {
            return Ok(());
        }
        let mut rest = data.clone();
        loop {
            let piece = rest.split_to(rest.len().min(CHUNK_PAYLOAD));
            let part = if rest.is_empty() {
                Part::Last
            } else {
                Part::More
            };
            self.hash.update(&piece);
            self.counter.deliver(piece, part, usage, flush).await?;
            self.delivered = true;
            if part == Part::Last {
                return Ok(());
            }
        }
    }

    /// Makes the reservation cover `cost`: from slack if there is some, else from a voucher.
    async fn cover(&mut self, cost: Cost) -> Result<Option<Ending>, Halt> {
        let needed = cost.ceil();
        while needed > self.reservation.amount() {
            if needed > self.admitted.max_cost {
                return Ok(Some(Ending::Limit));
            }
            let window = pricing::window_value(&self.admitted.model.prices, pricing::FIRST_WINDOW);
            let ahead = needed.saturating_add(window).min(self.admitted.max_cost);
            if self.extend_to(ahead)? || self.extend_to(needed)? {
                continue;
            }
            let more = ahead.saturating_sub(self.reservation.amount());
            if let Some(ending) = self
                .counter
                .await_cover(self.admitted.channel, more, self.deadline)
                .await?
            {
                return Ok(Some(ending));
            }
        }
        Ok(None)
    }

    fn extend_to(&mut self, amount: Amount) -> Result<bool, Halt> {
        match self
            .reservation
            .extend(amount.saturating_sub(self.reservation.amount()))
        {
            Ok(()) => Ok(true),
            Err(LedgerError::Rejected(Rejected::OverCeiling { .. })) => Ok(false),
            Err(error) => Err(unavailable(&error).into()),
        }
    }

    fn priced(&self, usage: &Usage) -> Result<Cost, Halt> {
        pricing::cost(usage, &self.admitted.model.prices).map_err(|error| too_dear(error).into())
    }

    fn cost(&self) -> Result<Cost, Halt> {
        self.priced(&self.usage)
    }

    /// What is charged if it ends here.
    fn due(&self) -> Result<Amount, Halt> {
        let due = self.cost()?.floor().max(self.admitted.least);
        Ok(due.min(self.admitted.max_cost))
    }

    /// Every window, and every second, writes down how far we are: what a crash would charge.
    async fn checkpoint(&mut self) {
        let (at, tokens) = self.checkpointed;
        let behind = u64::from(self.usage.completion.saturating_sub(tokens));
        if at.elapsed() < self.shop.limits.checkpoint && behind < pricing::FIRST_WINDOW {
            return;
        }
        self.checkpointed = (Instant::now(), self.usage.completion);
        if let Ok(purchase) = self.purchase()
            && let Err(error) = self
                .shop
                .ledger
                .checkpoint(&self.reservation, &purchase)
                .await
        {
            tracing::error!(%error, "a checkpoint could not be written");
        }
    }

    fn purchase(&self) -> Result<OpenPurchase, Halt> {
        let limit = self.admitted.max_cost.to_cost().map_err(too_dear)?;
        let least = self.admitted.least.to_cost().map_err(too_dear)?;
        Ok(OpenPurchase {
            channel: self.admitted.channel,
            request_hash: self.admitted.request_hash,
            response_hash: self.hash.clone().finalize(),
            model_hash: self.admitted.model_hash,
            offer: self.admitted.offer,
            usage: self.usage,
            cost: self.cost()?.max(least).min(limit),
            started: self.started,
        })
    }

    /// Charges what was delivered and hands over the receipt.
    async fn finish(mut self, ending: Ending) -> Result<Ending, Halt> {
        if !self.delivered {
            self.stopped(ending)?;
        }
        if self.admitted.mode == Mode::Stream && ending == Ending::Complete {
            // The final count may exceed the running estimate; the buyer bounds it by its own.
            // What is not covered, because the buyer is gone or unwilling, is not charged.
            if let Err(Halt::Gone(error)) = self.cover(self.cost()?).await {
                tracing::debug!(%error, "the buyer left before its receipt");
            }
        }
        let served = Served {
            purchase: self.purchase()?,
            finished: self.shop.clock.now(),
            ending,
        };
        let receipt = self.shop.ledger.finish(self.reservation, served).await;
        let receipt = receipt.map_err(|error| unavailable(&error))?;
        self.shop
            .metrics
            .purchase_ended(ending, &receipt.usage, receipt.charged);
        self.counter.after(receipt.charged).await;
        let load = self.shop.seats.load(&self.admitted.model.id);
        let receipt = receipt.sign(&self.shop.key);
        if let Err(error) = self.counter.done(receipt, load, self.root).await {
            tracing::debug!(%error, "the buyer left before its receipt; it can ask for it");
        }
        Ok(ending)
    }
}

fn not_an_answer(error: NotAnAnswer) -> Refusal {
    Refusal::Unavailable(error.to_string())
}

fn too_dear(_: farthing_protocol::amount::Overflow) -> Refusal {
    Refusal::BadRequest("the request's cost cannot be represented".to_owned())
}

fn unavailable(error: &LedgerError) -> Refusal {
    tracing::error!(%error, "the ledger failed");
    match error {
        LedgerError::Duplicate => Refusal::Duplicate,
        LedgerError::NoChannel => Refusal::NoChannel,
        _ => Refusal::Unavailable("the seller's ledger failed".to_owned()),
    }
}
