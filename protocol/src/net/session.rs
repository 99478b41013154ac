//! Frames on a stream: a length (`u32`, big-endian), then that many bytes.
//!
//! It bounds and times what passes and knows nothing of its meaning. A length over the caller's
//! maximum is refused before anything is allocated for it; a frame's memory grows only as its
//! bytes arrive; every read and every write has a deadline. All of it can be cancelled: a
//! dropped `recv` loses no byte, and a dropped `send` leaves the frame queued for the next one.
//! A session ends when its halves are dropped.
//!
//! Streams of libp2p show a dropped peer as a plain end. An end between two frames is therefore
//! `Ok(None)` whether the peer was done or gave up, so a conversation needs a last word of its
//! own; an end before the first frame means the peer refused the stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    time::{Instant, timeout, timeout_at},
};

use crate::net::Stream;

/// The length before a frame.
const HEADER: usize = 4;

/// Least room offered to a read, so that several small frames arrive in one.
const READ_MIN: usize = 2 * 1024;

/// Most room offered to a read: what a peer can make us allocate by announcing alone.
const READ_MAX: usize = 16 * 1024;

/// Room that a half keeps for the next frames. What a longer one took is given back: a stream
/// begins with a prompt and goes on for minutes in pieces of some hundred bytes.
const KEPT: usize = READ_MAX;

/// Queued bytes past which [`Writer::queue`] writes by itself.
const QUEUE: usize = 64 * 1024;

/// What a session sends at most, and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest frame we send.
    pub frame: usize,
    /// How long one flush may take before the peer counts as stalled.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame: 4 * 1024 * 1024,
            write: Duration::from_secs(30),
        }
    }
}

/// Why no frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// The peer announced more than the caller takes. The stream is of no further use.
    #[error("a frame of {len} bytes is announced, at most {max} are taken")]
    TooLarge {
        /// Announced length.
        len: usize,
        /// The caller's maximum.
        max: usize,
    },
    /// The frame was not complete in time. What arrived is kept for the next `recv`.
    #[error("no complete frame before the deadline")]
    Deadline,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The stream or its connection was torn down.
    #[error("the stream was reset")]
    Reset,
    /// Any other failure of the transport; also a peer that does not speak the protocol.
    #[error("the stream failed: {0}")]
    Io(io::ErrorKind),
}

/// Why a frame did not leave. Whether the peer got it, or part of it, is unknown unless it is
/// [`SendError::TooLarge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The frame is longer than we send; nothing of it was queued.
    #[error("a frame of {len} bytes is longer than {max}")]
    TooLarge {
        /// Length of the frame.
        len: usize,
        /// [`Limits::frame`].
        max: usize,
    },
    /// The peer did not take the bytes within [`Limits::write`].
    #[error("the peer does not read")]
    Deadline,
    /// The stream is closed, by us or by the peer.
    #[error("the stream is closed")]
    Closed,
    /// Any other failure of the transport.
    #[error("the stream failed: {0}")]
    Io(io::ErrorKind),
}

/// Both halves of a framed stream.
#[derive(Debug)]
pub struct Session<S = Stream> {
    /// Frames from the peer.
    pub reader: Reader<S>,
    /// Frames to the peer.
    pub writer: Writer<S>,
}

impl<S: AsyncRead + AsyncWrite> Session<S> {
    /// Frames over `stream`.
    pub fn new(stream: S, limits: Limits) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: Reader {
                io: read,
                buffer: BytesMut::new(),
            },
            writer: Writer {
                io: write,
                buffer: BytesMut::new(),
                long: false,
                limits,
            },
        }
    }

    /// The halves, to be read and written at once.
    pub fn split(self) -> (Reader<S>, Writer<S>) {
        (self.reader, self.writer)
    }

    /// See [`Writer::send`].
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.writer.send(frame).await
    }

    /// See [`Reader::recv`].
    pub async fn recv(
        &mut self,
        max: usize,
        deadline: Instant,
    ) -> Result<Option<Bytes>, RecvError> {
        self.reader.recv(max, deadline).await
    }
}

/// The reading half.
#[derive(Debug)]
pub struct Reader<S = Stream> {
    io: ReadHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead> Reader<S> {
    /// The next frame of at most `max` bytes, complete by `deadline`; `None` at the end.
    pub async fn recv(
        &mut self,
        max: usize,
        deadline: Instant,
    ) -> Result<Option<Bytes>, RecvError> {
        loop {
            let missing = match self.take(max)? {
                Taken::Frame(frame) => return Ok(Some(frame)),
                Taken::Missing(bytes) => bytes,
            };
            self.buffer.reserve(missing.clamp(READ_MIN, READ_MAX));
            let read = timeout_at(deadline, self.io.read_buf(&mut self.buffer)).await;
            match read.map_err(|_| RecvError::Deadline)?.map_err(received)? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(RecvError::Truncated),
                _ => {}
            }
        }
    }

    /// Whether nothing has come, no end either: a read would wait. What has come is kept for the
    /// next `recv`. To be asked between two conversations, when nobody is reading.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut into = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        if !self.buffer.is_empty() {
            return false;
        }
        let read = Pin::new(&mut self.io).poll_read(&mut context, &mut into);
        self.buffer.extend_from_slice(into.filled());
        read.is_pending()
    }

    /// Waits until something has come, of which a little is taken in for the next `recv`; false at
    /// the end, on failure, or when `deadline` has passed.
    pub async fn stirs(&mut self, deadline: Instant) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        self.buffer.reserve(READ_MIN);
        let read = timeout_at(deadline, self.io.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(Ok(1..)))
    }

    /// Takes a frame from the buffer, if it is all there.
    fn take(&mut self, max: usize) -> Result<Taken, RecvError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(Taken::Missing(HEADER - self.buffer.len()));
        };
        let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if len > max {
            return Err(RecvError::TooLarge { len, max });
        }
        let have = self.buffer.len() - HEADER;
        if have < len {
            return Ok(Taken::Missing(len - have));
        }
        self.buffer.advance(HEADER);
        let frame = self.buffer.split_to(len).freeze();
        if len > KEPT && self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(Taken::Frame(frame))
    }
}

enum Taken {
    Frame(Bytes),
    Missing(usize),
}

/// The writing half.
#[derive(Debug)]
pub struct Writer<S = Stream> {
    io: WriteHalf<S>,
    buffer: BytesMut,
    /// More was queued than [`KEPT`].
    long: bool,
    limits: Limits,
}

impl<S: AsyncWrite> Writer<S> {
    /// Sends one frame, length and body in one write, with all that was queued before it.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.put(frame)?;
        self.flush().await
    }

    /// Queues a frame to leave with a later [`Writer::send`] or [`Writer::flush`]. Writes only
    /// when much is queued, so that a slow peer slows us instead of filling our memory.
    pub async fn queue(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.put(frame)?;
        if self.buffer.len() >= QUEUE {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Writes all that is queued.
    pub async fn flush(&mut self) -> Result<(), SendError> {
        let Self {
            io, buffer, limits, ..
        } = self;
        let write = async {
            while buffer.has_remaining() {
                if io.write_buf(buffer).await? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            io.flush().await
        };
        timeout(limits.write, write)
            .await
            .map_err(|_| SendError::Deadline)?
            .map_err(sent)?;
        if std::mem::take(&mut self.long) {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Says that nothing more comes; the other direction stays open.
    pub async fn close(&mut self) -> Result<(), SendError> {
        self.flush().await?;
        let close = timeout(self.limits.write, self.io.shutdown()).await;
        close.map_err(|_| SendError::Deadline)?.map_err(sent)
    }

    fn put(&mut self, frame: &[u8]) -> Result<(), SendError> {
        let max = self.limits.frame;
        let too_large = SendError::TooLarge {
            len: frame.len(),
            max,
        };
        let len = u32::try_from(frame.len()).map_err(|_| too_large)?;
        if frame.len() > max {
            return Err(too_large);
        }
        self.buffer.reserve(HEADER + frame.len());
        self.buffer.put_u32(len);
        self.buffer.put_slice(frame);
        self.long |= self.buffer.len() > KEPT;
        Ok(())
    }
}

fn received(error: io::Error) -> RecvError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => RecvError::Reset,
        Kind::NotConnected | Kind::UnexpectedEof | Kind::WriteZero => RecvError::Reset,
        kind => RecvError::Io(kind),
    }
}

fn sent(error: io::Error) -> SendError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => SendError::Closed,
        Kind::NotConnected | Kind::UnexpectedEof | Kind::WriteZero => SendError::Closed,
        kind => SendError::Io(kind),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn pair(room: usize) -> (Session<DuplexStream>, Session<DuplexStream>) {
        let (left, right) = duplex(room);
        let limits = Limits {
            frame: 1 << 20,
            write: Duration::from_secs(5),
        };
        (Session::new(left, limits), Session::new(right, limits))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order() {
        let (mut left, mut right) = pair(100);
        let frames: Vec<Vec<u8>> = [0, 1, 3, 99, 100, 5_000, 200_000]
            .map(|len| vec![7; len])
            .into();
        let sent = frames.clone();
        let writer = tokio::spawn(async move {
            for frame in &sent {
                left.send(frame).await.unwrap();
            }
            left.writer.close().await.unwrap();
            left
        });
        for frame in &frames {
            assert_eq!(right.recv(200_000, soon()).await.unwrap().unwrap(), frame);
        }
        assert_eq!(right.recv(1, soon()).await, Ok(None));
        // Only one direction is closed.
        let mut left = writer.await.unwrap();
        right.send(b"still here").await.unwrap();
        assert_eq!(left.recv(10, soon()).await.unwrap().unwrap(), "still here");
    }

    #[tokio::test]
    async fn an_oversize_frame_is_refused_before_it_is_allocated() {
        let (left, mut right) = pair(100);
        let (_read, mut raw) = left.split();
        raw.io.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let len = u32::MAX as usize;
        assert_eq!(
            right.recv(1 << 20, soon()).await,
            Err(RecvError::TooLarge { len, max: 1 << 20 })
        );
        assert!(right.reader.buffer.capacity() <= READ_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permitted_length_alone_costs_little_memory() {
        let (left, mut right) = pair(100);
        let (_read, mut raw) = left.split();
        raw.io.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
        assert_eq!(right.recv(1 << 20, soon()).await, Err(RecvError::Deadline));
        assert!(right.reader.buffer.capacity() <= 2 * READ_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_sender_meets_the_deadline_and_loses_nothing() {
        let (left, mut right) = pair(100);
        let (_read, mut raw) = left.split();
        raw.io.write_all(&[0, 0, 0, 2, b'h']).await.unwrap();
        assert_eq!(right.recv(10, soon()).await, Err(RecvError::Deadline));
        raw.io.write_all(b"i").await.unwrap();
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "hi");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_meets_the_deadline() {
        let (mut left, _right) = pair(100);
        assert_eq!(left.send(&[0; 1_000]).await, Err(SendError::Deadline));
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_not_an_end() {
        let (left, mut right) = pair(100);
        let (_read, mut raw) = left.split();
        raw.io.write_all(&[0, 0, 0, 2, b'h']).await.unwrap();
        raw.io.shutdown().await.unwrap();
        assert_eq!(right.recv(10, soon()).await, Err(RecvError::Truncated));
    }

    #[tokio::test]
    async fn queued_frames_leave_in_one_write() {
        let (mut left, mut right) = pair(1 << 16);
        left.writer.queue(b"a").await.unwrap();
        left.writer.queue(b"b").await.unwrap();
        assert_eq!(left.writer.buffer.len(), 10);
        left.send(b"c").await.unwrap();
        assert!(left.writer.buffer.is_empty());
        for frame in ["a", "b", "c"] {
            assert_eq!(right.recv(1, soon()).await.unwrap().unwrap(), frame);
        }
    }

    #[tokio::test]
    async fn a_frame_of_ours_that_is_too_long_is_not_queued() {
        let (mut left, _right) = pair(100);
        let len = (1 << 20) + 1;
        assert_eq!(
            left.send(&vec![0; len]).await,
            Err(SendError::TooLarge { len, max: 1 << 20 })
        );
        assert!(left.writer.buffer.is_empty());
    }

    #[tokio::test]
    async fn a_session_is_quiet_until_something_comes_or_it_ends() {
        let (mut left, mut right) = pair(100);
        assert!(right.reader.is_quiet());
        left.send(b"one").await.unwrap();
        left.send(b"two").await.unwrap();
        assert!(!right.reader.is_quiet());
        assert!(right.reader.stirs(soon()).await);
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "one");
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "two");
        assert!(right.reader.is_quiet(), "again");
        left.send(b"two").await.unwrap();
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "two");
        drop(left);
        assert!(!right.reader.is_quiet(), "an end is no quiet");
    }

    #[tokio::test]
    async fn a_long_frame_leaves_no_memory_behind() {
        let (mut left, mut right) = pair(1 << 20);
        left.send(&[7; 200_000]).await.unwrap();
        let frame = right.recv(200_000, soon()).await.unwrap().unwrap();
        assert_eq!(frame.len(), 200_000);
        drop(frame);
        assert!(!left.writer.buffer.try_reclaim(KEPT + 1));
        assert!(!right.reader.buffer.try_reclaim(KEPT + 1));
        // One that is followed by another is there as long as the other waits.
        left.writer.queue(&[7; 50_000]).await.unwrap();
        left.send(b"next").await.unwrap();
        assert!(right.recv(50_000, soon()).await.unwrap().is_some());
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "next");
    }

    #[tokio::test]
    async fn a_cancelled_recv_loses_no_byte() {
        let (left, mut right) = pair(100);
        let (_read, mut raw) = left.split();
        raw.io.write_all(&[0, 0, 0, 2, b'h']).await.unwrap();
        tokio::select! {
            biased;
            _ = right.recv(10, soon()) => unreachable!("half a frame is no frame"),
            () = tokio::task::yield_now() => {}
        }
        raw.io.write_all(b"i").await.unwrap();
        assert_eq!(right.recv(10, soon()).await.unwrap().unwrap(), "hi");
    }
}
