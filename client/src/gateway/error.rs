//! The one table from what went wrong to what an OpenAI library expects to see.

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::{Body, BodyError};
use serde::Deserialize;
use serde_json::json;

use crate::client::{Attempt, Break, Errand, InferError};
use crate::gateway::keys::Denied;

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
    #[error("there is no {path} here; the endpoints are below /v1")]
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

/// A row of the table.
struct Row {
    status: u16,
    kind: &'static str,
    code: &'static str,
    retry: Retry,
}

const fn row(status: u16, kind: &'static str, code: &'static str, retry: Retry) -> Row {
    Row {
        status,
        kind,
        code,
        retry,
    }
}

const REQUEST: &str = "invalid_request_error";
const QUOTA: &str = "insufficient_quota";
const SERVER: &str = "server_error";

impl Problem {
    const fn row(&self) -> Row {
        match self {
            Self::Infer(error) => infer(error),
            Self::Body(_) => row(400, REQUEST, "invalid_request", Retry::Usual),
            Self::Denied(Denied::Missing | Denied::Unknown) => {
                row(401, REQUEST, "invalid_api_key", Retry::Usual)
            }
            Self::Denied(Denied::Foreign) => row(403, REQUEST, "foreign_origin", Retry::Usual),
            Self::UnknownPath { .. } => row(404, REQUEST, "unknown_path", Retry::Usual),
            Self::NotHere(_) => row(404, REQUEST, "not_found", Retry::Usual),
            Self::NoPrevious { .. } => {
                row(400, REQUEST, "previous_response_not_found", Retry::Usual)
            }
            Self::Method { .. } => row(405, REQUEST, "method_not_allowed", Retry::Usual),
            Self::NotArrived(_) => row(408, REQUEST, "request_timeout", Retry::Usual),
            Self::InFlight => row(409, REQUEST, "in_flight", Retry::After(1_000)),
            Self::Deadline => row(504, SERVER, "deadline", Retry::No),
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
        let mut detail = json!({
            "message": self.to_string(),
            "type": row.kind,
            "param": param,
            "code": row.code,
        });
        if let Some(attempts) = self.attempts() {
            detail["attempts"] = attempts;
        }
        detail
    }

    /// Who was tried, and what went wrong: no addresses.
    fn attempts(&self) -> Option<serde_json::Value> {
        let (Self::Infer(InferError::Failed { attempts })
        | Self::Infer(InferError::Interrupted(Break { attempts, .. }))) = self
        else {
            return None;
        };
        let one = |attempt: &Attempt| json!({ "seller": attempt.seller.short(), "reason": attempt.reason });
        Some(attempts.iter().map(one).collect())
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
        // 401, 402, 403 and 407 are between the seller and its server.
        let ours = matches!(*status, 400 | 404..=406 | 408..=499);
        let shaped = Body::parse(body).is_ok_and(|body| body.raw("error").is_some());
        (ours && shaped).then(|| (*status, body.clone()))
    }
}

const fn infer(error: &InferError) -> Row {
    match error {
        InferError::BadRequest(_) => row(400, REQUEST, "invalid_request", Retry::Usual),
        InferError::TooLarge { .. } => row(413, REQUEST, "payload_too_large", Retry::Usual),
        InferError::UnknownModel { .. } => row(404, REQUEST, "model_not_found", Retry::Usual),
        InferError::NoSeller { .. } => row(503, SERVER, "no_seller", Retry::No),
        InferError::SpendLimit(_) => row(402, QUOTA, "spend_limit_reached", Retry::No),
        InferError::Errand(Errand::Approval(_)) => row(402, QUOTA, "approval_required", Retry::No),
        InferError::Errand(Errand::EmptyWallet { .. }) => {
            row(402, QUOTA, "wallet_empty", Retry::No)
        }
        InferError::Chain(_) => row(503, SERVER, "chain_unavailable", Retry::Usual),
        InferError::Upstream { status, .. } => match *status {
            400 | 404..=406 | 408..=499 => row(*status, REQUEST, "upstream_refused", Retry::No),
            _ => row(502, SERVER, "upstream_failed", Retry::No),
        },
        InferError::Busy { retry_after_ms } => {
            let retry = Retry::After(*retry_after_ms);
            row(429, "rate_limit_error", "sellers_busy", retry)
        }
        InferError::Failed { .. } => row(502, SERVER, "sellers_failed", Retry::No),
        // Part of it is paid: trying again is the application's decision.
        InferError::Interrupted(_) => row(502, SERVER, "interrupted", Retry::No),
        InferError::Internal(_) => row(500, SERVER, "internal", Retry::No),
    }
}

impl Problem {
    /// The status that says what kind of problem it is.
    pub(in crate::gateway) fn status(&self) -> u16 {
        self.upstream()
            .map_or(self.row().status, |(status, _)| status)
    }

    /// What to tell a person: the model server's own words, where they are meant for them.
    pub(in crate::gateway) fn message(&self) -> String {
        #[derive(Deserialize)]
        struct Theirs {
            message: String,
        }
        let theirs = self.upstream().and_then(|(_, body)| {
            let error: Theirs = Body::parse(&body).ok()?.get("error").ok()??;
            Some(error.message)
        });
        theirs.unwrap_or_else(|| self.to_string())
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
