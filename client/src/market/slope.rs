//! [`Slope`]: how the time to the first token grows with the prompt.

use serde::{Deserialize, Serialize};

/// Prompts must differ by about so many tokens before the line through them means anything.
const SPREAD: f64 = 64.0;
/// What all earlier samples keep of their weight when a new one comes.
const KEPT: f64 = 0.97;
/// A sample counts as so many times what was expected at most: once in a while everybody is late.
const OUTLIER: f64 = 3.0;

/// How the time to the first token grows with the prompt: a line through the samples, the old
/// ones counting less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Slope {
    weight: f64,
    /// The mean prompt.
    pub(super) prompt: f64,
    millis: f64,
    /// Weighted sums of squares and products around the means.
    spread: f64,
    joint: f64,
}

impl Slope {
    pub(super) fn add(&mut self, prompt: f64, millis: f64) {
        let most = self
            .expected(prompt)
            .map_or(f64::MAX, |most| most * OUTLIER);
        let millis = millis.min(most);
        self.weight = self.weight * KEPT + 1.0;
        let (off, late) = (prompt - self.prompt, millis - self.millis);
        self.prompt += off / self.weight;
        self.millis += late / self.weight;
        self.spread = self.spread * KEPT + off * (prompt - self.prompt);
        self.joint = self.joint * KEPT + off * (millis - self.millis);
    }

    /// The time with this prompt, once there are samples enough.
    fn expected(&self, prompt: f64) -> Option<f64> {
        let millis = self.millis + (prompt - self.prompt) * self.per_prompt();
        // The line ends somewhere.
        (self.weight >= 5.0).then(|| millis.max(self.millis / 4.0).max(1.0))
    }

    pub(super) fn per_prompt(&self) -> f64 {
        if self.weight < 5.0 || self.spread < SPREAD * SPREAD * self.weight {
            return 0.0;
        }
        (self.joint / self.spread).max(0.0)
    }
}
