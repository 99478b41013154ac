//! A buyer made by hand: it says whatever a test wants it to say, on the protocol's own streams.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::eip712::{EvmKey, Signed};
use farthing_protocol::frame::{Answer, CHUNK_LIMIT, Call, ToBuyer, ToSeller};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::ask::ask;
use farthing_protocol::net::session::Limits;
use farthing_protocol::net::wire::{self, Hears, Speaks, WireError};
use farthing_protocol::net::{self, Inbox, Net, Protocol, Reach, Stream};
use farthing_protocol::pricing::{Demand, FIRST_WINDOW};
use farthing_protocol::purchase::{Ask, Mode, Refusal, RequestId};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::testing;
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit, DepositTerms, Network};
use tokio::time::Instant;

use crate::street::{Buyer, MODEL, PATIENCE, Street, StreetError, WEALTH};

/// How long a forged purchase may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A buyer without books, rules or manners.
#[derive(Debug)]
pub struct Forger {
    /// Where its money lives.
    pub network: Network,
    /// Owns its tokens.
    pub payer: EvmKey,
    /// Signs its vouchers.
    pub authorizer: EvmKey,
    /// Its channel with the first seller.
    pub config: ChannelConfig,
    net: Net,
    seller: NodeId,
    addresses: Vec<String>,
    asked: AtomicU64,
    _inbox: Inbox,
}

/// Both halves of a purchase's stream.
#[derive(Debug)]
pub struct Talk {
    hears: Hears,
    speaks: Speaks,
}

/// How a forged purchase went.
#[derive(Debug, Default)]
pub struct Told {
    /// Chunks that came.
    pub chunks: usize,
    /// Ceilings that were asked for.
    pub needed: Vec<Amount>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// The receipt.
    pub receipt: Option<Receipt>,
}

impl Forger {
    /// The `n`th forger, rich and with a channel in mind that is not open yet.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn new(street: &Street, n: u8) -> Result<Self, StreetError> {
        let seller = &street.sellers[0];
        let (payer, authorizer) = (testing::evm_key(60 + n), testing::evm_key(80 + n));
        street.ledgers.mint(payer.address(), WEALTH).await?;
        let config = net::Config {
            listen: Vec::new(),
            topic: street.network.topic(),
            reach: Reach::Local,
            ..net::Config::default()
        };
        let started = Net::start(testing::node_key(60 + n).seed(), config).await;
        let (net, inbox) = started.map_err(io::Error::other)?;
        let terms = seller.node().terms().clone();
        Ok(Self {
            config: ChannelConfig {
                payer: payer.address(),
                payer_authorizer: authorizer.address(),
                receiver: terms.payout,
                receiver_authorizer: terms.claim,
                token: terms.network.token,
                withdraw_delay: terms.withdraw_delay,
                salt: B256::ZERO,
            },
            network: street.network.clone(),
            payer,
            authorizer,
            net,
            seller: seller.id(),
            addresses: seller.addresses(),
            asked: AtomicU64::new(0),
            _inbox: inbox,
        })
    }

    /// A forger whose channel holds so much.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn funded(street: &Street, n: u8, amount: Amount) -> Result<Self, StreetError> {
        let forger = Self::new(street, n).await?;
        forger.fund(street, amount).await?;
        Ok(forger)
    }

    /// Deposits so much into its channel.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn fund(&self, street: &Street, amount: Amount) -> Result<(), StreetError> {
        let valid_before = street.clock.now().plus(DEADLINE);
        let terms = DepositTerms {
            amount,
            valid_before,
            salt: B256::ZERO,
        };
        let call = Call::Deposit {
            config: self.config,
            deposit: self.deposit(terms),
        };
        match self.call(&call).await? {
            Answer::Deposited { .. } => Ok(()),
            other => Err(io::Error::other(format!("{other:?}")).into()),
        }
    }

    /// Its channel.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.config.id(&self.network)
    }

    /// Something nobody has used.
    fn fresh(&self) -> B256 {
        let count = self.asked.fetch_add(1, Ordering::Relaxed);
        keccak256([self.payer.address().as_slice(), &count.to_be_bytes()].concat())
    }

    /// A deposit as the payer signs it.
    #[must_use]
    pub fn deposit(&self, terms: DepositTerms) -> Deposit {
        Deposit::sign(&self.config, terms, &self.network, &self.payer)
    }

    /// A good voucher.
    #[must_use]
    pub fn voucher(&self, ceiling: Amount) -> SignedVoucher {
        self.voucher_by(&self.authorizer, self.id(), ceiling)
    }

    /// A voucher by this key on that channel.
    #[must_use]
    pub fn voucher_by(&self, key: &EvmKey, channel: ChannelId, ceiling: Amount) -> SignedVoucher {
        Signed::sign(Voucher { channel, ceiling }, &self.network.domain(), key)
    }

    /// A good ask for a stream of so many tokens, but without a voucher.
    ///
    /// # Errors
    /// [`StreetError::Late`] when the seller has no offer.
    pub fn ask(&self, street: &Street, tokens: u32) -> Result<Ask, StreetError> {
        let offer = street.sellers[0].node().offer();
        let offer = offer.ok_or(StreetError::Late("the seller's offer"))?;
        let request = Buyer::stream(tokens);
        Ok(Ask {
            request: RequestId(self.fresh()),
            offer: offer.hash(),
            model: MODEL.to_owned(),
            endpoint: request.endpoint,
            mode: Mode::Stream,
            max_cost: Amount::atoms(100_000),
            deadline_ms: 60_000,
            channel: self.id(),
            voucher: None,
            ack: None,
            body: request.body,
        })
    }

    /// What a seller sets aside for a stream before it works.
    ///
    /// # Errors
    /// [`StreetError::Io`] when the body is none.
    pub fn opening(street: &Street, ask: &Ask) -> Result<Amount, StreetError> {
        let model = street.sellers[0].config.models[0].offer();
        let body = Body::parse(&ask.body).map_err(io::Error::other)?;
        let demand = Demand::of(&ask.body, &body, ask.endpoint, &model);
        let demand = demand.map_err(io::Error::other)?;
        let opening = demand.opening(&model.prices, FIRST_WINDOW);
        Ok(opening.map_err(io::Error::other)?)
    }

    /// One question and its answer.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn call(&self, call: &Call) -> Result<Answer, StreetError> {
        let asked = ask(&self.net, self.seller, &self.addresses, call, PATIENCE);
        Ok(asked.await.map_err(io::Error::other)?)
    }

    /// A bare stream to the seller.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn stream(&self, protocol: Protocol) -> Result<Stream, StreetError> {
        let opened = self.net.open(self.seller, &self.addresses, protocol);
        Ok(opened.await.map_err(io::Error::other)?)
    }

    /// Opens a purchase with this word, whatever it is.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn say(&self, word: &ToSeller) -> Result<Talk, StreetError> {
        let stream = self.stream(Protocol::Purchase).await?;
        let limits = Limits {
            frame: farthing_protocol::frame::ASK_LIMIT,
            ..Limits::default()
        };
        let (hears, speaks) = wire::over(stream, limits);
        let mut talk = Talk { hears, speaks };
        talk.say(word).await?;
        Ok(talk)
    }

    /// Asks and listens to the end without another word.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn buy(&self, ask: Ask) -> Result<Told, StreetError> {
        self.say(&ToSeller::Ask(Box::new(ask))).await?.rest().await
    }
}

impl Talk {
    /// A purchase on a bare stream.
    #[must_use]
    pub fn over(stream: Stream) -> Self {
        let (hears, speaks) = wire::over(stream, Limits::default());
        Self { hears, speaks }
    }

    /// Another word.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn say(&mut self, word: &ToSeller) -> Result<(), StreetError> {
        Ok(self.speaks.send(word).await.map_err(io::Error::other)?)
    }

    /// The seller's next word; none when it has ended the stream.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn next(&mut self) -> Result<Option<ToBuyer>, StreetError> {
        let end = Instant::now() + PATIENCE;
        match self.hears.next(CHUNK_LIMIT, end).await {
            Err(WireError::Recv(net::session::RecvError::Deadline)) => {
                Err(StreetError::Late("the seller's next word"))
            }
            // A stream that is torn down has ended.
            Err(WireError::Recv(_)) => Ok(None),
            other => Ok(other.map_err(io::Error::other)?),
        }
    }

    /// All that is still said of this purchase.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn rest(&mut self) -> Result<Told, StreetError> {
        let mut told = Told::default();
        while let Some(word) = self.next().await? {
            match word {
                ToBuyer::Accepted { .. } => {}
                ToBuyer::Refused { refusal, .. } => told.refusal = Some(refusal),
                ToBuyer::NeedVoucher { ceiling, .. } => told.needed.push(ceiling),
                ToBuyer::Chunk { .. } => told.chunks += 1,
                ToBuyer::Done { receipt, open, .. } => {
                    told.receipt = Some(receipt.receipt);
                    if open {
                        break;
                    }
                }
            }
        }
        Ok(told)
    }
}
