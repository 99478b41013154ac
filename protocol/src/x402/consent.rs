//! How a payer says yes to a deposit: a key by its signature, a contract by its own judgement.

use std::fmt;

use alloy::primitives::Bytes;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::eip712::EvmSignature;
use crate::x402::{ChannelConfig, Deposit, Network};

/// The most bytes of a [`PayerSignature`]: fifteen owners of a Safe. Records and frames that hold
/// one stay below their limits.
pub const MAX_PAYER_SIGNATURE: usize = 1024;

/// Bytes with which a payer consents to a deposit. What they mean is the payer's: an account
/// without code must have made a canonical ECDSA signature, one with code is asked whether it
/// takes them (EIP-1271). The token decides the same way; the account never has both ways.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct PayerSignature(Bytes);

/// The bytes are more than a payer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a payer's signature of {0} bytes; at most {MAX_PAYER_SIGNATURE} are taken")]
pub struct TooLong(pub usize);

impl PayerSignature {
    /// These bytes, unchecked but for their number.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(bytes: Bytes) -> Result<Self, TooLong> {
        if bytes.len() > MAX_PAYER_SIGNATURE {
            return Err(TooLong(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// The bytes as the contract's `bytes` argument.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes as a plain key's signature, if they have its length.
    #[must_use]
    pub fn ecdsa(&self) -> Option<EvmSignature> {
        let bytes: [u8; 65] = self.0.as_ref().try_into().ok()?;
        Some(EvmSignature::from_bytes(bytes))
    }
}

impl From<EvmSignature> for PayerSignature {
    fn from(signature: EvmSignature) -> Self {
        Self(signature.to_bytes())
    }
}

impl fmt::Debug for PayerSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PayerSignature({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for PayerSignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Bytes::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Deposit {
    /// The authorization as `eth_signTypedData_v4` takes it: for a wallet elsewhere, a hardware
    /// one or the owners of a contract. What it signs is [`Deposit::digest`].
    #[must_use]
    pub fn typed_data(&self, config: &ChannelConfig, network: &Network) -> Value {
        let field = |(name, kind): &(&str, &str)| json!({ "name": name, "type": kind });
        let fields = |list: &[(&str, &str)]| list.iter().map(field).collect::<Vec<_>>();
        let message = self.authorization(config, network);
        json!({
            "types": {
                "EIP712Domain": fields(&[
                    ("name", "string"),
                    ("version", "string"),
                    ("chainId", "uint256"),
                    ("verifyingContract", "address"),
                ]),
                "ReceiveWithAuthorization": fields(&[
                    ("from", "address"),
                    ("to", "address"),
                    ("value", "uint256"),
                    ("validAfter", "uint256"),
                    ("validBefore", "uint256"),
                    ("nonce", "bytes32"),
                ]),
            },
            "primaryType": "ReceiveWithAuthorization",
            "domain": {
                "name": network.token_name,
                "version": network.token_version,
                "chainId": network.chain_id,
                "verifyingContract": network.token,
            },
            "message": {
                "from": message.from,
                "to": message.to,
                "value": message.value.to_string(),
                "validAfter": message.validAfter.to_string(),
                "validBefore": message.validBefore.to_string(),
                "nonce": message.nonce,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_payers_signature_has_a_limit_in_both_forms() {
        let most = PayerSignature::new(vec![7; MAX_PAYER_SIGNATURE].into()).expect("fits");
        let bytes = codec::encode(&most).expect("encodes");
        assert_eq!(codec::decode(&bytes, codec::RECORD_LIMIT), Ok(most.clone()));
        let json = serde_json::to_string(&most).expect("writes");
        assert_eq!(
            serde_json::from_str::<PayerSignature>(&json).ok(),
            Some(most)
        );

        let over: Bytes = vec![7; MAX_PAYER_SIGNATURE + 1].into();
        assert_eq!(
            PayerSignature::new(over.clone()),
            Err(TooLong(MAX_PAYER_SIGNATURE + 1))
        );
        let bytes = codec::encode(&over).expect("encodes");
        assert!(codec::decode::<PayerSignature>(&bytes, codec::RECORD_LIMIT).is_err());
        let json = serde_json::to_string(&over).expect("writes");
        assert!(serde_json::from_str::<PayerSignature>(&json).is_err());
    }

    #[test]
    fn a_keys_signature_keeps_its_bytes_and_does_not_print() {
        let signature = EvmSignature::from_bytes([0xab; 65]);
        let wide = PayerSignature::from(signature);
        assert_eq!(wide.ecdsa(), Some(signature));
        assert_eq!(codec::encode(&wide), codec::encode(&signature));
        assert!(!format!("{wide:?}").contains("abab"));
        let short = PayerSignature::new(vec![1; 64].into()).expect("fits");
        assert_eq!(short.ecdsa(), None);
    }
}
