//! Swarms in one process, each with its own book, that publish offers to each other.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::book::{Book, Heard};
use farthing_protocol::clock::Clock;
use farthing_protocol::frame::Frame;
use farthing_protocol::identity::NodeKey;
use farthing_protocol::net::sky::{Sky, Weather};
use farthing_protocol::net::{Config, Gossip, Inbox, Net, Protocol, Reachability};
use farthing_protocol::offer::{Offer, SellerBinding, SignedOffer};
use farthing_protocol::testing;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::bench::figures::Sample;
use crate::bench::machine;
use crate::crowd::{Cost, CrowdError};

/// Peers each one dials; gossip keeps six to twelve neighbours.
const DIALS: usize = 8;
/// How long meshes may take to form after the last dial, and longer for each peer: all of them
/// share the machine.
const SETTLE: Duration = Duration::from_secs(25);
const SETTLE_EACH: Duration = Duration::from_millis(30);
/// After how long a connection that nobody uses is closed; a node waits ten minutes. A crowd that
/// has just met would else be measured with the connections by which it met.
const IDLE: Duration = Duration::from_secs(15);

/// How long is waited before anything is published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// Until meshes have formed.
    pub(super) settle: Duration,
    /// While nothing is published, to see what that costs.
    pub(super) quiet: Duration,
}

impl Waits {
    /// For so many peers, to be measured for so long.
    pub(super) fn of(peers: usize, quiet: Duration) -> Self {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        Self {
            settle: SETTLE + SETTLE_EACH * peers,
            quiet,
        }
    }
}

/// How long the last offers may be on their way.
const LATE: Duration = Duration::from_secs(30);
/// Offers that all peers together check in a second: what two cores bear beside what a thousand
/// peers do when nothing is published.
const CHECKED: f64 = 500.0;
/// Offers that are published at least.
const OFFERS: usize = 60;
/// Peers that are looked for by their names alone.
const SOUGHT: usize = 50;
/// How often the progress of a gathering is told.
const TOLD: usize = 100;

/// An offer that a peer has heard: its seller's number, and when.
type Word = (usize, Instant);

/// Somebody in the crowd.
struct Peer {
    net: Net,
    key: NodeKey,
}

/// The node key of the `n`th peer.
fn key(n: usize) -> NodeKey {
    let mut seed = [0x5a; 32];
    let (tail, n) = (seed.len() - 8, (n as u64).to_be_bytes());
    if let Some(end) = seed.get_mut(tail..) {
        end.copy_from_slice(&n);
    }
    NodeKey::from_seed(&seed)
}

/// Another network for everybody.
fn address(n: usize) -> Ipv4Addr {
    let [.., a, b] = (n as u32 + 1).to_be_bytes();
    Ipv4Addr::new(9, a, b, 1)
}

/// The offer a peer publishes, number `seq`; its prices are in `capped`.
pub(super) fn offer(
    key: &NodeKey,
    seq: u64,
    model: Option<&str>,
    clock: &Clock,
) -> Option<SignedOffer> {
    let claim = testing::evm_key(1);
    let sample = testing::offer_of(1, seq, clock.now());
    let binding = SellerBinding {
        node: key.id(),
        payout: sample.payout,
        claim: sample.claim,
    };
    let mut models = sample.models.clone();
    for (one, name) in models.iter_mut().zip(model) {
        one.id = name.to_owned();
    }
    let offer = Offer {
        seller: key.id(),
        binding: binding.sign(&testing::network(), &claim),
        models,
        ..sample
    };
    SignedOffer::sign(&offer, key).ok()
}

/// Judges what a peer hears as every node does, and tells of what is new.
async fn listen(mut gossip: mpsc::Receiver<Gossip>, clock: Clock, words: mpsc::Sender<Word>) {
    let mut book = Book::new(testing::network());
    while let Some(message) = gossip.recv().await {
        match book.hear_bytes(&message.bytes, clock.now()) {
            Heard::Fresh(offer) => {
                message.verdict.accept();
                let number = usize::try_from(offer.offer().seq).unwrap_or(usize::MAX);
                if words.send((number, Instant::now())).await.is_err() {
                    return;
                }
            }
            Heard::Old => message.verdict.ignore(),
            Heard::Bad(_) => message.verdict.reject(),
        }
    }
}

/// Everybody, connected at random.
async fn gather(
    sky: &Sky,
    peers: usize,
    (words, clock): (&mpsc::Sender<Word>, &Clock),
    progress: &impl Fn(&str),
) -> Result<(Vec<Peer>, JoinSet<()>), CrowdError> {
    let mut crowd: Vec<Peer> = Vec::with_capacity(peers);
    let mut ears = JoinSet::new();
    let mut random = 0x9e37_79b9_u64;
    for n in 0..peers {
        let key = key(n);
        sky.public(key.id(), address(n));
        let config = Config {
            listen: vec!["/ip4/0.0.0.0/tcp/4801".into()],
            idle: IDLE,
            ..Config::default()
        };
        let (net, inbox) = Net::start(key.seed(), config).await?;
        let Inbox {
            streams,
            gossip,
            peers: events,
        } = inbox;
        let heard = listen(gossip, clock.clone(), words.clone());
        ears.spawn(async move {
            // Kept, so that nothing is refused; what is not read is bounded.
            let _kept = (streams, events);
            heard.await;
        });
        let others: Vec<_> = (0..DIALS.min(n))
            .filter_map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let other = crowd.get(usize::try_from(random).unwrap_or(0) % n);
                other.and_then(|peer| peer.net.listen_addresses().first().cloned())
            })
            .collect();
        join_all(others.iter().map(|at| net.dial(at))).await;
        crowd.push(Peer { net, key });
        if crowd.len().is_multiple_of(TOLD) {
            let (here, each, made) = (crowd.len(), connections(&crowd), sky.opened());
            progress(&format!(
                "{here} of {peers} have come, {each:.0} connections each, {made} made"
            ));
        }
    }
    Ok((crowd, ears))
}

/// Connections that each has.
fn connections(crowd: &[Peer]) -> f64 {
    let all = crowd.iter().map(|peer| peer.net.stats().connections);
    all.sum::<usize>() as f64 / crowd.len().max(1) as f64
}

struct Reading {
    at: Instant,
    bytes: u64,
    cpu: Duration,
}

fn read(sky: &Sky) -> Result<Reading, CrowdError> {
    Ok(Reading {
        at: Instant::now(),
        bytes: sky.carried(),
        cpu: machine::cpu(std::process::id())?,
    })
}

/// Measures one size of crowd.
pub(super) async fn measure(
    nth: usize,
    peers: usize,
    waits: Waits,
    progress: &impl Fn(&str),
) -> Result<Cost, CrowdError> {
    let sky = Sky::new(nth as u64 + 1, Weather::default());
    let clock = Clock::system();
    let (words, mut heard) = mpsc::channel(65_536);
    progress(&format!("{peers} peers: connecting"));
    let (crowd, mut ears) = gather(&sky, peers, (&words, &clock), progress).await?;
    drop(words);
    progress(&format!("{peers} peers: waiting for their meshes"));
    sleep(waits.settle).await;
    let quiet = read(&sky)?;
    sleep(waits.quiet).await;
    let begun = read(&sky)?;
    let connections = connections(&crowd);
    let rate = (CHECKED / peers as f64).min(20.0);
    let offers = ((rate * 20.0) as usize).max(OFFERS);
    progress(&format!("{peers} peers: {offers} offers are published"));
    let published = publish(&crowd, offers, rate, &clock);
    let expected = offers * (peers - 1);
    let listening = async {
        let mut all: Vec<Word> = Vec::with_capacity(expected);
        let patience = Duration::from_secs_f64(offers as f64 / rate) + LATE;
        let collect = async {
            while all.len() < expected {
                match heard.recv().await {
                    Some(word) => all.push(word),
                    None => return,
                }
            }
        };
        timeout(patience, collect).await.ok();
        all
    };
    let ((said, size), all) = tokio::join!(published, listening);
    let ended = read(&sky)?;
    progress(&format!("{peers} peers: some look for others"));
    let (sought, searches) = seek(&crowd).await;
    progress(&format!("{peers} peers: parting"));
    // Each takes up to a second to say goodbye.
    join_all(crowd.iter().map(|peer| peer.net.stop())).await;
    ears.shutdown().await;
    let spread: Sample = all
        .iter()
        .filter_map(|(number, at)| said.get(number.checked_sub(1)?).map(|said| *at - *said))
        .collect();
    let each = |value: f64| value / peers as f64;
    let still = (begun.at - quiet.at).as_secs_f64();
    let busy = (ended.at - begun.at).as_secs_f64();
    let idle = each((begun.bytes - quiet.bytes) as f64) / still;
    let idle_cpu = each((begun.cpu.saturating_sub(quiet.cpu)).as_secs_f64()) / still;
    let sent = each((ended.bytes - begun.bytes) as f64) - idle * busy;
    let took = each((ended.cpu.saturating_sub(begun.cpu)).as_secs_f64()) - idle_cpu * busy;
    Ok(Cost {
        peers,
        connections,
        offers,
        offer: size,
        idle,
        bytes: sent / offers as f64,
        cpu: Duration::from_secs_f64((took / offers as f64).max(0.0)),
        idle_cpu: Duration::from_secs_f64(idle_cpu),
        reached: all.len() as f64 / expected as f64,
        half: spread.median(),
        most: spread.percentile(99),
        sought,
        found: searches.len(),
        search: searches.median(),
    })
}

/// Some look for somebody of whom they know the name and nothing else, who is not connected to them
/// and has been reached by strangers (others are in no table). How many did, and how long it took
/// those who found whom they looked for.
async fn seek(crowd: &[Peer]) -> (usize, Sample) {
    let (mut sought, mut took) = (0, Vec::new());
    for n in 0..SOUGHT {
        let at = |n: usize| crowd.get(n % crowd.len().max(1));
        let (Some(from), Some(to)) = (at(n * 17), at(n * 41 + 13)) else {
            break;
        };
        let is_listed = to.net.reachability() == Reachability::Visited;
        let to = to.key.id();
        if !is_listed || to == from.key.id() || from.net.peers().contains(&to) {
            continue;
        }
        sought += 1;
        let begun = Instant::now();
        if from.net.open(to, &[], Protocol::Call).await.is_ok() {
            took.push(begun.elapsed());
        }
    }
    (sought, took.into_iter().collect())
}

/// Publishes so many offers at this rate, by one peer after the other; says when each was, and
/// how large one is.
async fn publish(crowd: &[Peer], offers: usize, rate: f64, clock: &Clock) -> (Vec<Instant>, usize) {
    let mut said = Vec::with_capacity(offers);
    let mut size = 0;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let crowd: Vec<Arc<&Peer>> = crowd.iter().map(Arc::new).collect();
    for n in 0..offers {
        ticks.tick().await;
        let Some(peer) = crowd.get(n % crowd.len().max(1)) else {
            continue;
        };
        let signed = offer(&peer.key, n as u64 + 1, None, clock);
        let bytes = signed.and_then(|signed| signed.encode().ok());
        said.push(Instant::now());
        if let Some(bytes) = bytes {
            size = bytes.len();
            if let Err(error) = peer.net.publish(bytes).await {
                tracing::warn!(%error, "not published");
            }
        }
    }
    (said, size)
}
