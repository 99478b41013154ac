//! The fixed values all vectors are made of: the protocol's `testing` keys, at one moment.

use alloy::primitives::{B256, keccak256};
use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::Signed;
use farthing_protocol::offer::{OfferHash, SignedOffer};
use farthing_protocol::purchase::{Ask, Ending, Endpoint, Load, Mode, RequestId, Usage};
use farthing_protocol::receipt::{Receipt, SignedReceipt, model_hash};
use farthing_protocol::root::{self, CoSigned, ReceiptRoot, RootWord, SignedRoot};
use farthing_protocol::testimony::SignedTestimony;
use farthing_protocol::testing;
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{ChannelId, Deposit, DepositTerms};

/// 2026-01-01T00:00:00Z.
pub const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A plain request.
pub const BODY: &str =
    r#"{"model":"test/model","messages":[{"role":"user","content":"Say hi."}],"max_tokens":16}"#;
/// The same, streamed.
pub const STREAM_BODY: &str = r#"{"model":"test/model","messages":[{"role":"user","content":"Say hi."}],"max_tokens":16,"stream":true}"#;
/// One event of a stream.
pub const EVENT: &str =
    r#"{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#;

pub const LOAD: Load = Load {
    running: 3,
    slots: 8,
};
pub const USAGE: Usage = Usage {
    prompt: 12,
    cached: 4,
    completion: 300,
};

/// The seventh offer of seller 1.
pub fn offer() -> SignedOffer {
    testing::signed_offer(7, NOW)
}

/// Its name.
pub fn offer_hash() -> OfferHash {
    OfferHash(keccak256(&offer().offer))
}

pub fn channel() -> ChannelId {
    testing::channel_config().id(&testing::network())
}

pub fn request() -> RequestId {
    RequestId(B256::repeat_byte(0x42))
}

/// A voucher by the channel's authorizer (key 8).
pub fn voucher(ceiling: u128) -> SignedVoucher {
    let voucher = Voucher {
        channel: channel(),
        ceiling: Amount::atoms(ceiling),
    };
    Signed::sign(voucher, &testing::network().domain(), &testing::evm_key(8))
}

pub fn ask(mode: Mode) -> Ask {
    let body = match mode {
        Mode::Plain => BODY,
        Mode::Stream => STREAM_BODY,
    };
    Ask {
        request: request(),
        offer: offer_hash(),
        model: "test/model".into(),
        endpoint: Endpoint::Chat,
        mode,
        max_cost: Amount::atoms(5_000),
        deadline_ms: 120_000,
        channel: channel(),
        voucher: Some(voucher(1_000_000)),
        ack: None,
        body: Bytes::from_static(body.as_bytes()),
    }
}

pub fn deposit() -> Deposit {
    let terms = DepositTerms {
        amount: Amount::atoms(5_000_000),
        valid_before: Timestamp(NOW.0 + 600_000),
        salt: B256::with_last_byte(1),
    };
    let config = testing::channel_config();
    Deposit::sign(&config, terms, &testing::network(), &testing::evm_key(9))
}

pub fn receipt(ending: Ending) -> Receipt {
    Receipt {
        channel: channel(),
        seq: 5,
        request: request(),
        request_hash: keccak256(STREAM_BODY),
        response_hash: keccak256(EVENT),
        model_hash: model_hash("test/model"),
        offer: offer_hash(),
        usage: USAGE,
        charged: Amount::atoms(151),
        cumulative: Amount::atoms(90_151),
        started: NOW,
        finished: Timestamp(NOW.0 + 1_500),
        ending,
    }
}

pub fn signed_receipt(ending: Ending) -> SignedReceipt {
    receipt(ending).sign(&testing::node_key(1))
}

/// What the sample channel's buyer says of its seller.
pub fn testimony() -> SignedTestimony {
    testing::testimony(8, NOW)
}

/// The root over the sample channel's first six receipts, as far as it shows.
pub fn root() -> ReceiptRoot {
    ReceiptRoot {
        channel: channel(),
        count: 6,
        cumulative: Amount::atoms(90_151),
        root: B256::repeat_byte(0x60),
    }
}

/// Signed by the channel's authorizer (key 8).
pub fn signed_root() -> SignedRoot {
    let domain = root::domain(&testing::network());
    Signed::sign(root(), &domain, &testing::evm_key(8))
}

/// Signed by both: also by the claim key (key 1).
pub fn cosigned() -> CoSigned {
    let domain = root::domain(&testing::network());
    CoSigned {
        root: root(),
        buyer: signed_root().signature,
        seller: Signed::sign(root(), &domain, &testing::evm_key(1)).signature,
    }
}

/// Everything a seller can say to a root, by name.
pub fn root_words() -> [(&'static str, RootWord); 4] {
    let other = ReceiptRoot {
        root: B256::repeat_byte(0x61),
        ..root()
    };
    let domain = root::domain(&testing::network());
    let other = Signed::sign(other, &domain, &testing::evm_key(1));
    [
        ("root-signed", RootWord::Signed(cosigned().seller)),
        ("root-later", RootWord::Later),
        ("root-differs", RootWord::Differs(other)),
        ("root-foreign", RootWord::Foreign),
    ]
}
