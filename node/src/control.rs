//! The operator's door: a socket in the data directory that only the operator can open, with the
//! reports of [`crate::report`] and the order to claim, as JSON over HTTP.

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
use farthing_protocol::x402::ChannelId;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ledger::ChannelView;
use crate::node::Node;
use crate::report::{
    ChannelEarnings, Claimed, Earnings, ModelStatus, OfferStatus, Status, Sums, Token, Why,
};
use crate::settlement::Outlook;
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
            .route("/earnings", get(earnings))
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
    metrics
        .ledger_channels
        .set(i64::try_from(channels.len()).unwrap_or(i64::MAX));
    metrics
        .ledger_unclaimed_atoms
        .set(sum(|view| view.channel.unclaimed()));
    metrics
        .settlement_claimed_atoms
        .set(sum(|view| view.channel.claimed()));
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

async fn earnings(State(desk): State<Arc<Desk>>) -> Json<Earnings> {
    let outlook = desk.node.settlement().outlook();
    let mut channels = Vec::new();
    for (id, view) in desk.node.ledger().channels() {
        if !view.channel.charged().is_zero() {
            channels.push(desk.channel(id, &view, &outlook).await);
        }
    }
    channels.sort_by_key(|channel| std::cmp::Reverse(channel.sums.at_risk));
    let total = channels
        .iter()
        .fold(Sums::default(), |sum, channel| sum.plus(channel.sums));
    let payouts = timeout(
        CHAIN_WAIT,
        desk.node.chain().payouts(desk.node.terms().payout),
    )
    .await;
    let settled = payouts
        .ok()
        .and_then(Result::ok)
        .map(|payouts| payouts.settled);
    Json(Earnings {
        token: desk.token(),
        total,
        settled: settled.unwrap_or_default(),
        channels,
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

    async fn channel(
        &self,
        id: ChannelId,
        view: &ChannelView,
        outlook: &Outlook,
    ) -> ChannelEarnings {
        let channel = view.channel;
        ChannelEarnings {
            channel: id,
            payer: view.config.payer,
            receipts: channel.receipts(),
            sums: Sums {
                charged: channel.charged(),
                claimed: channel.claimed(),
                at_risk: channel.unclaimed(),
            },
            ceiling: view
                .voucher
                .map_or(Amount::ZERO, |voucher| voucher.message.ceiling),
            why: self.why(id, view, outlook).await,
        }
    }

    async fn why(&self, id: ChannelId, view: &ChannelView, outlook: &Outlook) -> Why {
        let channel = view.channel;
        let policy = &self.config.settlement;
        if channel.unclaimed().is_zero() {
            return Why::Safe;
        }
        if view.voucher.is_none() {
            return Why::Uncovered;
        }
        if let Some(at) = self.leaving(id, view).await {
            return Why::Leaving { at };
        }
        if let Some(transaction) = outlook.claiming {
            return Why::Claiming { transaction };
        }
        if outlook.refused.contains(&id) {
            return Why::Failed;
        }
        if outlook.away {
            return Why::ChainAway;
        }
        let since = outlook
            .since
            .get(&id)
            .copied()
            .unwrap_or_else(|| self.clock.now());
        let claim_by = since.plus(policy.claim_age);
        let due = channel.unclaimed() >= policy.claim_at || claim_by <= self.clock.now();
        if due {
            Why::Due
        } else {
            Why::Small { claim_by }
        }
    }

    /// When an armed withdrawal can be executed.
    async fn leaving(&self, id: ChannelId, view: &ChannelView) -> Option<Timestamp> {
        if view.channel.armed().is_zero() {
            return None;
        }
        let pending = timeout(CHAIN_WAIT, self.node.chain().pending_withdrawal(id))
            .await
            .ok()?
            .ok()??;
        let seconds = pending
            .initiated_at
            .saturating_add(view.config.withdraw_delay);
        Some(Timestamp(seconds.saturating_mul(1000)))
    }
}
