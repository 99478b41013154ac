//! A seller's signed, expiring statement of models, prices and limits.
//!
//! The signed bytes are JSON, so that unknown fields pass through older programs, and they
//! travel as they were signed. An offer is trusted only as a [`VerifiedOffer`]: in time, on this
//! network, signed by the seller's node key and, over the node's id, by its claim key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, keccak256};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::amount::{Amount, Price};
use crate::clock::Timestamp;
use crate::eip712::{Domain, EvmKey, EvmSignature, SignatureError, Signed, Typed};
use crate::identity::{BadSignature, KnownNode, Label, NodeId, NodeKey, NodeSignature};
use crate::x402::{Network, WITHDRAW_DELAY};

/// The longest an offer may be valid.
pub const MAX_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// The most bytes a signed offer may have.
pub const MAX_BYTES: usize = 16 * 1024;
/// How far a seller's clock may be ahead of ours.
pub const MAX_SKEW: Duration = Duration::from_secs(60);
/// The most models in one offer.
pub const MAX_MODELS: usize = 64;
/// The most addresses in one offer.
pub const MAX_ADDRESSES: usize = 16;
/// The longest model id, region or address, in bytes.
pub const MAX_TEXT: usize = 256;

/// The feature of a model server that takes an assistant's message at the end of a chat as the
/// beginning of its own answer, and streams what follows it and nothing else.
pub const ASSISTANT_PREFIX: &str = "assistant_prefix";

/// An offer's name: keccak-256 of its signed bytes. Asks and receipts carry it, so a price
/// cannot move underneath a purchase.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OfferHash(pub B256);

impl fmt::Debug for OfferHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OfferHash({})", alloy::hex::encode(&self.0[..4]))
    }
}

impl fmt::Display for OfferHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which of the OpenAI endpoints is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/moderations`
    Moderations,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Moderations,
    ];

    /// Whether its answers are text that the model writes. The others judge or measure the prompt:
    /// one document, no tokens of an answer.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// The path below an OpenAI-compatible base URL (which ends in `/v1`).
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Moderations => "/moderations",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Moderations => "moderations",
        })
    }
}

fn known<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<Endpoint>, D::Error> {
    let names = Vec::<String>::deserialize(names)?;
    let known = |name: &String| Endpoint::ALL.into_iter().find(|it| it.to_string() == *name);
    Ok(names.iter().filter_map(known).collect())
}

/// Prices in micro-atoms ([`Price`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Prices {
    /// Per prompt token.
    pub input: Price,
    /// Per prompt token served from a cache.
    pub cached_input: Price,
    /// Per token of the answer.
    pub output: Price,
    /// Per request.
    #[serde(default)]
    pub request: Price,
}

/// One model on offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    /// `author/name`.
    pub id: String,
    /// Where it can be bought. Those that only a later version knows are passed over.
    #[serde(deserialize_with = "known")]
    pub endpoints: Vec<Endpoint>,
    /// What it can do beyond text (`tools`, `json_schema`, `vision`, [`ASSISTANT_PREFIX`], …).
    #[serde(default)]
    pub features: Vec<String>,
    /// Tokens of prompt and answer together.
    pub context: u32,
    /// The most tokens of one answer.
    pub max_output: u32,
    /// As the operator states it (`q4_1`, `bf16`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Digest of the weights, if stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_digest: Option<String>,
    /// What it costs.
    pub prices: Prices,
    /// Purchases served at once.
    pub slots: u32,
}

/// What a seller states. All fields are claims of the seller, none is proven by the signature
/// but that the seller made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The seller's node.
    pub seller: NodeId,
    /// Only ever rising: an older offer cannot come back.
    pub seq: u64,
    /// When it was signed (milliseconds since the epoch).
    pub issued: Timestamp,
    /// When it ends; at most [`MAX_LIFETIME`] after `issued`.
    pub expires: Timestamp,
    /// The chain it is paid on.
    pub chain_id: u64,
    /// The settlement contract.
    pub settlement: Address,
    /// The payment token.
    pub token: Address,
    /// `receiver` of channels with this seller.
    pub payout: Address,
    /// `receiverAuthorizer` of channels with this seller.
    pub claim: Address,
    /// Seconds of withdraw delay the seller requires.
    pub withdraw_delay: u64,
    /// The smallest first deposit the seller submits (it pays the gas).
    pub min_deposit: Amount,
    /// The models.
    pub models: Vec<ModelOffer>,
    /// Where the seller says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// What the seller says it does with prompts (`none`, `logs`, `trains`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_policy: Option<String>,
    /// Multiaddresses at which the node can be reached.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The claim key's signature over the node's id: neither can be borrowed.
    pub binding: EvmSignature,
}

impl Offer {
    /// The model with this id.
    #[must_use]
    pub fn model(&self, id: &str) -> Option<&ModelOffer> {
        self.models.iter().find(|model| model.id == id)
    }
}

mod sol_types {
    alloy::sol! {
        struct SellerBinding {
            bytes32 node;
            address payout;
            address claim;
        }
    }
}

/// What the claim key signs: "this node sells for me, and pays out there".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SellerBinding {
    /// The node's ed25519 public key.
    pub node: NodeId,
    /// The payout address.
    pub payout: Address,
    /// The claim key's address.
    pub claim: Address,
}

impl SellerBinding {
    /// The domain in which it is signed.
    #[must_use]
    pub fn domain(network: &Network) -> Domain {
        Domain::new("Farthing", "1", network.chain_id, network.settlement)
    }

    /// Signs the binding with the claim key.
    #[must_use]
    pub fn sign(self, network: &Network, key: &EvmKey) -> EvmSignature {
        Signed::sign(self, &Self::domain(network), key).signature
    }
}

impl Typed for SellerBinding {
    type Sol = sol_types::SellerBinding;

    fn to_sol(&self) -> Self::Sol {
        sol_types::SellerBinding {
            node: B256::from(*self.node.as_bytes()),
            payout: self.payout,
            claim: self.claim,
        }
    }
}

/// An offer as it travels: the signed JSON bytes and the node's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOffer {
    /// The JSON bytes of an [`Offer`].
    pub offer: Bytes,
    /// The node's signature over them.
    pub signature: NodeSignature,
}

/// Why an offer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// Over [`MAX_BYTES`], or over one of the limits within.
    #[error("the offer breaks a size limit: {0}")]
    TooLarge(&'static str),
    /// Not the JSON of an offer.
    #[error("malformed offer: {0}")]
    Malformed(String),
    /// The node did not sign these bytes.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// The claim key did not sign this node's binding.
    #[error("the claim key did not sign for this node: {0}")]
    Binding(#[from] SignatureError),
    /// For another chain, contract or token.
    #[error("the offer is for another network")]
    OtherNetwork,
    /// Past its end.
    #[error("the offer has expired")]
    Expired,
    /// From the future, or valid for too long.
    #[error("the offer's times are not plausible")]
    Times,
    /// A value the contract or the protocol does not allow.
    #[error("the offer's {0} is not allowed")]
    Value(&'static str),
}

impl SignedOffer {
    /// Signs an offer with the seller's node key.
    ///
    /// # Errors
    /// [`OfferError::Malformed`] when it cannot be written as JSON, [`OfferError::TooLarge`].
    pub fn sign(offer: &Offer, key: &NodeKey) -> Result<Self, OfferError> {
        let json = serde_json::to_vec(offer).map_err(|e| OfferError::Malformed(e.to_string()))?;
        if json.len() > MAX_BYTES {
            return Err(OfferError::TooLarge("bytes"));
        }
        Ok(Self {
            signature: key.sign(Label::Offer, &json),
            offer: Bytes::from(json),
        })
    }

    /// Checks everything about an offer that can be checked without its history.
    ///
    /// # Errors
    /// Any [`OfferError`]; the cheapest check comes first.
    pub fn verify(self, network: &Network, now: Timestamp) -> Result<VerifiedOffer, OfferError> {
        if self.offer.len() > MAX_BYTES {
            return Err(OfferError::TooLarge("bytes"));
        }
        let offer: Offer = serde_json::from_slice(&self.offer)
            .map_err(|e| OfferError::Malformed(e.to_string()))?;
        check_times(&offer, now)?;
        check_limits(&offer)?;
        check_values(&offer, network)?;
        offer
            .seller
            .verify(Label::Offer, &self.offer, &self.signature)?;
        let binding = SellerBinding {
            node: offer.seller,
            payout: offer.payout,
            claim: offer.claim,
        };
        Signed {
            message: binding,
            signature: offer.binding,
        }
        .verify(&SellerBinding::domain(network), offer.claim)?;
        let hash = OfferHash(keccak256(&self.offer));
        Ok(VerifiedOffer {
            signer: Arc::new(KnownNode::new(offer.seller)),
            offer,
            hash,
            signed: self,
        })
    }
}

fn check_times(offer: &Offer, now: Timestamp) -> Result<(), OfferError> {
    if offer.expires <= now {
        return Err(OfferError::Expired);
    }
    let from_the_future = offer.issued > now.plus(MAX_SKEW);
    if from_the_future || offer.expires > offer.issued.plus(MAX_LIFETIME) {
        return Err(OfferError::Times);
    }
    Ok(())
}

fn check_limits(offer: &Offer) -> Result<(), OfferError> {
    if offer.models.is_empty() || offer.models.len() > MAX_MODELS {
        return Err(OfferError::TooLarge("number of models"));
    }
    if offer.addresses.len() > MAX_ADDRESSES {
        return Err(OfferError::TooLarge("number of addresses"));
    }
    let texts = offer
        .models
        .iter()
        .map(|model| &model.id)
        .chain(&offer.addresses);
    let texts = texts.chain(&offer.region).chain(&offer.data_policy);
    if texts
        .into_iter()
        .any(|text| text.is_empty() || text.len() > MAX_TEXT)
    {
        return Err(OfferError::TooLarge("a text"));
    }
    Ok(())
}

fn check_values(offer: &Offer, network: &Network) -> Result<(), OfferError> {
    let here = offer.chain_id == network.chain_id
        && offer.settlement == network.settlement
        && offer.token == network.token;
    if !here {
        return Err(OfferError::OtherNetwork);
    }
    if offer.payout.is_zero() || offer.claim.is_zero() {
        return Err(OfferError::Value("payout or claim address"));
    }
    if !WITHDRAW_DELAY.contains(&offer.withdraw_delay) {
        return Err(OfferError::Value("withdraw delay"));
    }
    let bad_model =
        |model: &ModelOffer| model.context == 0 || model.max_output == 0 || model.slots == 0;
    if offer.models.iter().any(bad_model) {
        return Err(OfferError::Value(
            "context, output limit or number of slots",
        ));
    }
    Ok(())
}

/// An offer that was checked by [`SignedOffer::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedOffer {
    offer: Offer,
    hash: OfferHash,
    signed: SignedOffer,
    signer: Arc<KnownNode>,
}

impl VerifiedOffer {
    /// What the seller states.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The offer's name.
    #[must_use]
    pub const fn hash(&self) -> OfferHash {
        self.hash
    }

    /// The seller, whose receipts are to be checked too.
    #[must_use]
    pub fn signer(&self) -> &KnownNode {
        &self.signer
    }

    /// The bytes as signed, for passing on.
    #[must_use]
    pub const fn signed(&self) -> &SignedOffer {
        &self.signed
    }
}
