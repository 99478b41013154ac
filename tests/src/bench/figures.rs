//! Samples of durations, and what is said of them.

use std::time::Duration;

/// Durations of one kind.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<Duration>);

impl Sample {
    /// One more.
    pub fn push(&mut self, one: Duration) {
        self.0.push(one);
    }

    /// All of another sample too.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The duration that so many of a hundred do not exceed; zero when there is none.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or_default()
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl FromIterator<Duration> for Sample {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        Self(durations.into_iter().collect())
    }
}

/// The same thing done directly and paid.
#[derive(Debug, Clone, Default)]
pub struct Pair<T> {
    /// Straight to the model server.
    pub direct: T,
    /// Through the market.
    pub paid: T,
}

impl Pair<Sample> {
    /// By how much the paid percentile exceeds the direct one.
    #[must_use]
    pub fn added(&self, percent: usize) -> Duration {
        let (paid, direct) = (
            self.paid.percentile(percent),
            self.direct.percentile(percent),
        );
        paid.saturating_sub(direct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_members_of_the_sample() {
        let sample: Sample = (1..=200).rev().map(Duration::from_micros).collect();
        assert_eq!(sample.percentile(50), Duration::from_micros(100));
        assert_eq!(sample.percentile(99), Duration::from_micros(198));
        assert_eq!(sample.percentile(100), Duration::from_micros(200));
        assert_eq!(Sample::default().percentile(99), Duration::ZERO);
    }
}
