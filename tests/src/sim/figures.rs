//! What a run comes to: its answers, and the figures made of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sim::seller::{Kind, SECOND, Seller};
use crate::sim::shop::Shop;
use crate::sim::ways::Way;

/// What a request that failed counts as: so many answers of a middling honest seller.
pub const FAILURE: f64 = 10.0;

/// How one request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// When it was asked.
    pub at: u64,
    /// By whom.
    pub buyer: usize,
    /// Whether the whole answer came.
    pub whole: bool,
    /// Milliseconds to the first token.
    pub first: Option<f64>,
    /// Milliseconds to the end.
    pub elapsed: f64,
    /// Micro-atoms paid.
    pub paid: f64,
    /// Micro-atoms that a middling honest seller would have charged.
    pub reckoned: f64,
    /// The objective; only where the whole answer came.
    pub value: f64,
    /// Sellers that failed before the first token, and the one that did not.
    pub tried: u32,
    /// Sellers that said before the first token that they are busy.
    pub busy: u32,
    /// Whether a second seller was asked beside the first.
    pub hedged: bool,
    /// How often the stream was continued elsewhere.
    pub rescued: u32,
}

/// Everything that is known of a run.
#[derive(Debug)]
pub struct Figures {
    /// How sellers were chosen.
    pub way: Way,
    /// Every request, as they ended.
    pub answers: Vec<Answer>,
    /// Answers given by each honest seller.
    pub served: Vec<u64>,
    /// Answers given by each kind of seller.
    pub kinds: BTreeMap<Kind, u64>,
    /// How long each choice took on this machine. Not a part of what is the same for a seed.
    pub decisions: Vec<Duration>,
}

/// The figures of a part of a run. Times and values are of answers that came whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Requests.
    pub requests: usize,
    /// The share that was answered in full.
    pub success: f64,
    /// Milliseconds to the first token: the middle.
    pub first_p50: f64,
    /// The 99th percentile.
    pub first_p99: f64,
    /// Milliseconds to the end: the middle.
    pub elapsed_p50: f64,
    /// What was paid, as a multiple of what a middling honest seller would have charged.
    pub cost: f64,
    /// The mean of the objective, failures counted as [`FAILURE`].
    pub objective: f64,
    /// Tries a request before the first token.
    pub tries: f64,
    /// Times a request was turned away before the first token by a seller that was busy.
    pub busy: f64,
    /// The share of requests for which a second seller was asked beside the first.
    pub hedged: f64,
    /// The share of requests whose stream was continued elsewhere.
    pub rescued: f64,
}

impl Figures {
    /// A run without any yet.
    #[must_use]
    pub const fn new(way: Way) -> Self {
        Self {
            way,
            answers: Vec::new(),
            served: Vec::new(),
            kinds: BTreeMap::new(),
            decisions: Vec::new(),
        }
    }

    /// A request has ended.
    pub fn answer(&mut self, answer: Answer) {
        self.answers.push(answer);
    }

    /// A choice was made.
    pub fn decided(&mut self, took: Duration) {
        self.decisions.push(took);
    }

    /// The run is over for a seller.
    pub fn seller(&mut self, seller: &Seller, shop: &Shop) {
        *self.kinds.entry(seller.kind).or_default() += shop.served;
        if seller.kind == Kind::Honest {
            self.served.push(shop.served);
        }
    }

    /// The figures of what was asked from `from` on and before `until`, in seconds.
    #[must_use]
    pub fn summary(&self, from: u64, until: u64) -> Summary {
        let within = |answer: &&Answer| (from..until).contains(&(answer.at / SECOND));
        let answers: Vec<_> = self.answers.iter().filter(within).collect();
        let whole: Vec<_> = answers.iter().filter(|answer| answer.whole).collect();
        let all = answers.len().max(1) as f64;
        let mut firsts: Vec<_> = whole.iter().filter_map(|answer| answer.first).collect();
        let mut ends: Vec<_> = whole.iter().map(|answer| answer.elapsed).collect();
        firsts.sort_by(f64::total_cmp);
        ends.sort_by(f64::total_cmp);
        let paid: f64 = answers.iter().map(|answer| answer.paid).sum();
        let reckoned: f64 = whole.iter().map(|answer| answer.reckoned).sum();
        let value = |answer: &&Answer| if answer.whole { answer.value } else { FAILURE };
        let tries: u32 = answers.iter().map(|answer| answer.tried).sum();
        let busy: u32 = answers.iter().map(|answer| answer.busy).sum();
        let hedged = answers.iter().filter(|answer| answer.hedged).count();
        let rescued = answers.iter().filter(|answer| answer.rescued > 0).count();
        Summary {
            requests: answers.len(),
            success: whole.len() as f64 / all,
            first_p50: quantile(&firsts, 0.5),
            first_p99: quantile(&firsts, 0.99),
            elapsed_p50: quantile(&ends, 0.5),
            cost: paid / reckoned.max(1.0),
            objective: answers.iter().map(value).sum::<f64>() / all,
            tries: f64::from(tries) / all,
            busy: f64::from(busy) / all,
            hedged: hedged as f64 / all,
            rescued: rescued as f64 / all,
        }
    }

    /// How unevenly the honest sellers are used: 0 when all serve as much, towards 1 when one
    /// serves all (Gini's coefficient).
    #[must_use]
    pub fn spread(&self) -> f64 {
        let mut served = self.served.clone();
        served.sort_unstable();
        let count = served.len() as f64;
        let sum: f64 = served.iter().map(|served| *served as f64).sum();
        let weighed = served.iter().zip(1..);
        let weighed: f64 = weighed
            .map(|(served, rank)| *served as f64 * f64::from(rank))
            .sum();
        if sum == 0.0 {
            return 0.0;
        }
        2.0 * weighed / (count * sum) - (count + 1.0) / count
    }

    /// The share of answers that came from sellers that are not honest.
    #[must_use]
    pub fn from_bad(&self) -> f64 {
        let all: u64 = self.kinds.values().sum();
        let honest = self.kinds.get(&Kind::Honest).copied().unwrap_or(0);
        (all - honest) as f64 / all.max(1) as f64
    }

    /// A quantile of the time that a choice took.
    #[must_use]
    pub fn decision(&self, quantile: f64) -> Duration {
        let mut decisions = self.decisions.clone();
        decisions.sort_unstable();
        let place = (decisions.len() as f64 * quantile) as usize;
        let last = decisions.last().copied().unwrap_or_default();
        decisions.get(place).copied().unwrap_or(last)
    }
}

/// The value below which this share of a sorted list lies; 0 of nothing.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    let last = sorted.last().copied().unwrap_or(0.0);
    sorted.get(place).copied().unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_zero_among_equals_and_near_one_for_a_monopoly() {
        let mut figures = Figures::new(Way::Random);
        figures.served = vec![5; 100];
        assert!(figures.spread().abs() < 1e-9);
        figures.served = vec![0; 99];
        figures.served.push(7);
        assert!(figures.spread() > 0.98);
    }

    #[test]
    fn a_failure_counts_and_its_time_does_not() {
        let mut figures = Figures::new(Way::Random);
        let answer = |whole, first| Answer {
            at: SECOND,
            buyer: 0,
            whole,
            first: Some(first),
            elapsed: 2.0 * first,
            paid: 3.0,
            reckoned: 2.0,
            value: 1.0,
            tried: 1,
            busy: 0,
            hedged: false,
            rescued: 0,
        };
        for whole in [true, true, true, false] {
            figures.answer(answer(whole, if whole { 100.0 } else { 9e9 }));
        }
        let summary = figures.summary(0, 10);
        assert_eq!((summary.requests, summary.success), (4, 0.75));
        assert_eq!((summary.first_p99, summary.cost), (100.0, 2.0));
        assert_eq!(summary.objective, (3.0 + FAILURE) / 4.0);
    }
}
