//! Chunks of a chat completion become the events of a response. Pure: a machine that is fed chunks
//! and yields bytes. A whole completion is one long chunk to it, so that a response is the same
//! however it was asked for.
//!
//! A response is a sequence of items, one open at a time. A chunk that speaks of another kind of
//! thing than the open item closes it and opens the next.

use bytes::Bytes;
use farthing_protocol::purchase::Usage as Counted;
use serde_json::{Map, Value, json};

use crate::gateway::chat::{Choice, Completion, Page, Piece, Reader, Said, Strange, Usage};
use crate::gateway::responses::answer::{Head, Standing, document};

/// What kind of item is open, with what names it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Thought,
    Text,
    Refusal,
    Call { id: String, name: String },
}

/// The item that is being said.
#[derive(Debug, Clone)]
struct Open {
    kind: Kind,
    id: String,
    said: String,
    logprobs: Vec<Value>,
}

/// A response that is being told.
#[derive(Debug, Default)]
pub struct Telling {
    head: Head,
    /// What the items are named after.
    stem: String,
    begun: bool,
    sequence: u64,
    reader: Reader,
    open: Option<Open>,
    output: Vec<Value>,
    usage: Option<Usage>,
    standing: Standing,
}

/// Numbered events, growing.
struct Told<'a> {
    page: Page,
    sequence: &'a mut u64,
    /// The number of the last event that is left out.
    after: Option<u64>,
}

impl Told<'_> {
    fn event(&mut self, name: &str, fields: Value) {
        let mut event = Map::new();
        event.insert("type".into(), name.into());
        event.insert("sequence_number".into(), (*self.sequence).into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        if self.after.is_none_or(|after| *self.sequence > after) {
            self.page.event(name, &event.into());
        }
        *self.sequence += 1;
    }
}

impl Open {
    /// As it was when all of this item was said.
    fn of(item: &Value) -> Self {
        let part = &item["content"][0];
        let (kind, said) = match (text_of(&item["type"]), text_of(&part["type"])) {
            ("function_call", _) => {
                let [id, name] = ["call_id", "name"].map(|field| text_of(&item[field]).to_owned());
                (Kind::Call { id, name }, &item["arguments"])
            }
            ("reasoning", _) => (Kind::Thought, &part["text"]),
            (_, "refusal") => (Kind::Refusal, &part["refusal"]),
            _ => (Kind::Text, &part["text"]),
        };
        Self {
            kind,
            id: text_of(&item["id"]).to_owned(),
            said: text_of(said).to_owned(),
            logprobs: part["logprobs"].as_array().cloned().unwrap_or_default(),
        }
    }

    /// The item, with what was said so far.
    fn item(&self, status: &str) -> Value {
        let part = || json!([self.part()]);
        match &self.kind {
            Kind::Thought => json!({
                "type": "reasoning", "id": self.id, "summary": [], "content": part(),
                "status": status,
            }),
            Kind::Text | Kind::Refusal => json!({
                "type": "message", "id": self.id, "role": "assistant", "content": part(),
                "status": status,
            }),
            Kind::Call { id, name } => json!({
                "type": "function_call", "id": self.id, "call_id": id, "name": name,
                "arguments": self.said, "status": status,
            }),
        }
    }

    /// The item before anything was said.
    fn empty(&self) -> Value {
        let mut item = self.item("in_progress");
        if item.get("content").is_some() {
            item["content"] = json!([]);
        }
        item
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Thought => json!({ "type": "reasoning_text", "text": self.said }),
            Kind::Refusal => json!({ "type": "refusal", "refusal": self.said }),
            _ => json!({
                "type": "output_text", "text": self.said, "annotations": [],
                "logprobs": self.logprobs,
            }),
        }
    }

    /// What its own events are called.
    const fn name(&self) -> &'static str {
        match self.kind {
            Kind::Thought => "response.reasoning_text",
            Kind::Text => "response.output_text",
            Kind::Refusal => "response.refusal",
            Kind::Call { .. } => "response.function_call_arguments",
        }
    }

    const fn is_call(&self) -> bool {
        matches!(self.kind, Kind::Call { .. })
    }

    /// Where it stands, for one of its own events.
    fn place(&self, index: usize) -> Value {
        let mut place = json!({ "item_id": self.id, "output_index": index });
        if !self.is_call() {
            place["content_index"] = 0.into();
        }
        place
    }

    fn begin(&self, index: usize, told: &mut Told<'_>) {
        let added = json!({ "output_index": index, "item": self.empty() });
        told.event("response.output_item.added", added);
        if !self.is_call() {
            let mut part = self.place(index);
            part["part"] = self.part();
            told.event("response.content_part.added", part);
        }
    }

    fn more(&mut self, text: &str, logprobs: Vec<Value>, index: usize, told: &mut Told<'_>) {
        self.said.push_str(text);
        let mut delta = self.place(index);
        delta["delta"] = text.into();
        if self.kind == Kind::Text {
            delta["logprobs"] = logprobs.as_slice().into();
            self.logprobs.extend(logprobs);
        }
        told.event(&format!("{}.delta", self.name()), delta);
    }

    fn end(&self, status: &str, index: usize, told: &mut Told<'_>) -> Value {
        let mut done = self.place(index);
        let said = match self.kind {
            Kind::Call { .. } => "arguments",
            Kind::Refusal => "refusal",
            Kind::Text | Kind::Thought => "text",
        };
        done[said] = self.said.as_str().into();
        match &self.kind {
            Kind::Call { name, .. } => done["name"] = name.as_str().into(),
            Kind::Text => done["logprobs"] = self.logprobs.as_slice().into(),
            _ => {}
        }
        told.event(&format!("{}.done", self.name()), done);
        if !self.is_call() {
            let mut part = self.place(index);
            part["part"] = self.part();
            told.event("response.content_part.done", part);
        }
        let item = self.item(status);
        let done = json!({ "output_index": index, "item": item });
        told.event("response.output_item.done", done);
        item
    }
}

impl Telling {
    /// A response that begins so; its items are named after `stem`.
    #[must_use]
    pub fn new(head: Head, stem: String) -> Self {
        Self {
            head,
            stem,
            ..Self::default()
        }
    }

    /// The events that say what this chunk says; often none or one.
    ///
    /// # Errors
    /// [`Strange`].
    pub fn chunk(&mut self, json: &[u8]) -> Result<Bytes, Strange> {
        let chunk = Completion::read(json)?;
        self.told(|telling, told| {
            if chunk.usage.is_some() {
                telling.usage = chunk.usage;
            }
            let Some(mut choice) = chunk.choices.into_iter().next() else {
                return Ok(());
            };
            let said = choice.delta.take().unwrap_or_default();
            let pieces = telling.reader.read(said)?;
            telling.choice(&mut choice, pieces, told);
            Ok(())
        })
    }

    /// The response that says what this completion says.
    ///
    /// # Errors
    /// [`Strange`].
    pub fn whole(mut self, document: &[u8], counted: Option<Counted>) -> Result<Value, Strange> {
        let whole = Completion::read(document)?;
        let none = || Strange("it has no choice".to_owned());
        let mut choice = whole.choices.into_iter().next().ok_or_else(none)?;
        let said: Said = choice.message.take().ok_or_else(none)?;
        let pieces = self.reader.read_whole(said)?;
        self.usage = whole.usage;
        self.counted(counted);
        self.told(|telling, told| {
            telling.choice(&mut choice, pieces, told);
            Ok(())
        })?;
        self.end();
        Ok(self.response())
    }

    /// What was paid for, where a receipt says it: it goes before what the answer says of itself.
    pub fn counted(&mut self, counted: Option<Counted>) {
        if let Some(counted) = counted {
            self.usage = Some(self.usage.unwrap_or_default().counted(counted));
        }
    }

    /// The last events: what all of it was.
    pub fn end(&mut self) -> Bytes {
        if self.standing == Standing::InProgress {
            self.standing = Standing::Completed;
        }
        let ended = self.told(|telling, told| {
            telling.close_as(telling.standing.item(), told);
            let name = format!("response.{}", telling.standing.status());
            told.event(&name, json!({ "response": telling.response() }));
            Ok(())
        });
        // Nothing in there can go wrong.
        ended.unwrap_or_default()
    }

    /// The last events of a response that broke off: `problem` as OpenAI's libraries know errors,
    /// and what there is of the response.
    #[must_use]
    pub fn broken(&self, problem: &Value) -> Bytes {
        let mut sequence = self.sequence;
        let mut told = Told {
            page: Page::default(),
            sequence: &mut sequence,
            after: None,
        };
        let [code, message, param] = ["code", "message", "param"].map(|field| &problem[field]);
        // Some libraries read it flat, some raise what stands in `error`.
        let error = json!({ "code": code, "message": message, "param": param, "error": problem });
        told.event("error", error);
        let why = message.as_str().unwrap_or_default();
        let failed = json!({ "response": self.failed(why) });
        told.event("response.failed", failed);
        told.page.into()
    }

    /// The response as far as it was told.
    #[must_use]
    pub fn response(&self) -> Value {
        document(&self.head, &self.standing, &self.output, self.usage)
    }

    /// The response, had it ended here for this reason.
    #[must_use]
    pub fn failed(&self, why: &str) -> Value {
        let standing = Standing::Failed(why.to_owned());
        let mut output = self.output.clone();
        output.extend(self.open.as_ref().map(|open| open.item(standing.item())));
        document(&self.head, &standing, &output, self.usage)
    }

    /// Tells something, after what comes before everything.
    fn told(
        &mut self,
        tell: impl FnOnce(&mut Self, &mut Told<'_>) -> Result<(), Strange>,
    ) -> Result<Bytes, Strange> {
        let mut sequence = self.sequence;
        let mut told = Told {
            page: Page::default(),
            sequence: &mut sequence,
            after: None,
        };
        if !std::mem::replace(&mut self.begun, true) {
            let empty = document(&self.head, &Standing::InProgress, &[], None);
            for name in ["response.created", "response.in_progress"] {
                told.event(name, json!({ "response": empty }));
            }
        }
        let result = tell(self, &mut told);
        let page = told.page;
        self.sequence = sequence;
        result.map(|()| page.into())
    }

    fn choice(&mut self, choice: &mut Choice, pieces: Vec<Piece>, told: &mut Told<'_>) {
        let logprobs = choice.logprobs.take().and_then(|it| it.content);
        let mut logprobs = logprobs.unwrap_or_default();
        for piece in pieces {
            let (kind, text) = match piece {
                Piece::Thought(text) => (Kind::Thought, text),
                Piece::Text(text) => (Kind::Text, text),
                Piece::Refusal(text) => (Kind::Refusal, text),
                Piece::Call { id, name } => {
                    self.close_as("completed", told);
                    self.turn_to(Kind::Call { id, name }, told);
                    continue;
                }
                Piece::Arguments(part) => {
                    self.more(&part, Vec::new(), told);
                    continue;
                }
            };
            self.turn_to(kind.clone(), told);
            let logprobs = match kind {
                Kind::Text => std::mem::take(&mut logprobs),
                _ => Vec::new(),
            };
            self.more(&text, logprobs, told);
        }
        if let Some(reason) = choice.finish_reason.as_deref() {
            self.standing = Standing::of(Some(reason));
        }
    }

    fn turn_to(&mut self, kind: Kind, told: &mut Told<'_>) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        // What was being said is whole: more follows it.
        self.close_as("completed", told);
        let index = self.output.len();
        let prefix = match kind {
            Kind::Thought => "rs",
            Kind::Text | Kind::Refusal => "msg",
            Kind::Call { .. } => "fc",
        };
        let open = Open {
            kind,
            id: format!("{prefix}_{stem}o{index}", stem = self.stem),
            said: String::new(),
            logprobs: Vec::new(),
        };
        open.begin(index, told);
        self.open = Some(open);
    }

    fn more(&mut self, text: &str, logprobs: Vec<Value>, told: &mut Told<'_>) {
        let index = self.output.len();
        if let Some(open) = &mut self.open {
            open.more(text, logprobs, index, told);
        }
    }

    fn close_as(&mut self, status: &str, told: &mut Told<'_>) {
        if let Some(open) = self.open.take() {
            let item = open.end(status, self.output.len(), told);
            self.output.push(item);
        }
    }
}

/// The events of a response that is over, as if each item were said at once; without those up to
/// the number `after`.
#[must_use]
pub fn again(response: &Value, after: Option<u64>) -> Bytes {
    let mut sequence = 0;
    let mut told = Told {
        page: Page::default(),
        sequence: &mut sequence,
        after,
    };
    let mut empty = response.clone();
    empty["status"] = "in_progress".into();
    empty["output"] = json!([]);
    for field in ["usage", "error", "incomplete_details"] {
        empty[field] = Value::Null;
    }
    for name in ["response.created", "response.in_progress"] {
        told.event(name, json!({ "response": empty }));
    }
    let items = response["output"].as_array().into_iter().flatten();
    for (index, item) in items.enumerate() {
        let mut open = Open::of(item);
        let said = std::mem::take(&mut open.said);
        let logprobs = std::mem::take(&mut open.logprobs);
        open.begin(index, &mut told);
        open.more(&said, logprobs, index, &mut told);
        open.end(text_of(&item["status"]), index, &mut told);
    }
    let name = format!("response.{}", text_of(&response["status"]));
    told.event(&name, json!({ "response": response }));
    told.page.into()
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
