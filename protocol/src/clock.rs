//! The time of day, from outside: the system's, one that is wrong by as much as a test says, or
//! one that a test moves by hand.
//!
//! This is the only file that reads the system clock. Durations on the way (deadlines,
//! latencies) are tokio's business and need no date.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later by `duration`; the end of time when that cannot be written.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// The day since the Unix epoch (UTC): what a daily limit counts in.
    #[must_use]
    pub const fn day(self) -> u64 {
        self.0 / 86_400_000
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A source of the time of day. Cheap to clone; clones of a manual clock share its hands.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    Wrong(Arc<AtomicI64>),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// The machine's clock, wrong by so many milliseconds. They may change at any time: this is
    /// how a test lets the clock of a running program jump.
    #[must_use]
    pub const fn wrong_by(millis: Arc<AtomicI64>) -> Self {
        Self(Source::Wrong(millis))
    }

    /// A clock that stands at `start` until it is moved.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(start.0))))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => system(),
            Source::Wrong(by) => {
                let by = by.load(Ordering::SeqCst);
                Timestamp(system().0.saturating_add_signed(by))
            }
            Source::Manual(hands) => Timestamp(hands.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward. The system's clock takes no orders.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(hands) = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            hands.fetch_add(millis, Ordering::SeqCst);
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the system clock"
)]
fn system() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_manual_clock_move_together() {
        let clock = Clock::manual(Timestamp(1000));
        let other = clock.clone();
        other.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), Timestamp(3000));
        assert_eq!(clock.now().since(Timestamp(5000)), Duration::ZERO);
    }

    #[test]
    fn a_wrong_clock_jumps_both_ways() {
        let millis = Arc::new(AtomicI64::new(0));
        let wrong = Clock::wrong_by(Arc::clone(&millis));
        let right = Clock::system();
        millis.store(3_600_000, Ordering::SeqCst);
        assert!(wrong.now() > right.now());
        millis.store(-3_600_000, Ordering::SeqCst);
        assert!(wrong.now() < right.now());
    }
}
