//! What every dialect does in between: the body is read, an answer is bought, its document or its
//! stream is handed over. No dialect's words stand here.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::Usage;
use farthing_protocol::receipt::{Receipt, SignedReceipt};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::client::{Answer, Bill, Event, InferError, Request};
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::inflight::Place;

/// The name of the request: its purchase's id, where there is one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Who sells.
pub const SELLER: HeaderName = HeaderName::from_static("x-farthing-seller");
/// The model, as the seller names it.
pub const MODEL: HeaderName = HeaderName::from_static("x-farthing-model");
/// Why this seller.
pub const WHY: HeaderName = HeaderName::from_static("x-farthing-why");
/// What a plain answer cost, in atoms.
pub const CHARGED: HeaderName = HeaderName::from_static("x-farthing-charged");

/// A body too large is read to its end, up to this multiple of the limit, so that the answer
/// reaches a client that writes everything before it reads.
const DRAIN: usize = 4;
/// How long such a body may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// An answer whose first event is here.
#[derive(Debug)]
pub(in crate::gateway) struct Bought {
    pub(in crate::gateway) answer: Answer,
    pub(in crate::gateway) first: Event,
    /// The request's own, until it is answered.
    pub(in crate::gateway) place: Option<Place>,
}

/// What an answer came to.
#[derive(Debug)]
pub struct Settled {
    /// What all of it cost, in atoms.
    pub charged: Amount,
    /// The receipts; none for one bought over plain HTTP.
    pub bill: Option<Box<Bill>>,
}

impl From<Box<Bill>> for Settled {
    fn from(bill: Box<Bill>) -> Self {
        Self {
            charged: bill.charged,
            bill: Some(bill),
        }
    }
}

impl From<Amount> for Settled {
    fn from(charged: Amount) -> Self {
        Self {
            charged,
            bill: None,
        }
    }
}

impl Settled {
    /// The receipts of all that had a part in it, in order.
    fn receipts(&self) -> impl Iterator<Item = &SignedReceipt> {
        let bill = self.bill.as_deref().into_iter();
        bill.flat_map(|bill| bill.earlier.iter().chain([&bill.receipt]))
    }

    /// Those that have signed a receipt for a part of it, in order.
    pub fn sellers(&self) -> impl Iterator<Item = NodeId> {
        self.receipts().map(|receipt| receipt.seller)
    }

    /// The receipt that is about all of it, if there is one.
    #[must_use]
    pub fn sole(&self) -> Option<&Receipt> {
        let bill = self.bill.as_deref()?;
        let receipt = &bill.receipt.receipt;
        (bill.earlier.is_empty() && receipt.charged == self.charged).then_some(receipt)
    }

    /// What all sellers counted: the prompt once, the answer piece by piece.
    #[must_use]
    pub fn used(&self) -> Option<Usage> {
        let used = self.receipts().map(|receipt| receipt.receipt.usage);
        used.reduce(|all, more| Usage {
            completion: all.completion.saturating_add(more.completion),
            ..all
        })
    }
}

/// A plain answer, paid.
#[derive(Debug)]
pub(in crate::gateway) struct Whole {
    answer: Answer,
    pub(in crate::gateway) document: Bytes,
    pub(in crate::gateway) settled: Settled,
}

impl Whole {
    /// The response with this document.
    pub(in crate::gateway) fn respond(&self, document: Bytes) -> Response {
        let mut headers = about(&self.answer);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        insert(&mut headers, CHARGED, &self.settled.charged.to_string());
        (headers, document).into_response()
    }
}

/// Buys what a request asks for.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn buy(
    shared: &Shared,
    request: Request,
    headers: &HeaderMap,
) -> Result<Bought, Problem> {
    let arrived = Instant::now();
    let place = shared
        .in_flight
        .enter(headers, request.endpoint, &request.body)?;
    let first = async {
        let mut answer = shared.client.infer(request).await?;
        let first = event(&mut answer).await?;
        Ok::<_, InferError>((answer, first))
    };
    let (answer, first) = timeout(shared.settings.deadline, first)
        .await
        .map_err(|_| Problem::Deadline)??;
    tracing::debug!(purchase = %answer.request.short(), "an answer begins");
    let head = arrived.elapsed().as_secs_f64();
    shared.metrics.gateway_head_seconds.observe(head);
    Ok(Bought {
        answer,
        first,
        place,
    })
}

/// Waits for the bill, so that the price can stand in the head.
pub(in crate::gateway) async fn whole(shared: &Shared, bought: Bought) -> Result<Whole, Problem> {
    let Bought {
        mut answer,
        first,
        place: _place,
    } = bought;
    let mut document = Vec::new();
    let mut next = first;
    let settled: Settled = loop {
        match next {
            Event::Data(bytes) if document.is_empty() => document.push(bytes),
            Event::Data(_) => {
                let error = "the seller sent more than one document";
                return Err(InferError::Interrupted(error.into()).into());
            }
            Event::End(bill) => break bill.into(),
            Event::Paid(charged) => break charged.into(),
        }
        next = timeout(shared.settings.deadline, event(&mut answer))
            .await
            .map_err(|_| Problem::Deadline)??;
    };
    let Some(document) = document.pop() else {
        return Err(InferError::Interrupted("no document came".into()).into());
    };
    Ok(Whole {
        answer,
        document,
        settled,
    })
}

/// The next event; an answer that ends without one has broken off.
async fn event(answer: &mut Answer) -> Result<Event, InferError> {
    let missing = || InferError::Interrupted("it ended without a receipt".into());
    answer.next().await.ok_or_else(missing)?
}

/// Reads the body, at most as much as is passed on and for as long as a request may take.
pub(in crate::gateway) async fn read(
    shared: &Shared,
    request: HttpRequest,
) -> Result<Bytes, Problem> {
    let max = shared.settings.max_body;
    let stated = request.headers().get(CONTENT_LENGTH);
    let stated = stated.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let mut incoming = request.into_body().into_data_stream();
    let mut body = Vec::with_capacity(stated.unwrap_or(0).min(max));
    let whole = async {
        while let Some(part) = incoming.next().await {
            let part = part.map_err(|_| Problem::NotArrived("the connection broke"))?;
            if body.len() + part.len() > max {
                return Ok(Some(body.len() + part.len()));
            }
            body.extend_from_slice(&part);
        }
        Ok::<_, Problem>(None)
    };
    let too_slow = |_| Problem::NotArrived("it took too long (`gateway.deadline`)");
    let read = timeout(shared.settings.deadline, whole).await;
    let Some(seen) = read.map_err(too_slow)?? else {
        return Ok(body.into());
    };
    let drain = async {
        let mut len = seen;
        while len < max.saturating_mul(DRAIN)
            && let Some(Ok(part)) = incoming.next().await
        {
            len += part.len();
        }
        len
    };
    let len = timeout(DRAIN_TIME, drain).await.unwrap_or(seen);
    let len = stated.unwrap_or(len);
    Err(InferError::TooLarge { len, max }.into())
}

/// What the head of an answer says about the purchase.
pub(in crate::gateway) fn about(answer: &Answer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    insert(&mut headers, REQUEST_ID, &answer.request.to_string());
    insert(&mut headers, SELLER, &answer.seller.to_string());
    insert(&mut headers, MODEL, &answer.model);
    insert(&mut headers, WHY, &answer.why);
    headers
}

/// Sets a header unless a seller chose a text that cannot be one.
pub(in crate::gateway) fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}
