//! x402's extension `offer-receipt`: a seller's signed word for each way to pay, and for having
//! served what was paid.
//!
//! Source: x402 extension `offer-receipt`, version 1, form `eip712`. What is signed is text, as it
//! stands in the payment's own words, in two domains that name no contract. The signature says who
//! speaks; that this is the seller of the resource is for the reader to know: here it is the key
//! that the ways to pay name (`receiverAuthorizer`, `facilitatorAddress`).

use alloy::primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::eip712::{Domain, EvmKey, EvmSignature, SignatureError, Typed};
use crate::payment::PaymentRequirements;

/// The extension's name.
pub const OFFER_RECEIPT: &str = "offer-receipt";
/// The version of what is signed.
pub const VERSION: u64 = 1;
/// The chain id of both domains, whatever chain the money is on.
const CHAIN_ID: u64 = 1;
/// The form of the signature.
const FORMAT: &str = "eip712";

mod sol_types {
    alloy::sol! {
        struct Offer {
            uint256 version;
            string resourceUrl;
            string scheme;
            string network;
            string asset;
            string payTo;
            string amount;
            uint256 validUntil;
        }

        struct Receipt {
            uint256 version;
            string network;
            string resourceUrl;
            string payer;
            uint256 issuedAt;
            string transaction;
        }
    }
}

/// One way to pay, as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfferWords {
    /// 1.
    pub version: u64,
    /// What is for sale.
    pub resource_url: String,
    /// The way's scheme.
    pub scheme: String,
    /// Its chain, in CAIP-2 form.
    pub network: String,
    /// Its token, as it is written there.
    pub asset: String,
    /// Who is paid, as it is written there.
    pub pay_to: String,
    /// Atoms, in decimal digits.
    pub amount: String,
    /// Seconds since the epoch until which it holds.
    pub valid_until: u64,
}

/// That something was served to who paid for it, as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptWords {
    /// 1.
    pub version: u64,
    /// The chain of the payment, in CAIP-2 form.
    pub network: String,
    /// What was served.
    pub resource_url: String,
    /// Who paid.
    pub payer: String,
    /// Seconds since the epoch.
    pub issued_at: u64,
    /// The transaction that moved the money for it, or nothing.
    pub transaction: String,
}

/// What is signed in a domain of its own.
pub trait Words: Typed {
    /// The domain.
    fn domain() -> Domain;
}

impl Typed for OfferWords {
    type Sol = sol_types::Offer;

    fn to_sol(&self) -> Self::Sol {
        sol_types::Offer {
            version: U256::from(self.version),
            resourceUrl: self.resource_url.clone(),
            scheme: self.scheme.clone(),
            network: self.network.clone(),
            asset: self.asset.clone(),
            payTo: self.pay_to.clone(),
            amount: self.amount.clone(),
            validUntil: U256::from(self.valid_until),
        }
    }
}

impl Words for OfferWords {
    fn domain() -> Domain {
        Domain::without_contract("x402 offer", "1", CHAIN_ID)
    }
}

impl Typed for ReceiptWords {
    type Sol = sol_types::Receipt;

    fn to_sol(&self) -> Self::Sol {
        sol_types::Receipt {
            version: U256::from(self.version),
            network: self.network.clone(),
            resourceUrl: self.resource_url.clone(),
            payer: self.payer.clone(),
            issuedAt: U256::from(self.issued_at),
            transaction: self.transaction.clone(),
        }
    }
}

impl Words for ReceiptWords {
    fn domain() -> Domain {
        Domain::without_contract("x402 receipt", "1", CHAIN_ID)
    }
}

/// Words with a signature nobody has checked yet, as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attested<T> {
    /// `eip712`.
    pub format: String,
    /// Which of the ways to pay it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_index: Option<u32>,
    /// What is signed.
    pub payload: T,
    /// The signature.
    pub signature: EvmSignature,
}

impl<T: Words> Attested<T> {
    /// Signs words.
    #[must_use]
    pub fn sign(payload: T, key: &EvmKey) -> Self {
        let signature = key.sign_hash(T::domain().hash(&payload.to_sol()));
        Self {
            format: FORMAT.to_owned(),
            accept_index: None,
            payload,
            signature,
        }
    }

    /// Who signed them.
    ///
    /// # Errors
    /// Any [`SignatureError`] but [`SignatureError::WrongSigner`].
    pub fn signer(&self) -> Result<Address, SignatureError> {
        let hash = T::domain().hash(&self.payload.to_sol());
        self.signature.recover(hash)
    }
}

impl Attested<OfferWords> {
    /// The seller's word for the `index`th way to pay for what is at `url`, from `now` on.
    #[must_use]
    pub fn offer(
        (index, way): (u32, &PaymentRequirements),
        url: &str,
        now: Timestamp,
        key: &EvmKey,
    ) -> Self {
        let words = OfferWords {
            version: VERSION,
            resource_url: url.to_owned(),
            scheme: way.scheme.clone(),
            network: way.network.to_string(),
            asset: way.asset.to_checksum(None),
            pay_to: way.pay_to.to_checksum(None),
            amount: way.amount.to_string(),
            valid_until: now.seconds().saturating_add(way.max_timeout_seconds),
        };
        Self {
            accept_index: Some(index),
            ..Self::sign(words, key)
        }
    }
}

/// What a 402 says under [`OFFER_RECEIPT`].
#[must_use]
pub fn offers(offers: &[Attested<OfferWords>]) -> Value {
    json!({ "info": { "offers": offers }, "schema": schema("offers", "array") })
}

/// What a paid answer says under [`OFFER_RECEIPT`].
#[must_use]
pub fn receipt(receipt: &Attested<ReceiptWords>) -> Value {
    json!({ "info": { "receipt": receipt }, "schema": schema("receipt", "object") })
}

/// As much of a schema as every extension must have: headers are short.
fn schema(name: &str, kind: &str) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": { name: { "type": kind } },
        "required": [name],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn words() -> ReceiptWords {
        ReceiptWords {
            version: VERSION,
            network: "eip155:31337".into(),
            resource_url: "https://seller.example/v1/chat/completions".into(),
            payer: testing::evm_key(9).address().to_checksum(None),
            issued_at: 1_767_225_600,
            transaction: String::new(),
        }
    }

    #[test]
    fn a_word_that_was_changed_is_not_the_signers() {
        let key = testing::evm_key(1);
        let signed = Attested::sign(words(), &key);
        assert_eq!(signed.signer(), Ok(key.address()));
        let mut changed = signed.clone();
        changed.payload.payer = testing::evm_key(8).address().to_checksum(None);
        assert_ne!(changed.signer(), Ok(key.address()));
        let text = serde_json::to_value(&signed).expect("JSON");
        assert_eq!(text["format"], "eip712");
        assert_eq!(text["signature"].as_str().map(str::len), Some(132));
        let read: Attested<ReceiptWords> = serde_json::from_value(text).expect("reads");
        assert_eq!(read, signed);
    }
}
