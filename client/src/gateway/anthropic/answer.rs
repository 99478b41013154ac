//! A chat completion becomes a message. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

/// What a seller's answer, or a chunk of one, says. Unknown fields are nobody's here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Completion {
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    /// In a whole answer.
    pub(super) message: Option<Said>,
    /// In a chunk.
    pub(super) delta: Option<Said>,
    pub(super) finish_reason: Option<String>,
    /// The stop sequence that was met, as vLLM tells it.
    pub(super) stop_reason: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Said {
    pub(super) content: Option<String>,
    pub(super) refusal: Option<String>,
    /// Some servers call it so, some otherwise, some both.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    pub(super) tool_calls: Option<Vec<Call>>,
}

impl Said {
    pub(super) fn thought(&self) -> Option<&str> {
        given(self.reasoning_content.as_deref()).or_else(|| given(self.reasoning.as_deref()))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Call {
    #[serde(default)]
    pub(super) index: u64,
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) function: Function,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Function {
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    /// As Anthropic counts: what came from a cache is not input.
    pub(super) fn value(self) -> Value {
        let details = self.prompt_tokens_details.unwrap_or_default();
        let cached = details.cached_tokens.unwrap_or(0).min(self.prompt_tokens);
        json!({
            "input_tokens": self.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.completion_tokens,
        })
    }
}

/// It has said all.
pub(super) const ENDED: &str = "end_turn";
/// It waits for what a tool gives back.
pub(super) const CALLED: &str = "tool_use";

/// Why it ended, and on which of the request's stop sequences.
pub(super) fn stopped(choice: &Choice) -> (&'static str, Option<&str>) {
    let met = choice.stop_reason.as_ref().and_then(Value::as_str);
    match (choice.finish_reason.as_deref(), met) {
        (Some("stop"), Some(met)) => ("stop_sequence", Some(met)),
        (Some("length"), _) => ("max_tokens", None),
        (Some("tool_calls" | "function_call"), _) => (CALLED, None),
        (Some("content_filter"), _) => ("refusal", None),
        _ => (ENDED, None),
    }
}

/// Why a seller's answer is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the seller's answer is not understood: {0}")]
pub struct NotAMessage(pub(super) String);

/// The message that says the same as this chat completion, under our own id.
///
/// # Errors
/// [`NotAMessage`].
pub fn message(document: &[u8], id: &str) -> Result<Value, NotAMessage> {
    let strange = |error: serde_json::Error| NotAMessage(error.to_string());
    let whole: Completion = serde_json::from_slice(document).map_err(strange)?;
    let none = || NotAMessage("it has no choice".to_owned());
    let choice = whole.choices.first().ok_or_else(none)?;
    let mut content = Vec::new();
    let said = choice.message.as_ref().ok_or_else(none)?;
    if let Some(thinking) = said.thought() {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "" }));
    }
    let refusal = given(said.refusal.as_deref());
    for text in [given(said.content.as_deref()), refusal]
        .into_iter()
        .flatten()
    {
        content.push(json!({ "type": "text", "text": text, "citations": null }));
    }
    for call in said.tool_calls.iter().flatten() {
        content.push(used(call)?);
    }
    let calls = said
        .tool_calls
        .as_ref()
        .is_some_and(|calls| !calls.is_empty());
    let (reason, sequence) = match (refusal, stopped(choice)) {
        (Some(_), _) => ("refusal", None),
        // Some servers stop as if nothing had been called.
        (None, (ENDED, _)) if calls => (CALLED, None),
        (None, stopped) => stopped,
    };
    Ok(json!({
        "id": id, "type": "message", "role": "assistant", "model": whole.model,
        "content": content, "stop_reason": reason, "stop_sequence": sequence,
        "usage": whole.usage.unwrap_or_default().value(),
    }))
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// A tool's arguments are JSON within JSON. A model that wrote none has made no call.
fn used(call: &Call) -> Result<Value, NotAMessage> {
    let text = call.function.arguments.as_deref().unwrap_or("").trim();
    let text = if text.is_empty() { "{}" } else { text };
    let input: Value = serde_json::from_str(text)
        .map_err(|error| NotAMessage(format!("a tool's arguments are not JSON: {error}")))?;
    let name = call.function.name.as_deref().unwrap_or_default();
    let id = call.id.as_deref().unwrap_or(name);
    Ok(json!({ "type": "tool_use", "id": id, "name": name, "input": input }))
}
