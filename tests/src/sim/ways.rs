//! The ways of choosing that are compared.

use std::fmt;

use crate::sim::baselines::{latency, plain, price};
use crate::sim::chooser::Chooser;
use crate::sim::dice::Dice;
use crate::sim::oracle::Sight;

/// A way of choosing sellers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The oracle that sees the future.
    Oracle,
    /// The oracle that knows natures and loads only.
    Informed,
    /// The client's market and router.
    Farthing,
    /// The same without hedges: one seller after the other.
    OneByOne,
    /// Anybody.
    Random,
    /// One after the other.
    RoundRobin,
    /// The cheapest.
    Cheapest,
    /// The lowest mean of ten first-token times.
    LowestLatency,
    /// By the inverse square of the price.
    InverseSquare,
    /// The better of two by peak-EWMA latency and requests in flight.
    PeakEwma,
    /// Weighted by price, and by lot.
    Livepeer,
    /// The least stated time.
    Petals,
}

impl Way {
    /// All of them, the oracles and ours first.
    pub const ALL: [Self; 12] = [
        Self::Oracle,
        Self::Informed,
        Self::Farthing,
        Self::OneByOne,
        Self::Random,
        Self::RoundRobin,
        Self::Cheapest,
        Self::LowestLatency,
        Self::InverseSquare,
        Self::PeakEwma,
        Self::Livepeer,
        Self::Petals,
    ];

    /// Those that others use.
    #[must_use]
    pub const fn is_baseline(self) -> bool {
        !matches!(
            self,
            Self::Oracle | Self::Informed | Self::Farthing | Self::OneByOne
        )
    }

    /// What an oracle knows; none if this is none.
    #[must_use]
    pub const fn oracle(self) -> Option<Sight> {
        match self {
            Self::Oracle => Some(Sight::Future),
            Self::Informed => Some(Sight::Present),
            _ => None,
        }
    }

    /// A new buyer that chooses in this way, among so many sellers; none for oracles and for ours.
    #[must_use]
    pub fn baseline(self, sellers: usize, dice: &mut Dice) -> Option<Box<dyn Chooser>> {
        Some(match self {
            Self::Oracle | Self::Informed | Self::Farthing | Self::OneByOne => return None,
            Self::Random => Box::new(plain::Random),
            Self::RoundRobin => Box::new(plain::RoundRobin::new(sellers, dice)),
            Self::Cheapest => Box::new(price::Cheapest),
            Self::LowestLatency => Box::new(latency::LowestLatency::new(sellers)),
            Self::InverseSquare => Box::new(price::InverseSquare::new(sellers)),
            Self::PeakEwma => Box::new(latency::PeakEwma::new(sellers)),
            Self::Livepeer => Box::new(price::Livepeer::new(sellers)),
            Self::Petals => Box::new(plain::Petals::new(sellers)),
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oracle => "oracle (future)",
            Self::Informed => "oracle (present)",
            Self::Farthing => "Farthing",
            Self::OneByOne => "Farthing without hedges",
            Self::Random => "random",
            Self::RoundRobin => "round robin",
            Self::Cheapest => "cheapest",
            Self::LowestLatency => "lowest latency",
            Self::InverseSquare => "inverse square of the price",
            Self::PeakEwma => "peak-EWMA, two choices",
            Self::Livepeer => "Livepeer's weights",
            Self::Petals => "Petals' cost",
        })
    }
}
