//! Fixed keys and sample messages, the same in every test and vector.

use std::time::Duration;

use alloy::primitives::{Address, B256, address};

use crate::amount::{Amount, Price};
use crate::clock::Timestamp;
use crate::eip712::{EvmKey, EvmSignature};
use crate::identity::NodeKey;
use crate::offer::OfferHash;
use crate::offer::{ModelOffer, Offer, Prices, SellerBinding, SignedOffer};
use crate::purchase::{Ending, Endpoint, RequestId, Usage};
use crate::receipt::{Receipt, model_hash};
use crate::testimony::{Line, SignedTestimony, Testimony};
use crate::x402::{COLLECTOR, ChannelConfig, Network, SETTLEMENT};

/// A local network: anvil's chain id, the canonical contract addresses, a test token.
#[must_use]
pub fn network() -> Network {
    Network {
        chain_id: 31337,
        settlement: SETTLEMENT,
        collector: COLLECTOR,
        token: address!("dc64a140aa3e981100a9beca4e685f962f0cf6c9"),
        token_name: "USDC".into(),
        token_version: "2".into(),
    }
}

/// A local network dressed as Base Sepolia: its chain id, and the test token where it has its
/// USDC. So a stock x402 client pays there without being told of either.
#[must_use]
pub fn base_sepolia() -> Network {
    Network {
        chain_id: 84532,
        token: address!("036CbD53842c5426634e7929541eC2318f3dCF7e"),
        ..network()
    }
}

/// The node key of the `n`th seller or buyer.
#[must_use]
pub fn node_key(n: u8) -> NodeKey {
    NodeKey::from_seed(&[n.max(1); 32])
}

/// The `n`th payment key.
///
/// # Panics
/// Never: every repeated non-zero byte is a key of the curve.
#[must_use]
pub fn evm_key(n: u8) -> EvmKey {
    EvmKey::from_bytes(&[n.clamp(1, 0xfe); 32]).expect("a repeated byte is below the order")
}

/// A payout address nobody has a key for.
#[must_use]
pub fn payout() -> Address {
    Address::repeat_byte(0x77)
}

/// A model at half a dollar per million output tokens.
#[must_use]
pub fn model() -> ModelOffer {
    ModelOffer {
        id: "test/model".into(),
        endpoints: vec![Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings],
        features: vec!["tools".into()],
        context: 4096,
        max_output: 1024,
        quantization: Some("q4_1".into()),
        weights_digest: None,
        prices: Prices {
            input: Price(100_000),
            cached_input: Price(50_000),
            output: Price(500_000),
            request: Price(0),
        },
        slots: 8,
    }
}

/// The offer of seller `n`, valid for ten minutes from `now`.
#[must_use]
pub fn offer_of(n: u8, seq: u64, now: Timestamp) -> Offer {
    let claim = evm_key(n);
    let binding = SellerBinding {
        node: node_key(n).id(),
        payout: payout(),
        claim: claim.address(),
    };
    Offer {
        seller: node_key(n).id(),
        seq,
        issued: now,
        expires: now.plus(Duration::from_secs(600)),
        chain_id: network().chain_id,
        settlement: network().settlement,
        token: network().token,
        payout: payout(),
        claim: claim.address(),
        withdraw_delay: 86_400,
        min_deposit: Amount::atoms(1000),
        models: vec![model()],
        region: Some("eu".into()),
        data_policy: Some("none".into()),
        addresses: vec!["/ip4/127.0.0.1/udp/4001/quic-v1".into()],
        binding: binding.sign(&network(), &claim),
    }
}

/// The signed offer of seller 1.
#[must_use]
pub fn signed_offer(seq: u64, now: Timestamp) -> SignedOffer {
    signed_offer_of(1, seq, now)
}

/// The signed offer of seller `n`.
///
/// # Panics
/// Never: the sample is within all limits.
#[must_use]
pub fn signed_offer_of(n: u8, seq: u64, now: Timestamp) -> SignedOffer {
    SignedOffer::sign(&offer_of(n, seq, now), &node_key(n)).expect("the sample offer is small")
}

/// A channel from payer 9 (authorizer 8) to seller 1.
#[must_use]
pub fn channel_config() -> ChannelConfig {
    ChannelConfig {
        payer: evm_key(9).address(),
        payer_authorizer: evm_key(8).address(),
        receiver: payout(),
        receiver_authorizer: evm_key(1).address(),
        token: network().token,
        withdraw_delay: 86_400,
        salt: B256::ZERO,
    }
}

/// What the holder of key `n` says of seller 1 at `now`, over the channel from payer 9 that it
/// signs for: nine of ten purchases of the sample model went well.
#[must_use]
pub fn testimony(n: u8, now: Timestamp) -> SignedTestimony {
    let config = ChannelConfig {
        payer_authorizer: evm_key(n).address(),
        ..channel_config()
    };
    testimony_of(1, config, n, now)
}

/// The same of seller `seller`, over a channel on these terms.
#[must_use]
pub fn testimony_of(
    seller: u8,
    config: ChannelConfig,
    witness: u8,
    now: Timestamp,
) -> SignedTestimony {
    let (network, seller) = (network(), node_key(seller));
    let channel = config.id(&network);
    let model = model_hash(&model().id);
    let receipt = Receipt {
        channel,
        seq: 9,
        request: RequestId(B256::repeat_byte(5)),
        request_hash: B256::repeat_byte(6),
        response_hash: B256::repeat_byte(7),
        model_hash: model,
        offer: OfferHash(B256::repeat_byte(8)),
        usage: Usage::default(),
        charged: Amount::atoms(100),
        cumulative: Amount::atoms(1000),
        started: now,
        finished: now,
        ending: Ending::Complete,
    };
    let line = Line {
        model,
        served: 9,
        failed: 1,
        broken: 0,
        disputed: 0,
        invalid: 0,
        charged: Amount::atoms(1000),
    };
    let said = Testimony {
        channel,
        seller: seller.id(),
        since: Timestamp(now.0.saturating_sub(3_600_000)),
        until: now,
        lines: vec![line],
    };
    SignedTestimony::sign(
        said,
        config,
        receipt.sign(&seller),
        (&network, &evm_key(witness)),
    )
}

/// A signature of nothing, where a test needs the shape only.
#[must_use]
pub const fn blank_signature() -> EvmSignature {
    EvmSignature::from_bytes([0; 65])
}
