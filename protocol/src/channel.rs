//! The rules of a payment channel: one pure state machine that both ledgers obey.
//!
//! No clock, no dice, no disk, no `async`. Every method either keeps the invariants below or
//! changes nothing and says why:
//!
//! - `charged + reserved ≤ ceiling ≤ balance` at all times;
//! - the ceiling and the charges never fall, and the claims only when the chain takes blocks back;
//! - no new promise is made or accepted beyond `balance − armed`, where *armed* is what the buyer
//!   has asked the contract to give back;
//! - `claimed ≤ ceiling`: the contract pays out nothing that was not signed. (A seller claims only
//!   what it has charged; a buyer may see the claim before it sees the receipt.)
//!
//! A buyer [`issue`](Channel::issue)s ceilings, a seller [`accept`](Channel::accept)s them;
//! whatever one issues the other accepts. Both [`reserve`](Channel::reserve) before work and
//! [`charge`](Channel::charge) or [`release`](Channel::release) after it.

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, Cost, MICRO, Overflow};
use crate::purchase::Ending;

/// Why the channel does not do as told. The state is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The ceiling would exceed what the deposit can still pay.
    #[error("a ceiling of {ceiling} atoms exceeds the {available} atoms the deposit can pay")]
    OverDeposit {
        /// The ceiling asked for.
        ceiling: Amount,
        /// Balance less armed withdrawal.
        available: Amount,
    },
    /// The ceiling does not cover what is to be reserved.
    #[error("{needed} atoms must be covered, but the ceiling is {ceiling}")]
    OverCeiling {
        /// The ceiling that would be enough.
        needed: Amount,
        /// The ceiling there is.
        ceiling: Amount,
    },
    /// More is to be charged or released than was reserved.
    #[error("{needed} atoms exceed the {reserved} reserved")]
    OverReserved {
        /// What was asked for.
        needed: Amount,
        /// What is reserved.
        reserved: Amount,
    },
    /// The chain says something that cannot follow from what it said before.
    #[error("the chain reports {got} atoms where at least {have} were known")]
    Regressed {
        /// What was known.
        have: Amount,
        /// What is reported.
        got: Amount,
    },
    /// The numbers do not fit.
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

/// What became of a voucher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The ceiling rose: record the voucher before working against it.
    Raised,
    /// Nothing new: an older or the same ceiling. Harmless.
    Stale,
}

/// What the end of a purchase teaches both sides about how far to go ahead next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// It went as agreed: the window grows with what was paid.
    Trust,
    /// Somebody's machine failed: half of what was earned counts on.
    Caution,
    /// Somebody did not pay, or lied: as with a stranger.
    Anew,
}

impl Lesson {
    /// The lesson of an ending that both sides agree on. A dispute is always [`Lesson::Anew`].
    #[must_use]
    pub const fn of(ending: Ending) -> Self {
        match ending {
            Ending::Complete | Ending::Cancelled | Ending::Limit => Self::Trust,
            Ending::UpstreamFailed | Ending::Interrupted => Self::Caution,
            Ending::Unpaid => Self::Anew,
        }
    }
}

/// One purchase's line in the channel's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The receipt's place in the channel.
    pub seq: u64,
    /// Whole atoms charged for this purchase.
    pub charged: Amount,
    /// Charged on the channel in all, this one included.
    pub cumulative: Amount,
}

/// The state of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Channel {
    balance: Amount,
    armed: Amount,
    claimed: Amount,
    ceiling: Amount,
    charged: Amount,
    /// Charged by purchases that ended well, since the last one that did not.
    earned: Amount,
    /// Micro-atoms worked but not yet charged: below one atom.
    remainder: u32,
    receipts: u64,
    /// Of running purchases; not kept across a restart.
    #[serde(skip)]
    reserved: Amount,
}

impl Channel {
    /// A channel with this deposit and this much claimed already.
    #[must_use]
    pub fn open(balance: Amount, claimed: Amount) -> Self {
        let claimed = claimed.min(balance);
        Self {
            balance,
            claimed,
            ceiling: claimed,
            charged: claimed,
            earned: claimed,
            ..Self::default()
        }
    }

    /// Deposited in all (withdrawn and refunded parts taken off).
    #[must_use]
    pub const fn balance(&self) -> Amount {
        self.balance
    }

    /// What the buyer has asked back and will get when the delay is over.
    #[must_use]
    pub const fn armed(&self) -> Amount {
        self.armed
    }

    /// Claimed on chain.
    #[must_use]
    pub const fn claimed(&self) -> Amount {
        self.claimed
    }

    /// The highest ceiling promised.
    #[must_use]
    pub const fn ceiling(&self) -> Amount {
        self.ceiling
    }

    /// Charged in all.
    #[must_use]
    pub const fn charged(&self) -> Amount {
        self.charged
    }

    /// What the window of the next stream grows with ([`crate::pricing::window`]): charged by
    /// purchases that ended well, cut by those that did not.
    #[must_use]
    pub const fn earned(&self) -> Amount {
        self.earned
    }

    /// Draws the lesson of a purchase that was charged so much.
    pub fn learn(&mut self, lesson: Lesson, charged: Amount) {
        self.earned = match lesson {
            Lesson::Trust => self.earned.saturating_add(charged).min(self.charged),
            Lesson::Caution => Amount::atoms(self.earned.get() / 2),
            Lesson::Anew => Amount::ZERO,
        };
    }

    /// What running purchases may still charge.
    #[must_use]
    pub const fn reserved(&self) -> Amount {
        self.reserved
    }

    /// Receipts so far: the next one's `seq`.
    #[must_use]
    pub const fn receipts(&self) -> u64 {
        self.receipts
    }

    /// The highest ceiling that may be promised now.
    #[must_use]
    pub const fn available(&self) -> Amount {
        self.balance.saturating_sub(self.armed)
    }

    /// What the ceiling still covers beyond charges and reservations.
    #[must_use]
    pub fn slack(&self) -> Amount {
        let limit = self.ceiling.min(self.available());
        limit
            .saturating_sub(self.charged)
            .saturating_sub(self.reserved)
    }

    /// Charged but not yet claimed on chain: what the seller stands to lose.
    #[must_use]
    pub const fn unclaimed(&self) -> Amount {
        self.charged.saturating_sub(self.claimed)
    }

    /// The ceiling that would cover `more` on top of everything running.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn required(&self, more: Amount) -> Result<Amount, Overflow> {
        self.charged.add(self.reserved)?.add(more)
    }

    /// Buyer: promises a higher ceiling. A lower or equal one is already promised.
    ///
    /// # Errors
    /// [`Rejected::OverDeposit`].
    pub fn issue(&mut self, ceiling: Amount) -> Result<Acceptance, Rejected> {
        self.raise(ceiling)
    }

    /// Seller: takes a promise whose signature was verified.
    ///
    /// # Errors
    /// [`Rejected::OverDeposit`].
    pub fn accept(&mut self, ceiling: Amount) -> Result<Acceptance, Rejected> {
        self.raise(ceiling)
    }

    fn raise(&mut self, ceiling: Amount) -> Result<Acceptance, Rejected> {
        if ceiling <= self.ceiling {
            return Ok(Acceptance::Stale);
        }
        let available = self.available();
        if ceiling > available {
            return Err(Rejected::OverDeposit { ceiling, available });
        }
        self.ceiling = ceiling;
        Ok(Acceptance::Raised)
    }

    /// Sets `amount` aside for a purchase.
    ///
    /// # Errors
    /// [`Rejected::OverCeiling`] when the ceiling (or what a withdrawal leaves of it) is too low.
    pub fn reserve(&mut self, amount: Amount) -> Result<(), Rejected> {
        if amount > self.slack() {
            let ceiling = self.ceiling.min(self.available());
            return Err(Rejected::OverCeiling {
                needed: self.required(amount)?,
                ceiling,
            });
        }
        self.reserved = self.reserved.add(amount)?;
        Ok(())
    }

    /// Seller: sets aside again what a purchase had set aside before a restart, or what is left of
    /// it. The ceiling covered it then, and a withdrawal armed since takes nothing of it away.
    /// Returns how much it is.
    pub fn resume(&mut self, wanted: Amount) -> Amount {
        let room = self
            .ceiling
            .saturating_sub(self.charged)
            .saturating_sub(self.reserved);
        let amount = wanted.min(room);
        self.reserved = self.reserved.saturating_add(amount);
        amount
    }

    /// Gives back a reservation, or the unused part of one.
    ///
    /// # Errors
    /// [`Rejected::OverReserved`].
    pub fn release(&mut self, amount: Amount) -> Result<(), Rejected> {
        if amount > self.reserved {
            return Err(Rejected::OverReserved {
                needed: amount,
                reserved: self.reserved,
            });
        }
        self.reserved = self.reserved.saturating_sub(amount);
        Ok(())
    }

    /// Seller: ends a purchase for which `reservation` was set aside and which cost `cost`:
    /// whole atoms are charged, the rest is carried, the reservation is released.
    ///
    /// # Errors
    /// [`Rejected::OverReserved`] when the cost exceeds the reservation; the caller caps it.
    pub fn charge(&mut self, reservation: Amount, cost: Cost) -> Result<Charge, Rejected> {
        if cost.ceil() > reservation || reservation > self.reserved {
            let reserved = reservation.min(self.reserved);
            return Err(Rejected::OverReserved {
                needed: cost.ceil(),
                reserved,
            });
        }
        let total = cost.add(Cost::micro_atoms(u128::from(self.remainder)))?;
        let charge = self.next_charge(total.floor())?;
        self.release(reservation)?;
        self.remainder = total.remainder();
        self.book(charge);
        Ok(charge)
    }

    /// Buyer: ends a purchase as the seller's receipt says. Receipts of parallel purchases may
    /// arrive in any order; each adds its own charge.
    ///
    /// # Errors
    /// [`Rejected::OverReserved`] when it charges more than was set aside.
    pub fn settle(&mut self, reservation: Amount, charged: Amount) -> Result<(), Rejected> {
        if charged > reservation || reservation > self.reserved {
            let reserved = reservation.min(self.reserved);
            return Err(Rejected::OverReserved {
                needed: charged,
                reserved,
            });
        }
        let charge = self.next_charge(charged)?;
        self.release(reservation)?;
        self.book(charge);
        Ok(())
    }

    /// Buyer: takes over the seller's counters after a disagreement (a crash, a lost receipt).
    /// They are believed only below a ceiling that carries the buyer's own signature, so the
    /// proven ceiling is taken over too.
    ///
    /// # Errors
    /// [`Rejected::OverCeiling`] when more is charged than the proof covers.
    pub fn adopt(
        &mut self,
        charged: Amount,
        receipts: u64,
        proven: Amount,
    ) -> Result<(), Rejected> {
        if charged > proven {
            return Err(Rejected::OverCeiling {
                needed: charged,
                ceiling: proven,
            });
        }
        let charged = charged.max(self.charged);
        let ceiling = self.ceiling.max(proven);
        if proven > self.balance {
            return Err(Rejected::OverDeposit {
                ceiling: proven,
                available: self.balance,
            });
        }
        if charged.add(self.reserved)? > ceiling {
            return Err(Rejected::OverCeiling {
                needed: charged.add(self.reserved)?,
                ceiling,
            });
        }
        self.charged = charged;
        self.ceiling = ceiling;
        self.receipts = self.receipts.max(receipts);
        Ok(())
    }

    fn next_charge(&self, charged: Amount) -> Result<Charge, Rejected> {
        Ok(Charge {
            seq: self.receipts,
            charged,
            cumulative: self.charged.add(charged)?,
        })
    }

    fn book(&mut self, charge: Charge) {
        self.charged = charge.cumulative;
        self.receipts = self.receipts.saturating_add(1);
    }

    /// The chain says how much is deposited and claimed. A balance may fall (withdrawn or
    /// refunded), never below what was claimed; claims never fall.
    ///
    /// # Errors
    /// [`Rejected::Regressed`].
    pub fn observe(&mut self, balance: Amount, claimed: Amount) -> Result<(), Rejected> {
        if claimed < self.claimed {
            return Err(Rejected::Regressed {
                have: self.claimed,
                got: claimed,
            });
        }
        if balance < claimed {
            return Err(Rejected::Regressed {
                have: claimed,
                got: balance,
            });
        }
        let promised = self.charged.add(self.reserved)?;
        if balance < promised {
            return Err(Rejected::Regressed {
                have: promised,
                got: balance,
            });
        }
        self.balance = balance;
        self.claimed = claimed;
        // A ceiling above the deposit can no longer be claimed in full: count what can. A claim
        // above it proves a voucher that we have forgotten.
        self.ceiling = self.ceiling.min(balance).max(claimed);
        Ok(())
    }

    /// Seller: the chain has taken back blocks, and a claim with them. It can be claimed again, for
    /// what was signed stays signed.
    pub fn retreat(&mut self, claimed: Amount) {
        self.claimed = self.claimed.min(claimed);
    }

    /// The buyer has asked the contract for `amount` back (0: nothing is pending any more).
    /// What runs goes on; nothing new is promised beyond what remains.
    pub fn arm(&mut self, amount: Amount) {
        self.armed = amount.min(self.balance.saturating_sub(self.claimed));
    }

    /// The most that [`Channel::charge`] can take out of `reservation`.
    #[must_use]
    pub fn cap(reservation: Amount, cost: Cost) -> Cost {
        let limit = reservation.get().saturating_mul(MICRO);
        Cost::micro_atoms(cost.get().min(limit))
    }
}

#[cfg(test)]
mod tests;
