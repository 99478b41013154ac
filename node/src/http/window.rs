//! The counter of a sale over HTTP: it hands the answer to the task that writes the response.
//!
//! All that a purchase can cost is covered before it starts, so nothing is asked for on the way.
//! A client that hangs up is heard by the other end of the queue going away.

use std::time::Duration;

use axum::body::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::channel::Rejected;
use farthing_protocol::frame::Part;
use farthing_protocol::net::wire::WireError;
use farthing_protocol::purchase::{Ending, Load, Refusal, Usage};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::RootWord;
use farthing_protocol::x402::ChannelId;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::admission::{Admitted, Payer};
use crate::ledger::{Ledger, LedgerError, Reservation};
use crate::serve::{Counter, Flush, Halt};
use crate::shop::RETRY_AFTER_MS;

/// Events that may lie between the sale and the client: little, for they count as delivered.
const AHEAD: usize = 4;
/// How long a client may take to read one event.
const STALL: Duration = Duration::from_secs(30);

/// What a sale has to say.
#[derive(Debug)]
pub(in crate::http) enum Word {
    /// An event, or the document.
    Answer(Bytes),
    /// The end, and what it cost.
    Receipt(Box<SignedReceipt>),
    /// There is no answer, or no more of it, and nothing is charged.
    Refused(Refusal),
}

/// The counter.
#[derive(Debug)]
pub(in crate::http) struct Window {
    ledger: Ledger,
    words: mpsc::Sender<Word>,
    shows_usage: bool,
    /// Pieces of an event whose last has not come.
    pieces: Vec<u8>,
}

impl Window {
    /// A counter, and where its words come out.
    pub(in crate::http) fn new(ledger: Ledger, shows_usage: bool) -> (Self, mpsc::Receiver<Word>) {
        let (words, hears) = mpsc::channel(AHEAD);
        let window = Self {
            ledger,
            words,
            shows_usage,
            pieces: Vec::new(),
        };
        (window, hears)
    }

    /// Says something, unless nobody listens.
    pub(in crate::http) async fn say(&self, word: Word) -> Result<(), WireError> {
        match timeout(STALL, self.words.send(word)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(WireError::Ended),
        }
    }
}

impl Counter for Window {
    type Word = Ending;

    fn payer(&self) -> Payer {
        Payer::Voucher
    }

    async fn reserve(&mut self, admitted: &Admitted, _: Instant) -> Result<Reservation, Halt> {
        let (id, request) = (admitted.channel, admitted.request);
        let refusal = match self.ledger.reserve(id, request, admitted.opening) {
            Ok(reservation) => return Ok(reservation),
            // What the voucher covers is used by a purchase that came another way.
            Err(LedgerError::Rejected(Rejected::OverCeiling { .. })) => Refusal::Busy {
                retry_after_ms: RETRY_AFTER_MS,
            },
            Err(LedgerError::Duplicate) => Refusal::Duplicate,
            Err(LedgerError::NoChannel) => Refusal::NoChannel,
            Err(error) => {
                tracing::error!(%error, "the ledger failed");
                Refusal::Unavailable("the seller's ledger failed".to_owned())
            }
        };
        Err(refusal.into())
    }

    async fn accepted(&mut self, _: Load) -> Result<(), WireError> {
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        Ok(())
    }

    /// A client says nothing more; it can only leave.
    async fn word(&mut self, deadline: Instant) -> Ending {
        tokio::select! {
            () = self.words.closed() => Ending::Cancelled,
            () = sleep_until(deadline) => Ending::Limit,
        }
    }

    async fn heard(&mut self, _: ChannelId, word: Ending) -> Option<Ending> {
        Some(word)
    }

    /// Nobody can be asked for more than was signed.
    async fn await_cover(
        &mut self,
        _: ChannelId,
        _: Amount,
        _: Instant,
    ) -> Result<Option<Ending>, Halt> {
        Ok(Some(Ending::Limit))
    }

    /// The event that holds only the usage was asked for by us, for our own count.
    fn shows(&self, event: &[u8]) -> bool {
        self.shows_usage || !only_usage(event)
    }

    async fn deliver(
        &mut self,
        piece: Bytes,
        part: Part,
        _: Usage,
        _: Flush,
    ) -> Result<(), WireError> {
        let whole = self.pieces.is_empty() && part == Part::Last;
        if whole {
            return self.say(Word::Answer(piece)).await;
        }
        self.pieces.extend_from_slice(&piece);
        match part {
            Part::More => Ok(()),
            Part::Last => {
                let event = std::mem::take(&mut self.pieces);
                self.say(Word::Answer(event.into())).await
            }
        }
    }

    /// A client over HTTP has no word for roots.
    async fn done(
        &mut self,
        receipt: SignedReceipt,
        _: Load,
        _: Option<RootWord>,
    ) -> Result<(), WireError> {
        self.say(Word::Receipt(Box::new(receipt))).await
    }
}

/// Whether an event has no choices, only the usage.
fn only_usage(event: &[u8]) -> bool {
    let Ok(body) = Body::parse(event) else {
        return false;
    };
    let choices = body.raw("choices").map(str::as_bytes);
    let empty = choices.is_some_and(|list| {
        let inner = list.strip_prefix(b"[").and_then(|l| l.strip_suffix(b"]"));
        inner.is_some_and(|inner| inner.trim_ascii().is_empty())
    });
    empty && body.raw("usage").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_event_without_choices_is_one_of_usage_alone() {
        assert!(only_usage(
            br#"{"choices": [ ],"usage":{"prompt_tokens":1}}"#
        ));
        for other in [
            r#"{"choices":[{"index":0}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[],"usage":null}"#,
            r#"{"choices":[],"prompt_filter_results":[]}"#,
            "not json",
        ] {
            assert!(!only_usage(other.as_bytes()), "{other}");
        }
    }
}
