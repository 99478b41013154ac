//! What is done for the channels beside the purchases: those that run low are added to before
//! they are empty, and withdrawals are completed when their delay is over.
//!
//! A living part: it is told of channels that are used, does one thing at a time for each, and
//! ends when its token is cancelled. It signs nothing itself and owns no money.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::x402::ChannelId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::channels::Channels;
use crate::ledger::{Ledger, Standing};

/// Channels that wait to be added to; one that finds no place is told of by its next purchase.
const WAITING: usize = 64;
/// Channels that are added to at once.
const WORKING: usize = 8;
/// How often withdrawals are looked through. The chain is asked only about those that are due.
const LOOK: Duration = Duration::from_secs(1);
/// After how long a chain whose time is behind ours is asked again.
const BEHIND: Duration = Duration::from_secs(5);
/// After how long a failure is tried again.
const AGAIN: Duration = Duration::from_secs(60);

struct Low {
    channel: ChannelId,
    offer: Arc<VerifiedOffer>,
}

/// The handle: tells of channels that are used.
#[derive(Debug)]
pub(in crate::client) struct Upkeep {
    ledger: Ledger,
    channels: Arc<Channels>,
    low: mpsc::Sender<Low>,
}

/// The living part.
pub(in crate::client) struct Keeper {
    clock: Clock,
    ledger: Ledger,
    channels: Arc<Channels>,
    low: mpsc::Receiver<Low>,
    working: JoinSet<ChannelId>,
    busy: HashSet<ChannelId>,
    /// When to look at a withdrawal next.
    next: HashMap<ChannelId, Timestamp>,
    /// When to look at payments for one purchase next.
    payments: Timestamp,
}

impl Upkeep {
    pub(in crate::client) fn new(
        channels: Arc<Channels>,
        ledger: Ledger,
        clock: Clock,
    ) -> (Self, Keeper) {
        let (low, waiting) = mpsc::channel(WAITING);
        let keeper = Keeper {
            clock,
            ledger: ledger.clone(),
            channels: Arc::clone(&channels),
            low: waiting,
            working: JoinSet::new(),
            busy: HashSet::new(),
            next: HashMap::new(),
            payments: Timestamp(0),
        };
        let upkeep = Self {
            ledger,
            channels,
            low,
        };
        (upkeep, keeper)
    }

    /// A purchase runs on this channel.
    pub(in crate::client) fn used(&self, channel: ChannelId, offer: &Arc<VerifiedOffer>) {
        let account = self.ledger.account(channel);
        if account.is_some_and(|account| self.channels.is_low(&account)) {
            let offer = Arc::clone(offer);
            // With a full queue the next purchase tells of it again.
            self.low.try_send(Low { channel, offer }).ok();
        }
    }
}

impl Keeper {
    pub(in crate::client) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.working.len() < WORKING;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = self.working.join_next() => match done {
                    Ok(channel) => drop(self.busy.remove(&channel)),
                    Err(error) => tracing::error!(%error, "a top-up was lost"),
                },
                Some(low) = self.low.recv(), if room => self.add(low),
                _ = ticks.tick() => {
                    self.complete_withdrawals().await;
                    // Dropped between two of them, or while one is written, it is done again.
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = self.end_payments() => {}
                    }
                }
            }
        }
    }

    fn add(&mut self, low: Low) {
        let Low { channel, offer } = low;
        if !self.busy.insert(channel) {
            return;
        }
        let channels = Arc::clone(&self.channels);
        self.working.spawn(async move {
            // The purchase that finds the channel empty meets the same error and says it.
            if let Err(error) = channels.top_up_ahead(&offer, channel).await {
                tracing::debug!(channel = %channel.short(), %error, "not topped up ahead");
            }
            channel
        });
    }

    /// Asks the chain about payments that nobody told the end of, when their time is over.
    async fn end_payments(&mut self) {
        let now = self.clock.now();
        if now < self.payments {
            return;
        }
        match self.channels.end_once().await {
            Ok(false) => {}
            Ok(true) => self.payments = now.plus(BEHIND),
            Err(error) => {
                tracing::warn!(%error, "it cannot be found out whether payments were taken");
                self.payments = now.plus(AGAIN);
            }
        }
    }

    async fn complete_withdrawals(&mut self) {
        let accounts = self.ledger.accounts();
        let armed: Vec<_> = accounts
            .into_iter()
            .filter(|(_, account)| {
                // One that is short may be good again.
                !account.channel.armed().is_zero() || account.standing == Standing::Short
            })
            .map(|(id, _)| id)
            .collect();
        self.next.retain(|id, _| armed.contains(id));
        let now = self.clock.now();
        for id in armed {
            if self.next.get(&id).is_some_and(|next| now < *next) {
                continue;
            }
            let next = match self.channels.finalize_if_due(id).await {
                Ok(due) => due.unwrap_or(now).max(now.plus(LOOK)),
                Err(error) => {
                    tracing::warn!(channel = %id.short(), %error, "a withdrawal is not completed yet");
                    now.plus(AGAIN)
                }
            };
            self.next.insert(id, next);
        }
    }
}
