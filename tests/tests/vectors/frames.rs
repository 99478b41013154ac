//! Every message of both protocols, as fields and as bytes.

use alloy::primitives::{B256, Bytes as Hex};
use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::frame::{
    Answer, Call, CallRefusal, Frame, Part, Statement, ToBuyer, ToSeller,
};
use farthing_protocol::purchase::{Ask, Ending, Endpoint, Mode, Refusal, VoucherFault};
use farthing_protocol::testing;
use serde::{Deserialize, Serialize};

use super::samples::{self, LOAD, USAGE};
use super::sheet::{Vector, readable};

pub const TO_SELLER: &str =
    "What a buyer says on a purchase. `bytes` is the frame without the length in front.";
pub const TO_BUYER: &str =
    "What a seller says on a purchase. `bytes` is the frame without the length in front.";
pub const CALL: &str = "The small questions. `bytes` is the frame without the length in front.";
pub const ANSWER: &str = "The answers to them. `bytes` is the frame without the length in front.";

/// A message and its bytes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound = "T: Frame")]
pub struct FrameVector<T> {
    name: String,
    #[serde(with = "readable")]
    value: T,
    bytes: Hex,
}

impl<T: Frame> FrameVector<T> {
    fn new(name: &str, value: T) -> Self {
        let bytes = value.encode().expect("a sample is within its limit");
        Self {
            name: name.to_owned(),
            value,
            bytes: bytes.into(),
        }
    }

    /// The message.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Its bytes.
    pub fn into_bytes(self) -> Hex {
        self.bytes
    }
}

impl<T: Frame + PartialEq + std::fmt::Debug + 'static> Vector for FrameVector<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let name = &self.name;
        assert_eq!(
            self.value.encode().as_deref(),
            Ok(self.bytes.as_ref()),
            "{name}"
        );
        assert_eq!(T::decode(&self.bytes).as_ref(), Ok(&self.value), "{name}");
    }
}

pub fn to_seller() -> Vec<FrameVector<ToSeller>> {
    let ask = |ask| ToSeller::Ask(Box::new(ask));
    let bare = Ask {
        endpoint: Endpoint::Embeddings,
        voucher: None,
        body: Bytes::from_static(br#"{"model":"test/model","input":"hi"}"#),
        ..samples::ask(Mode::Plain)
    };
    let completions = Ask {
        endpoint: Endpoint::Completions,
        body: Bytes::from_static(br#"{"model":"test/model","prompt":"hi"}"#),
        ..samples::ask(Mode::Plain)
    };
    let moderations = Ask {
        endpoint: Endpoint::Moderations,
        body: Bytes::from_static(br#"{"model":"test/model","input":"hi"}"#),
        ..samples::ask(Mode::Plain)
    };
    let with_root = Ask {
        ack: Some(samples::signed_root()),
        ..samples::ask(Mode::Plain)
    };
    vec![
        FrameVector::new("ask-with-root", ask(with_root)),
        FrameVector::new("ask-chat", ask(samples::ask(Mode::Plain))),
        FrameVector::new("ask-chat-streamed", ask(samples::ask(Mode::Stream))),
        FrameVector::new("ask-completions", ask(completions)),
        FrameVector::new("ask-embeddings-without-voucher", ask(bare)),
        FrameVector::new("ask-moderations", ask(moderations)),
        FrameVector::new("pay", ToSeller::Pay(samples::voucher(1_000_032))),
        FrameVector::new("cancel", ToSeller::Cancel),
    ]
}

/// Every refusal. The compiler asks for a name for a new one, `variants` for its sample.
pub fn refusals() -> Vec<Refusal> {
    let mut all = vec![
        Refusal::UnknownModel,
        Refusal::Endpoint,
        Refusal::StaleOffer,
        Refusal::BadRequest("the body is not a JSON object".into()),
        Refusal::Upstream {
            status: 400,
            body: Bytes::from_static(br#"{"error":{"message":"context length exceeded"}}"#),
        },
        Refusal::Busy {
            retry_after_ms: 750,
        },
        Refusal::TooLarge { max: 1_048_576 },
        Refusal::CostCeiling {
            needed: Amount::atoms(44),
        },
        Refusal::NoChannel,
        Refusal::Duplicate,
        Refusal::Unavailable("the model server is down".into()),
    ];
    all.extend(voucher_faults().into_iter().map(Refusal::Voucher));
    all
}

pub fn voucher_faults() -> Vec<VoucherFault> {
    vec![
        VoucherFault::Foreign,
        VoucherFault::NotCanonical,
        VoucherFault::OtherChannel,
        VoucherFault::OverDeposit {
            available: Amount::atoms(5_000_000),
        },
        VoucherFault::Unproven,
    ]
}

fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownModel => "refused-unknown-model",
        Refusal::Endpoint => "refused-endpoint",
        Refusal::StaleOffer => "refused-stale-offer",
        Refusal::BadRequest(_) => "refused-bad-request",
        Refusal::Upstream { .. } => "refused-upstream",
        Refusal::Busy { .. } => "refused-busy",
        Refusal::TooLarge { .. } => "refused-too-large",
        Refusal::CostCeiling { .. } => "refused-cost-ceiling",
        Refusal::NoChannel => "refused-no-channel",
        Refusal::Voucher(VoucherFault::Foreign) => "refused-voucher-foreign",
        Refusal::Voucher(VoucherFault::NotCanonical) => "refused-voucher-not-canonical",
        Refusal::Voucher(VoucherFault::OtherChannel) => "refused-voucher-other-channel",
        Refusal::Voucher(VoucherFault::OverDeposit { .. }) => "refused-voucher-over-deposit",
        Refusal::Voucher(VoucherFault::Unproven) => "refused-voucher-unproven",
        Refusal::Duplicate => "refused-duplicate",
        Refusal::Unavailable(_) => "refused-unavailable",
    }
}

pub fn to_buyer() -> Vec<FrameVector<ToBuyer>> {
    let chunk = |data: &'static str, part| ToBuyer::Chunk {
        data: Bytes::from_static(data.as_bytes()),
        part,
        usage: USAGE,
    };
    let done = ToBuyer::Done {
        receipt: Box::new(samples::signed_receipt(Ending::Complete)),
        load: LOAD,
        root: None,
        open: false,
    };
    let need = ToBuyer::NeedVoucher {
        ceiling: Amount::atoms(90_302),
        charged: Amount::atoms(90_000),
    };
    let mut all = vec![
        FrameVector::new("accepted", ToBuyer::Accepted { load: LOAD }),
        FrameVector::new("need-voucher", need),
        FrameVector::new("chunk-part", chunk(&samples::EVENT[..40], Part::More)),
        FrameVector::new("chunk-last", chunk(&samples::EVENT[40..], Part::Last)),
        FrameVector::new("done", done),
    ];
    all.extend(samples::root_words().map(|(name, word)| {
        let done = ToBuyer::Done {
            receipt: Box::new(samples::signed_receipt(Ending::Complete)),
            load: LOAD,
            root: Some(Box::new(word)),
            open: true,
        };
        FrameVector::new(&format!("done-{name}"), done)
    }));
    all.extend(refusals().into_iter().map(|refusal| {
        let name = refusal_name(&refusal);
        FrameVector::new(
            name,
            ToBuyer::Refused {
                refusal,
                load: LOAD,
            },
        )
    }));
    all
}

pub fn call() -> Vec<FrameVector<Call>> {
    let channel = samples::channel();
    let proof = samples::voucher(0);
    let deposit = Call::Deposit {
        config: testing::channel_config(),
        deposit: samples::deposit(),
    };
    let receipts = Call::Receipts {
        channel,
        proof,
        from: 5,
    };
    let config = testing::channel_config();
    vec![
        FrameVector::new("book", Call::Book { from: 48 }),
        FrameVector::new("deposit", deposit),
        FrameVector::new("channel", Call::Channel { config, proof }),
        FrameVector::new("receipts", receipts),
        FrameVector::new("refund", Call::Refund { channel, proof }),
        FrameVector::new("root", Call::Root(samples::signed_root())),
        FrameVector::new("testimonies", Call::Testimonies { from: 256 }),
        FrameVector::new("testify", Call::Testify(Box::new(samples::testimony()))),
    ]
}

pub fn call_refusals() -> Vec<CallRefusal> {
    vec![
        CallRefusal::Terms("withdrawDelay".into()),
        CallRefusal::Deposit("at least 1000 atoms must be deposited".into()),
        CallRefusal::NoChannel,
        CallRefusal::Proof,
        CallRefusal::InUse,
        CallRefusal::Unavailable("the seller's ledger failed".into()),
    ]
}

fn call_refusal_name(refusal: &CallRefusal) -> &'static str {
    match refusal {
        CallRefusal::Terms(_) => "refused-terms",
        CallRefusal::Deposit(_) => "refused-deposit",
        CallRefusal::NoChannel => "refused-no-channel",
        CallRefusal::Proof => "refused-proof",
        CallRefusal::InUse => "refused-in-use",
        CallRefusal::Unavailable(_) => "refused-unavailable",
    }
}

pub fn answer() -> Vec<FrameVector<Answer>> {
    let transaction = B256::repeat_byte(0x7a);
    let deposited = Answer::Deposited {
        transaction,
        balance: Amount::atoms(5_000_000),
    };
    let refunded = Answer::Refunded {
        transaction,
        amount: Amount::atoms(4_909_849),
    };
    let statement = |voucher| {
        Answer::Channel(Box::new(Statement {
            charged: Amount::atoms(90_151),
            receipts: 6,
            voucher,
            balance: Amount::atoms(5_000_000),
            root: None,
            peaks: Vec::new(),
        }))
    };
    let rooted = Answer::Channel(Box::new(Statement {
        charged: Amount::atoms(90_151),
        receipts: 70,
        voucher: Some(samples::voucher(1_000_032)),
        balance: Amount::atoms(5_000_000),
        root: Some(samples::cosigned()),
        peaks: vec![B256::repeat_byte(0x64)],
    }));
    let receipts = vec![samples::signed_receipt(Ending::Complete)];
    let mut all = vec![
        FrameVector::new("book", Answer::Book(vec![samples::offer()])),
        FrameVector::new("book-end", Answer::Book(vec![])),
        FrameVector::new("deposited", deposited),
        FrameVector::new("channel", statement(Some(samples::voucher(1_000_032)))),
        FrameVector::new("channel-without-voucher", statement(None)),
        FrameVector::new("channel-with-root", rooted),
        FrameVector::new("receipts", Answer::Receipts(receipts)),
        FrameVector::new("refunded", refunded),
    ];
    let page = Answer::Testimonies(vec![samples::testimony()]);
    all.push(FrameVector::new("testimonies", page));
    all.push(FrameVector::new("heard", Answer::Heard));
    all.extend(
        samples::root_words()
            .map(|(name, word)| FrameVector::new(name, Answer::Root(Box::new(word)))),
    );
    all.extend(call_refusals().into_iter().map(|refusal| {
        let name = call_refusal_name(&refusal);
        FrameVector::new(name, Answer::Refused(refusal))
    }));
    all
}
