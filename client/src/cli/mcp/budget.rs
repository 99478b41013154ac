//! What a session has left: held before a call is made, given back for what it did not cost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farthing_protocol::amount::Amount;

use crate::config::Mcp;

/// A session's money, in atoms. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limits: Mcp,
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    spent: Amount,
    /// By calls under way.
    held: Amount,
}

impl Budget {
    pub(super) fn new(limits: Mcp) -> Self {
        Self {
            limits,
            books: Arc::default(),
        }
    }

    pub(super) const fn limits(&self) -> &Mcp {
        &self.limits
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics between two changes, so poison means nothing here.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was spent. A call whose end is unknown counts with all that it might have cost.
    pub(super) fn spent(&self) -> Amount {
        self.books().spent
    }

    /// What a further call may still use.
    pub(super) fn left(&self) -> Amount {
        let books = self.books();
        let gone = books.spent.saturating_add(books.held);
        self.limits.per_session.saturating_sub(gone)
    }

    /// The most that a call may cost now.
    pub(super) fn most(&self) -> Amount {
        self.left().min(self.limits.per_call)
    }

    /// Sets aside what one call may cost; nothing when there is nothing left.
    pub(super) fn hold(&self) -> Option<Hold> {
        let mut books = self.books();
        let gone = books.spent.saturating_add(books.held);
        let left = self.limits.per_session.saturating_sub(gone);
        let most = left.min(self.limits.per_call);
        if most.is_zero() {
            return None;
        }
        books.held = books.held.saturating_add(most);
        Some(Hold {
            budget: self.clone(),
            most,
            cost: most,
        })
    }
}

/// What is set aside for one call. Dropped as it is, all of it counts as spent.
#[derive(Debug)]
pub(super) struct Hold {
    budget: Budget,
    most: Amount,
    cost: Amount,
}

impl Hold {
    /// The most that the call may cost.
    pub(super) const fn most(&self) -> Amount {
        self.most
    }

    /// The call has cost this, and is over.
    pub(super) fn cost(mut self, cost: Amount) {
        self.cost = cost;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        books.held = books.held.saturating_sub(self.most);
        books.spent = books.spent.saturating_add(self.cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(per_call: u128, per_session: u128) -> Budget {
        Budget::new(Mcp {
            per_call: Amount::atoms(per_call),
            per_session: Amount::atoms(per_session),
        })
    }

    #[test]
    fn calls_at_once_share_what_is_left() {
        let budget = budget(60, 100);
        let first = budget.hold().expect("is there");
        let second = budget.hold().expect("is there");
        let most = [first.most(), second.most()];
        assert_eq!(most, [Amount::atoms(60), Amount::atoms(40)]);
        assert!(budget.hold().is_none());
        first.cost(Amount::atoms(5));
        assert_eq!(budget.most(), Amount::atoms(55));
        assert_eq!(budget.spent(), Amount::atoms(5));
    }

    #[test]
    fn a_call_whose_end_is_unknown_counts_in_full() {
        let budget = budget(60, 100);
        drop(budget.hold());
        assert_eq!(
            (budget.spent(), budget.left()),
            (Amount::atoms(60), Amount::atoms(40))
        );
        budget.hold().expect("is there").cost(Amount::ZERO);
        assert_eq!(budget.left(), Amount::atoms(40));
    }

    #[test]
    fn a_limit_of_nothing_buys_nothing() {
        assert!(budget(0, 100).hold().is_none());
        assert!(budget(100, 0).hold().is_none());
    }
}
