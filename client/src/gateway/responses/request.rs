//! A Responses request becomes a chat request. Pure.
//!
//! What has a counterpart is translated, what OpenAI's own servers would do (their tools, their
//! prompts) is refused by name, and every other field passes as it came.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::gateway::responses::items::{self, Untranslatable};

/// Fields that mean something to OpenAI's servers alone and nothing for the answer.
const OWN: [&str; 9] = [
    "service_tier",
    "prompt_cache_options",
    "prompt_cache_retention",
    "access_programs",
    "client_metadata",
    "image",
    "max_tool_calls",
    "truncation",
    "stream_options",
];
/// Fields whose work is done by OpenAI's servers.
const SERVED: [&str; 3] = ["prompt", "context_management", "moderation"];
/// What a request asks for to be told the logprobs of the text.
const LOGPROBS: &str = "message.output_text.logprobs";

#[derive(Deserialize)]
struct Create {
    input: Option<Input>,
    instructions: Option<String>,
    max_output_tokens: Option<u64>,
    previous_response_id: Option<String>,
    reasoning: Option<Reasoning>,
    store: Option<bool>,
    #[serde(default)]
    stream: Option<bool>,
    text: Option<Text>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Choice>,
    background: Option<bool>,
    conversation: Option<Conversation>,
    include: Option<Vec<String>>,
    top_logprobs: Option<u64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Value>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Conversation {
    Id(String),
    Named { id: String },
}

#[derive(Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    format: Option<Format>,
    verbosity: Option<String>,
}

#[derive(Deserialize)]
struct Format {
    r#type: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Tool {
    r#type: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Choice {
    Mode(String),
    Named {
        r#type: String,
        name: Option<String>,
        mode: Option<String>,
        tools: Option<Vec<Tool>>,
    },
}

/// A request, read.
#[derive(Debug)]
pub struct Asked {
    /// The chat request, without its messages.
    chat: Map<String, Value>,
    instructions: Option<String>,
    /// The items of this request alone.
    pub input: Vec<Value>,
    /// The response it goes on from.
    pub previous: Option<String>,
    /// The conversation it is a turn of.
    pub conversation: Option<String>,
    /// Whether it goes on without anybody listening.
    pub background: bool,
    /// Whether the response is kept.
    pub store: bool,
    /// Whether it is told in events.
    pub stream: bool,
    /// What the response repeats of the request.
    pub settings: Map<String, Value>,
}

impl Asked {
    /// Reads a request.
    ///
    /// # Errors
    /// Any [`Untranslatable`].
    pub fn read(body: &[u8]) -> Result<Self, Untranslatable> {
        let whole: Map<String, Value> = serde_json::from_slice(body)?;
        let mut settings = settings(&whole);
        let asked: Create = serde_json::from_value(Value::Object(whole))?;
        let given = |field: &&str| asked.rest.get(*field).is_some_and(|value| !value.is_null());
        if let Some(field) = SERVED.iter().find(|field| given(field)) {
            return Err(Untranslatable::Theirs((*field).to_owned()));
        }
        let background = asked.background.unwrap_or(false);
        if background && asked.store == Some(false) {
            let lost = "`background`: what is not stored cannot be asked for later";
            return Err(Untranslatable::Shape(lost.to_owned()));
        }
        let conversation = asked.conversation.map(|it| match it {
            Conversation::Id(id) | Conversation::Named { id } => id,
        });
        if let Some(id) = &conversation {
            if asked.previous_response_id.is_some() {
                let two = "`conversation` and `previous_response_id` exclude each other";
                return Err(Untranslatable::Shape(two.to_owned()));
            }
            settings.insert("conversation".into(), json!({ "id": id }));
        }
        let input = match asked.input {
            None => Vec::new(),
            Some(Input::Text(text)) => vec![json!({ "role": "user", "content": text })],
            Some(Input::Items(items)) => items,
        };
        let mut read = Self {
            chat: asked.rest,
            instructions: asked.instructions,
            input,
            previous: asked.previous_response_id,
            conversation,
            background,
            store: asked.store.unwrap_or(true),
            stream: asked.stream.unwrap_or(false),
            settings,
        };
        for field in OWN {
            read.chat.remove(field);
        }
        // What nobody waits for is heard piece by piece too: so much of it is known when it ends.
        if read.stream || read.background {
            read.set("stream", true);
            read.set("stream_options", json!({ "include_usage": true }));
        }
        if let Some(most) = asked.max_output_tokens {
            read.set("max_tokens", most);
        }
        if let Some(effort) = asked.reasoning.and_then(|reasoning| reasoning.effort) {
            read.set("reasoning_effort", effort);
        }
        if let Some(tools) = asked.tools.filter(|tools| !tools.is_empty()) {
            let tools: Result<Vec<_>, _> = tools.into_iter().map(tool).collect();
            read.set("tools", tools?);
        }
        if let Some(choice) = asked.tool_choice {
            read.set("tool_choice", chosen(choice)?);
        }
        let wanted = asked.include.iter().flatten().any(|it| it == LOGPROBS);
        let top = asked.top_logprobs.filter(|top| *top > 0);
        if wanted || top.is_some() {
            read.set("logprobs", true);
        }
        if let Some(top) = top {
            read.set("top_logprobs", top);
        }
        if let Some(text) = asked.text {
            read.form(text)?;
        }
        Ok(read)
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.chat.insert(field.to_owned(), value.into());
    }

    /// In what form to answer.
    fn form(&mut self, text: Text) -> Result<(), Untranslatable> {
        if let Some(verbosity) = text.verbosity {
            self.set("verbosity", verbosity);
        }
        let Some(format) = text.format else {
            return Ok(());
        };
        match format.r#type.as_str() {
            "text" => {}
            "json_object" => self.set("response_format", json!({ "type": "json_object" })),
            "json_schema" => {
                let schema = json!({ "type": "json_schema", "json_schema": format.rest });
                self.set("response_format", schema);
            }
            other => {
                let strange = format!("text format `{other}`");
                return Err(Untranslatable::Shape(strange));
            }
        }
        Ok(())
    }

    /// The chat request that asks for the same, after the items that went before.
    ///
    /// # Errors
    /// Any [`Untranslatable`].
    pub fn chat(&self, before: &[Value]) -> Result<Value, Untranslatable> {
        let instructions = self.instructions.as_deref();
        let messages = items::messages(instructions, before.iter().chain(&self.input))?;
        let mut chat = self.chat.clone();
        chat.insert("messages".into(), messages.into());
        Ok(Value::Object(chat))
    }
}

/// What the response repeats of the request, or what holds when the request did not say.
fn settings(asked: &Map<String, Value>) -> Map<String, Value> {
    let defaults = json!({
        "background": false,
        "instructions": null,
        "max_output_tokens": null,
        "metadata": {},
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "store": true,
        "temperature": null,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "user": null,
    });
    let Value::Object(mut settings) = defaults else {
        return Map::new();
    };
    for (field, value) in &mut settings {
        if let Some(given) = asked.get(field).filter(|given| !given.is_null()) {
            value.clone_from(given);
        }
    }
    // Nothing of the input is left out here, whatever was asked for.
    settings.insert("truncation".into(), "disabled".into());
    settings
}

fn tool(tool: Tool) -> Result<Value, Untranslatable> {
    if tool.r#type != "function" {
        return Err(Untranslatable::Theirs(tool.r#type));
    }
    Ok(json!({ "type": "function", "function": tool.rest }))
}

fn chosen(choice: Choice) -> Result<Value, Untranslatable> {
    let (kind, name, mode, tools) = match choice {
        Choice::Mode(mode) => return Ok(mode.into()),
        Choice::Named {
            r#type,
            name,
            mode,
            tools,
        } => (r#type, name, mode, tools),
    };
    match (kind.as_str(), name, tools) {
        ("function", Some(name), _) => {
            Ok(json!({ "type": "function", "function": { "name": name } }))
        }
        ("allowed_tools", _, Some(tools)) => {
            let tools: Result<Vec<_>, _> = tools.into_iter().map(tool).collect();
            let allowed = json!({ "mode": mode, "tools": tools? });
            Ok(json!({ "type": "allowed_tools", "allowed_tools": allowed }))
        }
        ("function" | "allowed_tools", ..) => {
            let lacks = format!("tool_choice `{kind}` lacks something");
            Err(Untranslatable::Shape(lacks))
        }
        _ => Err(Untranslatable::Theirs(kind)),
    }
}
