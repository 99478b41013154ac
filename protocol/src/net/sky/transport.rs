//! A host's way into a sky, in libp2p's terms.

use std::{
    future::{Ready, ready},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Transport, TransportError,
    core::transport::{DialOpts, ListenerId, PortUse, TransportEvent},
    multiaddr::Protocol,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{Arrival, Dialling, Home, Knock, home_of, pipe::Pipe};

/// Connections that have come in and wait to be taken.
const BACKLOG: usize = 128;

/// How often an attempt to connect is repeated, and how long.
const REPEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);

/// The transport of one host.
pub(in crate::net) struct SkyTransport {
    home: Home,
    listeners: Vec<Listener>,
    closed: Vec<ListenerId>,
}

struct Listener {
    id: ListenerId,
    at: SocketAddrV4,
    told: bool,
    arrivals: mpsc::Receiver<Arrival>,
}

impl SkyTransport {
    /// The way of a peer that has a home.
    pub(in crate::net) fn of(peer: &PeerId) -> Option<Self> {
        home_of(peer).map(|home| Self {
            home,
            listeners: Vec::new(),
            closed: Vec::new(),
        })
    }
}

impl Transport for SkyTransport {
    type Output = Pipe;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Pipe>>;
    type Dial = BoxFuture<'static, io::Result<Pipe>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let Some(at) = socket(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let mut world = self.home.sky.lock();
        let port = if at.port() == 0 {
            world.port()
        } else {
            at.port()
        };
        let at = SocketAddrV4::new(self.home.inside, port);
        let (sender, arrivals) = mpsc::channel(BACKLOG);
        if world
            .listeners
            .get(&at)
            .is_some_and(|other| !other.is_closed())
        {
            return Err(TransportError::Other(io::ErrorKind::AddrInUse.into()));
        }
        world.listeners.insert(at, sender);
        drop(world);
        self.listeners.push(Listener {
            id,
            at,
            told: false,
            arrivals,
        });
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let known = self.listeners.iter().any(|listener| listener.id == id);
        self.listeners.retain(|listener| listener.id != id);
        self.closed.extend(known.then_some(id));
        known
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(to) = socket(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let reused = self.listeners.first().map(|listener| listener.at.port());
        let reused = reused.filter(|_| options.port_use == PortUse::Reuse);
        let home = self.home.clone();
        let port = reused.unwrap_or_else(|| home.sky.lock().port());
        let source = SocketAddrV4::new(home.inside, port);
        Ok(connect(home, source, to).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        if let Some(listener_id) = self.closed.pop() {
            return Poll::Ready(TransportEvent::ListenerClosed {
                listener_id,
                reason: Ok(()),
            });
        }
        for listener in &mut self.listeners {
            let (listener_id, at) = (listener.id, address(listener.at));
            if !std::mem::replace(&mut listener.told, true) {
                return Poll::Ready(TransportEvent::NewAddress {
                    listener_id,
                    listen_addr: at,
                });
            }
            if let Poll::Ready(Some(Arrival { from, pipe })) = listener.arrivals.poll_recv(cx) {
                return Poll::Ready(TransportEvent::Incoming {
                    listener_id,
                    upgrade: ready(Ok(pipe)),
                    local_addr: at,
                    send_back_addr: address(from),
                });
            }
        }
        Poll::Pending
    }
}

/// Knocks again and again, and waits for the other side to knock here at the same time.
async fn connect(home: Home, source: SocketAddrV4, to: SocketAddrV4) -> io::Result<Pipe> {
    let (sender, meeting) = oneshot::channel();
    let from = {
        let mut world = home.sky.lock();
        let from = world.leave(&home, source, to);
        world.dialling.insert(Dialling { from, to }, sender);
        from
    };
    let dialling = Dialling { from, to };
    let knocking = async {
        loop {
            sleep(home.sky.travel(0)).await;
            match home.sky.knock(source, dialling) {
                Knock::Open(pipe) => return Ok(pipe),
                Knock::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Knock::Lost => sleep(REPEAT).await,
            }
        }
    };
    let met = async {
        match meeting.await {
            Ok(pipe) => Ok(pipe),
            // Another dial between the same two took the place of this one.
            Err(_) => std::future::pending().await,
        }
    };
    let first = async {
        tokio::select! {
            biased;
            pipe = met => pipe,
            pipe = knocking => pipe,
        }
    };
    let begun = Instant::now();
    let connected = timeout(PATIENCE, first).await;
    home.sky.lock().dialling.remove(&dialling);
    // The answer travels back as long as the question came.
    sleep(home.sky.travel(0).min(begun.elapsed())).await;
    connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// `/ip4/…/tcp/…`, with or without a peer at its end.
fn socket(address: &Multiaddr) -> Option<SocketAddrV4> {
    let mut parts = address.iter();
    let ip: Ipv4Addr = match parts.next()? {
        Protocol::Ip4(ip) => ip,
        _ => return None,
    };
    let port = match parts.next()? {
        Protocol::Tcp(port) => port,
        _ => return None,
    };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some(SocketAddrV4::new(ip, port)),
        Some(_) => None,
    }
}

fn address(at: SocketAddrV4) -> Multiaddr {
    Multiaddr::empty()
        .with(Protocol::Ip4(*at.ip()))
        .with(Protocol::Tcp(at.port()))
}
