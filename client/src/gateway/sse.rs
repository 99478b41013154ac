//! An answer as server-sent events, in the words of a dialect; in OpenAI's, as the bytes came.
//!
//! Every stream ends in one of two ways: with the bill as a comment and exactly one `[DONE]`, or
//! with an error event and no `[DONE]`. Dropping the stream drops the answer, which cancels it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body as HttpBody, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use farthing_protocol::body::Body;
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::{Answer, Event, InferError};
use crate::gateway::Shared;
use crate::gateway::error::Problem;
use crate::gateway::exchange::{self, Bought, Settled};
use crate::gateway::inflight::Place;

/// Nothing new, but still there: a comment.
pub(in crate::gateway) const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// What a seller's own end of stream looks like; ours is written once, by us.
const DONE: &[u8] = b"[DONE]";

/// Whether the application asked for the chunk that holds only the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageChunk {
    /// `stream_options.include_usage` is true.
    Wanted,
    /// It is not; the chunk was asked for by the seller, for its own count.
    Unwanted,
}

/// The words in which a stream is told. A machine that is fed a seller's chunks and yields bytes.
pub(in crate::gateway) trait Dialect: Send + 'static {
    /// What a chunk becomes; nothing when the application is not to see it.
    ///
    /// # Errors
    /// [`Problem`] when the chunk cannot be told; the stream ends.
    fn data(&mut self, json: &[u8]) -> Result<Option<Bytes>, Problem>;

    /// Nothing new, but still there.
    fn silence(&self) -> Bytes;

    /// The end of a stream that broke.
    fn broken(&self, problem: &Problem) -> Bytes;

    /// The end of a whole one: the bill as a note, and all that is known of it.
    fn end(&mut self, note: &Value, settled: &Settled) -> Bytes;

    /// What is to be done after the end was worded, or what broke it, and before anybody reads it.
    fn keep(&mut self, broken: Option<&Problem>) -> impl Future<Output = ()> + Send {
        let _ = broken;
        async {}
    }
}

/// OpenAI's words: chunks as they came.
#[derive(Debug)]
pub(in crate::gateway) struct Chunks {
    usage: UsageChunk,
    /// The last chunk, where it should hold the usage.
    last: Vec<u8>,
}

impl Chunks {
    pub(in crate::gateway) const fn new(usage: UsageChunk) -> Self {
        Self {
            usage,
            last: Vec::new(),
        }
    }

    /// The chunk of usage that was asked for, in the receipt's numbers, where the seller's server
    /// has sent none.
    fn missing(&self, settled: &Settled) -> Option<Bytes> {
        if self.usage == UsageChunk::Unwanted {
            return None;
        }
        let used = settled.used()?;
        let last = Body::parse(&self.last).ok()?;
        if last.raw("usage").is_some() {
            return None;
        }
        let usage = json!({
            "prompt_tokens": used.prompt,
            "completion_tokens": used.completion,
            "total_tokens": u64::from(used.prompt) + u64::from(used.completion),
            "prompt_tokens_details": { "cached_tokens": used.cached },
        });
        let usage = usage.to_string();
        let chunk = last.with(&[("choices", "[]"), ("usage", &usage)]);
        Some(event_of(&chunk))
    }
}

impl Dialect for Chunks {
    fn data(&mut self, json: &[u8]) -> Result<Option<Bytes>, Problem> {
        if self.usage == UsageChunk::Wanted {
            json.clone_into(&mut self.last);
        } else if only_usage(json) {
            return Ok(None);
        }
        Ok(Some(event_of(json)))
    }

    fn silence(&self) -> Bytes {
        KEEP_ALIVE
    }

    fn broken(&self, problem: &Problem) -> Bytes {
        problem.event()
    }

    fn end(&mut self, note: &Value, settled: &Settled) -> Bytes {
        let usage = self.missing(settled).unwrap_or_default();
        let end = format!(": farthing {note}\n\ndata: [DONE]\n\n");
        [&usage[..], end.as_bytes()].concat().into()
    }
}

/// Whether it is a seller's own end of the stream.
pub(in crate::gateway) fn is_end(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(DONE)
}

/// The state of a stream.
struct Writer<D> {
    shared: Arc<Shared>,
    answer: Answer,
    /// The request's own, until it is answered.
    _place: Option<Place>,
    dialect: D,
    first: Option<Result<Event, InferError>>,
    /// When the last event came.
    heard: Instant,
    ended: bool,
}

impl<D> Drop for Writer<D> {
    fn drop(&mut self) {
        self.shared.metrics.gateway_streams_open.dec();
    }
}

/// A streamed answer, of which the first event is already there.
pub(in crate::gateway) fn respond(
    shared: &Arc<Shared>,
    bought: Bought,
    dialect: impl Dialect,
) -> Response {
    let mut headers = exchange::about(&bought.answer);
    headers.extend(head());
    let body = stream(Arc::clone(shared), bought, dialect);
    (headers, HttpBody::from_stream(body)).into_response()
}

/// What the head of every stream says.
pub(in crate::gateway) fn head() -> HeaderMap {
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    let fresh = HeaderValue::from_static("no-cache");
    HeaderMap::from_iter([(CONTENT_TYPE, kind), (CACHE_CONTROL, fresh)])
}

fn stream(
    shared: Arc<Shared>,
    bought: Bought,
    dialect: impl Dialect,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let Bought {
        answer,
        first,
        place,
    } = bought;
    shared.metrics.gateway_streams_open.inc();
    let writer = Writer {
        shared,
        answer,
        _place: place,
        dialect,
        first: Some(Ok(first)),
        heard: Instant::now(),
        ended: false,
    };
    futures::stream::unfold(writer, |mut writer| async move {
        let bytes = writer.next().await?;
        Some((Ok(bytes), writer))
    })
}

impl<D: Dialect> Writer<D> {
    /// The next bytes; `None` after the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        loop {
            let event = match self.first.take() {
                Some(event) => Some(event),
                None => match timeout(self.shared.settings.keep_alive, self.answer.next()).await {
                    Ok(event) => event,
                    Err(_) => return Some(self.silence().await),
                },
            };
            self.heard = Instant::now();
            match event {
                Some(Ok(Event::Data(json))) if is_end(&json) => {}
                Some(Ok(Event::Data(json))) => match self.dialect.data(&json) {
                    Ok(Some(bytes)) => return Some(bytes),
                    Ok(None) => {}
                    Err(problem) => return Some(self.fail(problem).await),
                },
                Some(Ok(Event::Paid(charged))) => return Some(self.end(charged.into()).await),
                Some(Ok(Event::End(bill))) => return Some(self.end(bill.into()).await),
                Some(Err(error)) => return Some(self.fail(error.into()).await),
                None => {
                    let error = InferError::Interrupted("it ended without a receipt".into());
                    return Some(self.fail(error.into()).await);
                }
            }
        }
    }

    /// Nothing came for a while.
    async fn silence(&mut self) -> Bytes {
        if self.heard.elapsed() >= self.shared.settings.deadline {
            return self.fail(Problem::Deadline).await;
        }
        self.dialect.silence()
    }

    async fn fail(&mut self, problem: Problem) -> Bytes {
        self.ended = true;
        let end = self.dialect.broken(&problem);
        self.dialect.keep(Some(&problem)).await;
        end
    }

    async fn end(&mut self, settled: Settled) -> Bytes {
        self.ended = true;
        let bill = settled.bill.as_deref();
        let mut note = json!({
            "request": self.answer.request.to_string(),
            "seller": self.answer.seller,
            "charged": settled.charged,
            "receipt_seq": bill.map(|bill| bill.receipt.receipt.seq),
        });
        if bill.is_some_and(|bill| !bill.earlier.is_empty()) {
            // It broke off, and others went on: those that were paid for it, in order.
            note["sellers"] = settled.sellers().map(|seller| json!(seller)).collect();
        }
        let end = self.dialect.end(&note, &settled);
        self.dialect.keep(None).await;
        end
    }
}

/// A document in full.
pub(in crate::gateway) fn json_of(value: &Value) -> Response {
    let kind = [(CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}

/// One event. A line break within the JSON begins a new `data:` line, so that a seller's bytes
/// stay within their event.
pub(in crate::gateway) fn event_of(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 8);
    let lines = json.split(|byte| matches!(byte, b'\n' | b'\r'));
    for line in lines.filter(|line| !line.is_empty()) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    Bytes::from(event)
}

/// Whether a chunk has no choices, only the usage.
pub(in crate::gateway) fn only_usage(json: &[u8]) -> bool {
    let Ok(body) = Body::parse(json) else {
        return false;
    };
    let choices = body.raw("choices").map(str::as_bytes);
    let empty = choices.is_some_and(|list| {
        let inner = list.strip_prefix(b"[").and_then(|l| l.strip_suffix(b"]"));
        inner.is_some_and(|inner| inner.trim_ascii().is_empty())
    });
    empty && body.raw("usage").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_cannot_leave_its_event() {
        let event = event_of(b"{\"a\":\r\n\r\n1}\n\ndata: [DONE]");
        assert_eq!(event, "data: {\"a\":\ndata: 1}\ndata: data: [DONE]\n\n");
    }

    #[test]
    fn only_a_chunk_without_choices_is_a_usage_chunk() {
        assert!(only_usage(
            br#"{"choices": [ ],"usage":{"prompt_tokens":1}}"#
        ));
        for other in [
            r#"{"choices":[{"index":0}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[],"usage":null}"#,
            r#"{"choices":[],"prompt_filter_results":[]}"#,
            r#"{"usage":{}}"#,
            "not json",
        ] {
            assert!(!only_usage(other.as_bytes()), "{other}");
        }
    }
}
