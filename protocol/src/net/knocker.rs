//! Knocks at the doors of peers who ask for it (AutoNAT v2): the other end of [`super::knock`].
//!
//! A knock at a door that keeps silent lasts as long as a handshake may, and strangers name the
//! doors. So each peer has one at a time, and all together a few: the places for dials are ours.
//! Whoever is refused is told that we could not try, not that its door is shut.

use std::{
    collections::HashMap,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::server,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialFailure, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
    },
};

/// Knocks at once, for all peers together: an eighth of the dials that may be running.
const MAX_KNOCKS: usize = 8;

/// The server of AutoNAT v2, under our rule for how many dials it may run.
#[derive(Default)]
pub(super) struct Behaviour {
    inner: server::Behaviour,
    knocks: Knocks,
}

/// Whom we knock for, and the dial once it runs.
#[derive(Default)]
struct Knocks(HashMap<PeerId, Option<ConnectionId>>);

impl Knocks {
    /// Takes a place for the peer; false if it has one, or none is left.
    fn take(&mut self, peer: PeerId) -> bool {
        let free = self.0.len() < MAX_KNOCKS && !self.0.contains_key(&peer);
        if free {
            self.0.insert(peer, None);
        }
        free
    }

    fn runs(&mut self, peer: &PeerId, dial: ConnectionId) {
        if let Some(knock) = self.0.get_mut(peer) {
            *knock = Some(dial);
        }
    }

    fn ended(&mut self, dial: ConnectionId) {
        self.0.retain(|_, knock| *knock != Some(dial));
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <server::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = server::Event;

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
        if let FromSwarm::DialFailure(DialFailure { connection_id, .. })
        | FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, .. }) = event
        {
            self.knocks.ended(connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        // On the left of the right is an order to dial. Dropped, it answers that we could not.
        let asks = event.as_ref().right().is_some_and(|event| event.is_left());
        if asks && !self.knocks.take(peer) {
            tracing::debug!(%peer, "knock_refused");
            return;
        }
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let event = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &event
            && let Some(peer) = opts.get_peer_id()
        {
            self.knocks.runs(&peer, opts.connection_id());
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use futures::StreamExt;
    use libp2p::{
        Swarm, SwarmBuilder, autonat::v2::client, identify, identity::Keypair, noise,
        swarm::SwarmEvent, tcp, yamux,
    };
    use tokio::time::timeout;

    use super::*;

    /// Requests the protocol's own client makes at once.
    const ASKED: usize = 10;

    #[derive(NetworkBehaviour)]
    struct Node<B: NetworkBehaviour> {
        identify: identify::Behaviour,
        part: B,
    }

    fn node<B: NetworkBehaviour>(part: B) -> Swarm<Node<B>> {
        let with = |key: &Keypair| Node {
            identify: identify::Behaviour::new(identify::Config::new("/t".into(), key.public())),
            part,
        };
        let builder = SwarmBuilder::with_new_identity().with_tokio();
        builder
            .with_tcp(
                tcp::Config::new(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(with)
            .unwrap()
            .build()
    }

    #[tokio::test]
    async fn a_stranger_who_names_many_silent_doors_has_us_dial_one() {
        let silent: Vec<TcpListener> = (0..ASKED)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let mut stranger = client::Behaviour::default();
        for door in &silent {
            let port = door.local_addr().unwrap().port();
            let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
            let candidate = libp2p::swarm::NewExternalAddrCandidate { addr: &address };
            stranger.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
        let (mut ours, mut stranger) = (node(Behaviour::default()), node(stranger));
        ours.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
            .unwrap();
        let mut refused = 0;
        let asked = async {
            while refused < ASKED - 1 {
                tokio::select! {
                    event = ours.select_next_some() => match event {
                        SwarmEvent::NewListenAddr { address, .. } => stranger.dial(address).unwrap(),
                        SwarmEvent::Behaviour(NodeEvent::Part(_)) => refused += 1,
                        _ => {}
                    },
                    _ = stranger.select_next_some() => {}
                }
                let counters = ours.network_info();
                let dials = counters.connection_counters().num_pending_outgoing();
                assert!(dials <= 1, "{dials} dials for one stranger");
            }
        };
        timeout(Duration::from_secs(60), asked).await.unwrap();
    }

    #[test]
    fn strangers_together_have_few_knocks_and_each_place_comes_back() {
        let mut knocks = Knocks::default();
        let peers: Vec<PeerId> = (0..100).map(|_| PeerId::random()).collect();
        let taken: Vec<&PeerId> = peers.iter().filter(|peer| knocks.take(**peer)).collect();
        assert_eq!(taken.len(), MAX_KNOCKS);
        let dial = ConnectionId::new_unchecked(7);
        knocks.runs(taken[0], dial);
        knocks.ended(ConnectionId::new_unchecked(8));
        assert!(!knocks.take(peers[99]));
        knocks.ended(dial);
        assert!(knocks.take(peers[99]));
        assert!(!knocks.take(peers[98]));
    }
}
