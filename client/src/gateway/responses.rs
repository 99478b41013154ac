//! OpenAI's Responses, sold as chat, and kept on this machine.
//!
//! Pure translations ([`request`], [`items`], [`answer`], [`events`]), the files of those that are
//! kept ([`store`]), those that nobody waits for ([`background`]), the [`conversations`] that they
//! are turns of, and the paths that call them. What a request goes on from is put together here;
//! sellers see a chat and know of no responses.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request as HttpRequest};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::Body;
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
use crate::gateway::responses::background::Commission;
use crate::gateway::responses::events::Telling;
use crate::gateway::responses::item::Step;
use crate::gateway::responses::items::Untranslatable;
use crate::gateway::responses::request::Asked;
use crate::gateway::responses::store::{Kept, Store};
use crate::gateway::sse::{self, Dialect, json_of};

pub mod items;
pub mod request;
pub mod answer;
pub mod item;
pub mod again;
pub mod events;
pub mod store;
pub mod background;
pub mod conversations;

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
    let headers = asking.headers().clone();
    let body = exchange::read(shared, asking).await?;
    let (asked, chat) = translated(shared, &body).await?;
    let request = Request {
        endpoint: Endpoint::Chat,
        body: Bytes::from(chat.to_string()),
    };
    if asked.background {
        return alone(shared, asked, request, &headers).await;
    }
    let created_at = shared.client.clock().now().seconds();
    let bought = exchange::buy(shared, request, &headers).await?;
    let stem = stem(bought.answer.request);
    let record = Record::of(shared, &asked, &stem);
    let head = Head {
        id: format!("resp_{stem}"),
        created_at,
        model: bought.answer.model.clone(),
        settings: asked.settings,
    };
    let telling = Telling::new(head, stem);
    if asked.stream {
        let record = Some(record);
        return Ok(sse::respond(shared, bought, Told { telling, record }));
    }
    let whole = exchange::whole(shared, bought).await?;
    let response = telling.whole(&whole.document, whole.settled.used());
    let response = response.map_err(interrupted)?;
    record.keep(response.clone(), None).await;
    Ok(whole.respond(response.to_string().into()))
}

/// Begins a response in the background.
async fn alone(
    shared: &Arc<Shared>,
    asked: Asked,
    request: Request,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let place = shared
        .in_flight
        .enter(headers, request.endpoint, &request.body)?;
    let model = Body::parse(&request.body)?.get::<String>("model")?;
    let stem = fresh();
    let commission = Commission {
        record: Record::of(shared, &asked, &stem),
        head: Head {
            id: format!("resp_{stem}"),
            created_at: shared.client.clock().now().seconds(),
            model: model.unwrap_or_default(),
            settings: asked.settings,
        },
        stem,
        request,
        place,
    };
    let live = shared.background.begin(shared, commission).await?;
    match asked.stream {
        true => Ok(live.follow(None, shared.settings.keep_alive)),
        false => Ok(json_of(&live.response())),
    }
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
    let id = id_of(named)?;
    if let Some(live) = shared.background.find(&id) {
        return Ok(match wish.stream {
            true => live.follow(wish.starting_after, shared.settings.keep_alive),
            false => json_of(&live.response()),
        });
    }
    let Kept {
        response, steps, ..
    } = kept(shared, &id).await?;
    if !wish.stream {
        return Ok(json_of(&response));
    }
    if steps.is_none() && wish.starting_after.is_some_and(|after| after >= ALIKE) {
        let again =
            "`starting_after`: this response was told in no events; it is told from its beginning";
        return Err(InferError::BadRequest(again.to_owned()).into());
    }
    let events = again::again(&response, steps.as_deref(), wish.starting_after);
    Ok((sse::head(), events).into_response())
}

/// `DELETE /v1/responses/{id}`. One under way is cancelled.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn remove(shared: &Shared, named: Named) -> Result<Response, Problem> {
    let id = id_of(named)?;
    if let Some(live) = shared.background.find(&id) {
        live.remove().await;
    }
    let removed = shared.responses.remove::<Kept>(&id).await;
    match removed.map_err(unreadable)? {
        true => Ok(json_of(
            &json!({ "id": id, "object": "response", "deleted": true }),
        )),
        false => Err(not_here(&id)),
    }
}

/// `POST /v1/responses/{id}/cancel`. What is over stays as it is; what is told to somebody who waits
/// for it is cancelled by hanging up.
///
/// # Errors
/// Any [`Problem`].
pub(in crate::gateway) async fn cancel(shared: &Shared, named: Named) -> Result<Response, Problem> {
    let id = id_of(named)?;
    match shared.background.find(&id) {
        Some(live) => Ok(json_of(&live.cancel().await)),
        None => Ok(json_of(&kept(shared, &id).await?.response)),
    }
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
    page(kept(shared, &id_of(named)?).await?.input, uri)
}

/// The page of items, oldest first, that a query wants.
fn page(mut items: Vec<Value>, uri: &Uri) -> Result<Response, Problem> {
    let paging: Paging = queried(uri)?;
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
    let before = match &asked.conversation {
        Some(id) => conversations::turns(shared, id).await?,
        None => conversation(shared, asked.previous.as_deref()).await?,
    };
    resolved(shared, &mut asked.input, &before).await?;
    let chat = asked.chat(&before).map_err(|error| bad(&error))?;
    Ok((asked, chat))
}

/// Puts the items that are only named in their places; those of `before` are known. All of them
/// together are no larger than a body.
async fn resolved(shared: &Shared, items: &mut [Value], before: &[Value]) -> Result<(), Problem> {
    let (mut len, max) = (0, shared.settings.max_body);
    for item in items {
        let Some(id) = items::reference(item) else {
            continue;
        };
        let known = before.iter().find(|item| item["id"] == id).cloned();
        *item = match known {
            Some(known) => known,
            None => referred(shared, id).await?,
        };
        len += item.to_string().len();
        if len > max {
            return Err(InferError::TooLarge { len, max }.into());
        }
    }
    Ok(())
}

/// The items of a conversation up to and with this response, in order.
async fn conversation(shared: &Shared, last: Option<&str>) -> Result<Vec<Value>, Problem> {
    let mut turns = Vec::new();
    let mut bytes = 0;
    let mut next = last.map(str::to_owned);
    while let Some(id) = next {
        if shared.background.find(&id).is_some() {
            let early = format!("`previous_response_id`: `{id}` is still being said");
            return Err(InferError::BadRequest(early).into());
        }
        let kept: Option<Kept> = shared.responses.get(&id).await.map_err(unreadable)?;
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
    let kept: Option<Kept> = shared.responses.get(&response).await.map_err(unreadable)?;
    let kept = kept.ok_or_else(missing)?;
    let mut all = kept.input.iter().chain(outputs(&kept.response));
    let found = all.find(|item| item["id"] == id).cloned();
    found.ok_or_else(missing)
}

/// A kept response. One that says it is under way and is not was cut off with the gateway.
async fn kept(shared: &Shared, id: &str) -> Result<Kept, Problem> {
    let kept: Option<Kept> = shared.responses.get(id).await.map_err(unreadable)?;
    let mut kept = kept.ok_or_else(|| not_here(id))?;
    if kept.response["status"] == "queued" {
        let why = "the gateway ended before it was said";
        kept.response["status"] = "failed".into();
        kept.response["error"] = json!({ "code": "server_error", "message": why });
    }
    Ok(kept)
}

/// What a response and its items are named after: its purchase.
fn stem(request: RequestId) -> String {
    let name = request.to_string();
    let hex = name.trim_start_matches("0x");
    hex.get(..STEM).unwrap_or(hex).to_owned()
}

/// A name that no other has.
#[expect(
    clippy::disallowed_methods,
    reason = "a name that no other response or conversation has"
)]
fn fresh() -> String {
    format!("{:032x}", rand::random::<u128>())
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

/// Where a response is kept when it is over, and the conversation it is a turn of.
#[derive(Debug)]
struct Record {
    store: Store,
    /// Whether the response itself is kept.
    keeps: bool,
    input: Vec<Value>,
    conversation: Option<String>,
}

impl Record {
    fn of(shared: &Shared, asked: &Asked, stem: &str) -> Self {
        Self {
            store: shared.responses.clone(),
            keeps: asked.store,
            input: items::listed(&asked.input, stem),
            conversation: asked.conversation.clone(),
        }
    }

    /// Writes a response down; says whether it is kept.
    async fn put(&self, response: Value, steps: Option<Vec<Vec<Step>>>) -> Result<bool, Problem> {
        let input = self.input.clone();
        let kept = Kept {
            response,
            input,
            steps,
        };
        self.store.put(kept).await.map_err(unreadable)
    }

    /// It is over, and paid for: if it cannot be kept, it is still delivered. As it is kept.
    async fn keep(self, response: Value, steps: Option<Vec<Vec<Step>>>) -> Value {
        let status = &response["status"];
        let is_turn = status == "completed" || status == "incomplete";
        if let Some(id) = self.conversation.as_deref().filter(|_| is_turn) {
            let mut turn = self.input.clone();
            turn.extend(outputs(&response).cloned());
            conversations::goes_on(&self.store, id, turn).await;
        }
        if !self.keeps {
            return response;
        }
        let why = match self.put(response.clone(), steps).await {
            Ok(true) => return response,
            Ok(false) => "it is larger than all that may be kept (`gateway.responses_bytes`)",
            Err(error) => {
                tracing::warn!(%error, "a response cannot be kept");
                "it could not be written down"
            }
        };
        if response["background"] != true {
            return response;
        }
        // Whoever comes for it later must learn what became of it.
        let mut short = response;
        short["status"] = "failed".into();
        short["error"] = json!({ "code": "server_error", "message": why });
        short["output"] = json!([]);
        if let Err(error) = self.put(short.clone(), None).await {
            tracing::warn!(%error, "what became of a response cannot be kept");
        }
        short
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
            record.keep(response, Some(self.telling.steps())).await;
        }
    }
}

#[cfg(test)]
mod tests;
