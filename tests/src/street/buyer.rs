//! One buyer of a street, with its disk.

use bytes::Bytes;
use farthing_client::client::{
    Answer, Bill, Client, Event, InferError, Keys, OpenError, Outside, Request,
};
use farthing_client::config::{Chain, Config};
use farthing_client::ledger::{Account, Ledger};
use farthing_client::wallet;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::store;
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelId, Network};
use tempfile::TempDir;

use crate::street::room::{Room, once_free};
use crate::street::{MODEL, Seller, Street, StreetError, WEALTH};

/// A buyer. It can be stopped and started again on the same disk.
#[derive(Debug)]
pub struct Buyer {
    /// Its configuration.
    pub config: Config,
    n: u8,
    client: Option<Client>,
    room: Room,
    dir: TempDir,
}

/// A whole answer.
#[derive(Debug)]
pub struct Heard {
    /// The events, or the one document.
    pub data: Vec<Bytes>,
    /// What it cost.
    pub bill: Bill,
    /// Who sold it.
    pub seller: NodeId,
}

fn chain(network: &Network, chain: Chain) -> Chain {
    Chain {
        chain_id: network.chain_id,
        settlement: network.settlement,
        collector: network.collector,
        token: network.token,
        token_name: network.token_name.clone(),
        token_version: network.token_version.clone(),
        ..chain
    }
}

impl Buyer {
    pub(in crate::street) async fn open(
        street: &Street,
        n: usize,
        tweak: &(dyn Fn(usize, &mut Config) + Send + Sync),
    ) -> Result<Self, StreetError> {
        let dir = tempfile::tempdir()?;
        let mut config = Config {
            data_dir: dir.path().join("data"),
            ..Config::default()
        };
        config.chain = chain(&street.network, config.chain);
        config.network.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        config.network.mdns = false;
        config.network.bootstrap = street.sellers.iter().flat_map(Seller::addresses).collect();
        config.spend.total = WEALTH;
        config.spend.per_day = WEALTH;
        config.spend.per_seller = WEALTH;
        // Tests count purchases; those about probes ask for them.
        config.probes.share = 0;
        // Who is asked first must not hang on a lot; those about newcomers ask for it.
        config.router.explore = 0;
        tweak(n, &mut config);
        let n = u8::try_from(n).unwrap_or(u8::MAX).saturating_add(100);
        let mut buyer = Self {
            config,
            n,
            client: None,
            room: Room::new(street.crashable)?,
            dir,
        };
        street
            .ledgers
            .mint(buyer.keys().wallet.payer.address(), WEALTH)
            .await?;
        buyer.start(street).await?;
        Ok(buyer)
    }

    fn elsewhere(&self) -> Option<wallet::Payer> {
        self.config.wallet.payer.map(wallet::Payer::Elsewhere)
    }

    fn keys(&self) -> Keys {
        let payer = testing::evm_key(self.n);
        let authorizer = testing::evm_key(self.n.saturating_add(50));
        Keys {
            node: testing::node_key(self.n),
            wallet: wallet::Keys {
                payer: self.elsewhere().unwrap_or_else(|| payer.into()),
                authorizer,
            },
        }
    }

    /// Starts it on the disk it left.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start(&mut self, street: &Street) -> Result<(), StreetError> {
        let begin = || async {
            let outside = Outside {
                clock: street.clock.clone(),
                chain: street.ledgers.chain()?,
            };
            let started = Client::start(self.config.clone(), self.keys(), outside);
            Ok(self.room.run(started).await??)
        };
        let locked = |error: &StreetError| {
            matches!(
                error,
                StreetError::Buyer(OpenError::Store(store::OpenError::Locked { .. }))
            )
        };
        self.client = Some(once_free(begin, locked).await?);
        Ok(())
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        if let Some(client) = self.client.take() {
            client.stop().await;
        }
    }

    /// Ends it where it stands, as a power cut would; what its store has taken is kept. The
    /// street must be [`crashable`](crate::street::TestNet::crashable).
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub fn crash(&mut self) -> Result<(), StreetError> {
        self.client = None;
        Ok(self.room.crash()?)
    }

    /// Loses the disk. It must be stopped or crashed.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub fn lose_disk(&mut self) -> Result<(), StreetError> {
        Ok(std::fs::remove_dir_all(&self.config.data_dir)?)
    }

    /// The disk.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Its payment keys, for tests that forge.
    #[must_use]
    pub fn wallet_keys(&self) -> wallet::Keys {
        self.keys().wallet
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.client.is_some()
    }

    /// The running client.
    ///
    /// # Panics
    /// When it is stopped.
    #[must_use]
    #[allow(
        clippy::expect_used,
        reason = "a test that asks a stopped buyer is wrong"
    )]
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("the buyer is stopped")
    }

    /// Its books.
    ///
    /// # Panics
    /// When it is stopped.
    #[must_use]
    #[allow(clippy::expect_used, reason = "only a scripted client has no books")]
    pub fn ledger(&self) -> &Ledger {
        self.client().ledger().expect("a real client has books")
    }

    /// Its channels.
    #[must_use]
    pub fn accounts(&self) -> Vec<(ChannelId, Account)> {
        self.ledger().accounts()
    }

    /// Charged over all channels, by its own books.
    #[must_use]
    pub fn charged(&self) -> Amount {
        let charged = self
            .accounts()
            .into_iter()
            .map(|(_, account)| account.channel.charged());
        charged.fold(Amount::ZERO, Amount::saturating_add)
    }

    /// Whether it has a seller's offer.
    #[must_use]
    pub fn knows(&self, seller: NodeId) -> bool {
        self.client()
            .market()
            .is_some_and(|market| market.offer(seller).is_some())
    }

    /// Begins to buy an answer, where the buyer lives.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn infer(&self, request: Request) -> Result<Answer, InferError> {
        let client = self.client().clone();
        let asked = self.room.run(async move { client.infer(request).await });
        let crashed = |error: std::io::Error| InferError::Internal(error.to_string());
        asked.await.map_err(crashed)?
    }

    /// Buys one answer and reads it to its end.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn buy(&self, request: Request) -> Result<Heard, InferError> {
        let mut answer = self.infer(request).await?;
        let (data, end) = listen(&mut answer).await;
        Ok(Heard {
            data,
            bill: end?,
            seller: answer.seller,
        })
    }

    /// The receipts it holds, the newest first.
    ///
    /// # Panics
    /// When its store cannot be read.
    #[allow(clippy::expect_used, reason = "a test without a disk is lost")]
    pub async fn receipts(&self) -> Vec<Receipt> {
        let written = self.ledger().written().await;
        written.expect("the store writes");
        let accounts = self.accounts().into_iter();
        accounts
            .flat_map(|(id, _)| {
                let kept = self.ledger().newest_receipts(id, 1000);
                kept.expect("the store reads")
            })
            .map(|kept| kept.receipt.receipt)
            .collect()
    }

    /// A plain chat request of so many tokens.
    #[must_use]
    pub fn chat(tokens: u32) -> Request {
        request(
            &format!(
                r#"{{"model":"{MODEL}","max_tokens":{tokens},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
            ),
            Endpoint::Chat,
        )
    }

    /// A streamed chat request of so many tokens.
    #[must_use]
    pub fn stream(tokens: u32) -> Request {
        request(
            &format!(
                r#"{{"model":"{MODEL}","stream":true,"max_tokens":{tokens},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
            ),
            Endpoint::Chat,
        )
    }

    /// An embeddings request.
    #[must_use]
    pub fn embeddings() -> Request {
        request(
            &format!(r#"{{"model":"{MODEL}","input":["a quarter","of a penny"]}}"#),
            Endpoint::Embeddings,
        )
    }
}

fn request(body: &str, endpoint: Endpoint) -> Request {
    Request {
        endpoint,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// Reads an answer to its end: what came, and how it ended.
pub async fn listen(answer: &mut Answer) -> (Vec<Bytes>, Result<Bill, InferError>) {
    let mut data = Vec::new();
    while let Some(event) = answer.next().await {
        match event {
            Ok(Event::Data(bytes)) => data.push(bytes),
            Ok(Event::End(bill)) => return (data, Ok(*bill)),
            Ok(Event::Paid(_)) => {
                let web = "it was bought over plain HTTP, without a bill".to_owned();
                return (data, Err(InferError::Interrupted(web.into())));
            }
            Err(error) => return (data, Err(error)),
        }
    }
    let silent = "the events ended without a bill".to_owned();
    (data, Err(InferError::Interrupted(silent.into())))
}
