//! From the first event to the receipt: hands events to the application, books the receipt, and
//! tells the market how it went.

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::channel::Rejected;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::{Ending, RequestId};
use farthing_protocol::receipt::VerifiedReceipt;
use farthing_protocol::x402::ChannelId;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::client::answer::{Answer, Bill, Event, InferError};
use crate::client::infer::{Begun, Failure, blame, broken_off};
use crate::client::parts::Parts;
use crate::ledger::{LedgerError, Note, Standing};
use crate::market::{Outcome, Served, Trial};
use crate::policy::Terms;
use crate::purchase::{Dispute, Purchase, PurchaseError, Step};

/// Events that wait for a slow reader before the seller is slowed down too.
const EVENTS: usize = 32;
/// How often the deposit is added to for one answer.
const TOP_UPS: u32 = 8;
/// How long a cancelled purchase may take to bring its receipt.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long one may take that has failed: the application waits.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// What an answer is about, beside the purchase itself.
pub(in crate::client) struct Order {
    pub(in crate::client) terms: Terms,
    pub(in crate::client) trial: Trial,
    pub(in crate::client) asked: Instant,
    pub(in crate::client) why: String,
}

struct Delivery {
    parts: Arc<Parts>,
    purchase: Purchase,
    trial: Trial,
    model: String,
    endpoint: Endpoint,
    asked: Instant,
    first_token: Duration,
    /// When the last event came, and the longest silence so far.
    heard: Instant,
    longest_gap: Duration,
    events: mpsc::Sender<Result<Event, InferError>>,
    topped_up: u32,
}

/// How a delivery ends.
enum End {
    Done {
        receipt: Box<VerifiedReceipt>,
        dispute: Option<Dispute>,
    },
    /// The application is gone.
    Unwanted,
    Failed(Failure),
}

/// Hands the answer over; the rest of it is delivered by a task that ends with it.
pub(in crate::client) fn deliver(parts: Arc<Parts>, begun: Begun, order: Order) -> Answer {
    let Begun {
        purchase,
        first,
        load,
    } = begun;
    let Order {
        terms,
        trial,
        asked,
        why,
    } = order;
    if let Some(load) = load {
        trial.load(load);
    }
    trial.answered();
    let (events, receiver) = mpsc::channel(EVENTS);
    let (request, seller) = (
        purchase.deal().request,
        purchase.deal().offer.offer().seller,
    );
    let delivery = Delivery {
        parts,
        purchase,
        trial,
        model: terms.model.clone(),
        endpoint: terms.endpoint,
        asked,
        first_token: asked.elapsed(),
        heard: Instant::now(),
        longest_gap: Duration::ZERO,
        events,
        topped_up: 0,
    };
    tokio::spawn(delivery.run(first));
    Answer {
        request,
        seller,
        model: terms.model,
        why,
        events: receiver,
    }
}

impl Delivery {
    async fn run(mut self, first: Step) {
        let end = match self.step(first).await {
            Some(end) => end,
            None => self.flow().await,
        };
        match end {
            End::Done { receipt, dispute } => self.done(*receipt, dispute).await,
            End::Unwanted => self.cancel().await,
            End::Failed(failure) => self.failed(failure).await,
        }
    }

    /// Passes events on until something ends it.
    async fn flow(&mut self) -> End {
        loop {
            let step = tokio::select! {
                biased;
                () = self.events.closed() => return End::Unwanted,
                step = self.purchase.next() => step,
            };
            let ended = match step {
                Ok(step) => self.step(step).await,
                Err(PurchaseError::Ledger(LedgerError::Rejected(Rejected::OverDeposit {
                    ..
                }))) => self.top_up().await,
                Err(error) => Some(End::Failed(error.into())),
            };
            if let Some(end) = ended {
                return end;
            }
        }
    }

    /// The deposit is used up in the middle of an answer: adds to it and goes on, but not for ever:
    /// a seller may ask for more than any deposit holds.
    async fn top_up(&mut self) -> Option<End> {
        self.topped_up += 1;
        if self.topped_up > TOP_UPS {
            return Some(End::Failed(
                PurchaseError::Protocol("it asks for more than the deposit, again and again")
                    .into(),
            ));
        }
        let deal = self.purchase.deal();
        let rest = deal.max_cost.saturating_sub(self.purchase.held());
        let ready = self.parts.channels.ready(&deal.offer, rest).await;
        ready.err().map(|error| End::Failed(error.into()))
    }

    async fn step(&mut self, step: Step) -> Option<End> {
        match step {
            Step::Accepted(_) => None,
            Step::Data(data) => {
                self.longest_gap = self.longest_gap.max(self.heard.elapsed());
                let sent = self.events.send(Ok(Event::Data(data))).await;
                // A slow reader is not the seller's silence.
                self.heard = Instant::now();
                sent.err().map(|_| End::Unwanted)
            }
            Step::Done {
                receipt,
                dispute,
                load,
            } => {
                self.trial.load(load);
                Some(End::Done { receipt, dispute })
            }
        }
    }

    async fn done(mut self, receipt: VerifiedReceipt, dispute: Option<Dispute>) {
        let settled = self.settle(&receipt, dispute.as_ref()).await;
        let signed = receipt.signed().clone();
        let (usage, charged, ending) = (
            signed.receipt.usage,
            signed.receipt.charged,
            signed.receipt.ending,
        );
        let end = match (&settled, ending) {
            (Err(error), _) => Err(InferError::Internal(error.to_string())),
            (Ok(()), Ending::Complete | Ending::Cancelled) => Ok(Event::End(Box::new(Bill {
                receipt: signed,
                charged,
            }))),
            (Ok(()), other) => Err(InferError::Interrupted(reason(other).to_owned())),
        };
        let good = settled.is_ok() && dispute.is_none() && ending == Ending::Complete;
        self.trial.record(if good {
            Outcome::Served(Served {
                first_token: self.first_token,
                elapsed: self.asked.elapsed(),
                longest_gap: self.longest_gap,
                prompt: usage.prompt,
                tokens: usage.completion,
                charged,
            })
        } else {
            Outcome::Failed
        });
        // Before the end is told, so that what is asked next finds the line.
        self.purchase.leave();
        // Whoever asked may have gone.
        self.events.send(end).await.ok();
    }

    /// Tells the seller to stop and waits for its receipt: what was delivered is paid.
    async fn cancel(mut self) {
        self.last_word(LAST_WORD).await;
        self.trial.record(Outcome::Blameless);
    }

    /// Asks for the receipt of what was delivered. Without one the money stays in doubt, until
    /// the seller's books are asked.
    async fn last_word(&mut self, wait: Duration) {
        let last = timeout(wait, last_word(&mut self.purchase, wait)).await;
        if let Ok(Ok((receipt, dispute))) = last {
            let settled = self.settle(&receipt, dispute.as_ref()).await;
            if let Err(error) = settled {
                tracing::error!(%error, "a receipt could not be booked");
            }
        }
    }

    async fn failed(mut self, failure: Failure) {
        let request = self.purchase.deal().request;
        tracing::warn!(request = %request.short(), error = %failure, "an answer broke off");
        let outcome = match &failure {
            Failure::Purchase(PurchaseError::Ledger(_)) => Outcome::Blameless,
            failure => blame(failure),
        };
        if failure.leaves_the_stream() {
            self.last_word(LAST_CHANCE).await;
        }
        self.trial.record(outcome);
        // Without a receipt the money is left in doubt, before the application hears of it.
        drop(self.purchase);
        // Whoever asked may have gone.
        self.events.send(Err(broken_off(&failure))).await.ok();
    }

    /// Books a receipt. A false one is kept as evidence, and its channel is used no more.
    async fn settle(
        &mut self,
        receipt: &VerifiedReceipt,
        dispute: Option<&Dispute>,
    ) -> Result<(), LedgerError> {
        let (channel, deal) = (self.purchase.channel(), self.purchase.deal());
        if let Some(dispute) = dispute {
            freeze(
                &self.parts,
                deal.offer.offer().seller,
                channel,
                deal.request,
                dispute,
            )
            .await;
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
        self.purchase.cover(receipt.receipt().charged).await?;
        let now = self.parts.clock.now();
        self.parts.ledger.book(receipt.clone(), note, now).await?;
        if dispute.is_some() {
            // Evidence: no seller shows it again.
            self.parts.ledger.written().await?;
        }
        self.purchase.settled();
        self.purchase.heard_root().await
    }
}

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
    seller: NodeId,
    channel: ChannelId,
    request: RequestId,
    dispute: &Dispute,
) {
    tracing::error!(seller = %seller.short(), request = %request.short(), %dispute, "a false receipt; the seller is not used again");
    if let Err(error) = parts.channels.stand(channel, Standing::Frozen).await {
        tracing::error!(%error, "a channel could not be frozen");
    }
}

const fn reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Complete | Ending::Cancelled => "the answer is whole",
        Ending::UpstreamFailed => "the seller's model server failed",
        Ending::Unpaid => "the seller did not get the next voucher in time",
        Ending::Interrupted => "the seller was restarted",
        Ending::Limit => "the cost ceiling or the deadline was reached",
    }
}
