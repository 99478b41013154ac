//! The one table from what went wrong to what the libraries of each dialect expect to see: one
//! status, one word per dialect, one answer to whether trying again can help. The shapes around
//! them are the dialects' own; OpenAI's, which speaks wherever no other dialect does, is here.

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::{Body, BodyError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::client::{Attempt, Errand, InferError};
use crate::gateway::keys::Denied;
use crate::report::ActionError;

/// Tells OpenAI's libraries whether trying again can help.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The wait in milliseconds, for libraries that read it.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What can go wrong between a request and its answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Problem {
    /// There is no answer, or no more of it.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The body cannot be read as a request.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Turned away at the door.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No such path.
    #[error("there is no {path} here; the endpoints are below /v1 and /api/v1")]
    UnknownPath {
        /// The path.
        path: String,
    },
    /// What is asked for by its name is not there.
    #[error("there is no {0}")]
    NotHere(String),
    /// The response that a request goes on from is not there.
    #[error("`previous_response_id`: there is no response `{id}`; it is not kept (any more)")]
    NoPrevious {
        /// Its id, or that of one before it.
        id: String,
    },
    /// The path knows another method.
    #[error("{method} is not allowed here")]
    Method {
        /// The method.
        method: String,
    },
    /// The request did not arrive in time, or not whole.
    #[error("the request body did not arrive: {0}")]
    NotArrived(&'static str),
    /// The same request, by its name, is being answered.
    #[error("this request (`Idempotency-Key`) is under way; it is not bought twice")]
    InFlight,
    /// No more responses may be under way in the background.
    #[error("as many responses are under way in the background as may be (`gateway.background`)")]
    Crowded,
    /// Nothing more is begun.
    #[error("the gateway is being stopped")]
    Stopping,
    /// Nothing came for as long as the gateway waits.
    #[error("no seller answered within the gateway's deadline (`gateway.deadline`)")]
    Deadline,
}

/// Whether a library should try again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// As the status says.
    Usual,
    /// All that could be tried was tried, or it would fail the same way.
    No,
    /// After so many milliseconds.
    After(u64),
}

/// What kind of problem it is: each dialect has a word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Unprocessable,
    Authentication,
    Permission,
    NotFound,
    TooLarge,
    NotArrived,
    Quota,
    Busy,
    Overloaded,
    Failed,
    Late,
    Internal,
}

impl Kind {
    /// What OpenAI's, OpenRouter's and Anthropic's libraries call it.
    const fn words(self) -> [&'static str; 3] {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Request => [REQUEST, "invalid_request", REQUEST],
            Self::Unprocessable => [REQUEST, "unprocessable", REQUEST],
            Self::Authentication => [REQUEST, "authentication", "authentication_error"],
            Self::Permission => [REQUEST, "permission_denied", "permission_error"],
            Self::NotFound => [REQUEST, "not_found", "not_found_error"],
            Self::TooLarge => [REQUEST, "payload_too_large", "request_too_large"],
            Self::NotArrived => [REQUEST, "timeout", "timeout_error"],
            Self::Quota => ["insufficient_quota", "payment_required", "billing_error"],
            Self::Busy => [
                "rate_limit_error",
                "rate_limit_exceeded",
                "rate_limit_error",
            ],
            Self::Overloaded => [SERVER, "provider_overloaded", "overloaded_error"],
            Self::Failed => [SERVER, "provider_unavailable", "api_error"],
            Self::Late => [SERVER, "timeout", "timeout_error"],
            Self::Internal => [SERVER, "server", "api_error"],
        }
    }

    /// Of a status that a model server answered with.
    const fn of(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            408 => Self::NotArrived,
            413 => Self::TooLarge,
            422 => Self::Unprocessable,
            429 => Self::Busy,
            _ => Self::Request,
        }
    }
}

/// A row of the table.
struct Row {
    status: u16,
    kind: Kind,
    /// Our own name for it.
    code: &'static str,
    retry: Retry,
}

const fn row(status: u16, kind: Kind, code: &'static str, retry: Retry) -> Row {
    Row {
        status,
        kind,
        code,
        retry,
    }
}

impl Problem {
    const fn row(&self) -> Row {
        use Retry::{After, No, Usual};
        match self {
            Self::Infer(error) => infer(error),
            Self::Body(_) => row(400, Kind::Request, "invalid_request", Usual),
            Self::Denied(Denied::Missing | Denied::Unknown) => {
                row(401, Kind::Authentication, "invalid_api_key", Usual)
            }
            Self::Denied(Denied::Foreign) => row(403, Kind::Permission, "foreign_origin", Usual),
            Self::UnknownPath { .. } => row(404, Kind::NotFound, "unknown_path", Usual),
            Self::NotHere(_) => row(404, Kind::NotFound, "not_found", Usual),
            Self::NoPrevious { .. } => {
                row(400, Kind::Request, "previous_response_not_found", Usual)
            }
            Self::Method { .. } => row(405, Kind::Request, "method_not_allowed", Usual),
            Self::NotArrived(_) => row(408, Kind::NotArrived, "request_timeout", Usual),
            Self::InFlight => row(409, Kind::Request, "in_flight", After(1_000)),
            Self::Crowded => row(429, Kind::Busy, "background_full", After(5_000)),
            Self::Stopping => row(503, Kind::Overloaded, "stopping", Usual),
            Self::Deadline => row(504, Kind::Late, "deadline", No),
        }
    }

    /// `{"message", "type", "param", "code"}`.
    pub(in crate::gateway) fn detail(&self) -> serde_json::Value {
        let row = self.row();
        let param = match self {
            Self::Body(BodyError::Field { field, .. }) => Some(*field),
            Self::Infer(InferError::UnknownModel { .. }) => Some("model"),
            Self::NoPrevious { .. } => Some("previous_response_id"),
            _ => None,
        };
        let [kind, ..] = row.kind.words();
        let mut detail = json!({
            "message": self.to_string(),
            "type": kind,
            "param": param,
            "code": row.code,
        });
        let one = |attempt: &Attempt| {
            json!({
                "seller": attempt.seller.short(), "status": attempt.status,
                "reason": attempt.reason,
            })
        };
        let attempts = self.attempts();
        if !attempts.is_empty() {
            detail["attempts"] = attempts.iter().map(one).collect();
        }
        detail
    }

    /// The sellers that were tried in vain, and what went wrong: no addresses.
    pub(in crate::gateway) fn attempts(&self) -> &[Attempt] {
        match self {
            Self::Infer(error) => error.attempts(),
            _ => &[],
        }
    }

    /// The error as the last event of a stream. OpenAI's libraries raise it; a `[DONE]` does not
    /// follow, so that nobody takes the answer for whole.
    #[must_use]
    pub fn event(&self) -> Bytes {
        let text = format!("data: {}\n\n", json!({ "error": self.detail() }));
        Bytes::from(text)
    }

    /// The model server's own words, where they are meant for the application.
    fn upstream(&self) -> Option<(u16, Bytes)> {
        let Self::Infer(InferError::Upstream { status, body }) = self else {
            return None;
        };
        let shaped = Body::parse(body).is_ok_and(|body| body.raw("error").is_some());
        (is_for_the_application(*status) && shaped).then(|| (*status, body.clone()))
    }
}

/// 401, 402, 403 and 407 are between the seller and its server.
const fn is_for_the_application(status: u16) -> bool {
    matches!(status, 400 | 404..=406 | 408..=499)
}

const fn infer(error: &InferError) -> Row {
    use Retry::{After, No, Usual};
    match error {
        InferError::BadRequest(_) => row(400, Kind::Request, "invalid_request", Usual),
        InferError::TooLarge { .. } => row(413, Kind::TooLarge, "payload_too_large", Usual),
        InferError::UnknownModel { .. } => row(404, Kind::NotFound, "model_not_found", Usual),
        InferError::NoSeller { .. } => row(503, Kind::Overloaded, "no_seller", No),
        InferError::SpendLimit(_) => row(402, Kind::Quota, "spend_limit_reached", No),
        InferError::Errand(Errand::Approval(_)) => row(402, Kind::Quota, "approval_required", No),
        InferError::Errand(Errand::EmptyWallet { .. }) => row(402, Kind::Quota, "wallet_empty", No),
        InferError::Chain(_) => row(503, Kind::Overloaded, "chain_unavailable", Usual),
        InferError::Upstream { status, .. } if is_for_the_application(*status) => {
            row(*status, Kind::of(*status), "upstream_refused", No)
        }
        InferError::Upstream { .. } => row(502, Kind::Failed, "upstream_failed", No),
        InferError::Busy { retry_after_ms, .. } => {
            row(429, Kind::Busy, "sellers_busy", After(*retry_after_ms))
        }
        InferError::Failed { .. } => row(502, Kind::Failed, "sellers_failed", No),
        // Part of it is paid: trying again is the application's decision.
        InferError::Interrupted(_) => row(502, Kind::Failed, "interrupted", No),
        InferError::Internal(_) => row(500, Kind::Internal, "internal", No),
    }
}

/// What a model server tells people.
#[derive(Deserialize)]
struct Said {
    message: String,
}

/// How a model server calls an error.
#[derive(Deserialize)]
struct Named {
    code: Option<String>,
}

impl From<ActionError> for Problem {
    fn from(error: ActionError) -> Self {
        match error {
            ActionError::Unknown(what) => Self::NotHere(what),
            ActionError::Refused(reason) => InferError::BadRequest(reason).into(),
            ActionError::Unavailable(reason) => InferError::Chain(reason).into(),
            ActionError::Internal(reason) => InferError::Internal(reason).into(),
        }
    }
}

impl Problem {
    /// The status that says what kind of problem it is.
    pub(in crate::gateway) fn status(&self) -> u16 {
        self.upstream()
            .map_or(self.row().status, |(status, _)| status)
    }

    /// OpenRouter's word for it.
    pub(in crate::gateway) const fn openrouter(&self) -> &'static str {
        let [_, word, _] = self.row().kind.words();
        word
    }

    /// Anthropic's word for it.
    pub(in crate::gateway) const fn anthropic(&self) -> &'static str {
        let [.., word] = self.row().kind.words();
        word
    }

    /// Our own name for it.
    pub(in crate::gateway) const fn code(&self) -> &'static str {
        self.row().code
    }

    /// What the model server calls it, where its words are meant for the application.
    pub(in crate::gateway) fn theirs(&self) -> Option<String> {
        self.upstream_error::<Named>()?.code
    }

    /// What to tell a person: the model server's own words, where they are meant for them.
    pub(in crate::gateway) fn message(&self) -> String {
        let theirs = self.upstream_error::<Said>().map(|said| said.message);
        theirs.unwrap_or_else(|| self.to_string())
    }

    fn upstream_error<T: DeserializeOwned>(&self) -> Option<T> {
        let (_, body) = self.upstream()?;
        Body::parse(&body).ok()?.get("error").ok()?
    }

    /// A response with this body, and what it says about trying again.
    pub(in crate::gateway) fn respond(&self, body: Bytes) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        let kind = [(CONTENT_TYPE, "application/json")];
        let mut response = (status, kind, body).into_response();
        let headers = response.headers_mut();
        match self.row().retry {
            Retry::Usual => {}
            Retry::No => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Retry::After(millis) => {
                headers.insert(RETRY_AFTER, millis.div_ceil(1000).into());
                headers.insert(RETRY_AFTER_MS, millis.into());
            }
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = match self.upstream() {
            Some((_, body)) => body,
            None => Bytes::from(json!({ "error": self.detail() }).to_string()),
        };
        self.respond(body)
    }
}
