//! A client for tests whose answers are written beforehand.

use std::fmt;
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use bytes::Bytes;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, Endpoint, RequestId, Usage};
use farthing_protocol::receipt::{Receipt, model_hash};
use farthing_protocol::testing;
use farthing_protocol::x402::ChannelId;
use tokio::sync::mpsc;

use super::*;
use crate::report::{ChannelPhase, Spending};

/// The time of day in a script.
pub(crate) const NOW: Timestamp = Timestamp(1_753_900_002_000);

/// Answers one request.
type Infer = dyn Fn(Request) -> Result<Answer, InferError> + Send + Sync;

pub(crate) struct Script {
    infer: Box<Infer>,
    /// Its data directory.
    pub(crate) dir: tempfile::TempDir,
}

impl Script {
    /// What a script does not know.
    pub(crate) fn unknown<T>(&self, what: &str) -> Result<T, ActionError> {
        Err(ActionError::Unknown(format!("{what} in a script")))
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

/// The script's end of an answer's events. Closed when the answer is dropped.
pub(crate) type Events = mpsc::Sender<Result<Event, InferError>>;

/// An answer that never ends by itself, and the end that feeds it.
pub(crate) fn answer() -> (Events, Answer) {
    let (sender, events) = mpsc::channel(16);
    let answer = Answer {
        request: RequestId(B256::repeat_byte(7)),
        seller: testing::node_key(1).id(),
        model: "test/model".into(),
        why: "the only one".into(),
        tried: Vec::new(),
        plan: market()
            .wares(None)
            .into_iter()
            .map(|it| it.goods)
            .collect(),
        events,
    };
    (sender, answer)
}

/// An answer whose events are all there.
pub(crate) fn whole(events: Vec<Result<Event, InferError>>) -> Answer {
    let (sender, answer) = answer();
    for event in events {
        sender.try_send(event).expect("few events");
    }
    answer
}

pub(crate) fn data(text: &str) -> Result<Event, InferError> {
    Ok(Event::Data(Bytes::copy_from_slice(text.as_bytes())))
}

pub(crate) fn end() -> Result<Event, InferError> {
    let receipt = receipt().signed;
    let charged = receipt.receipt.charged;
    Ok(Event::End(Box::new(Bill {
        receipt,
        charged,
        earlier: Vec::new(),
    })))
}

pub(crate) fn receipt() -> ReceiptReport {
    let receipt = Receipt {
        channel: ChannelId(B256::repeat_byte(5)),
        seq: 3,
        request: RequestId(B256::repeat_byte(7)),
        request_hash: B256::ZERO,
        response_hash: B256::ZERO,
        model_hash: model_hash("test/model"),
        offer: OfferHash(B256::ZERO),
        usage: Usage {
            prompt: 10,
            cached: 0,
            completion: 20,
        },
        charged: Amount::atoms(11),
        cumulative: Amount::atoms(40),
        started: Timestamp(1_753_900_000_000),
        finished: Timestamp(1_753_900_001_500),
        ending: Ending::Complete,
    };
    ReceiptReport {
        model: Some("test/model".into()),
        endpoint: Some(Endpoint::Chat),
        dispute: None,
        signed: receipt.sign(&testing::node_key(1)),
    }
}

/// The book of that receipt.
pub(crate) fn book() -> ReceiptBook {
    let held = receipt().signed;
    ReceiptBook {
        channel: held.receipt.channel,
        network: testing::network(),
        config: testing::channel_config(),
        seller: held.seller,
        from: held.receipt.seq,
        peaks: Vec::new(),
        count: held.receipt.seq + 1,
        root: None,
        contradiction: None,
        doubles: Vec::new(),
    }
}

pub(crate) fn channel() -> ChannelReport {
    ChannelReport {
        id: ChannelId(B256::repeat_byte(5)),
        seller: testing::node_key(1).id(),
        phase: ChannelPhase::Open,
        balance: Amount::atoms(1_000_000),
        charged: Amount::atoms(40),
        reserved: Amount::ZERO,
        ceiling: Amount::atoms(100),
        claimed: Amount::ZERO,
        receipts: 4,
    }
}

pub(crate) fn wallet() -> WalletReport {
    let limit = Amount::atoms(5_000_000);
    WalletReport {
        token: Token {
            address: testing::network().token,
            symbol: "USDC".into(),
            decimals: 6,
        },
        chain_id: 31337,
        payer: Address::repeat_byte(9),
        authorizer: Address::repeat_byte(8),
        balance: Some(Amount::atoms(12_345_678)),
        in_channels: Amount::atoms(999_960),
        today: Spending {
            spent: Amount::atoms(40),
            limit,
        },
        total: Spending {
            spent: Amount::atoms(1_234),
            limit,
        },
        per_purchase: Amount::atoms(100_000),
        per_seller: Amount::atoms(2_000_000),
        per_model: Amount::atoms(5_000_000),
        approve_above: None,
        waiting: 0,
        elsewhere: false,
    }
}

/// A market with two offers of `test/model`, one of them tried.
fn market() -> crate::market::Market {
    let start = Timestamp(1_753_900_000_000);
    let clock = farthing_protocol::clock::Clock::manual(start);
    let market = crate::market::Market::new(testing::network(), clock);
    for n in [1, 2] {
        market.hear(testing::signed_offer_of(n, 1, start));
    }
    let served = crate::market::Served {
        first_token: Some(std::time::Duration::from_millis(120)),
        elapsed: std::time::Duration::from_millis(1120),
        longest_gap: std::time::Duration::from_millis(30),
        prompt: 100,
        tokens: 101,
        charged: Amount::atoms(11),
    };
    let seller = testing::node_key(1).id();
    let trial = market.begin(seller, "test/model", Endpoint::Chat);
    trial.record(crate::market::Outcome::Served(served));
    market
}

impl Client {
    /// A client that answers by this closure.
    pub(crate) fn scripted(
        infer: impl Fn(Request) -> Result<Answer, InferError> + Send + Sync + 'static,
    ) -> Self {
        let infer = Box::new(infer);
        Self(Inside::Script(Arc::new(Script {
            infer,
            dir: tempfile::tempdir().expect("a folder"),
        })))
    }
}

impl Script {
    pub(crate) async fn infer(&self, request: Request) -> Result<Answer, InferError> {
        (self.infer)(request)
    }

    pub(crate) fn models(&self) -> Vec<ModelListing> {
        market().models()
    }

    pub(crate) fn offers(&self) -> Vec<OfferReport> {
        market().offers()
    }

    pub(crate) fn wares(&self, model: Option<&str>) -> Vec<Ware> {
        market().wares(model)
    }

    pub(crate) async fn health(&self) -> HealthReport {
        HealthReport {
            version: "0.0.0".into(),
            peers: 2,
            sellers: 2,
            models: 1,
            chain_fault: None,
        }
    }

    pub(crate) async fn wallet(&self) -> Result<WalletReport, ActionError> {
        Ok(wallet())
    }

    pub(crate) async fn channels(&self) -> Result<Vec<ChannelReport>, ActionError> {
        Ok(vec![channel()])
    }

    pub(crate) async fn channel(
        &self,
        id: ChannelId,
        action: ChannelAction,
    ) -> Result<ActionReport, ActionError> {
        if id != channel().id {
            return Err(ActionError::Unknown(format!("channel {id}")));
        }
        Ok(ActionReport {
            message: format!("{action:?}"),
            transaction: None,
            channel: channel(),
        })
    }

    pub(crate) async fn receipts(&self, query: &ReceiptQuery) -> Result<ReceiptPage, ActionError> {
        let wanted = query.channel.is_none_or(|id| id == channel().id);
        let receipts = if wanted { vec![receipt()] } else { Vec::new() };
        Ok(ReceiptPage {
            receipts,
            payments: Vec::new(),
            next: None,
        })
    }

    pub(crate) async fn stretch(
        &self,
        channel: ChannelId,
        from: u64,
    ) -> Result<Vec<ReceiptReport>, ActionError> {
        let held = receipt();
        let (id, seq) = (held.signed.receipt.channel, held.signed.receipt.seq);
        let there = id == channel && from <= seq;
        Ok(there.then_some(held).into_iter().collect())
    }

    pub(crate) async fn books(&self) -> Result<Vec<ReceiptBook>, ActionError> {
        Ok(vec![book()])
    }

    pub(crate) async fn evidence(&self, request: RequestId) -> Result<Evidence, ActionError> {
        Err(ActionError::Unknown(format!(
            "receipt of request {request}"
        )))
    }

    pub(crate) async fn receipt(&self, request: RequestId) -> Result<ReceiptReport, ActionError> {
        let receipt = receipt();
        if receipt.signed.receipt.request == request {
            return Ok(receipt);
        }
        Err(ActionError::Unknown(format!(
            "receipt of request {request}"
        )))
    }

    pub(crate) async fn stop(&self) {}
}
