//! The control socket: what `farthing wallet` and its like ask a running gateway, as JSON over
//! HTTP on a Unix socket in the data directory, which only its owner can open.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};

use alloy::primitives::B256;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::{ChannelId, PayerSignature};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::gateway::{BindError, bounded};
use crate::report::{
    ActionError, ChannelAction, DepositWish, Permit2Wish, ReceiptQuery, RouteWish, StretchQuery,
    Word,
};

/// The socket's name within the data directory.
pub const SOCKET: &str = "control.sock";

/// An error on the socket: `{"error": …}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong and what to do.
    pub error: String,
}

/// The control socket, bound and not yet serving. Its file is removed at the end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    client: Client,
    path: PathBuf,
}

impl Control {
    /// Makes the socket in a data directory. One left behind by a crash is replaced; one that
    /// somebody serves is not.
    ///
    /// # Errors
    /// [`BindError::Control`].
    pub async fn bind(client: Client, data_dir: &FilePath) -> Result<Self, BindError> {
        let path = data_dir.join(SOCKET);
        let failed = |source| BindError::Control {
            path: path.clone(),
            source,
        };
        if UnixStream::connect(&path).await.is_ok() {
            return Err(failed(std::io::ErrorKind::AddrInUse.into()));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).map_err(failed)?;
        Ok(Self {
            listener,
            client,
            path,
        })
    }

    /// Serves until cancelled.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, until: CancellationToken) -> std::io::Result<()> {
        let stop = until.clone().cancelled_owned();
        let server = axum::serve(self.listener, routes(self.client)).with_graceful_shutdown(stop);
        let served = bounded(server.into_future(), until).await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket not removed");
        }
        served
    }
}

fn routes(client: Client) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/models", get(models))
        .route("/offers", get(offers))
        .route("/sellers", get(sellers))
        .route("/route", post(route))
        .route("/wallet", get(wallet))
        .route("/wallet/deposits", post(prepare))
        .route("/wallet/deposits/{id}", post(import))
        .route("/wallet/permit2", post(permit2))
        .route("/wallet/approvals", get(approvals))
        .route("/wallet/approvals/{id}", post(approve))
        .route("/channels", get(channels))
        .route("/channels/{id}", post(channel))
        .route("/receipts", post(receipts))
        .route("/receipts/books", get(books))
        .route("/receipts/stretch", post(stretch))
        .route("/receipts/{request}", get(receipt))
        .route("/payments", post(payments))
        .route("/payments/{request}", get(payment))
        .route("/receipts/{request}/evidence", post(evidence))
        .with_state(client)
}

fn told<T: Serialize>(result: Result<T, ActionError>) -> Response {
    match result {
        Ok(report) => Json(report).into_response(),
        Err(error) => {
            let status = match &error {
                ActionError::Unknown(_) => StatusCode::NOT_FOUND,
                ActionError::Refused(_) => StatusCode::CONFLICT,
                ActionError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                ActionError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let error = error.to_string();
            (status, Json(Fault { error })).into_response()
        }
    }
}

async fn health(State(client): State<Client>) -> Response {
    Json(client.health().await).into_response()
}

async fn models(State(client): State<Client>) -> Response {
    Json(client.models()).into_response()
}

async fn sellers(State(client): State<Client>) -> Response {
    Json(client.sellers()).into_response()
}

async fn offers(State(client): State<Client>) -> Response {
    Json(client.offers()).into_response()
}

async fn route(State(client): State<Client>, Json(wish): Json<RouteWish>) -> Response {
    told(client.route(&wish))
}

async fn wallet(State(client): State<Client>) -> Response {
    told(client.wallet().await)
}

async fn prepare(State(client): State<Client>, Json(wish): Json<DepositWish>) -> Response {
    told(client.prepare_deposit(wish).await)
}

async fn import(
    State(client): State<Client>,
    Path(id): Path<B256>,
    Json(signature): Json<PayerSignature>,
) -> Response {
    told(client.import_deposit(id, signature).await)
}

async fn permit2(State(client): State<Client>, Json(wish): Json<Permit2Wish>) -> Response {
    told(client.allow_permit2(wish).await)
}

async fn approvals(State(client): State<Client>) -> Response {
    Json(client.approvals()).into_response()
}

async fn approve(
    State(client): State<Client>,
    Path(id): Path<String>,
    Json(word): Json<Word>,
) -> Response {
    told(client.approve(&id, word).await)
}

async fn channels(State(client): State<Client>) -> Response {
    told(client.channels().await)
}

async fn channel(
    State(client): State<Client>,
    Path(id): Path<ChannelId>,
    Json(action): Json<ChannelAction>,
) -> Response {
    told(client.channel(id, action).await)
}

async fn receipts(State(client): State<Client>, Json(query): Json<ReceiptQuery>) -> Response {
    told(client.receipts(&query).await)
}

async fn books(State(client): State<Client>) -> Response {
    told(client.books().await)
}

async fn stretch(State(client): State<Client>, Json(query): Json<StretchQuery>) -> Response {
    told(client.stretch(query.channel, query.from).await)
}

async fn evidence(State(client): State<Client>, Path(request): Path<String>) -> Response {
    match request.parse() {
        Ok(request) => told(client.evidence(RequestId(request)).await),
        Err(_) => told::<()>(Err(ActionError::Unknown("such request id".into()))),
    }
}

async fn payments(State(client): State<Client>, Json(query): Json<ReceiptQuery>) -> Response {
    told(client.payments(&query).await)
}

async fn payment(State(client): State<Client>, Path(request): Path<RequestId>) -> Response {
    told(client.payment(request).await)
}

async fn receipt(State(client): State<Client>, Path(request): Path<RequestId>) -> Response {
    told(client.receipt(request).await)
}
