//! The twin of the Internet, for tests: hosts with addresses of their own, NATs between them, and
//! weather (delay, jitter, loss, partitions) over them, all in one process and from one seed.
//!
//! A node that was given a home here ([`Sky::public`], [`Sky::behind`]) before it starts has this
//! in the place of TCP and QUIC; everything above (encryption, multiplexing, relays, hole punching)
//! is the production code. What travels is streams, as over TCP: what is lost arrives late.

mod nat;
mod pipe;
mod transport;

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use libp2p::PeerId;
use tokio::sync::{mpsc, oneshot};

use self::{
    nat::Box as NatBox,
    pipe::{Pipe, pair},
};
use crate::{identity::NodeId, net::peer};

pub use self::nat::{Filtering, Mapping, Nat};
pub(super) use self::transport::SkyTransport;

/// How long a lost piece takes to be sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// Where each node of this process lives, by its name. libp2p's own memory transport keeps such a
/// table too.
static HOMES: LazyLock<Mutex<HashMap<PeerId, Home>>> = LazyLock::new(Mutex::default);

/// What the lines between hosts do to what travels on them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weather {
    /// How long everything takes, one way.
    pub delay: Duration,
    /// How much longer some of it takes, at most.
    pub jitter: Duration,
    /// The share of pieces that are lost and sent again, 0 to 1.
    pub loss: f64,
}

/// One Internet.
#[derive(Debug, Clone)]
pub struct Sky(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    weather: Weather,
    random: u64,
    listeners: HashMap<SocketAddrV4, mpsc::Sender<Arrival>>,
    nats: HashMap<Ipv4Addr, NatBox>,
    public: HashSet<Ipv4Addr>,
    dialling: HashMap<Dialling, oneshot::Sender<Pipe>>,
    /// Hosts cut off from all the others, by their outside address.
    apart: HashSet<Ipv4Addr>,
    waiting: Vec<Waker>,
    ports: u16,
    carried: u64,
    opened: u64,
}

/// A dial under way, as the other side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Dialling {
    from: SocketAddrV4,
    to: SocketAddrV4,
}

/// Where one node lives.
#[derive(Debug, Clone)]
struct Home {
    sky: Sky,
    inside: Ipv4Addr,
    outside: Ipv4Addr,
}

/// A connection that has come in.
#[derive(Debug)]
struct Arrival {
    from: SocketAddrV4,
    pipe: Pipe,
}

/// What became of one attempt to connect.
enum Knock {
    Open(Pipe),
    Refused,
    Lost,
}

impl Sky {
    /// An Internet without hosts.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(World {
            weather,
            random: seed,
            listeners: HashMap::new(),
            nats: HashMap::new(),
            public: HashSet::new(),
            dialling: HashMap::new(),
            apart: HashSet::new(),
            waiting: Vec::new(),
            ports: 40_000,
            carried: 0,
            opened: 0,
        })))
    }

    /// Gives a node that is yet to start an address anybody can reach.
    pub fn public(&self, node: NodeId, address: Ipv4Addr) {
        self.lock().public.insert(address);
        self.settle(node, address, address);
    }

    /// Gives a node that is yet to start a private address (`10.0.x.2`, after the last number of
    /// `outside`) behind a NAT of its own.
    pub fn behind(&self, node: NodeId, nat: Nat, outside: Ipv4Addr) {
        let inside = Ipv4Addr::new(10, 0, outside.octets()[3], 2);
        self.lock().nats.insert(outside, NatBox::new(nat));
        self.settle(node, inside, outside);
    }

    fn settle(&self, node: NodeId, inside: Ipv4Addr, outside: Ipv4Addr) {
        let home = Home {
            sky: self.clone(),
            inside,
            outside,
        };
        let mut homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
        homes.insert(peer::peer_of(node), home);
    }

    /// Changes the weather for what is sent from now on.
    pub fn set(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Cuts the hosts with these outside addresses off from all the others (not from each
    /// other). What is under way waits, and connections do not notice by themselves.
    pub fn cut(&self, outside: &[Ipv4Addr]) {
        self.lock().apart.extend(outside);
    }

    /// Ends all cuts: what waited goes on.
    pub fn heal(&self) {
        let mut world = self.lock();
        world.apart.clear();
        for waker in world.waiting.drain(..) {
            waker.wake();
        }
    }

    /// Bytes that were sent by all hosts so far.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.lock().carried
    }

    /// Connections that were made so far.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.lock().opened
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the next piece takes, of so many bytes; the lost ones longer.
    fn travel(&self, bytes: usize) -> Duration {
        let mut world = self.lock();
        world.carried += bytes as u64;
        let Weather {
            delay,
            jitter,
            loss,
        } = world.weather;
        let mut takes = delay + jitter.mul_f64(world.chance());
        // A piece that is lost again and again is a broken line, which a cut is for.
        for _ in 0..5 {
            if world.chance() >= loss {
                break;
            }
            takes += AGAIN;
        }
        takes
    }

    /// Whether nothing passes between the two; then `waker` is woken when that may have ended.
    fn is_cut(&self, between: (Ipv4Addr, Ipv4Addr), waker: &Waker) -> bool {
        let mut world = self.lock();
        let cut = world.is_cut(between);
        if cut {
            world.waiting.push(waker.clone());
        }
        cut
    }

    /// One attempt to connect has left `source` (an inside address) and arrives.
    fn knock(&self, source: SocketAddrV4, dialling: Dialling) -> Knock {
        let mut world = self.lock();
        let Dialling { from, to } = dialling;
        if world.is_cut((*from.ip(), *to.ip())) {
            return Knock::Lost;
        }
        let Some(inside) = world.route(from, to) else {
            return Knock::Lost;
        };
        let (ours, theirs) = pair(self, (*from.ip(), *to.ip()));
        // Both dial each other at once: they meet half way, as TCP does.
        let meeting = Dialling { from: to, to: from };
        if let Some(other) = world.dialling.remove(&meeting) {
            return match other.send(theirs) {
                Ok(()) => world.open(ours),
                Err(_) => Knock::Lost,
            };
        }
        let arrival = Arrival { from, pipe: theirs };
        match world.listeners.get(&inside).map(|l| l.try_send(arrival)) {
            Some(Ok(())) => world.open(ours),
            Some(Err(mpsc::error::TrySendError::Full(_))) => Knock::Lost,
            _ if source == inside => Knock::Lost,
            _ => Knock::Refused,
        }
    }
}

impl World {
    /// The next random number, 0 to 1 (SplitMix64).
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn open(&mut self, pipe: Pipe) -> Knock {
        self.opened += 1;
        Knock::Open(pipe)
    }

    fn is_cut(&self, (one, other): (Ipv4Addr, Ipv4Addr)) -> bool {
        self.apart.contains(&one) != self.apart.contains(&other)
    }

    /// What the outside sees as the source of what `source` sends to `to`; a NAT remembers it.
    fn leave(&mut self, home: &Home, source: SocketAddrV4, to: SocketAddrV4) -> SocketAddrV4 {
        match self.nats.get_mut(&home.outside) {
            Some(nat) => SocketAddrV4::new(home.outside, nat.leave(source, to)),
            None => source,
        }
    }

    /// The inside address that something from `from` to `to` reaches, if anything.
    fn route(&self, from: SocketAddrV4, to: SocketAddrV4) -> Option<SocketAddrV4> {
        match self.nats.get(to.ip()) {
            Some(nat) => nat.enter(from, to.port()),
            None => self.public.contains(to.ip()).then_some(to),
        }
    }

    fn port(&mut self) -> u16 {
        self.ports = self.ports.checked_add(1).unwrap_or(40_001);
        self.ports
    }
}

/// Where the peer lives, if it has a home in a sky.
fn home_of(peer: &PeerId) -> Option<Home> {
    let homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
    homes.get(peer).cloned()
}
