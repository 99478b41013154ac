//! Chunks of a chat or a completion become OpenRouter's. Pure: a machine that is fed chunks and
//! yields events.
//!
//! What was used comes once, in the last chunk: until the receipt is here nobody knows the cost.

use axum::body::Bytes;
use farthing_protocol::body::{Body, BodyError};
use farthing_protocol::offer::Endpoint;
use serde_json::{Value, json};

use crate::gateway::exchange::Settled;
use crate::gateway::openrouter::answer::{About, borrowed};
use crate::gateway::sse;

/// A stream that is being told.
#[derive(Debug)]
pub struct Telling {
    about: About,
    /// When the answer was made, by its seller.
    created: Option<u64>,
    /// What the seller says it used.
    usage: Option<String>,
}

/// Nothing new, but still there.
#[must_use]
pub const fn silence() -> Bytes {
    Bytes::from_static(b": OPENROUTER PROCESSING\n\n")
}

impl Telling {
    /// A stream of which this is said.
    #[must_use]
    pub const fn new(about: About) -> Self {
        Self {
            about,
            created: None,
            usage: None,
        }
    }

    /// The event of this chunk; nothing when it only says what was used.
    ///
    /// # Errors
    /// [`BodyError`] when it is no object.
    pub fn chunk(&mut self, json: &[u8]) -> Result<Option<Bytes>, BodyError> {
        let body = Body::parse(json)?;
        self.created = body.get("created").ok().flatten().or(self.created);
        let usage = body.raw("usage").map(str::to_owned);
        let withheld = usage.is_some() && sse::only_usage(json);
        self.usage = usage.or_else(|| self.usage.take());
        if withheld {
            return Ok(None);
        }
        let mut changes = self.about.names();
        if let Some(choices) = self.about.choices(&body, "delta") {
            changes.push(("choices", choices));
        }
        let chunk = body.rewritten(&borrowed(&changes), &["usage"]);
        Ok(Some(sse::event_of(&chunk)))
    }

    /// The last chunk: what was used and what it cost.
    #[must_use]
    pub fn end(&mut self, settled: &Settled) -> Bytes {
        let mut fields = self.about.names();
        let usage = self.usage.take();
        fields.push(("usage", self.about.usage(usage.as_deref(), settled)));
        fields.extend(self.about.metadata(settled));
        sse::event_of(&self.around(&json!([]), &fields))
    }

    /// The last chunk of a stream that broke, with what is wrong.
    #[must_use]
    pub fn broken(&self, error: &Value) -> Bytes {
        let choice = match self.about.endpoint {
            Endpoint::Chat => {
                json!({ "index": 0, "delta": { "content": "" }, "finish_reason": "error" })
            }
            _ => json!({ "index": 0, "text": "", "finish_reason": "error" }),
        };
        let mut fields = self.about.names();
        fields.push(("error", error.to_string()));
        sse::event_of(&self.around(&json!([choice]), &fields))
    }

    fn around(&self, choices: &Value, fields: &[(&'static str, String)]) -> Vec<u8> {
        let object = match self.about.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            _ => "text_completion",
        };
        let created = self.created.unwrap_or(0);
        let chunk = json!({ "id": "", "object": object, "created": created, "choices": choices });
        let chunk = chunk.to_string();
        match Body::parse(chunk.as_bytes()) {
            Ok(body) => body.with(&borrowed(fields)),
            Err(_) => Vec::new(),
        }
    }
}
