//! How single values become bytes, which bytes are refused, and how a node is named.

use alloy::primitives::{Address, B256, Bytes as Hex};
use farthing_protocol::amount::Amount;
use farthing_protocol::codec::{self, Error};
use farthing_protocol::eip712::EvmSignature;
use farthing_protocol::frame::{Answer, Call, Frame, Part, ToBuyer, ToSeller};
use farthing_protocol::identity::{Label, NodeId, NodeSignature};
use farthing_protocol::offer::SignedOffer;
use farthing_protocol::testing;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::samples;
use super::sheet::Vector;

pub const CODEC: &str =
    "One value of each kind. `bytes` begins with the version byte, as every message does.";
pub const REFUSED: &str = "Bytes that are no message of the kind named, and what is wrong.";
pub const IDENTITY: &str = "A node's secret seed, its public key, its id as text, and a signature made for a purpose: over the purpose's text, a zero byte and the message.";

/// A value of one kind and its bytes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecVector {
    name: String,
    kind: String,
    value: Value,
    bytes: Hex,
}

impl Vector for CodecVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(encode(&self.kind, &self.value), self.bytes, "{}", self.name);
    }
}

pub fn codec() -> Vec<CodecVector> {
    let key = testing::node_key(1).id();
    let all = [
        ("u8-250", "u8", json!(250)),
        ("u64-0", "u64", json!(0)),
        ("u64-250", "u64", json!(250)),
        ("u64-251", "u64", json!(251)),
        ("u64-65535", "u64", json!(65_535)),
        ("u64-65536", "u64", json!(65_536)),
        ("u64-4294967296", "u64", json!(4_294_967_296_u64)),
        ("amount-7", "amount", json!("7")),
        ("amount-2-to-64", "amount", json!("18446744073709551616")),
        ("amount-max", "amount", json!(Amount::MAX)),
        ("string", "string", json!("héllo")),
        ("bytes", "bytes", json!([0, 255])),
        ("none", "optional u64", Value::Null),
        ("some", "optional u64", json!(7)),
        ("list", "list of u64", json!([1, 251])),
        ("digest", "digest", json!(B256::repeat_byte(0xab))),
        ("address", "address", json!(Address::repeat_byte(0xcd))),
        (
            "evm-signature",
            "evm signature",
            json!(samples::voucher(7).signature),
        ),
        (
            "node-signature",
            "node signature",
            json!(samples::offer().signature),
        ),
        ("node-id", "node id", json!(key)),
        ("variant", "part", json!(Part::Last)),
    ];
    let vector = |(name, kind, value): (&str, &str, Value)| CodecVector {
        name: name.to_owned(),
        kind: kind.to_owned(),
        bytes: encode(kind, &value),
        value,
    };
    all.into_iter().map(vector).collect()
}

fn encode(kind: &str, value: &Value) -> Hex {
    match kind {
        "u8" => both::<u8>(value),
        "u64" => both::<u64>(value),
        "amount" => both::<Amount>(value),
        "string" => both::<String>(value),
        "bytes" => both::<bytes::Bytes>(value),
        "optional u64" => both::<Option<u64>>(value),
        "list of u64" => both::<Vec<u64>>(value),
        "digest" => both::<B256>(value),
        "address" => both::<Address>(value),
        "evm signature" => both::<EvmSignature>(value),
        "node signature" => both::<NodeSignature>(value),
        "node id" => both::<NodeId>(value),
        "part" => both::<Part>(value),
        other => panic!("nobody reads kind {other}"),
    }
}

/// The bytes of the value that the JSON describes, after decoding them again.
fn both<T>(value: &Value) -> Hex
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let value: T = serde_json::from_value(value.clone()).expect("a value of its kind");
    let bytes = codec::encode(&value).expect("it can be encoded");
    assert_eq!(codec::decode::<T>(&bytes, bytes.len()).as_ref(), Ok(&value));
    bytes.into()
}

/// Bytes that must be refused.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedVector {
    name: String,
    kind: String,
    bytes: Hex,
    error: String,
}

impl Vector for RefusedVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(error(&self.kind, &self.bytes), self.error, "{}", self.name);
    }
}

pub fn refused() -> Vec<RefusedVector> {
    let long = Call::LIMIT + 1;
    let all = [
        ("empty", "Call", vec![]),
        ("version-0", "ToSeller", vec![0, 2]),
        ("version-2", "ToSeller", vec![2, 2]),
        ("no-value", "ToSeller", vec![1]),
        ("left-over", "ToSeller", vec![1, 2, 0]),
        ("unknown-to-seller", "ToSeller", vec![1, 3]),
        ("unknown-to-buyer", "ToBuyer", vec![1, 5]),
        ("unknown-call", "Call", vec![1, 5]),
        ("unknown-answer", "Answer", vec![1, 6]),
        ("cut-off", "Call", vec![1, 0, 251, 0]),
        (
            "over-range",
            "Call",
            vec![1, 0, 253, 0, 0, 0, 0, 1, 0, 0, 0],
        ),
        (
            "length-beyond-the-bytes",
            "SignedOffer",
            vec![1, 253, 0, 0, 0, 0, 0, 1, 0, 0],
        ),
        (
            "digest-of-31-bytes",
            "Call",
            [vec![1, 4, 31], vec![7; 31]].concat(),
        ),
        ("option-neither-0-nor-1", "Answer", vec![1, 2, 0, 0, 2]),
        ("longer-than-a-call-may-be", "Call", vec![1; long]),
    ];
    let vector = |(name, kind, bytes): (&str, &str, Vec<u8>)| RefusedVector {
        name: name.to_owned(),
        kind: kind.to_owned(),
        error: error(kind, &bytes),
        bytes: bytes.into(),
    };
    all.into_iter().map(vector).collect()
}

fn error(kind: &str, bytes: &[u8]) -> String {
    fn of<T: Frame>(bytes: &[u8]) -> String {
        let name = match T::decode(bytes).map(drop) {
            Ok(()) => panic!("{} is not refused", alloy::hex::encode(bytes)),
            Err(Error::TooLarge { .. }) => "too large",
            Err(Error::Version { .. }) => "version",
            Err(Error::Malformed(_)) => "malformed",
            Err(Error::Trailing(_)) => "left over",
            Err(Error::Unencodable(_)) => "unencodable",
        };
        name.to_owned()
    }
    match kind {
        "ToSeller" => of::<ToSeller>(bytes),
        "ToBuyer" => of::<ToBuyer>(bytes),
        "Call" => of::<Call>(bytes),
        "Answer" => of::<Answer>(bytes),
        "SignedOffer" => of::<SignedOffer>(bytes),
        other => panic!("nobody reads kind {other}"),
    }
}

/// A node and a signature of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityVector {
    name: String,
    seed: B256,
    public_key: B256,
    id: NodeId,
    label: String,
    message: Hex,
    signature: NodeSignature,
}

impl Vector for IdentityVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(self.id.as_bytes(), &self.public_key.0, "{}", self.name);
        let label = label(&self.label);
        assert_eq!(
            self.id.verify(label, &self.message, &self.signature),
            Ok(())
        );
        // And by anybody's ed25519.
        let signed = [self.label.as_bytes(), &[0], &self.message].concat();
        verify_ed25519(&self.id, &signed, &self.signature);
    }
}

fn label(text: &str) -> Label {
    match text {
        "farthing offer v1" => Label::Offer,
        "farthing receipt v1" => Label::Receipt,
        other => panic!("nobody signs for {other}"),
    }
}

/// Plain ed25519, knowing nothing of labels.
pub fn verify_ed25519(id: &NodeId, bytes: &[u8], signature: &NodeSignature) {
    let key = ed25519_dalek::VerifyingKey::from_bytes(id.as_bytes()).expect("a key");
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(bytes, &signature)
        .expect("a good signature");
}

pub fn identity() -> Vec<IdentityVector> {
    let all = [
        ("node-1", 1, "farthing offer v1"),
        ("node-2", 2, "farthing receipt v1"),
    ];
    let vector = |(name, n, text): (&str, u8, &str)| {
        let key = testing::node_key(n);
        let message = b"bytes";
        IdentityVector {
            name: name.to_owned(),
            seed: key.seed().into(),
            public_key: B256::from(*key.id().as_bytes()),
            id: key.id(),
            label: text.to_owned(),
            message: message.into(),
            signature: key.sign(label(text), message),
        }
    };
    all.into_iter().map(vector).collect()
}
