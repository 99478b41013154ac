//! Chance from a seed: the same seed throws the same dice, on every run.

use std::f64::consts::TAU;

/// A source of chance (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The dice of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The dice of a seed and what they are thrown for: the same whoever throws first.
    #[must_use]
    pub fn of(seed: u64, about: &[u64]) -> Self {
        let sum = about.iter().fold(mix(seed), |sum, part| mix(sum ^ part));
        Self(sum)
    }

    /// Any number.
    pub const fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to, and without, 1.
    pub const fn unit(&mut self) -> f64 {
        // The 53 bits that a float holds.
        (self.any() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True in this share of throws.
    pub const fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    /// One of so many places; 0 of none.
    pub const fn below(&mut self, places: usize) -> usize {
        ((self.any() as u128 * places as u128) >> 64) as usize
    }

    /// The time between two events that come `mean` apart.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Around 0, mostly within 1.
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
    }

    /// Above 0, half of it below `median`.
    pub fn log_normal(&mut self, median: f64, spread: f64) -> f64 {
        median * (spread * self.normal()).exp()
    }

    /// At least `least`, with a tail that is the heavier the smaller `shape`.
    pub fn pareto(&mut self, least: f64, shape: f64) -> f64 {
        least * (1.0 - self.unit()).powf(-1.0 / shape)
    }

    /// Puts a list into any order.
    pub const fn shuffle(&mut self, list: &mut [usize]) {
        let mut left = list.len();
        while left > 1 {
            let place = self.below(left);
            left -= 1;
            list.swap(left, place);
        }
    }
}

const fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same_dice() {
        let throw = |seed| {
            let mut dice = Dice::of(seed, &[1, 2]);
            (dice.any(), dice.normal().to_bits(), dice.below(1000))
        };
        assert_eq!(throw(7), throw(7));
        assert_ne!(throw(7), throw(8));
    }

    #[test]
    fn averages_are_those_of_the_distributions() {
        let mut dice = Dice::new(3);
        let mut mean = |throw: fn(&mut Dice) -> f64| {
            (0..20_000).map(|_| throw(&mut dice)).sum::<f64>() / 20_000.0
        };
        assert!((mean(Dice::unit) - 0.5).abs() < 0.02);
        assert!((mean(|dice| dice.exponential(3.0)) - 3.0).abs() < 0.1);
        assert!(mean(Dice::normal).abs() < 0.03);
        assert!((mean(|dice| f64::from(dice.log_normal(5.0, 1.0) < 5.0)) - 0.5).abs() < 0.02);
        assert!((mean(|dice| dice.pareto(1.0, 3.0)) - 1.5).abs() < 0.05);
    }
}
