//! An agent's payments for one purchase alone: `exact` and `upto`.

use alloy::primitives::{Address, B256, U256};
use farthing_protocol::eip712::Signed;
use farthing_protocol::payment::scheme::{
    ExactAuthorization, Permitted, UptoAuthorization, UptoWitness,
};
use farthing_protocol::payment::{
    Exact, Fields, PaymentPayload, PaymentRequirements, Upto, VERSION, fields,
};
use farthing_protocol::x402::{Permit, Transfer, UPTO_PROXY};
use serde_json::Value;

use crate::street::Agent;

impl Agent {
    fn until(&self, way: &PaymentRequirements) -> u64 {
        let now = self.clock.now().seconds();
        now.saturating_add(way.max_timeout_seconds)
    }

    /// A payment by `exact`; the same `nonce` makes the same payment.
    #[must_use]
    pub fn exact(&self, way: &PaymentRequirements, nonce: u8) -> PaymentPayload {
        let message = Transfer {
            from: self.payer.address(),
            to: way.pay_to,
            amount: way.amount,
            valid_after: 0,
            valid_before: self.until(way),
            nonce: B256::repeat_byte(nonce),
        };
        let signed = Signed::sign(message, &self.network.token_domain(), &self.payer);
        let payment = Exact {
            signature: signed.signature.to_bytes(),
            authorization: ExactAuthorization {
                from: message.from,
                to: message.to,
                value: message.amount,
                valid_after: message.valid_after,
                valid_before: message.valid_before,
                nonce: message.nonce,
            },
        };
        single(way, Value::Object(fields(&payment)))
    }

    /// A payment by `upto`; the same `nonce` makes the same payment.
    #[must_use]
    pub fn upto(&self, way: &PaymentRequirements, nonce: u64) -> PaymentPayload {
        let taker = way.extra_text("facilitatorAddress");
        let message = Permit {
            owner: self.payer.address(),
            token: way.asset,
            ceiling: way.amount,
            nonce: U256::from(nonce),
            deadline: self.until(way),
            to: way.pay_to,
            facilitator: taker
                .and_then(|taker| taker.parse().ok())
                .unwrap_or(Address::ZERO),
            valid_after: 0,
        };
        let domain = Permit::domain(self.network.chain_id);
        let signed = Signed::sign(message, &domain, &self.payer);
        let payment = Upto {
            signature: signed.signature.to_bytes(),
            permit2_authorization: UptoAuthorization {
                from: message.owner,
                permitted: Permitted {
                    token: message.token,
                    amount: message.ceiling,
                },
                spender: UPTO_PROXY,
                nonce: message.nonce,
                deadline: message.deadline,
                witness: UptoWitness {
                    to: message.to,
                    facilitator: message.facilitator,
                    valid_after: message.valid_after,
                },
            },
        };
        single(way, Value::Object(fields(&payment)))
    }
}

fn single(way: &PaymentRequirements, payload: Value) -> PaymentPayload {
    PaymentPayload {
        x402_version: VERSION,
        resource: None,
        accepted: way.clone(),
        payload,
        extensions: Fields::new(),
    }
}
