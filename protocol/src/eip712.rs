//! EIP-712 typed signatures over secp256k1: [`Signed`] becomes [`Verified`] only by checking.
//!
//! A signature is accepted only in the one form the settlement contract accepts: 65 bytes
//! `r ‖ s ‖ v`, `s` in the lower half of the order, `v` 27 or 28 (OpenZeppelin `ECDSA`). Anything
//! looser would let a buyer pay with vouchers that can never be claimed.

use std::fmt;
use std::ops::Deref;
use std::sync::LazyLock;

use alloy::primitives::{Address, B256, Bytes, FixedBytes, keccak256};
use alloy::sol_types::{Eip712Domain, SolStruct};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey};
use serde::{Deserialize, Serialize};

static CURVE: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// Half the order of secp256k1: the largest `s` a canonical signature may have (EIP-2).
const HALF_ORDER: [u8; 32] =
    alloy::hex!("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0");

/// Why a typed signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The recovery byte is not 27 or 28, so the contract would revert.
    #[error("recovery byte {0}, but only 27 and 28 are canonical")]
    RecoveryByte(u8),
    /// `s` is in the upper half of the order: the malleable twin of a canonical signature.
    #[error("the signature's s is in the upper half of the curve order (malleable)")]
    HighS,
    /// The numbers are not a signature of anything.
    #[error("the bytes are not a point on the curve")]
    Invalid,
    /// A valid signature, but by somebody else (or over something else).
    #[error("signed by {got}, expected {expected}")]
    WrongSigner {
        /// Who should have signed.
        expected: Address,
        /// Who did, if these are the signed bytes.
        got: Address,
    },
}

/// The bytes are not a secret key of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a secp256k1 secret key: zero or beyond the curve order")]
pub struct InvalidKey;

/// 65 bytes that claim to be a signature; checked only by [`EvmSignature::recover`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EvmSignature(FixedBytes<65>);

impl EvmSignature {
    /// These bytes, unchecked.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 65]) -> Self {
        Self(FixedBytes(bytes))
    }

    /// `r ‖ s ‖ v`.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 65] {
        &self.0.0
    }

    /// The bytes as the contract's `bytes` argument.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_slice())
    }

    /// The address that signed `hash`, if the signature is canonical.
    ///
    /// # Errors
    /// Any [`SignatureError`] but [`SignatureError::WrongSigner`].
    pub fn recover(&self, hash: B256) -> Result<Address, SignatureError> {
        let bytes = self.as_bytes();
        let id = match bytes[64] {
            27 => RecoveryId::Zero,
            28 => RecoveryId::One,
            other => return Err(SignatureError::RecoveryByte(other)),
        };
        if bytes[32..64] > HALF_ORDER[..] {
            return Err(SignatureError::HighS);
        }
        let signature = RecoverableSignature::from_compact(&bytes[..64], id)
            .map_err(|_| SignatureError::Invalid)?;
        let key = CURVE
            .recover_ecdsa(&Message::from_digest(hash.0), &signature)
            .map_err(|_| SignatureError::Invalid)?;
        Ok(address_of(&key))
    }
}

impl fmt::Debug for EvmSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EvmSignature({}…)", alloy::hex::encode(&self.0[..4]))
    }
}

fn address_of(key: &PublicKey) -> Address {
    Address::from_slice(&keccak256(&key.serialize_uncompressed()[1..])[12..])
}

/// A secret secp256k1 key. Never printed.
#[derive(Clone)]
pub struct EvmKey {
    secret: SecretKey,
    address: Address,
}

impl EvmKey {
    /// The key with these secret bytes.
    ///
    /// # Errors
    /// [`InvalidKey`] for zero and numbers beyond the curve order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, InvalidKey> {
        let secret = SecretKey::from_byte_array(bytes).map_err(|_| InvalidKey)?;
        Ok(Self {
            address: address_of(&secret.public_key(&CURVE)),
            secret,
        })
    }

    /// The secret bytes, for the key file and the transaction signer.
    #[must_use]
    pub fn secret(&self) -> [u8; 32] {
        self.secret.secret_bytes()
    }

    /// The address of this key.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Signs a hash: deterministic (RFC 6979) and canonical.
    #[must_use]
    pub fn sign_hash(&self, hash: B256) -> EvmSignature {
        let signature = CURVE.sign_ecdsa_recoverable(&Message::from_digest(hash.0), &self.secret);
        let (id, compact) = signature.serialize_compact();
        let mut bytes = [0_u8; 65];
        bytes[..64].copy_from_slice(&compact);
        // Ids 2 and 3 need r ≥ the field order minus the group order: odds of 2^-127.
        bytes[64] = if id == RecoveryId::Zero { 27 } else { 28 };
        EvmSignature::from_bytes(bytes)
    }
}

impl fmt::Debug for EvmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EvmKey({}, secret)", self.address)
    }
}

/// A signing domain with its separator computed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    separator: B256,
}

impl Domain {
    /// The domain of a contract on a chain.
    #[must_use]
    pub fn new(name: &str, version: &str, chain_id: u64, contract: Address) -> Self {
        let domain = Eip712Domain::new(
            Some(name.to_owned().into()),
            Some(version.to_owned().into()),
            Some(alloy::primitives::U256::from(chain_id)),
            Some(contract),
            None,
        );
        Self {
            separator: domain.separator(),
        }
    }

    /// The domain of words that belong to no contract.
    #[must_use]
    pub fn without_contract(name: &str, version: &str, chain_id: u64) -> Self {
        let domain = Eip712Domain::new(
            Some(name.to_owned().into()),
            Some(version.to_owned().into()),
            Some(alloy::primitives::U256::from(chain_id)),
            None,
            None,
        );
        Self {
            separator: domain.separator(),
        }
    }

    /// The domain of a contract that names no version.
    #[must_use]
    pub fn unversioned(name: &str, chain_id: u64, contract: Address) -> Self {
        let domain = Eip712Domain::new(
            Some(name.to_owned().into()),
            None,
            Some(alloy::primitives::U256::from(chain_id)),
            Some(contract),
            None,
        );
        Self {
            separator: domain.separator(),
        }
    }

    /// The separator: what a contract's `DOMAIN_SEPARATOR()` must answer.
    #[must_use]
    pub const fn separator(&self) -> B256 {
        self.separator
    }

    /// The hash that is signed: `keccak256(0x1901 ‖ separator ‖ hashStruct(message))`.
    #[must_use]
    pub fn hash<T: SolStruct>(&self, message: &T) -> B256 {
        let mut bytes = [0_u8; 66];
        bytes[0] = 0x19;
        bytes[1] = 0x01;
        bytes[2..34].copy_from_slice(self.separator.as_slice());
        bytes[34..].copy_from_slice(message.eip712_hash_struct().as_slice());
        keccak256(bytes)
    }
}

/// What can be signed under EIP-712: it has a Solidity form.
pub trait Typed {
    /// The Solidity struct that is hashed.
    type Sol: SolStruct;
    /// This value as that struct.
    fn to_sol(&self) -> Self::Sol;
}

/// A message with a signature nobody has checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// What is claimed to be signed.
    pub message: T,
    /// The claimed signature.
    pub signature: EvmSignature,
}

impl<T: Typed> Signed<T> {
    /// Signs a message. Outside tests, money is signed only by the client's `wallet.rs`.
    #[must_use]
    pub fn sign(message: T, domain: &Domain, key: &EvmKey) -> Self {
        let signature = key.sign_hash(domain.hash(&message.to_sol()));
        Self { message, signature }
    }

    /// The message as verified, if `signer` signed it canonically in this domain.
    ///
    /// # Errors
    /// Any [`SignatureError`].
    pub fn verify(self, domain: &Domain, signer: Address) -> Result<Verified<T>, SignatureError> {
        let got = self
            .signature
            .recover(domain.hash(&self.message.to_sol()))?;
        if got != signer {
            return Err(SignatureError::WrongSigner {
                expected: signer,
                got,
            });
        }
        Ok(Verified(self))
    }
}

/// A signed message whose signature has been checked: the only way here is [`Signed::verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified<T>(Signed<T>);

impl<T> Verified<T> {
    /// The message together with its signature, for storing and sending.
    pub fn into_signed(self) -> Signed<T> {
        self.0
    }

    /// The signature.
    pub const fn signature(&self) -> &EvmSignature {
        &self.0.signature
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.message
    }
}
