//! From the first content to the end: hands events to the application, and when a seller breaks
//! off, finds one that goes on.
//!
//! The application reads one answer and one end: a bill over all sellers that had a part in it, or
//! an error that names them. Each is paid for what it delivered.

use std::sync::Arc;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::{RequestId, Usage};
use farthing_protocol::receipt::SignedReceipt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::answer::{Answer, Attempt, Bill, Event, InferError};
use crate::client::attempt::Opened;
use crate::client::failure::{Failure, blame};
use crate::client::parts::Parts;
use crate::client::rescue::Rescue;
use crate::client::running::{Close, Closed, Closing, Piece, Running};
use crate::client::splice::Splice;
use crate::ledger::experience::Deed;
use crate::ledger::joint::Joint;
use crate::market::{Goods, Outcome};
use crate::policy::Terms;

/// Events that wait for a slow reader before the seller is slowed down too.
const EVENTS: usize = 32;

/// What an answer is about, beside the purchase itself.
pub(in crate::client) struct Order {
    pub(in crate::client) terms: Terms,
    pub(in crate::client) why: String,
    /// When it must be over.
    pub(in crate::client) until: Instant,
    /// Those that were tried in vain.
    pub(in crate::client) tried: Vec<Attempt>,
    /// All that would have been asked.
    pub(in crate::client) plan: Vec<Arc<Goods>>,
}

pub(in crate::client) struct Delivery {
    pub(in crate::client) parts: Arc<Parts>,
    /// What the answer is named after: its first seller's purchase.
    named: RequestId,
    pub(in crate::client) terms: Terms,
    pub(in crate::client) until: Instant,
    pub(in crate::client) splice: Splice,
    /// Those that were tried in vain, or broke off.
    pub(in crate::client) tried: Vec<Attempt>,
    /// Whom to ask for the rest no more.
    pub(in crate::client) used: Vec<NodeId>,
    /// What the sellers that broke off may have charged.
    pub(in crate::client) spent: Amount,
    /// Those sellers.
    pub(in crate::client) broken: Vec<Closing>,
    events: mpsc::Sender<Result<Event, InferError>>,
}

/// A seller that broke off.
pub(in crate::client) struct Broken {
    pub(in crate::client) seller: NodeId,
    pub(in crate::client) failure: Failure,
    /// What it counted.
    pub(in crate::client) used: Usage,
    /// Nobody else may be paid for the same purchase.
    pub(in crate::client) is_paid_once: bool,
}

/// How one seller's part ends.
enum Flow {
    Whole(Closed),
    Broken(Box<Broken>),
}

/// The application is gone.
struct Unwanted;

/// Hands the answer over; the rest of it is delivered by a task that ends with it.
pub(in crate::client) fn deliver(parts: Arc<Parts>, opened: Opened, order: Order) -> Answer {
    let (events, receiver) = mpsc::channel(EVENTS);
    let (request, seller) = opened.running.names();
    let Order {
        terms,
        why,
        until,
        tried,
        plan,
    } = order;
    let model = terms.model.clone();
    let used = tried.iter().map(|one| one.seller).chain([seller]).collect();
    // In a box: its task passes it on from step to step, and would have room for each.
    let delivery = Box::new(Delivery {
        parts,
        named: request,
        splice: opened.splice.clone(),
        terms,
        until,
        tried: tried.clone(),
        used,
        spent: Amount::ZERO,
        broken: Vec::new(),
        events,
    });
    tokio::spawn(delivery.run(opened));
    Answer {
        request,
        seller,
        model,
        why,
        tried,
        plan,
        events: receiver,
    }
}

impl Delivery {
    async fn run(mut self: Box<Self>, mut opened: Opened) {
        loop {
            let broken = match self.flow(opened).await {
                Ok(Flow::Whole(closed)) => return self.end(closed).await,
                Ok(Flow::Broken(broken)) => broken,
                Err(Unwanted) => return,
            };
            if self.splice.is_finished() {
                // The application has it all; what is missing is the seller's word on the price.
                return self.end(Closed::default()).await;
            }
            let application = self.events.clone();
            let rescue = Box::pin(self.rescue(&broken));
            let rescued = tokio::select! {
                biased;
                () = application.closed() => return,
                rescued = rescue => rescued,
            };
            match rescued {
                Ok(Rescue::By(next)) => opened = *next,
                Ok(Rescue::Length) => return self.length(broken.used).await,
                Err(error) => return self.fail(error).await,
            }
        }
    }

    /// Hands on what one seller sends, until something ends it. A purchase that nobody wants any
    /// more is dropped, which hangs it up.
    async fn flow(&mut self, opened: Opened) -> Result<Flow, Unwanted> {
        let Opened {
            mut running,
            events,
            splice,
            end,
        } = opened;
        self.splice = splice;
        let said = self.say_all(events).await;
        if let Some(end) = end {
            // Whoever hears it: it is booked.
            let flow = self.close(running, end).await;
            return said.map(|()| flow);
        }
        said?;
        loop {
            let piece = tokio::select! {
                biased;
                () = self.events.closed() => return Err(Unwanted),
                piece = running.next() => piece,
            };
            let failure = match piece {
                Ok(Piece::Data(event)) => match self.splice.take(&event) {
                    Ok(Some(event)) => {
                        self.say(event).await?;
                        continue;
                    }
                    Ok(None) => continue,
                    Err(failure) => failure,
                },
                Ok(Piece::End(end)) => return Ok(self.close(running, end).await),
                Err(failure) => failure,
            };
            return Ok(self.give_up(running, failure));
        }
    }

    async fn say(&self, event: Bytes) -> Result<(), Unwanted> {
        let sent = self.events.send(Ok(Event::Data(event))).await;
        sent.map_err(|_| Unwanted)
    }

    async fn say_all(&self, events: Vec<Bytes>) -> Result<(), Unwanted> {
        for event in events {
            self.say(event).await?;
        }
        Ok(())
    }

    /// The seller has said its last word: books it. That the answer is whole is believed as far
    /// as what came bears it out.
    async fn close(&mut self, running: Running, end: Close) -> Flow {
        let fault = end.fault().filter(|_| !self.splice.is_finished());
        let fault = fault.or(self.splice.lacks());
        let broken = fault.map(|fault| self.broken(&running, Failure::Ended(fault)));
        let closed = running.close(end, fault.is_none()).await;
        match broken {
            Some(broken) if closed.broken.is_none() => {
                self.spent = self.spent.saturating_add(closed.charged);
                self.broken.push(Closing::Now(closed));
                Flow::Broken(broken)
            }
            _ => Flow::Whole(closed),
        }
    }

    /// The seller has not: whatever it says yet is heard beside.
    fn give_up(&mut self, running: Running, failure: Failure) -> Flow {
        let (request, _) = running.names();
        tracing::warn!(request = %request.short(), error = %failure, "an answer broke off");
        self.spent = self.spent.saturating_add(running.at_most());
        let broken = self.broken(&running, failure);
        self.broken.push(running.give_up(&broken.failure));
        Flow::Broken(broken)
    }

    fn broken(&mut self, running: &Running, failure: Failure) -> Box<Broken> {
        let (_, seller) = running.names();
        if blame(&failure) == Outcome::Failed {
            let reputation = &self.parts.repute.reputation;
            reputation.note(seller, &self.terms.model, Deed::Broken);
        }
        self.tried.push(failure.of(seller, &self.terms.model));
        let mut used = running.used();
        // A seller that does not count has sent at least so many.
        let pieces = u32::try_from(self.splice.pieces()).unwrap_or(u32::MAX);
        used.completion = used.completion.max(pieces);
        Box::new(Broken {
            seller,
            failure,
            used,
            is_paid_once: running.is_paid_once(),
        })
    }

    /// As many tokens as were asked for are there; the seller broke off before it said so.
    async fn length(mut self: Box<Self>, used: Usage) {
        self.splice = self.splice.handed_on(false, used);
        for event in self.splice.end_of_length() {
            if self.say(event).await.is_err() {
                return;
            }
        }
        self.end(Closed::default()).await;
    }

    /// The bill, over all sellers that had a part in the answer.
    async fn end(mut self: Box<Self>, last: Closed) {
        let (mut charged, mut receipts) = self.broken_off().await;
        charged = charged.saturating_add(last.charged);
        receipts.extend(last.receipt.map(|receipt| *receipt));
        self.join(charged, &receipts).await;
        let event = match (last.broken, receipts.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(receipt)) => Ok(Event::End(Box::new(Bill {
                receipt,
                charged,
                earlier: receipts,
            }))),
            (None, None) => Ok(Event::Paid(charged)),
        };
        // Whoever asked may have gone.
        self.events.send(event).await.ok();
    }

    /// What those came to that broke off.
    async fn broken_off(&mut self) -> (Amount, Vec<SignedReceipt>) {
        let (mut charged, mut receipts) = (Amount::ZERO, Vec::new());
        for closing in std::mem::take(&mut self.broken) {
            let closed = closing.closed().await;
            charged = charged.saturating_add(closed.charged);
            receipts.extend(closed.receipt.map(|receipt| *receipt));
        }
        (charged, receipts)
    }

    /// Keeps together what several sellers had a part in.
    async fn join(&self, charged: Amount, receipts: &[SignedReceipt]) {
        let purchases = receipts.iter().map(|receipt| receipt.receipt.request);
        let joint = Joint {
            charged,
            purchases: purchases.collect(),
        };
        if joint.purchases.len() < 2 {
            return;
        }
        if let Err(error) = self.parts.ledger.join(self.named, &joint).await {
            tracing::warn!(%error, "what several sellers had a part in is not kept together");
        }
    }

    /// The error, once it is known what is charged, or left in doubt.
    async fn fail(mut self: Box<Self>, error: InferError) {
        let (charged, receipts) = self.broken_off().await;
        self.join(charged, &receipts).await;
        // Whoever asked may have gone.
        self.events.send(Err(error)).await.ok();
    }
}
