//! An OpenRouter request becomes one that the market understands. Pure.
//!
//! `provider`, `models`, suffixes and `session_id` are the router's own; what is left here are
//! fields that OpenRouter's servers would act on and no seller does.

use bytes::Bytes;
use farthing_protocol::body::{Body, quote};
use serde::Deserialize;

use crate::client::InferError;
use crate::gateway::effort;
use crate::gateway::error::Problem;

/// Fields that mean nothing outside OpenRouter, or nothing any more: no seller sees them.
const THEIRS: [&str; 8] = [
    "plugins",
    "transforms",
    "route",
    "usage",
    "trace",
    "debug",
    "reasoning",
    "stop_server_tools_when",
];
/// How the tools that OpenRouter's servers run are called.
const SERVER_TOOL: &str = "openrouter:";
/// The longest name of a conversation in a header.
const SESSION: usize = 256;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What to buy.
    pub body: Bytes,
    /// Whether the answer is wanted as a stream.
    pub streams: bool,
    /// The model, as the request names it.
    pub model: String,
    /// Whether what the model thinks is to be kept from the application.
    pub excludes_reasoning: bool,
}

#[derive(Deserialize)]
struct Plugin {
    id: Option<String>,
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct Tool {
    r#type: Option<String>,
}

#[derive(Default, Deserialize)]
struct Reasoning {
    effort: Option<String>,
    max_tokens: Option<u64>,
    enabled: Option<bool>,
    exclude: Option<bool>,
}

/// What a request asks for, and of which conversation if its head says so.
///
/// # Errors
/// [`Problem`] when it cannot be read, or wants what only OpenRouter's servers do.
pub fn read(bytes: &Bytes, session: Option<&str>) -> Result<Asked, Problem> {
    let fields = Body::parse(bytes)?;
    refuse_theirs(&fields)?;
    let reasoning = fields.get::<Reasoning>("reasoning")?.unwrap_or_default();
    let mut changes = Vec::new();
    if let Some(effort) = wanted_effort(&reasoning)
        && fields.raw("reasoning_effort").is_none()
    {
        changes.push(("reasoning_effort", quote(effort)));
    }
    if let Some(session) = session.filter(|it| !it.is_empty() && it.len() <= SESSION)
        && fields.raw("session_id").is_none()
    {
        changes.push(("session_id", quote(session)));
    }
    let model = fields.get::<String>("model")?.unwrap_or_default();
    let as_it_came = changes.is_empty() && THEIRS.iter().all(|field| fields.raw(field).is_none());
    let body = match as_it_came {
        true => bytes.clone(),
        false => {
            let changes: Vec<_> = changes
                .iter()
                .map(|(name, it)| (*name, it.as_str()))
                .collect();
            fields.rewritten(&changes, &THEIRS).into()
        }
    };
    Ok(Asked {
        body,
        streams: fields.get::<bool>("stream")?.unwrap_or(false),
        model,
        excludes_reasoning: reasoning.exclude == Some(true),
    })
}

fn wanted_effort(wanted: &Reasoning) -> Option<&str> {
    match wanted {
        Reasoning {
            effort: Some(effort),
            ..
        } => Some(effort),
        Reasoning {
            enabled: Some(false),
            ..
        } => Some("none"),
        Reasoning {
            max_tokens: None,
            enabled: None,
            ..
        } => None,
        Reasoning { max_tokens, .. } => Some(effort::of(*max_tokens)),
    }
}

/// Whoever asks for a search and gets an answer without one has been told something untrue.
fn refuse_theirs(fields: &Body<'_>) -> Result<(), Problem> {
    let plugins = fields.get::<Vec<Plugin>>("plugins")?.unwrap_or_default();
    let wanted = |plugin: &&Plugin| plugin.enabled != Some(false);
    if let Some(plugin) = plugins.iter().find(wanted) {
        let id = plugin.id.as_deref().unwrap_or("?");
        return Err(theirs(&format!("the plugin `{id}`")));
    }
    let tools = fields.raw("tools").unwrap_or_default();
    if tools.contains(SERVER_TOOL) {
        let tools = fields.get::<Vec<Tool>>("tools")?.unwrap_or_default();
        let kinds = tools.into_iter().filter_map(|tool| tool.r#type);
        if let Some(kind) = kinds.into_iter().find(|kind| kind.starts_with(SERVER_TOOL)) {
            return Err(theirs(&format!("the tool `{kind}`")));
        }
    }
    Ok(())
}

fn theirs(what: &str) -> Problem {
    let reason =
        format!("{what} is run by OpenRouter's own servers; no seller has it: leave it out");
    InferError::BadRequest(reason).into()
}
