//! Every request has a name: in the head of its answer, and in whatever is logged meanwhile.
//!
//! An answer that was bought is named after its purchase, as its receipt is; every other one
//! after the request alone.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::HeaderName;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

use crate::gateway::anthropic;
use crate::gateway::exchange::REQUEST_ID;

/// The header in which Anthropic's libraries look for it.
const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");

/// Names a request, and its answer if that has no name yet.
pub(in crate::gateway) async fn named(request: Request, next: Next) -> Response {
    let name = name();
    let is_anthropic = anthropic::is_spoken(request.uri().path(), request.headers());
    let span = tracing::info_span!("http", request = name);
    let mut response = next.run(request).instrument(span).await;
    let headers = response.headers_mut();
    if !headers.contains_key(REQUEST_ID)
        && let Ok(value) = HeaderValue::from_str(&name)
    {
        headers.insert(REQUEST_ID, value);
    }
    if is_anthropic && let Some(id) = headers.get(REQUEST_ID).cloned() {
        headers.insert(ANTHROPIC_ID, id);
    }
    response
}

#[expect(
    clippy::disallowed_methods,
    reason = "a name that no other request has"
)]
fn name() -> String {
    format!("req_{:032x}", rand::random::<u128>())
}
