//! The paths of the OpenRouter dialect: path → handler, nothing else.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{get, post};
use farthing_protocol::purchase::Endpoint;

use crate::client::InferError;
use crate::gateway::error::Problem;
use crate::gateway::openrouter::{self, account, catalog};
use crate::gateway::{Shared, anthropic};

/// What every handler of this file takes.
type Gateway = State<Arc<Shared>>;
/// Both parts of a model's id, if they can be read.
type Named = Result<Path<(String, String)>, PathRejection>;

pub(in crate::gateway) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/v1/chat/completions", post(chat))
        .route("/api/v1/completions", post(completions))
        .route("/api/v1/embeddings", post(embeddings))
        .route("/api/v1/messages", post(messages))
        .route("/api/v1/models", get(models))
        .route("/api/v1/models/user", get(models))
        .route("/api/v1/models/count", get(count))
        .route("/api/v1/embeddings/models", get(embedding_models))
        .route("/api/v1/models/{author}/{slug}/endpoints", get(endpoints))
        .route("/api/v1/model/{author}/{slug}", get(model))
        .route("/api/v1/providers", get(providers))
        .route("/api/v1/generation", get(generation))
        .route("/api/v1/credits", get(credits))
        .route("/api/v1/key", get(key))
        .route("/api/v1/activity", get(activity))
}

async fn chat(State(shared): Gateway, request: Request) -> Response {
    let answer = openrouter::buy(&shared, Endpoint::Chat, request).await;
    shared.answered("/api/v1/chat/completions", answer)
}

async fn completions(State(shared): Gateway, request: Request) -> Response {
    let answer = openrouter::buy(&shared, Endpoint::Completions, request).await;
    shared.answered("/api/v1/completions", answer)
}

async fn embeddings(State(shared): Gateway, request: Request) -> Response {
    let answer = openrouter::buy(&shared, Endpoint::Embeddings, request).await;
    shared.answered("/api/v1/embeddings", answer)
}

async fn messages(State(shared): Gateway, request: Request) -> Response {
    let answer = anthropic::messages(&shared, request).await;
    shared.answered("/api/v1/messages", answer)
}

async fn models(State(shared): Gateway, uri: Uri) -> Response {
    let page = page(&shared, &uri, &[]);
    shared.answered("/api/v1/models", openrouter::told(page))
}

async fn embedding_models(State(shared): Gateway, uri: Uri) -> Response {
    let page = page(&shared, &uri, &["embeddings"]);
    shared.answered("/api/v1/embeddings/models", openrouter::told(page))
}

/// A page of the models that make one of these, if any are named.
fn page(shared: &Shared, uri: &Uri, outputs: &[&str]) -> Result<String, Problem> {
    let wrong = |name| bad(format!("`{name}` is a whole number"));
    let mut query = catalog::Query::of(pairs(uri).into_iter()).map_err(wrong)?;
    if !outputs.is_empty() {
        query.outputs = outputs.iter().map(|it| (*it).to_owned()).collect();
    }
    Ok(openrouter::models(shared, &query, uri.path()))
}

async fn count(State(shared): Gateway) -> Response {
    let count = openrouter::count(&shared);
    shared.answered("/api/v1/models/count", openrouter::told(Ok(count)))
}

async fn endpoints(State(shared): Gateway, named: Named) -> Response {
    let one = id(named).and_then(|id| openrouter::endpoints(&shared, &id));
    let route = "/api/v1/models/{author}/{slug}/endpoints";
    shared.answered(route, openrouter::told(one))
}

async fn model(State(shared): Gateway, named: Named) -> Response {
    let one = id(named).and_then(|id| openrouter::model(&shared, &id));
    shared.answered("/api/v1/model/{author}/{slug}", openrouter::told(one))
}

/// The id of the model that a path names.
fn id(named: Named) -> Result<String, Problem> {
    match named {
        Ok(Path((author, slug))) => Ok(format!("{author}/{slug}")),
        Err(unreadable) => Err(bad(unreadable.body_text())),
    }
}

async fn providers(State(shared): Gateway) -> Response {
    let all = openrouter::providers(&shared);
    shared.answered("/api/v1/providers", openrouter::told(Ok(all)))
}

async fn generation(State(shared): Gateway, uri: Uri) -> Response {
    let one = match pair(&uri, "id") {
        Some(id) => account::generation(&shared.client, &id).await,
        None => Err(bad("`id` is missing: the generation's".to_owned())),
    };
    shared.answered("/api/v1/generation", openrouter::told(one))
}

async fn credits(State(shared): Gateway) -> Response {
    let credits = account::credits(&shared.client).await;
    shared.answered("/api/v1/credits", openrouter::told(credits))
}

async fn key(State(shared): Gateway) -> Response {
    let key = account::key(&shared.client).await;
    shared.answered("/api/v1/key", openrouter::told(key))
}

async fn activity(State(shared): Gateway, uri: Uri) -> Response {
    let date = pair(&uri, "date");
    let activity = account::activity(&shared.client, date.as_deref()).await;
    shared.answered("/api/v1/activity", openrouter::told(activity))
}

fn bad(reason: String) -> Problem {
    InferError::BadRequest(reason).into()
}

/// What stands behind the question mark, decoded.
fn pairs(uri: &Uri) -> Vec<(String, String)> {
    // What cannot be decoded names nothing.
    Query::try_from_uri(uri).map_or_else(|_| Vec::new(), |Query(pairs)| pairs)
}

/// What one name is set to there.
fn pair(uri: &Uri, wanted: &str) -> Option<String> {
    let mut pairs = pairs(uri).into_iter();
    pairs.find_map(|(name, value)| (name == wanted).then_some(value))
}
