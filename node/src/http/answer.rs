//! What is written back: prices, documents, streams, and what they cost.

use std::convert::Infallible;

use alloy::primitives::{Address, B256};
use axum::body::{Body as HttpBody, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use farthing_protocol::amount::Amount;
use farthing_protocol::payment::{
    self, Caip2, ChannelState, Fields, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PaymentRequired, Reason,
    SettlementExtra, SettlementResponse, StreamPrice, VERSION, fields, header, scheme, v1,
};
use farthing_protocol::purchase::{Ending, Refusal};
use farthing_protocol::receipt::SignedReceipt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::http::Shared;
use crate::http::problem::{Denied, Problem, Standing};
use crate::http::quote::Quote;
use crate::http::window::Word;
use crate::http::witness::{self, Witness};

/// Our own extension: the receipt.
pub(in crate::http) const EXTENSION: &str = "farthing";

/// In which words a client pays, and is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Form {
    /// Those of version 2, on this chain.
    Now(Caip2),
    /// Those of version 1, on the chain with this name.
    Older(&'static str),
}

/// A payment that was taken, as the answer's header tells it.
#[derive(Debug, Clone)]
pub(in crate::http) struct Paid {
    pub(in crate::http) form: Form,
    pub(in crate::http) payer: Address,
    /// The transaction that moved money for this request.
    pub(in crate::http) transaction: Option<B256>,
    /// What it moved.
    pub(in crate::http) moved: Option<Amount>,
}

impl Paid {
    /// The header, as far as it is known.
    pub(in crate::http) fn header(
        &self,
        charged: Amount,
        channel: Option<ChannelState>,
        receipt: Option<&SignedReceipt>,
    ) -> SettlementResponse {
        let extra = channel.map(|channel| SettlementExtra {
            charged_amount: Some(charged),
            channel_state: Some(channel),
        });
        let transaction = self.transaction.filter(|hash| !hash.is_zero());
        let text = |hash| format!("{hash:#x}");
        let moved = self.moved.map(|amount| amount.to_string());
        SettlementResponse {
            success: true,
            payer: Some(self.payer.to_checksum(None)),
            transaction: transaction.map(text).unwrap_or_default(),
            network: match self.form {
                Form::Now(chain) => chain.to_string(),
                Form::Older(name) => name.to_owned(),
            },
            amount: Some(moved.unwrap_or_default()),
            extensions: receipt.map(extension).unwrap_or_default(),
            extra: extra.as_ref().map(fields).unwrap_or_default(),
            ..SettlementResponse::default()
        }
    }
}

impl Paid {
    /// Tells what a payment came to, in the header of its version.
    pub(in crate::http) fn tell(&self, headers: &mut HeaderMap, paid: &SettlementResponse) {
        let name = match self.form {
            Form::Now(_) => PAYMENT_RESPONSE,
            Form::Older(_) => v1::PAYMENT_RESPONSE,
        };
        insert(headers, name, paid);
    }
}

fn extension(receipt: &SignedReceipt) -> Fields {
    let mut extensions = Fields::new();
    extensions.insert(EXTENSION.to_owned(), json!({ "receipt": receipt }));
    extensions
}

/// Sets a header to a value in base64. One that is too long is left out, and that is logged.
pub(in crate::http) fn insert<T: serde::Serialize>(
    headers: &mut HeaderMap,
    name: &'static str,
    value: &T,
) {
    let text = header::encode(value).ok();
    match text.and_then(|text| HeaderValue::from_str(&text).ok()) {
        Some(value) => drop(headers.insert(HeaderName::from_static(name), value)),
        None => tracing::error!(name, "a payment header could not be written"),
    }
}

/// A 402: the price, and why a payment that came was not taken.
pub(in crate::http) fn required(
    shared: &Shared,
    quote: &Quote,
    reason: Option<Reason>,
    standing: Option<&Standing>,
) -> Response {
    let mut accepts = quote.accepts(shared);
    let older: Vec<_> = accepts
        .iter()
        .filter_map(|way| v1::Requirements::of(way, &quote.resource))
        .collect();
    if let (Some(standing), Some(batch)) = (
        standing,
        accepts.iter_mut().find(|way| way.scheme == scheme::BATCH),
    ) {
        let state = fields(&standing.channel).into();
        batch.extra.insert("channelState".to_owned(), state);
        if let Some(voucher) = &standing.voucher {
            let voucher = fields(voucher).into();
            batch.extra.insert("voucherState".to_owned(), voucher);
        }
    }
    let message = match reason {
        Some(reason) => format!("the payment was not taken: {reason}"),
        None => format!(
            "payment required: this request costs at most {} atoms; pay by x402",
            quote.amount
        ),
    };
    let mut body = json!({ "error": {
        "message": message,
        "type": "insufficient_quota",
        "param": null,
        "code": reason.map_or("payment_required", Reason::text),
    }});
    if !older.is_empty() {
        body["x402Version"] = v1::VERSION.into();
        body["accepts"] = json!(older);
    }
    let required = PaymentRequired {
        x402_version: VERSION,
        error: reason.map(|reason| reason.text().to_owned()),
        resource: quote.resource.clone(),
        extensions: witness::offers(shared, quote, &accepts),
        accepts,
    };
    let status = match reason {
        // Stock clients look for this one to approve Permit2.
        Some(Reason::UptoAllowance) => StatusCode::PRECONDITION_FAILED,
        _ => StatusCode::PAYMENT_REQUIRED,
    };
    let mut response = (status, body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert(headers, PAYMENT_REQUIRED, &required);
    response
}

/// Why there is no answer.
pub(in crate::http) fn denied(shared: &Shared, quote: &Quote, denied: Denied) -> Response {
    match denied {
        Denied::Payment(reason) => required(shared, quote, Some(reason), None),
        Denied::Behind(reason, standing) => required(shared, quote, Some(reason), Some(&standing)),
        Denied::Refused(refusal) => Problem::Refused(refusal).into_response(),
    }
}

/// How the words of a sale become a response.
pub(in crate::http) struct Telling {
    pub(in crate::http) paid: Paid,
    /// What we hold of the channel before the sale.
    pub(in crate::http) before: Option<ChannelState>,
    /// Who signs that it was served.
    pub(in crate::http) witness: Option<Witness>,
}

impl Telling {
    /// A document, its price in the head.
    pub(in crate::http) async fn document(
        mut self,
        mut words: mpsc::Receiver<Word>,
    ) -> Result<Response, Denied> {
        let mut document = Bytes::new();
        loop {
            match words.recv().await {
                Some(Word::Answer(bytes)) => document = bytes,
                Some(Word::Taken(transaction, amount)) => self.taken(transaction, amount),
                Some(Word::Unpaid(reason)) => return Err(reason.into()),
                Some(Word::Refused(refusal)) => return Err(refusal.into()),
                Some(Word::Receipt(receipt)) => {
                    let paid = self.after(&receipt);
                    let mut response = document.into_response();
                    let headers = response.headers_mut();
                    head(headers, "application/json");
                    self.paid.tell(headers, &paid);
                    return Ok(response);
                }
                None => return Err(broke_off().into()),
            }
        }
    }

    /// A stream. Its price is not known when its head leaves: that says what was charged before,
    /// and the price follows as a comment before the end.
    pub(in crate::http) async fn events(
        mut self,
        mut words: mpsc::Receiver<Word>,
    ) -> Result<Response, Denied> {
        let first = loop {
            match words.recv().await {
                Some(Word::Taken(transaction, amount)) => self.taken(transaction, amount),
                Some(Word::Unpaid(reason)) => return Err(reason.into()),
                Some(Word::Refused(refusal)) => return Err(refusal.into()),
                Some(first) => break first,
                None => return Err(broke_off().into()),
            }
        };
        let paid = self.paid.header(Amount::ZERO, self.before.clone(), None);
        let writer = Writer {
            words,
            first: Some(first),
            // Of a channel, the transaction is the deposit's.
            taken: self.paid.transaction.filter(|_| self.before.is_none()),
            witness: self.witness,
            ended: false,
        };
        let body = futures::stream::unfold(writer, |mut writer| async move {
            let bytes = writer.next().await?;
            Some((Ok::<_, Infallible>(bytes), writer))
        });
        let mut response = HttpBody::from_stream(body).into_response();
        let headers = response.headers_mut();
        head(headers, "text/event-stream; charset=utf-8");
        self.paid.tell(headers, &paid);
        Ok(response)
    }

    const fn taken(&mut self, transaction: B256, amount: Amount) {
        self.paid.transaction = Some(transaction);
        self.paid.moved = Some(amount);
    }

    fn after(&self, receipt: &SignedReceipt) -> SettlementResponse {
        let (charged, total) = (receipt.receipt.charged, receipt.receipt.cumulative);
        let channel = self.before.clone().map(|before| ChannelState {
            charged_cumulative_amount: Some(total),
            ..before
        });
        let taken = self.paid.transaction.filter(|_| self.before.is_none());
        let mut paid = self.paid.header(charged, channel, Some(receipt));
        if let Some(witness) = &self.witness {
            witness.tell(&mut paid.extensions, taken);
        }
        paid
    }
}

fn broke_off() -> Refusal {
    Refusal::Unavailable("the answer broke off".to_owned())
}

fn head(headers: &mut HeaderMap, kind: &'static str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
}

/// Writes a stream. It ends in one of two ways: with the price as a comment and `[DONE]`, or with
/// an error event and no `[DONE]`.
struct Writer {
    words: mpsc::Receiver<Word>,
    first: Option<Word>,
    /// The transaction that took the money, where one did.
    taken: Option<B256>,
    witness: Option<Witness>,
    ended: bool,
}

impl Writer {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let word = loop {
            let word = match self.first.take() {
                Some(word) => Some(word),
                None => self.words.recv().await,
            };
            match word {
                Some(Word::Taken(transaction, _)) => self.taken = Some(transaction),
                other => break other,
            }
        };
        Some(match word {
            Some(Word::Answer(json)) => event(&json),
            Some(Word::Receipt(receipt)) => {
                self.ended = true;
                end(&receipt, self.taken, self.witness.as_ref())
            }
            Some(_) | None => {
                self.ended = true;
                failure("the answer broke off and may not be whole")
            }
        })
    }
}

/// The last words of a stream. A comment is skipped by every reader of events.
fn end(receipt: &SignedReceipt, taken: Option<B256>, witness: Option<&Witness>) -> Bytes {
    let mut extensions = Fields::new();
    if let Some(witness) = witness {
        witness.tell(&mut extensions, taken);
    }
    let price = StreamPrice {
        charged_amount: receipt.receipt.charged,
        charged_cumulative_amount: receipt.receipt.cumulative,
        transaction: taken.map(|hash| format!("{hash:#x}")).unwrap_or_default(),
        receipt: json!(receipt),
        extensions,
    };
    let last = match receipt.receipt.ending {
        Ending::Complete => Bytes::from_static(b"data: [DONE]\n\n"),
        Ending::Limit => failure("the price or the time agreed on is used up"),
        _ => failure("the model server failed in the middle of the answer"),
    };
    let mut text = format!("{}\n\n", price.line()).into_bytes();
    text.extend_from_slice(&last);
    text.into()
}

/// OpenAI's libraries raise it; a `[DONE]` does not follow, so that nobody takes the answer for
/// whole.
fn failure(message: &str) -> Bytes {
    let error = json!({ "error": {
        "message": message, "type": "server_error", "param": null, "code": "interrupted",
    }});
    Bytes::from(format!("data: {error}\n\n"))
}

/// One event. A line break within the JSON begins a new `data:` line, so that a model server's
/// bytes stay within their event.
fn event(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len().saturating_add(8));
    let lines = json.split(|byte| matches!(byte, b'\n' | b'\r'));
    for line in lines.filter(|line| !line.is_empty()) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

/// A JSON document that costs nothing.
pub(in crate::http) fn free(value: &Value) -> Response {
    let mut response = value.to_string().into_response();
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The header of the request's payment, whatever is in it.
pub(in crate::http) fn payment_of(
    headers: &HeaderMap,
    name: &str,
) -> Result<Option<Bytes>, Reason> {
    let mut all = headers.get_all(name).iter();
    let first = all
        .next()
        .map(|value| Bytes::copy_from_slice(value.as_bytes()));
    match all.next() {
        Some(_) => Err(Reason::InvalidPayload),
        None => Ok(first),
    }
}

/// A payment's header as a value.
pub(in crate::http) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Reason> {
    payment::decode(bytes).map_err(|error| {
        tracing::debug!(%error, "a payment header cannot be read");
        Reason::InvalidPayload
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_cannot_leave_its_event() {
        let event = event(b"{\"a\":\r\n\r\n1}\n\ndata: [DONE]");
        assert_eq!(event, "data: {\"a\":\ndata: 1}\ndata: data: [DONE]\n\n");
    }
}
