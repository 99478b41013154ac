//! Counts what passes; knows no price.
//!
//! A [`Meter`] is fed each event of a stream, or the one document, and says what was used so far.
//! What the model server reports (`usage`) is honoured, also when it reports as it goes; between
//! reports, and where there are none, an answer's tokens are counted: one for each choice of an
//! event that carries content. A prompt nobody reports is estimated from the request's bytes.
//!
//! A count may fall when a report corrects it. It never exceeds 32 bits. Each event is parsed
//! once, unknown fields are skipped, and no text is copied.

mod shape;

use farthing_protocol::purchase::Usage;

use shape::{Answer, Choice, Reported};

/// Bytes of text that make about one token, where nobody counted.
const BYTES_PER_TOKEN: u64 = 4;
/// Bytes of text that hardly make one token alone: where events are longer, they hold several.
const LONG_TOKEN: u64 = 6;
/// Choices told apart; [`farthing_protocol::pricing`] allows no more.
const CHOICES: u64 = 128;

/// The bytes are not an answer of an OpenAI-compatible server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model server's answer is not understood: {0}")]
pub struct NotAnAnswer(String);

/// The count of one purchase.
#[derive(Debug, Clone)]
pub struct Meter {
    /// What is believed of the prompt until it is reported.
    estimate: u32,
    reported: Option<Reported>,
    /// Events with content, since the last report.
    counted: u64,
    /// Bytes of content in them: a server may put several tokens into one event.
    written: u64,
    /// Choices that began and that ended: one bit each.
    begun: u128,
    ended: u128,
}

impl Meter {
    /// The meter of a request whose body has so many bytes.
    #[must_use]
    pub fn new(body: usize) -> Self {
        Self {
            estimate: clamp((body as u64).div_ceil(BYTES_PER_TOKEN)),
            reported: None,
            counted: 0,
            written: 0,
            begun: 0,
            ended: 0,
        }
    }

    /// Counts one event of a stream.
    ///
    /// # Errors
    /// [`NotAnAnswer`]; the count is unchanged.
    pub fn event(&mut self, json: &[u8]) -> Result<Usage, NotAnAnswer> {
        let answer = read(json)?;
        for choice in &answer.choices {
            let size = choice.size();
            if size > 0 {
                self.counted = self.counted.saturating_add(1);
                self.written = self.written.saturating_add(size);
            }
        }
        Ok(self.note(&answer))
    }

    /// Counts a whole document.
    ///
    /// # Errors
    /// [`NotAnAnswer`]; the count is unchanged.
    pub fn document(&mut self, json: &[u8]) -> Result<Usage, NotAnAnswer> {
        let answer = read(json)?;
        let tokens = |choice: &Choice| choice.size().div_ceil(BYTES_PER_TOKEN);
        let counted: u64 = answer.choices.iter().map(tokens).sum();
        self.counted = self.counted.saturating_add(counted);
        Ok(self.note(&answer))
    }

    /// What was used so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let report = self.reported.unwrap_or_default();
        let prompt = report.prompt.unwrap_or(self.estimate);
        Usage {
            prompt,
            cached: report.cached.min(prompt),
            completion: clamp(u64::from(report.completion).saturating_add(self.uncounted())),
        }
    }

    /// Tokens since the last report: one for each event, or more when they are long ones.
    fn uncounted(&self) -> u64 {
        self.counted.max(self.written / LONG_TOKEN)
    }

    /// True when so many choices, and every one that began, have said why they ended.
    #[must_use]
    pub const fn finished(&self, choices: u64) -> bool {
        self.begun == self.ended && self.ended.count_ones() as u64 >= choices
    }

    /// True when the model server reported usage: the count is its own, not ours.
    #[must_use]
    pub const fn is_reported(&self) -> bool {
        self.reported.is_some()
    }

    fn note(&mut self, answer: &Answer) -> Usage {
        for choice in &answer.choices {
            let index = choice.index.unwrap_or(0);
            let bit = if index < CHOICES { 1_u128 << index } else { 0 };
            self.begun |= bit;
            if choice.has_finished() {
                self.ended |= bit;
            }
        }
        // Some servers fill `usage` with zeros until they know: that is no report.
        if let Some(report) = answer.reported().filter(|report| !report.is_zero()) {
            self.reported = Some(report);
            self.counted = 0;
            self.written = 0;
        }
        self.usage()
    }
}

fn read(json: &[u8]) -> Result<Answer, NotAnAnswer> {
    // A list would be read as the fields in their order.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(NotAnAnswer("not a JSON object".into()));
    }
    serde_json::from_slice(json).map_err(|e| NotAnAnswer(e.to_string()))
}

fn clamp(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
