//! What a seller's chat answers say, for dialects that say it otherwise. Pure; unknown fields are
//! nobody's here.

use bytes::Bytes;
use farthing_protocol::purchase::Usage as Counted;
use serde::Deserialize;
use serde_json::Value;

use crate::policy::BYTES_PER_TOKEN;

/// A whole answer, or a chunk of one.
#[derive(Debug, Default, Deserialize)]
pub(in crate::gateway) struct Completion {
    pub(in crate::gateway) model: Option<String>,
    #[serde(default)]
    pub(in crate::gateway) choices: Vec<Choice>,
    pub(in crate::gateway) usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct Choice {
    /// In a whole answer.
    pub(in crate::gateway) message: Option<Said>,
    /// In a chunk.
    pub(in crate::gateway) delta: Option<Said>,
    pub(in crate::gateway) logprobs: Option<Logprobs>,
    pub(in crate::gateway) finish_reason: Option<String>,
    /// The stop sequence that was met, as vLLM tells it.
    pub(in crate::gateway) stop_reason: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct Logprobs {
    pub(in crate::gateway) content: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
pub(in crate::gateway) struct Said {
    pub(in crate::gateway) content: Option<String>,
    pub(in crate::gateway) refusal: Option<String>,
    /// Some servers call it so, some otherwise, some both.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    pub(in crate::gateway) tool_calls: Option<Vec<Call>>,
}

impl Said {
    pub(in crate::gateway) fn thought(&self) -> Option<&str> {
        given(self.reasoning_content.as_deref()).or_else(|| given(self.reasoning.as_deref()))
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct Call {
    #[serde(default)]
    index: u64,
    pub(in crate::gateway) id: Option<String>,
    #[serde(default)]
    pub(in crate::gateway) function: Function,
}

#[derive(Debug, Default, Deserialize)]
pub(in crate::gateway) struct Function {
    pub(in crate::gateway) name: Option<String>,
    pub(in crate::gateway) arguments: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(in crate::gateway) struct Usage {
    #[serde(default)]
    pub(in crate::gateway) prompt_tokens: u64,
    #[serde(default)]
    pub(in crate::gateway) completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

impl Usage {
    /// With the tokens that a receipt counts.
    pub(in crate::gateway) fn counted(self, counted: Counted) -> Self {
        let details = PromptDetails {
            cached_tokens: Some(counted.cached.into()),
        };
        Self {
            prompt_tokens: counted.prompt.into(),
            completion_tokens: counted.completion.into(),
            prompt_tokens_details: Some(details),
            ..self
        }
    }

    /// Tokens of the prompt that came from a cache.
    pub(in crate::gateway) fn cached(self) -> u64 {
        let details = self.prompt_tokens_details.unwrap_or_default();
        details.cached_tokens.unwrap_or(0).min(self.prompt_tokens)
    }

    /// Tokens of the answer that were thought.
    pub(in crate::gateway) fn thought(self) -> u64 {
        let details = self.completion_tokens_details.unwrap_or_default();
        let thought = details.reasoning_tokens.unwrap_or(0);
        thought.min(self.completion_tokens)
    }
}

/// Why a seller's answer cannot be told in another dialect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the seller's answer is not understood: {0}")]
pub struct Strange(pub(in crate::gateway) String);

impl From<serde_json::Error> for Strange {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

impl Completion {
    /// # Errors
    /// [`Strange`] for what is no chat answer.
    pub(in crate::gateway) fn read(json: &[u8]) -> Result<Self, Strange> {
        Ok(serde_json::from_slice(json)?)
    }
}

/// One thing a chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway) enum Piece {
    Thought(String),
    Text(String),
    Refusal(String),
    /// A call begins.
    Call {
        id: String,
        name: String,
    },
    /// More of the arguments of the call that began last.
    Arguments(String),
}

/// Reads what chunks say, in order: which call goes on, and which begins.
#[derive(Debug, Clone, Default)]
pub(in crate::gateway) struct Reader {
    /// The number of the call that may go on.
    open: Option<u64>,
    /// The highest number of a call so far.
    called: Option<u64>,
    /// The id of the newest call, and how many had the number of the one before.
    call: Option<String>,
    uncounted: u64,
}

impl Reader {
    /// Whether anything was called.
    pub(in crate::gateway) const fn has_called(&self) -> bool {
        self.called.is_some()
    }

    /// # Errors
    /// [`Strange`] when a call goes on after another has begun.
    pub(in crate::gateway) fn read(&mut self, said: Said) -> Result<Vec<Piece>, Strange> {
        let mut pieces = Vec::new();
        if let Some(thought) = said.thought() {
            pieces.push(Piece::Thought(thought.to_owned()));
        }
        let full = |text: Option<String>| text.filter(|text| !text.is_empty());
        pieces.extend(full(said.content).map(Piece::Text));
        pieces.extend(full(said.refusal).map(Piece::Refusal));
        if !pieces.is_empty() {
            self.open = None;
        }
        for call in said.tool_calls.into_iter().flatten() {
            self.call(call, &mut pieces)?;
        }
        Ok(pieces)
    }

    /// What a whole message says: its calls are whole, and stand in order.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(in crate::gateway) fn read_whole(&mut self, mut said: Said) -> Result<Vec<Piece>, Strange> {
        for (index, call) in (0..).zip(said.tool_calls.iter_mut().flatten()) {
            call.index = index;
        }
        self.read(said)
    }

    fn call(&mut self, call: Call, pieces: &mut Vec<Piece>) -> Result<(), Strange> {
        let mut number = call.index.saturating_add(self.uncounted);
        // Some servers do not count: another id is another call.
        let another = call.id.is_some() && call.id != self.call;
        if another && self.open == Some(number) {
            self.uncounted += 1;
            number = number.saturating_add(1);
        }
        if self.open != Some(number) {
            if self.called.is_some_and(|called| number <= called) {
                let late = "a call goes on after another has begun";
                return Err(Strange(late.to_owned()));
            }
            (self.open, self.called) = (Some(number), Some(number));
            let name = call.function.name.unwrap_or_default();
            self.call.clone_from(&call.id);
            let id = call.id.unwrap_or_else(|| format!("call_{number}"));
            pieces.push(Piece::Call { id, name });
        }
        let arguments = call.function.arguments.filter(|part| !part.is_empty());
        pieces.extend(arguments.map(Piece::Arguments));
        Ok(())
    }
}

/// Server-sent events with names, as bytes, growing.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Page(Vec<u8>);

impl Page {
    pub(in crate::gateway) fn event(&mut self, name: &str, data: &Value) {
        let line = format!("event: {name}\ndata: {data}\n\n");
        self.0.extend_from_slice(line.as_bytes());
    }
}

impl From<Page> for Bytes {
    fn from(page: Page) -> Self {
        page.0.into()
    }
}

/// A text that says something.
pub(in crate::gateway) fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// About how many tokens the prompt of a chat request has, from its size: each model counts
/// otherwise.
pub(in crate::gateway) fn estimate(chat: &Value) -> u64 {
    let given = |part: &&Value| !part.is_null();
    let parts = [&chat["messages"], &chat["tools"]].into_iter();
    let bytes: usize = parts.filter(given).map(|part| part.to_string().len()).sum();
    (bytes as u64).div_ceil(BYTES_PER_TOKEN)
}
