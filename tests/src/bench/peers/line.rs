//! One connection of the load: hyper's, without a pool or a redirect, so that the load costs little
//! beside what is measured.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::bench::BenchError;
use crate::bench::peers::KEY;

/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every answer of the model server has in it.
const WORDS: &[u8] = b"farthing buys";
/// What stands before the text of a chunk.
const CONTENT: &[u8] = b"\"content\":\"";
/// What ends a stream.
const DONE: &[u8] = b"data: [DONE]";

/// Where requests go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    address: SocketAddr,
    path: Uri,
    headers: HeaderMap,
}

impl Target {
    /// Chat at this base URL, which is an address and `/v1`.
    pub(super) fn new(base: &str) -> Result<Self, BenchError> {
        let wrong = || BenchError::Part(format!("{base} is not an address and a path"));
        let rest = base.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        let path = format!("/{path}/chat/completions");
        let mut target = Self {
            address: host.parse().map_err(|_| wrong())?,
            path: path.parse().map_err(|_| wrong())?,
            headers: HeaderMap::new(),
        };
        target.headers.insert(HOST, header(host)?);
        let json = HeaderValue::from_static("application/json");
        target.headers.insert(CONTENT_TYPE, json);
        let bearer = header(&format!("Bearer {KEY}"))?;
        target.headers.insert(AUTHORIZATION, bearer);
        Ok(target)
    }

    /// With one more header.
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Result<Self, BenchError> {
        let name = HeaderName::from_static(name);
        self.headers.insert(name, header(value)?);
        Ok(self)
    }
}

fn header(text: &str) -> Result<HeaderValue, BenchError> {
    HeaderValue::from_str(text).map_err(|_| BenchError::Part(format!("{text} is no header")))
}

/// A connection. It closes when dropped.
#[derive(Debug)]
pub(super) struct Line {
    to: Target,
    sender: SendRequest<Body>,
}

impl Line {
    /// Connects.
    pub(super) async fn open(to: &Target) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(to.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // What goes wrong on it, the request that waits learns.
        tokio::spawn(async move { connection.await.ok() });
        let to = to.clone();
        Ok(Self { to, sender })
    }

    /// A request that is answered whole: how long it took.
    pub(super) async fn plain(&mut self, body: Bytes) -> Result<Duration, BenchError> {
        let asked = Instant::now();
        timeout(PATIENCE, self.whole(body)).await.map_err(late)??;
        Ok(asked.elapsed())
    }

    /// A streamed request of so many chunks: how long the first one took.
    pub(super) async fn stream(
        &mut self,
        body: Bytes,
        chunks: usize,
    ) -> Result<Duration, BenchError> {
        let reading = self.read(body, chunks);
        timeout(PATIENCE, reading).await.map_err(late)?
    }

    async fn ask(&mut self, body: Bytes) -> Result<Response<Incoming>, BenchError> {
        self.sender.ready().await?;
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.to.path.clone();
        request.headers_mut().clone_from(&self.to.headers);
        Ok(self.sender.send_request(request).await?)
    }

    async fn whole(&mut self, body: Bytes) -> Result<(), BenchError> {
        let response = self.ask(body).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(bytes) = next(&mut body).await? {
            text.extend_from_slice(&bytes);
        }
        if status.is_success() && has(&text, WORDS) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&text);
        Err(BenchError::Answer(format!("{status}: {text}")))
    }

    async fn read(&mut self, body: Bytes, chunks: usize) -> Result<Duration, BenchError> {
        let asked = Instant::now();
        let response = self.ask(body).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut seen = Seen::default();
        let mut first = None;
        while let Some(bytes) = next(&mut body).await? {
            seen.take(&bytes);
            if seen.chunks > 0 && first.is_none() {
                first = Some(asked.elapsed());
            }
        }
        match first {
            Some(first) if status.is_success() && seen.done && seen.chunks == chunks => Ok(first),
            _ => Err(BenchError::Answer(format!(
                "{status}: {} chunks of {chunks}, {}; the rest: {}",
                seen.chunks,
                if seen.done { "ended" } else { "not ended" },
                String::from_utf8_lossy(&seen.rest),
            ))),
        }
    }
}

fn late<E>(_: E) -> BenchError {
    BenchError::Answer(format!("no answer in {PATIENCE:?}"))
}

/// The next bytes of a body, if any come.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, BenchError> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        let Some(frame) = frame else { return Ok(None) };
        if let Ok(bytes) = frame?.into_data() {
            return Ok(Some(bytes));
        }
    }
}

/// What has come of a stream.
#[derive(Debug, Default)]
struct Seen {
    /// Chunks with text in them.
    chunks: usize,
    /// Whether it said that it ends.
    done: bool,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
}

impl Seen {
    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(line) = self.rest[used..].iter().position(|byte| *byte == b'\n') {
            let event = &self.rest[used..used + line];
            used += line + 1;
            self.done |= event.starts_with(DONE);
            let at = event
                .windows(CONTENT.len())
                .position(|part| part == CONTENT);
            let text = at.and_then(|at| event.get(at + CONTENT.len()));
            self.chunks += usize::from(text.is_some_and(|byte| *byte != b'"'));
        }
        self.rest.drain(..used);
    }
}

fn has(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|part| part == words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::street::MODEL;
    use crate::upstream::{Behaviour, Fault, MockUpstream};

    #[test]
    fn chunks_with_text_are_counted_when_their_line_is_whole() {
        let mut seen = Seen::default();
        seen.take(b"data: {\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}\n\ndata: {\"del");
        assert_eq!(seen.chunks, 0);
        seen.take(b"ta\":{\"content\":\"A\"}}\n\n: alive\n\ndata: [DONE]\n\n");
        assert_eq!((seen.chunks, seen.done), (1, true));
        assert!(seen.rest.is_empty());
    }

    #[tokio::test]
    async fn only_whole_answers_count() {
        let upstream = MockUpstream::start(Behaviour::default().models([MODEL]).tokens(20)).await;
        let upstream = upstream.unwrap();
        upstream.fail(3, Fault::NoDone);
        upstream.fail(4, Fault::Unavailable);
        let target = Target::new(&upstream.base_url()).unwrap();
        let mut line = Line::open(&target).await.unwrap();
        let body = |stream: bool| {
            let message = r#"[{"role":"user","content":"?"}]"#;
            let body = format!(
                r#"{{"model":"{MODEL}","max_tokens":20,"stream":{stream},"messages":{message}}}"#
            );
            Bytes::from(body)
        };
        line.plain(body(false)).await.unwrap();
        line.stream(body(true), 20).await.unwrap();
        assert!(line.stream(body(true), 20).await.is_err());
        let mut line = Line::open(&target).await.unwrap();
        assert!(line.plain(body(false)).await.is_err());
        assert!(line.stream(body(true), 19).await.is_err());
    }
}
