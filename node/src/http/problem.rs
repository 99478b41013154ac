//! The one table from what went wrong to what an OpenAI library expects to see.

use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::Body;
use farthing_protocol::payment::{ChannelState, Reason, VoucherState};
use farthing_protocol::purchase::{Refusal, VoucherFault};
use serde_json::{Value, json};

use crate::http::turns::Busy;
use crate::shop::RETRY_AFTER_MS;

/// Tells OpenAI's libraries whether trying again can help.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request that may be sold is not.
#[derive(Debug)]
pub(in crate::http) enum Denied {
    /// The payment is not taken.
    Payment(Reason),
    /// The voucher does not follow what was charged: what was.
    Behind(Reason, Box<Standing>),
    /// The purchase is refused; nothing is charged.
    Refused(Refusal),
}

/// What we hold of a channel, and the proof of it.
#[derive(Debug)]
pub(in crate::http) struct Standing {
    pub(in crate::http) channel: ChannelState,
    pub(in crate::http) voucher: Option<VoucherState>,
}

impl From<Reason> for Denied {
    fn from(reason: Reason) -> Self {
        Self::Payment(reason)
    }
}

impl From<Busy> for Denied {
    fn from(_: Busy) -> Self {
        Self::Payment(Reason::BatchBusy)
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoChannel => Self::Payment(Reason::BatchNotFound),
            Refusal::Duplicate => Self::Payment(Reason::BatchBusy),
            Refusal::CostCeiling { .. } => Self::Payment(Reason::BatchChargeExceeds),
            Refusal::Voucher(VoucherFault::OverDeposit { .. }) => {
                Self::Payment(Reason::BatchExceedsBalance)
            }
            Refusal::Voucher(_) => Self::Payment(Reason::BatchSignature),
            other => Self::Refused(other),
        }
    }
}

/// What keeps a request from being looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum Problem {
    /// No such path.
    #[error("there is no {0} here; the endpoints are below /v1")]
    UnknownPath(String),
    /// The path knows another method.
    #[error("{0} is not allowed here")]
    Method(String),
    /// The body did not arrive.
    #[error("the request body did not arrive: {0}")]
    NotArrived(&'static str),
    /// Too many requests at once.
    #[error("too many requests at this moment; try again")]
    Full,
    /// Too many requests of one client at once.
    #[error("too many requests from your address at this moment; try again")]
    Crowded,
    /// The payment's header is too long.
    #[error(
        "the payment header has more than the {} bytes that are read",
        farthing_protocol::payment::header::HEADER_LIMIT
    )]
    LongHeader,
    /// A refund is asked for by GET, and nothing else is.
    #[error("only a refund is asked for by GET; a purchase is a POST")]
    OnlyRefund,
    /// The purchase is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A row of the table.
struct Row {
    status: u16,
    kind: &'static str,
    code: &'static str,
    /// Milliseconds until trying again can help.
    retry: Option<u64>,
}

const fn row(status: u16, kind: &'static str, code: &'static str) -> Row {
    Row {
        status,
        kind,
        code,
        retry: None,
    }
}

const REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Problem {
    const fn row(&self) -> Row {
        match self {
            Self::UnknownPath(_) => row(404, REQUEST, "unknown_path"),
            Self::Method(_) => row(405, REQUEST, "method_not_allowed"),
            Self::NotArrived(_) => row(408, REQUEST, "request_timeout"),
            Self::LongHeader => row(431, REQUEST, "payment_header_too_large"),
            Self::OnlyRefund => row(400, REQUEST, "invalid_request"),
            Self::Crowded => Row {
                retry: Some(RETRY_AFTER_MS),
                ..row(429, "rate_limit_error", "too_many_requests")
            },
            Self::Full => Row {
                retry: Some(RETRY_AFTER_MS),
                ..row(503, SERVER, "overloaded")
            },
            Self::Refused(refusal) => refused(refusal),
        }
    }

    /// `{"message", "type", "param", "code"}`.
    fn detail(&self) -> Value {
        let row = self.row();
        let param = matches!(self, Self::Refused(Refusal::UnknownModel)).then_some("model");
        json!({
            "message": self.to_string(),
            "type": row.kind,
            "param": param,
            "code": row.code,
        })
    }

    /// The model server's own words, where they are meant for the client.
    fn upstream(&self) -> Option<(u16, Bytes)> {
        let Self::Refused(Refusal::Upstream { status, body }) = self else {
            return None;
        };
        // 401, 402, 403 and 407 are between us and our server.
        let theirs = matches!(*status, 400 | 404..=406 | 408..=499);
        let shaped = Body::parse(body).is_ok_and(|body| body.raw("error").is_some());
        (theirs && shaped).then(|| (*status, body.clone()))
    }
}

const fn refused(refusal: &Refusal) -> Row {
    match refusal {
        Refusal::UnknownModel => row(404, REQUEST, "model_not_found"),
        Refusal::Endpoint => row(404, REQUEST, "model_not_on_endpoint"),
        Refusal::BadRequest(_) => row(400, REQUEST, "invalid_request"),
        Refusal::TooLarge { .. } => row(413, REQUEST, "payload_too_large"),
        Refusal::Busy { retry_after_ms } => Row {
            retry: Some(*retry_after_ms),
            ..row(429, "rate_limit_error", "busy")
        },
        Refusal::Upstream { status, .. } => match *status {
            400 | 404..=406 | 408..=499 => row(*status, REQUEST, "upstream_refused"),
            _ => row(502, SERVER, "upstream_failed"),
        },
        Refusal::Unavailable(_) | Refusal::StaleOffer => row(503, SERVER, "unavailable"),
        Refusal::CostCeiling { .. }
        | Refusal::NoChannel
        | Refusal::Voucher(_)
        | Refusal::Duplicate => row(402, REQUEST, "payment_not_taken"),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let row = self.row();
        let (status, body) = self.upstream().unwrap_or_else(|| {
            let body = json!({ "error": self.detail() });
            (row.status, Bytes::from(body.to_string()))
        });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(millis) = row.retry {
            headers.insert(RETRY_AFTER, millis.div_ceil(1000).into());
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
        }
        response
    }
}
