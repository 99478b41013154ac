//! Our stream behaviour. It opens and accepts streams of the two [`Protocol`]s and knows nothing
//! of what flows in them.
//!
//! `libp2p-stream` loses streams under load: its inbound queue holds none. Here inbound streams
//! go into one bounded queue; past it, or past a peer's cap, a stream is reset and counted, and
//! the swarm never waits. Opening does not pass through the swarm either: [`Directory`] leads
//! straight to the task of the connection. It ends with the swarm.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    iter::Copied,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    identity::NodeId,
    net::{
        Incoming, Protocol,
        directory::{Circuit, Directory, Link, Refusal, Reply, Request},
        origin::Origin,
        peer,
        stream::{Slot, Stream},
    },
};

/// Requests queued for one connection; past it, callers wait in `open`.
const REQUESTS: usize = 64;

/// Streams one connection negotiates at once; yamux allows 256 unacknowledged ones.
const NEGOTIATING: usize = 256;

/// Streams we have open on one connection at most. The muxers take some more
/// ([`STREAMS`](super::swarm)): what is left is for those of the peer, and of other behaviours.
/// Past it a caller is told, for past theirs yamux ends the connection with all that runs on it.
pub(super) const OPENED: usize = 3_072;

/// How long either side may take to agree on a stream.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// Refusal of a peer whose key is not ed25519.
#[derive(Debug, thiserror::Error)]
#[error("the peer's key is not ed25519")]
pub(super) struct ForeignKey;

/// Keeps the [`Directory`] and gives each connection a [`Handler`].
pub(super) struct Behaviour {
    directory: Arc<Directory>,
    inlet: Inlet,
}

/// Where accepted streams go, and how many of one peer may be alive.
#[derive(Clone)]
struct Inlet {
    incoming: mpsc::Sender<Incoming>,
    per_peer: usize,
}

impl Behaviour {
    /// The behaviour that fills `directory` and accepts into `incoming`, at most `per_peer` each.
    pub(super) fn new(
        directory: Arc<Directory>,
        incoming: mpsc::Sender<Incoming>,
        per_peer: usize,
    ) -> Self {
        Self {
            directory,
            inlet: Inlet { incoming, per_peer },
        }
    }

    fn admit(
        &self,
        peer: PeerId,
        connection: ConnectionId,
        (address, remote, dialled): (&Multiaddr, &Multiaddr, bool),
    ) -> Result<Handler, ConnectionDenied> {
        let node = peer::node_of(&peer).ok_or_else(|| ConnectionDenied::new(ForeignKey))?;
        let (sender, requests) = mpsc::channel(REQUESTS);
        let circuit = peer::is_relayed(address).then(|| Circuit {
            relay: peer::split(peer::first_hop(address)).1,
            born: Instant::now(),
            bytes: Arc::default(),
        });
        let carried = circuit.as_ref().map(|circuit| Arc::clone(&circuit.bytes));
        let open = self.directory.add(
            peer,
            Link {
                connection,
                dialled: dialled.then(|| address.clone()),
                quic: peer::is_quic(address),
                origin: Origin::of(remote),
                circuit,
                requests: sender,
            },
        );
        let directory = Arc::clone(&self.directory);
        Ok(Handler {
            requests,
            directory,
            inlet: self.inlet.clone(),
            peer: node,
            carried,
            open,
            opened: Arc::default(),
            negotiating: 0,
        })
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer, id, (local, remote, false))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer, id, (address, address, true))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => {
                self.directory.remove(&closed.peer_id, closed.connection_id)
            }
            FromSwarm::DialFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.directory.remove(&peer, failure.connection_id);
                }
            }
            FromSwarm::ListenFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.directory.remove(&peer, failure.connection_id);
                }
            }
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

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// One connection's end of it.
pub(super) struct Handler {
    requests: mpsc::Receiver<Request>,
    directory: Arc<Directory>,
    inlet: Inlet,
    peer: NodeId,
    /// Counts the bytes of a circuit.
    carried: Option<Arc<AtomicU64>>,
    open: Arc<AtomicUsize>,
    /// The streams of ours alive on this connection.
    opened: Arc<AtomicUsize>,
    negotiating: usize,
}

impl Handler {
    fn accept(&self, protocol: Protocol, stream: libp2p::Stream) {
        let accepted = Slot::take(&self.open, self.inlet.per_peer).is_some_and(|slot| {
            let stream = Stream::inbound(stream, slot, self.carried.clone());
            self.inlet
                .incoming
                .try_send(Incoming {
                    peer: self.peer,
                    protocol,
                    stream,
                })
                .is_ok()
        });
        if !accepted {
            self.directory.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(peer = %self.peer, ?protocol, "stream_refused");
        }
    }

    fn answer(&mut self, reply: Reply, result: Result<Stream, Refusal>) {
        self.negotiating = self.negotiating.saturating_sub(1);
        if reply.send(result).is_err() {
            tracing::trace!(peer = %self.peer, "stream_no_longer_wanted");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = (Reply, Slot);

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade(&Protocol::ALL), ()).with_timeout(NEGOTIATION)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Upgrade, (Reply, Slot), Infallible>> {
        // At the bound no waker is needed: the connection polls us after each negotiation ends.
        while self.negotiating < NEGOTIATING {
            let Poll::Ready(Some(request)) = self.requests.poll_recv(cx) else {
                return Poll::Pending;
            };
            if request.reply.is_closed() {
                continue;
            }
            let Some(slot) = Slot::take(&self.opened, OPENED) else {
                // Whoever asked may have gone meanwhile.
                request.reply.send(Err(Refusal::Full)).ok();
                continue;
            };
            self.negotiating += 1;
            let upgrade = Upgrade(request.protocol.alone());
            let protocol =
                SubstreamProtocol::new(upgrade, (request.reply, slot)).with_timeout(NEGOTIATION);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Upgrade, Upgrade, (), (Reply, Slot)>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => {
                self.accept(protocol, stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (_, stream),
                info: (reply, slot),
            }) => {
                let stream = Stream::outbound(stream, slot, self.carried.clone());
                self.answer(reply, Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: (reply, _slot),
                error,
            }) => {
                let refusal = match error {
                    StreamUpgradeError::Timeout => Refusal::Deadline,
                    StreamUpgradeError::NegotiationFailed => Refusal::Unsupported,
                    StreamUpgradeError::Io(_) => Refusal::Lost,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.answer(reply, Err(refusal));
            }
            _ => {}
        }
    }
}

/// Offers some protocols and yields the raw stream with the one agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upgrade(&'static [Protocol]);

impl UpgradeInfo for Upgrade {
    type Info = Protocol;
    type InfoIter = Copied<slice::Iter<'static, Protocol>>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().copied()
    }
}

impl InboundUpgrade<libp2p::Stream> for Upgrade {
    type Output = (Protocol, libp2p::Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: Protocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl OutboundUpgrade<libp2p::Stream> for Upgrade {
    type Output = (Protocol, libp2p::Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, protocol: Protocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::{Transport, swarm::SwarmEvent};

    use super::*;

    #[test]
    fn a_connection_of_a_foreign_key_is_denied() {
        let (incoming, _) = mpsc::channel(1);
        let mut behaviour = Behaviour::new(Arc::default(), incoming, 1);
        let address: Multiaddr = "/memory/1".parse().unwrap();
        let mut key = vec![0x00, 0x25, 0x08, 0x02, 0x12, 0x21];
        key.extend([2; 33]);
        let peer = PeerId::from_bytes(&key).unwrap();
        let id = ConnectionId::new_unchecked(1);
        let denied = behaviour.handle_established_inbound_connection(id, peer, &address, &address);
        assert!(denied.err().unwrap().downcast::<ForeignKey>().is_ok());
        assert!(behaviour.directory.lock().is_empty());
    }

    fn swarm<B: NetworkBehaviour>(behaviour: B) -> libp2p::Swarm<B> {
        let pair = libp2p::identity::Keypair::generate_ed25519();
        let transport = libp2p::core::transport::MemoryTransport::default()
            .upgrade(libp2p::core::upgrade::Version::V1)
            .authenticate(libp2p::noise::Config::new(&pair).unwrap())
            .multiplex(libp2p::yamux::Config::default())
            .boxed();
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60));
        libp2p::Swarm::new(transport, behaviour, pair.public().to_peer_id(), config)
    }

    #[tokio::test]
    async fn a_peer_of_another_version_is_left_alone() {
        let (incoming, _inbox) = mpsc::channel(1);
        let directory = Arc::new(Directory::default());
        let mut ours = swarm(Behaviour::new(Arc::clone(&directory), incoming, 1));
        let mut theirs = swarm(libp2p::swarm::dummy::Behaviour);
        theirs.listen_on("/memory/0".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = theirs.select_next_some().await {
                break address;
            }
        };
        let peer = *theirs.local_peer_id();
        ours.dial(address).unwrap();
        let opening = async {
            loop {
                match directory.open(peer, Protocol::Purchase).await {
                    Err(Refusal::NotConnected) => tokio::task::yield_now().await,
                    other => return other.err(),
                }
            }
        };
        let driving = async {
            loop {
                tokio::select! {
                    _ = ours.select_next_some() => {}
                    _ = theirs.select_next_some() => {}
                }
            }
        };
        let refused = tokio::select! {
            refused = opening => refused,
            () = driving => None,
        };
        assert_eq!(refused, Some(Refusal::Unsupported));
    }
}
