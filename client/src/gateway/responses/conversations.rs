//! Conversations: items that one response after the other goes on from. Kept on this machine, beside
//! the responses and within the same bounds.
//!
//! One file each. Items are added by the application, and by every response that is a turn of it
//! once it is over; nothing is bought here.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, routing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::client::InferError;
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::exchange;
use crate::gateway::responses::store::{Document, NoRoom, Store};
use crate::gateway::responses::{Named, bad, fresh, id_of, items, page, resolved, unreadable};
use crate::gateway::sse::json_of;

/// Items that may be added at once.
const MOST_AT_ONCE: usize = 20;
/// Pairs of metadata, and characters of a name and a value.
const PAIRS: usize = 16;
const NAME: usize = 64;
const VALUE: usize = 512;
/// What an id begins with.
const PREFIX: &str = "conv_";

/// What every handler of this file takes.
type Gateway = State<Arc<Shared>>;
/// Both ids in a path, if they can be read.
type Item = Result<Path<(String, String)>, PathRejection>;

/// A conversation that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    conversation: Value,
    items: Vec<Value>,
    /// Items it has been given: what the next is named after.
    given: u64,
}

impl Document for Talk {
    fn id(&self) -> &str {
        self.conversation["id"].as_str().unwrap_or_default()
    }
}

impl Talk {
    /// Adds items, each under a name that no other has; as they are listed.
    fn add(&mut self, items: Vec<Value>) -> Vec<Value> {
        let stem = self.id().trim_start_matches(PREFIX).to_owned();
        let mut added = Vec::new();
        for mut item in items {
            let taken = self.items.iter().any(|other| other["id"] == item["id"]);
            if let Some(fields) = item.as_object_mut().filter(|_| taken) {
                fields.remove("id");
            }
            let item = items::list(&item, &format!("{stem}c{}", self.given));
            self.given = self.given.saturating_add(1);
            self.items.push(item.clone());
            added.push(item);
        }
        added
    }

    fn bytes(&self) -> usize {
        let one = |item: &Value| item.to_string().len();
        self.items.iter().map(one).sum()
    }
}

/// Why a conversation is not changed.
enum Unchanged {
    TooLarge(usize),
    NoRoom(NoRoom),
    NoItem,
}

impl From<NoRoom> for Unchanged {
    fn from(none: NoRoom) -> Self {
        Self::NoRoom(none)
    }
}

pub(in crate::gateway) fn routes() -> Router<Arc<Shared>> {
    let one = get(retrieve).post(update).delete(remove);
    let item = get(retrieve_item).delete(remove_item);
    Router::new()
        .route("/v1/conversations", routing::post(create))
        .route("/v1/conversations/{id}", one)
        .route("/v1/conversations/{id}/items", get(list).post(add))
        .route("/v1/conversations/{id}/items/{item}", item)
}

/// The items of a conversation that a request goes on from, oldest first.
///
/// # Errors
/// [`Problem::NotHere`], or what the file system says.
pub(in crate::gateway) async fn turns(shared: &Shared, id: &str) -> Result<Vec<Value>, Problem> {
    let talk = kept(shared, id).await?;
    let (len, max) = (talk.bytes(), shared.settings.max_body);
    if len > max {
        return Err(InferError::TooLarge { len, max }.into());
    }
    Ok(talk.items)
}

/// Adds what was asked and answered in a turn; nothing if it was deleted meanwhile, or has no room.
pub(in crate::gateway) async fn goes_on(store: &Store, id: &str, turn: Vec<Value>) {
    let add = move |talk: &mut Talk| {
        talk.add(turn);
        Ok::<(), NoRoom>(())
    };
    match store.change(id, add).await {
        Ok(Some(Err(NoRoom { len }))) => tracing::warn!(
            len,
            "a turn is not added: its conversation would be larger than all that may be kept"
        ),
        Err(error) => tracing::warn!(%error, "a conversation cannot be kept"),
        Ok(_) => {}
    }
}

#[derive(Deserialize)]
struct Begin {
    items: Option<Vec<Value>>,
    metadata: Option<Map<String, Value>>,
}

async fn create(State(shared): Gateway, request: HttpRequest) -> Response {
    let begun = begin(&shared, request).await;
    shared.answered("/v1/conversations", begun.into_response())
}

async fn begin(shared: &Shared, request: HttpRequest) -> Result<Response, Problem> {
    let body = exchange::read(shared, request).await?;
    let asked: Begin = read(&body)?;
    let metadata = described(asked.metadata)?;
    let items = checked(shared, asked.items.unwrap_or_default()).await?;
    let conversation = json!({
        "id": format!("{PREFIX}{}", fresh()),
        "object": "conversation",
        "created_at": shared.client.clock().now().seconds(),
        "metadata": metadata,
    });
    let mut talk = Talk {
        conversation: conversation.clone(),
        items: Vec::new(),
        given: 0,
    };
    talk.add(items);
    let (len, max) = (talk.bytes(), shared.settings.max_body);
    if len > max {
        return Err(InferError::TooLarge { len, max }.into());
    }
    match shared.responses.put(talk).await.map_err(unreadable)? {
        true => Ok(json_of(&conversation)),
        false => Err(bad(&"nothing is kept here (`gateway.responses_kept`)")),
    }
}

async fn retrieve(State(shared): Gateway, id: Named) -> Response {
    let found = async { Ok(json_of(&kept(&shared, &id_of(id)?).await?.conversation)) };
    let found: Result<Response, Problem> = found.await;
    shared.answered("/v1/conversations/{id}", found.into_response())
}

async fn update(State(shared): Gateway, id: Named, request: HttpRequest) -> Response {
    let updated = describe(&shared, id, request).await;
    shared.answered("/v1/conversations/{id}", updated.into_response())
}

async fn describe(shared: &Shared, id: Named, request: HttpRequest) -> Result<Response, Problem> {
    #[derive(Deserialize)]
    struct Update {
        metadata: Option<Map<String, Value>>,
    }
    let id = id_of(id)?;
    let body = exchange::read(shared, request).await?;
    let metadata = described(read::<Update>(&body)?.metadata)?;
    let told = changed(shared, &id, move |talk| {
        talk.conversation["metadata"] = metadata.into();
        Ok(talk.conversation.clone())
    });
    Ok(json_of(&told.await?))
}

async fn remove(State(shared): Gateway, id: Named) -> Response {
    let gone = async {
        let id = id_of(id)?;
        let removed = shared.responses.remove::<Talk>(&id).await;
        match removed.map_err(unreadable)? {
            true => Ok(json_of(
                &json!({ "id": id, "object": "conversation.deleted", "deleted": true }),
            )),
            false => Err(not_here(&id)),
        }
    };
    let gone: Result<Response, Problem> = gone.await;
    shared.answered("/v1/conversations/{id}", gone.into_response())
}

async fn add(State(shared): Gateway, id: Named, request: HttpRequest) -> Response {
    let added = added(&shared, id, request).await;
    shared.answered("/v1/conversations/{id}/items", added.into_response())
}

async fn added(shared: &Shared, id: Named, request: HttpRequest) -> Result<Response, Problem> {
    #[derive(Deserialize)]
    struct More {
        items: Vec<Value>,
    }
    let id = id_of(id)?;
    let body = exchange::read(shared, request).await?;
    let items = checked(shared, read::<More>(&body)?.items).await?;
    let max = shared.settings.max_body;
    let added = changed(shared, &id, move |talk| {
        let added = talk.add(items);
        match talk.bytes() {
            len if len > max => Err(Unchanged::TooLarge(len)),
            _ => Ok(added),
        }
    });
    let added = added.await?;
    Ok(json_of(&json!({
        "object": "list",
        "data": added,
        "first_id": added.first().map(|item| &item["id"]),
        "last_id": added.last().map(|item| &item["id"]),
        "has_more": false,
    })))
}

async fn list(State(shared): Gateway, id: Named, uri: Uri) -> Response {
    let items = async { page(kept(&shared, &id_of(id)?).await?.items, &uri) };
    shared.answered("/v1/conversations/{id}/items", items.await.into_response())
}

async fn retrieve_item(State(shared): Gateway, item: Item) -> Response {
    let found = async {
        let (id, name) = ids(item)?;
        let items = kept(&shared, &id).await?.items;
        let found = items.iter().find(|item| item["id"] == name.as_str());
        found.map(json_of).ok_or_else(|| no_item(&id))
    };
    let route = "/v1/conversations/{id}/items/{item}";
    shared.answered(route, found.await.into_response())
}

async fn remove_item(State(shared): Gateway, item: Item) -> Response {
    let left = async {
        let (id, name) = ids(item)?;
        let left = changed(&shared, &id, move |talk| {
            let before = talk.items.len();
            talk.items.retain(|item| item["id"] != name.as_str());
            match talk.items.len() < before {
                true => Ok(talk.conversation.clone()),
                false => Err(Unchanged::NoItem),
            }
        });
        Ok(json_of(&left.await?))
    };
    let left: Result<Response, Problem> = left.await;
    let route = "/v1/conversations/{id}/items/{item}";
    shared.answered(route, left.into_response())
}

async fn kept(shared: &Shared, id: &str) -> Result<Talk, Problem> {
    let kept = shared.responses.get(id).await.map_err(unreadable)?;
    kept.ok_or_else(|| not_here(id))
}

async fn changed<R: Send + 'static>(
    shared: &Shared,
    id: &str,
    change: impl FnOnce(&mut Talk) -> Result<R, Unchanged> + Send + 'static,
) -> Result<R, Problem> {
    let changed = shared.responses.change(id, change).await;
    match changed.map_err(unreadable)? {
        Some(Ok(said)) => Ok(said),
        Some(Err(Unchanged::NoItem)) => Err(no_item(id)),
        Some(Err(Unchanged::TooLarge(len))) => {
            let max = shared.settings.max_body;
            Err(InferError::TooLarge { len, max }.into())
        }
        Some(Err(Unchanged::NoRoom(NoRoom { len }))) => {
            let max = usize::try_from(shared.settings.responses_bytes).unwrap_or(usize::MAX);
            Err(InferError::TooLarge { len, max }.into())
        }
        None => Err(not_here(id)),
    }
}

/// Items that a seller can be told, each in full.
async fn checked(shared: &Shared, mut items: Vec<Value>) -> Result<Vec<Value>, Problem> {
    if items.len() > MOST_AT_ONCE {
        return Err(bad(&format!("at most {MOST_AT_ONCE} items at once")));
    }
    resolved(shared, &mut items, &[]).await?;
    items::messages(None, items.iter()).map_err(|error| bad(&error))?;
    Ok(items)
}

fn described(metadata: Option<Map<String, Value>>) -> Result<Map<String, Value>, Problem> {
    let metadata = metadata.unwrap_or_default();
    let fits = |(name, value): (&String, &Value)| {
        let value = value.as_str().map(|text| text.chars().count());
        name.chars().count() <= NAME && value.is_some_and(|len| len <= VALUE)
    };
    if metadata.len() > PAIRS || !metadata.iter().all(fits) {
        let most = format!(
            "`metadata`: at most {PAIRS} pairs, names of {NAME} characters, texts of {VALUE}"
        );
        return Err(bad(&most));
    }
    Ok(metadata)
}

/// A body; an empty one says nothing.
fn read<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Problem> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| bad(&error))
}

fn ids(item: Item) -> Result<(String, String), Problem> {
    let Path(ids) = item.map_err(|error| bad(&error.body_text()))?;
    Ok(ids)
}

fn no_item(id: &str) -> Problem {
    Problem::NotHere(format!("such item in the conversation `{id}`"))
}

fn not_here(id: &str) -> Problem {
    Problem::NotHere(format!("conversation `{id}`; it is not kept (any more)"))
}
