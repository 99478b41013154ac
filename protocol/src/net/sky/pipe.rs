//! A connection through a sky: two lanes, each of which brings what was written in order, later.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Sky;

/// Bytes under way in one lane; a writer waits for room.
const WINDOW: usize = 256 * 1024;

/// The largest piece, as a few packets are.
const PIECE: usize = 8 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub(in crate::net) struct Pipe {
    sky: Sky,
    between: (Ipv4Addr, Ipv4Addr),
    reads: Arc<Mutex<Lane>>,
    writes: Arc<Mutex<Lane>>,
    alarm: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Default)]
struct Lane {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    last: Option<Instant>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// Both ends of a connection between two outside addresses.
pub(super) fn pair(sky: &Sky, between: (Ipv4Addr, Ipv4Addr)) -> (Pipe, Pipe) {
    let (one, other) = (Arc::default(), Arc::default());
    let end = |reads: &Arc<Mutex<Lane>>, writes: &Arc<Mutex<Lane>>| Pipe {
        sky: sky.clone(),
        between,
        reads: Arc::clone(reads),
        writes: Arc::clone(writes),
        alarm: None,
    };
    (end(&one, &other), end(&other, &one))
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut lane = lock(&this.reads);
        lane.reader = Some(cx.waker().clone());
        if this.sky.is_cut(this.between, cx.waker()) {
            return Poll::Pending;
        }
        let Some((due, piece)) = lane.pieces.front_mut() else {
            return if lane.closed {
                Poll::Ready(Ok(0))
            } else {
                Poll::Pending
            };
        };
        if *due > Instant::now() {
            let mut alarm = Box::pin(sleep_until(*due));
            if alarm.as_mut().poll(cx).is_pending() {
                this.alarm = Some(alarm);
                return Poll::Pending;
            }
        }
        let count = piece.len().min(into.len());
        let (now, rest) = piece.split_at(count);
        if let Some(into) = into.get_mut(..count) {
            into.copy_from_slice(now);
        }
        let rest = rest.to_vec();
        if rest.is_empty() {
            lane.pieces.pop_front();
        } else {
            *piece = rest;
        }
        lane.bytes = lane.bytes.saturating_sub(count);
        if let Some(writer) = lane.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut lane = lock(&self.writes);
        if lane.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if lane.bytes >= WINDOW {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let piece = bytes.get(..bytes.len().min(PIECE)).unwrap_or_default();
        let due = Instant::now() + self.sky.travel(piece.len());
        // What is sent later does not overtake.
        let due = lane.last.map_or(due, |last| last.max(due));
        lane.last = Some(due);
        lane.bytes += piece.len();
        lane.pieces.push_back((due, piece.to_vec()));
        if let Some(reader) = lane.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = lock(&self.writes);
        lane.closed = true;
        lane.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for lane in [&self.reads, &self.writes] {
            let mut lane = lock(lane);
            lane.closed = true;
            lane.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::net::sky::Weather;

    const BETWEEN: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(9, 0, 0, 1), Ipv4Addr::new(9, 0, 0, 2));

    #[tokio::test(start_paused = true)]
    async fn what_is_written_arrives_whole_in_order_and_late() {
        let weather = Weather {
            delay: Duration::from_millis(50),
            jitter: Duration::from_millis(30),
            loss: 0.2,
        };
        let sky = Sky::new(1, weather);
        let (mut one, mut other) = pair(&sky, BETWEEN);
        let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 251) as u8).collect();
        let begun = Instant::now();
        let (writes, reads) = (sent.clone(), async move {
            let mut all = Vec::new();
            other.read_to_end(&mut all).await.map(|_| all)
        });
        let writing = async move {
            one.write_all(&writes).await.unwrap();
            one.close().await.unwrap();
            // Kept until all is read: a dropped end says no more.
            one
        };
        let (_one, read) = tokio::join!(writing, reads);
        assert!(read.unwrap() == sent);
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_holds_everything_back_until_it_heals() {
        let sky = Sky::new(1, Weather::default());
        let (mut one, mut other) = pair(&sky, BETWEEN);
        sky.cut(&[BETWEEN.1]);
        one.write_all(b"word").await.unwrap();
        let mut into = [0; 4];
        let waiting = tokio::time::timeout(Duration::from_secs(60), other.read(&mut into)).await;
        assert!(waiting.is_err());
        let (read, ()) = tokio::join!(other.read(&mut into), async { sky.heal() });
        assert_eq!((read.unwrap(), &into), (4, b"word"));
    }
}
