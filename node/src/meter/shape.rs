//! What a meter reads of an answer: sizes and counts, never the text itself.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// One event of a stream, or a document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    #[serde(deserialize_with = "or_default")]
    pub(super) choices: Vec<Choice>,
    usage: Option<UsageShape>,
}

impl Answer {
    /// What the server says was used.
    pub(super) fn reported(&self) -> Option<Reported> {
        self.usage.as_ref().map(|usage| {
            let completion = usage.completion_tokens.0.unwrap_or(0);
            let total = usage.total_tokens.0;
            Reported {
                // Embedding servers may give the total only.
                prompt: usage
                    .prompt_tokens
                    .0
                    .or(total.map(|total| total.saturating_sub(completion))),
                cached: usage
                    .prompt_tokens_details
                    .as_ref()
                    .and_then(|details| details.cached_tokens.0)
                    .unwrap_or(0),
                completion,
            }
        })
    }
}

/// What the server says was used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reported {
    pub(super) prompt: Option<u32>,
    pub(super) cached: u32,
    pub(super) completion: u32,
}

impl Reported {
    pub(super) const fn is_zero(&self) -> bool {
        matches!(self.prompt, None | Some(0)) && self.completion == 0
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UsageShape {
    prompt_tokens: Count,
    completion_tokens: Count,
    total_tokens: Count,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Count,
}

/// One of the answers being given.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    pub(super) index: Option<u64>,
    finish_reason: Size,
    text: Size,
    delta: Option<Message>,
    message: Option<Message>,
}

impl Choice {
    /// Bytes of content.
    pub(super) fn size(&self) -> u64 {
        let messages = [&self.delta, &self.message].into_iter().flatten();
        let inside: u64 = messages.map(Message::size).sum();
        self.text.0.saturating_add(inside)
    }

    pub(super) const fn has_finished(&self) -> bool {
        self.finish_reason.0 > 0
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    content: Size,
    // DeepSeek, llama.cpp and vLLM say the first, OpenRouter and Ollama the second.
    reasoning_content: Size,
    reasoning: Size,
    refusal: Size,
    #[serde(deserialize_with = "or_default")]
    tool_calls: Vec<ToolCall>,
    function_call: Option<Function>,
}

impl Message {
    fn size(&self) -> u64 {
        // A server may send its reasoning under both names: it was generated once.
        let reasoning = self.reasoning_content.0.max(self.reasoning.0);
        let calls = self.tool_calls.iter().filter_map(|c| c.function.as_ref());
        let functions: u64 = calls.chain(&self.function_call).map(Function::size).sum();
        self.content.0 + reasoning + self.refusal.0 + functions
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToolCall {
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    name: Size,
    arguments: Size,
}

impl Function {
    const fn size(&self) -> u64 {
        self.name.0 + self.arguments.0
    }
}

/// `null` as the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// How much text a value holds: the bytes of a string, or of all strings in a list or object.
#[derive(Debug, Default, Clone, Copy)]
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Measure;
        impl<'de> Visitor<'de> for Measure {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_str<E>(self, text: &str) -> Result<Size, E> {
                Ok(Size(text.len() as u64))
            }
            fn visit_unit<E>(self) -> Result<Size, E> {
                Ok(Size(0))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Size, E> {
                Ok(Size(0))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Size, E> {
                Ok(Size(0))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Size, E> {
                Ok(Size(0))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Size, E> {
                Ok(Size(0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Size, A::Error> {
                let mut sum = 0_u64;
                while let Some(Size(part)) = list.next_element()? {
                    sum = sum.saturating_add(part);
                }
                Ok(Size(sum))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Size, A::Error> {
                let mut sum = 0_u64;
                while let Some((IgnoredAny, Size(part))) = map.next_entry()? {
                    sum = sum.saturating_add(part);
                }
                Ok(Size(sum))
            }
        }
        deserializer.deserialize_any(Measure)
    }
}

/// A count of tokens: `null` and what is no number are none, negative ones zero, huge ones the
/// most that 32 bits hold.
#[derive(Debug, Default, Clone, Copy)]
struct Count(Option<u32>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number: Option<serde_json::Number> = Option::deserialize(deserializer)?;
        Ok(Self(number.map(|n| match (n.as_u64(), n.as_f64()) {
            (Some(count), _) => super::clamp(count),
            // Saturates at both ends, and 0 for what is not a number.
            (None, Some(float)) => float as u32,
            (None, None) => 0,
        })))
    }
}
