//! Items of a conversation become chat messages. Pure.
//!
//! What the assistant said, thought and called between two turns of others is one message.

use serde::Deserialize;
use serde_json::{Value, json};

/// Items and parts that have a counterpart.
const KNOWN: [&str; 10] = [
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "input_text",
    "output_text",
    "refusal",
    "input_image",
    "input_file",
    "input_audio",
];

/// Why a Responses request has no counterpart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    /// Not JSON, or a field that is missing or of the wrong kind.
    #[error("the request is not understood: {0}")]
    Shape(String),
    /// Something only OpenAI's own servers do.
    #[error("`{0}` is done by OpenAI's servers; sellers here cannot do it")]
    Theirs(String),
}

impl From<serde_json::Error> for Untranslatable {
    fn from(error: serde_json::Error) -> Self {
        Self::Shape(error.to_string())
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Item {
    Message {
        role: Role,
        content: Content,
    },
    FunctionCall {
        call_id: String,
        name: String,
        arguments: String,
    },
    FunctionCallOutput {
        call_id: String,
        output: Content,
    },
    Reasoning {
        #[serde(default)]
        summary: Vec<Thought>,
        content: Option<Vec<Thought>>,
    },
    #[serde(untagged)]
    Other {
        r#type: String,
    },
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    System,
    Developer,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Thought {
    text: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    #[serde(alias = "output_text", alias = "text")]
    InputText {
        text: String,
    },
    Refusal {
        refusal: String,
    },
    InputImage {
        image_url: String,
        detail: Option<String>,
    },
    InputFile {
        file_data: String,
        filename: Option<String>,
    },
    InputAudio {
        input_audio: Value,
    },
    #[serde(untagged)]
    Other {
        r#type: String,
    },
}

/// What the assistant said since anybody else did.
#[derive(Default)]
struct Draft {
    said: Option<String>,
    thought: String,
    calls: Vec<Value>,
}

/// Messages, growing.
#[derive(Default)]
struct Chat {
    messages: Vec<Value>,
    draft: Option<Draft>,
    /// What tools gave back that their messages cannot hold.
    pictures: Vec<Value>,
}

/// The messages that say what these instructions and items say.
///
/// # Errors
/// Any [`Untranslatable`].
pub fn messages<'a>(
    instructions: Option<&str>,
    items: impl Iterator<Item = &'a Value>,
) -> Result<Vec<Value>, Untranslatable> {
    let mut chat = Chat::default();
    if let Some(text) = instructions {
        chat.say("system", text.into());
    }
    for item in items {
        chat.item(typed(item)?)?;
    }
    chat.flush();
    Ok(chat.messages)
}

/// An item without a type is a message.
fn typed(item: &Value) -> Result<Item, Untranslatable> {
    let mut item = item.clone();
    if let Some(fields) = item.as_object_mut()
        && fields.get("type").is_none_or(Value::is_null)
    {
        fields.insert("type".into(), "message".into());
    }
    Ok(serde_json::from_value(item)?)
}

impl Chat {
    fn item(&mut self, item: Item) -> Result<(), Untranslatable> {
        match item {
            Item::Message { role, content } => match role {
                Role::User => self.say("user", spoken(content)?),
                Role::System | Role::Developer => self.say("system", words(content, "\n")?.into()),
                Role::Assistant => {
                    let text = words(content, "")?;
                    if self.draft().said.is_some() || !self.draft().calls.is_empty() {
                        self.flush();
                    }
                    self.draft().said = Some(text);
                }
            },
            Item::Reasoning { summary, content } => {
                let thoughts = content.filter(|content| !content.is_empty());
                let texts: Vec<_> = thoughts.unwrap_or(summary);
                let texts: Vec<_> = texts.into_iter().map(|thought| thought.text).collect();
                if self.draft().said.is_some() || !self.draft().calls.is_empty() {
                    self.flush();
                }
                self.draft().thought.push_str(&texts.join("\n"));
            }
            Item::FunctionCall {
                call_id,
                name,
                arguments,
            } => {
                let function = json!({ "name": name, "arguments": arguments });
                let call = json!({ "id": call_id, "type": "function", "function": function });
                self.draft().calls.push(call);
            }
            Item::FunctionCallOutput { call_id, output } => {
                let text = self.result(output)?;
                self.settle();
                let result = json!({ "role": "tool", "tool_call_id": call_id, "content": text });
                self.messages.push(result);
            }
            Item::Other { r#type } => return Err(unknown(r#type)),
        }
        Ok(())
    }

    fn draft(&mut self) -> &mut Draft {
        if self.draft.is_none() {
            self.flush();
        }
        self.draft.get_or_insert_default()
    }

    fn say(&mut self, role: &str, content: Value) {
        self.flush();
        self.messages
            .push(json!({ "role": role, "content": content }));
    }

    /// A tool's words; its pictures wait until all tools have spoken.
    fn result(&mut self, output: Content) -> Result<String, Untranslatable> {
        let parts = match output {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        let mut words = Vec::new();
        for one in parts {
            match one {
                Part::InputText { text } => words.push(text),
                other => self.pictures.push(part(other)?),
            }
        }
        Ok(words.join("\n"))
    }

    /// Ends what the assistant says.
    fn settle(&mut self) {
        let Some(draft) = self.draft.take() else {
            return;
        };
        let said = draft
            .said
            .filter(|said| !said.is_empty() || draft.calls.is_empty());
        if said.is_none() && draft.calls.is_empty() && draft.thought.is_empty() {
            return;
        }
        let mut message = json!({ "role": "assistant", "content": said });
        if !draft.calls.is_empty() {
            message["tool_calls"] = draft.calls.into();
        }
        if !draft.thought.is_empty() {
            message["reasoning_content"] = draft.thought.into();
        }
        self.messages.push(message);
    }

    /// Ends what the assistant says and what tools gave back.
    fn flush(&mut self) {
        self.settle();
        if !self.pictures.is_empty() {
            let pictures = std::mem::take(&mut self.pictures);
            self.messages
                .push(json!({ "role": "user", "content": pictures }));
        }
    }
}

/// Content that can only be text.
fn words(content: Content, between: &str) -> Result<String, Untranslatable> {
    let parts = match content {
        Content::Text(text) => return Ok(text),
        Content::Parts(parts) => parts,
    };
    let word = |part| match part {
        Part::InputText { text } | Part::Refusal { refusal: text } => Ok(text),
        Part::Other { r#type } => Err(unknown(r#type)),
        _ => Err(Untranslatable::Shape(
            "only a user's message may hold more than text".to_owned(),
        )),
    };
    let words: Result<Vec<_>, _> = parts.into_iter().map(word).collect();
    Ok(words?.join(between))
}

/// What a user says.
fn spoken(content: Content) -> Result<Value, Untranslatable> {
    let parts = match content {
        Content::Text(text) => return Ok(text.into()),
        Content::Parts(parts) => parts,
    };
    let parts: Result<Vec<_>, _> = parts.into_iter().map(part).collect();
    let parts = parts?;
    Ok(match parts.as_slice() {
        [only] if only["type"] == "text" => only["text"].clone(),
        _ => parts.into(),
    })
}

fn part(part: Part) -> Result<Value, Untranslatable> {
    Ok(match part {
        Part::InputText { text } | Part::Refusal { refusal: text } => {
            json!({ "type": "text", "text": text })
        }
        Part::InputImage { image_url, detail } => {
            let mut image = json!({ "url": image_url });
            if let Some(detail) = detail {
                image["detail"] = detail.into();
            }
            json!({ "type": "image_url", "image_url": image })
        }
        Part::InputFile {
            file_data,
            filename,
        } => {
            let name = filename.unwrap_or_else(|| "document".to_owned());
            let file = json!({ "filename": name, "file_data": file_data });
            json!({ "type": "file", "file": file })
        }
        Part::InputAudio { input_audio } => {
            json!({ "type": "input_audio", "input_audio": input_audio })
        }
        Part::Other { r#type } => return Err(unknown(r#type)),
    })
}

/// Of a kind that is not known, or of a known one that lacks something.
fn unknown(kind: String) -> Untranslatable {
    match kind.as_str() {
        "input_image" | "input_file" => Untranslatable::Shape(format!(
            "a `{kind}` must bring its data (`image_url`, `file_data`); no files are held here"
        )),
        known if KNOWN.contains(&known) => {
            Untranslatable::Shape(format!("a `{kind}` lacks something"))
        }
        _ => Untranslatable::Theirs(kind),
    }
}

/// The items as they are listed: each with an id, its status and its parts.
#[must_use]
pub fn listed(items: &[Value], stem: &str) -> Vec<Value> {
    let one = |(index, item): (usize, &Value)| list(item, &format!("{stem}i{index}"));
    items.iter().enumerate().map(one).collect()
}

/// One item as it is listed, under this name unless it has its own.
#[must_use]
pub fn list(item: &Value, name: &str) -> Value {
    let mut item = item.clone();
    let Some(fields) = item.as_object_mut() else {
        return item;
    };
    let kind = fields.get("type").and_then(Value::as_str);
    let kind = kind.unwrap_or("message").to_owned();
    let prefix = match kind.as_str() {
        "function_call" => "fc",
        "function_call_output" => "fco",
        "reasoning" => "rs",
        _ => "msg",
    };
    let mut lacking = |field: &str, value: Value| {
        let slot = fields.entry(field.to_owned()).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    };
    lacking("type", kind.as_str().into());
    lacking("id", format!("{prefix}_{name}").into());
    match kind.as_str() {
        "reasoning" => lacking("summary", json!([])),
        _ => lacking("status", "completed".into()),
    }
    if kind == "message" {
        let assistant = fields.get("role").is_some_and(|role| role == "assistant");
        let content = fields.remove("content").unwrap_or_default();
        fields.insert("content".into(), parts(content, assistant));
    }
    item
}

/// A message's content as parts.
fn parts(content: Value, assistant: bool) -> Value {
    let text = |text: Value| match assistant {
        true => json!({ "type": "output_text", "text": text, "annotations": [] }),
        false => json!({ "type": "input_text", "text": text }),
    };
    let mut parts = match content {
        Value::Array(parts) => parts,
        other => vec![text(other)],
    };
    for part in parts.iter_mut().filter_map(Value::as_object_mut) {
        let (field, value) = match part.get("type").and_then(Value::as_str) {
            Some("input_image") => ("detail", "auto".into()),
            Some("output_text") => ("annotations", json!([])),
            _ => continue,
        };
        part.entry(field).or_insert(value);
    }
    parts.into()
}

/// The id of the item that this one stands for.
#[must_use]
pub fn reference(item: &Value) -> Option<&str> {
    (item["type"] == "item_reference").then(|| item["id"].as_str())?
}
