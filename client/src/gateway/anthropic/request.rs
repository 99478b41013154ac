//! A Messages request becomes a chat request. Pure.
//!
//! What has a counterpart is translated, what Anthropic's own servers would do (their tools, their
//! files) is refused by name, and every other field passes as it came.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::gateway::effort;

/// Fields that mean something to Anthropic's servers alone and nothing for the answer.
const OWN: [&str; 3] = ["service_tier", "cache_control", "inference_geo"];
/// Fields whose work is done by Anthropic's servers.
const SERVED: [&str; 3] = ["container", "context_management", "mcp_servers"];

/// Blocks that have a counterpart.
const KNOWN: [&str; 7] = [
    "text",
    "image",
    "document",
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
];

/// Why a Messages request has no counterpart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    /// Not JSON, or a field that is missing or of the wrong kind.
    #[error("the request is not understood: {0}")]
    Shape(String),
    /// Something only Anthropic's own servers do.
    #[error("`{0}` is done by Anthropic's servers; sellers here cannot do it")]
    Theirs(String),
}

impl From<serde_json::Error> for Untranslatable {
    fn from(error: serde_json::Error) -> Self {
        Self::Shape(error.to_string())
    }
}

#[derive(Deserialize)]
struct Messages {
    model: String,
    max_tokens: u64,
    messages: Vec<Turn>,
    system: Option<Content>,
    stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    stream: bool,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    metadata: Option<Metadata>,
    output_config: Option<Output>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Turn {
    role: Role,
    content: Content,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

impl Content {
    fn blocks(self) -> Vec<Block> {
        match self {
            Self::Text(text) => vec![Block::Text { text }],
            Self::Blocks(blocks) => blocks,
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    Image {
        source: Source,
    },
    Document {
        source: Source,
        title: Option<String>,
    },
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
    ToolResult {
        tool_use_id: String,
        content: Option<Content>,
        #[serde(default)]
        is_error: bool,
    },
    Thinking {
        thinking: String,
    },
    /// Sealed by Anthropic: nobody else can read it.
    RedactedThinking {},
    #[serde(untagged)]
    Other {
        r#type: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Source {
    Base64 {
        media_type: String,
        data: String,
    },
    Url {
        url: String,
    },
    Text {
        data: String,
    },
    Content {
        content: Content,
    },
    #[serde(untagged)]
    Other {
        r#type: String,
    },
}

#[derive(Deserialize)]
struct Tool {
    r#type: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Choice {
    r#type: String,
    name: Option<String>,
    #[serde(default)]
    disable_parallel_tool_use: bool,
}

#[derive(Deserialize)]
struct Thinking {
    r#type: String,
    budget_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Deserialize)]
struct Output {
    effort: Option<String>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    r#type: String,
    schema: Option<Value>,
}

/// The chat request that asks for the same.
///
/// # Errors
/// Any [`Untranslatable`].
pub fn to_chat(body: &[u8]) -> Result<Value, Untranslatable> {
    let asked: Messages = serde_json::from_slice(body)?;
    if let Some(field) = SERVED.iter().find(|field| is_given(&asked.rest, field)) {
        return Err(Untranslatable::Theirs((*field).to_owned()));
    }
    let mut chat = asked.rest;
    for field in OWN {
        chat.remove(field);
    }
    let mut messages = Vec::new();
    if let Some(system) = asked.system {
        let text = texts(system.blocks(), "\n\n")?;
        messages.push(json!({ "role": "system", "content": text }));
    }
    for turn in asked.messages {
        match turn.role {
            Role::User => user(turn.content.blocks(), &mut messages)?,
            Role::Assistant => messages.push(assistant(turn.content.blocks())?),
        }
    }
    chat.insert("model".into(), asked.model.into());
    chat.insert("messages".into(), messages.into());
    chat.insert("max_tokens".into(), asked.max_tokens.into());
    if asked.stream {
        chat.insert("stream".into(), true.into());
        let usage = json!({ "include_usage": true });
        chat.insert("stream_options".into(), usage);
    }
    if let Some(stop) = asked.stop_sequences.filter(|stop| !stop.is_empty()) {
        chat.insert("stop".into(), stop.into());
    }
    if let Some(tools) = asked.tools.filter(|tools| !tools.is_empty()) {
        let tools: Result<Vec<_>, _> = tools.into_iter().map(tool).collect();
        chat.insert("tools".into(), tools?.into());
    }
    if let Some(choice) = asked.tool_choice {
        if choice.disable_parallel_tool_use {
            chat.insert("parallel_tool_calls".into(), false.into());
        }
        chat.insert("tool_choice".into(), chosen(choice)?);
    }
    if let Some(user) = asked.metadata.and_then(|metadata| metadata.user_id) {
        chat.insert("user".into(), user.into());
    }
    effort(&mut chat, asked.thinking, asked.output_config)?;
    Ok(Value::Object(chat))
}

fn is_given(rest: &Map<String, Value>, field: &str) -> bool {
    rest.get(field).is_some_and(|value| !value.is_null())
}

/// Blocks that can only be text.
fn texts(blocks: Vec<Block>, between: &str) -> Result<String, Untranslatable> {
    let text = |block| match block {
        Block::Text { text } => Ok(text),
        other => Err(misplaced(&other)),
    };
    let texts: Result<Vec<_>, _> = blocks.into_iter().map(text).collect();
    Ok(texts?.join(between))
}

/// What tools gave back are messages of their own, and stand before what the user says.
fn user(blocks: Vec<Block>, messages: &mut Vec<Value>) -> Result<(), Untranslatable> {
    let mut parts = Vec::new();
    for block in blocks {
        match block {
            Block::ToolResult {
                tool_use_id,
                content,
                is_error,
            } => {
                let (text, pictures) = result(content)?;
                let text = if is_error {
                    format!("Error: {text}")
                } else {
                    text
                };
                messages.push(json!({
                    "role": "tool", "tool_call_id": tool_use_id, "content": text,
                }));
                parts.extend(pictures);
            }
            other => parts.push(part(other)?),
        }
    }
    let said = match parts.as_slice() {
        [] => return Ok(()),
        [only] if only["type"] == "text" => only["text"].clone(),
        _ => parts.into(),
    };
    messages.push(json!({ "role": "user", "content": said }));
    Ok(())
}

/// A tool's words, and its pictures, which a tool's message cannot hold.
fn result(content: Option<Content>) -> Result<(String, Vec<Value>), Untranslatable> {
    let mut words = Vec::new();
    let mut pictures = Vec::new();
    for block in content.map(Content::blocks).unwrap_or_default() {
        match block {
            Block::Text { text } => words.push(text),
            other => pictures.push(part(other)?),
        }
    }
    Ok((words.join("\n"), pictures))
}

fn part(block: Block) -> Result<Value, Untranslatable> {
    match block {
        Block::Text { text } => Ok(json!({ "type": "text", "text": text })),
        Block::Image { source } => {
            let url = match source {
                Source::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
                Source::Url { url } => url,
                other => return Err(unknown_source(&other)),
            };
            Ok(json!({ "type": "image_url", "image_url": { "url": url } }))
        }
        Block::Document { source, title } => document(source, title),
        other => Err(misplaced(&other)),
    }
}

fn document(source: Source, title: Option<String>) -> Result<Value, Untranslatable> {
    let text = match source {
        Source::Base64 { media_type, data } => {
            let name = title.unwrap_or_else(|| "document".to_owned());
            let data = format!("data:{media_type};base64,{data}");
            let file = json!({ "filename": name, "file_data": data });
            return Ok(json!({ "type": "file", "file": file }));
        }
        Source::Text { data } => data,
        Source::Content { content } => texts(content.blocks(), "\n")?,
        other => return Err(unknown_source(&other)),
    };
    let text = match title {
        Some(title) => format!("{title}\n\n{text}"),
        None => text,
    };
    Ok(json!({ "type": "text", "text": text }))
}

fn assistant(blocks: Vec<Block>) -> Result<Value, Untranslatable> {
    let mut said = String::new();
    let mut thought = String::new();
    let mut calls = Vec::new();
    for block in blocks {
        match block {
            Block::Text { text } => said.push_str(&text),
            Block::Thinking { thinking } => thought.push_str(&thinking),
            Block::RedactedThinking {} => {}
            Block::ToolUse { id, name, input } => {
                let function = json!({ "name": name, "arguments": input.to_string() });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            other => return Err(misplaced(&other)),
        }
    }
    let content = (!said.is_empty() || calls.is_empty()).then_some(said);
    let mut message = json!({ "role": "assistant", "content": content });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    if !thought.is_empty() {
        message["reasoning_content"] = thought.into();
    }
    Ok(message)
}

fn tool(tool: Tool) -> Result<Value, Untranslatable> {
    if let Some(kind) = tool.r#type.filter(|kind| kind != "custom") {
        return Err(Untranslatable::Theirs(kind));
    }
    let missing = || Untranslatable::Shape(format!("tool `{}` has no input_schema", tool.name));
    let parameters = tool.input_schema.ok_or_else(missing)?;
    let mut function = json!({ "name": tool.name, "parameters": parameters });
    if let Some(description) = tool.description {
        function["description"] = description.into();
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    Ok(json!({ "type": "function", "function": function }))
}

fn chosen(choice: Choice) -> Result<Value, Untranslatable> {
    match (choice.r#type.as_str(), choice.name) {
        ("auto", _) => Ok("auto".into()),
        ("any", _) => Ok("required".into()),
        ("none", _) => Ok("none".into()),
        ("tool", Some(name)) => Ok(json!({ "type": "function", "function": { "name": name } })),
        (other, _) => Err(Untranslatable::Shape(format!("tool_choice `{other}`"))),
    }
}

/// How hard to think, and in what form to answer.
fn effort(
    chat: &mut Map<String, Value>,
    thinking: Option<Thinking>,
    output: Option<Output>,
) -> Result<(), Untranslatable> {
    let budget = thinking.filter(|thinking| thinking.r#type != "disabled");
    let by_budget = budget.map(|thinking| effort::of(thinking.budget_tokens));
    let output = output.unwrap_or(Output {
        effort: None,
        format: None,
    });
    let effort = output.effort.or_else(|| by_budget.map(str::to_owned));
    if let Some(effort) = effort {
        chat.insert("reasoning_effort".into(), effort.into());
    }
    match output.format {
        None => Ok(()),
        Some(Format {
            r#type,
            schema: Some(schema),
        }) if r#type == "json_schema" => {
            let schema = json!({ "name": "answer", "schema": schema, "strict": true });
            let format = json!({ "type": "json_schema", "json_schema": schema });
            chat.insert("response_format".into(), format);
            Ok(())
        }
        Some(Format { r#type, .. }) => Err(Untranslatable::Shape(
            format!("output format `{type}`", type = r#type),
        )),
    }
}

fn misplaced(block: &Block) -> Untranslatable {
    let kind = match block {
        Block::Text { .. } => "text",
        Block::Image { .. } => "image",
        Block::Document { .. } => "document",
        Block::ToolUse { .. } => "tool_use",
        Block::ToolResult { .. } => "tool_result",
        Block::Thinking { .. } => "thinking",
        Block::RedactedThinking {} => "redacted_thinking",
        Block::Other { r#type } if KNOWN.contains(&r#type.as_str()) => {
            return Untranslatable::Shape(
                format!("a `{type}` block lacks something", type = r#type),
            );
        }
        Block::Other { r#type } => return Untranslatable::Theirs(r#type.clone()),
    };
    Untranslatable::Shape(format!("a `{kind}` block may not stand there"))
}

fn unknown_source(source: &Source) -> Untranslatable {
    match source {
        Source::Other { r#type } => Untranslatable::Theirs(format!("source {type}", type = r#type)),
        _ => Untranslatable::Shape("a source of this kind may not stand there".to_owned()),
    }
}
