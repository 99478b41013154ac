//! The composition root: builds the parts in floor order, holds their handles, stops them in
//! reverse. Nothing is set later.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::book::Book;
use farthing_protocol::chain::{Chain, ChainError, RpcConfig};
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::grapevine::Grapevine;
use farthing_protocol::identity::{NodeId, NodeKey};
use farthing_protocol::net::{self, Net, Protocol};
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::purchase::Load;
use farthing_protocol::roll::Roll;
use farthing_protocol::root;
use farthing_protocol::store::{OpenError, Store};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::announce::{self, Announcer, Rhythm, Standing};
use crate::calls::{self, Desk, Terms};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::http::{self, Door, HttpAddress};
use crate::keeper::Keeper;
use crate::ledger::{Ledger, LedgerError, schema};
use crate::metrics::Metrics;
use crate::serve;
use crate::settlement::{self, Policy, Settlement};
use crate::shelf::Shelf;
use crate::shop::{Limits, Seats, Shop};
use crate::upstream::{self, Upstream};

/// How long running purchases may go on when the node is told to stop.
const GRACE: Duration = Duration::from_secs(20);
/// Calls answered at once, of all peers together.
const CALLS: usize = 256;
/// Streams a buyer may have beyond twice its purchases (those over the limit are told so): for
/// calls.
const SPARE_STREAMS: usize = 16;
/// Files and sockets of the node itself: its ledger, listeners, the chain.
const OWN_DESCRIPTORS: u64 = 128;

/// The node's secrets.
#[derive(Debug)]
pub struct Keys {
    /// Its identity on the network.
    pub node: NodeKey,
    /// Claims from channels, and pays gas.
    pub claim: EvmKey,
}

/// What comes in from outside, so that tests can bring their own.
#[derive(Debug)]
pub struct Outside {
    /// The time of day.
    pub clock: Clock,
    /// The chain.
    pub chain: Chain,
}

impl Outside {
    /// The machine's clock and the configured chain nodes.
    ///
    /// # Errors
    /// [`ChainError::Config`].
    pub fn real(config: &Config) -> Result<Self, ChainError> {
        Self::by(Clock::system(), config)
    }

    /// This clock and the configured chain nodes.
    ///
    /// # Errors
    /// [`ChainError::Config`].
    pub fn by(clock: Clock, config: &Config) -> Result<Self, ChainError> {
        let rpc = RpcConfig {
            urls: config.chain.rpc.clone(),
            ..RpcConfig::default()
        };
        let chain = Chain::connect(config.chain.network(), rpc)?;
        Ok(Self { clock, chain })
    }
}

/// Why the node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The books.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The chain is another one, or lacks the contracts. (One that is away is waited for.)
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The network.
    #[error(transparent)]
    Net(#[from] net::StartError),
    /// The model server's settings.
    #[error("the model server cannot be used: {0}")]
    Upstream(#[from] upstream::StartError),
    /// The door for buyers over HTTP.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// Nothing is on sale.
    #[error("no model has a price: add a [[models]] entry to the config")]
    NothingOnSale,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    shop: Arc<Shop>,
    desk: Arc<Desk>,
    net: Net,
    chain: Chain,
    settlement: Settlement,
    /// Where the door for buyers over HTTP is, if it is open.
    door: Option<HttpAddress>,
    stop: CancellationToken,
    /// The living parts in the order in which they end.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    settling: Mutex<Option<JoinHandle<()>>>,
}

impl Node {
    /// Builds and starts every part. The keys are already open and the config is valid.
    ///
    /// # Errors
    /// [`StartError`]; what was started is stopped again.
    pub async fn start(config: Config, keys: Keys, outside: Outside) -> Result<Self, StartError> {
        // On the heap: it is large, and whoever calls it would carry it on the stack.
        Box::pin(Self::assemble(config, keys, outside)).await
    }

    async fn assemble(config: Config, keys: Keys, outside: Outside) -> Result<Self, StartError> {
        let Outside { clock, chain } = outside;
        let chain = chain.with_max_fee(u128::from(config.settlement.max_fee));
        verify(&chain).await?;
        if config.models.is_empty() {
            return Err(StartError::NothingOnSale);
        }
        let store = Store::open(&config.data_dir, schema())?;
        let ledger = Ledger::open(store, clock.now()).await?;
        let metrics = Arc::new(Metrics::default());
        let upstream = Upstream::start(&config.upstream, &metrics)?;
        let catalog = Catalog::new(config.models.clone());
        let (net, inbox) = Net::start(keys.node.seed(), net_config(&config)).await?;
        let terms = terms(&config, keys.claim.address());
        let shelf = Shelf::default();
        let book = Arc::new(Mutex::new(Book::new(terms.network.clone())));
        let announcer = Announcer::new(
            announce::Ground {
                net: net.clone(),
                clock: clock.clone(),
                store: ledger.store().clone(),
                shelf: shelf.clone(),
                book: Arc::clone(&book),
                catalog: catalog.clone(),
                upstream: upstream.clone(),
                metrics: Arc::clone(&metrics),
            },
            standing(&config, terms.clone()),
            rhythm(&config),
            NodeKey::from_seed(&keys.node.seed()),
            &keys.claim,
        );
        let ground = ground(&chain, &ledger, &keys.claim, &clock);
        let (settlement, settling) = Settlement::start(ground, policy(&config));
        let shop = Arc::new(Shop {
            clock,
            key: keys.node,
            claim: keys.claim,
            domain: terms.network.domain(),
            roots: root::domain(&terms.network),
            ledger,
            shelf,
            catalog,
            upstream,
            limits: limits(&config),
            metrics,
            seats: seats(&config),
        });
        let (for_desk, claims) = (Arc::clone(&shop), settlement.clone());
        let desk = Arc::new(Desk::new(for_desk, claims, book, terms));
        let keeper = keeper(&shop, &config);
        let grapevine = Grapevine::new(net.clone(), chain.clone(), desk.roll.clone());
        let stop = CancellationToken::new();
        let (door, serving) = Door::open(&config, &desk, &chain, &stop).await?.unzip();
        let doors = Doors::new(Arc::clone(&desk), &config, stop.clone());
        let tasks = [
            Some(tokio::spawn(doors.run(inbox.streams, stop.clone()))),
            Some(tokio::spawn(announcer.run(
                inbox.gossip,
                inbox.peers,
                stop.clone(),
            ))),
            serving,
            Some(tokio::spawn(keeper.run(stop.clone()))),
            Some(tokio::spawn(grapevine.run(stop.clone().cancelled_owned()))),
        ];
        Ok(Self {
            tasks: Mutex::new(tasks.into_iter().flatten().collect()),
            door,
            settling: Mutex::new(Some(settling)),
            shop,
            desk,
            net,
            chain,
            settlement,
            stop,
        })
    }

    /// Who we are.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.net.local()
    }

    /// Where we can be reached, with our name at the end of each.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.net.listen_addresses()
    }

    /// Where buyers come over HTTP, if they may.
    #[must_use]
    pub const fn http(&self) -> Option<HttpAddress> {
        self.door
    }

    /// The offer that holds now.
    #[must_use]
    pub fn offer(&self) -> Option<Arc<VerifiedOffer>> {
        self.shop.shelf.newest()
    }

    /// Sellers whose offers it knows and passes on.
    #[must_use]
    pub fn known(&self) -> usize {
        let book = self.desk.book.lock();
        let book = book.unwrap_or_else(PoisonError::into_inner);
        book.offers(self.shop.clock.now()).count()
    }

    /// The books.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.shop.ledger
    }

    /// The seller's parts.
    #[must_use]
    pub fn shop(&self) -> &Arc<Shop> {
        &self.shop
    }

    /// The channels' terms.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.desk.terms
    }

    /// What buyers say of sellers.
    #[must_use]
    pub fn roll(&self) -> &Roll {
        &self.desk.roll
    }

    /// How full each model is.
    #[must_use]
    pub fn loads(&self) -> Vec<Load> {
        self.shop.seats.loads()
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The way to the chain.
    #[must_use]
    pub fn settlement(&self) -> &Settlement {
        &self.settlement
    }

    /// Stops in reverse: no new streams, running purchases end, a last claim, the books closed.
    pub async fn stop(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // A part that failed has said so; there is nothing left to stop in it.
            task.await.ok();
        }
        self.settlement.stop().await;
        let settling = self
            .settling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = settling {
            task.await.ok();
        }
        self.net.stop().await;
        self.shop.upstream.stop().await;
        self.shop.ledger.store().stop().await;
    }
}

/// Checks the chain if it answers. One that is away is waited for; a wrong one is an error.
async fn verify(chain: &Chain) -> Result<(), ChainError> {
    match chain.verify().await {
        Err(error) if error.is_unavailable() => {
            tracing::warn!(%error, "starting without the chain; deposits and claims must wait");
            Ok(())
        }
        other => other,
    }
}

/// The node's network, as the configuration says.
pub(crate) fn net_config(config: &Config) -> net::Config {
    let spare = net::Limits::default();
    let streams_per_peer = config.limits.purchases_per_buyer as usize * 2 + SPARE_STREAMS;
    net::Config {
        listen: config.network.listen.clone(),
        external: config.network.external.clone(),
        bootstrap: config.network.bootstrap.clone(),
        mdns: config.network.mdns,
        relays: config.network.relays as usize,
        lends: config.network.relay.lends(),
        topic: config.chain.network().topic(),
        reach: if config.chain.is_local() {
            net::Reach::Local
        } else {
            net::Reach::Public
        },
        limits: net::Limits {
            streams_per_peer,
            ..spare
        },
        ..net::Config::default()
    }
}

/// The files and sockets a node may have open: its ledger, peers, buyers over HTTP, and a
/// connection to the model server for each purchase.
#[must_use]
pub fn descriptors(config: &Config) -> u64 {
    let doors = config.http.listen.map_or(0, |_| config.http.connections);
    let peers = net::Limits::default().connections;
    OWN_DESCRIPTORS + u64::from(config.limits.slots) + u64::from(peers) + u64::from(doors)
}

fn terms(config: &Config, claim: Address) -> Terms {
    Terms {
        network: config.chain.network(),
        payout: config.chain.payout.unwrap_or(claim),
        claim,
        withdraw_delay: config.chain.withdraw_delay.as_secs(),
        min_deposit: config.chain.min_deposit,
    }
}

fn standing(config: &Config, terms: Terms) -> Standing {
    Standing {
        terms,
        region: config.offer.region.clone(),
        data_policy: config.offer.data_policy.clone(),
    }
}

const fn rhythm(config: &Config) -> Rhythm {
    Rhythm {
        lifetime: config.offer.lifetime,
        refresh: config.offer.refresh,
    }
}

fn seats(config: &Config) -> Seats {
    let models = config.models.iter();
    Seats::new(models.map(|model| (model.id.clone(), model.slots)))
}

/// What the settlement stands on.
fn ground(chain: &Chain, ledger: &Ledger, claim: &EvmKey, clock: &Clock) -> settlement::Ground {
    settlement::Ground {
        chain: chain.clone(),
        ledger: ledger.clone(),
        key: claim.clone(),
        clock: clock.clone(),
    }
}

/// Who lets old receipts go.
fn keeper(shop: &Shop, config: &Config) -> Keeper {
    let (ledger, clock) = (shop.ledger.clone(), shop.clock.clone());
    Keeper::new(ledger, clock, &config.receipts, &config.data_dir)
}

const fn policy(config: &Config) -> Policy {
    let settlement = &config.settlement;
    Policy {
        claim_at: settlement.claim_at,
        claim_age: settlement.claim_age,
        max_rows: settlement.max_rows as usize,
        gas_multiple: settlement.gas_multiple as u128,
        coin_price: settlement.coin_price,
        exposure: config.limits.exposure_per_payer,
        confirmations: settlement.confirmations,
        trust_unconfirmed: settlement.trust_unconfirmed,
        bump_after: settlement.bump_after,
        poll: settlement.poll_interval,
    }
}

const fn limits(config: &Config) -> Limits {
    Limits {
        max_body: config.limits.max_body,
        exposure: config.limits.exposure_per_payer,
        unpaid_wait: config.limits.unpaid_wait,
        deadline: config.limits.max_deadline,
        checkpoint: config.limits.checkpoint,
    }
}

/// Takes in streams and gives each its task. Bounded: purchases by peer and in all, calls in all.
struct Doors {
    desk: Arc<Desk>,
    turnstile: serve::Turnstile,
    calls: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Doors {
    fn new(desk: Arc<Desk>, config: &Config, stop: CancellationToken) -> Self {
        // Asks beyond the seats are refused politely; beyond twice that, streams are dropped.
        let purchases = config.limits.slots.saturating_mul(2) as usize;
        Self {
            desk,
            turnstile: serve::Turnstile::new(purchases, config.limits.purchases_per_buyer, stop),
            calls: Arc::new(Semaphore::new(CALLS)),
            tasks: JoinSet::new(),
        }
    }

    async fn run(
        mut self,
        mut streams: tokio::sync::mpsc::Receiver<net::Incoming>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a stream's task failed");
                    }
                }
                incoming = streams.recv() => match incoming {
                    Some(incoming) => self.admit(incoming),
                    None => break,
                },
            }
        }
        // What was delivered is charged: each purchase sees the stream end and finishes.
        drop(streams);
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ending).await.is_err() {
            tracing::warn!(
                "purchases are cut off; their checkpoints are charged at the next start"
            );
        }
    }

    fn admit(&mut self, incoming: net::Incoming) {
        let net::Incoming {
            peer,
            protocol,
            stream,
        } = incoming;
        match protocol {
            Protocol::Purchase => {
                let Some(place) = self.turnstile.enter(peer) else {
                    return self.turn_away(peer, stream);
                };
                let shop = Arc::clone(&self.desk.shop);
                let entry = (self.turnstile.clone(), place);
                self.tasks.spawn(serve::serve(shop, peer, stream, entry));
            }
            Protocol::Call => {
                let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
                    return tracing::debug!(peer = %peer.short(), "no room for another call");
                };
                self.tasks.spawn(hold(
                    permit,
                    calls::answer(Arc::clone(&self.desk), peer, stream),
                ));
            }
        }
    }

    /// Says that we are busy, so that the buyer knows that nothing is charged; to a crowd beyond
    /// that too, silence.
    fn turn_away(&mut self, peer: NodeId, stream: net::Stream) {
        let Some(permit) = self.turnstile.turn_away() else {
            return tracing::debug!(peer = %peer.short(), "no room for another stream");
        };
        let shop = Arc::clone(&self.desk.shop);
        self.tasks.spawn(hold(permit, async move {
            serve::turn_away(&shop, peer, stream).await;
        }));
    }
}

async fn hold<G>(guard: G, work: impl Future<Output = ()>) {
    work.await;
    drop(guard);
}
