//! The seller's signed words of x402's `offer-receipt`.

use alloy::primitives::{Address, B256, keccak256};
use alloy::sol_types::SolStruct;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::payment::attestation::{
    Attested, OfferWords, ReceiptWords, VERSION, Words, offers, receipt,
};
use farthing_protocol::testing;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::payments;
use super::sheet::Vector;

pub const ABOUT: &str = "A word of the extension `offer-receipt` (`json`, what stands in the header under `info`), what is signed, and by whom. `secret` is a test key.";

/// 2026-01-01T00:00:00Z.
const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A signed word.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationVector {
    name: String,
    json: Value,
    domain_separator: B256,
    r#type: String,
    struct_hash: B256,
    digest: B256,
    secret: B256,
    signer: Address,
}

impl AttestationVector {
    fn of<T: Words + Clone>(name: &str, attested: &Attested<T>, json: Value) -> Self {
        let (domain, sol) = (T::domain(), attested.payload.to_sol());
        Self {
            name: name.to_owned(),
            json: json["info"].clone(),
            domain_separator: domain.separator(),
            r#type: T::Sol::eip712_encode_type().into_owned(),
            struct_hash: sol.eip712_hash_struct(),
            digest: domain.hash(&sol),
            secret: key().secret().into(),
            signer: key().address(),
        }
    }

    /// The word in the JSON is this one, by this signer, and is made again byte for byte.
    fn is<T: Words + Clone + DeserializeOwned + PartialEq + std::fmt::Debug>(&self, word: &Value) {
        let read: Attested<T> = serde_json::from_value(word.clone()).expect("reads");
        assert_eq!(read.signer(), Ok(self.signer), "{}", self.name);
        let key = EvmKey::from_bytes(&self.secret.0).expect("a key");
        let again = Attested::sign(read.payload.clone(), &key);
        assert_eq!(again.signature, read.signature, "{}", self.name);
    }
}

impl Vector for AttestationVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let parts = [
            &[0x19, 0x01][..],
            self.domain_separator.as_slice(),
            self.struct_hash.as_slice(),
        ];
        assert_eq!(keccak256(parts.concat()), self.digest, "{}", self.name);
        let info = &self.json;
        match self.name.as_str() {
            "offers" => self.is::<OfferWords>(&info["offers"][0]),
            _ => self.is::<ReceiptWords>(&info["receipt"]),
        }
    }
}

fn key() -> EvmKey {
    testing::evm_key(1)
}

pub fn attestations() -> Vec<AttestationVector> {
    let url = "https://seller.example/v1/chat/completions";
    let way = payments::batch_way(None);
    let offer = Attested::offer((0, &way), url, NOW, &key());
    let words = |transaction: String| ReceiptWords {
        version: VERSION,
        network: "eip155:31337".into(),
        resource_url: url.into(),
        payer: testing::evm_key(9).address().to_checksum(None),
        issued_at: NOW.seconds(),
        transaction,
    };
    let of = |name, words| {
        let signed = Attested::sign(words, &key());
        AttestationVector::of(name, &signed, receipt(&signed))
    };
    vec![
        AttestationVector::of("offers", &offer, offers(std::slice::from_ref(&offer))),
        of("receipt", words(String::new())),
        of(
            "receipt-with-transaction",
            words(format!("{:#x}", B256::repeat_byte(0x77))),
        ),
    ]
}
