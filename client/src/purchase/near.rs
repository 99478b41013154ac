//! Plain HTTP to a model server on this machine.
//!
//! A request drives its connection itself: nothing goes to another task and comes back, which is
//! most of what a small request costs. A connection at rest is driven by nobody; whether it still
//! stands shows when it is taken.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::purchase::Endpoint;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};

use crate::purchase::PurchaseError;

/// The most connections kept to one server.
const KEPT: usize = 256;
/// How long one is kept that nobody uses.
const UNUSED: Duration = Duration::from_secs(60);

/// Connections to servers on this machine. Cheap to clone; clones share them.
#[derive(Clone)]
pub(in crate::purchase) struct Near {
    kept: Arc<Mutex<HashMap<String, VecDeque<Link>>>>,
    connect: Duration,
}

impl std::fmt::Debug for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Near")
    }
}

/// What of a connection reads and writes.
type Driven = Connection<TokioIo<TcpStream>, Whole>;

/// A connection.
struct Link {
    requests: SendRequest<Whole>,
    /// Until it has ended.
    connection: Option<Pin<Box<Driven>>>,
    /// Since when it is at rest.
    since: Instant,
}

/// A request's body.
struct Whole(Option<Bytes>);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// What comes behind an answer's head.
pub(in crate::purchase) struct Rest {
    body: Option<Incoming>,
    /// Until all of it is here.
    link: Option<Link>,
    near: Near,
    server: String,
}

/// Whether a server is asked this way: over plain HTTP, which is allowed on this machine only.
pub(in crate::purchase) fn is_near(base: &Url) -> bool {
    let bare = base.username().is_empty() && base.password().is_none() && base.query().is_none();
    base.scheme() == "http" && base.has_host() && bare
}

impl Near {
    pub(in crate::purchase) fn new(connect: Duration) -> Self {
        Self {
            kept: Arc::default(),
            connect,
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Link>>> {
        // Every change below is whole before anything can panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, and returns when the head of its answer is here.
    pub(in crate::purchase) async fn ask(
        &self,
        (base, endpoint): (&Url, Endpoint),
        body: Bytes,
        key: Option<HeaderValue>,
    ) -> Result<(Response<()>, Rest), PurchaseError> {
        let server = authority(base);
        let mut request = request((base, endpoint), &server, body, key)?;
        loop {
            let kept = self.take(&server);
            let used = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => self.link(base).await?,
            };
            let sent = link.requests.try_send_request(request);
            match link.drive(sent).await {
                Some(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    let rest = Rest {
                        body: Some(body),
                        link: Some(link),
                        near: self.clone(),
                        server,
                    };
                    return Ok((Response::from_parts(head, ()), rest));
                }
                // Nothing of it has left: the server had ended the connection.
                Some(Err(mut error)) => match error.take_message() {
                    Some(same) if used => request = same,
                    _ => return Err(lost(&error.into_error())),
                },
                None => return Err(PurchaseError::Lost("the connection ended".to_owned())),
            }
        }
    }

    async fn link(&self, base: &Url) -> Result<Link, PurchaseError> {
        let unreached = |error: &dyn std::fmt::Display| PurchaseError::Unreached(error.to_string());
        let host = base.host_str().unwrap_or_default();
        let host = host.trim_matches(['[', ']']);
        let port = base.port_or_known_default().unwrap_or(80);
        let stream = timeout(self.connect, TcpStream::connect((host, port))).await;
        let stream = stream.map_err(|_| unreached(&"it does not answer in time"))?;
        let stream = stream.map_err(|error| unreached(&error))?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = made.map_err(|error| unreached(&error))?;
        Ok(Link {
            requests,
            connection: Some(Box::pin(connection)),
            since: Instant::now(),
        })
    }

    /// The connection that was used last, if it still stands.
    fn take(&self, server: &str) -> Option<Link> {
        let mut kept = self.kept();
        let links = kept.get_mut(server)?;
        while let Some(mut link) = links.pop_back() {
            if link.since.elapsed() < UNUSED && link.is_at_rest() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if it stands, and ends those that grew old.
    fn keep(&self, server: &str, mut link: Link) {
        if !link.is_at_rest() {
            return;
        }
        link.since = Instant::now();
        let mut kept = self.kept();
        let links = kept.entry(server.to_owned()).or_default();
        while links
            .front()
            .is_some_and(|oldest| links.len() >= KEPT || oldest.since.elapsed() >= UNUSED)
        {
            links.pop_front();
        }
        links.push_back(link);
    }
}

impl Link {
    /// Drives the connection until `work` is done, which only the connection can bring on; nothing
    /// if that ends and the work is not done.
    async fn drive<W: Future>(&mut self, work: W) -> Option<W::Output> {
        // Its turns are the connection's: a budget of its own would wake nobody.
        let mut work = pin!(unconstrained(work));
        poll_fn(|context| {
            let mut nobody = Context::from_waker(Waker::noop());
            if let Poll::Ready(done) = work.as_mut().poll(&mut nobody) {
                return Poll::Ready(Some(done));
            }
            self.turn(context);
            match work.as_mut().poll(&mut nobody) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if self.connection.is_none() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Whether it waits for a request. Nobody is woken for what comes of it from here on.
    fn is_at_rest(&mut self) -> bool {
        self.turn(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.requests.is_ready()
    }

    /// Lets the connection do what it can.
    fn turn(&mut self, context: &mut Context<'_>) {
        let ended = match &mut self.connection {
            Some(connection) => connection.as_mut().poll(context).is_ready(),
            None => return,
        };
        if ended {
            // Why shows in the work: what was not sent comes back when the connection is dropped.
            self.connection = None;
        }
    }
}

impl Rest {
    /// The next piece; none at the end.
    pub(in crate::purchase) async fn next(&mut self) -> Result<Option<Bytes>, PurchaseError> {
        loop {
            let (Some(link), Some(body)) = (&mut self.link, &mut self.body) else {
                return Ok(None);
            };
            let frame = link.drive(poll_fn(|context| Pin::new(&mut *body).poll_frame(context)));
            match frame.await {
                Some(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Some(Err(error))) => {
                    self.link = None;
                    return Err(lost(&error));
                }
                Some(None) => {
                    if let Some(link) = self.link.take() {
                        self.near.keep(&self.server, link);
                    }
                    return Ok(None);
                }
                None => {
                    self.link = None;
                    return Err(PurchaseError::Lost("the connection ended".to_owned()));
                }
            }
        }
    }
}

/// A stream is left at its `[DONE]`: where its end is here too, the connection is kept. One that is
/// left before is ended.
impl Drop for Rest {
    fn drop(&mut self) {
        self.body = None;
        if let Some(link) = self.link.take() {
            self.near.keep(&self.server, link);
        }
    }
}

fn lost(error: &hyper::Error) -> PurchaseError {
    PurchaseError::Lost(error.to_string())
}

/// What a server is called in a request.
fn authority(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match base.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn request(
    (base, endpoint): (&Url, Endpoint),
    server: &str,
    body: Bytes,
    key: Option<HeaderValue>,
) -> Result<Request<Whole>, PurchaseError> {
    let path = base.path().trim_end_matches('/');
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{path}{}", endpoint.path()))
        .header(HOST, server)
        .header(ACCEPT, "*/*")
        .header(CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        request = request.header(AUTHORIZATION, key);
    }
    let request = request.body(Whole(Some(body)));
    request.map_err(|_| PurchaseError::Protocol("its address is no URL"))
}

#[cfg(test)]
mod tests;
