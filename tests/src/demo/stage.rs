//! Everything the story needs: the model server, the street on a real chain, the endpoint.

use std::net::SocketAddr;

use farthing_client::gateway::BindError;
use farthing_node::config::{Config as SellerConfig, ModelConfig, PriceConfig};
use farthing_protocol::amount::Price;
use farthing_protocol::purchase::Endpoint;

use crate::llama::{CONTEXT, Llama, LlamaError, MODEL};
use crate::show::{Logs, Page};
use crate::street::{RunningGateway, Street, StreetError, TestNet};

/// What the sellers ask per million tokens, prompt and answer, in atoms. The first is not the
/// cheapest, and the second-cheapest is more than twice as dear: never worth an experiment.
const PRICES: [(u64, u64); 3] = [
    (250_000, 1_250_000),
    (100_000, 500_000),
    (600_000, 3_000_000),
];
/// The most the buyer pays for a million tokens of an answer: the third seller is too dear.
const MAX_OUTPUT_PRICE: Price = Price(2_000_000);
/// Purchases each seller serves at once, and answers the model server makes at once.
const SLOTS: u32 = 4;
/// The longest answer a seller gives.
const MAX_OUTPUT: u32 = 1024;

/// Why the stage is not set.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The model server.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The street.
    #[error(transparent)]
    Street(#[from] StreetError),
    /// The endpoint.
    #[error(transparent)]
    Gateway(#[from] BindError),
    /// The page cannot be written on.
    #[error("the terminal cannot be written to: {0}")]
    Page(#[from] std::io::Error),
}

/// A set stage.
#[derive(Debug)]
pub struct Stage {
    /// The endpoint.
    pub gateway: RunningGateway,
    /// Three sellers, one buyer, a chain.
    pub street: Street,
    llama: Llama,
}

impl Stage {
    /// Starts everything, saying on the page what is waited for. The endpoint listens on
    /// `listen`.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn set(page: &Page, logs: &Logs, listen: SocketAddr) -> Result<Self, StageError> {
        page.waiting("the model server (SmolLM2-135M on llama.cpp)")?;
        let llama = Llama::start(SLOTS, &logs.file("llama.log")).await?;
        let upstream = llama.base_url().to_owned();
        let scribe = page.clone();
        let street = TestNet::new()
            .anvil()
            .sellers(PRICES.len())
            .buyers(1)
            .seller_config(move |n, config| sell(n, config, &upstream))
            .buyer_config(move |_, config| {
                config.router.max_price_output = Some(MAX_OUTPUT_PRICE);
                config.gateway.listen = listen;
            })
            .narrate(move |what| {
                // A page that cannot be written on fails the next step of the story.
                scribe.waiting(&named(what)).ok();
            })
            .start()
            .await?;
        page.waiting("the buyer's endpoint")?;
        let settings = street.buyers[0].config.gateway.clone();
        let gateway = RunningGateway::open(&street.buyers[0], settings).await?;
        Ok(Self {
            gateway,
            street,
            llama,
        })
    }

    /// Ends everything, in order.
    pub async fn stop(self) {
        self.gateway.stop().await;
        self.street.stop().await;
        self.llama.stop().await;
    }
}

fn named(what: &str) -> String {
    match what {
        "the chain" => "the chain (anvil, with the settlement contracts)".to_owned(),
        "buyer 1 of 1" => "the buyer".to_owned(),
        other => other.to_owned(),
    }
}

/// Sells the one real model at the `n`th price.
fn sell(n: usize, config: &mut SellerConfig, upstream: &str) {
    let (input, output) = PRICES[n % PRICES.len()];
    config.upstream.base_url = upstream.to_owned();
    config.models = vec![ModelConfig {
        id: MODEL.to_owned(),
        upstream_name: None,
        endpoints: Endpoint::ALL.to_vec(),
        features: Vec::new(),
        context: CONTEXT,
        max_output: MAX_OUTPUT,
        quantization: Some("q4_1".to_owned()),
        weights_digest: None,
        slots: SLOTS,
        prices: PriceConfig {
            input: Price(input),
            cached_input: None,
            output: Price(output),
            request: Price(0),
        },
    }];
}

/// What people call the `n`th seller.
#[must_use]
pub fn name(n: usize) -> char {
    char::from(b'A'.saturating_add(u8::try_from(n).unwrap_or(u8::MAX)))
}
