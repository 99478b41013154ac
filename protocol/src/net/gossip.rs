//! The one topic of offers: how gossipsub is set up, and the verdict each message awaits.
//!
//! Nothing is forwarded before the caller has judged it. Messages carry no signature of
//! gossipsub's own (it would be checked for every duplicate): what they say is signed inside.
//! The default score parameters punish nothing, so ours are spelled out here.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use alloy::primitives::keccak256;
use bytes::Bytes;
use libp2p::{
    PeerId,
    gossipsub::{
        self, ConfigBuilder, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter,
        MessageAcceptance, MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds,
        TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
    },
};
use tokio::{sync::mpsc::OwnedPermit, time::Instant};

use crate::{identity::NodeId, net::Reach};

/// Largest message, with its envelope. An offer has at most 16 KiB.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// Topics a peer may name in one message; all but one are dropped anyway.
const MAX_SUBSCRIPTIONS: usize = 16;

/// Control messages and messages waiting for one slow peer, before it misses some.
const PEER_QUEUE: usize = 512;

/// Below this score a peer's messages are not even looked at.
const GRAYLIST: f64 = -80.0;

/// New messages one neighbour may bring per second: 10 000 sellers re-advertise 33 times.
const RATE: f64 = 200.0;

/// New messages one neighbour may bring at once.
const BURST: f64 = 1_000.0;

/// Gossipsub as we use it.
pub(super) type Behaviour = gossipsub::Behaviour<
    IdentityTransform,
    MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>,
>;

/// A message on the topic that nobody has forwarded yet.
#[derive(Debug)]
pub struct Gossip {
    /// Who brought it; not who wrote it.
    pub source: NodeId,
    /// What it says, at most 64 KiB.
    pub bytes: Bytes,
    /// Where to say what it is worth.
    pub verdict: Verdict,
}

/// What is to become of a message. Give it within five seconds, while the message is still in
/// gossipsub's cache. Dropping it ignores the message.
#[must_use = "an unjudged message is not forwarded"]
pub struct Verdict {
    ticket: Option<(OwnedPermit<Judged>, MessageId, PeerId)>,
}

/// A verdict on its way to the swarm.
pub(super) struct Judged {
    pub(super) id: MessageId,
    pub(super) peer: PeerId,
    pub(super) acceptance: MessageAcceptance,
}

impl Verdict {
    /// A verdict to be sent with `permit`, which was reserved so that it cannot get lost.
    pub(super) fn new(permit: OwnedPermit<Judged>, id: MessageId, peer: PeerId) -> Self {
        Self {
            ticket: Some((permit, id, peer)),
        }
    }

    /// It is good: forward it.
    pub fn accept(self) {
        self.give(MessageAcceptance::Accept);
    }

    /// It is of no use, but nobody's fault: stale, or already known.
    pub fn ignore(self) {
        self.give(MessageAcceptance::Ignore);
    }

    /// No honest peer would have forwarded it: who brought it loses score, and is soon unheard.
    pub fn reject(self) {
        self.give(MessageAcceptance::Reject);
    }

    fn give(mut self, acceptance: MessageAcceptance) {
        self.send(acceptance);
    }

    fn send(&mut self, acceptance: MessageAcceptance) {
        if let Some((permit, id, peer)) = self.ticket.take() {
            drop(permit.send(Judged {
                id,
                peer,
                acceptance,
            }));
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        self.send(MessageAcceptance::Ignore);
    }
}

impl std::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verdict").finish_non_exhaustive()
    }
}

/// Gossipsub, subscribed to `topic` and to nothing else.
pub(super) fn behaviour(topic: &IdentTopic, reach: Reach) -> Result<Behaviour, String> {
    let config = ConfigBuilder::default()
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| MessageId::new(keccak256(&message.data).as_slice()))
        .max_transmit_size(MAX_MESSAGE)
        .connection_handler_queue_len(PEER_QUEUE)
        .build()
        .map_err(|error| error.to_string())?;
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
        max_subscribed_topics: 1,
        max_subscriptions_per_request: MAX_SUBSCRIPTIONS,
    };
    let mut behaviour =
        Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)
            .map_err(str::to_owned)?;
    behaviour.with_peer_score(scores(topic, reach), thresholds())?;
    behaviour
        .subscribe(topic)
        .map_err(|error| error.to_string())?;
    Ok(behaviour)
}

/// Whether gossipsub has stopped listening to the peer.
pub(super) fn is_graylisted(behaviour: &Behaviour, peer: &PeerId) -> bool {
    behaviour
        .peer_score(peer)
        .is_some_and(|score| score < GRAYLIST)
}

fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        graylist_threshold: GRAYLIST,
        ..PeerScoreThresholds::default()
    }
}

fn scores(topic: &IdentTopic, reach: Reach) -> PeerScoreParams {
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let ip_colocation_factor_whitelist = match reach {
        Reach::Public => HashSet::new(),
        // Eleven peers on one address are a crowd on the Internet and a devnet at home.
        Reach::Local => HashSet::from(loopback),
    };
    PeerScoreParams {
        topics: HashMap::from([(topic.hash(), topic_scores())]),
        ip_colocation_factor_whitelist,
        ..PeerScoreParams::default()
    }
}

/// Three bad messages cost more than anybody can earn (measured: 3 of 330 get through).
fn topic_scores() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 0.5,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_cap: 50.0,
        // A quiet topic is no fault of the neighbours.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    }
}

/// Bounds what each neighbour may bring: a token bucket for each, gone when it disconnects.
#[derive(Default)]
pub(super) struct Intake {
    buckets: HashMap<PeerId, Bucket>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Intake {
    /// Whether the peer may bring one more message now.
    pub(super) fn admits(&mut self, peer: PeerId, now: Instant) -> bool {
        let bucket = self.buckets.entry(peer).or_insert(Bucket {
            tokens: BURST,
            filled: now,
        });
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * RATE;
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.filled = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }

    /// Forgets a peer.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.buckets.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::{Transport, swarm::SwarmEvent};

    use super::*;

    #[test]
    fn the_settings_are_consistent() {
        let topic = IdentTopic::new("test");
        behaviour(&topic, Reach::Public).unwrap();
        topic_scores().validate().unwrap();
        // The best possible past does not outweigh three bad messages.
        let earned = 0.5 * (0.01 * 300.0 + 0.1 * 50.0);
        assert!(earned + 0.5 * -20.0 * 9.0 < GRAYLIST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_to_the_rate() {
        let (mut intake, peer, now) = (Intake::default(), PeerId::random(), Instant::now());
        let admitted = (0..5_000).filter(|_| intake.admits(peer, now)).count();
        assert_eq!(admitted, 1_000);
        let later = now + Duration::from_secs(1);
        assert_eq!(
            (0..5_000).filter(|_| intake.admits(peer, later)).count(),
            200
        );
        assert!(intake.admits(PeerId::random(), now));
        intake.forget(&peer);
        assert_eq!(intake.buckets.len(), 1);
    }

    fn swarm<B: libp2p::swarm::NetworkBehaviour>(behaviour: B) -> libp2p::Swarm<B> {
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
    async fn subscriptions_to_unknown_topics_do_not_grow_memory() {
        let topic = IdentTopic::new("test");
        let mut victim = swarm(behaviour(&topic, Reach::Public).unwrap());
        let config = ConfigBuilder::default()
            .validation_mode(ValidationMode::Anonymous)
            .build()
            .unwrap();
        let mut attacker = swarm(
            gossipsub::Behaviour::<IdentityTransform>::new(MessageAuthenticity::Anonymous, config)
                .unwrap(),
        );
        for n in 0..10 {
            attacker
                .behaviour_mut()
                .subscribe(&IdentTopic::new(format!("few {n}")))
                .unwrap();
        }
        victim.listen_on("/memory/0".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = victim.select_next_some().await {
                break address;
            }
        };
        attacker.dial(address).unwrap();
        let mut flooded = false;
        loop {
            tokio::select! {
                event = victim.select_next_some() => {
                    if let SwarmEvent::Behaviour(gossipsub::Event::Subscribed { topic: told, .. }) = event {
                        assert_eq!(told, topic.hash());
                        break;
                    }
                }
                event = attacker.select_next_some() => {
                    // The victim's own subscription shows that the protocol is up.
                    if matches!(event, SwarmEvent::Behaviour(gossipsub::Event::Subscribed { .. })) && !flooded {
                        flooded = true;
                        for n in 0..1_000 {
                            attacker.behaviour_mut().subscribe(&IdentTopic::new(format!("many {n}"))).unwrap();
                        }
                        attacker.behaviour_mut().subscribe(&topic).unwrap();
                    }
                }
            }
        }
        let known: usize = victim
            .behaviour()
            .all_peers()
            .map(|(_, topics)| topics.len())
            .sum();
        assert_eq!(known, 1);
    }
}
