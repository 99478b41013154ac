//! One request at a time on each channel, in the order in which they came.
//!
//! A stock x402 client signs the next voucher on what it last heard was charged. Several requests
//! at once sign the same one, and a stream's price is known only after its head has left. So
//! whoever comes too late is told what is charged, and keeps its turn for a moment: its second
//! try, which fits, goes before those that wait. It is known by what it asks for: another request
//! of the same client may fit too, having heard what the first was told, and would push it out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::x402::ChannelId;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard, Semaphore};

/// How long a turn is kept for a second try: a round trip, a question to the client's chain node
/// and a signature. Nobody waits for it but the same payer's other requests.
const LEASE: Duration = Duration::from_secs(5);
/// Requests that may wait for one channel.
const MOST_WAITING: usize = 64;

/// Too many wait for this channel already, or one has waited too long.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) struct Busy;

/// The channels that are in use, or are waited for.
#[derive(Debug)]
pub(in crate::http) struct Turns {
    lanes: Mutex<HashMap<ChannelId, Arc<Lane>>>,
    /// Places to wait, for all channels together.
    places: Arc<Semaphore>,
    patience: Duration,
}

/// The queue of one channel.
#[derive(Debug, Default)]
struct Lane {
    queue: Arc<Queue<()>>,
    waiting: AtomicUsize,
    kept: Mutex<Kept>,
}

/// A turn that is kept for a second try, and how many were before it.
#[derive(Debug, Default)]
struct Kept {
    turn: Option<OwnedMutexGuard<()>>,
    /// For what request.
    asked: B256,
    count: u64,
}

impl Kept {
    fn take(&mut self, asked: B256) -> Option<OwnedMutexGuard<()>> {
        self.turn.take_if(|_| self.asked == asked)
    }
}

impl Lane {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Plain data, whole at every step.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue; given back when dropped.
struct Place<'l>(&'l AtomicUsize);

impl<'l> Place<'l> {
    fn take(waiting: &'l AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(waiting);
        (before < MOST_WAITING).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to use a channel now; the next in the queue has it when this is dropped.
#[derive(Debug)]
pub(in crate::http) struct Turn {
    turns: Arc<Turns>,
    channel: ChannelId,
    asked: B256,
    lane: Option<Arc<Lane>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    pub(in crate::http) fn new(patience: Duration, places: usize) -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::default(),
            places: Arc::new(Semaphore::new(places)),
            patience,
        })
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Lane>>> {
        // Plain data, whole at every step.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the channel, if that is worth it: nobody `waits` for one that nobody knows, which
    /// costs nothing to name. What was `asked` for before and `fits` what is charged now takes the
    /// turn that is kept for its second try.
    pub(in crate::http) async fn take(
        self: &Arc<Self>,
        channel: ChannelId,
        asked: B256,
        waits: bool,
        fits: impl Fn() -> bool,
    ) -> Result<Turn, Busy> {
        let lane = Arc::clone(self.lanes().entry(channel).or_default());
        let mut turn = Turn {
            turns: Arc::clone(self),
            channel,
            asked,
            lane: Some(lane),
            guard: None,
        };
        let lane = turn.lane.as_ref().ok_or(Busy)?;
        if fits() {
            turn.guard = lane.kept().take(asked);
        }
        if turn.guard.is_none() {
            turn.guard = Arc::clone(&lane.queue).try_lock_owned().ok();
        }
        if turn.guard.is_none() {
            if !waits {
                return Err(Busy);
            }
            let _room = self.places.try_acquire().map_err(|_| Busy)?;
            let _place = Place::take(&lane.waiting).ok_or(Busy)?;
            let waits = Arc::clone(&lane.queue).lock_owned();
            let mine = tokio::time::timeout(self.patience, waits).await;
            turn.guard = Some(mine.map_err(|_| Busy)?);
        }
        Ok(turn)
    }

    /// Channels that are in use, waited for or kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lanes().len()
    }
}

impl Turn {
    /// Keeps the turn for a moment, for whoever comes with what fits.
    pub(in crate::http) fn keep(mut self) {
        let (Some(lane), Some(guard)) = (self.lane.clone(), self.guard.take()) else {
            return;
        };
        let count = {
            let mut kept = lane.kept();
            kept.count = kept.count.wrapping_add(1);
            kept.turn = Some(guard);
            kept.asked = self.asked;
            kept.count
        };
        let weak = Arc::downgrade(&lane);
        let (turns, channel) = (Arc::clone(&self.turns), self.channel);
        tokio::spawn(async move {
            tokio::time::sleep(LEASE).await;
            give_up(&weak, count);
            turns.forget(channel);
        });
    }
}

/// Ends a lease that nobody took.
fn give_up(lane: &Weak<Lane>, count: u64) {
    let Some(lane) = lane.upgrade() else {
        return;
    };
    let mut kept = lane.kept();
    if kept.count == count {
        kept.turn = None;
    }
}

impl Turns {
    /// Forgets a channel that nobody uses.
    fn forget(&self, channel: ChannelId) {
        let mut lanes = self.lanes();
        let idle = lanes
            .get(&channel)
            .is_some_and(|lane| Arc::strong_count(lane) == 1 && lane.kept().turn.is_none());
        if idle {
            lanes.remove(&channel);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        self.lane = None;
        self.turns.forget(self.channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: ChannelId = ChannelId(B256::repeat_byte(1));
    const ASKED: B256 = B256::repeat_byte(7);

    #[tokio::test(start_paused = true)]
    async fn a_second_try_that_fits_goes_before_those_that_wait() {
        let turns = Turns::new(Duration::from_secs(60), 2 * MOST_WAITING);
        let first = turns
            .take(CHANNEL, ASKED, true, || false)
            .await
            .expect("free");
        let queue = Arc::clone(&turns);
        let waits = tokio::spawn(async move { queue.take(CHANNEL, ASKED, true, || false).await });
        tokio::task::yield_now().await;
        first.keep();
        let second = turns
            .take(CHANNEL, ASKED, true, || true)
            .await
            .expect("kept for it");
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "it waits its turn");
        drop(second);
        drop(waits.await.expect("ends").expect("its turn"));
        tokio::time::sleep(LEASE * 2).await;
        assert_eq!(turns.len(), 0, "nothing is remembered of an idle channel");
    }

    #[tokio::test(start_paused = true)]
    async fn regression_another_request_that_fits_does_not_take_a_kept_turn() {
        let turns = Turns::new(Duration::from_secs(60), 2 * MOST_WAITING);
        let first = turns
            .take(CHANNEL, ASKED, true, || false)
            .await
            .expect("free");
        first.keep();
        let queue = Arc::clone(&turns);
        let other = B256::repeat_byte(8);
        let pushes = tokio::spawn(async move { queue.take(CHANNEL, other, true, || true).await });
        tokio::task::yield_now().await;
        assert!(!pushes.is_finished(), "it waits its turn");
        let second = turns.take(CHANNEL, ASKED, true, || true).await;
        drop(second.expect("kept for it"));
        assert!(pushes.await.expect("ends").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_comes_back_for_goes_to_the_next() {
        let turns = Turns::new(Duration::from_secs(60), 2 * MOST_WAITING);
        turns
            .take(CHANNEL, ASKED, true, || false)
            .await
            .expect("free")
            .keep();
        let next = turns.take(CHANNEL, ASKED, true, || false).await;
        assert!(next.is_ok(), "after the lease");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_has_an_end_and_a_wait_too() {
        let turns = Turns::new(Duration::from_secs(60), 2 * MOST_WAITING);
        let first = turns
            .take(CHANNEL, ASKED, true, || false)
            .await
            .expect("free");
        let mut waiting = Vec::new();
        for _ in 0..MOST_WAITING {
            let turns = Arc::clone(&turns);
            waiting.push(tokio::spawn(async move {
                turns.take(CHANNEL, ASKED, true, || false).await.err()
            }));
        }
        tokio::task::yield_now().await;
        assert_eq!(
            turns.take(CHANNEL, ASKED, true, || false).await.err(),
            Some(Busy)
        );
        let other = ChannelId(B256::repeat_byte(2));
        assert!(turns.take(other, ASKED, true, || false).await.is_ok());
        for wait in waiting {
            assert_eq!(
                wait.await.expect("ends"),
                Some(Busy),
                "its patience is over"
            );
        }
        drop(first);
        assert_eq!(turns.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_channel_that_nobody_knows_nor_all_for_one_that_somebody_does() {
        let turns = Turns::new(Duration::from_secs(60), 1);
        let first = turns.take(CHANNEL, ASKED, true, || false).await;
        let stranger = turns.take(CHANNEL, ASKED, false, || false).await;
        assert_eq!(stranger.err(), Some(Busy));
        let queue = Arc::clone(&turns);
        let waits =
            tokio::spawn(async move { queue.take(CHANNEL, ASKED, true, || false).await.is_ok() });
        tokio::task::yield_now().await;
        let late = turns.take(CHANNEL, ASKED, true, || false).await;
        assert_eq!(late.err(), Some(Busy), "the only place is taken");
        drop(first);
        assert!(waits.await.expect("ends"));
    }
}
