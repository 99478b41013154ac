//! Bounds the connections that one network address may have to us, handshakes included, so that
//! one machine with many names cannot take every place.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Refusal of one connection too many.
#[derive(Debug, thiserror::Error)]
#[error("too many connections from one address")]
pub(super) struct Crowded;

/// Counts inbound connections by network: an IPv4 address, or the /64 of an IPv6 one.
pub(super) struct Behaviour {
    most: u32,
    most_relayed: u32,
    places: HashMap<ConnectionId, Place>,
    crowds: HashMap<Place, u32>,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// An IPv4 address, or the /64 of an IPv6 one.
    Network(IpAddr),
    /// Some relay, which does not tell where from: all of them together.
    Relayed,
}

impl Behaviour {
    /// At most `most` inbound connections for each network, and `most_relayed` through relays.
    pub(super) fn new(most: u32, most_relayed: u32) -> Self {
        Self {
            most,
            most_relayed,
            places: HashMap::new(),
            crowds: HashMap::new(),
        }
    }

    fn enter(&mut self, id: ConnectionId, address: &Multiaddr) -> Result<(), Crowded> {
        let Some(place) = place(address) else {
            return Ok(());
        };
        let most = match place {
            Place::Network(_) => self.most,
            Place::Relayed => self.most_relayed,
        };
        let crowd = self.crowds.entry(place).or_default();
        if *crowd >= most {
            return Err(Crowded);
        }
        *crowd += 1;
        self.places.insert(id, place);
        Ok(())
    }

    fn leave(&mut self, id: ConnectionId) {
        let Some(place) = self.places.remove(&id) else {
            return;
        };
        if let Some(crowd) = self.crowds.get_mut(&place) {
            *crowd = crowd.saturating_sub(1);
            if *crowd == 0 {
                self.crowds.remove(&place);
            }
        }
    }
}

/// The network of an address, which one party can be taken to hold whole. One that came through
/// a relay is only a name.
fn place(address: &Multiaddr) -> Option<Place> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(Place::Network(ip.into())),
        Protocol::Ip6(ip) => Some(Place::Network(match ip.to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => IpAddr::V6((ip.to_bits() & (u128::MAX << 64)).into()),
        })),
        Protocol::P2p(_) | Protocol::P2pCircuit => Some(Place::Relayed),
        _ => None,
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.enter(id, remote).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.leave(closed.connection_id),
            FromSwarm::ListenFailure(failure) => self.leave(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_cannot_take_every_place() {
        let mut crowd = Behaviour::new(2, 3);
        let mut next = 0;
        let mut enter = |crowd: &mut Behaviour, address: &str| {
            next += 1;
            let id = ConnectionId::new_unchecked(next);
            crowd.enter(id, &address.parse().unwrap()).map(|()| id)
        };
        let first = enter(&mut crowd, "/ip4/9.9.9.9/tcp/1").unwrap();
        enter(&mut crowd, "/ip4/9.9.9.9/udp/2/quic-v1").unwrap();
        assert!(enter(&mut crowd, "/ip6/::ffff:9.9.9.9/tcp/3").is_err());
        enter(&mut crowd, "/ip4/9.9.9.8/tcp/1").unwrap();
        enter(&mut crowd, "/ip6/2001:db8::1/tcp/1").unwrap();
        enter(&mut crowd, "/ip6/2001:db8::2/tcp/1").unwrap();
        assert!(enter(&mut crowd, "/ip6/2001:db8::3/tcp/1").is_err());
        crowd.leave(first);
        crowd.leave(first);
        enter(&mut crowd, "/ip4/9.9.9.9/tcp/4").unwrap();
        assert_eq!(crowd.places.len(), 5);
    }

    #[test]
    fn many_names_behind_relays_cannot_take_every_place() {
        let mut crowd = Behaviour::new(2, 3);
        let entered = (0..10).filter(|n| {
            let name = Multiaddr::empty().with(Protocol::P2p(PeerId::random()));
            crowd.enter(ConnectionId::new_unchecked(*n), &name).is_ok()
        });
        assert_eq!(entered.count(), 3);
        crowd.leave(ConnectionId::new_unchecked(0));
        let name = Multiaddr::empty().with(Protocol::P2p(PeerId::random()));
        crowd.enter(ConnectionId::new_unchecked(10), &name).unwrap();
    }

    #[test]
    fn those_who_left_are_forgotten() {
        let mut crowd = Behaviour::new(1, 1);
        for n in 0..100 {
            let address = format!("/ip4/9.9.9.{n}/tcp/1").parse().unwrap();
            crowd
                .enter(ConnectionId::new_unchecked(n), &address)
                .unwrap();
            crowd.leave(ConnectionId::new_unchecked(n));
        }
        assert!(crowd.places.is_empty() && crowd.crowds.is_empty());
    }
}
