use farthing_protocol::amount::Amount;

use super::*;
use crate::client::scripted;
use crate::ledger::{Payment, Scheme};
use crate::report::calendar::moment;

#[test]
fn a_moment_is_read_as_people_write_it() {
    let at = |millis| Ok(When::At(Timestamp(millis)));
    for (text, expected) in [
        ("2026-01-01", at(1_767_225_600_000)),
        ("2026-01-01T00:00", at(1_767_225_600_000)),
        ("2026-01-01T10:30:15Z", at(1_767_263_415_000)),
        ("2024-02-29", at(1_709_164_800_000)),
        ("1970-01-01", at(0)),
        ("1767225600000", at(1_767_225_600_000)),
        ("7d", Ok(When::Ago(604_800_000))),
        ("90s", Ok(When::Ago(90_000))),
    ] {
        assert_eq!(when(text), expected, "{text}");
    }
    for text in [
        "",
        "d",
        "yesterday",
        "2026-13-01",
        "2026-01-01T25:00",
        "2026-1",
        "-5",
        "1e3",
    ] {
        assert!(when(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_written_as_a_day_is_shown_as_that_day() {
    for text in [
        "1970-03-01",
        "1999-12-31",
        "2000-02-29",
        "2026-11-20",
        "2100-02-28",
        "9999-12-31",
    ] {
        let Ok(When::At(at)) = when(text) else {
            panic!("{text} is a day");
        };
        assert_eq!(moment(at), format!("{text} 00:00:00Z"));
    }
}

#[test]
fn regression_a_false_receipt_of_one_payment_does_not_keep_others_from_being_checked() {
    let held = scripted::receipt();
    let report = |spoil: fn(&mut Payment)| {
        let receipt = &held.signed.receipt;
        let mut payment = Payment {
            request: receipt.request,
            seller: held.signed.seller,
            url: "http://seller.example/v1".into(),
            scheme: Scheme::Exact,
            model: "test/model".into(),
            signed: receipt.charged,
            charged: receipt.charged,
            at: receipt.finished,
            dispute: None,
            receipt: Some(held.signed.clone()),
            words: None,
        };
        spoil(&mut payment);
        let channel = None;
        Line::Payment(Box::new(PaymentReport { channel, payment }))
    };
    let forged = |payment: &mut Payment| {
        if let Some(signed) = &mut payment.receipt {
            signed.receipt.usage.completion += 1;
        }
    };
    let book = scripted::book();
    let text: Vec<_> = [
        report(forged),
        report(|payment| payment.charged = Amount::atoms(1)),
        report(|_| {}),
        Line::Book(Box::new(book)),
        Line::Receipt(Box::new(held.clone())),
    ]
    .iter()
    .map(render::json_line)
    .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("receipts.jsonl");
    std::fs::write(&file, text.join("\n")).expect("writes");
    let checked = from_file(&file).expect("is read to its end");
    let faults: Vec<_> = checked.payments.iter().map(|found| found.fault).collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].contains("not signed") && faults[1].contains("another charge"));
    assert_eq!(
        (checked.verdicts.len(), checked.verdicts[0].checked),
        (1, 1)
    );
    assert_eq!(checked.faults(), 2 + checked.verdicts[0].count);
}
