//! What was measured of each contestant in each round, and what is said of all rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bench::figures::Sample;
use crate::bench::peers::{AT_ONCE, Contestant};

/// A rate counts as long as this many of a hundred answers are this quick.
pub(super) const QUICK: Duration = Duration::from_millis(10);

/// Requests, or streams, that a contestant answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// How long each took, or its first token.
    pub(super) latency: Sample,
    /// How long all took.
    pub(super) elapsed: Duration,
    /// Processor time of the gateway.
    pub(super) cpu: Duration,
}

impl Run {
    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Answers per second of the gateway's processor time, if it used any.
    pub(super) fn per_cpu(&self) -> Option<f64> {
        (!self.cpu.is_zero()).then(|| self.latency.len() as f64 / self.cpu.as_secs_f64())
    }

    /// How much of a core the gateway used.
    pub(super) fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Whether 99 of 100 were quick enough.
    pub(super) fn quick(&self) -> bool {
        self.latency.percentile(99) <= QUICK
    }
}

/// One contestant's part of a round.
#[derive(Debug, Clone, Default)]
pub(super) struct Round {
    /// Plain requests: how many at once, and what came of it.
    pub(super) steps: Vec<(usize, Run)>,
    /// Streams.
    pub(super) streams: Run,
}

impl Round {
    /// What so many at once took.
    pub(super) fn at(&self, lines: usize) -> Option<&Run> {
        let step = self.steps.iter().find(|(at_once, _)| *at_once == lines);
        step.map(|(_, run)| run)
    }

    /// What came of as many requests at once as the bars ask for.
    pub(super) fn full(&self) -> Option<&Run> {
        self.at(AT_ONCE)
    }

    /// The most at once that were answered quickly, and what came of it.
    pub(super) fn best(&self) -> Option<(usize, &Run)> {
        let quick = self.steps.iter().filter(|(_, run)| run.quick());
        let best = quick.max_by_key(|(lines, _)| *lines);
        best.map(|(lines, run)| (*lines, run))
    }
}

/// All rounds.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Of each contestant.
    pub(super) rounds: BTreeMap<Contestant, Vec<Round>>,
    /// Its gateway's memory at the end, in bytes.
    pub(super) memory: BTreeMap<Contestant, u64>,
}

/// A figure of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The middle one.
    pub(super) middle: f64,
    /// The smallest.
    pub(super) least: f64,
    /// The largest.
    pub(super) most: f64,
}

impl Spread {
    /// None of no figures.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<_> = figures.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let (low, high) = ((all.len() - 1) / 2, all.len() / 2);
        let middle = f64::midpoint(all[low], all[high]);
        Some(Self {
            middle,
            least,
            most,
        })
    }
}

impl Figures {
    /// A contestant's part of a round, counted from one.
    pub(super) fn round(&mut self, contestant: Contestant, number: usize) -> &mut Round {
        let rounds = self.rounds.entry(contestant).or_default();
        if rounds.len() < number {
            rounds.resize_with(number, Round::default);
        }
        &mut rounds[number - 1]
    }

    /// A contestant's rounds.
    pub(super) fn of(&self, contestant: Contestant) -> &[Round] {
        self.rounds.get(&contestant).map_or(&[], Vec::as_slice)
    }

    /// A figure of a contestant's rounds; of those that have it.
    pub(super) fn spread(
        &self,
        contestant: Contestant,
        figure: impl Fn(&Round) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(contestant).iter().filter_map(figure))
    }

    /// By how many seconds a contestant's figure exceeds that of the model server in the same round.
    pub(super) fn added(
        &self,
        contestant: Contestant,
        figure: impl Fn(&Round) -> Option<Duration>,
    ) -> Option<Spread> {
        self.beside(contestant, Contestant::Direct, |its, direct| {
            let added = figure(its)?.saturating_sub(figure(direct)?);
            Some(added.as_secs_f64())
        })
    }

    /// A contestant's figure as a multiple of another's in the same round.
    pub(super) fn ratio(
        &self,
        contestant: Contestant,
        other: Contestant,
        figure: impl Fn(&Round) -> Option<f64>,
    ) -> Option<Spread> {
        self.beside(contestant, other, |its, others| {
            Some(figure(its)? / figure(others)?)
        })
    }

    fn beside(
        &self,
        contestant: Contestant,
        other: Contestant,
        figure: impl Fn(&Round, &Round) -> Option<f64>,
    ) -> Option<Spread> {
        let pairs = self.of(contestant).iter().zip(self.of(other));
        Spread::of(pairs.filter_map(|(its, others)| figure(its, others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(micros: u64, cpu: u64) -> Run {
        Run {
            latency: std::iter::repeat_n(Duration::from_micros(micros), 10).collect(),
            elapsed: Duration::from_secs(1),
            cpu: Duration::from_millis(cpu),
        }
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        let spread = Spread::of([3.0, 1.0, 8.0]).unwrap();
        assert_eq!((spread.least, spread.middle, spread.most), (1.0, 3.0, 8.0));
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().middle, 1.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn figures_are_compared_within_a_round() {
        let mut figures = Figures::default();
        for (number, direct, paid) in [(1, 100, 150), (2, 300, 310), (3, 100, 190)] {
            let round = figures.round(Contestant::Direct, number);
            round.steps.push((1, run(direct, 0)));
            let round = figures.round(Contestant::Paid, number);
            round.steps.push((1, run(paid, 20)));
        }
        let half = |round: &Round| Some(round.at(1)?.latency.median());
        let added = figures.added(Contestant::Paid, half).unwrap();
        let expected = [10e-6, 50e-6, 90e-6];
        for (got, expected) in [added.least, added.middle, added.most].iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{added:?}");
        }
        let per_cpu = |round: &Round| round.at(1)?.per_cpu();
        assert_eq!(
            figures.spread(Contestant::Paid, per_cpu).unwrap().middle,
            500.0
        );
        // The model server has no gateway that could have used anything.
        assert_eq!(
            figures.ratio(Contestant::Paid, Contestant::Direct, per_cpu),
            None
        );
    }

    #[test]
    fn the_best_step_is_the_largest_quick_one() {
        let mut round = Round::default();
        for (lines, micros) in [(1, 100), (2, 11_000), (4, 9_000), (8, 12_000)] {
            round.steps.push((lines, run(micros, 1)));
        }
        assert_eq!(round.best().map(|(lines, _)| lines), Some(4));
        round.steps.clear();
        assert!(round.best().is_none());
    }
}
