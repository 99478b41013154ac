//! The buyer's promise: "on this channel you may claim up to this much, in total".
//!
//! Vouchers are cumulative: a newer one replaces all older ones, and sending one twice is
//! harmless. Source: x402 `batch-settlement`, struct `Voucher`.

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::eip712::{Signed, Typed};
use crate::x402::ChannelId;

mod sol_types {
    alloy::sol! {
        struct Voucher {
            bytes32 channelId;
            uint128 maxClaimableAmount;
        }
    }
}

/// The ceiling of what a seller may claim on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// The channel.
    pub channel: ChannelId,
    /// `maxClaimableAmount`: everything ever claimed on the channel stays at or below it.
    pub ceiling: Amount,
}

impl Typed for Voucher {
    type Sol = sol_types::Voucher;

    fn to_sol(&self) -> Self::Sol {
        sol_types::Voucher {
            channelId: self.channel.0,
            maxClaimableAmount: self.ceiling.get(),
        }
    }
}

/// A voucher with the signature of the channel's `payerAuthorizer`.
pub type SignedVoucher = Signed<Voucher>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eip712::{EvmKey, EvmSignature, SignatureError};
    use crate::x402::{COLLECTOR, ChannelConfig, Network, SETTLEMENT};
    use alloy::primitives::{B256, address, hex};

    fn network() -> Network {
        Network {
            chain_id: 31337,
            settlement: SETTLEMENT,
            collector: COLLECTOR,
            token: address!("dc64a140aa3e981100a9beca4e685f962f0cf6c9"),
            token_name: "USDC".into(),
            token_version: "2".into(),
        }
    }

    fn config() -> ChannelConfig {
        ChannelConfig {
            payer: address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
            payer_authorizer: address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
            receiver: address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
            receiver_authorizer: address!("90F79bf6EB2c4f870365E785982E1f101E93b906"),
            token: network().token,
            withdraw_delay: 900,
            salt: B256::ZERO,
        }
    }

    /// Anvil's well-known second account.
    fn key() -> EvmKey {
        let secret = hex!("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d");
        EvmKey::from_bytes(&secret).expect("a valid key")
    }

    fn signed() -> SignedVoucher {
        let voucher = Voucher {
            channel: config().id(&network()),
            ceiling: Amount::atoms(7200),
        };
        Signed::sign(voucher, &network().domain(), &key())
    }

    #[test]
    fn the_published_x402_vector_is_reproduced() {
        assert_eq!(
            config().id(&network()).to_string(),
            "0xc3f5533449838f80bf54ba83c6d297fe6acb726f0b84f73461ad2d3d4bf549f5"
        );
        let expected = hex!(
            "214e42cdc27fba213f8f1341a6a02e3e5e21b0466c28c0fa292d4871dd6fd2fb676fd24c204e8f2e1fe9b93c770790cef7291772f5e320415e414542522548301c"
        );
        assert_eq!(signed().signature.as_bytes(), &expected);
        assert!(
            signed()
                .verify(&network().domain(), key().address())
                .is_ok()
        );
    }

    #[test]
    fn a_malleable_or_odd_signature_is_refused_although_it_recovers() {
        use alloy::primitives::U256;
        let order = U256::from_be_bytes(hex!(
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
        ));
        let mut twin = *signed().signature.as_bytes();
        let s = U256::from_be_slice(&twin[32..64]);
        twin[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
        twin[64] = 55 - twin[64];
        let refused = |bytes| {
            Signed {
                signature: EvmSignature::from_bytes(bytes),
                ..signed()
            }
            .verify(&network().domain(), key().address())
        };
        assert_eq!(refused(twin), Err(SignatureError::HighS));
        let mut odd = *signed().signature.as_bytes();
        odd[64] -= 27;
        assert_eq!(refused(odd), Err(SignatureError::RecoveryByte(1)));
        assert_eq!(refused([0; 65]), Err(SignatureError::RecoveryByte(0)));
    }

    #[test]
    fn a_voucher_of_another_chain_channel_or_amount_is_not_this_one() {
        let wrong = |signed: SignedVoucher, network: Network| {
            matches!(
                signed.verify(&network.domain(), key().address()),
                Err(SignatureError::WrongSigner { .. })
            )
        };
        assert!(wrong(
            signed(),
            Network {
                chain_id: 1,
                ..network()
            }
        ));
        let mut more = signed();
        more.message.ceiling = Amount::atoms(7201);
        assert!(wrong(more, network()));
        let mut elsewhere = signed();
        elsewhere.message.channel = ChannelId(B256::ZERO);
        assert!(wrong(elsewhere, network()));
    }
}
