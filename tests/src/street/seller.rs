//! One seller of a street, with its model server and its disk.

use alloy::primitives::Address;
use farthing_node::config::{ChainConfig, Config, ModelConfig};
use farthing_node::ledger::ChannelView;
use farthing_node::node::{Keys, Node, Outside, StartError};
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::store::OpenError;
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelId, Network};
use tempfile::TempDir;

use crate::street::room::{Room, once_free};
use crate::street::{Street, StreetError};
use crate::upstream::{Behaviour, MockUpstream};

/// The model every seller offers.
pub const MODEL: &str = "mock/model";

/// A seller. It can be stopped, killed and started again on the same disk.
#[derive(Debug)]
pub struct Seller {
    /// Its model server.
    pub upstream: MockUpstream,
    /// Its configuration.
    pub config: Config,
    n: u8,
    node: Option<Node>,
    room: Room,
    dir: TempDir,
}

impl Seller {
    pub(in crate::street) async fn open(
        street: &Street,
        n: usize,
        behaviour: Behaviour,
        tweak: &(dyn Fn(usize, &mut Config) + Send + Sync),
    ) -> Result<Self, StreetError> {
        let upstream = MockUpstream::start(behaviour).await?;
        let dir = tempfile::tempdir()?;
        let mut config = config(n, &upstream);
        config.data_dir = dir.path().join("data");
        config.chain = chain(&street.network, config.chain);
        config.chain.payout = Some(payout(n));
        config.network.bootstrap = street.sellers.iter().flat_map(Seller::addresses).collect();
        if street.http {
            config.http.listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
            config.http.min_single = Amount::ZERO;
        }
        tweak(n, &mut config);
        let n = u8::try_from(n).unwrap_or(u8::MAX).saturating_add(1);
        let mut seller = Self {
            upstream,
            config,
            n,
            node: None,
            room: Room::new(street.crashable)?,
            dir,
        };
        street
            .ledgers
            .fund(testing::evm_key(seller.n).address())
            .await?;
        seller.start(street).await?;
        Ok(seller)
    }

    /// Starts it on the disk it left.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start(&mut self, street: &Street) -> Result<(), StreetError> {
        let begin = || async {
            let keys = Keys {
                node: testing::node_key(self.n),
                claim: testing::evm_key(self.n),
            };
            let outside = Outside {
                clock: street.clock.clone(),
                chain: street.ledgers.chain()?,
            };
            let started = Box::pin(Node::start(self.config.clone(), keys, outside));
            Ok(self.room.run(started).await??)
        };
        let locked = |error: &StreetError| {
            matches!(
                error,
                StreetError::Seller(StartError::Store(OpenError::Locked { .. }))
            )
        };
        let node = once_free(begin, locked).await?;
        // The same door after a restart, as a real node has.
        self.config.network.listen = node
            .addresses()
            .iter()
            .filter(|a| !a.contains("/p2p-circuit"))
            .filter_map(|a| a.split("/p2p/").next().map(str::to_owned))
            .collect();
        self.node = Some(node);
        Ok(())
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }

    /// Ends it where it stands, as a power cut would; what its store has taken is kept. The
    /// street must be [`crashable`](crate::street::TestNet::crashable).
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub fn crash(&mut self) -> Result<(), StreetError> {
        self.node = None;
        Ok(self.room.crash()?)
    }

    /// The running node.
    ///
    /// # Panics
    /// When it is stopped.
    #[must_use]
    #[allow(
        clippy::expect_used,
        reason = "a test that asks a stopped seller is wrong"
    )]
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("the seller is stopped")
    }

    pub(in crate::street) fn running_id(&self) -> Option<NodeId> {
        self.node.as_ref().map(Node::id)
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> NodeId {
        testing::node_key(self.n).id()
    }

    /// Where it is.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.node.as_ref().map(Node::addresses).unwrap_or_default()
    }

    /// Where its door for buyers over HTTP is: what an OpenAI library is given as its base URL.
    /// The street must be built with [`crate::street::TestNet::http`].
    ///
    /// # Panics
    /// When the door is shut.
    #[must_use]
    #[allow(
        clippy::expect_used,
        reason = "a test that asks for a shut door is wrong"
    )]
    pub fn http_url(&self) -> String {
        let door = self.node().http().expect("the HTTP door is shut");
        let scheme = if door.secure { "https" } else { "http" };
        format!("{scheme}://{}/v1", door.address)
    }

    /// Sellers whose unexpired offers stand in its book.
    #[must_use]
    pub fn known(&self) -> usize {
        self.node().known()
    }

    /// Where its money goes.
    #[must_use]
    pub fn payout(&self) -> Address {
        self.config.chain.payout.unwrap_or_default()
    }

    /// Its channels.
    #[must_use]
    pub fn channels(&self) -> Vec<(ChannelId, ChannelView)> {
        self.node().ledger().channels()
    }

    /// The disk.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Charged over all channels.
    #[must_use]
    pub fn charged(&self) -> Amount {
        let charged = self
            .channels()
            .into_iter()
            .map(|(_, view)| view.channel.charged());
        charged.fold(Amount::ZERO, Amount::saturating_add)
    }
}

fn payout(n: usize) -> Address {
    let n = u8::try_from(n).unwrap_or(u8::MAX);
    Address::repeat_byte(0xa0_u8.wrapping_add(n))
}

fn chain(network: &Network, chain: ChainConfig) -> ChainConfig {
    ChainConfig {
        chain_id: network.chain_id,
        settlement: network.settlement,
        collector: network.collector,
        token: network.token,
        token_name: network.token_name.clone(),
        token_version: network.token_version.clone(),
        ..chain
    }
}

fn config(n: usize, upstream: &MockUpstream) -> Config {
    let mut config = Config::default();
    config.upstream.base_url = upstream.base_url();
    config.network.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    config.network.mdns = false;
    config.settlement.poll_interval = std::time::Duration::from_millis(200);
    let step = 1 + n as u64;
    let model = format!(
        r#"id = "{MODEL}"
endpoints = ["chat", "completions", "embeddings", "moderations"]
context = 8192
max_output = 1024
slots = 64
prices = {{ input = {}, output = {} }}"#,
        100_000 * step,
        500_000 * step
    );
    let model: Result<ModelConfig, _> = toml::from_str(&model);
    config.models = model.into_iter().collect();
    config.limits.purchases_per_buyer = 128;
    config
}
