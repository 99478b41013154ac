//! Receipts as tables, lines and verdicts.

use farthing_protocol::identity::NodeId;
use serde::Serialize;

use crate::cli::render::{Left, Right, View, json, safe, sheet, table};
use crate::ledger::Scheme;
use crate::receipts::audit::{Checked, PaymentFault, Verdict};
use crate::report::calendar::moment;
use crate::report::{PaymentReport, ReceiptPage, ReceiptReport};

impl View {
    /// Receipts, newest first.
    #[must_use]
    pub fn receipts(&self, page: &ReceiptPage) -> String {
        if self.json {
            return json(page);
        }
        if page.receipts.is_empty() && page.payments.is_empty() && page.next.is_none() {
            return "There is no such receipt.\n".into();
        }
        let row = |held: &ReceiptReport| {
            let receipt = &held.signed.receipt;
            let row = [
                moment(receipt.finished),
                receipt.request.short(),
                held.signed.seller.short(),
                held.model.clone().unwrap_or_else(unknown),
                format!("{} + {}", receipt.usage.prompt, receipt.usage.completion),
                self.token.show(receipt.charged),
                format!("{:?}", receipt.ending).to_lowercase(),
            ];
            (receipt.finished, row)
        };
        let paid = |held: &PaymentReport| {
            let payment = &held.payment;
            let row = [
                moment(payment.at),
                payment.request.short(),
                safe(&payment.url),
                safe(&payment.model),
                "-".to_owned(),
                self.token.show(payment.charged),
                scheme(payment.scheme).to_owned(),
            ];
            (payment.at, row)
        };
        let rows = page.receipts.iter().map(row);
        let mut rows: Vec<_> = rows.chain(page.payments.iter().map(paid)).collect();
        rows.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
        let head = [
            ("FINISHED", Left),
            ("REQUEST", Left),
            ("SELLER", Left),
            ("MODEL", Left),
            ("TOKENS", Right),
            ("CHARGED", Right),
            ("ENDING", Left),
        ];
        let more = page.next.map(|next| format!("more: --before {}\n", next.0));
        table(head, &rows) + &more.unwrap_or_default()
    }

    /// One receipt.
    #[must_use]
    pub fn receipt(&self, held: &ReceiptReport) -> String {
        if self.json {
            return json(held);
        }
        let receipt = &held.signed.receipt;
        let usage = receipt.usage;
        let took = receipt.finished.since(receipt.started).as_millis();
        sheet(&[
            ("request", receipt.request.to_string()),
            ("channel", receipt.channel.to_string()),
            ("receipt", format!("{} of its channel", receipt.seq)),
            ("seller", held.signed.seller.to_string()),
            ("model", held.model.clone().unwrap_or_else(unknown)),
            (
                "endpoint",
                held.endpoint
                    .map_or_else(unknown, |endpoint| endpoint.to_string()),
            ),
            (
                "tokens",
                format!(
                    "{} prompt ({} cached), {} answer",
                    usage.prompt, usage.cached, usage.completion
                ),
            ),
            ("charged", self.both(receipt.charged)),
            ("channel in all", self.both(receipt.cumulative)),
            (
                "ended",
                format!("{} after {took} ms", moment(receipt.finished)),
            ),
            ("ending", format!("{:?}", receipt.ending).to_lowercase()),
            ("offer", receipt.offer.to_string()),
            (
                "signature",
                alloy::hex::encode_prefixed(held.signed.signature.0),
            ),
        ])
    }

    /// One payment over plain HTTP.
    #[must_use]
    pub fn payment(&self, held: &PaymentReport) -> String {
        if self.json {
            return json(held);
        }
        let payment = &held.payment;
        let channel = held.channel.map(|id| id.to_string());
        let none = || "none".to_owned();
        let proof = match (&payment.receipt, &payment.words) {
            (Some(receipt), _) => format!(
                "the seller's signed receipt, {}",
                alloy::hex::encode_prefixed(receipt.signature.0)
            ),
            (None, Some(words)) => format!("the seller's own words, {}", safe(words)),
            (None, None) => "the chain: the payment was used".to_owned(),
        };
        sheet(&[
            ("request", payment.request.to_string()),
            ("seller", safe(&payment.url)),
            ("paid by", scheme(payment.scheme).to_owned()),
            ("channel", channel.unwrap_or_else(none)),
            ("model", safe(&payment.model)),
            ("charged", self.both(payment.charged)),
            ("signed for it alone", self.both(payment.signed)),
            ("at", moment(payment.at)),
            (
                "dispute",
                payment.dispute.as_deref().map_or_else(none, safe),
            ),
            ("proof", proof),
        ])
    }

    /// What was found in each channel, and in payments over HTTP.
    #[must_use]
    pub fn checked(&self, checked: &Checked) -> String {
        let Checked { verdicts, payments } = checked;
        if self.json {
            let of = |verdict: &Verdict| {
                Found::Channel(Box::new(OfChannel {
                    channel: verdict.book.channel.to_string(),
                    seller: verdict.book.seller,
                    from: verdict.book.from,
                    verdict: verdict.clone(),
                }))
            };
            let faults = payments.iter().cloned().map(Found::Payment);
            let all = verdicts.iter().map(of).chain(faults);
            return json(&all.collect::<Vec<_>>());
        }
        let of = |fault: &PaymentFault| {
            let PaymentFault { payment, fault } = fault;
            format!("payment {}: {fault}\n", payment.short())
        };
        let strays: String = payments.iter().map(of).collect();
        if verdicts.is_empty() && strays.is_empty() {
            return "There is no receipt to check.\n".into();
        }
        let row = |verdict: &Verdict| {
            [
                verdict.book.channel.to_string(),
                verdict.book.seller.short(),
                verdict.book.from.to_string(),
                verdict.checked.to_string(),
                self.token.show(verdict.charged),
                verdict.covered.to_string(),
                verdict.count.to_string(),
            ]
        };
        let rows: Vec<_> = verdicts.iter().map(row).collect();
        let head = [
            ("CHANNEL", Left),
            ("SELLER", Left),
            ("FROM", Right),
            ("CHECKED", Right),
            ("CHARGED", Right),
            ("UNDER A ROOT", Right),
            ("FAULTS", Right),
        ];
        let faults = verdicts.iter().flat_map(|verdict| {
            let of = move |fault: &String| {
                format!("{}: {}\n", verdict.book.channel.short(), safe(fault))
            };
            verdict.faults.iter().map(of)
        });
        table(head, &rows) + &faults.collect::<String>() + &strays
    }
}

/// One thing that was found.
#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Channel(Box<OfChannel>),
    Payment(PaymentFault),
}

/// A verdict with its channel.
#[derive(Serialize)]
struct OfChannel {
    channel: String,
    seller: NodeId,
    from: u64,
    #[serde(flatten)]
    verdict: Verdict,
}

/// What a CSV of receipts begins with.
pub const CSV_HEAD: &str = "channel,seq,request,seller,model,ending,prompt,cached,completion,charged,cumulative,started_ms,finished_ms,offer,request_hash,response_hash,model_hash,signature,dispute";

/// A receipt as a line of CSV, without the line's end.
#[must_use]
pub fn csv_line(held: &ReceiptReport) -> String {
    let receipt = &held.signed.receipt;
    let usage = receipt.usage;
    [
        receipt.channel.to_string(),
        receipt.seq.to_string(),
        receipt.request.to_string(),
        held.signed.seller.to_string(),
        quoted(held.model.as_deref().unwrap_or_default()),
        format!("{:?}", receipt.ending).to_lowercase(),
        usage.prompt.to_string(),
        usage.cached.to_string(),
        usage.completion.to_string(),
        receipt.charged.to_string(),
        receipt.cumulative.to_string(),
        receipt.started.0.to_string(),
        receipt.finished.0.to_string(),
        receipt.offer.to_string(),
        receipt.request_hash.to_string(),
        receipt.response_hash.to_string(),
        receipt.model_hash.to_string(),
        alloy::hex::encode_prefixed(held.signed.signature.0),
        quoted(held.dispute.as_deref().unwrap_or_default()),
    ]
    .join(",")
}

/// A payment over HTTP as a line of the same CSV: what a receipt would say is left out, and the
/// seller is its address.
#[must_use]
pub fn csv_payment(held: &PaymentReport) -> String {
    let (payment, mut cells) = (&held.payment, vec![String::new(); 19]);
    let receipt = payment.receipt.as_ref();
    let signature = receipt.map(|it| alloy::hex::encode_prefixed(it.signature.0));
    let filled = [
        (0, held.channel.map(|id| id.to_string()).unwrap_or_default()),
        (2, payment.request.to_string()),
        (3, quoted(&payment.url)),
        (4, quoted(&payment.model)),
        (5, scheme(payment.scheme).to_owned()),
        (9, payment.charged.to_string()),
        (12, payment.at.0.to_string()),
        (17, signature.unwrap_or_default()),
        (18, quoted(payment.dispute.as_deref().unwrap_or_default())),
    ];
    for (place, text) in filled {
        if let Some(cell) = cells.get_mut(place) {
            *cell = text;
        }
    }
    cells.join(",")
}

const fn scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::BatchSettlement => "batch-settlement",
        Scheme::Upto => "upto",
        Scheme::Exact => "exact",
    }
}

/// A stranger's words in a cell: quoted, on one line, and not a formula.
fn quoted(text: &str) -> String {
    let text = safe(text).replace('"', "\"\"").replace(['\n', '\t'], " ");
    let formula = text.starts_with(['=', '+', '-', '@']);
    let lead = if formula { "'" } else { "" };
    format!("\"{lead}{text}\"")
}

/// A value as one line of JSON.
#[must_use]
pub fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

/// For what a receipt that was fetched after a crash does not tell.
fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, B256};
    use farthing_protocol::amount::Amount;
    use farthing_protocol::clock::Timestamp;
    use farthing_protocol::purchase::RequestId;
    use farthing_protocol::testing;

    use super::*;
    use crate::report::{Payment, Token};

    fn view() -> View {
        View {
            json: false,
            token: Token {
                address: Address::ZERO,
                symbol: "USDC".into(),
                decimals: 6,
            },
        }
    }

    fn held(words: Option<&str>) -> PaymentReport {
        let payment = Payment {
            request: RequestId(B256::repeat_byte(7)),
            seller: testing::node_key(1).id(),
            url: "https://seller.example/v1".to_owned(),
            scheme: Scheme::Upto,
            model: "a/b".to_owned(),
            signed: Amount::atoms(500),
            charged: Amount::atoms(120),
            at: Timestamp(1_767_225_600_000),
            dispute: None,
            receipt: None,
            words: words.map(str::to_owned),
        };
        PaymentReport {
            channel: None,
            payment,
        }
    }

    #[test]
    fn a_payment_over_http_is_shown_with_its_seller_its_price_and_what_proves_it() {
        let page = ReceiptPage {
            payments: vec![held(None)],
            ..ReceiptPage::default()
        };
        let text = view().receipts(&page);
        for part in ["https://seller.example/v1", "0.000120 USDC", "upto", "a/b"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let words = r#"{"success":true,"transaction":"0x12"}"#;
        let text = view().payment(&held(Some(words)));
        assert!(text.contains(words) && text.contains("own words"), "{text}");
        let text = view().payment(&held(None));
        assert!(text.contains("the chain"), "{text}");
    }

    #[test]
    fn a_payment_has_the_columns_of_a_receipt_and_no_formula() {
        let mut held = held(None);
        held.payment.url = "=cmd".to_owned();
        let line = csv_payment(&held);
        assert_eq!(line.split(',').count(), CSV_HEAD.split(',').count());
        assert!(line.contains("'=cmd") && line.contains(",120,"), "{line}");
    }

    #[test]
    fn a_payment_is_the_same_after_it_was_written_and_read() {
        let held = held(Some("{}"));
        let read = serde_json::from_str(&json_line(&held));
        assert_eq!(read.ok(), Some(held));
    }
}
