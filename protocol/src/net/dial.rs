//! Who is being dialled and who waits for it; and the bootstrap peers, which are dialled again
//! whenever they are lost. Pure bookkeeping: the actor does the dialling.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionId, DialError as SwarmError},
};
use tokio::{sync::oneshot, time::Instant};

use crate::net::{ConnectError, StartError, peer};

/// Peers dialled at once on behalf of callers.
const MAX_PEERS: usize = 256;

/// Callers waiting for one peer.
const MAX_WAITERS: usize = 1_024;

/// First pause before a lost bootstrap peer is dialled again; doubled on each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

pub(super) type Waiter = oneshot::Sender<Result<(), ConnectError>>;

/// The dials in progress, one entry for each peer however many wait for it.
#[derive(Default)]
pub(super) struct Dials {
    peers: HashMap<PeerId, Dial>,
}

#[derive(Default)]
struct Dial {
    waiters: Vec<Waiter>,
    tried: HashSet<Multiaddr>,
    running: HashSet<ConnectionId>,
    sought: Sought,
}

/// How far the search for an address nobody gave us has come.
#[derive(Default, PartialEq, Eq)]
enum Sought {
    #[default]
    No,
    Running,
    Done,
}

impl Dials {
    /// Adds a waiter and returns the addresses that nobody has tried for the peer yet. `Err`
    /// gives the waiter back when there are too many.
    pub(super) fn join(
        &mut self,
        peer: PeerId,
        waiter: Waiter,
        addresses: Vec<Multiaddr>,
    ) -> Result<Vec<Multiaddr>, Waiter> {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            return Err(waiter);
        }
        let dial = self.peers.entry(peer).or_default();
        dial.waiters.retain(|waiter| !waiter.is_closed());
        if dial.waiters.len() >= MAX_WAITERS {
            return Err(waiter);
        }
        dial.waiters.push(waiter);
        Ok(addresses
            .into_iter()
            .filter(|address| dial.tried.insert(address.clone()))
            .collect())
    }

    /// Notes that a dial to the peer runs under this id.
    pub(super) fn running(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(dial) = self.peers.get_mut(&peer) {
            dial.running.insert(connection);
        }
    }

    /// The peer is connected: nobody waits any more.
    pub(super) fn connected(&mut self, peer: &PeerId) {
        self.finish(peer, Ok(()));
    }

    /// Whether to search for the peer now: somebody waits, nothing runs, and it was not yet done.
    pub(super) fn may_search(&mut self, peer: &PeerId) -> bool {
        let dial = self.peers.get(peer);
        dial.is_some_and(|dial| dial.running.is_empty() && dial.sought == Sought::No)
    }

    /// A search for the peer runs: its waiters go on waiting though no dial runs.
    pub(super) fn searching(&mut self, peer: &PeerId) {
        if let Some(dial) = self.peers.get_mut(peer) {
            dial.sought = Sought::Running;
        }
    }

    /// The search has ended; returns which of the found addresses nobody has tried yet.
    pub(super) fn searched(&mut self, peer: &PeerId, found: Vec<Multiaddr>) -> Vec<Multiaddr> {
        let Some(dial) = self.peers.get_mut(peer) else {
            return Vec::new();
        };
        dial.sought = Sought::Done;
        let fresh = found.into_iter();
        fresh
            .filter(|address| dial.tried.insert(address.clone()))
            .collect()
    }

    /// A dial failed. The waiters hear of it when it was the last one running.
    pub(super) fn failed(&mut self, peer: &PeerId, connection: ConnectionId, error: ConnectError) {
        let Some(dial) = self.peers.get_mut(peer) else {
            return;
        };
        dial.running.remove(&connection);
        if dial.running.is_empty() && dial.sought != Sought::Running {
            self.finish(peer, Err(error));
        }
    }

    /// Ends the wait if no dial runs for the peer.
    pub(super) fn settle(&mut self, peer: &PeerId, error: ConnectError) {
        if self
            .peers
            .get(peer)
            .is_some_and(|dial| dial.running.is_empty() && dial.sought != Sought::Running)
        {
            self.finish(peer, Err(error));
        }
    }

    fn finish(&mut self, peer: &PeerId, result: Result<(), ConnectError>) {
        let Some(dial) = self.peers.remove(peer) else {
            return;
        };
        for waiter in dial.waiters {
            if waiter.send(result).is_err() {
                tracing::trace!(%peer, "dial_no_longer_wanted");
            }
        }
    }
}

/// libp2p's reasons in our words.
pub(super) fn reason(error: &SwarmError) -> ConnectError {
    match error {
        SwarmError::NoAddresses => ConnectError::NoAddress,
        SwarmError::WrongPeerId { .. } => ConnectError::WrongPeer,
        SwarmError::LocalPeerId { .. } => ConnectError::Oneself,
        SwarmError::Denied { .. } => ConnectError::Limit,
        SwarmError::Aborted | SwarmError::DialPeerConditionFalse(_) | SwarmError::Transport(_) => {
            ConnectError::Unreachable
        }
    }
}

/// The peers we always want to be connected to.
pub(super) struct Roots {
    roots: Vec<Root>,
    salt: u8,
}

struct Root {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    failures: u32,
    due: Option<Instant>,
}

impl Roots {
    /// Reads the configured addresses, all due at once. Those of `local` itself are left out, so
    /// that one list serves all bootstrap nodes.
    pub(super) fn read(
        addresses: &[String],
        local: PeerId,
        now: Instant,
    ) -> Result<Self, StartError> {
        let mut roots: Vec<Root> = Vec::new();
        for text in addresses {
            let address = text
                .parse()
                .map_err(|_| StartError::Address(text.clone()))?;
            let (place, Some(peer)) = peer::split(address) else {
                return Err(StartError::Bootstrap(text.clone()));
            };
            match roots.iter_mut().find(|root| root.peer == peer) {
                _ if peer == local => {}
                Some(root) => root.addresses.push(place),
                None => roots.push(Root {
                    peer,
                    addresses: vec![place],
                    failures: 0,
                    due: Some(now),
                }),
            }
        }
        Ok(Self {
            roots,
            salt: local.to_bytes().last().copied().unwrap_or_default(),
        })
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.roots.iter().filter_map(|root| root.due).min()
    }

    /// Those due now, no longer due until their dial has ended.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let due = self
            .roots
            .iter_mut()
            .filter(|root| root.due.is_some_and(|due| due <= now));
        due.map(|root| {
            root.due = None;
            (root.peer, root.addresses.clone())
        })
        .collect()
    }

    /// The peer is connected.
    pub(super) fn connected(&mut self, peer: &PeerId) {
        if let Some(root) = self.roots.iter_mut().find(|root| root.peer == *peer) {
            root.failures = 0;
            root.due = None;
        }
    }

    /// The peer could not be reached, or its last connection is gone.
    pub(super) fn lost(&mut self, peer: &PeerId, now: Instant) {
        let salt = self.salt;
        if let Some(root) = self
            .roots
            .iter_mut()
            .find(|root| root.peer == *peer && root.due.is_none())
        {
            root.due = Some(now + pause(root.failures, salt));
            root.failures = root.failures.saturating_add(1);
        }
    }
}

/// The pause after so many failures, spread by up to a quarter so that nodes which lost the same
/// peer together do not return together.
fn pause(failures: u32, salt: u8) -> Duration {
    let pause = FIRST_PAUSE
        .saturating_mul(1 << failures.min(6))
        .min(LONGEST_PAUSE);
    pause + pause.mul_f64(f64::from(salt) / 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lost_root_is_due_again_ever_later_until_it_answers() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let list = [
            format!("/ip4/9.9.9.9/tcp/1/p2p/{peer}"),
            format!("/ip4/9.9.9.9/udp/1/quic-v1/p2p/{peer}"),
        ];
        let mut roots = Roots::read(&list, PeerId::random(), now).unwrap();
        assert_eq!(roots.take_due(now)[0].1.len(), 2);
        assert_eq!(roots.next(), None);
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            roots.lost(&peer, now);
            let due = roots.next().unwrap();
            assert!(due - now > last);
            last = due - now;
            assert_eq!(roots.take_due(due).len(), 1);
        }
        roots.connected(&peer);
        roots.lost(&peer, now);
        assert!(roots.next().unwrap() - now < 2 * FIRST_PAUSE);
        assert!(pause(u32::MAX, 255) < LONGEST_PAUSE * 2);
    }

    #[tokio::test]
    async fn a_root_without_a_peer_is_a_mistake_and_oneself_is_none() {
        let (now, local) = (Instant::now(), PeerId::random());
        let nameless = ["/ip4/9.9.9.9/tcp/1".to_owned()];
        assert!(matches!(
            Roots::read(&nameless, local, now),
            Err(StartError::Bootstrap(_))
        ));
        let own = [format!("/ip4/9.9.9.9/tcp/1/p2p/{local}")];
        assert_eq!(Roots::read(&own, local, now).unwrap().next(), None);
    }

    #[test]
    fn many_waiters_share_one_dial_and_hear_of_its_last_failure_only() {
        let (mut dials, peer) = (Dials::default(), PeerId::random());
        let address: Multiaddr = "/ip4/9.9.9.9/tcp/1".parse().unwrap();
        let other: Multiaddr = "/ip4/9.9.9.9/tcp/2".parse().unwrap();
        let (first, mut hears_first) = oneshot::channel();
        let (second, mut hears_second) = oneshot::channel();
        assert_eq!(
            dials.join(peer, first, vec![address.clone()]).unwrap(),
            std::slice::from_ref(&address)
        );
        assert_eq!(
            dials
                .join(peer, second, vec![address, other.clone()])
                .unwrap(),
            [other]
        );
        let ids = [1, 2].map(ConnectionId::new_unchecked);
        dials.running(peer, ids[0]);
        dials.running(peer, ids[1]);
        dials.failed(&peer, ids[0], ConnectError::WrongPeer);
        assert!(hears_first.try_recv().is_err());
        dials.failed(&peer, ids[1], ConnectError::Unreachable);
        assert_eq!(hears_first.try_recv(), Ok(Err(ConnectError::Unreachable)));
        assert_eq!(hears_second.try_recv(), Ok(Err(ConnectError::Unreachable)));
        assert!(dials.peers.is_empty());
    }
}
