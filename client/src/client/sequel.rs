//! The request for the rest of an answer that broke off. Pure.
//!
//! A chat is asked for with the text so far as the assistant's last message, which a seller that
//! offers [`ASSISTANT_PREFIX`] goes on with; a completion with the text behind its prompt. All
//! other fields stay as they were, and what is left of the limit is the limit.

use bytes::Bytes;
use farthing_protocol::body::{Body, BodyError, quote};
use farthing_protocol::purchase::Endpoint;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::splice::{Length, Unfit};

pub(in crate::client) use farthing_protocol::offer::ASSISTANT_PREFIX;

/// Fields that say what a whole answer looks like: the rest of one does not look like it.
const WHOLE: [&str; 10] = [
    "logprobs",
    "top_logprobs",
    "echo",
    "suffix",
    "json_schema",
    "grammar",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
];
const LIMITS: [&str; 2] = ["max_completion_tokens", "max_tokens"];

/// What can be asked of another seller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::client) enum Sequel {
    /// The rest.
    Rest(Bytes),
    /// Nothing: so many tokens as were asked for are there.
    Nothing,
}

/// The request for the rest of the answer to `body`, of which `text` is there, so long. That
/// nothing is left to ask for is never believed of a seller that broke off: we counted it.
///
/// # Errors
/// [`Unfit`], when the rest alone cannot be asked for.
pub(in crate::client) fn rest(
    endpoint: Endpoint,
    body: &[u8],
    text: &str,
    length: Length,
) -> Result<Sequel, Unfit> {
    let body = Body::parse(body).map_err(|_| Unfit::Field("body"))?;
    fits(&body)?;
    let mut changes = match endpoint {
        Endpoint::Chat => chat(&body, text)?,
        Endpoint::Completions => vec![("prompt", prompt(&body, text)?)],
        Endpoint::Embeddings | Endpoint::Moderations => return Err(Unfit::Field("input")),
    };
    for field in LIMITS {
        let limit = body.get::<u64>(field).map_err(wrong)?;
        let Some(limit) = limit else { continue };
        if limit <= length.least {
            return Ok(Sequel::Nothing);
        }
        let left = limit.saturating_sub(length.tokens).max(1);
        changes.push((field, left.to_string()));
    }
    let changes: Vec<_> = changes
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    Ok(Sequel::Rest(body.with(&changes).into()))
}

/// How many answers a request asks for: `n` of each prompt.
pub(in crate::client) fn answers(body: &[u8]) -> u64 {
    let Ok(body) = Body::parse(body) else {
        return 1;
    };
    let each = body.get::<u64>("n").ok().flatten().unwrap_or(1).max(1);
    let prompts = body.raw("prompt").unwrap_or_default();
    let prompts = serde_json::from_str::<Vec<&RawValue>>(prompts).ok();
    let prompts = prompts.filter(|list| {
        let one = list.first().map_or("", |one| one.get());
        // A list of numbers is one prompt.
        one.starts_with(['"', '['])
    });
    each.saturating_mul(prompts.map_or(1, |list| list.len() as u64))
}

/// Whether the same request makes the same answer once more.
pub(in crate::client) fn is_repeatable(body: &[u8]) -> bool {
    let Ok(body) = Body::parse(body) else {
        return false;
    };
    let one = |field| number(&body, field).is_none_or(|count| count <= 1.0);
    number(&body, "temperature") == Some(0.0) && one("n") && one("best_of")
}

/// Whether what is asked for can be given in parts.
fn fits(body: &Body<'_>) -> Result<(), Unfit> {
    for field in ["n", "best_of"] {
        if number(body, field).is_some_and(|count| count > 1.0) {
            return Err(Unfit::Several);
        }
    }
    for field in WHOLE {
        if !matches!(body.raw(field), None | Some("false" | "0" | "\"\"")) {
            return Err(Unfit::Field(field));
        }
    }
    let kind = |field: &'static str| body.get::<Value>(field).map_err(wrong);
    let format = kind("response_format")?;
    if format.is_some_and(|format| format.get("type").is_none_or(|kind| kind != "text")) {
        return Err(Unfit::Field("response_format"));
    }
    let choice = kind("tool_choice")?;
    if choice.is_some_and(|choice| choice != "auto" && choice != "none") {
        return Err(Unfit::Field("tool_choice"));
    }
    let sounds = kind("modalities")?;
    if sounds.is_some_and(|kinds| kinds != serde_json::json!(["text"])) {
        return Err(Unfit::Field("modalities"));
    }
    Ok(())
}

fn number(body: &Body<'_>, field: &'static str) -> Option<f64> {
    body.get::<f64>(field).ok().flatten()
}

fn wrong(error: BodyError) -> Unfit {
    match error {
        BodyError::Field { field, .. } => Unfit::Field(field),
        BodyError::Malformed(_) => Unfit::Field("body"),
    }
}

/// The messages with the text so far behind them, or behind what the application began itself.
fn chat(body: &Body<'_>, text: &str) -> Result<Vec<(&'static str, String)>, Unfit> {
    let messages = body.raw("messages").unwrap_or("[]");
    let unfit = |_| Unfit::Field("messages");
    let messages: Vec<&RawValue> = serde_json::from_str(messages).map_err(unfit)?;
    let mut messages: Vec<String> = messages.iter().map(|one| one.get().to_owned()).collect();
    let begun = match messages.last() {
        Some(last) => begun(last, text)?,
        None => None,
    };
    match begun {
        Some(longer) => {
            messages.pop();
            messages.push(longer);
        }
        None => messages.push(format!(
            r#"{{"role":"assistant","content":{}}}"#,
            quote(text)
        )),
    }
    Ok(vec![
        ("messages", format!("[{}]", messages.join(","))),
        // What vLLM asks for; llama.cpp needs no word, and minds none.
        ("continue_final_message", "true".to_owned()),
        ("add_generation_prompt", "false".to_owned()),
    ])
}

/// An assistant's message that the application began, with more text.
fn begun(message: &str, text: &str) -> Result<Option<String>, Unfit> {
    let unfit = Unfit::Field("messages");
    let message = Body::parse(message.as_bytes()).map_err(|_| unfit)?;
    if message.get::<String>("role").map_err(wrong)?.as_deref() != Some("assistant") {
        return Ok(None);
    }
    let began = message.get::<String>("content").map_err(|_| unfit)?;
    let began = began.ok_or(unfit)?;
    let longer = message.with(&[("content", &quote(&format!("{began}{text}")))]);
    String::from_utf8(longer).map(Some).map_err(|_| unfit)
}

fn prompt(body: &Body<'_>, text: &str) -> Result<String, Unfit> {
    let unfit = Unfit::Field("prompt");
    let prompt = body.get::<String>("prompt").map_err(|_| unfit)?;
    Ok(quote(&format!("{}{text}", prompt.ok_or(unfit)?)))
}

#[cfg(test)]
mod tests;
