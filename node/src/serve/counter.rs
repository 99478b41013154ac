//! Where a sale meets its buyer: what is heard there, and what is handed over.

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::frame::Part;
use farthing_protocol::net::wire::WireError;
use farthing_protocol::purchase::{Ending, Load, Usage};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::RootWord;
use farthing_protocol::x402::ChannelId;
use tokio::time::Instant;

use crate::admission::{Admitted, Payer};
use crate::ledger::Reservation;
use crate::serve::Halt;

/// Whether a piece leaves at once or together with what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// At once.
    Now,
    /// Together with what follows.
    Later,
}

/// A counter: one sale stands at it from beginning to end. There are two, the till of a libp2p
/// stream ([`crate::serve`]) and the window of an HTTP request ([`crate::http`]).
pub(crate) trait Counter {
    /// What a buyer can say in the middle of a sale.
    type Word;

    /// How the buyer is known.
    fn payer(&self) -> Payer;

    /// Sets the opening amount aside.
    async fn reserve(
        &mut self,
        admitted: &Admitted,
        deadline: Instant,
    ) -> Result<Reservation, Halt>;

    /// Says that work begins. It may leave with what follows.
    async fn accepted(&mut self, load: Load) -> Result<(), WireError>;

    /// Sends what was said so far.
    async fn flush(&mut self) -> Result<(), WireError>;

    /// The buyer's next word, or that none came in time. May be cancelled and called again.
    async fn word(&mut self, deadline: Instant) -> Self::Word;

    /// Acts on a word: `Some` ends the sale.
    async fn heard(&mut self, channel: ChannelId, word: Self::Word) -> Option<Ending>;

    /// Waits until the channel covers `more`, or something ends the sale.
    async fn await_cover(
        &mut self,
        channel: ChannelId,
        more: Amount,
        deadline: Instant,
    ) -> Result<Option<Ending>, Halt>;

    /// Whether the buyer wants to see this event. What it does not see is counted, and is no part
    /// of what the receipt's hash is over.
    fn shows(&self, event: &[u8]) -> bool;

    /// Takes the money for what is about to be handed over first, where it is not on a channel.
    async fn before(&mut self, due: Amount) -> Result<(), Halt>;

    /// Takes the money for what was handed over, where it is not on a channel.
    async fn after(&mut self, charged: Amount);

    /// Hands over a piece of the answer.
    async fn deliver(
        &mut self,
        piece: Bytes,
        part: Part,
        usage: Usage,
        flush: Flush,
    ) -> Result<(), WireError>;

    /// Hands over the receipt, and the answer to the ask's root: the last word.
    async fn done(
        &mut self,
        receipt: SignedReceipt,
        load: Load,
        root: Option<RootWord>,
    ) -> Result<(), WireError>;
}
