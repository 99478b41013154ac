//! A seller at work: what it does now, who waits, and whom it turns away.

use std::collections::VecDeque;

use farthing_protocol::purchase::Load;

use crate::sim::seller::{Kind, SECOND, Seller};

/// The time in which a rate limiter counts, and how many requests it takes in it.
const LIMIT: (u64, usize) = (10 * SECOND, 3);
/// The wait that a full seller names, as a node does.
const FULL: u64 = SECOND / 2;

/// What a seller's door says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A slot is free.
    Free,
    /// There is room to wait.
    Queue,
    /// Busy, and how long to wait, in microseconds, if it says so.
    Busy(Option<u64>),
    /// No connection: refused.
    Refused,
    /// No connection, and no answer either.
    Silent,
}

/// What a seller does now.
#[derive(Debug, Default)]
pub struct Shop {
    /// Attempts at work, with when each is over.
    running: Vec<(usize, u64)>,
    waiting: VecDeque<usize>,
    /// When a rate limiter let the last ones in.
    let_in: VecDeque<u64>,
    /// Answers given in full.
    pub served: u64,
    /// Tokens delivered.
    pub tokens: u64,
    /// The most that were at work or waiting at once.
    pub fullest: usize,
}

impl Shop {
    /// What the door says to somebody who comes now.
    #[must_use]
    pub fn door(&self, seller: &Seller, at: u64) -> Door {
        if let Some(outage) = seller.outage(at) {
            return if outage.silent {
                Door::Silent
            } else {
                Door::Refused
            };
        }
        let (window, most) = LIMIT;
        let oldest = self.let_in.len().checked_sub(most);
        let frees = oldest.map(|place| self.let_in[place] + window);
        let limited = frees.filter(|frees| *frees > at);
        match (seller.kind, limited) {
            (Kind::Limiter, Some(frees)) => return Door::Busy(Some(frees - at)),
            (Kind::SilentLimiter, Some(_)) => return Door::Busy(None),
            _ => {}
        }
        if self.running.len() < seller.slots as usize {
            Door::Free
        } else if self.waiting.len() < seller.queue as usize {
            Door::Queue
        } else {
            Door::Busy(Some(FULL))
        }
    }

    /// Somebody was let in.
    pub fn enter(&mut self, at: u64) {
        self.let_in.push_back(at);
        if self.let_in.len() > LIMIT.1 {
            self.let_in.pop_front();
        }
    }

    /// Work begins on an attempt; it is over at `leaves` at the latest.
    pub fn begin(&mut self, attempt: usize, leaves: u64) {
        self.running.push((attempt, leaves));
        self.note();
    }

    /// An attempt waits.
    pub fn wait(&mut self, attempt: usize) {
        self.waiting.push_back(attempt);
        self.note();
    }

    fn note(&mut self) {
        self.fullest = self.fullest.max(self.running.len() + self.waiting.len());
    }

    /// An attempt leaves, wherever it was. The next to be worked on, if its place is free now.
    pub fn leave(&mut self, attempt: usize) -> Option<usize> {
        if let Some(place) = self.waiting.iter().position(|waits| *waits == attempt) {
            self.waiting.remove(place);
            return None;
        }
        let place = self.running.iter().position(|(runs, _)| *runs == attempt)?;
        self.running.swap_remove(place);
        self.waiting.pop_front()
    }

    /// How many are worked on.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running.len()
    }

    /// How busy it says it is. A node does not know who waits behind it.
    #[must_use]
    pub fn load(&self, seller: &Seller) -> Load {
        let busy = self.running.len() + self.waiting.len();
        Load {
            running: u32::try_from(busy).unwrap_or(u32::MAX),
            slots: seller.slots + seller.queue,
        }
    }

    /// When work would begin on somebody who comes now and is let in, and beside how many others.
    #[must_use]
    pub fn forecast(&self, seller: &Seller, at: u64) -> (u64, u32) {
        let slots = seller.slots as usize;
        if self.running.len() < slots {
            return (at, self.running.len() as u32);
        }
        let mut leaves: Vec<_> = self.running.iter().map(|(_, leaves)| *leaves).collect();
        leaves.sort_unstable();
        let begins = leaves.get(self.waiting.len()).or(leaves.last());
        (begins.copied().unwrap_or(at).max(at), seller.slots - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::workload::Demand;
    use crate::sim::world::{Size, World};

    fn world() -> World {
        World::new(
            1,
            Size {
                sellers: 100,
                bad: 0.2,
                demand: Demand {
                    buyers: 1,
                    rate: 0.1,
                    seconds: 10,
                },
            },
        )
    }

    #[test]
    fn a_full_seller_lets_some_wait_and_sends_the_others_away() {
        let world = world();
        let honest = |seller: &&Seller| seller.kind == Kind::Honest && seller.queue > 0;
        let seller = world.sellers.iter().find(honest).expect("there is one");
        let slots = seller.slots as usize;
        let mut shop = Shop::default();
        for attempt in 0..slots {
            assert_eq!(shop.door(seller, 0), Door::Free);
            shop.begin(attempt, 1000 + attempt as u64);
        }
        assert_eq!(shop.door(seller, 0), Door::Queue);
        assert_eq!(shop.forecast(seller, 0).0, 1000);
        let all = slots + seller.queue as usize;
        for attempt in slots..all {
            shop.wait(attempt);
        }
        assert_eq!(shop.door(seller, 0), Door::Busy(Some(FULL)));
        assert_eq!(shop.leave(all - 1), None);
        assert_eq!(shop.leave(0), (all - 1 > slots).then_some(slots));
    }

    #[test]
    fn a_rate_limiter_lets_in_only_so_many_at_a_time() {
        let world = world();
        let limiter = world.sellers.iter().find(|s| s.kind == Kind::Limiter);
        let limiter = limiter.expect("there is one");
        let mut shop = Shop::default();
        for at in [1, 2, 3] {
            assert_eq!(shop.door(limiter, at), Door::Free);
            shop.enter(at);
        }
        assert_eq!(shop.door(limiter, 4), Door::Busy(Some(LIMIT.0 - 3)));
        assert_eq!(shop.door(limiter, 1 + LIMIT.0), Door::Free);
    }
}
