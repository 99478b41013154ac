//! Asks peers to knock at our door (AutoNAT v2), for only others can tell whether it opens.
//!
//! Which addresses are tried is decided by us and not, as the protocol's own client would have it,
//! by whatever any peer says it sees: those lists would grow with the lies.

use std::{
    collections::HashSet,
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

/// The client of AutoNAT v2, under our rule for what is tried.
#[derive(Default)]
pub(super) struct Behaviour {
    inner: client::Behaviour,
    tried: HashSet<Multiaddr>,
}

impl Behaviour {
    /// Has an address tried as soon as a peer can.
    pub(super) fn try_at(&mut self, address: &Multiaddr) {
        if self.tried.len() < MAX_ADDRESSES && self.tried.insert(address.clone()) {
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
            knock.try_at(&format!("/ip4/9.9.9.9/tcp/{port}").parse().unwrap());
        }
        assert_eq!(knock.tried.len(), MAX_ADDRESSES);
    }
}
