//! The network: streams to peers by name, and one gossip topic.
//!
//! A peer is its [`NodeId`]; libp2p is named in this module and nowhere else. One task owns the
//! swarm ([`Net`] is its handle); each connection has a task of its own. Everything is bounded:
//! connections, streams of a peer, queues. What does not fit is refused and counted, and nothing
//! here ever waits for a slow reader. It ends with [`Net::stop`], or when the last handle is
//! dropped: connections are closed, streams end, and the [`Inbox`] runs dry.
//!
//! What flows in the streams is not known here; [`session`] cuts them into frames.

mod actor;
pub mod ask;
mod crowd;
mod dial;
mod directory;
mod gate;
mod gossip;
mod knock;
mod knocker;
mod observed;
mod origin;
mod peer;
mod reachability;
mod relays;
mod routes;
pub mod session;
#[cfg(feature = "testing")]
pub mod sky;
mod stream;
mod streams;
mod swarm;
mod unheld;
pub mod wire;

use std::{io, sync::Arc, sync::PoisonError, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use libp2p::{gossipsub::IdentTopic, identity::Keypair};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use self::{
    actor::{Actor, Board, Ends, Message, Presence},
    dial::Roots,
    directory::Refusal,
    gate::Rules,
    swarm::Shared,
};
pub use self::{
    gossip::{Gossip, Verdict},
    reachability::{Barrier, Reachability},
    relays::RelayLimits,
    stream::Stream,
};
use crate::identity::NodeId;

/// Questions of handles that may wait for the actor.
const MESSAGES: usize = 256;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// One purchase.
    Purchase,
    /// One question and its answer.
    Call,
}

impl Protocol {
    const ALL: [Self; 2] = [Self::Purchase, Self::Call];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Purchase => "/farthing/purchase/1",
            Self::Call => "/farthing/call/1",
        }
    }

    /// A list of only this one.
    const fn alone(self) -> &'static [Self] {
        match self {
            Self::Purchase => &[Self::Purchase],
            Self::Call => &[Self::Call],
        }
    }
}

impl AsRef<str> for Protocol {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

/// How far the network reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Strangers take part: loopback and link-local addresses from offers are not dialled, and
    /// many peers on one address lose score.
    #[default]
    Public,
    /// All peers are ours, on one machine, as in a devnet or a test.
    Local,
}

/// How a node takes part in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Multiaddresses to listen at; port 0 takes any. None for a node that only dials.
    pub listen: Vec<String>,
    /// Multiaddresses under which we are known to be reachable from outside.
    pub external: Vec<String>,
    /// Multiaddresses with `/p2p/<peer>` of peers to be connected to always.
    pub bootstrap: Vec<String>,
    /// Whether to find peers on the local network; where strangers take part, also the only way
    /// into private networks but the operator's word.
    pub mdns: bool,
    /// How many relays hold a place for us as long as no stranger has come to us directly; 0 for
    /// a node that need not be found.
    pub relays: usize,
    /// What we lend as a relay to those who cannot be reached; nothing if absent.
    pub lends: Option<RelayLimits>,
    /// The gossip topic; peers on other topics do not hear each other.
    pub topic: String,
    /// How far the network reaches.
    pub reach: Reach,
    /// How much of everything.
    pub limits: Limits,
    /// How long an unused connection stays warm.
    pub idle: Duration,
    /// How long [`Net::open`] and [`Net::dial`] may take.
    pub open: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![
                "/ip4/0.0.0.0/udp/0/quic-v1".into(),
                "/ip4/0.0.0.0/tcp/0".into(),
            ],
            external: Vec::new(),
            bootstrap: Vec::new(),
            mdns: false,
            relays: 0,
            lends: None,
            topic: "/farthing/offers/1/local".into(),
            reach: Reach::default(),
            limits: Limits::default(),
            idle: Duration::from_secs(600),
            open: Duration::from_secs(10),
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections; a quarter of them is kept for those we make ourselves.
    pub connections: u32,
    /// Connections to one peer. Two peers that dial each other at once make two.
    pub connections_per_peer: u32,
    /// Connections from one network address (the /64 of an IPv6 one), where strangers take part.
    pub connections_per_address: u32,
    /// Connections being made, each way.
    pub pending: u32,
    /// Streams one peer may have open to us.
    pub streams_per_peer: usize,
    /// Streams waiting in [`Inbox::streams`].
    pub streams_queued: usize,
    /// Messages waiting in [`Inbox::gossip`] or for their verdict.
    pub gossip_queued: usize,
    /// Events waiting in [`Inbox::peers`].
    pub events_queued: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_peer: 4,
            connections_per_address: 32,
            pending: 64,
            streams_per_peer: 256,
            streams_queued: 1_024,
            gossip_queued: 256,
            events_queued: 1_024,
        }
    }
}

/// A stream that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// Who opened it.
    pub peer: NodeId,
    /// What for.
    pub protocol: Protocol,
    /// The stream.
    pub stream: Stream,
}

/// Something happened to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// It has its first connection with us.
    Connected(NodeId),
    /// Its last connection is gone.
    Disconnected(NodeId),
    /// It listens to our topic: what we publish now reaches it.
    Neighbour(NodeId),
    /// It brought too many bad messages and is no longer heard on the topic.
    Graylisted(NodeId),
}

/// What comes in unasked. A part nobody reads fills up to its limit and no further.
#[derive(Debug)]
pub struct Inbox {
    /// Streams that peers opened. Whoever drops this refuses them all.
    pub streams: mpsc::Receiver<Incoming>,
    /// Messages on the topic, each awaiting a verdict.
    pub gossip: mpsc::Receiver<Gossip>,
    /// Peers coming and going; a hint, for events past the limit are dropped.
    pub peers: mpsc::Receiver<PeerEvent>,
}

/// How things stand, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Connections now.
    pub connections: usize,
    /// Peers that only a relay connects us to.
    pub relayed: usize,
    /// Inbound streams alive now.
    pub streams: usize,
    /// Inbound streams reset because a limit was reached, since the start.
    pub streams_refused: u64,
    /// Messages not passed on because a limit was reached, since the start.
    pub gossip_dropped: u64,
}

/// Why the network did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not a multiaddress.
    #[error("`{0}` is not a multiaddress")]
    Address(String),
    /// A bootstrap address must say whom it leads to.
    #[error("bootstrap address `{0}` does not end in /p2p/<peer>")]
    Bootstrap(String),
    /// We cannot listen there.
    #[error("cannot listen at `{address}`")]
    Listen {
        /// The configured address.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// A listener closed before it was up.
    #[error("the listener at `{0}` closed at once")]
    ListenerClosed(String),
    /// A listener did not come up in time.
    #[error("the listeners did not come up in time")]
    Deadline,
    /// A part of the network could not be set up.
    #[error("the network could not be set up: {0}")]
    Setup(String),
}

/// Why there is no connection. Nothing was sent to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No address of the peer may be dialled, or none is known.
    #[error("no address of the peer can be dialled")]
    NoAddress,
    /// No address answered.
    #[error("the peer does not answer")]
    Unreachable,
    /// Another peer is at the address.
    #[error("another peer is at the address")]
    WrongPeer,
    /// The address is our own.
    #[error("the peer is this node")]
    Oneself,
    /// A limit on connections is reached.
    #[error("too many connections")]
    Limit,
    /// Too many dials are waiting.
    #[error("too many dials")]
    Busy,
    /// It took too long.
    #[error("the peer did not answer in time")]
    Deadline,
    /// The network has stopped.
    #[error("the network has stopped")]
    Stopped,
}

/// Why there is no stream. Nothing was sent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak the protocol")]
    Unsupported,
    /// The connection was lost meanwhile.
    #[error("the connection was lost")]
    Lost,
    /// It took too long.
    #[error("no stream before the deadline")]
    Deadline,
    /// As many of our streams are open on the connection as it carries.
    #[error("too many streams are open to the peer")]
    Full,
}

/// Why a message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The same bytes were published a moment ago.
    #[error("already published")]
    Duplicate,
    /// Nobody listens to the topic.
    #[error("no neighbour listens to the topic")]
    Alone,
    /// More than 64 KiB.
    #[error("the message is too large")]
    TooLarge,
    /// All neighbours are slow.
    #[error("the queues of all neighbours are full")]
    Busy,
    /// Anything else.
    #[error("the message could not be sent")]
    Failed,
    /// The network has stopped.
    #[error("the network has stopped")]
    Stopped,
}

/// A handle to the network.
#[derive(Clone)]
pub struct Net {
    messages: mpsc::Sender<Message>,
    board: Arc<Board>,
    local: NodeId,
    reach: Reach,
    open: Duration,
}

impl Net {
    /// Starts the node whose ed25519 secret is `seed`; returns once it listens everywhere.
    pub async fn start(seed: [u8; 32], config: Config) -> Result<(Self, Inbox), StartError> {
        let keypair = Keypair::ed25519_from_bytes(seed)
            .map_err(|error| StartError::Setup(error.to_string()))?;
        let id = keypair.public().to_peer_id();
        let local =
            peer::node_of(&id).ok_or_else(|| StartError::Setup("not an ed25519 key".into()))?;
        let roots = Roots::read(&config.bootstrap, id, Instant::now())?;
        let topic = IdentTopic::new(config.topic.as_str());
        let limits = &config.limits;
        let (incoming, streams) = mpsc::channel(limits.streams_queued.max(1));
        let (gossip_out, gossip) = mpsc::channel(limits.gossip_queued.max(1));
        let (events, peers) = mpsc::channel(limits.events_queued.max(1));
        let (messages, inbound) = mpsc::channel(MESSAGES);
        let verdicts = mpsc::channel(limits.gossip_queued.max(1));
        let board = Arc::new(Board::default());
        let rules = Rules::new(config.reach);
        for address in &config.bootstrap {
            if let Ok(address) = address.parse() {
                rules.trust(&address);
            }
        }
        let shared = Shared {
            directory: Arc::clone(&board.directory),
            incoming,
            rules: rules.clone(),
        };
        let swarm = swarm::build(&keypair, &config, &topic, shared)?;
        let ends = Ends {
            messages: inbound,
            gossip: gossip_out,
            events,
            verdicts,
        };
        let told = !config.external.is_empty();
        let presence = Presence::new(config.relays, told, config.lends.is_some());
        let mut actor = Actor::new(
            swarm,
            Arc::clone(&board),
            ends,
            (topic, config.reach, rules),
            (roots, presence),
        );
        actor.listen(&config.listen, &config.external).await?;
        tokio::spawn(actor.run());
        let net = Self {
            messages,
            board,
            local,
            reach: config.reach,
            open: config.open,
        };
        Ok((
            net,
            Inbox {
                streams,
                gossip,
                peers,
            },
        ))
    }

    /// Who we are.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Where we are, with real ports and our own name at the end: first the configured external
    /// addresses and those several peers have seen us at, then those we listen at.
    pub fn listen_addresses(&self) -> Vec<String> {
        self.board
            .addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How strangers reach us, and if they do not, why not.
    pub fn reachability(&self) -> Reachability {
        let board = self.board.reachability.read();
        *board.unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected.
    pub fn peers(&self) -> Vec<NodeId> {
        self.board.directory.connected()
    }

    /// How things stand.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.board.directory.connections(),
            relayed: self.board.directory.relayed(),
            streams: self.board.directory.streams(),
            streams_refused: self.board.directory.refused(),
            gossip_dropped: self.board.gossip_dropped.load(Ordering::Relaxed),
        }
    }

    /// Opens a stream to `peer`, over its connection if there is one, else over one made to
    /// `addresses` (of which those that cannot be right are ignored). Calls for one peer at the
    /// same time share one dial, in which QUIC has a head start over TCP. Takes at most
    /// [`Config::open`].
    ///
    /// The stream is ready before the peer has agreed to it. If it does not, the first read says
    /// so.
    pub async fn open(
        &self,
        peer: NodeId,
        addresses: &[String],
        protocol: Protocol,
    ) -> Result<Stream, OpenError> {
        let opened = timeout(self.open, self.open_patiently(peer, addresses, protocol)).await;
        opened.unwrap_or(Err(OpenError::Deadline))
    }

    async fn open_patiently(
        &self,
        node: NodeId,
        addresses: &[String],
        protocol: Protocol,
    ) -> Result<Stream, OpenError> {
        if node == self.local {
            return Err(ConnectError::Oneself.into());
        }
        let id = peer::peer_of(node);
        // A circuit that will soon be cut serves only where no new one can be made.
        if addresses.is_empty() || self.board.directory.is_fresh(&id) {
            match self.board.directory.open(id, protocol).await {
                Ok(stream) => return Ok(stream),
                // Nothing was sent yet, so a connection lost under our hands may be made anew.
                Err(Refusal::NotConnected | Refusal::Lost) => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        let addresses = peer::dialable(addresses, id, self.reach);
        let (waiter, connected) = oneshot::channel();
        self.ask(Message::Connect {
            peer: id,
            addresses,
            waiter,
        })
        .await?;
        let connected = connected.await.unwrap_or(Err(ConnectError::Stopped));
        match self.board.directory.open(id, protocol).await {
            Err(Refusal::NotConnected) => Err(connected.err().map_or(OpenError::Lost, Into::into)),
            opened => Ok(opened?),
        }
    }

    /// Connects to whoever is at `address`, or to the peer it names at its end. Takes at most
    /// [`Config::open`].
    pub async fn dial(&self, address: &str) -> Result<NodeId, ConnectError> {
        let address = address.parse().map_err(|_| ConnectError::NoAddress)?;
        let dialled = async {
            let (reply, answer) = oneshot::channel();
            self.ask(Message::Dial { address, reply }).await?;
            answer.await.unwrap_or(Err(ConnectError::Stopped))
        };
        timeout(self.open, dialled)
            .await
            .unwrap_or(Err(ConnectError::Deadline))
    }

    /// Publishes a message to the topic.
    pub async fn publish(&self, bytes: impl Into<Bytes>) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        let bytes = bytes.into();
        self.ask(Message::Publish { bytes, reply })
            .await
            .map_err(|_| PublishError::Stopped)?;
        answer.await.unwrap_or(Err(PublishError::Stopped))
    }

    /// Ends the network and returns when it has ended: connections are closed, streams end, the
    /// inbox runs dry. Other handles then only say [`ConnectError::Stopped`].
    pub async fn stop(&self) {
        if self.messages.send(Message::Stop).await.is_ok() {
            self.messages.closed().await;
        }
    }

    async fn ask(&self, message: Message) -> Result<(), ConnectError> {
        self.messages
            .send(message)
            .await
            .map_err(|_| ConnectError::Stopped)
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Net({})", self.local)
    }
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotConnected | Refusal::Lost => Self::Lost,
            Refusal::Deadline => Self::Deadline,
            Refusal::Unsupported => Self::Unsupported,
            Refusal::Full => Self::Full,
        }
    }
}
