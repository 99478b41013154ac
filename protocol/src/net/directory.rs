//! Who is connected, and the way to each connection: opening a stream does not pass through the
//! swarm. Of several connections to a peer the best is taken: direct before relayed, QUIC before
//! TCP.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    identity::NodeId,
    net::{Protocol, origin::Origin, peer, stream::Stream},
};

/// What of a circuit's allowance may be used before a new circuit takes its place: a half, so
/// that what runs can end in the other.
const SHARE: u32 = 2;

/// What every circuit is held to be good for: as much as libp2p's own relays grant. Whoever says
/// that it grants less is dialled through as seldom as they are.
const LEAST_TIME: Duration = Duration::from_secs(120);
const LEAST_BYTES: u64 = 128 * 1024;

/// Relays whose grants are remembered; beyond, those that carry a circuit of ours now.
const MAX_GRANTS: usize = 256;

/// Why a connected peer gave us no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No connection to the peer.
    NotConnected,
    /// The connection went away, or could not carry the stream.
    Lost,
    /// The peer did not agree in time.
    Deadline,
    /// The peer does not speak the protocol.
    Unsupported,
    /// As many streams are open on the connection as it carries.
    Full,
}

/// Asks the task of a connection for a stream.
pub(super) struct Request {
    pub(super) protocol: Protocol,
    pub(super) reply: Reply,
}

pub(super) type Reply = oneshot::Sender<Result<Stream, Refusal>>;

/// Who is connected, and the way to each connection's task. Shared by the handle, the behaviour
/// and the handlers; its lock is held only for lookups.
#[derive(Default)]
pub(super) struct Directory {
    peers: Mutex<HashMap<PeerId, Links>>,
    pub(super) refused: AtomicU64,
    grants: Mutex<HashMap<PeerId, Allowance>>,
}

/// What one relay grants to a circuit.
#[derive(Debug, Clone, Copy, Default)]
struct Allowance {
    time: Option<Duration>,
    bytes: Option<u64>,
}

/// The connections to one peer.
#[derive(Default)]
pub(super) struct Links {
    links: Vec<Link>,
    /// Inbound streams of the peer now alive, over all its connections.
    open: Arc<AtomicUsize>,
}

pub(super) struct Link {
    pub(super) connection: ConnectionId,
    /// Where we have dialled it; none when the peer has dialled us.
    pub(super) dialled: Option<Multiaddr>,
    pub(super) quic: bool,
    /// Where its other end is.
    pub(super) origin: Origin,
    pub(super) circuit: Option<Circuit>,
    pub(super) requests: mpsc::Sender<Request>,
}

/// What a relayed connection has used of its allowance.
#[derive(Clone)]
pub(super) struct Circuit {
    /// Whose it is, if the address says so.
    pub(super) relay: Option<PeerId>,
    pub(super) born: Instant,
    pub(super) bytes: Arc<AtomicU64>,
}

impl Allowance {
    /// What a relay's words are worth. Nought means that it does not count.
    fn said((time, bytes): (Option<Duration>, Option<u64>)) -> Self {
        let time = time.filter(|time| !time.is_zero());
        let bytes = bytes.filter(|bytes| *bytes > 0);
        Self {
            time: time.map(|time| time.max(LEAST_TIME)),
            bytes: bytes.map(|bytes| bytes.max(LEAST_BYTES)),
        }
    }
}

impl Circuit {
    fn is_tired(&self, allowance: Allowance) -> bool {
        let old = |time: Duration| self.born.elapsed() >= time / SHARE;
        let used = self.bytes.load(Ordering::Relaxed);
        allowance.time.is_some_and(old)
            || allowance
                .bytes
                .is_some_and(|most| used >= most / u64::from(SHARE))
    }
}

impl Directory {
    /// Inbound streams reset because a bound was reached.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Inbound streams now alive.
    pub(super) fn streams(&self) -> usize {
        let open = |links: &Links| links.open.load(Ordering::Relaxed);
        self.lock().values().map(open).sum()
    }

    /// Living connections, to whomever.
    pub(super) fn connections(&self) -> usize {
        self.lock()
            .values()
            .flat_map(|links| &links.links)
            .filter(|link| !link.requests.is_closed())
            .count()
    }

    /// Everybody connected.
    pub(super) fn connected(&self) -> Vec<NodeId> {
        self.lock()
            .iter()
            .filter(|(_, links)| links.best().is_some())
            .filter_map(|(id, _)| peer::node_of(id))
            .collect()
    }

    /// Whether there is a connection to the peer.
    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.lock()
            .get(peer)
            .is_some_and(|links| links.best().is_some())
    }

    /// Whether there is a connection to the peer that no relay stands in.
    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        let peers = self.lock();
        let links = peers.get(peer).map(|links| links.links.as_slice());
        let direct = |link: &Link| link.circuit.is_none() && !link.requests.is_closed();
        links.unwrap_or_default().iter().any(direct)
    }

    /// Whether there is a connection to the peer that is good for more streams: a circuit near the
    /// end of what its relay grants is not.
    pub(super) fn is_fresh(&self, peer: &PeerId) -> bool {
        let fresh = |link: &Link| !link.circuit.as_ref().is_some_and(|c| self.is_tired(c));
        let peers = self.lock();
        let links = peers.get(peer).map(|links| links.links.as_slice());
        links
            .unwrap_or_default()
            .iter()
            .any(|link| !link.requests.is_closed() && fresh(link))
    }

    /// Circuits to the peer that nothing runs on and nothing will: they are near their end, or a
    /// direct connection has taken their place. They count against what relays grant us. The
    /// `newest` connection is none of them: those who waited for it have not used it yet.
    pub(super) fn spent(&self, peer: &PeerId, newest: ConnectionId) -> Vec<ConnectionId> {
        let peers = self.lock();
        let links = peers.get(peer).map(|links| links.links.as_slice());
        let links = links.unwrap_or_default();
        let alive = |link: &&Link| !link.requests.is_closed();
        let direct = links
            .iter()
            .filter(alive)
            .any(|link| link.circuit.is_none());
        let spent = |circuit: &Circuit| {
            // Besides the link and its handler, each stream holds the counter.
            let idle = Arc::strong_count(&circuit.bytes) <= 2;
            idle && (direct || self.is_tired(circuit))
        };
        let spent =
            |link: &&Link| link.connection != newest && link.circuit.as_ref().is_some_and(spent);
        let spent = links.iter().filter(spent);
        spent.map(|link| link.connection).collect()
    }

    /// Where we have dialled the peer directly, if it is connected so.
    pub(super) fn place_of(&self, peer: &PeerId) -> Option<Multiaddr> {
        let peers = self.lock();
        let direct = |link: &&Link| link.circuit.is_none() && !link.requests.is_closed();
        let links = peers.get(peer)?.links.iter().filter(direct);
        let dialled = links.filter_map(|link| link.dialled.clone()).next();
        dialled.map(|address| peer::split(address).0)
    }

    /// Where a peer is, if it is connected without a relay.
    pub(super) fn origin(&self, peer: &PeerId) -> Origin {
        let peers = self.lock();
        let links = peers.get(peer).map(|links| links.links.as_slice());
        let direct = |link: &&Link| link.circuit.is_none() && !link.requests.is_closed();
        let direct = links.unwrap_or_default().iter().find(direct);
        direct.map_or(Origin::Unknown, |link| link.origin)
    }

    /// Peers reached through relays only.
    pub(super) fn relayed(&self) -> usize {
        let alive = |links: &Links| links.best().is_some();
        let direct = |links: &Links| {
            let mut direct = links.links.iter().filter(|link| link.circuit.is_none());
            direct.any(|link| !link.requests.is_closed())
        };
        let peers = self.lock();
        let relayed = peers
            .values()
            .filter(|links| alive(links) && !direct(links));
        relayed.count()
    }

    /// Notes what a relay says it grants to each circuit: its last word counts, for its own
    /// circuits only.
    pub(super) fn learn_limit(&self, relay: PeerId, said: (Option<Duration>, Option<u64>)) {
        let peers = self.lock();
        let mut grants = self.grants();
        if grants.len() >= MAX_GRANTS && !grants.contains_key(&relay) {
            let links = peers.values().flat_map(|links| &links.links);
            let relays = links.filter_map(|link| link.circuit.as_ref()?.relay);
            let used: HashSet<PeerId> = relays.collect();
            grants.retain(|relay, _| used.contains(relay));
        }
        // So many can only be in use at once where the limits allow as many connections.
        if grants.len() < MAX_GRANTS || grants.contains_key(&relay) {
            grants.insert(relay, Allowance::said(said));
        }
    }

    fn is_tired(&self, circuit: &Circuit) -> bool {
        let grants = self.grants();
        let grant = circuit.relay.and_then(|relay| grants.get(&relay));
        circuit.is_tired(grant.copied().unwrap_or_default())
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<PeerId, Allowance>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream on an existing connection.
    pub(super) async fn open(&self, peer: PeerId, protocol: Protocol) -> Result<Stream, Refusal> {
        let link = self
            .lock()
            .get(&peer)
            .and_then(Links::best)
            .ok_or(Refusal::NotConnected)?;
        let (reply, answer) = oneshot::channel();
        link.send(Request { protocol, reply })
            .await
            .map_err(|_| Refusal::Lost)?;
        answer.await.unwrap_or(Err(Refusal::Lost))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Links>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; returns the peer's count of inbound streams.
    pub(super) fn add(&self, peer: PeerId, link: Link) -> Arc<AtomicUsize> {
        let mut peers = self.lock();
        let links = peers.entry(peer).or_default();
        links.links.push(link);
        Arc::clone(&links.open)
    }

    pub(super) fn remove(&self, peer: &PeerId, connection: ConnectionId) {
        let mut peers = self.lock();
        if let Some(links) = peers.get_mut(peer) {
            links.links.retain(|link| link.connection != connection);
            if links.links.is_empty() {
                peers.remove(peer);
            }
        }
    }
}

impl Links {
    /// The way to the best living connection: direct before relayed, the youngest circuit, QUIC
    /// before TCP, then the oldest.
    fn best(&self) -> Option<mpsc::Sender<Request>> {
        let alive = self.links.iter().filter(|link| !link.requests.is_closed());
        let rank = |link: &&Link| {
            let born = link.circuit.as_ref().map(|circuit| Reverse(circuit.born));
            (born, !link.quic)
        };
        alive.min_by_key(rank).map(|link| link.requests.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connects to `peer` through `relay`; what is returned keeps the connection alive.
    fn through(
        directory: &Directory,
        (peer, relay): (PeerId, PeerId),
        connection: usize,
    ) -> (mpsc::Receiver<Request>, Arc<AtomicU64>) {
        let (requests, kept) = mpsc::channel(1);
        let bytes = Arc::new(AtomicU64::new(0));
        let link = Link {
            connection: ConnectionId::new_unchecked(connection),
            dialled: None,
            quic: false,
            origin: Origin::Unknown,
            circuit: Some(Circuit {
                relay: Some(relay),
                born: Instant::now(),
                bytes: Arc::clone(&bytes),
            }),
            requests,
        };
        directory.add(peer, link);
        (kept, bytes)
    }

    #[tokio::test]
    async fn a_relay_that_grants_little_tires_no_circuits_but_its_own() {
        let directory = Directory::default();
        let [honest, liar] = [(); 2].map(|()| (PeerId::random(), PeerId::random()));
        let (_kept, used) = through(&directory, honest, 1);
        let (_kept_too, used_there) = through(&directory, liar, 2);
        let hour = Some(Duration::from_secs(3_600));
        directory.learn_limit(honest.1, (hour, Some(1 << 30)));
        directory.learn_limit(liar.1, (Some(Duration::from_secs(1)), Some(1)));
        for used in [used, used_there] {
            used.store(LEAST_BYTES, Ordering::Relaxed);
        }
        assert!(directory.is_fresh(&honest.0));
        assert!(!directory.is_fresh(&liar.0));
        directory.learn_limit(liar.1, (hour, Some(1 << 30)));
        assert!(directory.is_fresh(&liar.0), "its last word counts");
    }

    #[tokio::test]
    async fn no_words_of_a_relay_make_a_circuit_tired_at_birth() {
        let directory = Directory::default();
        let peer = (PeerId::random(), PeerId::random());
        let _kept = through(&directory, peer, 1);
        let (none, second) = (Some(Duration::ZERO), Some(Duration::from_nanos(1)));
        for said in [(none, Some(0)), (second, Some(1)), (None, None)] {
            directory.learn_limit(peer.1, said);
            assert!(directory.is_fresh(&peer.0), "{said:?}");
        }
        let counted = Allowance::said((none, Some(0)));
        assert_eq!((counted.time, counted.bytes), (None, None));
    }

    #[tokio::test]
    async fn the_connection_that_has_just_come_up_is_never_closed_for_a_better_one() {
        let directory = Directory::default();
        let peer = (PeerId::random(), PeerId::random());
        directory.learn_limit(peer.1, (None, Some(LEAST_BYTES)));
        let [first, second] = [1, 2].map(ConnectionId::new_unchecked);
        let mut held = Vec::new();
        for connection in [1, 2] {
            let (kept, used) = through(&directory, peer, connection);
            used.store(LEAST_BYTES, Ordering::Relaxed);
            held.push(kept);
        }
        assert_eq!(directory.spent(&peer.0, second), [first]);
    }

    #[tokio::test]
    async fn relays_without_end_do_not_fill_the_memory_and_those_in_use_are_kept() {
        let directory = Directory::default();
        let peer = (PeerId::random(), PeerId::random());
        let (_kept, used) = through(&directory, peer, 1);
        directory.learn_limit(peer.1, (None, Some(LEAST_BYTES)));
        for _ in 0..1_000 {
            directory.learn_limit(PeerId::random(), (None, Some(1)));
            assert!(directory.grants().len() <= MAX_GRANTS);
        }
        used.store(LEAST_BYTES, Ordering::Relaxed);
        assert!(!directory.is_fresh(&peer.0), "its relay is still known");
    }
}
