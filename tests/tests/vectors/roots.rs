//! Trees over receipts and the roots that both sides sign.

use std::convert::Infallible;

use alloy::primitives::{Address, B256, Bytes as Hex, U256, keccak256};
use alloy::sol_types::SolStruct;
use farthing_protocol::codec;
use farthing_protocol::eip712::{EvmKey, Signed, Typed};
use farthing_protocol::merkle::{self, Peaks, Proof};
use farthing_protocol::root::{self, CoSigned, ReceiptRoot};
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelConfig, Network};
use serde::{Deserialize, Serialize};

use super::samples;
use super::sheet::Vector;

pub const ROOT: &str = "A root over a channel's receipts, what is signed, and the signatures of the buyer's voucher key and the seller's claim key. `secrets` are their test keys.";
pub const TREE: &str = "A tree over contents 1, 2, 3, … (each as 32 bytes): its leaves, its peaks (largest first) and its root.";
pub const PROOF: &str =
    "The way from a leaf to a root, and whether it shows the leaf at its place.";

/// A root and both signatures.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootVector {
    name: String,
    network: Network,
    domain_separator: B256,
    config: ChannelConfig,
    signed: CoSigned,
    r#type: String,
    struct_hash: B256,
    digest: B256,
    secrets: [B256; 2],
    signers: [Address; 2],
    verdict: bool,
}

impl Vector for RootVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let sol = self.signed.root.to_sol();
        assert_eq!(sol.eip712_hash_struct(), self.struct_hash, "{}", self.name);
        let (domain, hash) = (self.domain_separator, self.struct_hash);
        let digest = keccak256([&[0x19, 0x01], domain.as_slice(), hash.as_slice()].concat());
        assert_eq!(digest, self.digest, "{}", self.name);
        let verdict = self.signed.verify(&self.config, &self.network).is_ok();
        assert_eq!(verdict, self.verdict, "{}", self.name);
        let keys = [self.signed.buyer, self.signed.seller];
        for ((secret, signer), signature) in self.secrets.iter().zip(self.signers).zip(keys) {
            let key = EvmKey::from_bytes(&secret.0).expect("a key");
            assert_eq!(key.address(), signer);
            assert_eq!(key.sign_hash(digest), signature, "{}", self.name);
        }
    }
}

pub fn roots() -> Vec<RootVector> {
    let [buyer, seller] = [testing::evm_key(8), testing::evm_key(1)];
    vec![
        vector("both-signed", samples::root(), [&buyer, &seller]),
        vector("one-side-twice", samples::root(), [&buyer, &buyer]),
        vector("sides-exchanged", samples::root(), [&seller, &buyer]),
    ]
}

fn vector(name: &str, root: ReceiptRoot, keys: [&EvmKey; 2]) -> RootVector {
    let (network, config) = (testing::network(), testing::channel_config());
    let domain = root::domain(&network);
    let sol = root.to_sol();
    let [buyer, seller] = keys.map(|key| Signed::sign(root, &domain, key).signature);
    let signed = CoSigned {
        root,
        buyer,
        seller,
    };
    RootVector {
        name: name.to_owned(),
        domain_separator: domain.separator(),
        r#type: <ReceiptRoot as Typed>::Sol::eip712_encode_type().into_owned(),
        struct_hash: sol.eip712_hash_struct(),
        digest: domain.hash(&sol),
        secrets: keys.map(|key| key.secret().into()),
        signers: keys.map(EvmKey::address),
        verdict: signed.verify(&config, &network).is_ok(),
        signed,
        network,
        config,
    }
}

/// A tree.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeVector {
    name: String,
    contents: Vec<B256>,
    leaves: Vec<B256>,
    peaks: Vec<B256>,
    root: B256,
}

impl Vector for TreeVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let leaf = |content: &B256| keccak256([&[0x00], content.as_slice()].concat());
        let leaves: Vec<_> = self.contents.iter().map(leaf).collect();
        assert_eq!(leaves, self.leaves, "{}", self.name);
        let count = self.leaves.len() as u64;
        let peaks = Peaks::new(count, self.peaks.clone()).expect("that many peaks");
        assert_eq!(peaks.root(), Some(self.root), "{}", self.name);
        assert_eq!(definition(&self.leaves), self.root, "{}", self.name);
    }
}

/// RFC 6962's definition of a tree's root.
fn definition(leaves: &[B256]) -> B256 {
    let [left, right] = match leaves {
        [] => return B256::ZERO,
        [one] => return *one,
        more => {
            let half = more.len().next_power_of_two() / 2;
            [&more[..half], &more[half..]].map(definition)
        }
    };
    keccak256([&[0x01], left.as_slice(), right.as_slice()].concat())
}

fn contents(count: u64) -> Vec<B256> {
    (1..=count).map(|n| B256::from(U256::from(n))).collect()
}

fn leaves(count: u64) -> Vec<B256> {
    contents(count).into_iter().map(merkle::leaf).collect()
}

pub fn trees() -> Vec<TreeVector> {
    let tree = |count: u64| {
        let mut peaks = Peaks::default();
        for leaf in leaves(count) {
            peaks.push(leaf, |_| {});
        }
        TreeVector {
            name: format!("tree-of-{count}"),
            contents: contents(count),
            leaves: leaves(count),
            peaks: peaks.hashes().to_vec(),
            root: peaks.root().expect("leaves"),
        }
    };
    [1, 2, 3, 7, 8, 13].map(tree).into()
}

/// A proof and whether it holds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofVector {
    name: String,
    leaf: B256,
    root: B256,
    proof: Proof,
    bytes: Hex,
    verdict: bool,
}

impl Vector for ProofVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let verdict = self.proof.verify(self.leaf, self.root);
        assert_eq!(verdict, self.verdict, "{}", self.name);
        let read = codec::decode(&self.bytes, codec::RECORD_LIMIT);
        assert_eq!(read.as_ref(), Ok(&self.proof), "{}", self.name);
    }
}

pub fn proofs() -> Vec<ProofVector> {
    let seven = |index: u64| good(index, 7);
    let mut longer = seven(2);
    longer.proof.path.push(B256::ZERO);
    let mut shorter = seven(2);
    shorter.proof.path.pop();
    let mut place = seven(2);
    place.proof.index = 3;
    let mut count = seven(2);
    count.proof.count = 8;
    let mut beyond = seven(2);
    beyond.proof.index = 7;
    let named = [
        ("only-leaf", good(0, 1)),
        ("first-of-7", seven(0)),
        ("last-of-7", seven(6)),
        ("one-of-100", good(70, 100)),
        ("path-too-long", longer),
        ("path-too-short", shorter),
        ("other-place", place),
        ("other-count", count),
        ("place-beyond-the-count", beyond),
    ];
    let named = named.map(|(name, vector)| ProofVector {
        name: name.to_owned(),
        verdict: vector.proof.verify(vector.leaf, vector.root),
        bytes: codec::encode(&vector.proof)
            .expect("a proof is bytes")
            .into(),
        ..vector
    });
    named.into()
}

fn good(index: u64, count: u64) -> ProofVector {
    let all = leaves(count);
    let block = |level: u8, index: u64| {
        let size = 1_usize << level;
        let from = usize::try_from(index).expect("small") * size;
        Ok::<_, Infallible>(definition(&all[from..from + size]))
    };
    let Ok(proof) = Proof::read(index, count, block);
    ProofVector {
        name: String::new(),
        leaf: all[usize::try_from(index).expect("small")],
        root: definition(&all),
        proof: proof.expect("the leaf is there"),
        bytes: Hex::new(),
        verdict: true,
    }
}
