//! How the actor learns where it can be reached, and sees to it that it is: it believes addresses
//! that peers agree on, has them tried, and holds places at relays until strangers come in without.

use std::{collections::HashMap, io, net::IpAddr, sync::PoisonError, time::Duration};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{ConnectedPoint, transport::ListenerId},
    identify, kad,
    multiaddr::Protocol,
    relay,
    swarm::{ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate},
};
use tokio::time::Instant;

use crate::net::{
    Reach,
    actor::Actor,
    observed::Observed,
    peer,
    reachability::{Reachability, Sightings},
    relays::Relays,
    routes,
};

/// Says in identify that a peer lends itself as a relay.
const LENDS: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// Machines remembered as spoken to. Past it nobody counts as a stranger until some are forgotten.
const MAX_SPOKEN_TO: usize = 4_096;

/// How long a stranger's visit proves anything, and how long a machine we spoke to may be one that
/// a NAT lets in: addresses and routers change.
const VISIT: Duration = Duration::from_secs(3_600);

/// What is known of our own place.
pub(in crate::net) struct Presence {
    relays: Relays,
    observed: Observed,
    seen: Sightings,
    lends: bool,
    /// Machines we have connected to ourselves, and when.
    spoken_to: HashMap<IpAddr, Instant>,
    /// When the last stranger came.
    visit: Option<Instant>,
    /// Relays to hold places at while none comes.
    wanted: usize,
    upkeep: routes::Upkeep,
}

impl Presence {
    /// Places at `relays` relays are wanted; `told` if the operator knows our address, `lends`
    /// if we are a relay ourselves.
    pub(in crate::net) fn new(relays: usize, told: bool, lends: bool) -> Self {
        let wanted = if told { 0 } else { relays };
        Self {
            relays: Relays::new(wanted),
            observed: Observed::default(),
            seen: Sightings {
                told,
                in_need: relays > 0,
                ..Sightings::default()
            },
            lends,
            spoken_to: HashMap::new(),
            visit: None,
            wanted,
            upkeep: routes::Upkeep::default(),
        }
    }

    fn speak_to(&mut self, address: &Multiaddr, now: Instant) {
        self.forget_old(now);
        if self.spoken_to.len() < MAX_SPOKEN_TO
            && let Some(ip) = ip_of(address)
        {
            self.spoken_to.insert(ip, now);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        if self.spoken_to.len() >= MAX_SPOKEN_TO {
            self.spoken_to.retain(|_, spoken| now - *spoken < VISIT);
        }
    }

    /// Whether we have not spoken to that machine first: a NAT would let it answer, and nobody
    /// else.
    fn is_strange(&mut self, address: &Multiaddr, (reach, now): (Reach, Instant)) -> bool {
        self.forget_old(now);
        let (place, _) = peer::split(address.clone());
        let room = self.spoken_to.len() < MAX_SPOKEN_TO;
        let unspoken = |ip| room && !self.spoken_to.contains_key(&ip);
        reach == Reach::Local || peer::is_public(&place) && ip_of(&place).is_some_and(unspoken)
    }

    /// A stranger came; true if that was not known to be possible.
    fn visited(&mut self, now: Instant) -> bool {
        self.visit = Some(now);
        !std::mem::replace(&mut self.seen.visited, true)
    }

    /// Forgets the last visit if it is too long ago: relays are wanted again. True if it was now.
    fn fade(&mut self, now: Instant) -> bool {
        let over = self.visit.is_some_and(|visit| now - visit >= VISIT);
        if over {
            self.visit = None;
            self.seen.visited = false;
            self.relays.want(self.wanted);
        }
        over
    }

    /// When a relay is to be asked, or the last visit forgotten.
    pub(in crate::net) fn next(&self) -> Option<Instant> {
        let faded = self.visit.map(|visit| visit + VISIT);
        self.relays.next().into_iter().chain(faded).min()
    }
}

impl Actor {
    /// Others may search our table where anybody can reach it.
    pub(super) fn open_routes(&mut self) {
        let open = self.reach == Reach::Local || self.presence.seen.told;
        let mode = if open {
            kad::Mode::Server
        } else {
            kad::Mode::Client
        };
        self.swarm.behaviour_mut().routes.set_mode(Some(mode));
    }

    pub(super) fn on_listening(&mut self, address: Multiaddr) {
        if !peer::is_relayed(&address) {
            self.presence.seen.listens = true;
            // A relay tells its guests its own addresses; at home those we listen at are true.
            if self.reach == Reach::Local && self.presence.lends {
                self.swarm.add_external_address(address);
            }
        }
        self.note_addresses();
    }

    pub(super) fn on_listener_closed(&mut self, listener: ListenerId, reason: io::Result<()>) {
        let refused = reason.as_ref().is_err_and(is_refusal);
        if self.presence.relays.lost(listener, refused, Instant::now()) {
            tracing::debug!(?reason, "relay_lost");
            self.note_reachability();
        }
        self.note_addresses();
    }

    /// Asks relays for a place, as long as too few are held and no stranger has come of late.
    pub(super) fn reserve(&mut self) {
        let now = Instant::now();
        if self.presence.fade(now) {
            tracing::info!("no_stranger_for_long");
            self.open_routes();
            self.note_reachability();
        }
        while let Some((relay, circuit)) = self.presence.relays.due(now) {
            match self.swarm.listen_on(circuit) {
                Ok(listener) => self.presence.relays.asked(&relay, listener),
                Err(error) => {
                    tracing::debug!(%relay, %error, "relay_not_asked");
                    self.presence.relays.unable(&relay, now);
                }
            }
        }
    }

    pub(super) fn on_relayed(&mut self, event: relay::client::Event) {
        use relay::client::Event;
        match event {
            Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            } => {
                self.presence.relays.held(&relay_peer_id);
                if !renewal {
                    tracing::info!(relay = %relay_peer_id, "relay_holds_a_place");
                }
                self.note_reachability();
            }
            Event::OutboundCircuitEstablished {
                relay_peer_id,
                limit,
            } => {
                let said = limit.map(|limit| (limit.duration(), limit.data_in_bytes()));
                let directory = &self.board.directory;
                directory.learn_limit(relay_peer_id, said.unwrap_or_default());
            }
            _ => {}
        }
    }

    /// A connection stands. One that a stranger made is the only full proof that strangers can.
    pub(super) fn on_entered(&mut self, peer: &PeerId, endpoint: &ConnectedPoint, first: bool) {
        let now = Instant::now();
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.presence.speak_to(address, now);
        }
        if let ConnectedPoint::Listener { send_back_addr, .. } = endpoint
            && first
            && !peer::is_relayed(send_back_addr)
            && !endpoint.is_relayed()
            && self.presence.is_strange(send_back_addr, (self.reach, now))
            && self.presence.visited(now)
        {
            tracing::info!(%peer, "visited_by_a_stranger");
            routes::open(&mut self.swarm.behaviour_mut().routes);
            for listener in self.presence.relays.release() {
                self.swarm.remove_listener(listener);
            }
        }
        self.note_reachability();
    }

    /// A step of looking around in the table of routes is done.
    pub(super) fn on_looked(&mut self, query: kad::QueryId, result: &kad::QueryResult) {
        let (table, now) = (&mut self.swarm.behaviour_mut().routes, Instant::now());
        self.presence.upkeep.looked(table, query, result, now);
    }

    pub(super) fn on_identified(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        info: identify::Info,
    ) {
        let speaks = |name: &str| info.protocols.iter().any(|known| known.as_ref() == name);
        let listens = info.listen_addrs.iter().map(ToString::to_string);
        let listens = peer::dialable(&listens.collect::<Vec<_>>(), peer, self.reach);
        if speaks(LENDS) && self.presence.relays.is_wanted() {
            let place = self.board.directory.place_of(&peer);
            let direct = listens.iter().find(|place| !peer::is_relayed(place));
            if let Some(place) = place.or_else(|| direct.cloned()) {
                self.presence.relays.met(peer, place, Instant::now());
            }
        }
        if speaks(routes::PROTOCOL.as_ref()) && !listens.is_empty() {
            let origin = self.board.directory.origin(&peer);
            let (table, now) = (&mut self.swarm.behaviour_mut().routes, Instant::now());
            if self.presence.upkeep.admits(table, (peer, origin), now) {
                routes::add(table, peer, listens);
            }
        }
        self.on_observed(connection, peer, info.observed_addr);
        self.note_reachability();
    }

    fn on_observed(&mut self, connection: ConnectionId, witness: PeerId, address: Multiaddr) {
        let (place, _) = peer::split(address);
        let public = self.reach == Reach::Local || peer::is_public(&place);
        if !self.dialled.contains(&connection) || peer::is_relayed(&place) || !public {
            return;
        }
        self.presence.seen.public = true;
        let behaviour = self.swarm.behaviour_mut();
        behaviour.knock.try_at(&place, witness);
        // Identify offers hole punching the port we listen at, which a NAT may have changed.
        let candidate = NewExternalAddrCandidate { addr: &place };
        let told = FromSwarm::NewExternalAddrCandidate(candidate);
        behaviour.punching.on_swarm_event(told);
        if peer::is_public(&place) && self.presence.observed.note(&place, witness) {
            tracing::info!(address = %place, "address_observed");
            self.swarm.add_external_address(place);
            self.note_addresses();
        }
    }

    pub(super) fn on_knock(&mut self, event: &client::Event) {
        let opened = event.result.is_ok();
        tracing::debug!(address = %event.tested_addr, opened, "address_tested");
        // One address that opens is enough, whatever came of the others.
        let seen = &mut self.presence.seen;
        seen.tested = Some(opened || seen.tested == Some(true));
        self.note_reachability();
    }

    /// Writes our addresses on the board: those confirmed from outside first, then those at
    /// relays, then those we listen at.
    pub(super) fn note_addresses(&self) {
        let local = *self.swarm.local_peer_id();
        let relayed = |address: &&Multiaddr| {
            let (place, _) = peer::split((*address).clone());
            peer::relay_of(&place, self.reach).is_some()
        };
        let own = |address: &&Multiaddr| peer::allowed(address, self.reach);
        let outside = || self.swarm.external_addresses();
        let inside = || self.swarm.listeners();
        let direct = outside().filter(|address| !peer::is_relayed(address));
        let through = outside().chain(inside()).filter(relayed);
        let mut addresses: Vec<String> = Vec::new();
        for address in direct.chain(through).chain(inside().filter(own)) {
            let text = peer::full(address, local);
            if !addresses.contains(&text) {
                addresses.push(text);
            }
        }
        *self
            .board
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Writes on the board how strangers reach us.
    pub(super) fn note_reachability(&mut self) {
        let presence = &mut self.presence;
        let (relays, refused) = presence.relays.known();
        presence.seen = Sightings {
            peers: self.swarm.network_info().num_peers(),
            held: presence.relays.holding(),
            relays,
            refused,
            ..presence.seen
        };
        let now = presence.seen.judge();
        let mut board = self
            .board
            .reachability
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if *board != now {
            log(now);
            *board = now;
        }
    }
}

fn log(now: Reachability) {
    match now {
        Reachability::Unreachable(barrier) => {
            tracing::warn!(reason = %barrier, remedy = barrier.remedy(), "not_reachable");
        }
        Reachability::Relayed { relays, barrier } => {
            tracing::info!(relays, reason = %barrier, remedy = barrier.remedy(), "reached_through_relays");
        }
        other => tracing::info!(how = ?other, "reachability"),
    }
}

/// Whether a listener at a relay ended because the relay said no.
fn is_refusal(error: &io::Error) -> bool {
    use relay::outbound::hop::ReserveError;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ReserveError>() {
            return matches!(
                error,
                ReserveError::Refused | ReserveError::ResourceLimitExceeded
            );
        }
        // An `io::Error` passes over what it wraps when asked for its source.
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_hour_without_a_stranger_brings_the_relays_back() {
        let start = Instant::now();
        let mut presence = Presence::new(1, false, false);
        let at = "/ip4/9.9.9.9/tcp/1".parse().unwrap();
        presence.relays.met(PeerId::random(), at, start);
        assert!(presence.visited(start), "that is news");
        assert!(presence.relays.release().is_empty());
        assert_eq!(presence.next(), Some(start + VISIT), "no relay is asked");
        let later = start + VISIT / 2;
        assert!(!presence.visited(later), "that is none");
        assert!(!presence.fade(start + VISIT), "the last visit counts");
        assert_eq!(presence.seen.judge(), Reachability::Visited);
        assert!(presence.fade(later + VISIT));
        assert_ne!(presence.seen.judge(), Reachability::Visited);
        assert!(presence.relays.due(later + VISIT).is_some(), "one is asked");
        assert!(!presence.fade(later + VISIT * 2), "it fades once");
        assert!(presence.visited(later + VISIT * 2), "and is news again");
    }

    #[tokio::test]
    async fn machines_spoken_to_are_no_strangers_until_they_are_old_and_the_memory_full() {
        let start = Instant::now();
        let mut presence = Presence::new(1, false, false);
        let at = |n: usize| -> Multiaddr {
            let text = format!("/ip4/9.9.{}.{}/tcp/1", n / 256, n % 256);
            text.parse().unwrap()
        };
        let hour = start + VISIT;
        for n in 0..MAX_SPOKEN_TO + 10 {
            presence.speak_to(&at(n), start);
        }
        let stranger = at(MAX_SPOKEN_TO + 100);
        let mut strange = |at: &Multiaddr, now| presence.is_strange(at, (Reach::Public, now));
        assert!(!strange(&at(0), start));
        assert!(!strange(&stranger, start), "who knows whether we spoke");
        assert!(strange(&stranger, hour));
    }
}
