//! Through which door a purchase came, for the operator's own eyes.

use farthing_protocol::receipt::Receipt;
use farthing_protocol::store::{Batch, BatchError};

use crate::ledger::records::DOORS;
use crate::ledger::{Ledger, LedgerError, Reservation};

/// A row says so by being there; another value is for later doors.
const WEB: u8 = 1;

/// Where a purchase came from, and how it was paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Over libp2p, by a channel.
    Peer,
    /// Over HTTP, by a channel.
    Batch,
    /// Over HTTP, by `exact`.
    Exact,
    /// Over HTTP, by `upto`.
    Upto,
}

impl Door {
    /// A few words for it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Peer => "libp2p",
            Self::Batch => "http batch-settlement",
            Self::Exact => "http exact",
            Self::Upto => "http upto",
        }
    }
}

/// Adds to a purchase's batch where it came from.
pub(in crate::ledger) fn note(
    reservation: &Reservation,
    batch: Batch,
) -> Result<Batch, BatchError> {
    if !reservation.is_web() {
        return Ok(batch);
    }
    batch.put(&DOORS, &reservation.request().0, &WEB)
}

impl Ledger {
    /// Through which door the purchase of a receipt came.
    ///
    /// # Errors
    /// The store's.
    pub fn door(&self, receipt: &Receipt) -> Result<Door, LedgerError> {
        let view = self.channel(receipt.channel);
        // The terms of a payment for one purchase say which it is.
        match view.map(|view| view.config.withdraw_delay) {
            Some(0) => return Ok(Door::Exact),
            Some(1) => return Ok(Door::Upto),
            _ => {}
        }
        let web = self.store.get(&DOORS, &receipt.request.0)?;
        Ok(if web.is_some() {
            Door::Batch
        } else {
            Door::Peer
        })
    }
}
