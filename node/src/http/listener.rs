//! Connections: how many there are, how long each may take, and TLS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::crowd::{self, Peer};
use crate::http::stall::Stall;
use crate::http::{Door, GRACE, routes};

/// The most bytes of a request's head: a payment's header and room for the others.
const MAX_HEAD: usize = 48 * 1024;
/// The most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a client may leave what is written to it unread.
const WRITE: Duration = Duration::from_secs(30);
/// How long nobody is let in after the system could not: it has run out of something.
const BREATHER: Duration = Duration::from_millis(100);

/// Lets connections in until it is told to stop, and ends those there are.
pub(in crate::http) async fn run(door: Door, stop: CancellationToken) {
    let settings = &door.shared.settings;
    let room = Arc::new(Semaphore::new(settings.connections as usize));
    let timeout = settings.read_timeout;
    let guests = TaskTracker::new();
    let routes = routes::all(Arc::clone(&door.shared), door.is_secure());
    loop {
        // A place first: whoever finds none waits in the system's queue.
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = door.listener.accept() => accepted,
        };
        let (Ok(permit), Ok((stream, from))) = (permit, accepted) else {
            tracing::warn!("a connection could not be taken; waiting a moment");
            tokio::time::sleep(BREATHER).await;
            continue;
        };
        let who = crowd::guest(from.ip(), &door.shared.settings.proxies);
        let Some(seat) = door.shared.guests.enter(who) else {
            tracing::debug!("too many connections of one client");
            continue;
        };
        let guest = Guest {
            peer: Peer(from.ip()),
            tls: door.tls.clone(),
            routes: routes.clone(),
            timeout,
            stop: stop.clone(),
        };
        guests.spawn(async move {
            guest.serve(stream).await;
            drop((permit, seat));
        });
    }
    drop(door.listener);
    guests.close();
    guests.wait().await;
}

/// One connection.
struct Guest {
    peer: Peer,
    tls: Option<TlsAcceptor>,
    routes: Router,
    timeout: Duration,
    stop: CancellationToken,
}

impl Guest {
    async fn serve(self, stream: TcpStream) {
        // A token must not wait for the next one to fill a packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let served = match self.tls.clone() {
            None => self.converse(Stall::new(stream, WRITE)).await,
            Some(tls) => match tokio::time::timeout(self.timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.converse(Stall::new(stream, WRITE)).await,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no TLS handshake in time".to_owned()),
            },
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended");
        }
    }

    async fn converse<S>(self, stream: S) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (peer, routes) = (self.peer, TowerToHyperService::new(self.routes));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            routes.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeout)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            served = connection.as_mut() => return served.map_err(|e| e.to_string()),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        match tokio::time::timeout(GRACE, connection).await {
            Ok(served) => served.map_err(|e| e.to_string()),
            Err(_) => Err("it took too long to end".to_owned()),
        }
    }
}
