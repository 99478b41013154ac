//! The words as the TypeScript library writes them.

use serde_json::json;

use super::*;
use crate::testing;

/// A `PAYMENT-SIGNATURE` of scheme `batch-settlement`, before it is put into base64. The voucher
/// is the one published with the protocol.
const VOUCHER: &str = r#"{"x402Version":2,"resource":{"url":"http://127.0.0.1:4021/v1/chat/completions","description":"","mimeType":"application/json"},"accepted":{"scheme":"batch-settlement","network":"eip155:31337","amount":"7200","asset":"0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9","payTo":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","maxTimeoutSeconds":300,"extra":{"name":"USDC","version":"2","receiverAuthorizer":"0x90F79bf6EB2c4f870365E785982E1f101E93b906","withdrawDelay":900}},"payload":{"type":"voucher","channelConfig":{"payer":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8","payerAuthorizer":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8","receiver":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","receiverAuthorizer":"0x90F79bf6EB2c4f870365E785982E1f101E93b906","token":"0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9","withdrawDelay":900,"salt":"0x0000000000000000000000000000000000000000000000000000000000000000"},"voucher":{"channelId":"0xc3f5533449838f80bf54ba83c6d297fe6acb726f0b84f73461ad2d3d4bf549f5","maxClaimableAmount":"7200","signature":"0x214e42cdc27fba213f8f1341a6a02e3e5e21b0466c28c0fa292d4871dd6fd2fb676fd24c204e8f2e1fe9b93c770790cef7291772f5e320415e414542522548301c"}}}"#;

fn payload(text: &str) -> PaymentPayload {
    serde_json::from_str(text).expect("reads")
}

fn batch(text: &str) -> Batch {
    match payload(text).payment() {
        Ok(Payment::Batch(batch)) => batch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_voucher_of_the_typescript_client_is_read_and_its_signature_holds() {
    let batch = batch(VOUCHER);
    let config = *batch.config();
    assert_eq!(config.withdraw_delay, 900);
    let voucher = batch.voucher();
    assert_eq!(voucher.channel_id, config.id(&testing::network()));
    let signed = voucher.signed().expect("65 bytes");
    let verified = signed.verify(&testing::network().domain(), config.payer_authorizer);
    assert_eq!(verified.expect("good").ceiling, Amount::atoms(7200));
}

#[test]
fn what_was_read_is_written_as_it_was() {
    let read = payload(VOUCHER);
    let same: Value = serde_json::from_str(VOUCHER).expect("JSON");
    assert_eq!(serde_json::to_value(&read).expect("JSON"), same);
    let batch = batch(VOUCHER);
    assert_eq!(serde_json::to_value(&batch).expect("JSON"), same["payload"]);
}

#[test]
fn a_deposit_of_the_typescript_client_is_read() {
    let mut text: Value = serde_json::from_str(VOUCHER).expect("JSON");
    text["payload"]["type"] = json!("deposit");
    text["payload"]["deposit"] = json!({"amount":"100000","authorization":{"erc3009Authorization":{
        "validAfter":"0","validBefore":"1767225900",
        "salt":"0x1111111111111111111111111111111111111111111111111111111111111111",
        "signature":"0x22"}}});
    let Batch::Deposit(deposit) = batch(&text.to_string()) else {
        panic!("not a deposit");
    };
    assert_eq!(deposit.deposit.amount, Amount::atoms(100_000));
    let terms = deposit.terms().expect("by EIP-3009");
    assert_eq!(terms.valid_before, 1_767_225_900);
    assert_eq!(scheme::WireDeposit::from(&terms), deposit.deposit);
}

#[test]
fn a_refund_may_name_an_amount_or_not() {
    let mut text: Value = serde_json::from_str(VOUCHER).expect("JSON");
    text["payload"]["type"] = json!("refund");
    assert!(matches!(
        batch(&text.to_string()),
        Batch::Refund(BatchRefund { amount: None, .. })
    ));
    text["payload"]["amount"] = json!("12");
    assert!(matches!(
        batch(&text.to_string()),
        Batch::Refund(BatchRefund { amount: Some(amount), .. }) if amount == Amount::atoms(12)
    ));
}

#[test]
fn exact_and_upto_are_read() {
    let mut text: Value = serde_json::from_str(VOUCHER).expect("JSON");
    text["accepted"]["scheme"] = json!("exact");
    text["payload"] = json!({"authorization":{
        "from":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "to":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "value":"7200","validAfter":"0","validBefore":"1767225900",
        "nonce":"0x1111111111111111111111111111111111111111111111111111111111111111"},
        "signature":"0x22"});
    let read = payload(&text.to_string()).payment();
    assert!(
        matches!(read, Ok(Payment::Exact(exact)) if exact.authorization.value == Amount::atoms(7200))
    );
    text["accepted"]["scheme"] = json!("upto");
    text["payload"] = json!({"signature":"0x22","permit2Authorization":{
        "from":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "permitted":{"token":"0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9","amount":"7200"},
        "spender":"0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002",
        "nonce":"115792089237316195423570985008687907853269984665640564039457584007913129639935",
        "deadline":"1767225900",
        "witness":{"to":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
            "facilitator":"0x90F79bf6EB2c4f870365E785982E1f101E93b906","validAfter":"0"}}});
    let read = payload(&text.to_string());
    let Ok(Payment::Upto(upto)) = read.payment() else {
        panic!("not upto");
    };
    assert_eq!(
        upto.permit2_authorization.nonce,
        alloy::primitives::U256::MAX
    );
    let again = serde_json::to_value(&upto).expect("JSON");
    assert_eq!(again, read.payload);
}

#[test]
fn amounts_and_times_are_plain_digits_or_nothing_is_read() {
    for odd in ["+1", "1e3", "-1", "0x10", "1.0", "", " 1"] {
        let text = VOUCHER.replace("\"7200\"", &format!("\"{odd}\""));
        assert!(
            serde_json::from_str::<PaymentPayload>(&text).is_err(),
            "{odd}"
        );
        let mut text: Value = serde_json::from_str(VOUCHER).expect("JSON");
        text["payload"]["voucher"]["maxClaimableAmount"] = json!(odd);
        let read = payload(&text.to_string()).payment();
        assert_eq!(read, Err(Reason::InvalidPayload), "{odd}");
    }
    let number = VOUCHER.replace("\"amount\":\"7200\"", "\"amount\":7200");
    assert!(serde_json::from_str::<PaymentPayload>(&number).is_err());
}

#[test]
fn strange_schemes_and_types_have_their_reasons() {
    let strange = VOUCHER.replace(
        "\"scheme\":\"batch-settlement\"",
        "\"scheme\":\"auth-capture\"",
    );
    assert_eq!(payload(&strange).payment(), Err(Reason::UnsupportedScheme));
    let strange = VOUCHER.replace("\"type\":\"voucher\"", "\"type\":\"claim\"");
    assert_eq!(payload(&strange).payment(), Err(Reason::BatchPayloadType));
    let mut list: Value = serde_json::from_str(VOUCHER).expect("JSON");
    list["accepted"]["scheme"] = json!("exact");
    list["payload"] = json!(["0x22", []]);
    assert_eq!(
        payload(&list.to_string()).payment(),
        Err(Reason::InvalidPayload)
    );
}

#[test]
fn every_reason_is_found_by_its_word() {
    for reason in Reason::ALL {
        assert_eq!(Reason::of(reason.text()), Some(*reason));
    }
    assert_eq!(Reason::of("no such word"), None);
}

fn required() -> PaymentRequired {
    let accepted = payload(VOUCHER).accepted;
    PaymentRequired {
        x402_version: VERSION,
        error: None,
        resource: Resource::default(),
        accepts: vec![accepted],
        extensions: Fields::new(),
    }
}

#[test]
fn ways_to_pay_on_other_families_of_chains_are_left_out_and_the_rest_is_read() {
    let mut text = serde_json::to_value(required()).expect("JSON");
    text["accepts"].as_array_mut().expect("a list").insert(
        0,
        json!({"scheme":"exact","network":"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp","amount":"1",
            "asset":"EPjFWdd5","payTo":"9xQe","maxTimeoutSeconds":60,"extra":null}),
    );
    text["error"] = Value::Null;
    text["futureField"] = json!({"any": [1, 2]});
    let read: PaymentRequired = serde_json::from_value(text).expect("reads");
    assert_eq!(read, required());
}

#[test]
fn a_buyer_may_add_to_the_extra_of_its_choice_and_change_nothing() {
    let ours = payload(VOUCHER).accepted;
    let mut theirs = ours.clone();
    theirs.extra.insert("note".into(), json!("mine"));
    assert!(ours.is_echoed_by(&theirs));
    theirs.extra.insert("version".into(), json!("1"));
    assert!(!ours.is_echoed_by(&theirs));
    for change in [
        |r: &mut PaymentRequirements| r.amount = Amount::atoms(1),
        |r: &mut PaymentRequirements| r.pay_to = r.asset,
        |r: &mut PaymentRequirements| r.asset = r.pay_to,
        |r: &mut PaymentRequirements| r.network = Caip2(1),
        |r: &mut PaymentRequirements| r.scheme = "exact".into(),
        |r: &mut PaymentRequirements| r.max_timeout_seconds = 1,
    ] {
        let mut theirs = ours.clone();
        change(&mut theirs);
        assert!(!ours.is_echoed_by(&theirs), "{theirs:?}");
    }
}

#[test]
fn a_header_is_bounded_base64_of_an_object() {
    let header = encode(&required()).expect("small");
    assert_eq!(decode::<PaymentRequired>(header.as_bytes()), Ok(required()));
    let unpadded = header.trim_end_matches('=');
    assert_eq!(
        decode::<PaymentRequired>(unpadded.as_bytes()),
        Ok(required())
    );
    let long = vec![b'A'; header::HEADER_LIMIT + 1];
    assert_eq!(decode::<PaymentRequired>(&long), Err(HeaderError::TooLarge));
    for junk in ["*", "e30\n", "{}", "e3_0"] {
        let read = decode::<Value>(junk.as_bytes());
        assert_eq!(read, Err(HeaderError::NotBase64), "{junk}");
    }
    // `[]`, `null` and half an object.
    for junk in ["W10=", "bnVsbA==", "eyJhIjo="] {
        let read = decode::<Value>(junk.as_bytes());
        assert!(matches!(read, Err(HeaderError::NotJson(_))), "{junk}");
    }
    let wide = json!({ "a": "x".repeat(header::HEADER_LIMIT) });
    assert_eq!(encode(&wide), Err(HeaderError::TooLarge));
}

#[test]
fn a_chain_is_named_in_one_way() {
    assert_eq!("eip155:8453".parse(), Ok(Caip2(8453)));
    assert_eq!(Caip2(84532).to_string(), "eip155:84532");
    for odd in [
        "eip155:",
        "eip155:+1",
        "eip155:01",
        "base",
        "solana:1",
        "eip155:99999999999999999999",
    ] {
        assert_eq!(odd.parse::<Caip2>(), Err(NotAChain), "{odd}");
    }
}

#[test]
fn the_charge_of_an_answer_is_read() {
    let text = r#"{"success":true,"payer":"0x7099","transaction":"","network":"eip155:31337","amount":"","extra":{"chargedAmount":"40","channelState":{"channelId":"0xc3f5533449838f80bf54ba83c6d297fe6acb726f0b84f73461ad2d3d4bf549f5","balance":"100000","totalClaimed":"0","withdrawRequestedAt":0,"refundNonce":"0","chargedCumulativeAmount":"40"}}}"#;
    let answer: SettlementResponse = serde_json::from_str(text).expect("reads");
    let extra = answer.batch().expect("of batch-settlement");
    assert_eq!(extra.charged_amount, Some(Amount::atoms(40)));
    let state = extra.channel_state.expect("a state");
    assert_eq!(state.charged_cumulative_amount, Some(Amount::atoms(40)));
    assert_eq!(
        fields(&SettlementExtra {
            charged_amount: Some(Amount::atoms(40)),
            channel_state: Some(state)
        }),
        answer.extra
    );
    let lying = text.replace("\"chargedAmount\":\"40\"", "\"chargedAmount\":\"4e1\"");
    let answer: SettlementResponse = serde_json::from_str(&lying).expect("reads");
    assert_eq!(answer.batch(), None);
}

#[test]
fn the_older_form_names_chains_and_knows_exact_only() {
    let mut now = payload(VOUCHER).accepted;
    let resource = Resource {
        url: "http://a/v1".into(),
        ..Resource::default()
    };
    assert_eq!(v1::Requirements::of(&now, &resource), None);
    now.scheme = "exact".into();
    assert_eq!(v1::Requirements::of(&now, &resource), None);
    now.network = Caip2(84532);
    let old = v1::Requirements::of(&now, &resource).expect("a named chain");
    assert_eq!(old.network, "base-sepolia");
    assert_eq!(v1::chain_of(&old.network), Some(84532));
    let text = r#"{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":{"signature":"0x22","authorization":{"from":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8","to":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","value":"7200","validAfter":"1","validBefore":"1767225900","nonce":"0x1111111111111111111111111111111111111111111111111111111111111111"}}}"#;
    let paid: v1::PaymentPayload = serde_json::from_str(text).expect("reads");
    assert!(matches!(paid.payment(), Ok(Payment::Exact(_))));
    let upto = text.replace("\"exact\"", "\"upto\"");
    let paid: v1::PaymentPayload = serde_json::from_str(&upto).expect("reads");
    assert_eq!(paid.payment(), Err(Reason::UnsupportedScheme));
}
