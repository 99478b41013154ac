//! Asks peers to knock at our door (AutoNAT v2), for only others can tell whether it opens.
//!
//! Which addresses are tried is decided by us and not, as the protocol's own client would have it,
//! by whatever any peer says it sees: those lists would grow with the lies.

use std::{
    collections::{HashMap, HashSet},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};

/// Addresses tried; more are not taken up.
const MAX_ADDRESSES: usize = 16;

/// Of these, those that one peer may name: several must lie to use them up.
const MAX_OF_ONE: usize = 4;

/// The client of AutoNAT v2, under our rule for what is tried.
#[derive(Default)]
pub(super) struct Behaviour {
    inner: client::Behaviour,
    tried: HashSet<Multiaddr>,
    /// How many of them each peer has named.
    named: HashMap<PeerId, usize>,
}

impl Behaviour {
    /// Has an address that `witness` named tried as soon as a peer can. Each is tried once: the
    /// protocol's client does not try again.
    pub(super) fn try_at(&mut self, address: &Multiaddr, witness: PeerId) {
        let named = self.named.get(&witness).copied().unwrap_or_default();
        if self.tried.len() < MAX_ADDRESSES
            && named < MAX_OF_ONE
            && self.tried.insert(address.clone())
        {
            self.named.insert(witness, named + 1);
            let candidate = NewExternalAddrCandidate { addr: address };
            self.inner
                .on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <client::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if !matches!(event, FromSwarm::NewExternalAddrCandidate(_)) {
            self.inner.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_peers_say_they_see_only_few_addresses_are_tried() {
        let mut knock = Behaviour::default();
        for port in 1..1_000 {
            let address = format!("/ip4/9.9.9.9/tcp/{port}").parse().unwrap();
            knock.try_at(&address, PeerId::random());
        }
        assert_eq!(knock.tried.len(), MAX_ADDRESSES);
        assert_eq!(knock.named.len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn one_liar_does_not_use_up_what_is_tried() {
        let mut knock = Behaviour::default();
        let liar = PeerId::random();
        for port in 1..1_000 {
            let address = format!("/ip4/9.9.9.9/tcp/{port}").parse().unwrap();
            knock.try_at(&address, liar);
        }
        let own: Multiaddr = "/ip4/9.9.9.8/tcp/1".parse().unwrap();
        knock.try_at(&own, PeerId::random());
        assert!(knock.tried.contains(&own));
        assert_eq!(knock.tried.len(), MAX_OF_ONE + 1);
    }
}
