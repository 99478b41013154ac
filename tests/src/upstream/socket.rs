//! Connections that can be broken on purpose.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A listener whose connections all end when the upstream does.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    stop: CancellationToken,
}

/// One connection, which breaks with a reset when its cord is pulled.
pub(super) struct Line {
    stream: TcpStream,
    cord: Cord,
    pulled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What a handler holds to break the connection it answers on.
#[derive(Clone, Debug)]
pub(super) struct Cord(CancellationToken);

impl Cord {
    /// Reset the connection.
    pub(super) fn pull(&self) {
        self.0.cancel();
    }
}

impl Door {
    pub(super) fn new(listener: TcpListener, stop: CancellationToken) -> Self {
        Self { listener, stop }
    }
}

impl Listener for Door {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        loop {
            let Ok((stream, peer)) = self.listener.accept().await else {
                // Out of descriptors, or a client that left at once: let others run, try again.
                tokio::task::yield_now().await;
                continue;
            };
            // A small chunk must not wait for the acknowledgement of the one before.
            if stream.set_nodelay(true).is_ok() {
                let cord = Cord(self.stop.child_token());
                let pulled = Box::pin(cord.0.clone().cancelled_owned());
                return (
                    Line {
                        stream,
                        cord,
                        pulled,
                    },
                    peer,
                );
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for Cord {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cord.clone()
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper reads all the time, if only to notice that the client left; so it learns here.
        if self.pulled.as_mut().poll(context).is_ready() {
            // Without lingering, closing the socket resets the connection.
            self.stream.set_zero_linger()?;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
