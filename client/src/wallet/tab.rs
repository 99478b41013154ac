//! The tab of one request: what all who are asked for it may charge together.
//!
//! One that is late is given up, two are asked at once, one goes on where another broke off: each
//! may charge. So each has a line on the tab, over the most that it may cost, before anything is
//! signed for it, and no line goes beyond what the request may cost with all the others. A line
//! falls when its seller is told to stop, or lost, to what was signed to it and is not booked; with
//! the receipt to what was charged; and away when nothing was asked, or it refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::RequestId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ledger::LedgerError;

#[derive(Debug)]
struct Inside {
    most: Amount,
    lines: Mutex<HashMap<RequestId, Entry>>,
    changed: Notify,
}

/// What one purchase may charge.
#[derive(Debug, Clone, Copy)]
struct Entry {
    most: Amount,
    /// It was told to stop, and may yet say what it charges.
    leaves: bool,
}

/// A handle to a request's tab; clones share it. It ends with the last one.
#[derive(Debug, Clone)]
pub struct Tab(Arc<Inside>);

impl Tab {
    /// A tab of so much.
    #[must_use]
    pub fn new(most: Amount) -> Self {
        Self(Arc::new(Inside {
            most,
            lines: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<RequestId, Entry>> {
        // Plain numbers, whole at every step.
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one more may cost.
    #[must_use]
    pub fn room(&self) -> Amount {
        let lines = self.lines();
        self.0.most.saturating_sub(sum(lines.values()))
    }

    /// What one more may cost should those that were told to stop charge nothing.
    #[must_use]
    pub fn hoped(&self) -> Amount {
        let lines = self.lines();
        let stay = lines.values().filter(|line| !line.leaves);
        self.0.most.saturating_sub(sum(stay))
    }

    /// What one more may cost. Where that is less than is `wanted`, those that were told to stop
    /// are waited for `until` then: their receipts may leave more.
    pub async fn room_for(&self, wanted: Amount, until: Instant) -> Amount {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // From here on a change is seen, also one before it is waited for.
            changed.as_mut().enable();
            let room = self.room();
            let waits = self.lines().values().any(|line| line.leaves);
            if room >= wanted || !waits {
                return room;
            }
            if timeout_at(until, changed).await.is_err() {
                return self.room();
            }
        }
    }

    /// Opens a line for a purchase that may cost so much.
    ///
    /// # Errors
    /// [`LedgerError::Tab`] when there is not so much room.
    pub(in crate::wallet) fn open(
        &self,
        request: RequestId,
        most: Amount,
    ) -> Result<Line, LedgerError> {
        let mut lines = self.lines();
        let others = sum(lines
            .iter()
            .filter(|(id, _)| **id != request)
            .map(|it| it.1));
        if others.saturating_add(most) > self.0.most {
            return Err(LedgerError::Tab {
                allowed: self.0.most,
                spent: others,
                more: most,
            });
        }
        let leaves = false;
        lines.insert(request, Entry { most, leaves });
        Ok(Line {
            tab: self.clone(),
            request,
        })
    }
}

fn sum<'a>(lines: impl Iterator<Item = &'a Entry>) -> Amount {
    lines.fold(Amount::ZERO, |sum, line| sum.saturating_add(line.most))
}

/// One purchase's line. It stays as it was last written when this is dropped.
#[derive(Debug)]
pub(in crate::wallet) struct Line {
    tab: Tab,
    request: RequestId,
}

impl Line {
    /// Its seller is told to stop: it may charge what was signed to it, and its receipt may say
    /// less.
    pub(in crate::wallet) fn leaves(&self, signed: Amount) {
        self.falls(signed, true);
    }

    /// Nobody knows what it charges: it may be what was signed.
    pub(in crate::wallet) fn is_lost(&self, signed: Amount) {
        self.falls(signed, false);
    }

    fn falls(&self, most: Amount, leaves: bool) {
        if let Some(entry) = self.tab.lines().get_mut(&self.request) {
            // What was signed for others too does not raise it again.
            entry.most = entry.most.min(most);
            entry.leaves = leaves;
        }
        self.tab.0.changed.notify_waiters();
    }

    /// It has charged this.
    pub(in crate::wallet) fn charged(&self, charged: Amount) {
        if let Some(entry) = self.tab.lines().get_mut(&self.request) {
            entry.most = charged;
            entry.leaves = false;
        }
        self.tab.0.changed.notify_waiters();
    }

    /// It charges nothing.
    pub(in crate::wallet) fn is_free(&self) {
        self.tab.lines().remove(&self.request);
        self.tab.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alloy::primitives::B256;
    use proptest::prelude::*;

    use super::*;

    const fn atoms(atoms: u128) -> Amount {
        Amount::atoms(atoms)
    }

    fn request(n: u8) -> RequestId {
        RequestId(B256::repeat_byte(n))
    }

    #[test]
    fn what_losers_may_charge_is_not_there_for_the_next() {
        let tab = Tab::new(atoms(100));
        let first = tab.open(request(1), atoms(70)).expect("there is room");
        assert_eq!(tab.room(), atoms(30));
        let full = tab.open(request(2), atoms(31));
        assert!(matches!(full, Err(LedgerError::Tab { spent, .. }) if spent == atoms(70)));
        first.leaves(atoms(40));
        assert_eq!((tab.room(), tab.hoped()), (atoms(60), atoms(100)));
        first.is_lost(atoms(40));
        assert_eq!((tab.room(), tab.hoped()), (atoms(60), atoms(60)));
        first.charged(atoms(5));
        let second = tab.open(request(2), atoms(95)).expect("there is room");
        assert!(tab.open(request(3), atoms(1)).is_err());
        second.is_free();
        assert_eq!(tab.room(), atoms(95));
        assert!(tab.open(request(1), atoms(100)).is_ok(), "asked anew");
    }

    #[tokio::test(start_paused = true)]
    async fn those_told_to_stop_are_waited_for_only_where_their_word_matters() {
        let tab = Tab::new(atoms(100));
        let line = tab.open(request(1), atoms(80)).expect("there is room");
        line.leaves(atoms(80));
        let until = Instant::now() + Duration::from_secs(2);
        assert_eq!(tab.room_for(atoms(20), until).await, atoms(20));
        assert!(Instant::now() < until, "nothing to wait for");
        let (room, ()) = tokio::join!(tab.room_for(atoms(90), until), async {
            line.charged(atoms(3));
        });
        assert_eq!(room, atoms(97));
        assert!(Instant::now() < until, "the receipt came first");
        let tab = Tab::new(atoms(100));
        let line = tab.open(request(1), atoms(80)).expect("there is room");
        line.leaves(atoms(80));
        assert_eq!(tab.room_for(atoms(90), until).await, atoms(20));
        assert!(Instant::now() >= until, "it said nothing");
        drop(line);
        // One that runs will not say soon what it charges.
        let tab = Tab::new(atoms(100));
        let _runs = tab.open(request(1), atoms(80)).expect("there is room");
        let until = Instant::now() + Duration::from_secs(2);
        assert_eq!(tab.room_for(atoms(90), until).await, atoms(20));
        assert!(Instant::now() < until);
    }

    proptest! {
        /// Whatever happens to its purchases, in whatever order, what they charge in the end is
        /// within the limit.
        #[test]
        fn no_order_of_events_makes_a_request_dearer_than_its_limit(
            most in 0u128..1_000,
            steps in proptest::collection::vec((0u8..4, 0u8..6, 0u128..1_200), 0..60),
        ) {
            let tab = Tab::new(atoms(most));
            let mut lines: Vec<(Line, u128)> = Vec::new();
            for (n, (what, which, amount)) in steps.into_iter().enumerate() {
                if what == 0 {
                    let id = request(u8::try_from(n).expect("few steps"));
                    if let Ok(line) = tab.open(id, atoms(amount)) {
                        lines.push((line, amount));
                    }
                } else if let Some((line, may)) = lines.get_mut(usize::from(which)) {
                    match what {
                        1 => line.leaves(atoms(amount)),
                        2 => line.is_lost(atoms(amount)),
                        _ => line.charged(atoms(amount.min(*may))),
                    }
                    // No seller charges more than it could before.
                    *may = amount.min(*may);
                }
                let charged: u128 = lines.iter().map(|(_, may)| may).sum();
                prop_assert!(charged <= most, "{charged} of {most}");
            }
        }
    }
}
