//! Answers put to the proof: what came is looked at ([`scrutiny`]), and a few are asked for again
//! of other sellers and compared ([`likeness`]). What is found is what the reputation is told.
//!
//! A probe is a purchase like any other, through the same plan, policy and wallet, of the same
//! body but that it is not streamed: no seller can tell it from a customer, and none gets it whom
//! the request's own wishes exclude. It is of the model that answered and no other, and one seller
//! is asked for it once. One runs at a time, within its own limit per day: what it may cost is
//! entered on disk before anything is asked, and stays there unless a bill says less. Requests
//! that forbid that others see them are never repeated.
//!
//! Two sellers that agree on a falsehood can blame a third by it. So a seller is blamed in this
//! way so often a day and no more, and others are not told of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::identity::NodeId;
use farthing_protocol::store::{Batch, Store};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::answer::{Answer, Bill, Event, InferError, Request};
use crate::client::likeness::{Saying, alone, differ};
use crate::client::parts::Parts;
use crate::client::scrutiny::{Expected, Spoken};
use crate::client::sequel;
use crate::ledger::experience::Deed;
use crate::ledger::{LedgerError, PROBE_DAYS};
use crate::policy::Terms;

/// Events that wait for a slow reader on their way past us.
const EVENTS: usize = 4;
/// The most bytes of a request that is repeated.
const MOST_BODY: usize = 32 * 1024;

/// How often a day one seller is blamed because two others agree against it.
const MOST_BLAMED: u32 = 3;
/// The most sellers blamed in this way on one day.
const MOST_SELLERS: usize = 1_024;

/// Whether a probe runs, and whom they have blamed today.
#[derive(Debug, Default)]
pub(in crate::client) struct Probing {
    runs: AtomicBool,
    blamed: Mutex<(u64, HashMap<NodeId, u32>)>,
}

impl Probing {
    /// Whether this seller may be blamed once more on this day; it counts as blamed.
    fn may_blame(&self, seller: NodeId, today: u64) -> bool {
        let mut blamed = self.blamed.lock().unwrap_or_else(PoisonError::into_inner);
        if blamed.0 != today {
            *blamed = (today, HashMap::new());
        }
        let sellers = &mut blamed.1;
        if !sellers.contains_key(&seller) && sellers.len() >= MOST_SELLERS {
            return false;
        }
        let times = sellers.entry(seller).or_default();
        *times = times.saturating_add(1);
        *times <= MOST_BLAMED
    }
}

/// Until it is dropped, no other probe runs.
struct Turn(Arc<Parts>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.repute.probing.runs.store(false, Ordering::Release);
    }
}

/// What is looked at in an answer.
struct Watch {
    expected: Option<Expected>,
    /// The request to repeat, if this one is to be.
    again: Option<Request>,
    /// The request, if its tokens may be counted here.
    counted: Option<Request>,
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
        if !request.endpoint.writes() {
            return None;
        }
        let body = Body::parse(&request.body).ok()?;
        let expected = Expected::of(&body);
        let again = (expected.is_none() && self.drawn()).then(|| repeated(request, &body));
        let again = again.flatten();
        // Of several answers only the first is looked at, and the seller's count is of all.
        let is_one = sequel::answers(&request.body) == 1 && body.raw("best_of").is_none();
        let counted = (is_one && !self.tokenizers.is_empty()).then(|| request.clone());
        let is_watched = expected.is_some() || again.is_some() || counted.is_some();
        is_watched.then_some(Watch {
            expected,
            again,
            counted,
        })
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
    fn over(self, parts: Arc<Parts>, mut answer: Answer) -> Answer {
        let (past, events) = mpsc::channel(EVENTS);
        let inner = std::mem::replace(&mut answer.events, events);
        let seen = Seen {
            parts,
            seller: answer.seller,
            model: answer.model.clone(),
            spoken: Spoken::default(),
        };
        tokio::spawn(self.run(inner, past, seen));
        answer
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
        let Some(first) = saying(&seen.spoken, bill) else {
            return;
        };
        let counted = self.counted.filter(|_| seen.spoken.is_all_said());
        if let Some(request) = counted
            && let Some(fault) = parts.tokenizers.check(&seen.model, &request, &first).await
        {
            tracing::info!(seller = %seller.short(), model = %seen.model, %fault, "a seller counts too much");
            parts
                .repute
                .reputation
                .note(seller, &seen.model, Deed::Miscounted);
        }
        let Some(again) = self.again else { return };
        let parts = Arc::clone(parts);
        if parts.repute.probing.runs.swap(true, Ordering::AcqRel) {
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
        let second = self.ask_again(&again, model, &[first.0]).await?;
        if !differ(&first.1, &second.1) {
            return Ok(());
        }
        let third = self.ask_again(&again, model, &[first.0, second.0]).await?;
        let sellers = [first.0, second.0, third.0];
        if let Some(place) = alone(&[first.1, second.1, third.1]) {
            let (seller, today) = (sellers[place], self.clock.now().day());
            tracing::info!(seller = %seller.short(), %model, "two other sellers of the model agree against its answer");
            if self.repute.probing.may_blame(seller, today) {
                self.repute.reputation.note(seller, model, Deed::Alone);
            }
        }
        Ok(())
    }

    /// The same request to the same model, of one seller that has not answered it yet.
    async fn ask_again(
        self: &Arc<Self>,
        again: &Request,
        model: &str,
        without: &[NodeId],
    ) -> Result<(NodeId, Saying), ProbeError> {
        let today = Today::of(self.ledger.store(), self.clock.now().day())?;
        let terms = Terms::of(again.endpoint, &again.body, &self.config);
        let terms = terms.map_err(InferError::from)?;
        let left = today.left(self.config.probes.per_day)?;
        let mut terms = second(&terms, model, left).ok_or(ProbeError::Other)?;
        // Until here nothing is asked, and nothing spent.
        let mut choices = self.plan(&terms, without)?.choices;
        choices.truncate(1);
        let may_cost = choices.first().ok_or(ProbeError::Other)?.max_cost;
        terms.max_cost = terms.max_cost.min(may_cost);
        let (until, store) = (
            Instant::now() + self.config.gateway.deadline,
            self.ledger.store(),
        );
        today.enter(store, terms.max_cost).await?;
        // After an error, here and below, all of it counts as spent: the seller may charge yet.
        let mut answer = Box::pin(self.ask(&terms, &choices, until)).await?;
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
        today.enter(store, bill.charged).await?;
        let seller = bill.receipt.seller;
        let alone = bill.earlier.is_empty();
        let same = seller == answer.seller && answer.model == model;
        let said = saying(&spoken, &bill).filter(|_| alone && same);
        Ok((seller, said.ok_or(ProbeError::Other)?))
    }
}

/// The terms on which a second seller is asked: the model that answered, of all that would have
/// done, one seller once, for at most so much.
fn second(terms: &Terms, model: &str, most: Amount) -> Option<Terms> {
    let meant = terms.models.iter().any(|it| it == model);
    meant.then(|| Terms {
        attempts: 1,
        max_cost: terms.max_cost.min(most),
        ..terms.only(model)
    })
}

/// What the probes of a day have cost, and those under way may cost.
struct Today {
    day: u64,
    spent: Amount,
}

impl Today {
    fn of(store: &Store, day: u64) -> Result<Self, LedgerError> {
        let spent = store.get(&PROBE_DAYS, &day)?.unwrap_or_default();
        Ok(Self { day, spent })
    }

    /// What is left of the limit.
    fn left(&self, per_day: Amount) -> Result<Amount, ProbeError> {
        let left = per_day.saturating_sub(self.spent);
        (!left.is_zero()).then_some(left).ok_or(ProbeError::Limit)
    }

    /// Enters what the next one may cost, or did cost.
    async fn enter(&self, store: &Store, cost: Amount) -> Result<(), LedgerError> {
        let sum = self.spent.saturating_add(cost);
        let batch = Batch::new().put(&PROBE_DAYS, &self.day, &sum)?;
        Ok(store.commit(batch).await?)
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::purchase::Endpoint;

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

    fn terms(text: &str) -> Terms {
        let config = crate::config::Config::default();
        let body = Bytes::copy_from_slice(text.as_bytes());
        Terms::of(Endpoint::Chat, &body, &config).expect("accepted")
    }

    #[test]
    fn a_second_seller_is_asked_for_the_model_that_answered_and_for_no_other() {
        let of = r#"{"model":"a/one","models":["b/two"],"messages":[],"temperature":0}"#;
        let terms = terms(of);
        assert_eq!(terms.models, ["a/one", "b/two"], "either would do");
        let again = second(&terms, "b/two", Amount::MAX).expect("was meant");
        assert_eq!(again.models, ["b/two"]);
        assert_eq!(again.model, "b/two");
        assert!(again.body.windows(7).any(|at| at == b"\"b/two\""));
        assert!(second(&terms, "c/three", Amount::MAX).is_none());
    }

    #[test]
    fn a_probe_asks_one_seller_once_for_no_more_than_is_left_of_the_day() {
        let terms = terms(r#"{"model":"m","messages":[],"temperature":0}"#);
        assert!(terms.attempts > 1);
        let again = second(&terms, "m", Amount::atoms(7)).expect("was meant");
        assert_eq!((again.attempts, again.max_cost), (1, Amount::atoms(7)));
        let most = second(&terms, "m", Amount::MAX)
            .expect("was meant")
            .max_cost;
        assert_eq!(most, terms.max_cost, "nor more than any purchase");
    }

    #[tokio::test]
    async fn what_a_probe_may_cost_counts_until_a_bill_says_less() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), crate::ledger::schema()).expect("opens");
        let per_day = Amount::atoms(100);
        let today = Today::of(&store, 3).expect("is read");
        today
            .enter(&store, Amount::atoms(60))
            .await
            .expect("is entered");
        // It failed, and nobody knows what it will have cost.
        let after = Today::of(&store, 3).expect("is read");
        assert_eq!(after.left(per_day).expect("some"), Amount::atoms(40));
        after
            .enter(&store, Amount::atoms(40))
            .await
            .expect("is entered");
        let full = Today::of(&store, 3).expect("is read");
        assert!(matches!(full.left(per_day), Err(ProbeError::Limit)));
        after
            .enter(&store, Amount::atoms(5))
            .await
            .expect("is entered");
        let last = Today::of(&store, 3).expect("is read");
        assert_eq!(last.left(per_day).expect("some"), Amount::atoms(35));
        assert_eq!(Today::of(&store, 4).expect("is read").spent, Amount::ZERO);
    }

    #[test]
    fn two_sellers_can_blame_a_third_so_often_a_day_and_no_more() {
        let probing = Probing::default();
        let seller = |n| farthing_protocol::testing::node_key(n).id();
        let blamed = (0..10).filter(|_| probing.may_blame(seller(1), 5)).count();
        assert_eq!(blamed, 3);
        assert!(probing.may_blame(seller(2), 5), "each for itself");
        assert!(probing.may_blame(seller(1), 6), "and another day again");
    }
}
