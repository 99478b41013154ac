//! Money set aside for one running purchase.

use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::ChannelId;

use crate::ledger::{Ledger, LedgerError};

/// A guard over reserved money: dropped without [`Ledger::finish`], it is given back and nothing
/// is charged.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the money back"]
pub struct Reservation {
    ledger: Ledger,
    channel: ChannelId,
    request: RequestId,
    amount: Amount,
    /// Whether the purchase came over HTTP.
    web: bool,
    spent: bool,
}

impl Reservation {
    pub(in crate::ledger) const fn new(
        ledger: Ledger,
        channel: ChannelId,
        request: RequestId,
        amount: Amount,
    ) -> Self {
        Self {
            ledger,
            channel,
            request,
            amount,
            web: false,
            spent: false,
        }
    }

    /// For a purchase over HTTP: its receipt is remembered to be one.
    pub const fn over_http(mut self) -> Self {
        self.web = true;
        self
    }

    /// Whether the purchase came over HTTP.
    #[must_use]
    pub const fn is_web(&self) -> bool {
        self.web
    }

    /// The channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The purchase.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// What is set aside.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.amount
    }

    /// Sets more aside.
    ///
    /// # Errors
    /// [`farthing_protocol::channel::Rejected::OverCeiling`] when the voucher does not cover it.
    pub fn extend(&mut self, more: Amount) -> Result<(), LedgerError> {
        let sum = self.amount.add(more)?;
        self.ledger.extend(self.channel, more)?;
        self.amount = sum;
        Ok(())
    }

    /// The charge has released it.
    pub(in crate::ledger) fn spent(mut self) {
        self.spent = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.spent {
            self.ledger.release(self.channel, self.request, self.amount);
        }
    }
}
