//! The buyer's own count of what it got: what bounds the seller's.
//!
//! Without the model's tokenizer a count is a bound, not a measure: no tokenizer makes more than
//! one token of a byte, and a stream brings at least one token per event. The seller's count is
//! paid only up to the bound (`docs/threat-model.md` says what a liar can gain within it).

use farthing_protocol::purchase::{Endpoint, Mode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Tokens that leave no text: end markers, role headers.
const SILENT_TOKENS: u64 = 16;

/// Counts delivered text.
#[derive(Debug)]
pub(in crate::purchase) struct Counter {
    endpoint: Endpoint,
    mode: Mode,
    events: u64,
    text: u64,
}

impl Counter {
    pub(in crate::purchase) const fn new(endpoint: Endpoint, mode: Mode) -> Self {
        Self {
            endpoint,
            mode,
            events: 0,
            text: 0,
        }
    }

    /// Enters one whole event or document.
    pub(in crate::purchase) fn count(&mut self, event: &[u8]) {
        self.events = self.events.saturating_add(1);
        if self.endpoint.writes() {
            self.text = self.text.saturating_add(text_bytes(event));
        }
    }

    /// True when nothing has come yet.
    pub(in crate::purchase) const fn nothing(&self) -> bool {
        self.events == 0
    }

    /// How many bytes of text have come.
    pub(in crate::purchase) const fn text(&self) -> u64 {
        self.text
    }

    /// How many whole events or documents have come.
    pub(in crate::purchase) const fn events(&self) -> u64 {
        self.events
    }

    /// How many output tokens have come, as far as we can tell: what we pay ahead from. One per
    /// event in a stream; models that send several tokens in one are paid on demand.
    pub(in crate::purchase) const fn output(&self) -> u64 {
        match self.mode {
            Mode::Plain => self.text,
            Mode::Stream => {
                let by_text = self.text / 3;
                if by_text > self.events {
                    by_text
                } else {
                    self.events
                }
            }
        }
    }

    /// The most output tokens we believe in.
    pub(in crate::purchase) const fn bound(&self) -> u64 {
        self.text
            .saturating_add(self.events)
            .saturating_add(SILENT_TOKENS)
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    message: Option<Delta<'a>>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
}

/// Text, or parts of another kind that are counted by their bytes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(serde_json::Value),
}

fn text_bytes(event: &[u8]) -> u64 {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(event) else {
        // Not a shape we know: every byte may be text.
        return event.len() as u64;
    };
    message.choices.iter().map(choice_bytes).sum()
}

fn choice_bytes(choice: &Choice<'_>) -> u64 {
    let text = choice.text.as_ref().map_or(0, |text| text.len());
    let bodies = choice.delta.iter().chain(&choice.message);
    (text + bodies.map(delta_bytes).sum::<usize>()) as u64
}

fn delta_bytes(delta: &Delta<'_>) -> usize {
    let content = match &delta.content {
        Some(Content::Text(text)) => text.len(),
        Some(Content::Parts(parts)) => parts.to_string().len(),
        None => 0,
    };
    let length = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
    let others = [delta.tool_calls, delta.function_call, delta.audio];
    let others: usize = others.iter().flatten().map(|raw| raw.get().len()).sum();
    content
        + length(&delta.reasoning_content)
        + length(&delta.reasoning)
        + length(&delta.refusal)
        + others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_model_wrote_counts_as_text() {
        let event = br#"{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"h\u00e9llo"}}],"usage":null}"#;
        assert_eq!(text_bytes(event), 6);
        let tools = br#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{}"}}]}}]}"#;
        assert!(text_bytes(tools) > 10);
        assert_eq!(text_bytes(br#"{"choices":[{"text":"abc"}]}"#), 3);
        assert_eq!(
            text_bytes(br#"{"choices":[],"usage":{"prompt_tokens":3}}"#),
            0
        );
    }

    #[test]
    fn an_unknown_shape_is_bounded_by_its_bytes() {
        assert_eq!(text_bytes(b"garbage"), 7);
    }

    #[test]
    fn a_seller_cannot_claim_more_tokens_than_bytes() {
        let mut counter = Counter::new(Endpoint::Chat, Mode::Stream);
        for _ in 0..10 {
            counter.count(br#"{"choices":[{"delta":{"content":"word"}}]}"#);
        }
        assert_eq!(counter.output(), 13);
        assert_eq!(counter.bound(), 40 + 10 + SILENT_TOKENS);
    }
}
