//! The OpenAI dialect: chat, completions, embeddings and models.
//!
//! The body goes to the seller as it came and the answer comes back as the seller sent it;
//! unknown fields pass both ways. Headers are sent only when the first event is there, so that
//! an early failure has its proper status.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::Body;
use farthing_protocol::purchase::Endpoint;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::{Answer, Event, InferError, Request};
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::inflight::Place;
use crate::gateway::sse::{self, UsageChunk};
use crate::report::{HealthReport, ModelListing};

/// The purchase's id.
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

/// How the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Plain,
    Stream(UsageChunk),
}

/// Buys what a request asks for.
///
/// # Errors
/// Any [`Problem`].
pub(crate) async fn buy(
    shared: &Arc<Shared>,
    endpoint: Endpoint,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let headers = request.headers().clone();
    let body = read(shared, request).await?;
    let delivery = delivery(&body)?;
    let place = shared.in_flight.enter(&headers, endpoint, &body)?;
    let first = async {
        let request = Request { endpoint, body };
        let mut answer = shared.client.infer(request).await?;
        let first = event(&mut answer).await?;
        Ok::<_, InferError>((answer, first))
    };
    let (answer, first) = timeout(shared.settings.deadline, first)
        .await
        .map_err(|_| Problem::Deadline)??;
    let head = arrived.elapsed().as_secs_f64();
    shared.metrics.gateway_head_seconds.observe(head);
    match delivery {
        Delivery::Stream(usage) => Ok(streamed(shared, (answer, place), first, usage)),
        Delivery::Plain => plain(shared, answer, first).await,
    }
}

/// The next event; an answer that ends without one has broken off.
async fn event(answer: &mut Answer) -> Result<Event, InferError> {
    let missing = || InferError::Interrupted("it ended without a receipt".into());
    answer.next().await.ok_or_else(missing)?
}

fn delivery(body: &[u8]) -> Result<Delivery, Problem> {
    #[derive(Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    let body = Body::parse(body)?;
    if !body.get::<bool>("stream")?.unwrap_or(false) {
        return Ok(Delivery::Plain);
    }
    let options = body.get::<Options>("stream_options")?;
    let wanted = options.and_then(|options| options.include_usage);
    Ok(Delivery::Stream(match wanted {
        Some(true) => UsageChunk::Wanted,
        _ => UsageChunk::Unwanted,
    }))
}

/// Reads the body, at most as much as is passed on and for as long as a request may take.
async fn read(shared: &Shared, request: HttpRequest) -> Result<Bytes, Problem> {
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

fn streamed(
    shared: &Arc<Shared>,
    (answer, place): (Answer, Option<Place>),
    first: Event,
    usage: UsageChunk,
) -> Response {
    let mut headers = about(&answer);
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let body = sse::stream(Arc::clone(shared), (answer, place), first, usage);
    (headers, HttpBody::from_stream(body)).into_response()
}

/// Waits for the bill, so that the price can stand in the head.
async fn plain(shared: &Shared, mut answer: Answer, first: Event) -> Result<Response, Problem> {
    let mut document = Vec::new();
    let mut next = first;
    let charged = loop {
        match next {
            Event::Data(bytes) if document.is_empty() => document.push(bytes),
            Event::Data(_) => {
                let error = "the seller sent more than one document";
                return Err(InferError::Interrupted(error.into()).into());
            }
            Event::End(bill) => break bill.charged,
            Event::Paid(charged) => break charged,
        }
        next = timeout(shared.settings.deadline, event(&mut answer))
            .await
            .map_err(|_| Problem::Deadline)??;
    };
    let Some(document) = document.pop() else {
        return Err(InferError::Interrupted("no document came".into()).into());
    };
    let mut headers = about(&answer);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    insert(&mut headers, CHARGED, &charged.to_string());
    Ok((headers, document).into_response())
}

/// What the head of an answer says about the purchase.
fn about(answer: &Answer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    insert(&mut headers, REQUEST_ID, &answer.request.to_string());
    insert(&mut headers, SELLER, &answer.seller.to_string());
    insert(&mut headers, MODEL, &answer.model);
    insert(&mut headers, WHY, &answer.why);
    headers
}

/// Sets a header unless a seller chose a text that cannot be one.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// `GET /v1/models`.
pub(crate) async fn models(shared: &Shared) -> Response {
    let models = shared.client.models();
    let data: Vec<_> = models.iter().map(card).collect();
    json_of(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`; an id has a slash in it.
pub(crate) async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let models = shared.client.models();
    let found = models.iter().find(|model| model.id == id);
    let response = match found {
        Some(model) => json_of(&card(model)),
        None => Problem::from(InferError::UnknownModel { model: id }).into_response(),
    };
    shared.answered("/v1/models/{id}", response)
}

/// A model in OpenAI's shape, with what is ours under `farthing`.
fn card(model: &ModelListing) -> Value {
    let owner = model
        .id
        .split_once('/')
        .map_or("unknown", |(owner, _)| owner);
    json!({
        "id": model.id,
        "object": "model",
        "created": model.since.seconds(),
        "owned_by": owner,
        "farthing": {
            "sellers": model.sellers,
            "endpoints": model.endpoints,
            "features": model.features,
            "context": model.context,
            "max_output": model.max_output,
            "cheapest_micro_atoms": model.cheapest,
        },
    })
}

/// `GET /health`: 200 when a purchase has a chance, else 503.
pub(crate) fn health(report: &HealthReport) -> Response {
    let status = match report.ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let word = if report.ready() { "ok" } else { "unavailable" };
    let body = json!({
        "status": word,
        "version": report.version,
        "peers": report.peers,
        "sellers": report.sellers,
        "models": report.models,
        "chain": report.chain_fault.as_deref().unwrap_or("ok"),
    });
    (status, json_of(&body)).into_response()
}

fn json_of(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
