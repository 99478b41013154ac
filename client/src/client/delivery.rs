//! From the first content to the end: hands events to the application, and when a seller breaks
//! off, finds one that goes on.
//!
//! The application reads one answer and one end: a bill over all sellers that had a part in it, or
//! an error that names them. Each is paid for what it delivered.

use std::sync::Arc;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::RequestId;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::answer::{Answer, Attempt, Bill, Break, Event, InferError};
use crate::client::attempt::Opened;
use crate::client::failure::{Failure, ours};
use crate::client::parts::Parts;
use crate::client::running::{Close, Closed, Closing, Piece, Running};
use crate::client::splice::Splice;
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
}

pub(in crate::client) struct Delivery {
    pub(in crate::client) parts: Arc<Parts>,
    pub(in crate::client) terms: Terms,
    pub(in crate::client) until: Instant,
    pub(in crate::client) splice: Splice,
    /// Those that were tried in vain, or broke off.
    pub(in crate::client) tried: Vec<Attempt>,
    /// Whom to ask for the rest no more.
    pub(in crate::client) used: Vec<NodeId>,
    /// Those that broke off, and what they came to.
    pub(in crate::client) closing: Vec<Closing>,
    /// What they may have charged.
    pub(in crate::client) spent: Amount,
    events: mpsc::Sender<Result<Event, InferError>>,
}

/// The application is gone.
struct Unwanted;

/// Hands the answer over; the rest of it is delivered by a task that ends with it.
pub(in crate::client) fn deliver(parts: Arc<Parts>, opened: Opened, order: Order) -> Answer {
    let (events, receiver) = mpsc::channel(EVENTS);
    let nobody = || (RequestId(alloy::primitives::B256::ZERO), parts.net.id());
    let (request, seller) = opened.running.names().unwrap_or_else(nobody);
    let answer = Answer {
        request,
        seller,
        model: order.terms.model.clone(),
        why: order.why,
        events: receiver,
    };
    let used = order.tried.iter().map(|one| one.seller).chain([seller]);
    let delivery = Delivery {
        parts,
        terms: order.terms,
        until: order.until,
        splice: Splice::new(answer_endpoint(&opened), opened.splice.mode()),
        used: used.collect(),
        tried: order.tried,
        closing: Vec::new(),
        spent: Amount::ZERO,
        events,
    };
    tokio::spawn(delivery.run(opened));
    answer
}

impl Delivery {
    /// Hands on what one seller after the other sends. Dropping a purchase that is not wanted any
    /// more hangs it up.
    async fn run(mut self, mut opened: Opened) {
        loop {
            let (seller, failure) = match self.flow(opened).await {
                Ok(Flow::Ended(end)) => return self.end(Ok(end)).await,
                Ok(Flow::Broken { seller, failure }) => (seller, failure),
                Err(Unwanted) => return,
            };
            self.tried.push(failure.of(seller));
            if self.splice.is_finished() {
                return self.complete().await;
            }
            match Box::pin(self.rescue(seller, &failure)).await {
                Ok(next) => opened = next,
                Err(error) => return self.end(Err(error)).await,
            }
        }
    }
}
