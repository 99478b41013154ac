//! Our voice and ear on the network: keeps our offer fresh, and the book of everybody's.
//!
//! An offer is published when its content changes or the clock was set (never twice in ten
//! seconds), and at least every [`Rhythm::refresh`]. Its number only rises, also across restarts: it is on disk before it is
//! signed. Offers made before we were there are read from the books of the peers we meet.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farthing_protocol::book::{Book, Heard};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::{EvmKey, EvmSignature};
use farthing_protocol::frame::Frame;
use farthing_protocol::identity::NodeKey;
use farthing_protocol::net::ask::read_book;
use farthing_protocol::net::{Gossip, Net, PeerEvent, PublishError};
use farthing_protocol::offer::{Offer, OfferError, SellerBinding, SignedOffer};
use farthing_protocol::store::{Batch, BatchError, CommitError, ReadError, Store};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::calls::Terms;
use crate::catalog::Catalog;
use crate::ledger::records::COUNTERS;
use crate::metrics::Metrics;
use crate::shelf::Shelf;
use crate::upstream::{Health, Upstream};

/// The counter of the last offer's number.
const SEQ: &str = "offer-seq";
/// The least time between two publications.
const GAP: Duration = Duration::from_secs(10);
/// Books read at once.
const READING: usize = 4;
/// How often the content is looked at and the book swept.
const LOOK: Duration = Duration::from_secs(2);

/// How often offers are renewed.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// How long one is valid.
    pub lifetime: Duration,
    /// How often one is published although nothing changed.
    pub refresh: Duration,
}

impl Rhythm {
    /// Whether an offer issued then is neither of the future nor due to be renewed, by a clock
    /// that somebody may have set meanwhile.
    fn is_in_time(&self, issued: Timestamp, now: Timestamp) -> bool {
        issued <= now && now.since(issued) < self.refresh
    }
}

/// What never changes in our offers while the node runs.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The channels' terms.
    pub terms: Terms,
    /// Where we say we are.
    pub region: Option<String>,
    /// What we say we do with prompts.
    pub data_policy: Option<String>,
}

/// Why an offer was not made.
#[derive(Debug, thiserror::Error)]
enum AnnounceError {
    #[error(transparent)]
    Offer(#[from] OfferError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// What the announcer stands on.
#[derive(Debug)]
pub struct Ground {
    /// The network.
    pub net: Net,
    /// The time of day.
    pub clock: Clock,
    /// Keeps the offers' number.
    pub store: Store,
    /// Where issued offers go.
    pub shelf: Shelf,
    /// Where heard offers go.
    pub book: Arc<Mutex<Book>>,
    /// What is on sale.
    pub catalog: Catalog,
    /// Whose health decides whether we sell.
    pub upstream: Upstream,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// The announcer: a living part without questions. It ends when its token is cancelled.
#[derive(Debug)]
pub struct Announcer {
    ground: Ground,
    standing: Standing,
    rhythm: Rhythm,
    key: NodeKey,
    binding: EvmSignature,
    published: Option<Instant>,
    /// The newest offer found no neighbour to hear it.
    unsaid: bool,
    reading: JoinSet<Vec<SignedOffer>>,
}

impl Announcer {
    /// An announcer that signs as `key` and binds it to `claim`.
    #[must_use]
    pub fn new(
        ground: Ground,
        standing: Standing,
        rhythm: Rhythm,
        key: NodeKey,
        claim: &EvmKey,
    ) -> Self {
        let Terms {
            network, payout, ..
        } = &standing.terms;
        let binding = SellerBinding {
            node: key.id(),
            payout: *payout,
            claim: claim.address(),
        };
        let binding = binding.sign(network, claim);
        Self {
            ground,
            standing,
            rhythm,
            key,
            binding,
            published: None,
            unsaid: false,
            reading: JoinSet::new(),
        }
    }

    /// Runs until `stop` is cancelled or the network has ended.
    pub async fn run(
        mut self,
        mut gossip: mpsc::Receiver<Gossip>,
        mut peers: mpsc::Receiver<PeerEvent>,
        stop: CancellationToken,
    ) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = self.ground.upstream.watch_health();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                message = gossip.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                Some(event) = peers.recv() => self.met(event).await,
                Some(read) = self.reading.join_next() => self.learn(read.unwrap_or_default()),
                Ok(()) = health.changed() => {
                    self.ground.catalog.refresh(&self.ground.upstream).await;
                    self.renew().await;
                }
                _ = looks.tick() => self.renew().await,
            }
        }
    }

    fn hear(&self, message: Gossip) {
        let now = self.ground.clock.now();
        let heard = {
            let mut book = self
                .ground
                .book
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            book.hear_bytes(&message.bytes, now)
        };
        match heard {
            Heard::Fresh(_) => message.verdict.accept(),
            Heard::Old => message.verdict.ignore(),
            Heard::Bad(error) => {
                tracing::debug!(source = %message.source.short(), %error, "a bad offer");
                message.verdict.reject();
            }
        }
    }

    async fn met(&mut self, event: PeerEvent) {
        let peers = self.ground.net.peers().len();
        self.ground
            .metrics
            .announce_peers
            .set(i64::try_from(peers).unwrap_or(i64::MAX));
        match event {
            PeerEvent::Connected(peer) if self.reading.len() < READING => {
                let net = self.ground.net.clone();
                // A peer that keeps no book is no loss.
                self.reading
                    .spawn(async move { read_book(&net, peer).await.unwrap_or_default() });
            }
            PeerEvent::Neighbour(_) if self.unsaid => self.say().await,
            _ => {}
        }
    }

    fn learn(&self, offers: Vec<SignedOffer>) {
        let now = self.ground.clock.now();
        let mut book = self
            .ground
            .book
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for offer in offers {
            book.hear(offer, now);
        }
    }

    /// Publishes a new offer if it is time or if it says something new.
    async fn renew(&mut self) {
        self.tidy();
        if self.ground.upstream.health() != Health::Up || self.ground.catalog.offers().is_empty() {
            return;
        }
        let due = match self.published.map(|at| at.elapsed()) {
            None => true,
            Some(age) if age >= self.rhythm.refresh => true,
            Some(age) => age >= GAP && self.is_outdated(),
        };
        if due && let Err(error) = self.issue().await {
            tracing::error!(%error, "no offer could be made");
        }
    }

    /// Drops the texts of expired offers. Our own is put back when a clock that was wrong for a
    /// while has had it dropped: newcomers read it here.
    fn tidy(&self) {
        let now = self.ground.clock.now();
        let mut book = self
            .ground
            .book
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        book.sweep(now);
        if book.offer(self.key.id(), now).is_none()
            && let Some(newest) = self.ground.shelf.newest()
        {
            book.hear(newest.signed().clone(), now);
        }
    }

    /// Whether the newest offer says something else than is true now, or, because the clock was
    /// set since, is one of the past or of the future to whoever hears it.
    fn is_outdated(&self) -> bool {
        let (shelf, now) = (&self.ground.shelf, self.ground.clock.now());
        let newest = shelf.newest();
        let is_in_time =
            newest.is_some_and(|offer| self.rhythm.is_in_time(offer.offer().issued, now));
        !is_in_time || !shelf.says(&self.offer(0))
    }

    /// Signs and publishes a new offer.
    async fn issue(&mut self) -> Result<(), AnnounceError> {
        let seq = self.next_seq().await?;
        let now = self.ground.clock.now();
        let signed = SignedOffer::sign(&self.offer(seq), &self.key)?;
        let verified = Arc::new(signed.verify(&self.standing.terms.network, now)?);
        self.ground.shelf.put(Arc::clone(&verified));
        {
            let mut book = self
                .ground
                .book
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            book.hear(verified.signed().clone(), now);
        }
        self.published = Some(Instant::now());
        self.ground.metrics.announce_offers.inc();
        tracing::info!(seq, models = verified.offer().models.len(), "a new offer");
        self.say().await;
        Ok(())
    }

    /// Publishes the newest offer.
    async fn say(&mut self) {
        let Some(offer) = self.ground.shelf.newest() else {
            return;
        };
        let said = match offer.signed().encode() {
            Ok(bytes) => self.ground.net.publish(bytes).await,
            Err(error) => return tracing::error!(%error, "an offer could not be encoded"),
        };
        self.unsaid = matches!(said, Err(PublishError::Alone));
        match said {
            Ok(()) | Err(PublishError::Alone | PublishError::Duplicate | PublishError::Stopped) => {
            }
            Err(error) => tracing::warn!(%error, "an offer was not published"),
        }
    }

    async fn next_seq(&self) -> Result<u64, AnnounceError> {
        let last = self
            .ground
            .store
            .get(&COUNTERS, &SEQ.to_owned())?
            .unwrap_or(0);
        // The clock's help: a node that lost its disk is not stuck behind its own old number.
        let seq = last.saturating_add(1).max(self.ground.clock.now().0);
        self.ground
            .store
            .commit(Batch::new().put(&COUNTERS, &SEQ.to_owned(), &seq)?)
            .await?;
        Ok(seq)
    }

    fn offer(&self, seq: u64) -> Offer {
        let Standing {
            terms,
            region,
            data_policy,
        } = &self.standing;
        let now = self.ground.clock.now();
        Offer {
            seller: self.key.id(),
            seq,
            issued: now,
            expires: now.plus(self.rhythm.lifetime),
            chain_id: terms.network.chain_id,
            settlement: terms.network.settlement,
            token: terms.network.token,
            payout: terms.payout,
            claim: terms.claim,
            withdraw_delay: terms.withdraw_delay,
            min_deposit: terms.min_deposit,
            models: self.ground.catalog.offers(),
            region: region.clone(),
            data_policy: data_policy.clone(),
            addresses: self
                .ground
                .net
                .listen_addresses()
                .into_iter()
                .take(farthing_protocol::offer::MAX_ADDRESSES)
                .collect(),
            binding: self.binding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_an_offer_is_renewed_when_the_clock_was_set() {
        let rhythm = Rhythm {
            lifetime: Duration::from_secs(900),
            refresh: Duration::from_secs(300),
        };
        let noon = Timestamp(1_790_000_000_000);
        let hour = Duration::from_secs(3_600);
        assert!(rhythm.is_in_time(noon, noon));
        assert!(rhythm.is_in_time(noon, noon.plus(Duration::from_secs(299))));
        assert!(!rhythm.is_in_time(noon, noon.plus(hour)), "of the past");
        assert!(!rhythm.is_in_time(noon.plus(hour), noon), "of the future");
    }
}
