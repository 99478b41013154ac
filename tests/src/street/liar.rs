//! A seller made by hand: it takes deposits and asks, and then says whatever a test wants said.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use alloy::primitives::keccak256;
use bytes::Bytes;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::chain::{Chain, Write};
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::frame::{
    ASK_LIMIT, Answer, CALL_LIMIT, Call, CallRefusal, PAY_LIMIT, Part, Statement, ToBuyer, ToSeller,
};
use farthing_protocol::identity::{NodeId, NodeKey};
use farthing_protocol::net::session::Limits;
use farthing_protocol::net::wire::{self, Hears, Speaks};
use farthing_protocol::net::{self, Incoming, Net, Protocol, Reach, Stream};
use farthing_protocol::offer::{OfferHash, SignedOffer};
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Ask, Ending, Load, Usage};
use farthing_protocol::receipt::{Receipt, model_hash};
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelConfig, Deposit};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::street::{MODEL, PATIENCE, Street, StreetError};

/// Whose keys it has.
const SELF: u8 = 40;
/// Events it delivers before it lies.
const DELIVERED: u32 = 3;
/// What it delivers.
const EVENT: &str = r#"{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}"#;

/// What it says first.
const ROLE: &str = r#"{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;

/// What it does after a few honest events, but for those that say so.
#[derive(Debug, Clone, Copy)]
pub enum Lie {
    /// Says that a deposit is mined, and hands it to nobody.
    Mined,
    /// Demands a voucher over so much.
    Demand(Amount),
    /// Ends with an honest receipt, changed like this.
    Receipt(fn(&mut Receipt)),
    /// Sends so many events, perhaps none, and one without text before; then ends like this, with
    /// an honest receipt.
    Ends(u32, Ending),
    /// Begins like this, and says nothing more until it is told to stop.
    Stalls(Stall),
    /// Takes the promise, and hangs up.
    Leaves,
}

/// How one stalls. Whatever it sends counts as a token.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    /// Events without text that it sends at once.
    pub silent: u32,
    /// Events with text that it then sends at once.
    pub early: u32,
    /// Events with text that are on their way when it is told to stop.
    pub late: u32,
    /// Whether it then says, honestly, what it charges.
    pub tells: bool,
}

/// What it was told.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// The ceilings of all vouchers.
    pub ceilings: Vec<Amount>,
    /// How many asks came.
    pub asks: usize,
}

#[derive(Debug)]
struct Inner {
    node: NodeKey,
    claim: EvmKey,
    lie: Lie,
    offer: SignedOffer,
    hash: OfferHash,
    chain: OnceLock<Chain>,
    taken: Mutex<Taken>,
}

/// The seller. It ends when it is dropped.
#[derive(Debug)]
pub struct Liar {
    inner: Arc<Inner>,
    net: Net,
    _stop: DropGuard,
}

impl Liar {
    /// Begins to offer; deposits are taken when it has been let [in](Self::enter).
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start(lie: Lie) -> Result<Self, StreetError> {
        let network = testing::network();
        let node = testing::node_key(SELF);
        let config = net::Config {
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            topic: network.topic(),
            reach: Reach::Local,
            ..net::Config::default()
        };
        let started = Net::start(node.seed(), config).await;
        let (net, mut inbox) = started.map_err(io::Error::other)?;
        let now = Clock::system().now();
        let mut offer = testing::offer_of(SELF, now.seconds(), now);
        offer.addresses = net.listen_addresses();
        for model in &mut offer.models {
            MODEL.clone_into(&mut model.id);
        }
        let offer = SignedOffer::sign(&offer, &node).map_err(io::Error::other)?;
        let inner = Arc::new(Inner {
            hash: OfferHash(keccak256(&offer.offer)),
            node,
            claim: testing::evm_key(SELF),
            lie,
            offer,
            chain: OnceLock::new(),
            taken: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (ended, seller) = (stop.clone(), Arc::clone(&inner));
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            while let Some(incoming) = inbox.streams.recv().await {
                let seller = Arc::clone(&seller);
                tokio::spawn(async move {
                    if let Err(error) = seller.meet(incoming).await {
                        tracing::debug!(%error, "the buyer is gone");
                    }
                });
            }
        }));
        Ok(Self {
            inner,
            net,
            _stop: stop.drop_guard(),
        })
    }

    /// Gives it gas and a way to the street's chain.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn enter(&self, street: &Street) -> Result<(), StreetError> {
        street.ledgers.fund(self.inner.claim.address()).await?;
        // It enters one street.
        self.inner.chain.set(street.ledgers.chain()?).ok();
        Ok(())
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.net.local()
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.net.listen_addresses()
    }

    /// What it was told so far.
    #[must_use]
    pub fn taken(&self) -> Taken {
        self.inner.taken().clone()
    }
}

impl Inner {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Plain data, whole at every step.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn meet(&self, incoming: Incoming) -> Result<(), StreetError> {
        match incoming.protocol {
            Protocol::Call => self.answer(incoming.stream).await,
            Protocol::Purchase => self.sell(incoming.stream).await,
        }
    }

    async fn answer(&self, stream: Stream) -> Result<(), StreetError> {
        let (mut hears, mut speaks) = wire::over(stream, Limits::default());
        let call = hears.expect(CALL_LIMIT, Instant::now() + PATIENCE).await;
        let answer = match call.map_err(io::Error::other)? {
            Call::Book { from: 0 } => Answer::Book(vec![self.offer.clone()]),
            Call::Book { .. } => Answer::Book(Vec::new()),
            Call::Deposit { config, deposit } => self.deposit(config, deposit).await?,
            Call::Channel { .. } => Answer::Channel(Box::new(Statement {
                charged: Amount::ZERO,
                receipts: 0,
                voucher: None,
                balance: Amount::ZERO,
                root: None,
                peaks: Vec::new(),
            })),
            _ => Answer::Refused(CallRefusal::Unavailable("not today".to_owned())),
        };
        speaks.send(&answer).await.map_err(io::Error::other)?;
        Ok(speaks.close().await.map_err(io::Error::other)?)
    }

    /// Its money it takes as every seller does.
    async fn deposit(
        &self,
        config: ChannelConfig,
        deposit: Deposit,
    ) -> Result<Answer, StreetError> {
        if matches!(self.lie, Lie::Mined) {
            return Ok(Answer::Deposited {
                transaction: keccak256("mined"),
                balance: deposit.amount,
            });
        }
        let chain = self.chain.get().ok_or(StreetError::Late("the chain"))?;
        let write = Write::Deposit { config, deposit };
        let prepared = chain.prepare(&write, &self.claim, None).await?;
        let transaction = chain.broadcast(&prepared.raw).await?;
        chain.wait(transaction, 1, PATIENCE).await?;
        let balance = chain.channel(config.id(chain.network())).await?.balance;
        Ok(Answer::Deposited {
            transaction,
            balance,
        })
    }

    async fn sell(&self, stream: Stream) -> Result<(), StreetError> {
        let limits = Limits {
            frame: farthing_protocol::frame::CHUNK_LIMIT,
            ..Limits::default()
        };
        let (mut hears, mut speaks) = wire::over(stream, limits);
        let word = hears.expect(ASK_LIMIT, Instant::now() + PATIENCE).await;
        let ToSeller::Ask(ask) = word.map_err(io::Error::other)? else {
            return Ok(());
        };
        {
            let mut taken = self.taken();
            taken.asks += 1;
            let ceiling = ask.voucher.map(|voucher| voucher.message.ceiling);
            taken.ceilings.extend(ceiling);
        }
        say(&mut speaks, &ToBuyer::Accepted { load: LOAD }).await?;
        let mut usage = Usage {
            prompt: 10,
            ..Usage::default()
        };
        match self.lie {
            Lie::Stalls(stall) => return self.stall(&ask, stall, (hears, speaks)).await,
            Lie::Leaves => return Ok(()),
            _ => {}
        }
        let delivered = match self.lie {
            Lie::Ends(delivered, _) => delivered,
            _ => DELIVERED,
        };
        let mut all = Vec::new();
        for completion in 0..=delivered {
            usage.completion = completion;
            let event = if completion == 0 { ROLE } else { EVENT };
            all.extend_from_slice(event.as_bytes());
            let chunk = ToBuyer::Chunk {
                data: Bytes::from_static(event.as_bytes()),
                part: Part::Last,
                usage,
            };
            say(&mut speaks, &chunk).await?;
        }
        match self.lie {
            Lie::Demand(ceiling) => {
                let charged = Amount::ZERO;
                say(&mut speaks, &ToBuyer::NeedVoucher { ceiling, charged }).await?;
            }
            // It was found out before, has stalled or left.
            Lie::Mined | Lie::Stalls(_) | Lie::Leaves => {}
            Lie::Receipt(_) | Lie::Ends(..) => {
                let mut receipt = self.receipt(&ask, usage, &all);
                match self.lie {
                    Lie::Receipt(change) => change(&mut receipt),
                    Lie::Ends(_, ending) => receipt.ending = ending,
                    _ => {}
                }
                let receipt = Box::new(receipt.sign(&self.node));
                say(
                    &mut speaks,
                    &ToBuyer::Done {
                        open: false,
                        receipt,
                        root: None,
                        load: LOAD,
                    },
                )
                .await?;
            }
        }
        self.listen(&mut hears).await
    }

    /// Sends something, and its receipt, or none, when it is told to stop.
    async fn stall(
        &self,
        ask: &Ask,
        stall: Stall,
        (mut hears, mut speaks): (Hears, Speaks),
    ) -> Result<(), StreetError> {
        let mut usage = Usage {
            prompt: 10,
            ..Usage::default()
        };
        let mut all = Vec::new();
        for (event, times) in [(ROLE, stall.silent), (EVENT, stall.early)] {
            for _ in 0..times {
                send(&mut speaks, event, (&mut usage, &mut all)).await?;
            }
        }
        self.until_stopped(&mut hears).await?;
        for _ in 0..stall.late {
            send(&mut speaks, EVENT, (&mut usage, &mut all)).await?;
        }
        if stall.tells {
            let mut receipt = self.receipt(ask, usage, &all);
            receipt.ending = Ending::Cancelled;
            let receipt = Box::new(receipt.sign(&self.node));
            let done = ToBuyer::Done {
                open: false,
                receipt,
                root: None,
                load: LOAD,
            };
            say(&mut speaks, &done).await?;
        }
        self.listen(&mut hears).await
    }

    /// Takes what vouchers still come, until the buyer has gone.
    async fn listen(&self, hears: &mut Hears) -> Result<(), StreetError> {
        loop {
            self.until_stopped(hears).await?;
        }
    }

    /// Takes vouchers until it is told to stop.
    async fn until_stopped(&self, hears: &mut Hears) -> Result<(), StreetError> {
        loop {
            let word = hears.expect(PAY_LIMIT, Instant::now() + PATIENCE).await;
            match word.map_err(io::Error::other)? {
                ToSeller::Pay(voucher) => self.taken().ceilings.push(voucher.message.ceiling),
                ToSeller::Cancel => return Ok(()),
                ToSeller::Ask(_) => {}
            }
        }
    }

    /// As an honest seller would write it.
    fn receipt(&self, ask: &Ask, usage: Usage, answer: &[u8]) -> Receipt {
        let prices = testing::model().prices;
        let charged = pricing::cost(&usage, &prices).map_or(Amount::ZERO, Cost::floor);
        let now = Clock::system().now();
        Receipt {
            channel: ask.channel,
            seq: 0,
            request: ask.request,
            request_hash: keccak256(&ask.body),
            response_hash: keccak256(answer),
            model_hash: model_hash(&ask.model),
            offer: self.hash,
            usage,
            charged,
            cumulative: charged,
            started: now,
            finished: now,
            ending: Ending::Complete,
        }
    }
}

/// It is never busy.
const LOAD: Load = Load {
    running: 1,
    slots: 8,
};

/// One event, which counts as a token.
async fn send(
    speaks: &mut Speaks,
    event: &'static str,
    (usage, all): (&mut Usage, &mut Vec<u8>),
) -> Result<(), StreetError> {
    usage.completion = usage.completion.saturating_add(1);
    all.extend_from_slice(event.as_bytes());
    let chunk = ToBuyer::Chunk {
        data: Bytes::from_static(event.as_bytes()),
        part: Part::Last,
        usage: *usage,
    };
    say(speaks, &chunk).await
}

async fn say(speaks: &mut Speaks, word: &ToBuyer) -> Result<(), StreetError> {
    Ok(speaks.send(word).await.map_err(io::Error::other)?)
}
