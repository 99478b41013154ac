//! Purchases that want a person's word: asked for, granted or denied, used once.
//!
//! Pure: what must be written is returned. A grant covers one purchase of the same request, up to
//! the cost that was shown. It is gone from the disk before it is used, so a crash can lose it
//! and never double it; while the program runs, a purchase that came to nothing gives it back.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;

use crate::report::{Approval, Word};

/// The most that wait for a word, or for being used.
pub const MAX_APPROVALS: usize = 64;
/// How long one waits for a word.
const WAITS: Duration = Duration::from_secs(24 * 3600);
/// How long a word counts.
const COUNTS: Duration = Duration::from_secs(3600);

/// What a purchase wants a word for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The model.
    pub model: &'a str,
    /// The seller.
    pub seller: NodeId,
    /// The most it may cost.
    pub max_cost: Amount,
}

/// What a purchase is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Yes: the grant is taken.
    Go,
    /// Nobody has said anything yet.
    Wait,
    /// No.
    No,
    /// Too many wait already.
    Full,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Go => "is approved",
            Self::Wait => "waits for a person's yes (`farthing wallet approve`)",
            Self::No => "was denied",
            Self::Full => "too many others wait for a yes already",
        })
    }
}

/// Rows to write or, where there is nothing, to delete.
pub(in crate::ledger) type Rows = Vec<(B256, Option<Approval>)>;

#[derive(Debug)]
struct Entry {
    approval: Approval,
    /// A running purchase has it.
    taken: bool,
}

/// All that want a word.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Approvals(HashMap<B256, Entry>);

impl Approvals {
    pub(in crate::ledger) fn load(&mut self, id: B256, approval: Approval) {
        let taken = false;
        self.0.insert(id, Entry { approval, taken });
    }

    /// Takes the grant of a purchase, or enters that it wants one.
    pub(in crate::ledger) fn take(
        &mut self,
        id: B256,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> (Reply, Rows) {
        let mut rows = self.sweep(now);
        // While a grant is in use whatever else wants one waits: in its place another could be
        // given back, and used twice, by the purchase that has this one.
        if let Some(entry) = self.0.get_mut(&id)
            && (entry.taken || wish.max_cost <= entry.approval.max_cost)
        {
            let reply = match (entry.approval.word, entry.taken) {
                (Word::Granted, false) => {
                    entry.taken = true;
                    rows.push((id, None));
                    Reply::Go
                }
                (Word::Granted | Word::Asked, _) => Reply::Wait,
                (Word::Denied, _) => Reply::No,
            };
            return (reply, rows);
        }
        // New, or dearer than what was shown: whatever was said, it was about something else.
        if !self.0.contains_key(&id) && self.0.len() >= MAX_APPROVALS {
            return (Reply::Full, rows);
        }
        let approval = Approval {
            model: wish.model.to_owned(),
            seller: wish.seller,
            max_cost: wish.max_cost,
            asked: now,
            until: now.plus(WAITS),
            word: Word::Asked,
        };
        rows.push((id, Some(approval.clone())));
        self.load(id, approval);
        (Reply::Wait, rows)
    }

    /// The purchase came to nothing: its grant can be used by another try.
    pub(in crate::ledger) fn give_back(&mut self, id: B256) {
        if let Some(entry) = self.0.get_mut(&id) {
            entry.taken = false;
        }
    }

    /// The purchase was made, or may have been: its grant is used up.
    pub(in crate::ledger) fn use_up(&mut self, id: B256) {
        if self.0.get(&id).is_some_and(|entry| entry.taken) {
            self.0.remove(&id);
        }
    }

    /// A person's word on a purchase that nobody has taken.
    pub(in crate::ledger) fn say(
        &mut self,
        id: B256,
        word: Word,
        now: Timestamp,
    ) -> Option<(Approval, Rows)> {
        let mut rows = self.sweep(now);
        let entry = self.0.get_mut(&id).filter(|entry| !entry.taken)?;
        entry.approval.word = word;
        entry.approval.until = now.plus(COUNTS);
        let approval = entry.approval.clone();
        rows.push((id, Some(approval.clone())));
        Some((approval, rows))
    }

    pub(in crate::ledger) fn list(&self, now: Timestamp) -> Vec<(B256, Approval)> {
        let current = |entry: &&Entry| !entry.taken && entry.approval.until > now;
        let mut list: Vec<_> = self
            .0
            .iter()
            .filter(|(_, entry)| current(entry))
            .map(|(id, entry)| (*id, entry.approval.clone()))
            .collect();
        list.sort_by_key(|(id, approval)| (approval.asked, *id));
        list
    }

    /// Forgets what is over.
    fn sweep(&mut self, now: Timestamp) -> Rows {
        let over = |entry: &Entry| !entry.taken && entry.approval.until <= now;
        let gone: Vec<_> = self
            .0
            .iter()
            .filter(|(_, entry)| over(entry))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            self.0.remove(id);
        }
        gone.into_iter().map(|id| (id, None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::testing;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn wish(max_cost: u128) -> Wish<'static> {
        Wish {
            model: "test/model",
            seller: testing::node_key(1).id(),
            max_cost: Amount::atoms(max_cost),
        }
    }

    fn id(n: u8) -> B256 {
        B256::repeat_byte(n)
    }

    #[test]
    fn a_grant_is_used_once_and_leaves_the_disk_before_it_is_used() {
        let mut approvals = Approvals::default();
        let (reply, rows) = approvals.take(id(1), wish(10), NOW);
        assert_eq!((reply, rows.len()), (Reply::Wait, 1));
        assert_eq!(approvals.take(id(1), wish(10), NOW).0, Reply::Wait);
        approvals.say(id(1), Word::Granted, NOW).expect("is known");
        assert_eq!(
            approvals.take(id(1), wish(9), NOW),
            (Reply::Go, vec![(id(1), None)])
        );
        assert_eq!(approvals.take(id(1), wish(9), NOW).0, Reply::Wait);
        approvals.give_back(id(1));
        assert_eq!(approvals.take(id(1), wish(9), NOW).0, Reply::Go);
        approvals.use_up(id(1));
        assert_eq!(approvals.take(id(1), wish(9), NOW).0, Reply::Wait);
        assert_eq!(approvals.list(NOW)[0].1.word, Word::Asked);
    }

    #[test]
    fn a_dearer_purchase_than_was_shown_is_asked_for_anew() {
        let mut approvals = Approvals::default();
        approvals.take(id(1), wish(10), NOW);
        approvals.say(id(1), Word::Granted, NOW).expect("is known");
        assert_eq!(approvals.take(id(1), wish(11), NOW).0, Reply::Wait);
        let (_, approval) = &approvals.list(NOW)[0];
        assert_eq!(
            (approval.word, approval.max_cost),
            (Word::Asked, Amount::atoms(11))
        );
    }

    #[test]
    fn regression_a_dearer_try_does_not_let_one_yes_be_used_twice() {
        let mut approvals = Approvals::default();
        approvals.take(id(1), wish(10), NOW);
        approvals.say(id(1), Word::Granted, NOW).expect("is known");
        assert_eq!(approvals.take(id(1), wish(10), NOW).0, Reply::Go);
        // The same request, dearer, while the first one runs; a person says yes to it.
        assert_eq!(approvals.take(id(1), wish(11), NOW).0, Reply::Wait);
        approvals.say(id(1), Word::Granted, NOW);
        let second = approvals.take(id(1), wish(11), NOW).0;
        // The first comes to nothing. That must not hand out the second's yes again.
        approvals.give_back(id(1));
        let third = approvals.take(id(1), wish(11), NOW).0;
        assert_ne!((second, third), (Reply::Go, Reply::Go));
    }

    #[test]
    fn a_no_holds_and_every_word_ends() {
        let mut approvals = Approvals::default();
        approvals.take(id(1), wish(10), NOW);
        approvals.say(id(1), Word::Denied, NOW).expect("is known");
        assert_eq!(approvals.take(id(1), wish(10), NOW).0, Reply::No);
        let later = NOW.plus(COUNTS);
        assert!(approvals.list(later).is_empty());
        assert_eq!(approvals.take(id(1), wish(10), later).0, Reply::Wait);
        assert!(approvals.say(id(2), Word::Granted, later).is_none());
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let mut approvals = Approvals::default();
        for n in 0..MAX_APPROVALS {
            let n = u8::try_from(n).expect("few");
            assert_eq!(approvals.take(id(n), wish(1), NOW).0, Reply::Wait);
        }
        assert_eq!(approvals.take(id(200), wish(1), NOW).0, Reply::Full);
        let (reply, rows) = approvals.take(id(200), wish(1), NOW.plus(WAITS));
        assert_eq!((reply, rows.len()), (Reply::Wait, MAX_APPROVALS + 1));
    }
}
