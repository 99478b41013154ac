//! One stream of bytes to a peer, in tokio's terms.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{AsyncRead as _, AsyncWrite as _, task::AtomicWaker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to or from a peer. Dropping it ends both directions; the peer then reads an end of
/// file (neither yamux nor QUIC tells a dropped stream from a finished one), so a conversation
/// needs a last word of its own.
#[derive(Debug)]
pub struct Stream {
    inner: libp2p::Stream,
    /// Present until the peer's first byte; see [`Both`].
    both: Option<Arc<Both>>,
    /// Counts what a circuit carries.
    carried: Option<Arc<AtomicU64>>,
    /// Gives the place under the cap of such streams back when the stream is dropped.
    _slot: Slot,
}

impl Stream {
    /// A stream we opened, counted under our cap: its protocol is confirmed only when the peer
    /// first answers.
    pub(super) fn outbound(
        inner: libp2p::Stream,
        slot: Slot,
        carried: Option<Arc<AtomicU64>>,
    ) -> Self {
        Self {
            inner,
            both: Some(Arc::default()),
            carried,
            _slot: slot,
        }
    }

    /// A stream the peer opened, counted under its cap.
    pub(super) fn inbound(
        inner: libp2p::Stream,
        slot: Slot,
        carried: Option<Arc<AtomicU64>>,
    ) -> Self {
        Self {
            inner,
            both: None,
            carried,
            _slot: slot,
        }
    }
}

/// Wakes reader and writer alike. Until the peer has confirmed the protocol, libp2p's `poll_read`
/// also flushes, and the layers below keep one waker for writing: a reader and a writer on two
/// tasks would steal it from each other and one would sleep for ever.
#[derive(Debug, Default)]
struct Both {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let into = buf.initialize_unfilled();
        let inner = Pin::new(&mut this.inner);
        let read = match &this.both {
            None => inner.poll_read(cx, into),
            Some(both) => {
                both.reader.register(cx.waker());
                inner.poll_read(
                    &mut Context::from_waker(&Waker::from(Arc::clone(both))),
                    into,
                )
            }
        };
        read.map_ok(|count| {
            this.both = None;
            this.count(count);
            buf.advance(count);
        })
    }
}

impl Stream {
    /// Whether a relay carries it: then it should not outlive its conversation, for the next may
    /// have a better way.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.carried.is_some()
    }

    fn count(&self, bytes: usize) {
        if let Some(carried) = &self.carried {
            carried.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Runs a write step with the waker that this moment of the stream's life needs.
    fn write_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut libp2p::Stream>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let inner = Pin::new(&mut self.inner);
        match &self.both {
            None => step(inner, cx),
            Some(both) => {
                both.writer.register(cx.waker());
                step(
                    inner,
                    &mut Context::from_waker(&Waker::from(Arc::clone(both))),
                )
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.write_with(cx, |inner, cx| inner.poll_write(cx, buf));
        written.map_ok(|count| {
            self.count(count);
            count
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_with(cx, |inner, cx| inner.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_with(cx, |inner, cx| inner.poll_close(cx))
    }
}

/// One place under a cap of open streams: of a peer's, or of ours on one connection.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// Takes a place, unless `cap` are taken.
    pub(super) fn take(open: &Arc<AtomicUsize>, cap: usize) -> Option<Self> {
        open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n < cap).then_some(n + 1)
        })
        .ok()
        .map(|_| Self(Arc::clone(open)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_when_its_stream_is_dropped() {
        let open = Arc::default();
        let first = Slot::take(&open, 2).unwrap();
        let second = Slot::take(&open, 2).unwrap();
        assert!(Slot::take(&open, 2).is_none());
        drop(first);
        assert!(Slot::take(&open, 2).is_some());
        drop(second);
        assert_eq!(open.load(Ordering::Acquire), 0);
    }
}
