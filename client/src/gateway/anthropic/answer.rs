//! A chat completion becomes a message. Pure.

use serde_json::{Value, json};

use crate::gateway::chat::{Call, Choice, Completion, Strange, Usage, given};

/// As Anthropic counts: what came from a cache is not input.
pub(super) fn used(usage: Usage) -> Value {
    let cached = usage.cached();
    json!({
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    })
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

/// The message that says the same as this chat completion, under our own id.
///
/// # Errors
/// [`Strange`].
pub fn message(document: &[u8], id: &str) -> Result<Value, Strange> {
    let whole = Completion::read(document)?;
    let none = || Strange("it has no choice".to_owned());
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
        content.push(called(call)?);
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
        "usage": used(whole.usage.unwrap_or_default()),
    }))
}

/// A tool's arguments are JSON within JSON. A model that wrote none has made no call.
fn called(call: &Call) -> Result<Value, Strange> {
    let text = call.function.arguments.as_deref().unwrap_or("").trim();
    let text = if text.is_empty() { "{}" } else { text };
    let input: Value = serde_json::from_str(text)
        .map_err(|error| Strange(format!("a tool's arguments are not JSON: {error}")))?;
    let name = call.function.name.as_deref().unwrap_or_default();
    let id = call.id.as_deref().unwrap_or(name);
    Ok(json!({ "type": "tool_use", "id": id, "name": name, "input": input }))
}
