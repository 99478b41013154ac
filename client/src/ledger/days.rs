//! What was promised in a day, to each seller and in all. Pure.

use std::collections::HashMap;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;

/// The sums of the last day on which something was promised.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Days {
    day: u64,
    today: Amount,
    /// Of today, by seller.
    to_sellers: HashMap<B256, Amount>,
}

/// What must be written when a sum has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) struct DayRow {
    pub(in crate::ledger) day: u64,
    pub(in crate::ledger) today: Amount,
    pub(in crate::ledger) seller: B256,
    pub(in crate::ledger) to_seller: Amount,
}

impl Days {
    pub(in crate::ledger) fn load(
        &mut self,
        day: u64,
        promised: Amount,
        sellers: impl Iterator<Item = (B256, Amount)>,
    ) {
        self.day = day;
        self.today = promised;
        self.to_sellers = sellers.collect();
    }

    /// The last day on which something was promised.
    pub(in crate::ledger) const fn day(&self) -> u64 {
        self.day
    }

    /// A clock that was set back does not begin a day anew.
    pub(in crate::ledger) const fn today(&self, day: u64) -> Amount {
        if day <= self.day {
            self.today
        } else {
            Amount::ZERO
        }
    }

    pub(in crate::ledger) fn to_seller(&self, seller: B256, day: u64) -> Amount {
        if day <= self.day {
            self.to_sellers.get(&seller).copied().unwrap_or_default()
        } else {
            Amount::ZERO
        }
    }

    /// Enters a promise.
    pub(in crate::ledger) fn add(&mut self, seller: B256, more: Amount, day: u64) -> DayRow {
        let to_seller = self.to_seller(seller, day).saturating_add(more);
        let today = self.today(day).saturating_add(more);
        if day > self.day {
            self.day = day;
            self.to_sellers.clear();
        }
        self.put(seller, today, to_seller)
    }

    /// Takes back what was promised on a day and can never be asked for any more; nothing when
    /// that day is over.
    pub(in crate::ledger) fn take_back(
        &mut self,
        seller: B256,
        amount: Amount,
        day: u64,
    ) -> Option<DayRow> {
        if day != self.day {
            return None;
        }
        let today = self.today.saturating_sub(amount);
        let to_seller = self.to_seller(seller, day).saturating_sub(amount);
        Some(self.put(seller, today, to_seller))
    }

    fn put(&mut self, seller: B256, today: Amount, to_seller: Amount) -> DayRow {
        self.today = today;
        self.to_sellers.insert(seller, to_seller);
        DayRow {
            day: self.day,
            today,
            seller,
            to_seller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_back_counts_no_more_on_its_own_day_only() {
        let (mut days, one) = (Days::default(), B256::repeat_byte(1));
        let atoms = Amount::atoms;
        days.add(one, atoms(10), 3);
        let row = days.take_back(one, atoms(4), 3).expect("is today");
        assert_eq!((row.today, row.to_seller), (atoms(6), atoms(6)));
        assert_eq!(days.add(one, atoms(1), 4).today, atoms(1));
        assert_eq!(days.take_back(one, atoms(6), 3), None);
        assert_eq!(days.today(2), atoms(1), "a clock that was set back");
    }
}
