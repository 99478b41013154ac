//! What must hold of any bytes a stranger sends: the decoders' properties, one function each.
//!
//! The fuzz targets feed them what libFuzzer finds; `protocol/tests/decoders.rs` feeds them
//! arbitrary bytes and mutated vectors for a few seconds in every test run.

use std::fmt::Debug;
use std::time::Duration;

use alloy::primitives::{B256, U256, keccak256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use farthing_protocol::body::{Body, quote};
use farthing_protocol::book::{Book, Heard};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::codec;
use farthing_protocol::eip712::{EvmSignature, SignatureError};
use farthing_protocol::frame::Frame;
use farthing_protocol::identity::Label;
use farthing_protocol::merkle::{MAX_PATH, Proof};
use farthing_protocol::net::session::{Limits, RecvError, Session};
use farthing_protocol::offer::{MAX_BYTES, ModelOffer, Prices, SignedOffer};
use farthing_protocol::payment::{
    self, PaymentPayload, PaymentRequired, SettlementResponse, header, v1,
};
use farthing_protocol::pricing::{self, Demand};
use farthing_protocol::purchase::{Endpoint, Usage};
use farthing_protocol::roll::{Roll, Told};
use farthing_protocol::testimony::{MAX_LINES, SignedTestimony};
use farthing_protocol::{amount::Price, testing};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, duplex};
use tokio::time::Instant;

/// When the vectors' offers are fresh: 2026-01-01T00:00:00Z.
const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A message that can be read can be written, in no more bytes, and is then the same.
pub fn frame<T: Frame + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = T::decode(bytes) else {
        return;
    };
    let again = message.encode().expect("what was read can be written");
    assert!(
        again.len() <= bytes.len(),
        "the written form is the shortest"
    );
    assert_eq!(T::decode(&again).as_ref(), Ok(&message));
}

/// An offer is believed only within its limits, and its name is the hash of its bytes.
pub fn signed_offer(bytes: &[u8]) {
    frame::<SignedOffer>(bytes);
    if let Ok(offer) = SignedOffer::decode(bytes) {
        believe(offer);
    }
    let mut book = Book::new(testing::network());
    if let Heard::Fresh(offer) = book.hear_bytes(bytes, NOW) {
        assert_eq!(book.hear_bytes(bytes, NOW), Heard::Old);
        assert_eq!(book.page(0, 2, NOW), [offer.signed().clone()]);
    }
    // As if the seller had signed whatever this is, so that what comes after is reached too.
    believe(SignedOffer {
        signature: testing::node_key(1).sign(Label::Offer, bytes),
        offer: bytes.to_vec().into(),
    });
}

/// A testimony is believed only within its limits, and counts only when money is behind it.
pub fn testimony(bytes: &[u8]) {
    let Ok(said) = codec::decode::<SignedTestimony>(bytes, codec::RECORD_LIMIT) else {
        return;
    };
    let clock = Clock::manual(NOW);
    let roll = Roll::new(testing::network(), clock);
    let channel = said.testimony.channel;
    if roll.hear(said.clone(), testing::node_key(1).id()) == Told::Fresh {
        assert!(said.testimony.lines.len() <= MAX_LINES);
        assert_eq!(said.config.id(&testing::network()), channel);
        assert_eq!(roll.next(), Some(channel));
    }
    assert!(roll.page(0, 9).is_empty());
}

fn believe(signed: SignedOffer) {
    let Ok(verified) = signed.clone().verify(&testing::network(), NOW) else {
        return;
    };
    assert!(signed.offer.len() <= MAX_BYTES);
    assert_eq!(verified.hash().0, keccak256(&signed.offer));
    assert_eq!(verified.signed(), &signed);
    assert!(verified.offer().expires > NOW);
    for model in &verified.offer().models {
        assert!(verified.offer().model(&model.id).is_some());
        price(model, b"{}");
    }
}

/// Fields that are read here and there.
const FIELDS: [&str; 6] = ["model", "messages", "stream", "max_tokens", "n", "x"];

/// A proof of any shape is answered: with a root only if its path is as long as its place needs,
/// and then with another one for another leaf.
pub fn proof(bytes: &[u8]) {
    let Ok(proof) = codec::decode::<Proof>(bytes, codec::RECORD_LIMIT) else {
        return;
    };
    let again = codec::encode(&proof).expect("what was read can be written");
    assert_eq!(
        codec::decode(&again, codec::RECORD_LIMIT).as_ref(),
        Ok(&proof)
    );
    let Some(root) = proof.root(B256::ZERO) else {
        return;
    };
    assert!(proof.index < proof.count && proof.path.len() <= MAX_PATH);
    assert!(proof.verify(B256::ZERO, root));
    assert!(!proof.verify(B256::repeat_byte(1), root));
    let mut longer = proof;
    longer.path.push(root);
    assert_eq!(
        longer.root(B256::ZERO),
        None,
        "a place has one length of path"
    );
}

/// A body keeps its fields through a change of one: the rest is the bytes it was.
pub fn body(bytes: &[u8]) {
    let Ok(body) = Body::parse(bytes) else {
        return;
    };
    let plain = body.with(&[]);
    let same = Body::parse(&plain).expect("what was written can be read");
    assert_eq!(same.with(&[]), plain);
    let name = quote("an \"other\"\u{0}");
    let changed = body.with(&[("model", &name)]);
    let changed = Body::parse(&changed).expect("what was written can be read");
    assert_eq!(changed.raw("model"), Some(name.as_str()));
    for field in FIELDS {
        assert_eq!(same.raw(field), body.raw(field));
        if field != "model" {
            assert_eq!(changed.raw(field), body.raw(field));
        }
    }
}

/// A request can be priced, or is refused: at no price and no size does the arithmetic fail.
pub fn demand(bytes: &[u8]) {
    let free = ModelOffer {
        prices: Prices::default(),
        ..testing::model()
    };
    let dear = ModelOffer {
        prices: Prices {
            input: Price(u64::MAX),
            cached_input: Price(u64::MAX),
            output: Price(u64::MAX),
            request: Price(u64::MAX),
        },
        max_output: u32::MAX,
        ..testing::model()
    };
    for model in [testing::model(), free, dear] {
        price(&model, bytes);
    }
}

fn price(model: &ModelOffer, bytes: &[u8]) {
    let Ok(body) = Body::parse(bytes) else {
        return;
    };
    for endpoint in Endpoint::ALL {
        let Ok(demand) = Demand::of(bytes, &body, endpoint, model) else {
            continue;
        };
        let prices = &model.prices;
        let (Ok(quote), Ok(opening)) = (demand.quote(prices), demand.opening(prices, 64)) else {
            continue;
        };
        assert!(opening <= quote);
        let most = Usage {
            prompt: u32::try_from(demand.prompt).unwrap_or(u32::MAX),
            cached: 7,
            completion: u32::try_from(demand.output).unwrap_or(u32::MAX),
        };
        let cost = pricing::cost(&most, prices).expect("less than the quote");
        assert!(
            cost.ceil() <= quote,
            "no usage within the demand costs more than its quote"
        );
    }
}

/// The order of secp256k1.
const ORDER: U256 = U256::from_limbs([
    0xbfd2_5e8c_d036_4141,
    0xbaae_dce6_af48_a03b,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
]);

/// Of a signature and its malleable twin at most one is accepted.
pub fn evm_signature(bytes: &[u8]) {
    let Some((hash, rest)) = bytes.split_first_chunk::<32>() else {
        return;
    };
    let Some((signature, _)) = rest.split_first_chunk::<65>() else {
        return;
    };
    let hash = B256::from(*hash);
    let Ok(signer) = EvmSignature::from_bytes(*signature).recover(hash) else {
        return;
    };
    assert!(matches!(signature[64], 27 | 28));
    let s = U256::from_be_slice(&signature[32..64]);
    let mut twin = *signature;
    twin[32..64].copy_from_slice(&(ORDER - s).to_be_bytes::<32>());
    twin[64] = 55 - twin[64];
    let refused = EvmSignature::from_bytes(twin).recover(hash);
    assert_eq!(refused, Err(SignatureError::HighS), "{signer} signed twice");
}

/// A payment's header that can be read can be written, in the form that is sent, and is then the
/// same; what is in it is a payment of a known scheme or has a reason.
pub fn payment(bytes: &[u8]) {
    header_of::<PaymentPayload>(bytes, |payload| drop(payload.payment()));
    header_of::<PaymentRequired>(bytes, |required| {
        assert!(required.accepts.len() <= payment::MAX_ACCEPTS);
    });
    header_of::<SettlementResponse>(bytes, |answer| drop(answer.batch()));
    header_of::<v1::PaymentPayload>(bytes, |payload| drop(payload.payment()));
}

fn header_of<T>(bytes: &[u8], look: impl Fn(&T))
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    // As it comes, and as if whoever sent these bytes had put them into base64.
    let wrapped = STANDARD.encode(bytes);
    for text in [bytes, wrapped.as_bytes()] {
        let Ok(value) = header::decode::<T>(text) else {
            continue;
        };
        assert!(text.len() <= header::HEADER_LIMIT);
        look(&value);
        let Ok(again) = header::encode(&value) else {
            continue;
        };
        assert_eq!(header::decode(again.as_bytes()), Ok(value));
    }
}

/// The frames of a stream do not depend on how it is cut: two bytes say the largest frame and
/// the size of the pieces, the rest is the stream.
pub fn session(bytes: &[u8]) {
    let [max, piece, stream @ ..] = bytes else {
        return;
    };
    let (max, piece) = (usize::from(*max) * 8, usize::from(*piece) + 1);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (mut far, near) = duplex(64);
        let (mut reader, writer) = Session::new(near, Limits::default()).split();
        let feed = async {
            for piece in stream.chunks(piece) {
                if far.write_all(piece).await.is_err() {
                    return;
                }
            }
            drop(far);
        };
        let read = async move {
            // Both halves end here, so that the feed does not wait for a reader that has left.
            let _writer = writer;
            let by = Instant::now() + Duration::from_secs(60);
            let mut rest = stream;
            loop {
                let got = reader.recv(max, by).await;
                let (expected, after) = first_frame(rest, max);
                assert_eq!(
                    got.as_ref().map(|frame| frame.as_deref()),
                    expected.as_ref().copied()
                );
                match got {
                    Ok(Some(_)) => rest = after,
                    _ => return,
                }
            }
        };
        tokio::join!(feed, read);
    });
}

type Read<'a> = Result<Option<&'a [u8]>, RecvError>;

/// The same, from bytes that are all there.
fn first_frame(stream: &[u8], max: usize) -> (Read<'_>, &[u8]) {
    if stream.is_empty() {
        return (Ok(None), stream);
    }
    let Some((len, rest)) = stream.split_first_chunk::<4>() else {
        return (Err(RecvError::Truncated), stream);
    };
    let len = u32::from_be_bytes(*len) as usize;
    if len > max {
        return (Err(RecvError::TooLarge { len, max }), stream);
    }
    match rest.split_at_checked(len) {
        Some((frame, rest)) => (Ok(Some(frame)), rest),
        None => (Err(RecvError::Truncated), stream),
    }
}
