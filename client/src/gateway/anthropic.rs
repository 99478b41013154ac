//! The Anthropic dialect: messages, sold as chat.
//!
//! Three pure translations ([`request`], [`answer`], [`events`]) and the paths that call them. An
//! error has Anthropic's shape; what it says about trying again is the same as in every dialect.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::http::HeaderMap;
use axum::response::Response;
use farthing_protocol::purchase::Endpoint;
use serde_json::{Map, Value, json};

use crate::client::{InferError, Request};
use crate::gateway::Shared;
use crate::gateway::anthropic::events::Telling;
use crate::gateway::chat::{self, Strange};
use crate::gateway::error::Problem;
use crate::gateway::exchange::{self, Settled};
use crate::gateway::sse::{self, Dialect, json_of};
use crate::report::ModelListing;

pub mod request;
pub mod answer;
pub mod events;

/// The paths that are Anthropic's alone, also below OpenRouter's base.
const PATHS: [&str; 2] = ["/v1/messages", "/api/v1/messages"];
/// The header by which Anthropic's libraries name their dialect.
const VERSION: &str = "anthropic-version";

/// Whether a request is made in this dialect.
pub(in crate::gateway) fn is_spoken(path: &str, headers: &HeaderMap) -> bool {
    PATHS.iter().any(|own| path.starts_with(own)) || headers.contains_key(VERSION)
}

/// `POST /v1/messages`.
pub(in crate::gateway) async fn messages(shared: &Arc<Shared>, asked: HttpRequest) -> Response {
    let headers = asked.headers().clone();
    let answer = async {
        let body = exchange::read(shared, asked).await?;
        let chat = translated(&body)?;
        let streams = chat["stream"] == true;
        let request = Request {
            endpoint: Endpoint::Chat,
            body: Bytes::from(chat.to_string()),
        };
        let bought = exchange::buy(shared, request, &headers).await?;
        let id = format!("msg_{}", bought.answer.request.short());
        if streams {
            let told = Told(Telling::new(id));
            return Ok(sse::respond(shared, bought, told));
        }
        let whole = exchange::whole(shared, bought).await?;
        let message = answer::message(&whole.document, &id).map_err(interrupted)?;
        Ok(whole.respond(message.to_string().into()))
    };
    answer
        .await
        .unwrap_or_else(|problem: Problem| refused(&problem))
}

/// `POST /v1/messages/count_tokens`: an estimate from the size, for each model counts otherwise.
pub(in crate::gateway) async fn count_tokens(shared: &Arc<Shared>, asked: HttpRequest) -> Response {
    let count = async {
        let body = exchange::read(shared, asked).await?;
        let mut fields: Map<String, Value> =
            serde_json::from_slice(&body).map_err(|error| bad(&error))?;
        fields.insert("max_tokens".into(), 1.into());
        let chat = translated(Value::Object(fields).to_string().as_bytes())?;
        Ok(json_of(&json!({ "input_tokens": chat::estimate(&chat) })))
    };
    count
        .await
        .unwrap_or_else(|problem: Problem| refused(&problem))
}

/// `GET /v1/models`, as Anthropic lists them.
pub(in crate::gateway) fn models(shared: &Shared) -> Response {
    let models = shared.client.models();
    json_of(&json!({
        "data": models.iter().map(card).collect::<Vec<_>>(),
        "has_more": false,
        "first_id": models.first().map(|model| &model.id),
        "last_id": models.last().map(|model| &model.id),
    }))
}

/// `GET /v1/models/{id}`, as Anthropic shows one.
pub(in crate::gateway) fn model(shared: &Shared, id: String) -> Response {
    match shared.client.model(&id) {
        Some(model) => json_of(&card(&model)),
        None => refused(&InferError::UnknownModel { model: id }.into()),
    }
}

/// Nobody knows when a model came into the world.
fn card(model: &ModelListing) -> Value {
    json!({
        "type": "model", "id": model.id, "display_name": model.id, "lifecycle": "active",
        "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": model.context, "max_tokens": model.max_output,
    })
}

fn translated(body: &[u8]) -> Result<Value, Problem> {
    request::to_chat(body).map_err(|error| bad(&error))
}

fn bad(error: &impl ToString) -> Problem {
    InferError::BadRequest(error.to_string()).into()
}

fn interrupted(error: Strange) -> Problem {
    InferError::Interrupted(error.to_string().into()).into()
}

/// An error in Anthropic's shape.
pub(in crate::gateway) fn refused(problem: &Problem) -> Response {
    problem.respond(shape(problem).to_string().into())
}

fn shape(problem: &Problem) -> Value {
    let kind = problem.anthropic();
    json!({ "type": "error", "error": { "type": kind, "message": problem.message() } })
}

/// A stream of events.
struct Told(Telling);

impl Dialect for Told {
    fn data(&mut self, json: &[u8]) -> Result<Option<Bytes>, Problem> {
        let page = self.0.chunk(json).map_err(interrupted)?;
        Ok((!page.is_empty()).then_some(page))
    }

    fn silence(&self) -> Bytes {
        events::ping()
    }

    fn broken(&self, problem: &Problem) -> Bytes {
        let error = shape(problem);
        Bytes::from(format!("event: error\ndata: {error}\n\n"))
    }

    fn end(&mut self, note: &Value, _: &Settled) -> Bytes {
        let mut page = format!(": farthing {note}\n\n").into_bytes();
        page.extend_from_slice(&self.0.end());
        page.into()
    }
}

#[cfg(test)]
mod tests;
