//! The task that owns the swarm. It dials, publishes, passes gossip on and keeps the bootstrap
//! peers; streams do not pass through it (see `streams`). It ends when asked to, or when the
//! last handle is dropped: it closes the connections and with them every stream.

mod presence;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId},
    identify, kad, mdns, ping,
    swarm::{
        ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    identity::NodeId,
    net::{
        ConnectError, Gossip, PeerEvent, PublishError, Reach, StartError, Verdict,
        dial::{Dials, Roots, Waiter, reason},
        directory::Directory,
        gate::Rules,
        gossip::{self, Intake, Judged},
        peer,
        reachability::Reachability,
        routes,
        swarm::{Behaviour, BehaviourEvent, listen},
    },
};

pub(super) use presence::Presence;

/// How long the listeners may take to come up.
const LISTENING: Duration = Duration::from_secs(10);

/// How long connections may take to close politely.
const CLOSING: Duration = Duration::from_secs(1);

/// What the handle can ask for.
pub(super) enum Message {
    /// Be connected to the peer.
    Connect {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        waiter: Waiter,
    },
    /// Connect to whoever is there.
    Dial {
        address: Multiaddr,
        reply: oneshot::Sender<Result<NodeId, ConnectError>>,
    },
    /// Send to the topic.
    Publish {
        bytes: Bytes,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    /// End.
    Stop,
}

/// What the handle reads without asking.
#[derive(Default)]
pub(super) struct Board {
    pub(super) directory: Arc<Directory>,
    pub(super) addresses: RwLock<Vec<String>>,
    pub(super) reachability: RwLock<Reachability>,
    pub(super) gossip_dropped: AtomicU64,
}

/// The actor's ends of the channels.
pub(super) struct Ends {
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) gossip: mpsc::Sender<Gossip>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) verdicts: (mpsc::Sender<Judged>, mpsc::Receiver<Judged>),
}

pub(super) struct Actor {
    // Hooks to the rest. The swarm is dropped first: whoever sees the message channel closed
    // knows that everything has ended.
    swarm: Swarm<Behaviour>,
    board: Arc<Board>,
    ends: Ends,
    // Own state.
    topic: IdentTopic,
    reach: Reach,
    rules: Rules,
    dials: Dials,
    searches: routes::Searches,
    /// Dials to relays, and who is to be dialled through each.
    hops: HashMap<ConnectionId, (PeerId, Vec<Multiaddr>)>,
    explicit: HashMap<ConnectionId, oneshot::Sender<Result<NodeId, ConnectError>>>,
    roots: Roots,
    listeners: Vec<ListenerId>,
    intake: Intake,
    presence: Presence,
    dialled: HashSet<ConnectionId>,
}

impl Actor {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        board: Arc<Board>,
        ends: Ends,
        topic: (IdentTopic, Reach, Rules),
        (roots, presence): (Roots, Presence),
    ) -> Self {
        Self {
            swarm,
            board,
            ends,
            topic: topic.0,
            reach: topic.1,
            rules: topic.2,
            dials: Dials::default(),
            searches: routes::Searches::default(),
            hops: HashMap::new(),
            explicit: HashMap::new(),
            roots,
            listeners: Vec::new(),
            intake: Intake::default(),
            presence,
            dialled: HashSet::new(),
        }
    }

    /// Listens at all addresses and returns when each has a port.
    pub(super) async fn listen(
        &mut self,
        addresses: &[String],
        external: &[String],
    ) -> Result<(), StartError> {
        for text in external {
            let address = text
                .parse()
                .map_err(|_| StartError::Address(text.clone()))?;
            self.swarm.add_external_address(peer::split(address).0);
        }
        self.open_routes();
        let mut awaited = HashMap::new();
        for text in addresses {
            let listener = listen(&mut self.swarm, text)?;
            self.listeners.push(listener);
            awaited.insert(listener, text);
        }
        let up = async {
            while !awaited.is_empty() {
                let event = self.swarm.select_next_some().await;
                match &event {
                    SwarmEvent::NewListenAddr { listener_id, .. } => {
                        awaited.remove(listener_id);
                    }
                    SwarmEvent::ListenerClosed { listener_id, .. } => {
                        if let Some(text) = awaited.remove(listener_id) {
                            return Err(StartError::ListenerClosed(text.clone()));
                        }
                    }
                    _ => {}
                }
                self.on_swarm(event);
            }
            Ok(())
        };
        timeout(LISTENING, up)
            .await
            .map_err(|_| StartError::Deadline)?
    }

    pub(super) async fn run(mut self) {
        loop {
            let due = self
                .roots
                .next()
                .into_iter()
                .chain(self.presence.next())
                .chain(self.searches.next())
                .min();
            tokio::select! {
                // Callers first: they wait for each answer and so cannot starve the swarm, which
                // under a flood could starve them. Verdicts next: they free the gossip queue.
                biased;
                message = self.ends.messages.recv() => match message {
                    None | Some(Message::Stop) => break,
                    Some(message) => self.handle(message),
                },
                Some(judged) = self.ends.verdicts.1.recv() => self.judge(judged),
                event = self.swarm.select_next_some() => self.on_swarm(event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.redial();
                    self.reserve();
                    let table = &mut self.swarm.behaviour_mut().routes;
                    self.searches.end_due(table, Instant::now());
                }
            }
        }
        self.close().await;
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Connect {
                peer,
                addresses,
                waiter,
            } => self.connect(peer, addresses, waiter),
            Message::Dial { address, reply } => self.dial(address, reply),
            Message::Publish { bytes, reply } => answer(reply, self.publish(bytes)),
            Message::Stop => {}
        }
    }

    fn connect(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, waiter: Waiter) {
        if self.board.directory.is_fresh(&peer) {
            return answer(waiter, Ok(()));
        }
        match self.dials.join(peer, waiter, addresses) {
            Err(waiter) => answer(waiter, Err(ConnectError::Busy)),
            Ok(fresh) if fresh.is_empty() => self.search(peer),
            Ok(fresh) => self.dial_peer(peer, fresh),
        }
    }

    /// Dials a peer, those of the addresses first whose relay must be dialled before.
    fn dial_peer(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let directory = Arc::clone(&self.board.directory);
        let hop = |address: &Multiaddr| peer::relay_of(address, self.reach);
        let is_far = |address: &Multiaddr| hop(address).is_some_and(|r| !directory.is_direct(&r));
        let (far, near): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_far);
        let mut hops: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
        for address in far {
            if let Some(relay) = hop(&address) {
                hops.entry(relay).or_default().push(address);
            }
        }
        for (relay, addresses) in hops {
            let places = addresses.iter().map(peer::first_hop);
            let connection = self.start(relay, places.collect(), peer);
            // The relay's client would not dial a relay that somebody else is dialling.
            if let Some(connection) = connection {
                self.hops.insert(connection, (peer, addresses));
            }
        }
        if !near.is_empty() {
            self.start(peer, near, peer);
        }
    }

    /// Dials `to` on behalf of those who wait for `peer`.
    fn start(
        &mut self,
        to: PeerId,
        addresses: Vec<Multiaddr>,
        peer: PeerId,
    ) -> Option<ConnectionId> {
        let options = DialOpts::peer_id(to)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .build();
        let connection = options.connection_id();
        self.dials.running(peer, connection);
        match self.swarm.dial(options) {
            Ok(()) => Some(connection),
            Err(error) => {
                self.dials.failed(&peer, connection, reason(&error));
                None
            }
        }
    }

    /// Asks the network where a peer is of whom only the name is known.
    fn search(&mut self, peer: PeerId) {
        let table = &mut self.swarm.behaviour_mut().routes;
        if self.dials.may_search(&peer) && self.searches.begin(table, peer, Instant::now()) {
            self.dials.searching(&peer);
        } else {
            self.dials.settle(&peer, ConnectError::NoAddress);
        }
    }

    fn on_found(&mut self, query: kad::QueryId, result: kad::QueryResult, last: bool) {
        let Some(peer) = self.searches.peer(&query) else {
            return self.on_looked(query, &result);
        };
        let found = routes::found(result, &peer);
        if last {
            self.searches.ended(&query);
            let found = peer::dialable(&found, peer, self.reach);
            let fresh = self.dials.searched(&peer, found);
            match fresh.is_empty() {
                true => self.dials.settle(&peer, ConnectError::NoAddress),
                false => self.dial_peer(peer, fresh),
            }
        }
    }

    fn dial(&mut self, address: Multiaddr, reply: oneshot::Sender<Result<NodeId, ConnectError>>) {
        let (_, named) = peer::split(address.clone());
        if let Some(peer) = named.filter(|peer| self.board.directory.is_connected(peer)) {
            return answer(reply, peer::node_of(&peer).ok_or(ConnectError::WrongPeer));
        }
        self.rules.trust(&peer::first_hop(&address));
        let options = DialOpts::unknown_peer_id().address(address).build();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => drop(self.explicit.insert(connection, reply)),
            Err(error) => answer(reply, Err(reason(&error))),
        }
    }

    fn publish(&mut self, bytes: Bytes) -> Result<(), PublishError> {
        use gossipsub::PublishError as Cause;
        let published = self
            .swarm
            .behaviour_mut()
            .gossip
            .publish(self.topic.clone(), bytes);
        published.map(drop).map_err(|error| match error {
            Cause::Duplicate => PublishError::Duplicate,
            Cause::NoPeersSubscribedToTopic => PublishError::Alone,
            Cause::MessageTooLarge => PublishError::TooLarge,
            Cause::AllQueuesFull(_) => PublishError::Busy,
            Cause::SigningError(_) | Cause::TransformFailed(_) => PublishError::Failed,
        })
    }

    fn judge(&mut self, judged: Judged) {
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        let was = gossip::is_graylisted(gossip, &judged.peer);
        if !gossip.report_message_validation_result(&judged.id, &judged.peer, judged.acceptance) {
            tracing::debug!(peer = %judged.peer, "verdict_too_late");
        }
        if !was && gossip::is_graylisted(gossip, &judged.peer) {
            tracing::info!(peer = %judged.peer, "peer_graylisted");
            self.tell(&judged.peer, PeerEvent::Graylisted);
        }
    }

    fn redial(&mut self) {
        let now = Instant::now();
        for (peer, addresses) in self.roots.take_due(now) {
            if self.board.directory.is_connected(&peer) {
                continue;
            }
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(addresses)
                .build();
            if self.swarm.dial(options).is_err() {
                self.roots.lost(&peer, now);
            }
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                if endpoint.is_dialer() {
                    self.dialled.insert(connection_id);
                }
                self.on_connected(peer_id, connection_id, num_established.get() == 1);
                self.on_entered(&peer_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection_closed");
                self.dialled.remove(&connection_id);
                if num_established == 0 {
                    self.intake.forget(&peer_id);
                    self.roots.lost(&peer_id, Instant::now());
                    self.tell(&peer_id, PeerEvent::Disconnected);
                    self.note_reachability();
                }
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                tracing::debug!(?peer_id, %error, "dial_failed");
                self.on_dial_failed(connection_id, peer_id, reason(&error));
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address),
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => self.on_listener_closed(listener_id, reason),
            SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. } => self.note_addresses(),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener_failed"),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, first: bool) {
        self.dials.connected(&peer);
        if let Some((beyond, addresses)) = self.hops.remove(&connection) {
            self.start(beyond, addresses, beyond);
            self.dials
                .failed(&beyond, connection, ConnectError::Unreachable);
        }
        self.roots.connected(&peer);
        for circuit in self.board.directory.spent(&peer, connection) {
            self.swarm.close_connection(circuit);
        }
        if let Some(reply) = self.explicit.remove(&connection) {
            answer(reply, peer::node_of(&peer).ok_or(ConnectError::WrongPeer));
        }
        if first {
            self.tell(&peer, PeerEvent::Connected);
        }
    }

    fn on_dial_failed(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: ConnectError,
    ) {
        if let Some(reply) = self.explicit.remove(&connection) {
            answer(reply, Err(error));
        }
        if let Some((beyond, _)) = self.hops.remove(&connection) {
            self.dials.failed(&beyond, connection, error);
        }
        if let Some(peer) = peer {
            self.dials.failed(&peer, connection, error);
            if !self.board.directory.is_connected(&peer) {
                self.roots.lost(&peer, Instant::now());
            }
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => {
                self.on_gossip(propagation_source, message_id, message.data.into());
            }
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { peer_id, .. }) => {
                self.tell(&peer_id, PeerEvent::Neighbour);
            }
            BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            }) => {
                self.on_identified(connection_id, peer_id, info);
            }
            BehaviourEvent::Relayed(event) => self.on_relayed(event),
            BehaviourEvent::Knock(event) => self.on_knock(&event),
            BehaviourEvent::Punching(event) => {
                tracing::debug!(peer = %event.remote_peer_id, result = ?event.result, "hole_punched");
            }
            BehaviourEvent::Routes(kad::Event::OutboundQueryProgressed {
                id,
                result,
                step,
                ..
            }) => self.on_found(id, result, step.last),
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Err(failure),
            }) => {
                self.on_silence(&peer, connection, &failure);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                gone.iter()
                    .for_each(|(_, address)| self.rules.lose(address));
            }
            _ => {}
        }
    }

    /// Passes a message on, if there is room for it and for its verdict.
    fn on_gossip(&mut self, source: PeerId, id: MessageId, bytes: Bytes) {
        let passed = peer::node_of(&source)
            .filter(|_| self.intake.admits(source, Instant::now()))
            .and_then(|node| {
                let place = self.ends.gossip.try_reserve().ok()?;
                let permit = self.ends.verdicts.0.clone().try_reserve_owned().ok()?;
                place.send(Gossip {
                    source: node,
                    bytes,
                    verdict: Verdict::new(permit, id.clone(), source),
                });
                Some(())
            });
        if passed.is_none() {
            self.board.gossip_dropped.fetch_add(1, Ordering::Relaxed);
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            gossip.report_message_validation_result(&id, &source, MessageAcceptance::Ignore);
        }
    }

    /// TCP alone would not notice for minutes that a peer is gone.
    fn on_silence(&mut self, peer: &PeerId, connection: ConnectionId, failure: &ping::Failure) {
        if !matches!(failure, ping::Failure::Unsupported) {
            tracing::debug!(%peer, %failure, "peer_silent");
            self.swarm.close_connection(connection);
        }
    }

    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let mut peers: HashMap<PeerId, Vec<String>> = HashMap::new();
        for (peer, address) in found {
            self.rules.find(&address);
            peers.entry(peer).or_default().push(address.to_string());
        }
        for (peer, addresses) in peers {
            let addresses = peer::dialable(&addresses, peer, self.reach);
            let condition = PeerCondition::DisconnectedAndNotDialing;
            let options = DialOpts::peer_id(peer)
                .condition(condition)
                .addresses(addresses)
                .build();
            if let Err(error) = self.swarm.dial(options) {
                tracing::debug!(%peer, %error, "discovered_peer_not_dialled");
            }
        }
    }

    /// Tells the inbox; who does not read it misses events, not peers.
    fn tell(&self, peer: &PeerId, event: fn(NodeId) -> PeerEvent) {
        if let Some(node) = peer::node_of(peer)
            && self.ends.events.try_send(event(node)).is_err()
        {
            tracing::trace!(%peer, "event_dropped");
        }
    }

    async fn close(&mut self) {
        for listener in self.listeners.drain(..) {
            self.swarm.remove_listener(listener);
        }
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            if self.swarm.disconnect_peer_id(peer).is_err() {
                tracing::trace!(%peer, "already_gone");
            }
        }
        let closed = async {
            while self
                .swarm
                .network_info()
                .connection_counters()
                .num_established()
                > 0
            {
                self.swarm.select_next_some().await;
            }
        };
        if timeout(CLOSING, closed).await.is_err() {
            tracing::debug!("connections_cut");
        }
    }
}

/// Answers somebody who may have stopped waiting.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::trace!("answer_no_longer_wanted");
    }
}
