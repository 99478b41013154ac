//! The door for buyers that have never heard of us: OpenAI's API over HTTP, paid by x402.
//!
//! A request without a payment is told its price (402), computed from its body alone. One with a
//! payment passes the scheme's checks and then the same admission, meter, ledger and claims as a
//! purchase over libp2p: [`crate::serve`] sells, and this door is its other counter.
//!
//! The door owns its listener, its connections and the sales that began through it. It ends with
//! its token: no new connection, answers under way have twenty seconds, and what they delivered is
//! charged. Content and payments are in no log.

mod certificate;
mod stall;
mod crowd;
mod listener;
mod quote;
mod turns;
mod window;
mod witness;
mod answer;
mod problem;
mod sale;
mod batch;
mod once;
mod routes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farthing_protocol::chain::Chain;
use farthing_protocol::x402::ChannelId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::calls::Desk;
use crate::config::{Config, HttpConfig};
pub(crate) use crate::http::certificate::Certificate;
use crate::http::crowd::Crowd;
use crate::http::turns::Turns;
use crate::ledger::once::Once;

/// How long answers under way may go on after the door is told to close.
const GRACE: Duration = Duration::from_secs(20);
/// How often what is owed and could not be taken is tried again, at the least: once in so many of
/// the looks that settlement takes at the chain, or in this time.
const LOOKS: u32 = 30;
const COLLECT_AGAIN: Duration = Duration::from_secs(60);
/// How long a chain that does not answer is left alone.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a price that was told holds, unless offers are renewed so late that it cannot.
const PRICE_HOLDS: Duration = Duration::from_secs(300);

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} (`http.listen`): {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Others would reach it, and see everything.
    #[error(
        "{address} can be reached by others: set `http.tls_certificate` and `http.tls_key`, or listen on 127.0.0.1"
    )]
    Plain {
        /// The address.
        address: SocketAddr,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot use {path} ({key}): {reason}")]
    Tls {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What every request needs.
#[derive(Debug)]
pub(in crate::http) struct Shared {
    desk: Arc<Desk>,
    chain: Chain,
    settings: HttpConfig,
    /// How long a price holds, in seconds.
    price_holds: u64,
    turns: Arc<Turns>,
    requests: Arc<Semaphore>,
    /// Connections, and requests, of each client.
    guests: Arc<Crowd>,
    askers: Arc<Crowd>,
    /// How often what is owed is looked for.
    collects: Duration,
    /// Whether the contracts of scheme `upto` are there.
    takes_upto: AtomicBool,
    ordered: Arc<window::Ordered>,
    /// Sales that were begun here.
    sales: TaskTracker,
}

/// The door, bound and not yet open.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({})", self.address)
    }
}

/// Where the door is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpAddress {
    /// Its address; a port of 0 is resolved.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
}

impl Door {
    /// Opens the door as configured; nothing when no address is.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn open(
        config: &Config,
        desk: &Arc<Desk>,
        chain: &Chain,
        stop: &CancellationToken,
    ) -> Result<Option<(HttpAddress, JoinHandle<()>)>, BindError> {
        let (desk, chain) = (Arc::clone(desk), chain.clone());
        let door = Self::bind(config, desk, chain).await?;
        Ok(door.map(|door| {
            let at = HttpAddress {
                address: door.address,
                secure: door.is_secure(),
            };
            (at, tokio::spawn(door.run(stop.clone())))
        }))
    }

    /// Takes the address and reads the certificate; nothing when no address is configured.
    ///
    /// # Errors
    /// [`BindError`].
    async fn bind(
        config: &Config,
        desk: Arc<Desk>,
        chain: Chain,
    ) -> Result<Option<Self>, BindError> {
        let (settings, offers) = (config.http.clone(), &config.offer);
        let Some(address) = settings.listen else {
            return Ok(None);
        };
        let tls = Certificate::read(&settings)?.map(|certificate| certificate.acceptor());
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(BindError::Plain { address });
        }
        let taken = |source| BindError::Address { address, source };
        let listener = TcpListener::bind(address).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        // The newest offer is good for that long, whenever it is looked at.
        let left = offers.lifetime.saturating_sub(offers.refresh);
        let collects = config.settlement.poll_interval.saturating_mul(LOOKS);
        let shared = Shared {
            desk,
            chain,
            price_holds: left.min(PRICE_HOLDS).as_secs().max(1),
            // Those who wait leave most of the room to others.
            turns: Turns::new(
                settings.turn_timeout,
                settings.requests.div_ceil(4) as usize,
            ),
            requests: Arc::new(Semaphore::new(settings.requests as usize)),
            guests: Crowd::new(settings.connections_per_client),
            askers: Crowd::new(settings.requests_per_client),
            collects: collects.min(COLLECT_AGAIN),
            takes_upto: AtomicBool::new(false),
            ordered: Arc::default(),
            sales: TaskTracker::new(),
            settings,
        };
        Ok(Some(Self {
            listener,
            address,
            tls,
            shared: Arc::new(shared),
        }))
    }

    const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Serves until cancelled, and then until the sales under way have ended.
    async fn run(self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        let looks = Arc::clone(&shared);
        // What is there before anybody is let in is what a crash left.
        let left = shared.desk.shop.ledger.untaken().unwrap_or_else(|error| {
            tracing::error!(%error, "payments that were not taken cannot be read");
            Vec::new()
        });
        let begun = shared.sales.spawn(async move { looks.look(left).await });
        listener::run(self, stop).await;
        begun.abort();
        shared.sales.close();
        if tokio::time::timeout(GRACE, shared.sales.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                "sales over HTTP are cut off; their checkpoints are charged at the next start"
            );
        }
    }
}

impl Shared {
    fn purse(&self) -> once::Purse<'_> {
        once::Purse {
            chain: &self.chain,
            ordered: &self.ordered,
            ledger: &self.desk.shop.ledger,
            settlement: &self.desk.settlement,
        }
    }

    /// Finds out whether `upto` can be taken, asking until the chain answers, ends what a crash
    /// left, and then takes what is owed, now and then, until it is stopped.
    async fn look(&self, left: Vec<(ChannelId, Once)>) {
        loop {
            match self.chain.verify_upto().await {
                Ok(()) => self.takes_upto.store(true, Ordering::Relaxed),
                Err(error) if error.is_unavailable() => {
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
                Err(error) => tracing::info!(%error, "scheme `upto` is not offered"),
            }
            break;
        }
        let mut left = once::resume(self.purse(), left).await;
        loop {
            tokio::time::sleep(self.collects).await;
            left = once::resume(self.purse(), left).await;
            once::collect(self.purse()).await;
        }
    }
}
