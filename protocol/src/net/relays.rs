//! Relays, from both ends: what a node lends to those who cannot be reached, and where a node that
//! cannot be reached holds a place itself. Pure bookkeeping: the actor does the asking.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol, relay};
use tokio::time::Instant;

/// Relays remembered; later ones are not taken up.
const MAX_RELAYS: usize = 16;

/// First pause before a relay that refused or was lost is asked again; doubled on each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How long a place is held before it must be renewed, which clients do by themselves.
const RESERVATION: Duration = Duration::from_secs(3_600);

/// Places one peer may hold: one, and one more while its connection changes.
const RESERVATIONS_PER_PEER: usize = 2;

/// What a relay lends. libp2p's own limits (128 KiB and two minutes for a circuit) would cut
/// every long answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Peers that hold a place at once.
    pub reservations: u32,
    /// Circuits at once, of all peers together.
    pub circuits: u32,
    /// Circuits one peer may have opened at once.
    pub circuits_per_peer: u32,
    /// Circuits and reservations one peer may ask for in a burst; one more every two minutes.
    pub burst_per_peer: u32,
    /// The same for one network address; one more every minute.
    pub burst_per_address: u32,
    /// The longest a circuit lives.
    pub circuit_duration: Duration,
    /// The most bytes through one circuit, both ways together.
    pub circuit_bytes: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            reservations: 128,
            circuits: 1_024,
            circuits_per_peer: 4,
            burst_per_peer: 30,
            burst_per_address: 120,
            circuit_duration: Duration::from_secs(4 * 3_600),
            circuit_bytes: 256 * 1024 * 1024,
        }
    }
}

impl RelayLimits {
    /// The fewest circuits with which one network address, from which so many peers may connect,
    /// never holds more than half of them. libp2p counts circuits by peer only, and lets each have
    /// one more than it is told.
    #[must_use]
    pub const fn least_circuits(&self, connections_per_address: u32) -> u32 {
        let each = self.circuits_per_peer.saturating_add(1);
        each.saturating_mul(connections_per_address)
            .saturating_mul(2)
    }
}

/// The lending side, which always says that it lends.
pub(super) fn server(local: PeerId, limits: &RelayLimits) -> relay::Behaviour {
    let per_peer = NonZeroU32::new(limits.burst_per_peer).unwrap_or(NonZeroU32::MIN);
    let per_address = NonZeroU32::new(limits.burst_per_address).unwrap_or(NonZeroU32::MIN);
    let (slow, quick) = (Duration::from_secs(120), Duration::from_secs(60));
    let config = relay::Config {
        max_reservations: limits.reservations as usize,
        max_reservations_per_peer: RESERVATIONS_PER_PEER,
        reservation_duration: RESERVATION,
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.circuits as usize,
        max_circuits_per_peer: limits.circuits_per_peer as usize,
        max_circuit_duration: limits.circuit_duration,
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    }
    .reservation_rate_per_peer(per_peer, slow)
    .reservation_rate_per_ip(per_address, quick)
    .circuit_src_per_peer(per_peer, slow)
    .circuit_src_per_ip(per_address, quick);
    let mut behaviour = relay::Behaviour::new(local, config);
    behaviour.set_status(Some(relay::Status::Enable));
    behaviour
}

/// The relays we know, and the places we hold.
pub(super) struct Relays {
    wanted: usize,
    known: HashMap<PeerId, Relay>,
}

struct Relay {
    address: Multiaddr,
    place: Place,
    due: Instant,
    failures: u32,
    refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    None,
    Asked(ListenerId),
    Held(ListenerId),
}

impl Place {
    fn is_at(self, listener: ListenerId) -> bool {
        matches!(self, Self::Asked(id) | Self::Held(id) if id == listener)
    }
}

impl Relays {
    /// Nobody known yet; places at `wanted` relays are aimed at.
    pub(super) fn new(wanted: usize) -> Self {
        Self {
            wanted,
            known: HashMap::new(),
        }
    }

    /// Places are needed again, so many.
    pub(super) fn want(&mut self, wanted: usize) {
        self.wanted = wanted;
    }

    /// Whether places are wanted at all.
    pub(super) const fn is_wanted(&self) -> bool {
        self.wanted > 0
    }

    /// A peer that lends, at a place we reached it at. A place without work moves with the peer.
    pub(super) fn met(&mut self, peer: PeerId, address: Multiaddr, now: Instant) {
        if let Some(relay) = self.known.get_mut(&peer) {
            if relay.place == Place::None {
                relay.address = address;
            }
            return;
        }
        if self.known.len() >= MAX_RELAYS {
            // A relay that does not answer makes room for one that is there.
            let broken = |relay: &Relay| relay.place == Place::None && relay.failures > 2;
            let gone = self.known.iter().find(|(_, relay)| broken(relay));
            let Some(gone) = gone.map(|(id, _)| *id) else {
                return;
            };
            self.known.remove(&gone);
        }
        self.add(peer, address, now);
    }

    fn add(&mut self, peer: PeerId, address: Multiaddr, now: Instant) {
        let relay = Relay {
            address,
            place: Place::None,
            due: now,
            failures: 0,
            refused: false,
        };
        self.known.insert(peer, relay);
    }

    /// When the next relay is to be asked; never while enough places are held or asked for.
    pub(super) fn next(&self) -> Option<Instant> {
        let free = self.known.values().filter(|r| r.place == Place::None);
        match self.taken() < self.wanted {
            true => free.map(|relay| relay.due).min(),
            false => None,
        }
    }

    /// Whom to ask now, and the address to listen at for that.
    pub(super) fn due(&self, now: Instant) -> Option<(PeerId, Multiaddr)> {
        self.next().filter(|due| *due <= now)?;
        let free = self.known.iter().filter(|(_, r)| r.place == Place::None);
        let (peer, relay) = free.min_by_key(|(_, relay)| relay.due)?;
        let circuit = relay.address.clone().with(Protocol::P2p(*peer));
        Some((*peer, circuit.with(Protocol::P2pCircuit)))
    }

    /// The relay is being asked, by this listener.
    pub(super) fn asked(&mut self, peer: &PeerId, listener: ListenerId) {
        if let Some(relay) = self.known.get_mut(peer) {
            relay.place = Place::Asked(listener);
        }
    }

    /// The relay could not even be asked.
    pub(super) fn unable(&mut self, peer: &PeerId, now: Instant) {
        if let Some(relay) = self.known.get_mut(peer) {
            relay.fail(now);
        }
    }

    /// A relay gave us a place.
    pub(super) fn held(&mut self, peer: &PeerId) {
        if let Some(relay) = self.known.get_mut(peer) {
            if let Place::Asked(listener) = relay.place {
                relay.place = Place::Held(listener);
            }
            (relay.failures, relay.refused) = (0, false);
        }
    }

    /// A listener ended; `refused` when the relay said no. True if it was one at a relay.
    pub(super) fn lost(&mut self, listener: ListenerId, refused: bool, now: Instant) -> bool {
        let Some(relay) = self.known.values_mut().find(|r| r.place.is_at(listener)) else {
            return false;
        };
        relay.refused = refused;
        relay.fail(now);
        true
    }

    /// Places are no longer needed: the listeners to end.
    pub(super) fn release(&mut self) -> Vec<ListenerId> {
        self.wanted = 0;
        let places = self.known.values().map(|relay| relay.place);
        let listener = |place| match place {
            Place::Asked(id) | Place::Held(id) => Some(id),
            Place::None => None,
        };
        places.filter_map(listener).collect()
    }

    /// Relays that let us be reached now.
    pub(super) fn holding(&self) -> usize {
        let held = |relay: &&Relay| matches!(relay.place, Place::Held(_));
        self.known.values().filter(held).count()
    }

    /// Relays known, and whether the last word of one was no.
    pub(super) fn known(&self) -> (usize, bool) {
        let refused = self.known.values().any(|relay| relay.refused);
        (self.known.len(), refused)
    }

    fn taken(&self) -> usize {
        let taken = |relay: &&Relay| relay.place != Place::None;
        self.known.values().filter(taken).count()
    }
}

impl Relay {
    fn fail(&mut self, now: Instant) {
        self.place = Place::None;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8));
        self.due = now + pause.min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/9.9.9.9/tcp/{}", n + 1).parse().unwrap()
    }

    #[test]
    fn one_network_address_cannot_hold_a_whole_relay_by_default() {
        let (lent, limits) = (RelayLimits::default(), crate::net::Limits::default());
        let least = lent.least_circuits(limits.connections_per_address);
        assert!(lent.circuits >= least, "{} of {least}", lent.circuits);
        let endless = RelayLimits {
            circuits_per_peer: u32::MAX,
            ..lent
        };
        assert_eq!(endless.least_circuits(32), u32::MAX);
    }

    #[tokio::test]
    async fn as_many_places_as_wanted_are_held_and_a_lost_one_is_replaced() {
        let now = Instant::now();
        let mut relays = Relays::new(2);
        let peers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        for (n, peer) in peers.iter().enumerate() {
            relays.met(*peer, address(n), now);
        }
        let mut listeners = Vec::new();
        while let Some((peer, at)) = relays.due(now) {
            assert!(
                at.to_string()
                    .ends_with(&format!("/p2p/{peer}/p2p-circuit"))
            );
            let listener = ListenerId::next();
            relays.asked(&peer, listener);
            relays.held(&peer);
            listeners.push(listener);
        }
        assert_eq!((listeners.len(), relays.holding()), (2, 2));
        assert!(relays.lost(listeners[0], false, now));
        assert!(
            !relays.lost(listeners[0], false, now),
            "it is known no more"
        );
        let (spare, _) = relays.due(now).unwrap();
        relays.asked(&spare, ListenerId::next());
        assert_eq!(relays.due(now), None, "the third takes its place");
        assert_eq!(relays.release().len(), 2);
        assert_eq!(relays.next(), None);
    }

    #[tokio::test]
    async fn a_relay_that_refuses_is_asked_ever_more_rarely() {
        let now = Instant::now();
        let mut relays = Relays::new(1);
        let peer = PeerId::random();
        relays.met(peer, address(0), now);
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            let listener = ListenerId::next();
            relays.asked(&peer, listener);
            assert!(relays.lost(listener, true, now));
            let pause = relays.next().unwrap() - now;
            assert!(pause > last);
            last = pause;
        }
        assert_eq!(relays.known(), (1, true));
        relays.asked(&peer, ListenerId::next());
        relays.held(&peer);
        assert_eq!(relays.known(), (1, false));
    }

    #[tokio::test]
    async fn endless_relays_do_not_fill_the_memory_and_broken_ones_make_room() {
        let now = Instant::now();
        let mut relays = Relays::new(1);
        for n in 0..1_000 {
            relays.met(PeerId::random(), address(n), now);
        }
        assert_eq!(relays.known.len(), MAX_RELAYS);
        let (broken, _) = relays.due(now).unwrap();
        for _ in 0..4 {
            relays.unable(&broken, now);
        }
        let fresh = PeerId::random();
        relays.met(fresh, address(7), now);
        assert!(relays.known.contains_key(&fresh) && !relays.known.contains_key(&broken));
        assert_eq!(relays.known.len(), MAX_RELAYS);
    }
}
