//! The swarm's parts: transports, behaviours and their settings.

use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};

use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, ListenerId, MemoryTransport},
        upgrade::Version,
    },
    dcutr, dns,
    gossipsub::IdentTopic,
    identify,
    identity::Keypair,
    mdns, noise, ping, quic, relay,
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use tokio::sync::mpsc;

#[cfg(feature = "testing")]
use crate::net::sky::SkyTransport;
use crate::net::{
    Config, Incoming, Reach, StartError, crowd,
    directory::Directory,
    gate::{Gate, Rules},
    gossip, knock, knocker, relays, routes, streams,
    unheld::Unheld,
};

/// Streams on one connection, both ways together: as many as yamux allows in a gibibyte of
/// windows. At one more it ends the connection with all its streams; so we open no more than
/// [`streams::OPENED`].
const STREAMS: u32 = 4_096;

/// Unread bytes of one QUIC stream. Fills 10 Mbit/s at 100 ms; text needs a hundredth.
const STREAM_WINDOW: u32 = 128 * 1024;

/// Unread bytes of one QUIC connection: of all streams that may be open at once. With fewer, some
/// readers that have stopped would hold up all other streams of their connection. What a peer can
/// fill is bounded by the streams it may open ([`quic`]).
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;

/// A connection's handshakes together.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often a peer is asked whether it is there, and how long it may take. The first silence is
/// forgiven: one that is gone is noticed within forty seconds.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(8);

/// Events between the swarm and one connection's task, each way.
const EVENTS: usize = 32;

/// Inbound streams one connection negotiates at once; more of them wait in the muxer.
const NEGOTIATING: usize = 256;

/// Streams a peer may have open on a QUIC connection beyond those it may use: being negotiated, or
/// told that there is no room.
const SPARE: usize = 32;

/// How streams agree on a protocol: `V1Lazy` saves a round trip on each. Measured without an
/// error with our own stream behaviour (`tests/net.rs`).
const SUBSTREAM: Version = Version::V1Lazy;

/// What every node says it speaks.
const IDENTIFY: &str = "/farthing/1";

/// All behaviours. Limits come first: what they deny, nobody else hears of.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    crowd: Toggle<crowd::Behaviour>,
    streams: streams::Behaviour,
    pub(super) gossip: Unheld<gossip::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    lending: Toggle<relay::Behaviour>,
    relayed: relay::client::Behaviour,
    pub(super) punching: dcutr::Behaviour,
    pub(super) knock: knock::Behaviour,
    knocking: knocker::Behaviour,
    pub(super) routes: routes::Behaviour,
}

/// What the swarm shares with the handle.
pub(super) struct Shared {
    pub(super) directory: Arc<Directory>,
    pub(super) incoming: mpsc::Sender<Incoming>,
    pub(super) rules: Rules,
}

/// A swarm that listens nowhere yet.
pub(super) fn build(
    keypair: &Keypair,
    config: &Config,
    topic: &IdentTopic,
    shared: Shared,
) -> Result<Swarm<Behaviour>, StartError> {
    let peer = keypair.public().to_peer_id();
    let rules = shared.rules.clone();
    let (circuits, relayed) = relay::client::new(peer);
    let behaviour = behaviour(keypair, config, topic, (shared, relayed))?;
    let settings = swarm::Config::with_tokio_executor()
        .with_smart_dial()
        .with_substream_upgrade_protocol_override(SUBSTREAM)
        .with_idle_connection_timeout(config.idle)
        .with_max_negotiating_inbound_streams(NEGOTIATING)
        .with_per_connection_event_buffer_size(EVENTS)
        .with_notify_handler_buffer_size(NonZeroUsize::new(EVENTS).unwrap_or(NonZeroUsize::MIN));
    let inbound = config.limits.streams_per_peer.saturating_add(SPARE);
    let quic = quic(keypair, inbound);
    let transport = Gate::new(transport(keypair, quic, circuits)?, rules).boxed();
    Ok(Swarm::new(transport, behaviour, peer, settings))
}

fn behaviour(
    keypair: &Keypair,
    config: &Config,
    topic: &IdentTopic,
    (shared, relayed): (Shared, relay::client::Behaviour),
) -> Result<Behaviour, StartError> {
    let peer = keypair.public().to_peer_id();
    let limits = &config.limits;
    let mdns = match config.mdns {
        true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer).map_err(setup)?),
        false => None,
    };
    let crowd = match config.reach {
        Reach::Public => Some(crowd::Behaviour::new(
            limits.connections_per_address,
            limits.connections / 2,
        )),
        Reach::Local => None,
    };
    let lending = config.lends.as_ref();
    let identify = identify::Config::new(IDENTIFY.into(), keypair.public())
        .with_agent_version(concat!("farthing/", env!("CARGO_PKG_VERSION")).into());
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(connection_limits(config)),
        crowd: crowd.into(),
        streams: streams::Behaviour::new(
            shared.directory,
            shared.incoming,
            limits.streams_per_peer,
        ),
        gossip: Unheld(gossip::behaviour(topic, config.reach).map_err(StartError::Setup)?),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING).with_timeout(PONG)),
        mdns: mdns.into(),
        lending: lending.map(|lent| relays::server(peer, lent)).into(),
        relayed,
        punching: dcutr::Behaviour::new(peer),
        knock: knock::Behaviour::default(),
        knocking: knocker::Behaviour::default(),
        routes: routes::behaviour(peer),
    })
}

/// A quarter of all connections is kept for those we make ourselves, so that strangers cannot
/// surround us.
fn connection_limits(config: &Config) -> ConnectionLimits {
    let limits = &config.limits;
    ConnectionLimits::default()
        .with_max_established(Some(limits.connections))
        .with_max_established_incoming(Some(limits.connections - limits.connections / 4))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_pending_incoming(Some(limits.pending))
        .with_max_pending_outgoing(Some(limits.pending))
}

/// Circuits, QUIC, TCP and memory, with names resolved before QUIC and TCP.
fn transport(
    keypair: &Keypair,
    quic: quic::Config,
    circuits: relay::client::Transport,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let noise = noise::Config::new(keypair).map_err(setup)?;
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux())
        .timeout(HANDSHAKE)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let memory = MemoryTransport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux())
        .timeout(HANDSHAKE);
    let memory = memory.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let near = circuits
        .or_transport(memory)
        .map(|either, _| either.into_inner());
    #[cfg(feature = "testing")]
    if let Some(sky) = SkyTransport::of(&keypair.public().to_peer_id()) {
        let sky = sky
            .upgrade(Version::V1Lazy)
            .authenticate(noise)
            .multiplex(yamux())
            .timeout(HANDSHAKE)
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        return Ok(near
            .or_transport(sky)
            .map(|either, _| either.into_inner())
            .boxed());
    }
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux())
        .timeout(HANDSHAKE)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let quic = quic::tokio::Transport::new(quic)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let direct = quic
        .or_transport(tcp)
        .map(|either, _| either.into_inner())
        .boxed();
    // A machine without a resolver configuration can still dial numbers.
    let named = match dns::tokio::Transport::system(()) {
        Ok(_) => dns::tokio::Transport::system(direct)
            .map_err(setup)?
            .boxed(),
        Err(error) => {
            tracing::warn!(%error, "no_dns");
            direct
        }
    };
    Ok(near
        .or_transport(named)
        .map(|either, _| either.into_inner())
        .boxed())
}

/// A peer may open `inbound` streams: more wait at its end.
fn quic(keypair: &Keypair, inbound: usize) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.max_concurrent_stream_limit = u32::try_from(inbound).unwrap_or(STREAMS).min(STREAMS);
    config.max_stream_data = STREAM_WINDOW;
    config.max_connection_data = CONNECTION_WINDOW;
    config
}

fn yamux() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS as usize);
    config
}

fn setup(error: impl ToString) -> StartError {
    StartError::Setup(error.to_string())
}

/// Starts to listen at one address.
pub(super) fn listen(swarm: &mut Swarm<Behaviour>, text: &str) -> Result<ListenerId, StartError> {
    let address: Multiaddr = text.parse().map_err(|_| StartError::Address(text.into()))?;
    swarm.listen_on(address).map_err(|error| {
        let source = match error {
            libp2p::TransportError::Other(error) => error,
            libp2p::TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
        };
        StartError::Listen {
            address: text.into(),
            source,
        }
    })
}
