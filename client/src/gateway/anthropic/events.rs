//! Chunks of a chat completion become the events of a message. Pure: a machine that is fed chunks
//! and yields bytes.
//!
//! A message is a sequence of blocks, one open at a time. A chunk that speaks of another kind of
//! thing than the open block closes it and opens the next.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::gateway::anthropic::answer::{
    CALLED, Call, Choice, Completion, ENDED, NotAMessage, Said, Usage, stopped,
};

/// What kind of block is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    /// The call of this number.
    Tool(u64),
}

/// A message that is being told.
#[derive(Debug, Default)]
pub struct Telling {
    id: String,
    begun: bool,
    open: Option<Open>,
    /// Blocks opened so far.
    blocks: u64,
    /// The highest number of a call so far.
    called: Option<u64>,
    /// The name of the newest call, and how many had the number of the one before.
    call: Option<String>,
    uncounted: u64,
    usage: Usage,
    stop: Option<(&'static str, Option<String>)>,
}

/// Events as bytes, growing.
#[derive(Default)]
struct Page(Vec<u8>);

impl Page {
    fn event(&mut self, name: &str, data: &Value) {
        let line = format!("event: {name}\ndata: {data}\n\n");
        self.0.extend_from_slice(line.as_bytes());
    }
}

/// Nothing new, but still there.
#[must_use]
pub fn ping() -> Bytes {
    Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n")
}

impl Telling {
    /// A message under this id.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    /// The events that say what this chunk says; often none or one.
    ///
    /// # Errors
    /// [`NotAMessage`].
    pub fn chunk(&mut self, json: &[u8]) -> Result<Bytes, NotAMessage> {
        let strange = |error: serde_json::Error| NotAMessage(error.to_string());
        let chunk: Completion = serde_json::from_slice(json).map_err(strange)?;
        let mut page = Page::default();
        self.begin(chunk.model.as_deref(), &mut page);
        if let Some(usage) = chunk.usage {
            self.usage = usage;
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            self.choice(choice, &mut page)?;
        }
        Ok(page.0.into())
    }

    /// The last events: what all of it was, and that this was all.
    #[must_use]
    pub fn end(&mut self) -> Bytes {
        let mut page = Page::default();
        self.begin(None, &mut page);
        self.close(&mut page);
        let (mut reason, sequence) = self.stop.take().unwrap_or((ENDED, None));
        if self.called.is_some() && reason == ENDED {
            // Some servers stop as if nothing had been called.
            reason = CALLED;
        }
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        let usage = self.usage.value();
        page.event(
            "message_delta",
            &json!({ "type": "message_delta", "delta": delta, "usage": usage }),
        );
        page.event("message_stop", &json!({ "type": "message_stop" }));
        page.0.into()
    }

    /// How many tokens the prompt has is known only at the end: the last event says it.
    fn begin(&mut self, model: Option<&str>, page: &mut Page) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let message = json!({
            "id": self.id, "type": "message", "role": "assistant",
            "model": model.unwrap_or_default(), "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": Usage::default().value(),
        });
        page.event(
            "message_start",
            &json!({ "type": "message_start", "message": message }),
        );
    }

    fn choice(&mut self, choice: Choice, page: &mut Page) -> Result<(), NotAMessage> {
        if choice.finish_reason.is_some() {
            let (reason, sequence) = stopped(&choice);
            self.stop = Some((reason, sequence.map(str::to_owned)));
        }
        let Some(said) = choice.delta else {
            return Ok(());
        };
        let refused = said.refusal.as_deref().is_some_and(|text| !text.is_empty());
        self.said(said, page)?;
        if refused {
            self.stop = Some(("refusal", None));
        }
        Ok(())
    }

    fn said(&mut self, said: Said, page: &mut Page) -> Result<(), NotAMessage> {
        if let Some(thinking) = said.thought() {
            let empty = json!({ "type": "thinking", "thinking": "", "signature": "" });
            self.turn_to(Open::Thinking, &empty, page);
            self.delta(
                &json!({ "type": "thinking_delta", "thinking": thinking }),
                page,
            );
        }
        for text in [said.content, said.refusal].into_iter().flatten() {
            if !text.is_empty() {
                let empty = json!({ "type": "text", "text": "", "citations": null });
                self.turn_to(Open::Text, &empty, page);
                self.delta(&json!({ "type": "text_delta", "text": text }), page);
            }
        }
        for call in said.tool_calls.into_iter().flatten() {
            self.call(call, page)?;
        }
        Ok(())
    }

    fn call(&mut self, call: Call, page: &mut Page) -> Result<(), NotAMessage> {
        let mut number = call.index.saturating_add(self.uncounted);
        // Some servers do not count: another id is another call.
        let another = call.id.is_some() && call.id != self.call;
        if another && self.open == Some(Open::Tool(number)) {
            self.uncounted += 1;
            number = number.saturating_add(1);
        }
        if self.open != Some(Open::Tool(number)) {
            if self.called.is_some_and(|called| number <= called) {
                let late = "a call goes on after another has begun";
                return Err(NotAMessage(late.to_owned()));
            }
            self.called = Some(number);
            let name = call.function.name.unwrap_or_default();
            self.call.clone_from(&call.id);
            let id = call.id.unwrap_or_else(|| format!("call_{number}"));
            let empty = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
            self.turn_to(Open::Tool(number), &empty, page);
        }
        if let Some(part) = call.function.arguments.filter(|part| !part.is_empty()) {
            self.delta(
                &json!({ "type": "input_json_delta", "partial_json": part }),
                page,
            );
        }
        Ok(())
    }

    fn turn_to(&mut self, kind: Open, empty: &Value, page: &mut Page) {
        if self.open == Some(kind) {
            return;
        }
        self.close(page);
        self.open = Some(kind);
        page.event(
            "content_block_start",
            &json!({
                "type": "content_block_start", "index": self.blocks, "content_block": empty,
            }),
        );
        self.blocks += 1;
    }

    fn delta(&self, delta: &Value, page: &mut Page) {
        page.event(
            "content_block_delta",
            &json!({
                "type": "content_block_delta", "index": self.newest(), "delta": delta,
            }),
        );
    }

    fn close(&mut self, page: &mut Page) {
        if self.open.take().is_some() {
            let stop = json!({ "type": "content_block_stop", "index": self.newest() });
            page.event("content_block_stop", &stop);
        }
    }

    const fn newest(&self) -> u64 {
        self.blocks.saturating_sub(1)
    }
}
