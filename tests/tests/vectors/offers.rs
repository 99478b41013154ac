//! Offers: the bytes that are signed, both signatures, the frame, and what is refused.

use alloy::primitives::{Address, B256, Bytes as Hex, keccak256};
use alloy::sol_types::SolStruct;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::{EvmSignature, Typed};
use farthing_protocol::frame::Frame;
use farthing_protocol::identity::{NodeId, NodeSignature};
use farthing_protocol::net::Protocol;
use farthing_protocol::offer::{
    MAX_LIFETIME, MAX_SKEW, Offer, OfferError, OfferHash, SellerBinding, SignedOffer,
};
use farthing_protocol::testing;
use farthing_protocol::x402::Network;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ink::verify_ed25519;
use super::samples::{self, NOW};
use super::sheet::Vector;

pub const TOPIC: &str = "A network, its gossip topic, and the two stream protocols.";
pub const OFFER: &str = "An offer's JSON as signed, the node's signature over label, zero byte and JSON, the claim key's EIP-712 signature over the node, and what a reader on the test network decides at `now`.";

/// Where a network's offers are heard.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicVector {
    name: String,
    network: Network,
    topic: String,
    protocols: [String; 2],
}

impl Vector for TopicVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(self.network.topic(), self.topic);
        assert_eq!(self.protocols, protocols());
    }
}

fn protocols() -> [String; 2] {
    [Protocol::Purchase, Protocol::Call].map(|protocol| protocol.name().to_owned())
}

pub fn topics() -> Vec<TopicVector> {
    let network = testing::network();
    vec![TopicVector {
        name: "test-network".into(),
        topic: network.topic(),
        network,
        protocols: protocols(),
    }]
}

/// The claim key's word for the node.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Binding {
    r#type: String,
    domain_separator: B256,
    struct_hash: B256,
    digest: B256,
    signature: EvmSignature,
    signer: Address,
}

/// An offer and everything about it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferVector {
    name: String,
    now: Timestamp,
    json: String,
    seller: NodeId,
    signature: NodeSignature,
    hash: OfferHash,
    binding: Binding,
    frame: Hex,
    verdict: String,
}

impl Vector for OfferVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let signed = SignedOffer {
            offer: bytes::Bytes::from(self.json.clone()),
            signature: self.signature,
        };
        assert_eq!(
            signed.encode().as_deref(),
            Ok(self.frame.as_ref()),
            "{}",
            self.name
        );
        assert_eq!(SignedOffer::decode(&self.frame), Ok(signed.clone()));
        assert_eq!(self.hash.0, keccak256(&self.json));
        let verified = signed.verify(&testing::network(), self.now);
        assert_eq!(verdict(&verified.map(drop)), self.verdict, "{}", self.name);
        if self.verdict == "good" {
            let bytes = [b"farthing offer v1\0", self.json.as_bytes()].concat();
            verify_ed25519(&self.seller, &bytes, &self.signature);
            let signer = self.binding.signature.recover(self.binding.digest);
            assert_eq!(signer, Ok(self.binding.signer), "{}", self.name);
        }
    }
}

fn verdict(result: &Result<(), OfferError>) -> String {
    let text = match result {
        Ok(()) => "good",
        Err(OfferError::TooLarge(_)) => "too large",
        Err(OfferError::Malformed(_)) => "malformed",
        Err(OfferError::Signature(_)) => "node signature",
        Err(OfferError::Binding(_)) => "binding",
        Err(OfferError::OtherNetwork) => "other network",
        Err(OfferError::Expired) => "expired",
        Err(OfferError::Times) => "times",
        Err(OfferError::Value(_)) => "value",
    };
    text.to_owned()
}

pub fn offers() -> Vec<OfferVector> {
    let offer = || testing::offer_of(1, 7, NOW);
    let sign = |offer: &Offer| SignedOffer::sign(offer, &testing::node_key(1)).expect("small");
    let changed = |change: fn(&mut Offer)| {
        let mut offer = offer();
        change(&mut offer);
        sign(&offer)
    };
    let mut forged = samples::offer();
    forged.signature.0[63] ^= 1;
    let late = offer().expires;
    let all = [
        ("good", NOW, samples::offer()),
        ("unknown-fields-pass", NOW, with_unknown_fields()),
        ("expired", late, samples::offer()),
        (
            "from-the-future",
            NOW,
            changed(|offer| offer.issued = NOW.plus(MAX_SKEW * 2)),
        ),
        (
            "too-long",
            NOW,
            changed(|offer| offer.expires = NOW.plus(MAX_LIFETIME * 2)),
        ),
        ("other-network", NOW, changed(|offer| offer.chain_id = 1)),
        ("no-models", NOW, changed(|offer| offer.models.clear())),
        (
            "withdraw-delay-too-short",
            NOW,
            changed(|offer| offer.withdraw_delay = 899),
        ),
        ("forged", NOW, forged),
        (
            "borrowed-claim-key",
            NOW,
            changed(|offer| offer.binding = testing::offer_of(2, 7, NOW).binding),
        ),
    ];
    all.map(|(name, now, signed)| vector(name, now, &signed))
        .into()
}

/// As the good one, with fields of a later version.
fn with_unknown_fields() -> SignedOffer {
    let mut offer: Value = serde_json::from_slice(&samples::offer().offer).expect("JSON");
    offer["discounts"] = json!({"night": [22, 6]});
    offer["models"][0]["languages"] = json!(["en", "de"]);
    let bytes = serde_json::to_vec(&offer).expect("JSON");
    SignedOffer {
        signature: testing::node_key(1).sign(farthing_protocol::identity::Label::Offer, &bytes),
        offer: bytes.into(),
    }
}

fn vector(name: &str, now: Timestamp, signed: &SignedOffer) -> OfferVector {
    let offer: Offer = serde_json::from_slice(&signed.offer).expect("the JSON of an offer");
    let binding = SellerBinding {
        node: offer.seller,
        payout: offer.payout,
        claim: offer.claim,
    };
    let domain = SellerBinding::domain(&testing::network());
    let verified = signed.clone().verify(&testing::network(), now);
    OfferVector {
        name: name.to_owned(),
        now,
        json: String::from_utf8(signed.offer.to_vec()).expect("text"),
        seller: offer.seller,
        signature: signed.signature,
        hash: OfferHash(keccak256(&signed.offer)),
        binding: Binding {
            r#type: <SellerBinding as Typed>::Sol::eip712_encode_type().into_owned(),
            domain_separator: domain.separator(),
            struct_hash: binding.to_sol().eip712_hash_struct(),
            digest: domain.hash(&binding.to_sol()),
            signature: offer.binding,
            signer: offer.claim,
        },
        frame: signed.encode().expect("small").into(),
        verdict: verdict(&verified.map(drop)),
    }
}
