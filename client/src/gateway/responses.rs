//! OpenAI's Responses, sold as chat, and kept on this machine.
//!
//! Pure translations ([`request`], [`items`], [`answer`], [`events`]), the files of those that are
//! kept ([`store`]), and the paths that call them. A conversation that goes on from a kept response
//! is put together here; sellers see a chat and know of no responses.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request as HttpRequest};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use farthing_protocol::purchase::{Endpoint, RequestId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::client::{InferError, Request};
use crate::gateway::Shared;
use crate::gateway::chat::{self, Strange};
use crate::gateway::error::Problem;
use crate::gateway::exchange::{self, Settled};
use crate::gateway::responses::answer::Head;
use crate::gateway::responses::events::Telling;
use crate::gateway::responses::items::Untranslatable;
use crate::gateway::responses::request::Asked;
use crate::gateway::responses::store::{Kept, Store};
use crate::gateway::sse::{self, Dialect, json_of};

pub mod items;
pub mod request;
pub mod answer;
pub mod events;
pub mod store;

/// Hex digits of a response's name.
const STEM: usize = 32;
/// Items on a page, unless the request says otherwise, and at most.
const PAGE: usize = 20;
const MOST_ON_A_PAGE: usize = 100;
/// Before this event of a response told again, what was said first is the same.
const ALIKE: u64 = 2;

/// `POST /v1/responses`.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn create(
    shared: &Arc<Shared>,
    asking: HttpRequest,
) -> Result<Response, Problem> {
    let created_at = shared.client.clock().now().seconds();
    let headers = asking.headers().clone();
    let body = exchange::read(shared, asking).await?;
    let (asked, chat) = translated(shared, &body).await?;
    let request = Request {
        endpoint: Endpoint::Chat,
        body: Bytes::from(chat.to_string()),
    };
    let bought = exchange::buy(shared, request, &headers).await?;
    let stem = stem(bought.answer.request);
    let head = Head {
        id: format!("resp_{stem}"),
        created_at,
        model: bought.answer.model.clone(),
        settings: asked.settings,
    };
    let record = asked.store.then(|| Record {
        store: shared.responses.clone(),
        input: items::listed(&asked.input, &stem),
    });
    let telling = Telling::new(head, stem);
    if asked.stream {
        return Ok(sse::respond(shared, bought, Told { telling, record }));
    }
    let whole = exchange::whole(shared, bought).await?;
    let response = telling.whole(&whole.document, whole.settled.used());
    let response = response.map_err(interrupted)?;
    if let Some(record) = record {
        record.keep(response.clone()).await;
    }
    Ok(whole.respond(response.to_string().into()))
}

/// `POST /v1/responses/input_tokens`: an estimate from the size, for each model counts otherwise.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn count(
    shared: &Shared,
    asking: HttpRequest,
) -> Result<Response, Problem> {
    let body = exchange::read(shared, asking).await?;
    let (_, chat) = translated(shared, &body).await?;
    let tokens = chat::estimate(&chat);
    Ok(json_of(
        &json!({ "object": "response.input_tokens", "input_tokens": tokens }),
    ))
}

/// `POST /v1/responses/compact`: what it gives back only OpenAI can read.
pub(in crate::gateway) fn compact() -> Problem {
    bad(&Untranslatable::Theirs("compact".to_owned()))
}

/// The id in a path, if it can be read.
pub(in crate::gateway) type Named = Result<Path<String>, PathRejection>;

/// How a kept response is wanted.
#[derive(Deserialize)]
struct Again {
    #[serde(default)]
    stream: bool,
    starting_after: Option<u64>,
}

/// `GET /v1/responses/{id}`, as a document or told again.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn retrieve(
    shared: &Shared,
    named: Named,
    uri: &Uri,
) -> Result<Response, Problem> {
    let wish: Again = queried(uri)?;
    let response = kept(shared, &id_of(named)?).await?.response;
    if !wish.stream {
        return Ok(json_of(&response));
    }
    if wish.starting_after.is_some_and(|after| after >= ALIKE) {
        let again = "`starting_after`: a kept response is told again from its beginning";
        return Err(InferError::BadRequest(again.to_owned()).into());
    }
    Ok((sse::head(), events::again(&response, wish.starting_after)).into_response())
}

/// `DELETE /v1/responses/{id}`.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn remove(shared: &Shared, named: Named) -> Result<Response, Problem> {
    let id = id_of(named)?;
    match shared.responses.remove(&id).await.map_err(unreadable)? {
        true => Ok(json_of(
            &json!({ "id": id, "object": "response", "deleted": true }),
        )),
        false => Err(not_here(&id)),
    }
}

/// `POST /v1/responses/{id}/cancel`. What is kept is over, and stays as it is: a response is only
/// kept once it is said, and what is being said is cancelled by hanging up.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn cancel(shared: &Shared, named: Named) -> Result<Response, Problem> {
    Ok(json_of(&kept(shared, &id_of(named)?).await?.response))
}

/// Which items of a response's request are wanted.
#[derive(Deserialize)]
struct Paging {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<Order>,
}

#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

/// `GET /v1/responses/{id}/input_items`: those of its own request, newest first.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn input_items(
    shared: &Shared,
    named: Named,
    uri: &Uri,
) -> Result<Response, Problem> {
    let paging: Paging = queried(uri)?;
    let mut items = kept(shared, &id_of(named)?).await?.input;
    if paging.order != Some(Order::Asc) {
        items.reverse();
    }
    let named = |item: &Value, id: &str| item["id"] == id;
    let left: Vec<_> = match &paging.after {
        None => items,
        Some(after) => {
            let place = items.iter().position(|item| named(item, after));
            let begin = place.map_or(items.len(), |place| place + 1);
            items.split_off(begin)
        }
    };
    let limit = paging.limit.unwrap_or(PAGE).clamp(1, MOST_ON_A_PAGE);
    let page = left.get(..limit).unwrap_or(&left);
    Ok(json_of(&json!({
        "object": "list",
        "data": page,
        "first_id": page.first().map(|item| &item["id"]),
        "last_id": page.last().map(|item| &item["id"]),
        "has_more": left.len() > page.len(),
    })))
}

/// The request with what it refers to, and the chat request that asks for the same.
async fn translated(shared: &Shared, body: &[u8]) -> Result<(Asked, Value), Problem> {
    let mut asked = Asked::read(body).map_err(|error| bad(&error))?;
    let before = conversation(shared, asked.previous.as_deref()).await?;
    for item in &mut asked.input {
        if let Some(id) = items::reference(item) {
            *item = referred(shared, id).await?;
        }
    }
    let chat = asked.chat(&before).map_err(|error| bad(&error))?;
    Ok((asked, chat))
}

/// The items of a conversation up to and with this response, in order.
async fn conversation(shared: &Shared, last: Option<&str>) -> Result<Vec<Value>, Problem> {
    let mut turns = Vec::new();
    let mut bytes = 0;
    let mut next = last.map(str::to_owned);
    while let Some(id) = next {
        let kept = shared.responses.get(&id).await.map_err(unreadable)?;
        let kept = kept.ok_or(Problem::NoPrevious { id })?;
        next = kept.response["previous_response_id"]
            .as_str()
            .map(str::to_owned);
        let mut turn = kept.input;
        turn.extend(outputs(&kept.response).cloned());
        // An empty turn has a size too: no chain is endless.
        let one = |item: &Value| item.to_string().len();
        bytes += turn.iter().map(one).sum::<usize>() + STEM;
        let max = shared.settings.max_body;
        if bytes > max {
            return Err(InferError::TooLarge { len: bytes, max }.into());
        }
        turns.push(turn);
    }
    Ok(turns.into_iter().rev().flatten().collect())
}

fn outputs(response: &Value) -> impl Iterator<Item = &Value> {
    response["output"].as_array().into_iter().flatten()
}

/// The item of a kept response that goes by this name.
async fn referred(shared: &Shared, id: &str) -> Result<Value, Problem> {
    let missing = || Problem::NotHere(format!("item `{id}`; its response is not kept (any more)"));
    let stem = id.split_once('_').and_then(|(_, name)| name.get(..STEM));
    let response = format!("resp_{}", stem.ok_or_else(missing)?);
    let kept = shared.responses.get(&response).await.map_err(unreadable)?;
    let kept = kept.ok_or_else(missing)?;
    let mut all = kept.input.iter().chain(outputs(&kept.response));
    let found = all.find(|item| item["id"] == id).cloned();
    found.ok_or_else(missing)
}

async fn kept(shared: &Shared, id: &str) -> Result<Kept, Problem> {
    let kept = shared.responses.get(id).await.map_err(unreadable)?;
    kept.ok_or_else(|| not_here(id))
}

/// What a response and its items are named after: its purchase.
fn stem(request: RequestId) -> String {
    let name = request.to_string();
    let hex = name.trim_start_matches("0x");
    hex.get(..STEM).unwrap_or(hex).to_owned()
}

fn id_of(named: Named) -> Result<String, Problem> {
    let id = named.map_err(|error| bad(&error.body_text()))?;
    Ok(id.0)
}

fn queried<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let query = Query::try_from_uri(uri).map_err(|error| bad(&error.body_text()))?;
    Ok(query.0)
}

fn not_here(id: &str) -> Problem {
    Problem::NotHere(format!("response `{id}`; it is not kept (any more)"))
}

fn bad(error: &impl ToString) -> Problem {
    InferError::BadRequest(error.to_string()).into()
}

fn interrupted(error: Strange) -> Problem {
    InferError::Interrupted(error.to_string().into()).into()
}

fn unreadable(error: std::io::Error) -> Problem {
    InferError::Internal(format!("kept responses cannot be read: {error}")).into()
}

/// Where a response is kept when it is over.
#[derive(Debug)]
struct Record {
    store: Store,
    input: Vec<Value>,
}

impl Record {
    /// It is paid for: if it cannot be kept, it is still delivered.
    async fn keep(self, response: Value) {
        let input = self.input;
        if let Err(error) = self.store.put(Kept { response, input }).await {
            tracing::warn!(%error, "a response cannot be kept");
        }
    }
}

/// A stream of events.
struct Told {
    telling: Telling,
    record: Option<Record>,
}

impl Dialect for Told {
    fn data(&mut self, json: &[u8]) -> Result<Option<Bytes>, Problem> {
        let page = self.telling.chunk(json).map_err(interrupted)?;
        Ok((!page.is_empty()).then_some(page))
    }

    fn silence(&self) -> Bytes {
        sse::KEEP_ALIVE
    }

    fn broken(&self, problem: &Problem) -> Bytes {
        self.telling.broken(&problem.detail())
    }

    fn end(&mut self, note: &Value, settled: &Settled) -> Bytes {
        self.telling.counted(settled.used());
        let mut page = format!(": farthing {note}\n\n").into_bytes();
        page.extend_from_slice(&self.telling.end());
        page.into()
    }

    /// Before the application hears of the end: it may go on from it at once.
    async fn keep(&mut self, broken: Option<&Problem>) {
        if let Some(record) = self.record.take() {
            let response = match broken {
                Some(problem) => self.telling.failed(&problem.message()),
                None => self.telling.response(),
            };
            record.keep(response).await;
        }
    }
}

#[cfg(test)]
mod tests;
