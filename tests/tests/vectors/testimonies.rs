//! What buyers say of sellers.

use alloy::primitives::{Address, B256, Bytes as Hex, keccak256};
use alloy::sol_types::SolStruct;
use farthing_protocol::codec;
use farthing_protocol::eip712::{EvmKey, Typed};
use farthing_protocol::testimony::{self, SignedTestimony, Testimony};
use farthing_protocol::testing;
use farthing_protocol::x402::Network;
use serde::{Deserialize, Serialize};

use super::samples::{self, NOW};
use super::sheet::Vector;

pub const ABOUT: &str = "A testimony: its bytes, what is signed, and whether it is believed at the time of the samples. `secret` is the test key of the signer.";

/// A testimony and its signature.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestimonyVector {
    name: String,
    network: Network,
    domain_separator: B256,
    signed: SignedTestimony,
    bytes: Hex,
    r#type: String,
    struct_hash: B256,
    digest: B256,
    secret: B256,
    signer: Address,
    verdict: bool,
}

impl Vector for TestimonyVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let read = codec::decode(&self.bytes, codec::RECORD_LIMIT);
        assert_eq!(read.as_ref(), Ok(&self.signed), "{}", self.name);
        let hash = self.signed.testimony.to_sol().eip712_hash_struct();
        assert_eq!(hash, self.struct_hash, "{}", self.name);
        let domain = self.domain_separator;
        let digest = keccak256([&[0x19, 0x01], domain.as_slice(), hash.as_slice()].concat());
        assert_eq!(digest, self.digest, "{}", self.name);
        let verdict = self.signed.clone().verify(&self.network, NOW).is_ok();
        assert_eq!(verdict, self.verdict, "{}", self.name);
        let key = EvmKey::from_bytes(&self.secret.0).expect("a key");
        assert_eq!(key.address(), self.signer);
        assert_eq!(key.sign_hash(digest), self.signed.signature);
    }
}

pub fn testimonies() -> Vec<TestimonyVector> {
    let good = samples::testimony();
    let mut two = good.testimony.clone();
    let other = testimony::Line {
        model: B256::repeat_byte(3),
        disputed: 1,
        ..two.lines[0]
    };
    two.lines.push(other);
    let mut twice = good.testimony.clone();
    twice.lines.push(good.testimony.lines[0]);
    let mut early = good.testimony.clone();
    early.until.0 += 120_000;
    let mut elsewhere = good.testimony.clone();
    elsewhere.seller = testing::node_key(2).id();
    let named = [
        ("good", good.testimony.clone(), 8),
        ("two-models", two, 8),
        ("one-model-twice", twice, 8),
        ("of-the-future", early, 8),
        ("other-seller", elsewhere, 8),
        ("other-key", good.testimony, 7),
    ];
    named
        .map(|(name, said, key)| vector(name, said, key))
        .into()
}

fn vector(name: &str, said: Testimony, key: u8) -> TestimonyVector {
    let (network, key) = (testing::network(), testing::evm_key(key));
    let sample = samples::testimony();
    let domain = testimony::domain(&network);
    let sol = said.to_sol();
    let by = (&network, &key);
    let signed = SignedTestimony::sign(said, sample.config, sample.receipt, by);
    TestimonyVector {
        name: name.to_owned(),
        domain_separator: domain.separator(),
        bytes: codec::encode(&signed).expect("encodes").into(),
        r#type: <Testimony as Typed>::Sol::eip712_encode_type().into_owned(),
        struct_hash: sol.eip712_hash_struct(),
        digest: domain.hash(&sol),
        secret: key.secret().into(),
        signer: key.address(),
        verdict: signed.clone().verify(&network, NOW).is_ok(),
        signed,
        network,
    }
}
