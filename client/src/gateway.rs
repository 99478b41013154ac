//! The gateway: OpenAI's, Anthropic's and OpenRouter's endpoints on the buyer's own machine. Path →
//! handler, nothing else; what a request means is decided behind [`Client::infer`].
//!
//! Content is never logged. A listener ends when its token is cancelled; answers under way have
//! [`GRACE`] to finish.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::Endpoint;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, InferError};
use crate::config;
use crate::gateway::error::Problem;
use crate::gateway::inflight::InFlight;
use crate::gateway::keys::Keys;
use crate::gateway::responses::background::Background;
use crate::gateway::responses::store::{Bounds, Store};
use crate::gateway::responses::{Named, conversations};
use crate::metrics::{Answered, Metrics};

pub mod error;
pub mod keys;
pub mod inflight;
pub mod exchange;
pub mod chat;
mod effort;
pub mod sse;
pub mod openai;
pub mod anthropic;
pub mod responses;
pub mod openrouter;
mod requests;
mod api;
pub mod control;

/// How long answers under way may go on after the gateway is told to stop.
pub const GRACE: Duration = Duration::from_secs(10);

/// What all paths take and give, as an OpenAPI document.
pub const DESCRIPTION: &str = include_str!("gateway/openapi.json");

/// Why the gateway does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} (`gateway.listen`): {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The keys cannot be read.
    #[error("cannot read the API keys in {path} (`gateway.api_keys_file`): {reason}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Others could spend the buyer's money.
    #[error("{address} can be reached by others: set `gateway.api_keys_file`")]
    Public {
        /// The address.
        address: SocketAddr,
    },
    /// The control socket cannot be made.
    #[error("cannot make the control socket {path}: {source}")]
    Control {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What every handler needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) settings: config::Gateway,
    pub(crate) metrics: Metrics,
    pub(crate) in_flight: InFlight,
    pub(crate) responses: Store,
    pub(crate) background: Background,
}

/// The endpoint, bound and not yet serving.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Gateway {
    /// Takes the address and reads the keys.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(
        client: Client,
        settings: config::Gateway,
        metrics: Metrics,
    ) -> Result<Self, BindError> {
        let address = settings.listen;
        let keys = match &settings.api_keys_file {
            Some(path) => Keys::read(path).map_err(|reason| BindError::Keys {
                path: path.clone(),
                reason,
            })?,
            None if address.ip().is_loopback() => Keys::none(),
            None => return Err(BindError::Public { address }),
        };
        let taken = |source| BindError::Address { address, source };
        let listener = TcpListener::bind(address).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let bounds = Bounds {
            most: settings.responses_kept,
            bytes: settings.responses_bytes,
            age: settings.responses_for,
        };
        let responses = Store::new(client.data_dir(), bounds, client.clock());
        let shared = Arc::new(Shared {
            client,
            responses,
            background: Background::default(),
            keys,
            settings,
            metrics,
            in_flight: InFlight::default(),
        });
        Ok(Self {
            listener,
            address,
            shared,
        })
    }

    /// Where it listens; a port of 0 is resolved.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, until: CancellationToken) -> std::io::Result<()> {
        let listener = self.listener.tap_io(|stream| {
            // A token must not wait for the next one to fill a packet.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY not set");
            }
        });
        let stop = until.clone().cancelled_owned();
        let tending = tokio::spawn(self.shared.responses.clone().tend(until.clone()));
        let shared = Arc::clone(&self.shared);
        let server = axum::serve(listener, routes(self.shared)).with_graceful_shutdown(stop);
        // A listener that fails ends what is in the background too.
        let ending = until.child_token();
        let serving = async {
            let served = bounded(server.into_future(), until).await;
            ending.cancel();
            served
        };
        let (served, ()) = tokio::join!(serving, shared.background.end(ending.clone()));
        tending.abort();
        served
    }
}

/// Runs a server to its end, which comes at most [`GRACE`] after the cancellation.
async fn bounded(
    server: impl Future<Output = std::io::Result<()>>,
    until: CancellationToken,
) -> std::io::Result<()> {
    let patience = async {
        until.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served,
        () = patience => Ok(()),
    }
}

fn routes(shared: Arc<Shared>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/moderations", post(moderations))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/responses", post(create_response))
        .route("/v1/responses/input_tokens", post(count_input))
        .route("/v1/responses/compact", post(compact_response))
        .route(
            "/v1/responses/{id}",
            get(retrieve_response).delete(remove_response),
        )
        .route("/v1/responses/{id}/cancel", post(cancel_response))
        .route("/v1/responses/{id}/input_items", get(input_items))
        .merge(conversations::routes())
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(description))
        .merge(api::routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), admit));
    Router::new()
        .route("/health", get(health))
        .method_not_allowed_fallback(wrong_method)
        .merge(guarded)
        .layer(from_fn(requests::named))
        .with_state(shared)
}

/// Every route but `/health` asks for a key, if there are keys.
async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match shared.keys.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(denied) => {
            let response = refused(Problem::Denied(denied), &request);
            shared.answered("denied", response)
        }
    }
}

/// A problem in the dialect that the request is made in.
fn refused(problem: Problem, request: &Request) -> Response {
    let path = request.uri().path();
    if anthropic::is_spoken(path, request.headers()) {
        anthropic::refused(&problem)
    } else if openrouter::is_spoken(path) {
        openrouter::refused(&problem)
    } else {
        problem.into_response()
    }
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = openai::buy(&shared, Endpoint::Chat, request).await;
    shared.answered("/v1/chat/completions", answer.into_response())
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = openai::buy(&shared, Endpoint::Completions, request).await;
    shared.answered("/v1/completions", answer.into_response())
}

async fn embeddings(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = openai::buy(&shared, Endpoint::Embeddings, request).await;
    shared.answered("/v1/embeddings", answer.into_response())
}

async fn moderations(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = openai::buy(&shared, Endpoint::Moderations, request).await;
    shared.answered("/v1/moderations", answer.into_response())
}

async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = anthropic::messages(&shared, request).await;
    shared.answered("/v1/messages", answer)
}

async fn count_tokens(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = anthropic::count_tokens(&shared, request).await;
    shared.answered("/v1/messages/count_tokens", answer)
}

async fn create_response(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = responses::create(&shared, request).await;
    shared.answered("/v1/responses", answer.into_response())
}

async fn count_input(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let answer = responses::count(&shared, request).await;
    shared.answered("/v1/responses/input_tokens", answer.into_response())
}

async fn compact_response(State(shared): State<Arc<Shared>>) -> Response {
    let answer = responses::compact().into_response();
    shared.answered("/v1/responses/compact", answer)
}

async fn retrieve_response(State(shared): State<Arc<Shared>>, id: Named, uri: Uri) -> Response {
    let answer = responses::retrieve(&shared, id, &uri).await;
    shared.answered("/v1/responses/{id}", answer.into_response())
}

async fn remove_response(State(shared): State<Arc<Shared>>, id: Named) -> Response {
    let answer = responses::remove(&shared, id).await;
    shared.answered("/v1/responses/{id}", answer.into_response())
}

async fn cancel_response(State(shared): State<Arc<Shared>>, id: Named) -> Response {
    let answer = responses::cancel(&shared, id).await;
    shared.answered("/v1/responses/{id}/cancel", answer.into_response())
}

async fn input_items(State(shared): State<Arc<Shared>>, id: Named, uri: Uri) -> Response {
    let answer = responses::input_items(&shared, id, &uri).await;
    shared.answered("/v1/responses/{id}/input_items", answer.into_response())
}

async fn models(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let list = match anthropic::is_spoken("", request.headers()) {
        true => anthropic::models(&shared),
        false => openai::models(&shared).await,
    };
    shared.answered("/v1/models", list)
}

async fn model(State(shared): State<Arc<Shared>>, id: Named, headers: HeaderMap) -> Response {
    let Ok(Path(id)) = id else {
        let unreadable = InferError::BadRequest("the model's id is no text".to_owned());
        return shared.answered("/v1/models/{id}", Problem::from(unreadable).into_response());
    };
    let one = match anthropic::is_spoken("", &headers) {
        true => anthropic::model(&shared, id),
        false => openai::model(&shared, id),
    };
    shared.answered("/v1/models/{id}", one)
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    openai::health(&shared.client.health().await)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let standing = shared.client.standing();
    let atoms = |amount: Amount| i64::try_from(amount.get()).unwrap_or(i64::MAX);
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let metrics = &shared.metrics;
    metrics.wallet_charged_atoms.set(atoms(standing.charged));
    metrics.wallet_promised_atoms.set(atoms(standing.promised));
    metrics.channels_open.set(count(standing.channels));
    metrics.channels_unspent_atoms.set(atoms(standing.unspent));
    metrics.market_sellers.set(count(standing.sellers));
    ([(CONTENT_TYPE, kind)], metrics.text()).into_response()
}

async fn description() -> Response {
    ([(CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

async fn unknown_path(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let response = refused(Problem::UnknownPath { path }, &request);
    shared.answered("unknown", response)
}

async fn wrong_method(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let method = request.method().to_string();
    let response = refused(Problem::Method { method }, &request);
    shared.answered("unknown", response)
}

impl Shared {
    /// Counts an answer.
    fn answered(&self, route: &'static str, response: Response) -> Response {
        let status = response.status().as_u16();
        let label = Answered { route, status };
        self.metrics.gateway_requests.get_or_create(&label).inc();
        if status >= 500 {
            tracing::info!(route, status, "a request failed");
        }
        response
    }
}

#[cfg(test)]
mod tests;
