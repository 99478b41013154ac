//! [`Sketch`]: the last few samples of a duration, and its quantiles.
//!
//! A ring: bounded, exact for what it holds, and it forgets by itself what a seller was like long
//! ago. Each sample is put in its place among the others, so reading the quantiles costs nothing.

use serde::{Deserialize, Serialize};

/// Samples kept.
const SAMPLES: usize = 64;
/// The fewest samples that say something of the middle, of one in twenty, of one in a hundred.
const FOR_P50: usize = 3;
const FOR_P95: usize = 8;
const FOR_P99: usize = 16;

/// The last samples, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sketch {
    ring: Vec<f32>,
    next: u8,
    /// The same samples, the smallest first.
    #[serde(skip)]
    sorted: Vec<f32>,
    #[serde(skip)]
    known: Quantiles,
}

/// What the samples say: milliseconds that half of them, 95 and 99 of a hundred do not exceed.
/// None while there are too few.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Quantiles {
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// Milliseconds that so many of a hundred samples do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half of them.
    pub p50: f64,
    /// Three of four.
    pub p75: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one in a hundred.
    pub p99: f64,
}

impl Sketch {
    /// Takes a sample; the oldest makes room.
    pub(super) fn add(&mut self, millis: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "seven digits are enough of a duration"
        )]
        let sample = millis as f32;
        if !sample.is_finite() {
            return;
        }
        if self.ring.len() < SAMPLES {
            self.ring.push(sample);
        } else {
            let place = usize::from(self.next) % SAMPLES;
            let oldest = std::mem::replace(&mut self.ring[place], sample);
            self.next = self.next.wrapping_add(1) % 64;
            let place = self.place(oldest);
            if place < self.sorted.len() {
                self.sorted.remove(place);
            }
        }
        self.sorted.insert(self.place(sample), sample);
        self.read();
    }

    /// How many samples are smaller.
    fn place(&self, sample: f32) -> usize {
        let smaller = |other: &f32| other.total_cmp(&sample).is_lt();
        self.sorted.partition_point(smaller)
    }

    /// What the samples say.
    pub(super) const fn quantiles(&self) -> Quantiles {
        self.known
    }

    /// All four that are told together, once there are samples enough for the rarest.
    pub(super) fn spread(&self) -> Option<Spread> {
        let of = |percent| at(&self.sorted, percent, FOR_P99);
        Some(Spread {
            p50: of(50)?,
            p75: of(75)?,
            p90: of(90)?,
            p99: of(99)?,
        })
    }

    /// Finds the quantiles anew, when read back from the disk. What no ring of ours holds is
    /// dropped.
    pub(super) fn know(&mut self) {
        self.ring.retain(|sample| sample.is_finite());
        self.ring.truncate(SAMPLES);
        self.sorted.clone_from(&self.ring);
        self.sorted.sort_unstable_by(f32::total_cmp);
        self.read();
    }

    fn read(&mut self) {
        self.known = Quantiles {
            p50: at(&self.sorted, 50, FOR_P50),
            p95: at(&self.sorted, 95, FOR_P95),
            p99: at(&self.sorted, 99, FOR_P99),
        };
    }
}

/// What so many of a hundred do not exceed, where there are at least so many samples.
fn at(sorted: &[f32], percent: usize, least: usize) -> Option<f64> {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    let sample = sorted.get(place).filter(|_| sorted.len() >= least);
    sample.map(|sample| f64::from(*sample))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(samples: impl IntoIterator<Item = f64>) -> Quantiles {
        let mut sketch = Sketch::default();
        for sample in samples {
            sketch.add(sample);
        }
        sketch.quantiles()
    }

    #[test]
    fn few_samples_say_nothing_of_the_rare() {
        assert_eq!(of([5.0, 1.0]), Quantiles::default());
        let some = of([1.0, 2.0, 3.0]);
        assert_eq!((some.p50, some.p95, some.p99), (Some(2.0), None, None));
    }

    #[test]
    fn a_quantile_is_the_sample_that_so_many_do_not_exceed() {
        let all = of((1..=64).map(f64::from));
        assert_eq!(
            (all.p50, all.p95, all.p99),
            (Some(32.0), Some(61.0), Some(64.0))
        );
        let mut sketch = Sketch::default();
        (1..=64).for_each(|n| sketch.add(f64::from(n)));
        let spread = Spread {
            p50: 32.0,
            p75: 48.0,
            p90: 58.0,
            p99: 64.0,
        };
        assert_eq!(sketch.spread(), Some(spread));
        assert_eq!(Sketch::default().spread(), None);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let slow = std::iter::repeat_n(9000.0, 500);
        let now = of(slow.chain(std::iter::repeat_n(10.0, SAMPLES)));
        assert_eq!((now.p50, now.p99), (Some(10.0), Some(10.0)));
    }

    proptest! {
        #[test]
        fn samples_in_their_places_are_those_that_are_sorted(samples in proptest::collection::vec(-9.0_f64..9.0, 0..300)) {
            let mut sketch = Sketch::default();
            for sample in samples {
                sketch.add(sample.round());
                let mut again = sketch.clone();
                again.know();
                prop_assert_eq!(&again, &sketch);
            }
        }

        #[test]
        fn a_rarer_quantile_is_never_less(samples in proptest::collection::vec(0.0_f64..1e6, 0..200)) {
            let all = of(samples);
            prop_assert!(all.p95.is_none_or(|p95| all.p50.is_some_and(|p50| p50 <= p95)));
            prop_assert!(all.p99.is_none_or(|p99| all.p95.is_some_and(|p95| p95 <= p99)));
        }
    }
}
