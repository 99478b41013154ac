//! Answers put to the proof: what came is looked at ([`scrutiny`]), and a few are asked for again
//! of other sellers and compared ([`likeness`]). What is found is what the reputation is told.
//!
//! A probe is a purchase like any other, through the same plan, policy and wallet, of the same
//! body but that it is not streamed: no seller can tell it from a customer, and none gets it whom
//! the request's own wishes exclude. One runs at a time, within its own limit per day, which is
//! entered on disk before anything is asked. Requests that forbid that others see them are never
//! repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::Endpoint;
use farthing_protocol::store::Batch;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::answer::{Answer, Bill, Event, InferError, Request};
use crate::client::likeness::{Saying, alone, differ};
use crate::client::parts::Parts;
use crate::client::scrutiny::{Expected, Spoken};
use crate::ledger::experience::Deed;
use crate::ledger::{LedgerError, PROBE_DAYS};

/// Events that wait for a slow reader on their way past us.
const EVENTS: usize = 4;
/// The most bytes of a request that is repeated.
const MOST_BODY: usize = 32 * 1024;

/// Whether a probe runs.
#[derive(Debug, Default)]
pub(in crate::client) struct Probing(AtomicBool);

/// Until it is dropped, no other probe runs.
struct Turn(Arc<Parts>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.repute.probing.0.store(false, Ordering::Release);
    }
}

/// What is looked at in an answer.
struct Watch {
    expected: Option<Expected>,
    /// The request to repeat, if this one is to be.
    again: Option<Request>,
}

impl Parts {
    /// The whole purchase, watched if there is anything to be seen.
    pub(in crate::client) async fn watched(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Answer, InferError> {
        let watch = self.watch(&request);
        let answer = self.infer(request).await?;
        Ok(match watch {
            Some(watch) => watch.over(Arc::clone(self), answer),
            None => answer,
        })
    }

    fn watch(&self, request: &Request) -> Option<Watch> {
        if request.endpoint == Endpoint::Embeddings {
            return None;
        }
        let body = Body::parse(&request.body).ok()?;
        let expected = Expected::of(&body);
        let again = (expected.is_none() && self.drawn()).then(|| repeated(request, &body));
        let again = again.flatten();
        (expected.is_some() || again.is_some()).then_some(Watch { expected, again })
    }

    /// Whether the lot falls on this one.
    fn drawn(&self) -> bool {
        #[expect(
            clippy::disallowed_methods,
            reason = "which answers are asked for again is nobody's to know"
        )]
        let lot = rand::random::<u32>() % 1000;
        lot < self.config.probes.share
    }
}

/// The request to repeat: of one whose answer can be compared, and that does not forbid it.
fn repeated(request: &Request, body: &Body<'_>) -> Option<Request> {
    let is = |name: &'static str, value: f64| body.get::<f64>(name).ok().flatten() == Some(value);
    let one = |name: &'static str| matches!(body.get::<u64>(name), Ok(None | Some(1)));
    let comparable = is("temperature", 0.0) && one("n") && one("best_of");
    if !comparable || request.body.len() > MOST_BODY || is_private(body) {
        return None;
    }
    let plain = body.rewritten(&[("stream", "false")], &["stream_options"]);
    Some(Request {
        endpoint: request.endpoint,
        body: Bytes::from(plain),
    })
}

/// Whether the request says that its words are for few.
fn is_private(body: &Body<'_>) -> bool {
    let wishes = match body.get::<Value>("provider") {
        Ok(None) => return false,
        Ok(Some(Value::Object(wishes))) => wishes,
        // Not understood: nobody else sees it.
        _ => return true,
    };
    let denies = wishes.get("data_collection").and_then(Value::as_str) == Some("deny");
    denies || wishes.get("zdr").and_then(Value::as_bool) == Some(true)
}

impl Watch {
    /// Hands the answer on as it comes, and looks at it when it is whole.
    fn over(self, parts: Arc<Parts>, answer: Answer) -> Answer {
        let (past, events) = mpsc::channel(EVENTS);
        let Answer {
            request,
            seller,
            model,
            why,
            events: inner,
        } = answer;
        let seen = Seen {
            parts,
            seller,
            model: model.clone(),
            spoken: Spoken::default(),
        };
        tokio::spawn(self.run(inner, past, seen));
        Answer {
            request,
            seller,
            model,
            why,
            events,
        }
    }

    async fn run(
        self,
        mut inner: mpsc::Receiver<Result<Event, InferError>>,
        past: mpsc::Sender<Result<Event, InferError>>,
        mut seen: Seen,
    ) {
        loop {
            let event = tokio::select! {
                biased;
                // Dropping the answer cancels the purchase.
                () = past.closed() => return,
                event = inner.recv() => event,
            };
            let Some(event) = event else { return };
            let bill = match &event {
                Ok(Event::Data(data)) => {
                    seen.spoken.hear(data);
                    None
                }
                Ok(Event::End(bill)) => Some(bill.clone()),
                _ => None,
            };
            let heard = past.send(event).await.is_ok();
            if let Some(bill) = bill {
                drop(past);
                return self.judge(seen, &bill).await;
            }
            if !heard {
                return;
            }
        }
    }

    /// The answer is whole and paid.
    async fn judge(self, seen: Seen, bill: &Bill) {
        // An answer by several sellers says nothing of any.
        if bill.receipt.seller != seen.seller || !bill.earlier.is_empty() {
            return;
        }
        let (parts, seller) = (&seen.parts, seen.seller);
        if let Some(fault) = self.expected.as_ref().and_then(|it| seen.spoken.fault(it)) {
            tracing::info!(seller = %seller.short(), model = %seen.model, %fault, "an answer is not what was asked for");
            parts
                .repute
                .reputation
                .note(seller, &seen.model, Deed::Invalid);
        }
        let Some(again) = self.again else { return };
        let Some(first) = saying(&seen.spoken, bill) else {
            return;
        };
        let parts = Arc::clone(parts);
        if parts.repute.probing.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let turn = Turn(parts);
        if let Err(error) = turn.0.probe(&seen.model, again, (seller, first)).await {
            tracing::debug!(%error, "an answer could not be compared");
        }
    }
}

/// An answer on its way past.
struct Seen {
    parts: Arc<Parts>,
    seller: NodeId,
    model: String,
    spoken: Spoken,
}

fn saying(spoken: &Spoken, bill: &Bill) -> Option<Saying> {
    let usage = bill.receipt.receipt.usage;
    Some(Saying {
        text: spoken.text()?.to_owned(),
        prompt: usage.prompt,
        completion: usage.completion,
    })
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Infer(#[from] InferError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("[probes] per_day is reached")]
    Limit,
    #[error("the other answer is of another kind")]
    Other,
}

impl Parts {
    /// Asks a second seller, and a third if the two do not agree.
    async fn probe(
        self: &Arc<Self>,
        model: &str,
        again: Request,
        first: (NodeId, Saying),
    ) -> Result<(), ProbeError> {
        let second = self.ask_again(&again, &[first.0]).await?;
        if !differ(&first.1, &second.1) {
            return Ok(());
        }
        let third = self.ask_again(&again, &[first.0, second.0]).await?;
        let sellers = [first.0, second.0, third.0];
        if let Some(place) = alone(&[first.1, second.1, third.1]) {
            let seller = sellers[place];
            tracing::info!(seller = %seller.short(), %model, "two other sellers of the model agree against its answer");
            self.repute.reputation.note(seller, model, Deed::Invalid);
        }
        Ok(())
    }

    /// The same request, of a seller that has not answered it yet.
    async fn ask_again(
        self: &Arc<Self>,
        again: &Request,
        without: &[NodeId],
    ) -> Result<(NodeId, Saying), ProbeError> {
        let most = self.set_aside().await?;
        let infer = Box::pin(self.infer_of(again.clone(), without, most.may_cost));
        let mut answer = match infer.await {
            Ok(answer) => answer,
            Err(error) => {
                // Nothing is charged for nothing delivered.
                self.spent(&most, Amount::ZERO).await?;
                return Err(error.into());
            }
        };
        let (mut spoken, mut bill) = (Spoken::default(), None);
        while let Some(event) = answer.next().await {
            match event? {
                Event::Data(data) => spoken.hear(&data),
                Event::End(end) => bill = Some(end),
                // What was paid is not told apart here: all that it may have cost counts.
                Event::Paid(_) => return Err(ProbeError::Other),
            }
        }
        let bill = bill.ok_or(ProbeError::Other)?;
        self.spent(&most, bill.charged).await?;
        let seller = bill.receipt.seller;
        let alone = bill.earlier.is_empty();
        let said = saying(&spoken, &bill).filter(|_| alone && seller == answer.seller);
        Ok((seller, said.ok_or(ProbeError::Other)?))
    }

    /// Enters that a probe may cost what is left of the day's limit, before it is asked.
    async fn set_aside(&self) -> Result<Allowance, ProbeError> {
        let day = self.clock.now().day();
        let store = self.ledger.store();
        let spent = store.get(&PROBE_DAYS, &day).map_err(LedgerError::from)?;
        let spent = spent.unwrap_or_default();
        let left = self.config.probes.per_day.saturating_sub(spent);
        let may_cost = left.min(self.config.spend.per_purchase);
        if may_cost.is_zero() {
            return Err(ProbeError::Limit);
        }
        let allowance = Allowance {
            day,
            spent,
            may_cost,
        };
        self.enter(day, spent.saturating_add(may_cost)).await?;
        Ok(allowance)
    }

    /// What it did cost.
    async fn spent(&self, allowance: &Allowance, charged: Amount) -> Result<(), LedgerError> {
        let sum = allowance.spent.saturating_add(charged);
        self.enter(allowance.day, sum).await
    }

    async fn enter(&self, day: u64, sum: Amount) -> Result<(), LedgerError> {
        let batch = Batch::new().put(&PROBE_DAYS, &day, &sum)?;
        Ok(self.ledger.store().commit(batch).await?)
    }
}

/// What one probe may cost.
struct Allowance {
    day: u64,
    /// What the others of the day have cost.
    spent: Amount,
    may_cost: Amount,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> Option<String> {
        let request = Request {
            endpoint: Endpoint::Chat,
            body: Bytes::copy_from_slice(text.as_bytes()),
        };
        let body = Body::parse(&request.body).expect("parses");
        let again = repeated(&request, &body)?;
        Some(String::from_utf8(again.body.to_vec()).expect("text"))
    }

    #[test]
    fn only_what_can_be_compared_is_repeated_and_it_is_not_streamed() {
        let text = r#"{"model":"m","messages":[],"temperature":0,"stream":true}"#;
        let again = again(text).expect("is repeated");
        assert!(again.contains(r#""stream":false"#), "{again}");
    }

    #[test]
    fn what_cannot_be_compared_or_may_not_be_seen_is_not_repeated() {
        for text in [
            r#"{"model":"m","messages":[]}"#,
            r#"{"model":"m","messages":[],"temperature":0.7}"#,
            r#"{"model":"m","messages":[],"temperature":0,"n":2}"#,
            r#"{"model":"m","messages":[],"temperature":0,"provider":{"data_collection":"deny"}}"#,
            r#"{"model":"m","messages":[],"temperature":0,"provider":{"zdr":true}}"#,
            r#"{"model":"m","messages":[],"temperature":0,"provider":7}"#,
        ] {
            assert_eq!(again(text), None, "{text}");
        }
        let long = format!(
            r#"{{"model":"m","messages":["{}"],"temperature":0}}"#,
            "x".repeat(MOST_BODY)
        );
        assert_eq!(again(&long), None);
    }
}
