//! Chunks of a chat completion become the events of a message. Pure: a machine that is fed chunks
//! and yields bytes.
//!
//! A message is a sequence of blocks, one open at a time. A chunk that speaks of another kind of
//! thing than the open block closes it and opens the next.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::gateway::anthropic::answer::{CALLED, ENDED, stopped, used};
use crate::gateway::chat::{Choice, Completion, Page, Piece, Reader, Strange, Usage};

/// What kind of block is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    Tool,
}

/// A message that is being told.
#[derive(Debug, Default)]
pub struct Telling {
    id: String,
    begun: bool,
    open: Option<Open>,
    /// Blocks opened so far.
    blocks: u64,
    reader: Reader,
    usage: Usage,
    stop: Option<(&'static str, Option<String>)>,
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
    /// [`Strange`].
    pub fn chunk(&mut self, json: &[u8]) -> Result<Bytes, Strange> {
        let chunk = Completion::read(json)?;
        let mut page = Page::default();
        self.begin(chunk.model.as_deref(), &mut page);
        if let Some(usage) = chunk.usage {
            self.usage = usage;
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            self.choice(choice, &mut page)?;
        }
        Ok(page.into())
    }

    /// The last events: what all of it was, and that this was all.
    #[must_use]
    pub fn end(&mut self) -> Bytes {
        let mut page = Page::default();
        self.begin(None, &mut page);
        self.close(&mut page);
        let (mut reason, sequence) = self.stop.take().unwrap_or((ENDED, None));
        if self.reader.has_called() && reason == ENDED {
            // Some servers stop as if nothing had been called.
            reason = CALLED;
        }
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        let usage = used(self.usage);
        page.event(
            "message_delta",
            &json!({ "type": "message_delta", "delta": delta, "usage": usage }),
        );
        page.event("message_stop", &json!({ "type": "message_stop" }));
        page.into()
    }

    /// How many tokens the prompt has is known only at the end: the last event says it.
    fn begin(&mut self, model: Option<&str>, page: &mut Page) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let message = json!({
            "id": self.id, "type": "message", "role": "assistant",
            "model": model.unwrap_or_default(), "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": used(Usage::default()),
        });
        page.event(
            "message_start",
            &json!({ "type": "message_start", "message": message }),
        );
    }

    fn choice(&mut self, choice: Choice, page: &mut Page) -> Result<(), Strange> {
        if choice.finish_reason.is_some() {
            let (reason, sequence) = stopped(&choice);
            self.stop = Some((reason, sequence.map(str::to_owned)));
        }
        let Some(said) = choice.delta else {
            return Ok(());
        };
        for piece in self.reader.read(said)? {
            self.piece(piece, page);
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece, page: &mut Page) {
        match piece {
            Piece::Thought(thinking) => {
                let empty = json!({ "type": "thinking", "thinking": "", "signature": "" });
                self.turn_to(Open::Thinking, &empty, page);
                let delta = json!({ "type": "thinking_delta", "thinking": thinking });
                self.delta(&delta, page);
            }
            Piece::Text(text) => self.text(&text, page),
            Piece::Refusal(text) => {
                self.text(&text, page);
                self.stop = Some(("refusal", None));
            }
            Piece::Call { id, name } => {
                self.close(page);
                let empty = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.turn_to(Open::Tool, &empty, page);
            }
            Piece::Arguments(part) => {
                let delta = json!({ "type": "input_json_delta", "partial_json": part });
                self.delta(&delta, page);
            }
        }
    }

    fn text(&mut self, text: &str, page: &mut Page) {
        let empty = json!({ "type": "text", "text": "", "citations": null });
        self.turn_to(Open::Text, &empty, page);
        self.delta(&json!({ "type": "text_delta", "text": text }), page);
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
