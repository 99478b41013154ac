//! How long one seller is waited for, by what was measured of it. Pure.
//!
//! A seller that answers within half a second as a rule is not waited for a minute: a few times
//! what it takes at worst is enough to know that it has failed. The configuration's waits are the
//! most, and hold where nothing was measured. The last seller of a plan is given them in full, for
//! there is nobody to turn to instead.

use std::fmt;
use std::time::Duration;

use crate::market::Measured;
use crate::policy::{Deadlines, Terms};

/// So many times the longest first token as a rule (the 99th percentile).
const FIRST_TOKEN: f64 = 4.0;
/// The shortest wait for a first token: a machine may have been busy once.
const LEAST_FIRST_TOKEN: Duration = Duration::from_secs(5);
/// And for each token of the prompt: long ones take their time to read.
const PER_PROMPT_TOKEN: Duration = Duration::from_millis(2);
/// So many times the longest silence between two events as a rule.
const GAP: f64 = 8.0;
/// The shortest silence that is taken for a failure.
const LEAST_GAP: Duration = Duration::from_secs(3);

/// How long this seller is waited for. `is_last`: nobody is asked after it.
#[must_use]
pub fn of(terms: &Terms, measured: &Measured, is_last: bool) -> Deadlines {
    let most = terms.deadlines;
    if is_last {
        return most;
    }
    let prompt = terms.expected.prompt;
    let least = LEAST_FIRST_TOKEN.saturating_add(PER_PROMPT_TOKEN.saturating_mul(prompt));
    let first_token = measured.first_token_p99;
    let first_token = first_token.map(|millis| measured.with_prompt(millis, prompt));
    Deadlines {
        first_token: times(first_token, FIRST_TOKEN, least, most.first_token),
        idle: times(measured.gap_p99, GAP, LEAST_GAP, most.idle),
        ..most
    }
}

/// A multiple of what was measured, in milliseconds, within bounds; the upper one where nothing was.
fn times(measured: Option<f64>, factor: f64, least: Duration, most: Duration) -> Duration {
    let wait = measured.map(|millis| Duration::try_from_secs_f64(millis * factor / 1000.0));
    match wait {
        Some(Ok(wait)) => wait.max(least).min(most),
        _ => most,
    }
}

/// Deadlines in words.
pub struct Told(pub Deadlines);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deadlines {
            connect,
            first_token,
            idle,
            total,
        } = self.0;
        let seconds = |wait: Duration| (wait.as_secs_f64() * 10.0).round() / 10.0;
        write!(
            f,
            "waits {} s to connect, {} s for the first token, {} s between tokens, {} s in all",
            seconds(connect),
            seconds(first_token),
            seconds(idle),
            seconds(total)
        )
    }
}

#[cfg(test)]
mod tests;
