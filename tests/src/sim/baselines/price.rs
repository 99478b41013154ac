//! Those that look at prices.

use crate::sim::chooser::{Ask, Chooser, Word, drawn, least};
use crate::sim::dice::Dice;
use crate::sim::seller::SECOND;

/// The cheapest first; nothing is remembered. So does Lilypad's solver, and atoma's proxy.
#[derive(Debug)]
pub struct Cheapest;

impl Chooser for Cheapest {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        least(ask, dice, |place| {
            ask.board.expected_cost(ask.request, place)
        })
    }
}

/// OpenRouter's documented default: first those without trouble in the last 30 seconds, each with
/// a chance in proportion to the inverse square of its price; the others only after them.
#[derive(Debug)]
pub struct InverseSquare {
    demoted: Vec<u64>,
}

/// How long trouble demotes a seller.
const DEMOTED: u64 = 30 * SECOND;
/// What demotion does to a seller's share: it comes after all others, not never.
const AFTER_ALL: f64 = 1e-12;

impl InverseSquare {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize) -> Self {
        Self {
            demoted: vec![0; sellers],
        }
    }
}

impl Chooser for InverseSquare {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        drawn(ask, dice, |place| {
            let share = 1.0 / ask.board.expected_cost(ask.request, place).powi(2);
            let demoted = self.demoted[place] > ask.at;
            share * if demoted { AFTER_ALL } else { 1.0 }
        })
    }

    fn ended(&mut self, place: usize, word: Word, at: u64) {
        if !matches!(word, Word::Served { .. } | Word::Overtaken(_)) {
            self.demoted[place] = at + DEMOTED;
        }
    }
}

/// Livepeer's weights at their defaults: 0.7 by price as `e^(-price/100)`, none by stake, 0.3 by
/// lot alone. Its price is of a pixel; here the middle price of all is taken for 100. A session
/// that fails suspends its seller for some refreshes of the list, here for half a minute. What
/// keeps a session while its latency score is good has no counterpart for single requests.
#[derive(Debug)]
pub struct Livepeer {
    suspended: Vec<u64>,
}

const BY_PRICE: f64 = 0.7;
const BY_LOT: f64 = 0.3;
const SUSPENDED: u64 = 30 * SECOND;

impl Livepeer {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize) -> Self {
        Self {
            suspended: vec![0; sellers],
        }
    }
}

impl Chooser for Livepeer {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        let sellers = ask.board.sellers();
        let price = |place| ask.board.expected_cost(ask.request, place);
        let mut prices: Vec<_> = (0..sellers).map(price).collect();
        let (_, middle, _) = prices.select_nth_unstable_by(sellers / 2, f64::total_cmp);
        let middle = *middle;
        let cheap = |place| (-price(place) / middle).exp();
        let sum: f64 = (0..sellers).map(cheap).sum();
        drawn(ask, dice, |place| {
            let share = BY_PRICE * cheap(place) / sum + BY_LOT / sellers as f64;
            let suspended = self.suspended[place] > ask.at;
            share * if suspended { AFTER_ALL } else { 1.0 }
        })
    }

    fn ended(&mut self, place: usize, word: Word, at: u64) {
        if !matches!(word, Word::Served { .. } | Word::Overtaken(_)) {
            self.suspended[place] = at + SUSPENDED;
        }
    }
}
