//! Any server with OpenAI's HTTP API. The only file of this crate that names reqwest.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use farthing_protocol::frame::REFUSAL_BODY_LIMIT;
use farthing_protocol::purchase::Endpoint;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, redirect};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::UpstreamConfig;
use crate::upstream::sse::{Decoder, Event};
use crate::upstream::{StartError, UpstreamError};

/// The most bytes of one event of a stream: an answer that comes in one piece, tool calls and all.
const MAX_EVENT: usize = 4 * 1024 * 1024;
/// The most bytes of a document: 2048 embeddings of 4096 numbers in base64.
const MAX_DOCUMENT: usize = 48 * 1024 * 1024;
/// The most bytes of a list of models.
const MAX_LIST: usize = 4 * 1024 * 1024;
/// The longest for a list of models. A server that loads or thinks may take its time.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of a finished response is awaited, so that its connection can be used again.
const LINGER: Duration = Duration::from_millis(5);
/// Idle connections kept; a busy node has as many as it has slots.
const POOL: usize = 256;
/// How long an idle connection is kept: less than the minute after which many servers close it.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// A server. Clones share connections.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    first: Duration,
    idle: Duration,
    total: Duration,
}

/// Without the key.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "openai::Client({})", self.base)
    }
}

impl Client {
    /// A client of the configured server; reads the key, connects to nothing.
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, StartError> {
        let http = reqwest::Client::builder()
            .default_headers(headers(config)?)
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(POOL)
            .pool_idle_timeout(POOL_IDLE)
            // A proxy from the environment would see every prompt.
            .no_proxy()
            // A redirect could carry prompt and key to another host.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|e| StartError::Http(cause(e)))?;
        Ok(Self {
            http,
            base: config.base_url.trim_end_matches('/').to_owned(),
            first: config.first_token_timeout,
            idle: config.idle_timeout,
            total: config.total_timeout,
        })
    }

    /// The models the server has.
    pub(super) async fn discover(&self) -> Result<Vec<String>, UpstreamError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let ask = async {
            let request = self.http.get(format!("{}/models", self.base));
            whole(accepted(request.send().await).await?, MAX_LIST).await
        };
        let list = timeout(LIST_TIMEOUT, ask).await;
        let list = list.map_err(|_| UpstreamError::Deadline)??;
        let list: List = serde_json::from_slice(&list)
            .map_err(|_| UpstreamError::Malformed("not a list of models"))?;
        Ok(list.data.into_iter().map(|model| model.id).collect())
    }

    /// One document.
    pub(super) async fn document(
        &self,
        endpoint: Endpoint,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, UpstreamError> {
        let ask = async { whole(self.send(endpoint, body).await?, MAX_DOCUMENT).await };
        let answer = timeout(deadline.min(self.total), ask).await;
        let document = answer.map_err(|_| UpstreamError::Deadline)??;
        if !looks_like_object(&document) {
            return Err(UpstreamError::Malformed("not a JSON object"));
        }
        if is_failure(&document) {
            return Err(UpstreamError::Reported(document));
        }
        Ok(document)
    }

    /// One stream. Returns when the server has accepted the request.
    pub(super) async fn events(
        &self,
        endpoint: Endpoint,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Events, UpstreamError> {
        let now = Instant::now();
        let end = now + deadline.min(self.total);
        let first = now + self.first;
        let mut response = match timeout_at(first.min(end), self.send(endpoint, body)).await {
            Ok(response) => response?,
            Err(_) if end <= first => return Err(UpstreamError::Deadline),
            Err(_) => return Err(UpstreamError::NoFirstEvent(self.first)),
        };
        if !is_event_stream(&response) {
            return Err(not_a_stream(response, end).await);
        }
        // They are parts of the buffer they were read into, and would hold it to the end.
        response.headers_mut().clear();
        Ok(Events {
            response: Some(response),
            decoder: Decoder::new(MAX_EVENT),
            first: self.first,
            idle: self.idle,
            until: Some(first),
            begun: false,
            end,
            done: false,
        })
    }

    async fn send(&self, endpoint: Endpoint, body: Bytes) -> Result<Response, UpstreamError> {
        let url = format!("{}{}", self.base, endpoint.path());
        let json = HeaderValue::from_static("application/json");
        let request = self.http.post(url).header(CONTENT_TYPE, json).body(body);
        accepted(request.send().await).await
    }
}

fn headers(config: &UpstreamConfig) -> Result<HeaderMap, StartError> {
    let mut headers = HeaderMap::new();
    let both = HeaderValue::from_static("application/json, text/event-stream");
    headers.insert(ACCEPT, both);
    if let Some(path) = &config.api_key_file {
        let text = std::fs::read_to_string(path).map_err(|source| StartError::KeyFile {
            path: path.clone(),
            source,
        })?;
        let key = text.lines().next().unwrap_or_default().trim();
        let value = HeaderValue::try_from(format!("Bearer {key}"));
        let mut value = value.map_err(|_| StartError::Key(path.clone()))?;
        if key.is_empty() {
            return Err(StartError::Key(path.clone()));
        }
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// The response, if it is one of success.
async fn accepted(sent: reqwest::Result<Response>) -> Result<Response, UpstreamError> {
    let mut response = sent.map_err(|e| {
        if e.is_connect() {
            UpstreamError::Unreachable(cause(e))
        } else {
            UpstreamError::Lost(cause(e))
        }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let mut body = BytesMut::new();
    while body.len() < REFUSAL_BODY_LIMIT
        && let Ok(Some(part)) = response.chunk().await
    {
        body.extend_from_slice(&part);
    }
    body.truncate(REFUSAL_BODY_LIMIT);
    Err(UpstreamError::Status {
        status: status.as_u16(),
        body: body.freeze(),
        retry_after,
    })
}

/// The whole body.
async fn whole(mut response: Response, max: usize) -> Result<Bytes, UpstreamError> {
    let mut body = BytesMut::new();
    while let Some(part) = response
        .chunk()
        .await
        .map_err(|e| UpstreamError::Lost(cause(e)))?
    {
        if body.len() + part.len() > max {
            return Err(UpstreamError::TooLarge(max));
        }
        body.extend_from_slice(&part);
    }
    Ok(body.freeze())
}

fn is_event_stream(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}

/// What a server says that was asked for a stream and sends none.
async fn not_a_stream(response: Response, end: Instant) -> UpstreamError {
    match timeout_at(end, whole(response, REFUSAL_BODY_LIMIT)).await {
        Ok(Ok(body)) if is_failure(&body) => UpstreamError::Reported(body),
        _ => UpstreamError::Malformed("asked for a stream, got a document"),
    }
}

fn looks_like_object(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"{")
}

/// True for `{"error":…}`: the form in which servers report a failure they met too late for a
/// status.
fn is_failure(json: &[u8]) -> bool {
    let key = json
        .trim_ascii_start()
        .strip_prefix(b"{")
        .and_then(|rest| rest.trim_ascii_start().strip_prefix(b"\"error\""));
    let value = key.and_then(|rest| rest.trim_ascii_start().strip_prefix(b":"));
    value.is_some_and(|rest| !rest.trim_ascii_start().starts_with(b"null"))
}

/// What went wrong at the bottom, without the URL.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// A stream's events: whole JSON objects, one at a time.
pub struct Events {
    /// Until the stream ended.
    response: Option<Response>,
    decoder: Decoder,
    first: Duration,
    idle: Duration,
    /// When patience ends for the event being awaited; none while none is.
    until: Option<Instant>,
    /// Whether an event came.
    begun: bool,
    end: Instant,
    /// Whether the server said that this is all.
    done: bool,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = self.response.is_none();
        f.debug_struct("Events")
            .field("begun", &self.begun)
            .field("over", &over)
            .finish_non_exhaustive()
    }
}

impl Events {
    /// The next event; none after the last, and then [`Events::is_done`] or what the choices said
    /// tells whether the stream was cut. Nothing follows an error. Cancel-safe: a wait that is
    /// dropped and taken up again neither loses an event nor starts anew.
    pub async fn next(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        let event = self.advance().await;
        self.until = None;
        match event {
            Ok(Some(event)) => {
                self.begun = true;
                Some(Ok(event))
            }
            Ok(None) => None,
            Err(error) => {
                self.response = None;
                Some(Err(error))
            }
        }
    }

    /// Whether the server said `[DONE]`. Some say it never.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            let event = self.decoder.next();
            match event.map_err(|_| UpstreamError::TooLarge(MAX_EVENT))? {
                Some(Event::Data(json)) => return Self::check(json).map(Some),
                Some(Event::Error(json)) => return Err(UpstreamError::Reported(json)),
                Some(Event::Done) => {
                    self.done = true;
                    self.close().await;
                    return Ok(None);
                }
                None => {}
            }
            let Some(part) = self.read().await? else {
                self.response = None;
                self.done |= self.decoder.finish() == Some(Event::Done);
                return Ok(None);
            };
            self.decoder.push(&part);
        }
    }

    /// The next piece, or none at the end.
    async fn read(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let Some(response) = &mut self.response else {
            return Ok(None);
        };
        let idle = self.idle;
        let until = *self.until.get_or_insert_with(|| Instant::now() + idle);
        match timeout_at(until.min(self.end), response.chunk()).await {
            Ok(Ok(part)) => Ok(part),
            // A broken connection ends a stream like a closed one: early.
            Ok(Err(_)) if self.begun => Err(UpstreamError::Cut),
            Ok(Err(error)) => Err(UpstreamError::Lost(cause(error))),
            Err(_) if self.end <= until => Err(UpstreamError::Deadline),
            Err(_) if self.begun => Err(UpstreamError::Stalled(self.idle)),
            Err(_) => Err(UpstreamError::NoFirstEvent(self.first)),
        }
    }

    fn check(json: Bytes) -> Result<Bytes, UpstreamError> {
        if !looks_like_object(&json) {
            return Err(UpstreamError::Malformed("an event is not a JSON object"));
        }
        if is_failure(&json) {
            return Err(UpstreamError::Reported(json));
        }
        Ok(json)
    }

    /// After `[DONE]`: reads the end of the response, so that its connection can be used again.
    async fn close(&mut self) {
        if let Some(mut response) = self.response.take() {
            let _whatever_follows = timeout(LINGER, response.chunk()).await;
        }
    }
}
