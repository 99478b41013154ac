//! Typed frames over a session: the meeting point of [`crate::frame`] and the network.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::codec;
use crate::frame::Frame;
use crate::net::session::{Limits, Reader, RecvError, SendError, Session, Writer};
use crate::net::stream::Stream;

/// Why a typed frame did not come or go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No frame came.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// The frame did not leave.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The bytes are not a message of this protocol.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// The stream ended where a frame was due.
    #[error("the other side hung up")]
    Ended,
}

/// The reading half of a typed session.
#[derive(Debug)]
pub struct Hears<S = Stream>(Reader<S>);

/// The writing half of a typed session.
#[derive(Debug)]
pub struct Speaks<S = Stream>(Writer<S>);

/// A typed session over `stream`, as two halves.
pub fn over<S: AsyncRead + AsyncWrite>(stream: S, limits: Limits) -> (Hears<S>, Speaks<S>) {
    let (reader, writer) = Session::new(stream, limits).split();
    (Hears(reader), Speaks(writer))
}

impl<S: AsyncRead> Hears<S> {
    /// The next message; `None` when the other side has ended the stream. May be cancelled and
    /// called again: nothing is lost.
    ///
    /// # Errors
    /// [`WireError::Recv`] or [`WireError::Codec`]; after either the stream is of no further use,
    /// but for a deadline.
    pub async fn next<F: Frame>(
        &mut self,
        max: usize,
        deadline: Instant,
    ) -> Result<Option<F>, WireError> {
        let frame = self.0.recv(max.min(F::LIMIT), deadline).await?;
        Ok(frame.map(|bytes| F::decode(&bytes)).transpose()?)
    }

    /// The next message, which must come.
    ///
    /// # Errors
    /// As [`Hears::next`], and [`WireError::Ended`].
    pub async fn expect<F: Frame>(
        &mut self,
        max: usize,
        deadline: Instant,
    ) -> Result<F, WireError> {
        self.next(max, deadline).await?.ok_or(WireError::Ended)
    }

    /// As [`Reader::stirs`].
    pub async fn stirs(&mut self, deadline: Instant) -> bool {
        self.0.stirs(deadline).await
    }

    /// As [`Reader::is_quiet`].
    pub fn is_quiet(&mut self) -> bool {
        self.0.is_quiet()
    }
}

impl<S: AsyncWrite> Speaks<S> {
    /// Sends a message, with all that was queued before it.
    ///
    /// # Errors
    /// [`WireError::Send`] or [`WireError::Codec`].
    pub async fn send<F: Frame>(&mut self, message: &F) -> Result<(), WireError> {
        Ok(self.0.send(&message.encode()?).await?)
    }

    /// Queues a message to leave with a later [`Speaks::send`].
    ///
    /// # Errors
    /// [`WireError::Send`] or [`WireError::Codec`].
    pub async fn queue<F: Frame>(&mut self, message: &F) -> Result<(), WireError> {
        Ok(self.0.queue(&message.encode()?).await?)
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// [`WireError::Send`].
    pub async fn flush(&mut self) -> Result<(), WireError> {
        Ok(self.0.flush().await?)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`WireError::Send`].
    pub async fn close(&mut self) -> Result<(), WireError> {
        Ok(self.0.close().await?)
    }
}
