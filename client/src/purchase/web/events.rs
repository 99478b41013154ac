//! A stream of events over HTTP, taken apart: data, the price as a comment, the end.

use bytes::{Bytes, BytesMut};
use farthing_protocol::amount::Amount;
use farthing_protocol::receipt::SignedReceipt;
use serde::{Deserialize, Serialize};

/// The most bytes of one event.
const EVENT_LIMIT: usize = 4 * 1024 * 1024;

/// What a stream says of its price, in a comment before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::purchase) struct Price {
    pub(in crate::purchase) charged_amount: Amount,
    #[serde(default)]
    pub(in crate::purchase) charged_cumulative_amount: Option<Amount>,
    #[serde(default)]
    pub(in crate::purchase) transaction: Option<String>,
    #[serde(default, skip_serializing)]
    pub(in crate::purchase) receipt: Option<SignedReceipt>,
}

/// One thing in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::purchase) enum Item {
    /// The JSON of an event.
    Data(Bytes),
    /// The price.
    Price(Box<Price>),
    /// `[DONE]`.
    Done,
}

/// An event that never ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::purchase) struct Endless;

/// What has come and is not taken apart yet.
#[derive(Debug, Default)]
pub(in crate::purchase) struct Events(BytesMut);

impl Events {
    /// Takes a piece as it came.
    pub(in crate::purchase) fn feed(&mut self, piece: &[u8]) -> Result<(), Endless> {
        if self.0.len().saturating_add(piece.len()) > EVENT_LIMIT {
            return Err(Endless);
        }
        self.0.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole item. Events of other kinds, and comments of others, are skipped.
    pub(in crate::purchase) fn next(&mut self) -> Option<Item> {
        loop {
            let (end, gap) = boundary(&self.0)?;
            let block = self.0.split_to(end.saturating_add(gap)).freeze();
            if let Some(item) = item(&block[..end]) {
                return Some(item);
            }
        }
    }
}

/// Where the first blank line begins, and how long it is.
fn boundary(bytes: &[u8]) -> Option<(usize, usize)> {
    let plain = find(bytes, b"\n\n").map(|at| (at, 2));
    let wide = find(bytes, b"\r\n\r\n").map(|at| (at, 4));
    match (plain, wide) {
        (Some(plain), Some(wide)) => Some(plain.min(wide)),
        (plain, wide) => plain.or(wide),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn item(block: &[u8]) -> Option<Item> {
    let mut data: Option<Vec<u8>> = None;
    for line in block.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(price) = line.strip_prefix(b": x402 ") {
            let price = serde_json::from_slice(price).ok()?;
            return Some(Item::Price(Box::new(price)));
        }
        let Some(text) = line.strip_prefix(b"data:") else {
            continue;
        };
        let text = text.strip_prefix(b" ").unwrap_or(text);
        match &mut data {
            None => data = Some(text.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(text);
            }
        }
    }
    match data? {
        done if done == b"[DONE]" => Some(Item::Done),
        json => Some(Item::Data(json.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, size: usize) -> Vec<Item> {
        let mut events = Events::default();
        let mut items = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            events.feed(piece).expect("is small");
            while let Some(item) = events.next() {
                items.push(item);
            }
        }
        items
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let text = "data: {\"a\":1}\n\n: keep\n\ndata: {\"b\":\r\ndata: 2}\r\n\r\n: x402 {\"chargedAmount\":\"7\"}\n\nevent: x\ndata: [DONE]\n\n";
        let price = Price {
            charged_amount: Amount::atoms(7),
            charged_cumulative_amount: None,
            transaction: None,
            receipt: None,
        };
        let expected = [
            Item::Data("{\"a\":1}".into()),
            Item::Data("{\"b\":\n2}".into()),
            Item::Price(Box::new(price)),
            Item::Done,
        ];
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(all(text, size), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_price_that_is_none_and_an_endless_event_are_not_taken() {
        assert!(all(": x402 {\"chargedAmount\":-1}\n\n", 100).is_empty());
        assert!(all(": x402 nothing\n\n", 100).is_empty());
        let mut events = Events::default();
        assert_eq!(events.feed(&vec![b'x'; EVENT_LIMIT]), Ok(()));
        assert_eq!(events.feed(b"x"), Err(Endless));
    }
}
