//! The counter of a sale over HTTP: it hands the answer to the task that writes the response.
//!
//! All that a purchase can cost is covered before it starts, so nothing is asked for on the way.
//! A client that hangs up is heard by the other end of the queue going away.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use axum::body::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::chain::ChainError;
use farthing_protocol::channel::Rejected;
use farthing_protocol::frame::Part;
use farthing_protocol::net::wire::WireError;
use farthing_protocol::payment::Reason;
use farthing_protocol::purchase::{Ending, Load, Refusal, Usage};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::RootWord;
use farthing_protocol::x402::{ChannelConfig, ChannelId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::admission::{Admitted, Payer};
use crate::http::problem::Denied;
use crate::ledger::once::Once;
use crate::ledger::{Ledger, LedgerError, Reservation};
use crate::serve::{Counter, Flush, Halt};
use crate::settlement::{Settlement, SettlementError};
use crate::shop::RETRY_AFTER_MS;

/// Events that may lie between the sale and the client: little, for they count as delivered.
const AHEAD: usize = 4;
/// How long a client may take to read one event.
const STALL: Duration = Duration::from_secs(30);

/// How long a client is kept waiting for its transaction.
const MINING: Duration = Duration::from_secs(120);

/// The payments that were given to the settlement to be taken and are not answered for. Nobody
/// else ends them meanwhile.
#[derive(Debug, Default)]
pub(in crate::http) struct Ordered(Mutex<HashSet<ChannelId>>);

/// A payment that is being taken, until this is dropped.
#[derive(Debug)]
pub(in crate::http) struct Order(Arc<Ordered>, ChannelId);

impl Ordered {
    fn here(&self) -> MutexGuard<'_, HashSet<ChannelId>> {
        // A set is whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::http) fn begin(self: &Arc<Self>, id: ChannelId) -> Order {
        self.here().insert(id);
        Order(Arc::clone(self), id)
    }

    pub(in crate::http) fn has(&self, id: ChannelId) -> bool {
        self.here().contains(&id)
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.0.here().remove(&self.1);
    }
}

/// Where the money comes from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per sale, never in a row")]
pub(in crate::http) enum Means {
    /// A channel.
    Voucher,
    /// A payment made for this purchase.
    Once {
        once: Once,
        id: ChannelId,
        /// The terms under which it is booked.
        config: ChannelConfig,
        /// What the payer can pay.
        funds: Amount,
        /// What is charged, however little is used.
        least: Amount,
        settlement: Settlement,
        /// Who is told that it is being taken.
        ordered: Arc<Ordered>,
        streams: bool,
    },
}

/// What a sale has to say.
#[derive(Debug)]
pub(in crate::http) enum Word {
    /// An event, or the document.
    Answer(Bytes),
    /// The money was taken, by this transaction.
    Taken(B256, Amount),
    /// The money could not be taken, and there is no answer.
    Unpaid(Reason),
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
    means: Means,
    /// Whether it was tried to take the money, and done.
    tried: bool,
    taken: bool,
    /// Why the money could not be taken.
    fault: Option<Reason>,
    shows_usage: bool,
    /// Pieces of an event whose last has not come.
    pieces: Vec<u8>,
}

impl Window {
    /// A counter, and where its words come out.
    pub(in crate::http) fn new(
        ledger: Ledger,
        means: Means,
        shows_usage: bool,
    ) -> (Self, mpsc::Receiver<Word>) {
        let (words, hears) = mpsc::channel(AHEAD);
        let window = Self {
            ledger,
            words,
            means,
            tried: false,
            taken: false,
            fault: None,
            shows_usage,
            pieces: Vec::new(),
        };
        (window, hears)
    }

    /// Enters a payment made for this purchase into the books, before anything is worked for it.
    pub(in crate::http) async fn enter(&self) -> Result<(), Denied> {
        let Means::Once {
            once,
            id,
            config,
            funds,
            ..
        } = &self.means
        else {
            return Ok(());
        };
        let entered = self.ledger.open_once(*id, *config, *once, *funds).await;
        entered.map_err(|error| match (error, once) {
            (LedgerError::Duplicate, Once::Exact(_)) => Reason::ExactNonceUsed.into(),
            (LedgerError::Duplicate, Once::Upto(_)) => Reason::UptoNonceUsed.into(),
            (LedgerError::Rejected(_), Once::Exact(_)) => Reason::ExactBalance.into(),
            (LedgerError::Rejected(_), Once::Upto(_)) => Reason::UptoBalance.into(),
            (error, _) => {
                tracing::error!(%error, "the ledger failed");
                Refusal::Unavailable("the seller's ledger failed".to_owned()).into()
            }
        })
    }

    /// Says why there is no answer.
    pub(in crate::http) async fn refuse(&self, refusal: Refusal) -> Result<(), WireError> {
        match self.fault {
            Some(reason) => self.say(Word::Unpaid(reason)).await,
            None => self.say(Word::Refused(refusal)).await,
        }
    }

    /// Lets a payment that bought nothing be used again.
    pub(in crate::http) async fn forget(&self) {
        if let (Means::Once { id, .. }, false) = (&self.means, self.tried)
            && let Err(error) = self.ledger.void_once(*id).await
        {
            tracing::error!(%error, "a payment could not be forgotten");
        }
    }

    /// Takes so much of a payment made for this purchase.
    async fn take(&mut self, amount: Amount) -> Result<(), Reason> {
        let Means::Once {
            once,
            id,
            settlement,
            ordered,
            ..
        } = &self.means
        else {
            return Ok(());
        };
        if amount.is_zero() || self.taken {
            return Ok(());
        }
        if let Err(error) = self.ledger.taking_once(*id, amount).await {
            tracing::error!(%error, "the ledger failed");
            return Err(Reason::UnexpectedSettle);
        }
        self.tried = true;
        // It goes on when nobody waits any more.
        let (settlement, order) = (settlement.clone(), ordered.begin(*id));
        let (taken, paid) = (*id, *once);
        let taking = tokio::spawn(async move {
            let moved = settlement.take(taken, paid, amount).await;
            drop(order);
            moved
        });
        let Ok(Ok(moved)) = timeout(MINING, taking).await else {
            return Err(Reason::SettlementPending);
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(channel = %id.short(), %error, "a payment could not be taken");
                // Nothing was sent: the same payment may be tried again.
                self.tried = !is_untouched(&error);
                return Err(unpaid(once, &error));
            }
        };
        if let Err(error) = self.ledger.took_once(*id, amount).await {
            tracing::error!(%error, "a payment that was taken could not be written");
        }
        self.taken = true;
        // A client that has left pays all the same.
        self.say(Word::Taken(moved.transaction, amount)).await.ok();
        Ok(())
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
        match &self.means {
            Means::Voucher => Payer::Voucher,
            Means::Once { least, .. } => Payer::Once { least: *least },
        }
    }

    async fn reserve(&mut self, admitted: &Admitted, _: Instant) -> Result<Reservation, Halt> {
        let (id, request) = (admitted.channel, admitted.request);
        let refusal = match self.ledger.reserve(id, request, admitted.opening) {
            Ok(reservation) => return Ok(reservation.over_http()),
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

    async fn before(&mut self, due: Amount) -> Result<(), Halt> {
        let amount = match &self.means {
            Means::Voucher => return Ok(()),
            Means::Once {
                once: Once::Upto(_),
                streams: true,
                ..
            } => return Ok(()),
            Means::Once { .. } => due,
        };
        self.take(amount).await.map_err(|reason| {
            self.fault = Some(reason);
            Refusal::Unavailable("the payment could not be settled".to_owned()).into()
        })
    }

    async fn after(&mut self, charged: Amount) {
        if charged.is_zero() {
            return self.forget().await;
        }
        if !self.tried
            && let Err(reason) = self.take(charged).await
        {
            tracing::warn!(%reason, "a stream was delivered and its payment could not be taken yet");
        }
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

/// Whether it is certain that no transaction is on its way.
const fn is_untouched(error: &SettlementError) -> bool {
    matches!(
        error,
        SettlementError::Chain(ChainError::Reverted { .. } | ChainError::GasShort { .. })
            | SettlementError::Busy
    )
}

const fn unpaid(once: &Once, error: &SettlementError) -> Reason {
    match (error, once) {
        (SettlementError::Chain(ChainError::Reverted { .. }), Once::Exact(_)) => {
            Reason::ExactSimulation
        }
        (SettlementError::Chain(ChainError::Reverted { .. }), Once::Upto(_)) => {
            Reason::UptoSimulation
        }
        (SettlementError::Failed(_), _) => Reason::TransactionState,
        _ => Reason::UnexpectedSettle,
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
