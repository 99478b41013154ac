//! A response as a document, at any point of its life. Pure.

use serde_json::{Map, Value, json};

use crate::gateway::chat::Usage;

/// What a response is before anything is said.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Its id.
    pub id: String,
    /// When it was asked for, in seconds since the Unix epoch.
    pub created_at: u64,
    /// The model, as the offer names it.
    pub model: String,
    /// What it repeats of the request.
    pub settings: Map<String, Value>,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Standing {
    /// Nobody says it yet.
    Queued,
    /// It is being said.
    #[default]
    InProgress,
    /// All is said.
    Completed,
    /// It was cut short, for this reason.
    Incomplete(&'static str),
    /// It broke off: what happened.
    Failed(String),
    /// The application wants no more of it.
    Cancelled,
}

impl Head {
    /// Whether it goes on without anybody listening.
    pub(super) fn background(&self) -> bool {
        self.settings.get("background") == Some(&Value::Bool(true))
    }
}

impl Standing {
    /// By the reason for which the model stopped.
    pub(super) fn of(finish_reason: Option<&str>) -> Self {
        match finish_reason {
            Some("length") => Self::Incomplete("max_output_tokens"),
            Some("content_filter") => Self::Incomplete("content_filter"),
            _ => Self::Completed,
        }
    }

    /// Its name.
    pub(super) const fn status(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// That of the item that was being said when it came so far.
    pub(super) const fn item(&self) -> &'static str {
        match self {
            Self::Queued | Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) | Self::Failed(_) | Self::Cancelled => "incomplete",
        }
    }
}

/// The response with what is said so far.
pub(super) fn document(
    head: &Head,
    standing: &Standing,
    output: &[Value],
    usage: Option<Usage>,
) -> Value {
    let (error, details) = match standing {
        Standing::Failed(why) => (
            json!({ "code": "server_error", "message": why }),
            Value::Null,
        ),
        Standing::Incomplete(reason) => (Value::Null, json!({ "reason": reason })),
        _ => (Value::Null, Value::Null),
    };
    let mut response = head.settings.clone();
    let own = [
        ("id", head.id.as_str().into()),
        ("object", "response".into()),
        ("created_at", head.created_at.into()),
        ("model", head.model.as_str().into()),
        ("status", standing.status().into()),
        ("error", error),
        ("incomplete_details", details),
        ("output", output.into()),
        ("usage", usage.map_or(Value::Null, used)),
    ];
    response.extend(own.map(|(field, value)| (field.to_owned(), value)));
    response.into()
}

/// As Responses counts; what is written into a cache is nobody's here.
fn used(usage: Usage) -> Value {
    let (input, output) = (usage.prompt_tokens, usage.completion_tokens);
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": usage.cached(), "cache_write_tokens": 0 },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": usage.thought() },
        "total_tokens": input.saturating_add(output),
    })
}
