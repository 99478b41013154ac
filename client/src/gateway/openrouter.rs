//! The OpenRouter dialect: chat, completions and embeddings, sold as everywhere else, with what
//! each answer cost; the market as models, endpoints and providers; and the books as generations,
//! credits and activity.
//!
//! Pure translations ([`request`], [`answer`], [`events`], [`catalog`]) and the paths that call
//! them. Money is told in whole units of the token, which for a token worth a dollar are
//! OpenRouter's credits.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::BodyError;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::Endpoint;
use serde_json::{Value, json};

use crate::client::{Answer, InferError, Request};
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::exchange::{self, Settled};
use crate::gateway::openrouter::answer::{About, Place, Routing};
use crate::gateway::openrouter::events::Telling;
use crate::gateway::openrouter::request::Asked;
use crate::gateway::sse::{self, Dialect};
use crate::report::ModelListing;

pub mod request;
pub mod answer;
pub mod events;
pub mod catalog;
pub mod account;

/// The paths of this dialect.
const PATHS: &str = "/api/v1/";
/// What an answer is called in this dialect.
const GENERATION_ID: HeaderName = HeaderName::from_static("x-generation-id");
/// The conversation a request belongs to.
const SESSION: &str = "x-session-id";
/// Either of them set to [`WANTED`] asks how the request was routed.
const METADATA: [&str; 2] = [
    "x-openrouter-metadata",
    "x-openrouter-experimental-metadata",
];
const WANTED: &str = "enabled";

/// Whether a request is made in this dialect.
pub(in crate::gateway) fn is_spoken(path: &str) -> bool {
    path.starts_with(PATHS)
}

/// Buys what a request asks for.
pub(in crate::gateway) async fn buy(
    shared: &Arc<Shared>,
    endpoint: Endpoint,
    asked: HttpRequest,
) -> Response {
    let headers = asked.headers().clone();
    let answer = async {
        let body = exchange::read(shared, asked).await?;
        let session = headers.get(SESSION).and_then(|value| value.to_str().ok());
        let asked = request::read(&body, session)?;
        let request = Request {
            endpoint,
            body: asked.body.clone(),
        };
        let bought = exchange::buy(shared, request, &headers).await?;
        let streams = asked.streams;
        let about = about(shared, (endpoint, asked), &bought.answer, &headers);
        let id = about.id.clone();
        let mut response = if streams {
            sse::respond(shared, bought, Told(Telling::new(about)))
        } else {
            let whole = exchange::whole(shared, bought).await?;
            let document = about.document(&whole.document, &whole.settled);
            whole.respond(document.map_err(interrupted)?.into())
        };
        exchange::insert(response.headers_mut(), GENERATION_ID, &id);
        Ok(response)
    };
    answer
        .await
        .unwrap_or_else(|problem: Problem| refused(&problem))
}

/// What is said of this answer beside its seller's own words.
fn about(
    shared: &Shared,
    (endpoint, asked): (Endpoint, Asked),
    answer: &Answer,
    headers: &HeaderMap,
) -> About {
    let sellers: HashMap<NodeId, &str> = answer
        .plan
        .iter()
        .map(|goods| (goods.seller, goods.name.as_str()))
        .collect();
    let place = |seller: NodeId, model: &str| Place {
        seller,
        provider: match sellers.get(&seller) {
            Some(name) => (*name).to_owned(),
            None => seller.to_string(),
        },
        model: model.to_owned(),
    };
    let plan = answer.plan.iter();
    let tried = answer.tried.iter();
    let routing = wants_metadata(headers).then(|| Routing {
        requested: asked.model,
        why: answer.why.clone(),
        plan: plan
            .map(|goods| place(goods.seller, &goods.model.id))
            .collect(),
        tried: tried
            .map(|one| (place(one.seller, &one.model), one.status))
            .collect(),
    });
    let goods = answer.goods().filter(|goods| goods.is_priced());
    About {
        id: answer::generation(answer.request),
        endpoint,
        place: place(answer.seller, &answer.model),
        prices: goods.map(|goods| goods.model.prices),
        token: shared.client.token(),
        routing,
        excludes_reasoning: asked.excludes_reasoning,
    }
}

fn wants_metadata(headers: &HeaderMap) -> bool {
    let values = METADATA.iter().filter_map(|name| headers.get(*name));
    let mut texts = values.filter_map(|value| value.to_str().ok());
    texts.any(|text| text.eq_ignore_ascii_case(WANTED))
}

fn interrupted(error: BodyError) -> Problem {
    let reason = format!("the seller's answer is not understood: {error}");
    InferError::Interrupted(reason.into()).into()
}

/// A page of the models.
pub(in crate::gateway) fn models(shared: &Shared, query: &catalog::Query, path: &str) -> String {
    let client = &shared.client;
    let all = catalog::models(&client.models(), &client.wares(None), &client.token());
    query.page(all, path).to_string()
}

/// How many models there are.
pub(in crate::gateway) fn count(shared: &Shared) -> String {
    json!({ "data": { "count": shared.client.models().len() } }).to_string()
}

/// One model.
pub(in crate::gateway) fn model(shared: &Shared, id: &str) -> Result<String, Problem> {
    let client = &shared.client;
    let listed = [listing(shared, id)?];
    let mut cards = catalog::models(&listed, &client.wares(Some(id)), &client.token());
    let card = cards.pop().ok_or_else(|| unknown(id))?;
    Ok(json!({ "data": card }).to_string())
}

/// One model's sellers.
pub(in crate::gateway) fn endpoints(shared: &Shared, id: &str) -> Result<String, Problem> {
    let client = &shared.client;
    let model = listing(shared, id)?;
    let sellers = catalog::endpoints(&model, &client.wares(Some(id)), &client.token());
    Ok(json!({ "data": sellers }).to_string())
}

/// All sellers.
pub(in crate::gateway) fn providers(shared: &Shared) -> String {
    let wares = shared.client.wares(None);
    json!({ "data": catalog::providers(&wares) }).to_string()
}

fn listing(shared: &Shared, id: &str) -> Result<ModelListing, Problem> {
    let mut listed = shared.client.models().into_iter();
    listed
        .find(|model| model.id == id)
        .ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Problem {
    let model = id.to_owned();
    InferError::UnknownModel { model }.into()
}

/// What was asked for as JSON, or why it is not there.
pub(in crate::gateway) fn told(answer: Result<String, Problem>) -> Response {
    match answer {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(problem) => refused(&problem),
    }
}

/// An error in OpenRouter's shape.
pub(in crate::gateway) fn refused(problem: &Problem) -> Response {
    let body = json!({ "error": shape(problem) });
    problem.respond(body.to_string().into())
}

/// Errors that OpenRouter knows by the names that model servers give them, too.
const COMMON: [&str; 6] = [
    "context_length_exceeded",
    "max_tokens_exceeded",
    "token_limit_exceeded",
    "string_too_long",
    "content_policy_violation",
    "invalid_prompt",
];

fn shape(problem: &Problem) -> Value {
    let theirs = problem.theirs();
    let common = theirs.as_deref().filter(|code| COMMON.contains(code));
    let mut metadata = json!({
        "error_type": common.unwrap_or(problem.openrouter()),
        "reason": problem.code(),
    });
    if let Some(theirs) = &theirs {
        metadata["provider_code"] = json!(theirs);
    }
    let attempts = problem.attempts().iter().map(|attempt| {
        json!({
            "provider": attempt.seller, "model": attempt.model,
            "code": attempt.status, "status": attempt.status, "message": attempt.reason,
        })
    });
    let attempts: Vec<_> = attempts.collect();
    if !attempts.is_empty() {
        metadata["previous_errors"] = attempts.into();
    }
    json!({ "code": problem.status(), "message": problem.message(), "metadata": metadata })
}

/// A stream of chunks.
struct Told(Telling);

impl Dialect for Told {
    fn data(&mut self, json: &[u8]) -> Result<Option<Bytes>, Problem> {
        self.0.chunk(json).map_err(interrupted)
    }

    fn silence(&self) -> Bytes {
        events::silence()
    }

    fn broken(&self, problem: &Problem) -> Bytes {
        self.0.broken(&shape(problem))
    }

    fn end(&mut self, note: &Value, settled: &Settled) -> Bytes {
        let mut page = format!(": farthing {note}\n\n").into_bytes();
        page.extend_from_slice(&self.0.end(settled));
        page.extend_from_slice(b"data: [DONE]\n\n");
        page.into()
    }
}

#[cfg(test)]
mod tests;
