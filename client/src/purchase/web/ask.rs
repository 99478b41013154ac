//! What a seller asks for in its 402, checked against what we pay with, and the payment made of it.

use alloy::primitives::Address;
use farthing_protocol::amount::Amount;
use farthing_protocol::payment::scheme;
use farthing_protocol::payment::{
    Batch, BatchDeposit, BatchExtra, BatchRefund, BatchVoucher, Caip2, PaymentPayload,
    PaymentRequired, PaymentRequirements, VERSION, WireConfig,
};
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, Deposit, Network, WITHDRAW_DELAY};
use serde_json::Value;

/// The longest we let a seller keep a withdrawal waiting.
const MAX_DELAY: u64 = 7 * 86_400;

/// A way to pay that we take: `batch-settlement` on our own network.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::purchase) struct Way {
    pub(in crate::purchase) requirements: PaymentRequirements,
    pub(in crate::purchase) extra: BatchExtra,
    pub(in crate::purchase) required: PaymentRequired,
}

/// Why a 402 cannot be paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpayable {
    /// Not on our network or not by channel.
    #[error("it takes neither batch-settlement nor upto nor exact on our chain and in our token")]
    NoWay,
    /// More than the purchase may cost, or than its stated prices make.
    #[error("it asks for {amount} atoms, {allowed} at most are paid")]
    Dear {
        /// What it asks for.
        amount: Amount,
        /// What we pay.
        allowed: Amount,
    },
    /// Permit2 may not move the payer's tokens, and `upto` is the only way.
    #[error(
        "it takes `upto` only, for which the payer {payer} must once allow Permit2 to move {amount} atoms or more of its tokens: `farthing wallet permit2` does it at the payer's gas; it is a call approve({permit2}, atoms) of the token {token}"
    )]
    Allowance {
        /// Whose tokens.
        payer: Address,
        /// Which.
        token: Address,
        /// Who moves them.
        permit2: Address,
        /// What this purchase needs, in atoms.
        amount: Amount,
    },
    /// Terms we do not sign.
    #[error("it asks for terms we do not sign: {0}")]
    Terms(&'static str),
}

impl Way {
    /// The way to pay in a 402, if it names only contracts that we pinned.
    pub(in crate::purchase) fn of(
        required: &PaymentRequired,
        network: &Network,
    ) -> Result<Self, Unpayable> {
        let ours = |way: &&PaymentRequirements| {
            way.scheme == scheme::BATCH
                && way.network == Caip2(network.chain_id)
                && way.asset == network.token
        };
        let found = required.accepts.iter().find(ours).cloned();
        let requirements = found.ok_or(Unpayable::NoWay)?;
        let extra = Value::Object(requirements.extra.clone());
        let extra: BatchExtra =
            serde_json::from_value(extra).map_err(|_| Unpayable::Terms("extra"))?;
        let checks = [
            ("payTo", !requirements.pay_to.is_zero()),
            ("receiverAuthorizer", !extra.receiver_authorizer.is_zero()),
            (
                "withdrawDelay",
                WITHDRAW_DELAY.contains(&extra.withdraw_delay) && extra.withdraw_delay <= MAX_DELAY,
            ),
            ("name", extra.name == network.token_name),
            ("version", extra.version == network.token_version),
        ];
        match checks.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(Unpayable::Terms(what)),
            None => Ok(Self {
                requirements,
                extra,
                required: required.clone(),
            }),
        }
    }

    /// What is asked for.
    pub(in crate::purchase) const fn amount(&self) -> Amount {
        self.requirements.amount
    }

    /// Whether the same parties are to be paid on the same terms, at whatever price.
    pub(in crate::purchase) fn same_seller(&self, other: &Self) -> bool {
        self.requirements.pay_to == other.requirements.pay_to
            && self.extra.receiver_authorizer == other.extra.receiver_authorizer
            && self.extra.withdraw_delay == other.extra.withdraw_delay
    }

    /// The channel's terms, on a lane.
    pub(in crate::purchase) fn config(
        &self,
        payer: Address,
        payer_authorizer: Address,
        salt: alloy::primitives::B256,
    ) -> ChannelConfig {
        ChannelConfig {
            payer,
            payer_authorizer,
            receiver: self.requirements.pay_to,
            receiver_authorizer: self.extra.receiver_authorizer,
            token: self.requirements.asset,
            withdraw_delay: self.extra.withdraw_delay,
            salt,
        }
    }

    /// The payment, with a deposit if one is due.
    pub(in crate::purchase) fn payload(
        &self,
        config: ChannelConfig,
        voucher: &SignedVoucher,
        deposit: Option<&Deposit>,
    ) -> PaymentPayload {
        let channel_config = WireConfig(config);
        let voucher = voucher.into();
        self.made(match deposit {
            None => Batch::Voucher(BatchVoucher {
                channel_config,
                voucher,
            }),
            Some(deposit) => Batch::Deposit(BatchDeposit {
                channel_config,
                voucher,
                deposit: deposit.into(),
            }),
        })
    }

    /// The wish to have the rest of a channel back.
    pub(in crate::purchase) fn refund(
        &self,
        config: ChannelConfig,
        voucher: &SignedVoucher,
    ) -> PaymentPayload {
        self.made(Batch::Refund(BatchRefund {
            channel_config: WireConfig(config),
            voucher: voucher.into(),
            amount: None,
        }))
    }

    fn made(&self, batch: Batch) -> PaymentPayload {
        // What a seller wrote into `extra` about the channel's state is not ours to echo.
        let mut accepted = self.requirements.clone();
        accepted.extra.remove("channelState");
        accepted.extra.remove("voucherState");
        PaymentPayload {
            x402_version: VERSION,
            resource: Some(self.required.resource.clone()),
            accepted,
            payload: serde_json::to_value(batch).unwrap_or_default(),
            extensions: Default::default(),
        }
    }
}
