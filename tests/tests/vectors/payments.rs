//! Payments over HTTP: headers with what is in them, a stream's price, the names of purchases.

use alloy::primitives::{B256, U256};
use farthing_node::ledger::once::Once;
use farthing_protocol::amount::Amount;
use farthing_protocol::eip712::Signed;
use farthing_protocol::payment::scheme::{
    BATCH, EXACT, ExactAuthorization, Permitted, UPTO, UptoAuthorization, UptoWitness,
};
use farthing_protocol::payment::{
    Batch, BatchDeposit, BatchExtra, BatchRefund, BatchVoucher, Caip2, ChannelState, Exact, Fields,
    Payment, PaymentPayload, PaymentRequired, PaymentRequirements, Reason, Resource,
    SettlementExtra, SettlementResponse, StreamPrice, Upto, VERSION, VoucherState, WireConfig,
    WireDeposit, WireVoucher, decode, encode, fields, once_request, v1, voucher_request,
};
use farthing_protocol::purchase::Ending;
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelId, Permit, Transfer, UPTO_PROXY};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::samples;
use super::sheet::Vector;

pub const HEADERS: &str = "A header of a payment over HTTP as it is sent (`text`, base64), or the line of a stream, and the JSON in it.";
pub const NAMES: &str = "The name of a purchase over HTTP (`request`) and what it is made of: a channel with a voucher's ceiling and the number of receipts before it, or the terms under which a payment made for one purchase is booked.";

/// Seconds until which the samples are valid.
const UNTIL: u64 = 1_767_225_900;

/// What is sent and what it says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderVector {
    name: String,
    text: String,
    json: Value,
}

impl HeaderVector {
    fn of<T: Serialize>(name: &str, value: &T) -> Self {
        Self {
            name: name.to_owned(),
            text: encode(value).expect("small"),
            json: serde_json::to_value(value).expect("JSON"),
        }
    }

    /// The header is read as what it is, and written again byte for byte.
    fn same<T: Serialize + DeserializeOwned>(&self) -> T {
        let value: T = decode(self.text.as_bytes()).expect("reads");
        assert_eq!(encode(&value).expect("small"), self.text, "{}", self.name);
        value
    }
}

impl Vector for HeaderVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        if self.name == "stream-price" {
            let price = StreamPrice::of(&self.text).expect("a price");
            assert_eq!(price.line(), self.text);
            assert_eq!(serde_json::to_value(price).expect("JSON"), self.json);
            return;
        }
        let json: Value = decode(self.text.as_bytes()).expect("reads");
        assert_eq!(json, self.json, "{}", self.name);
        match self.name.split('-').next() {
            Some("required") => drop(self.same::<PaymentRequired>()),
            Some("response") => drop(self.same::<SettlementResponse>()),
            Some("v1") => drop(self.same::<v1::PaymentPayload>().payment().expect("good")),
            _ => signed(&self.same::<PaymentPayload>().payment().expect("good")),
        }
    }
}

/// A payment's signature is the one the contracts take.
fn signed(payment: &Payment) {
    let network = testing::network();
    match payment {
        Payment::Batch(batch) => {
            let config = *batch.config();
            let voucher = batch.voucher().signed().expect("65 bytes");
            assert_eq!(voucher.message.channel, config.id(&network));
            let good = voucher.verify(&network.domain(), config.payer_authorizer);
            assert!(good.is_ok());
        }
        Payment::Exact(payment) => assert_eq!(*payment, exact()),
        Payment::Upto(payment) => assert_eq!(*payment, upto()),
    }
}

fn way(scheme: &str, extra: Value) -> PaymentRequirements {
    let network = testing::network();
    let mut extra = match extra {
        Value::Object(extra) => extra,
        _ => Fields::new(),
    };
    extra.insert("offer".into(), json!(samples::offer_hash().0));
    PaymentRequirements {
        scheme: scheme.into(),
        network: Caip2(network.chain_id),
        amount: Amount::atoms(42),
        asset: network.token,
        pay_to: testing::payout(),
        max_timeout_seconds: 300,
        extra,
    }
}

pub fn batch_way(standing: Option<(ChannelState, VoucherState)>) -> PaymentRequirements {
    let network = testing::network();
    let (channel_state, voucher_state) = standing.unzip();
    let extra = BatchExtra {
        receiver_authorizer: testing::channel_config().receiver_authorizer,
        withdraw_delay: 86_400,
        name: network.token_name,
        version: network.token_version,
        min_deposit: Some(Amount::atoms(100_000)),
        channel_state,
        voucher_state,
    };
    way(BATCH, Value::Object(fields(&extra)))
}

fn required(accepts: Vec<PaymentRequirements>, error: Option<Reason>) -> PaymentRequired {
    PaymentRequired {
        x402_version: VERSION,
        error: error.map(|reason| reason.text().into()),
        resource: Resource {
            url: "http://127.0.0.1:4021/v1/chat/completions".into(),
            description: None,
            mime_type: Some("application/json".into()),
        },
        accepts,
        extensions: Fields::new(),
    }
}

fn paid(accepted: PaymentRequirements, payment: &impl Serialize) -> PaymentPayload {
    PaymentPayload {
        x402_version: VERSION,
        resource: None,
        accepted,
        payload: Value::Object(fields(payment)),
        extensions: Fields::new(),
    }
}

fn state() -> ChannelState {
    ChannelState {
        channel_id: samples::channel(),
        balance: Amount::atoms(5_000_000),
        total_claimed: Amount::ZERO,
        withdraw_requested_at: 0,
        refund_nonce: None,
        charged_cumulative_amount: Some(Amount::atoms(90_151)),
    }
}

fn transfer() -> Transfer {
    Transfer {
        from: testing::evm_key(9).address(),
        to: testing::payout(),
        amount: Amount::atoms(42),
        valid_after: 0,
        valid_before: UNTIL,
        nonce: B256::repeat_byte(0x11),
    }
}

fn exact() -> Exact {
    let message = transfer();
    let domain = testing::network().token_domain();
    let signed = Signed::sign(message, &domain, &testing::evm_key(9));
    Exact {
        signature: signed.signature.to_bytes(),
        authorization: ExactAuthorization {
            from: message.from,
            to: message.to,
            value: message.amount,
            valid_after: message.valid_after,
            valid_before: message.valid_before,
            nonce: message.nonce,
        },
    }
}

fn permit() -> Permit {
    Permit {
        owner: testing::evm_key(9).address(),
        token: testing::network().token,
        ceiling: Amount::atoms(42),
        nonce: U256::from(17),
        deadline: UNTIL,
        to: testing::payout(),
        facilitator: testing::evm_key(1).address(),
        valid_after: 0,
    }
}

fn upto() -> Upto {
    let message = permit();
    let domain = Permit::domain(testing::network().chain_id);
    let signed = Signed::sign(message, &domain, &testing::evm_key(9));
    Upto {
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
    }
}

fn response(extra: Option<SettlementExtra>, transaction: &str) -> SettlementResponse {
    SettlementResponse {
        success: true,
        payer: Some(testing::evm_key(9).address().to_checksum(None)),
        transaction: transaction.into(),
        network: Caip2(testing::network().chain_id).to_string(),
        amount: Some(if transaction.is_empty() { "" } else { "42" }.into()),
        extra: extra.as_ref().map(fields).unwrap_or_default(),
        ..SettlementResponse::default()
    }
}

pub fn headers() -> Vec<HeaderVector> {
    let config = WireConfig(testing::channel_config());
    let voucher = WireVoucher::from(&samples::voucher(90_193));
    let proof = VoucherState {
        signed_max_claimable: Amount::atoms(1_000_000),
        signature: samples::voucher(1_000_000).signature.to_bytes(),
    };
    let domain = json!({"name": "USDC", "version": "2"});
    let mut permit2 = domain.clone();
    permit2["facilitatorAddress"] = json!(testing::evm_key(1).address().to_checksum(None));
    let (exact_way, upto_way) = (way(EXACT, domain), way(UPTO, permit2));
    let ways = vec![batch_way(None), upto_way.clone(), exact_way.clone()];
    let corrected = vec![batch_way(Some((state(), proof)))];
    let deposit = Batch::Deposit(BatchDeposit {
        channel_config: config,
        voucher: voucher.clone(),
        deposit: WireDeposit::from(&samples::deposit()),
    });
    let plain = Batch::Voucher(BatchVoucher {
        channel_config: config,
        voucher: voucher.clone(),
    });
    let refund = Batch::Refund(BatchRefund {
        channel_config: config,
        voucher: WireVoucher::from(&samples::voucher(90_151)),
        amount: Some(Amount::atoms(1_000)),
    });
    let older = v1::PaymentPayload {
        x402_version: v1::VERSION,
        scheme: EXACT.into(),
        network: "base-sepolia".into(),
        payload: Value::Object(fields(&exact())),
    };
    let charged = SettlementExtra {
        charged_amount: Some(Amount::atoms(151)),
        channel_state: Some(state()),
    };
    let hash = format!("{:#x}", B256::repeat_byte(0x77));
    let receipt = samples::signed_receipt(Ending::Complete);
    let price = StreamPrice {
        charged_amount: receipt.receipt.charged,
        charged_cumulative_amount: receipt.receipt.cumulative,
        transaction: String::new(),
        receipt: json!(receipt),
        extensions: Fields::new(),
    };
    let mut with_receipt = response(Some(charged), "");
    let extension = json!({ "receipt": receipt });
    with_receipt.extensions.insert("farthing".into(), extension);
    vec![
        HeaderVector::of("required", &required(ways, None)),
        HeaderVector::of(
            "required-corrected",
            &required(corrected, Some(Reason::BatchMismatch)),
        ),
        HeaderVector::of("signature-deposit", &paid(batch_way(None), &deposit)),
        HeaderVector::of("signature-voucher", &paid(batch_way(None), &plain)),
        HeaderVector::of("signature-refund", &paid(batch_way(None), &refund)),
        HeaderVector::of("signature-exact", &paid(exact_way, &exact())),
        HeaderVector::of("signature-upto", &paid(upto_way, &upto())),
        HeaderVector::of("v1-exact", &older),
        HeaderVector::of("response-voucher", &with_receipt),
        HeaderVector::of("response-exact", &response(None, &hash)),
        HeaderVector {
            name: "stream-price".into(),
            text: price.line(),
            json: serde_json::to_value(&price).expect("JSON"),
        },
    ]
}

/// A purchase's name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameVector {
    name: String,
    channel: ChannelId,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terms: Option<WireConfig>,
    request: B256,
}

impl Vector for NameVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let request = match (self.ceiling, self.receipts) {
            (Some(ceiling), Some(receipts)) => voucher_request(self.channel, ceiling, receipts),
            _ => once_request(self.channel),
        };
        assert_eq!(request, self.request, "{}", self.name);
        if let Some(WireConfig(terms)) = self.terms {
            assert_eq!(terms.id(&testing::network()), self.channel);
        }
    }
}

fn once(name: &str, once: &Once) -> NameVector {
    let terms = farthing_protocol::x402::ChannelConfig {
        token: testing::network().token,
        ..once.terms(testing::evm_key(1).address())
    };
    let channel = terms.id(&testing::network());
    NameVector {
        name: name.into(),
        channel,
        ceiling: None,
        receipts: None,
        terms: Some(WireConfig(terms)),
        request: once_request(channel),
    }
}

pub fn names() -> Vec<NameVector> {
    let (ceiling, receipts) = (Amount::atoms(90_193), 6);
    let exact = Signed::sign(
        transfer(),
        &testing::network().token_domain(),
        &testing::evm_key(9),
    );
    let domain = Permit::domain(testing::network().chain_id);
    let upto = Signed::sign(permit(), &domain, &testing::evm_key(9));
    vec![
        NameVector {
            name: "by-voucher".into(),
            channel: samples::channel(),
            ceiling: Some(ceiling),
            receipts: Some(receipts),
            terms: None,
            request: voucher_request(samples::channel(), ceiling, receipts),
        },
        once("by-exact", &Once::Exact(exact)),
        once("by-upto", &Once::Upto(upto)),
    ]
}
