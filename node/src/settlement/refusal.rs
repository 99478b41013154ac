//! A row that the contract has refused, and when it is asked again.
//!
//! A refusal may be that of a node that lags, or of a moment: the row comes back by itself, each
//! time after twice as long, and at once when the chain reports something new of its channel.

use std::time::Duration;

use farthing_protocol::clock::Timestamp;
use tokio::time::Instant;

/// How long a row is left out that was refused once.
pub(in crate::settlement) const FIRST_REST: Duration = Duration::from_secs(60);
/// The longest that one is left out.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// A row that is left out for a while.
#[derive(Debug, Clone, Copy)]
pub(in crate::settlement) struct Refusal {
    since: Timestamp,
    /// By the other clock: the day's may be set back.
    at: Instant,
    rest: Duration,
}

impl Refusal {
    /// It was refused now, after it had been refused as `before` says.
    pub(in crate::settlement) fn after(before: Option<&Self>, now: Timestamp) -> Self {
        let twice = |before: &Self| before.rest.saturating_mul(2).min(LONGEST_REST);
        Self {
            since: now,
            at: Instant::now(),
            rest: before.map_or(FIRST_REST, twice),
        }
    }

    /// Whether it is still left out.
    pub(in crate::settlement) fn rests(&self, now: Timestamp) -> bool {
        now.since(self.since).max(self.at.elapsed()) < self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_row_comes_back_after_a_minute_and_then_ever_later_up_to_an_hour() {
        let mut now = Timestamp(1_000_000_000);
        let mut refusal = None;
        let mut minutes = Vec::new();
        for _ in 0..8 {
            let again = Refusal::after(refusal.as_ref(), now);
            assert!(again.rests(now));
            let mut rest = 0;
            while again.rests(now) && rest < 100 {
                now = now.plus(FIRST_REST);
                rest += 1;
            }
            minutes.push(rest);
            refusal = Some(again);
        }
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
