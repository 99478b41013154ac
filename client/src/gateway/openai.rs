//! The OpenAI dialect: chat, completions, embeddings, moderations and models.
//!
//! The body goes to the seller as it came and the answer comes back as the seller sent it;
//! unknown fields pass both ways. Headers are sent only when the first event is there, so that
//! an early failure has its proper status.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::{Body, quote};
use farthing_protocol::purchase::Endpoint;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{InferError, Request};
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::exchange;
use crate::gateway::sse::{self, Chunks, UsageChunk, json_of};
use crate::report::{HealthReport, ModelListing};

/// What OpenAI takes for a moderation that names no model.
const MODERATOR: &str = "omni-moderation-latest";

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
    let headers = request.headers().clone();
    let mut body = exchange::read(shared, request).await?;
    if endpoint == Endpoint::Moderations {
        body = moderated(body)?;
    }
    let delivery = delivery(&body)?;
    let bought = exchange::buy(shared, Request { endpoint, body }, &headers).await?;
    match delivery {
        Delivery::Stream(usage) => Ok(sse::respond(shared, bought, Chunks::new(usage))),
        Delivery::Plain => {
            let whole = exchange::whole(shared, bought).await?;
            Ok(whole.respond(whole.document.clone()))
        }
    }
}

/// A moderation that names no model means the one that OpenAI would take; whose that is here, an
/// alias says.
fn moderated(body: Bytes) -> Result<Bytes, Problem> {
    let fields = Body::parse(&body)?;
    Ok(match fields.raw("model") {
        Some(_) => body,
        None => Bytes::from(fields.with(&[("model", &quote(MODERATOR))])),
    })
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

/// `GET /v1/models`.
pub(crate) async fn models(shared: &Shared) -> Response {
    let models = shared.client.models();
    let data: Vec<_> = models.iter().map(card).collect();
    json_of(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`; an id has a slash in it.
pub(crate) fn model(shared: &Shared, id: String) -> Response {
    match shared.client.model(&id) {
        Some(model) => json_of(&card(&model)),
        None => Problem::from(InferError::UnknownModel { model: id }).into_response(),
    }
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
