//! What each model costs us in a day: set aside and charged. Pure.

use std::collections::HashMap;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;

/// Today's sums, by the hash of a model's id.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Models {
    day: u64,
    charged: HashMap<B256, Amount>,
    held: HashMap<B256, Amount>,
}

impl Models {
    pub(in crate::ledger) fn load(&mut self, day: u64, rows: impl Iterator<Item = (B256, Amount)>) {
        self.day = day;
        self.charged = rows.collect();
    }

    /// Charged today, and set aside now.
    pub(in crate::ledger) fn spent(&self, model: B256, day: u64) -> Amount {
        let held = self.held.get(&model).copied().unwrap_or_default();
        held.saturating_add(self.charged_on(model, day))
    }

    pub(in crate::ledger) fn hold(&mut self, model: B256, more: Amount) {
        let held = self.held.entry(model).or_default();
        *held = held.saturating_add(more);
    }

    pub(in crate::ledger) fn release(&mut self, model: B256, amount: Amount) {
        if let Some(held) = self.held.get_mut(&model) {
            *held = held.saturating_sub(amount);
            if held.is_zero() {
                self.held.remove(&model);
            }
        }
    }

    /// Enters a charge; returns the day's sum, which must be written.
    pub(in crate::ledger) fn charge(&mut self, model: B256, charged: Amount, day: u64) -> Amount {
        let sum = self.charged_on(model, day).saturating_add(charged);
        // A clock that was set back does not open the day's limit anew.
        if day > self.day {
            self.day = day;
            self.charged.clear();
        }
        self.charged.insert(model, sum);
        sum
    }

    fn charged_on(&self, model: B256, day: u64) -> Amount {
        if day > self.day {
            return Amount::ZERO;
        }
        self.charged.get(&model).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_counts_until_it_is_charged_or_given_back() {
        let (mut models, one, other) = (Models::default(), B256::repeat_byte(1), B256::ZERO);
        let atoms = Amount::atoms;
        models.hold(one, atoms(10));
        models.hold(one, atoms(5));
        assert_eq!(models.spent(one, 3), atoms(15));
        models.release(one, atoms(10));
        assert_eq!(models.charge(one, atoms(4), 3), atoms(4));
        assert_eq!(models.spent(one, 3), atoms(9));
        assert_eq!(models.spent(other, 3), Amount::ZERO);
        models.release(one, atoms(5));
        assert_eq!(models.spent(one, 4), Amount::ZERO);
        assert_eq!(models.charge(one, atoms(1), 4), atoms(1));
        assert_eq!(models.spent(one, 3), atoms(1), "a day that is over");
    }
}
