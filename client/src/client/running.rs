//! A purchase under way, with a seller of either kind, from its first step to its books.
//!
//! However it ends, what was delivered is paid and no more: one that is dropped tells its seller to
//! stop and waits for the receipt by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::{Ending, Load, Mode, RequestId, Usage};
use farthing_protocol::receipt::{SignedReceipt, VerifiedReceipt};
use farthing_protocol::x402::ChannelId;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::client::answer::InferError;
use crate::client::failure::{Failure, blame};
use crate::client::parts::Parts;
use crate::ledger::experience::Deed;
use crate::ledger::{LedgerError, Note, Standing};
use crate::market::{Outcome, Served, Trial};
use crate::purchase::web::{WebEnd, WebPurchase, WebStep};
use crate::purchase::{Dispute, Purchase, PurchaseError, Step};

/// How often the deposit is added to for one answer.
const TOP_UPS: u32 = 8;
/// How long a cancelled purchase may take to bring its receipt.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long one may take that has failed: the application waits.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// A purchase with a seller of either kind.
pub(in crate::client) enum Work {
    Peer(Box<Purchase>),
    Web(Box<WebPurchase>),
}

/// What a seller sends.
pub(in crate::client) enum Piece {
    Data(Bytes),
    End(Close),
}

/// How a seller ends.
pub(in crate::client) enum Close {
    Peer {
        receipt: Box<VerifiedReceipt>,
        dispute: Option<Dispute>,
    },
    Web(Box<WebEnd>),
}

impl Close {
    /// Why the answer is not whole, by the seller's word. Not asked of one that we told to
    /// stop.
    pub(in crate::client) fn fault(&self) -> Option<&'static str> {
        match self {
            Self::Peer { receipt, .. } => match receipt.receipt().ending {
                Ending::Complete => None,
                Ending::Cancelled => Some("the seller says it was told to stop, and was not"),
                Ending::UpstreamFailed => Some("the seller's model server failed"),
                Ending::Unpaid => Some("the seller did not get the next voucher in time"),
                Ending::Interrupted => Some("the seller was restarted"),
                Ending::Limit => Some("the cost ceiling or the deadline was reached"),
            },
            Self::Web(end) if end.whole => None,
            Self::Web(_) => Some("the seller ended the stream in the middle"),
        }
    }
}

/// What a purchase came to.
#[derive(Debug, Default)]
pub(in crate::client) struct Closed {
    /// What was charged; where the seller has not said, what it may charge at most.
    pub(in crate::client) charged: Amount,
    /// The receipt of a seller on the network.
    pub(in crate::client) receipt: Option<Box<SignedReceipt>>,
    /// The books could not be kept.
    pub(in crate::client) broken: Option<InferError>,
}

/// A purchase that was given up.
pub(in crate::client) enum Closing {
    Now(Closed),
    /// Its receipt is asked for.
    Later(JoinHandle<Closed>),
}

impl Closing {
    /// What it came to, once that is known.
    pub(in crate::client) async fn closed(self) -> Closed {
        match self {
            Self::Now(closed) => closed,
            Self::Later(task) => task.await.unwrap_or_default(),
        }
    }
}

/// A purchase under way. Dropped, it hangs up politely.
pub(in crate::client) struct Running {
    request: RequestId,
    seller: NodeId,
    /// Until it is over.
    inner: Option<Box<Inner>>,
}

struct Inner {
    parts: Arc<Parts>,
    work: Work,
    trial: Option<Trial>,
    load: Option<Load>,
    model: String,
    endpoint: Endpoint,
    /// A document has no first token that anybody sees.
    mode: Mode,
    topped_up: u32,
    pace: Pace,
}

/// How fast it goes.
struct Pace {
    asked: Instant,
    /// About how many tokens the prompt has.
    prompt: u32,
    first: Option<Duration>,
    /// The longest silence after the first content. A slow reader is not the seller's silence.
    longest: Duration,
}

impl Pace {
    fn heard(&mut self, since: Instant) {
        if self.first.is_some() {
            self.longest = self.longest.max(since.elapsed());
        }
    }
}

impl Running {
    pub(in crate::client) fn new(
        parts: Arc<Parts>,
        work: Work,
        (model, endpoint, prompt): (String, Endpoint, u32),
        asked: Instant,
    ) -> Self {
        let pace = Pace {
            asked,
            prompt,
            first: None,
            longest: Duration::ZERO,
        };
        let (request, seller, mode) = match &work {
            Work::Peer(it) => {
                let deal = it.deal();
                (deal.request, deal.offer.offer().seller, deal.demand.mode)
            }
            Work::Web(it) => (it.deal().request, it.seller(), it.deal().mode),
        };
        let inner = Inner {
            parts,
            work,
            trial: None,
            load: None,
            model,
            endpoint,
            mode,
            topped_up: 0,
            pace,
        };
        Self {
            request,
            seller,
            inner: Some(Box::new(inner)),
        }
    }

    /// From here on the market hears how it goes.
    pub(in crate::client) fn tried(&mut self, trial: Trial) {
        let Some(inner) = &mut self.inner else { return };
        if let Some(load) = inner.load.take() {
            trial.load(load);
        }
        if inner.is_document() {
            // How long one waits for all of it says nothing of a first token.
            trial.answered();
        }
        inner.trial = Some(trial);
    }

    /// The first content is here.
    pub(in crate::client) fn begun(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.pace.first = Some(inner.pace.asked.elapsed());
            if let Some(trial) = &inner.trial {
                trial.answered();
            }
        }
    }

    /// The next thing that happens. Payments are made meanwhile, and the deposit is added to.
    /// Not to be called after [`Piece::End`] or a failure.
    ///
    /// # Errors
    /// [`Failure`].
    pub(in crate::client) async fn next(&mut self) -> Result<Piece, Failure> {
        match &mut self.inner {
            Some(inner) => inner.next().await,
            None => Err(Failure::Ended("the purchase is over")),
        }
    }

    /// The purchase's id, and who sells.
    pub(in crate::client) const fn names(&self) -> (RequestId, NodeId) {
        (self.request, self.seller)
    }

    /// When it was asked.
    pub(in crate::client) fn asked(&self) -> Instant {
        let asked = self.inner.as_deref().map(|inner| inner.pace.asked);
        asked.unwrap_or_else(Instant::now)
    }

    /// Whether it is paid for by a payment of its own, which cannot be taken back.
    pub(in crate::client) fn is_paid_once(&self) -> bool {
        let once = |inner: &Inner| matches!(&inner.work, Work::Web(it) if it.is_paid_once());
        self.inner.as_deref().is_some_and(once)
    }

    /// What the seller has counted so far, as far as it says and we believe it.
    pub(in crate::client) fn used(&self) -> Usage {
        match self.inner.as_deref().map(|inner| &inner.work) {
            Some(Work::Peer(purchase)) => purchase.used(),
            _ => Usage::default(),
        }
    }

    /// Books the end. Once begun it goes on, even if nobody waits for it any more.
    pub(in crate::client) async fn close(self, close: Close, is_whole: bool) -> Closed {
        let booking = tokio::spawn(self.book(close, is_whole));
        booking.await.unwrap_or_default()
    }

    /// Books the end, for a caller that sees it through.
    pub(in crate::client) async fn book(mut self, close: Close, is_whole: bool) -> Closed {
        match self.inner.take() {
            Some(inner) => inner.close(close, is_whole).await,
            None => Closed::default(),
        }
    }

    /// Gives up after a failure. A seller that may still be heard is asked for its receipt, beside
    /// whatever comes next.
    pub(in crate::client) fn give_up(mut self, failure: &Failure) -> Closing {
        let Some(mut inner) = self.inner.take() else {
            return Closing::Now(Closed::default());
        };
        let outcome = match failure {
            Failure::Purchase(PurchaseError::Ledger(_)) => Outcome::Blameless,
            failure => blame(failure),
        };
        inner.record(outcome);
        match failure {
            Failure::Purchase(PurchaseError::Refused(_)) => Closing::Now(Closed::default()),
            failure if failure.leaves_the_stream() => {
                inner.stops();
                Closing::Later(tokio::spawn(inner.end(LAST_CHANCE)))
            }
            _ => Closing::Now(inner.at_most()),
        }
    }

    /// Lets go of a purchase in which nothing is left to hear or to pay.
    pub(in crate::client) fn let_go(mut self) {
        self.inner = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Without a runtime there is nobody to wait; the money is then left in doubt.
        if let (Some(inner), Ok(runtime)) = (self.inner.take(), Handle::try_current()) {
            inner.stops();
            runtime.spawn(inner.hang_up());
        }
    }
}

impl Inner {
    async fn next(&mut self) -> Result<Piece, Failure> {
        let since = Instant::now();
        loop {
            let step = match &mut self.work {
                Work::Peer(purchase) => purchase.next().await,
                Work::Web(purchase) => {
                    let piece = match purchase.next().await? {
                        WebStep::Data(data) => Piece::Data(data),
                        WebStep::End(end) => Piece::End(Close::Web(end)),
                    };
                    self.pace.heard(since);
                    return Ok(piece);
                }
            };
            match step {
                Ok(Step::Accepted(load)) => self.load(load),
                Ok(Step::Data(data)) => {
                    self.pace.heard(since);
                    return Ok(Piece::Data(data));
                }
                Ok(Step::Done {
                    receipt,
                    dispute,
                    load,
                }) => {
                    self.load(load);
                    return Ok(Piece::End(Close::Peer { receipt, dispute }));
                }
                Err(PurchaseError::Ledger(LedgerError::Rejected(Rejected::OverDeposit {
                    ..
                }))) => self.top_up().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn load(&mut self, load: Load) {
        match &self.trial {
            Some(trial) => trial.load(load),
            None => self.load = Some(load),
        }
    }

    /// The deposit is used up in the middle of an answer: adds to it and goes on, but not for ever:
    /// a seller may ask for more than any deposit holds.
    async fn top_up(&mut self) -> Result<(), Failure> {
        let Work::Peer(purchase) = &self.work else {
            return Ok(());
        };
        self.topped_up += 1;
        if self.topped_up > TOP_UPS {
            let again = "it asks for more than the deposit, again and again";
            return Err(PurchaseError::Protocol(again).into());
        }
        let deal = purchase.deal();
        let rest = deal.max_cost.saturating_sub(purchase.held());
        self.parts.channels.ready(&deal.offer, rest).await?;
        Ok(())
    }

    async fn close(mut self: Box<Self>, close: Close, is_whole: bool) -> Closed {
        let ended = close.fault().is_none();
        let (closed, used, disputed) = match close {
            Close::Peer { receipt, dispute } => {
                let used = receipt.receipt().usage;
                let closed = self.book(&receipt, dispute.as_ref()).await;
                (closed, used, dispute.is_some())
            }
            Close::Web(mut end) => {
                end.whole |= is_whole;
                let disputed = end.dispute.is_some();
                (self.book_web(&end).await, Usage::default(), disputed)
            }
        };
        let good = closed.broken.is_none() && !disputed && ended && is_whole;
        let outcome = if good {
            Outcome::Served(self.served(used, closed.charged))
        } else {
            Outcome::Failed
        };
        self.record(outcome);
        // Before the end is told, so that what is asked next finds the line.
        if let Work::Peer(purchase) = self.work {
            purchase.leave();
        }
        closed
    }

    /// Whether the answer is written out of sight and comes as a whole.
    fn is_document(&self) -> bool {
        self.mode == Mode::Plain && self.endpoint.writes()
    }

    fn served(&self, used: Usage, charged: Amount) -> Served {
        let elapsed = self.pace.asked.elapsed();
        let first = self.pace.first.unwrap_or(elapsed);
        Served {
            first_token: (!self.is_document()).then_some(first),
            elapsed,
            longest_gap: self.pace.longest,
            prompt: used.prompt,
            tokens: used.completion,
            charged,
        }
    }

    fn record(&mut self, outcome: Outcome) {
        if let Some(trial) = self.trial.take() {
            trial.record(outcome);
        }
    }

    /// It will be told to stop: the request's tab knows at once.
    fn stops(&self) {
        if let Work::Peer(purchase) = &self.work {
            purchase.stops();
        }
    }

    async fn hang_up(mut self: Box<Self>) {
        self.record(match self.pace.first {
            Some(_) => Outcome::Blameless,
            None if self.is_document() => Outcome::Blameless,
            None => Outcome::Overtaken {
                waited: self.pace.asked.elapsed(),
                prompt: self.pace.prompt,
            },
        });
        self.end(LAST_WORD).await;
    }

    /// Ends early. `wait` is how long the seller may take to send the receipt of what it
    /// delivered; without one the money stays in doubt, until its books are asked.
    async fn end(mut self: Box<Self>, wait: Duration) -> Closed {
        let last = match &mut self.work {
            Work::Peer(purchase) => timeout(wait, last_word(purchase, wait)).await.ok(),
            Work::Web(_) => None,
        };
        match last {
            Some(Ok((receipt, dispute))) => self.book(&receipt, dispute.as_ref()).await,
            Some(Err(PurchaseError::Refused(_))) => Closed::default(),
            _ => self.at_most(),
        }
    }

    /// What is not known is what it may be.
    fn at_most(&self) -> Closed {
        let charged = match &self.work {
            Work::Peer(purchase) => purchase.held(),
            Work::Web(purchase) => purchase.held(),
        };
        Closed {
            charged,
            ..Closed::default()
        }
    }

    async fn book(&mut self, receipt: &VerifiedReceipt, dispute: Option<&Dispute>) -> Closed {
        let booked = self.settle(receipt, dispute).await;
        if let Err(error) = &booked {
            tracing::error!(%error, "a receipt could not be booked");
        }
        let signed = receipt.signed().clone();
        Closed {
            charged: signed.receipt.charged,
            receipt: Some(Box::new(signed)),
            broken: booked.err().map(internal),
        }
    }

    /// Books a receipt. A false one is kept as evidence, and its channel is used no more.
    async fn settle(
        &mut self,
        receipt: &VerifiedReceipt,
        dispute: Option<&Dispute>,
    ) -> Result<(), LedgerError> {
        let Work::Peer(purchase) = &mut self.work else {
            return Ok(());
        };
        let (channel, deal) = (purchase.channel(), purchase.deal());
        if let Some(dispute) = dispute {
            let seller = deal.offer.offer().seller;
            let reputation = &self.parts.repute.reputation;
            reputation.note(seller, &self.model, Deed::Disputed);
            freeze(&self.parts, (seller, channel), deal.request, dispute).await;
        }
        let foreign =
            |dispute: &Dispute| matches!(dispute, Dispute::Other(_) | Dispute::Promise { .. });
        if dispute.is_some_and(foreign) {
            return Ok(());
        }
        let note = Note {
            model: Some(self.model.clone()),
            endpoint: Some(self.endpoint),
            dispute: dispute.map(ToString::to_string),
        };
        purchase.cover(receipt.receipt().charged).await?;
        let now = self.parts.clock.now();
        self.parts.ledger.book(receipt.clone(), note, now).await?;
        if dispute.is_some() {
            // Evidence: no seller shows it again.
            self.parts.ledger.written().await?;
        }
        purchase.settled(receipt.receipt().charged);
        purchase.heard_root().await
    }

    /// Books what was charged. A price that is not the agreed one is kept as evidence, and its
    /// channel is used no more. One that was not said stays in doubt until the next purchase.
    async fn book_web(&mut self, end: &WebEnd) -> Closed {
        let Work::Web(purchase) = &mut self.work else {
            return Closed::default();
        };
        let charged = end.charged.unwrap_or(purchase.held());
        let now = self.parts.clock.now();
        let booked = purchase.book(end, &self.parts.ledger, now).await;
        if let (Ok(()), Some(dispute)) = (&booked, end.dispute) {
            let url = purchase.deal().shown();
            tracing::error!(%url, dispute, "a false price; the seller is not used again");
            if let Some(id) = purchase.channel()
                && let Err(error) = self.parts.channels.stand(id, Standing::Frozen).await
            {
                tracing::error!(%error, "a channel could not be frozen");
            }
        }
        Closed {
            charged,
            receipt: None,
            broken: booked.err().map(internal),
        }
    }
}

fn internal(error: LedgerError) -> InferError {
    InferError::Internal(error.to_string())
}

/// Tells the seller to stop and waits for its receipt: what was delivered is paid.
async fn last_word(
    purchase: &mut Purchase,
    wait: Duration,
) -> Result<(VerifiedReceipt, Option<Dispute>), PurchaseError> {
    purchase.cancel(wait).await?;
    loop {
        if let Step::Done {
            receipt, dispute, ..
        } = purchase.next().await?
        {
            return Ok((*receipt, dispute));
        }
    }
}

async fn freeze(
    parts: &Parts,
    (seller, channel): (NodeId, ChannelId),
    request: RequestId,
    dispute: &Dispute,
) {
    tracing::error!(seller = %seller.short(), request = %request.short(), %dispute, "a false receipt; the seller is not used again");
    if let Err(error) = parts.channels.stand(channel, Standing::Frozen).await {
        tracing::error!(%error, "a channel could not be frozen");
    }
}
