//! The operator's door: a socket in the data directory that only the operator can open, with the
//! reports of [`crate::report`] and the order to claim, as JSON over HTTP.

mod earnings;
mod receipts;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::net::Reachability;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ledger::ChannelView;
use crate::node::Node;
use crate::report::{Claimed, ModelStatus, OfferStatus, Reach, Status, Token};
use crate::upstream::Health;

/// The socket's name within the data directory.
pub const SOCKET: &str = "control.sock";
/// How long the chain may take when a report asks it.
const CHAIN_WAIT: Duration = Duration::from_secs(3);
/// Decimal places and symbol of the token, which no signature needs.
const TOKEN_DECIMALS: u8 = 6;

/// The open door. It is closed, and its socket removed, when it has been served.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

struct Desk {
    node: Arc<Node>,
    config: Config,
    clock: Clock,
    started: Timestamp,
}

type Told<T> = Result<Json<T>, (StatusCode, Json<Value>)>;

impl Control {
    /// Opens the door. A socket that a crash left behind is replaced: the store's lock has shown
    /// that no other node runs here.
    ///
    /// # Errors
    /// The system's.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The data directory has mode 0700: nobody else gets as far as the socket.
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// Answers until `stop` is cancelled.
    ///
    /// # Errors
    /// The system's.
    pub async fn serve(
        self,
        node: Arc<Node>,
        config: Config,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let clock = node.shop().clock.clone();
        let desk = Arc::new(Desk {
            node,
            config,
            started: clock.now(),
            clock,
        });
        let routes = Router::new()
            .route("/status", get(status))
            .route("/earnings", get(earnings::earnings))
            .route("/receipts/newest/{most}", get(receipts::newest))
            .route("/receipts/after/{channel}/{seq}", get(receipts::after))
            .route("/metrics", get(metrics))
            .route("/claim", post(claim))
            .with_state(desk);
        let serving = axum::serve(self.listener, routes);
        let served = serving.with_graceful_shutdown(stop.cancelled_owned()).await;
        // Gone already is as good.
        std::fs::remove_file(&self.path).ok();
        served
    }
}

/// Serves `/metrics`, and nothing else, on a TCP address until `stop` is cancelled.
///
/// # Errors
/// The system's.
pub async fn serve_metrics(
    address: SocketAddr,
    node: Arc<Node>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let routes = Router::new().route("/metrics", get(async move || scrape(&node)));
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics(State(desk): State<Arc<Desk>>) -> String {
    scrape(&desk.node)
}

/// The metrics with those that are read off the parts at this moment.
pub fn scrape(node: &Node) -> String {
    let shop = node.shop();
    let metrics = &shop.metrics;
    let atoms = |amount: Amount| i64::try_from(amount.get()).unwrap_or(i64::MAX);
    let channels = node.ledger().channels();
    let sum = |of: fn(&ChannelView) -> Amount| {
        let amounts = channels.iter().map(|(_, view)| of(view));
        atoms(amounts.fold(Amount::ZERO, Amount::saturating_add))
    };
    let retired = atoms(node.ledger().retired().taken);
    metrics
        .ledger_channels
        .set(i64::try_from(channels.len()).unwrap_or(i64::MAX));
    metrics
        .ledger_unclaimed_atoms
        .set(sum(|view| view.channel.unclaimed()));
    metrics
        .settlement_claimed_atoms
        .set(sum(|view| view.channel.claimed()).saturating_add(retired));
    let outlook = node.settlement().outlook();
    let count = |many: usize| i64::try_from(many).unwrap_or(i64::MAX);
    metrics
        .settlement_in_flight
        .set(count(outlook.in_flight.len()));
    let replaced = outlook.in_flight.iter().filter(|one| one.attempts > 1);
    metrics.settlement_raised.set(count(replaced.count()));
    let unpaid = outlook.refused.len() + outlook.short.len();
    metrics.settlement_refused.set(count(unpaid));
    let unconfirmed = outlook.unconfirmed.values().copied();
    let unconfirmed = unconfirmed.fold(Amount::ZERO, Amount::saturating_add);
    metrics.settlement_unconfirmed_atoms.set(atoms(unconfirmed));
    let reorganisations = i64::try_from(outlook.reorganisations);
    metrics
        .settlement_reorganisations
        .set(reorganisations.unwrap_or(i64::MAX));
    metrics.settlement_chain_up.set(i64::from(!outlook.away));
    let armed = channels.iter();
    let armed = armed.filter(|(_, view)| !view.channel.armed().is_zero());
    metrics.settlement_armed.set(count(armed.count()));
    let loads = node.loads();
    metrics
        .serve_running
        .set(loads.iter().map(|load| i64::from(load.running)).sum());
    metrics
        .serve_slots
        .set(loads.iter().map(|load| i64::from(load.slots)).sum());
    let batches = node.ledger().store().stats().commits;
    metrics
        .ledger_batches
        .set(i64::try_from(batches).unwrap_or(i64::MAX));
    let (reach, relays) = match node.net().reachability() {
        Reachability::Told | Reachability::Tested | Reachability::Visited => (2, 0),
        Reachability::Relayed { relays, .. } => (1, relays),
        Reachability::Unknown | Reachability::Unreachable(_) => (0, 0),
    };
    metrics.announce_reach.set(reach);
    metrics.announce_relays.set(count(relays));
    metrics
        .announce_relayed_peers
        .set(count(node.net().stats().relayed));
    metrics.encode()
}

async fn status(State(desk): State<Arc<Desk>>) -> Json<Status> {
    let node = &desk.node;
    let shop = node.shop();
    let chain = timeout(CHAIN_WAIT, node.chain().latest()).await;
    let chain_away = match chain {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no answer in time".to_owned()),
    };
    let model = |model: &crate::config::ModelConfig| {
        let load = shop.seats.load(&model.id);
        ModelStatus {
            id: model.id.clone(),
            upstream_name: shop.catalog.upstream_name(&model.id),
            prices: model.offer().prices,
            running: load.running,
            slots: load.slots,
        }
    };
    let now = desk.clock.now();
    let offer = node.offer().filter(|offer| offer.offer().expires > now);
    Json(Status {
        node: node.id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: desk.started,
        now,
        chain_id: desk.config.chain.chain_id,
        payout: node.terms().payout,
        claim: node.terms().claim,
        addresses: node.addresses(),
        reach: Reach::of(node.net().reachability()),
        peers: u32::try_from(node.net().peers().len()).unwrap_or(u32::MAX),
        upstream_down: match shop.upstream.health() {
            Health::Up => None,
            Health::Down(reason) => Some(reason),
        },
        chain_away,
        offer: offer.map(|offer| OfferStatus {
            seq: offer.offer().seq,
            expires: offer.offer().expires,
        }),
        models: desk.config.models.iter().map(model).collect(),
    })
}

async fn claim(State(desk): State<Arc<Desk>>) -> Told<Claimed> {
    match desk.node.settlement().claim().await {
        Ok(moved) => {
            let transactions = moved
                .iter()
                .map(|moved| (moved.transaction, moved.amount))
                .collect();
            Ok(Json(Claimed {
                token: desk.token(),
                transactions,
            }))
        }
        Err(error) => {
            let fault = json!({ "error": error.to_string() });
            Err((StatusCode::SERVICE_UNAVAILABLE, Json(fault)))
        }
    }
}

impl Desk {
    fn token(&self) -> Token {
        let chain = &self.config.chain;
        Token {
            address: chain.token,
            symbol: chain.token_name.clone(),
            decimals: TOKEN_DECIMALS,
        }
    }
}
