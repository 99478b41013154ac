//! One item of a response and the events that tell it, numbered. Pure.

use serde_json::{Map, Value, json};

use crate::gateway::chat::Page;

/// What kind of item is open, with what names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Thought,
    Text,
    Refusal,
    Call { id: String, name: String },
}

/// How much of an item was said after one of its deltas: bytes of its text, and logprobs.
pub type Step = (usize, usize);

/// The item that is being said.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) said: String,
    pub(super) logprobs: Vec<Value>,
    pub(super) steps: Vec<Step>,
}

/// Numbered events, growing.
pub(super) struct Told<'a> {
    pub(super) page: Page,
    pub(super) sequence: &'a mut u64,
    /// The number of the last event that is left out.
    pub(super) after: Option<u64>,
}

impl Told<'_> {
    pub(super) fn event(&mut self, name: &str, fields: Value) {
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

    /// Leaves out so many events if none of them is asked for; says whether it did.
    pub(super) fn passes(&mut self, events: u64) -> bool {
        let next = self.sequence.saturating_add(events);
        let passed = self
            .after
            .is_some_and(|after| next <= after.saturating_add(1));
        if passed {
            *self.sequence = next;
        }
        passed
    }

    /// Leaves out those of so many events that are not asked for; how many they are.
    pub(super) fn passed(&mut self, most: usize) -> usize {
        let begin = self.after.map_or(0, |after| after.saturating_add(1));
        let many = begin.saturating_sub(*self.sequence).min(most as u64);
        *self.sequence += many;
        usize::try_from(many).unwrap_or(most)
    }
}

impl Open {
    /// As it was when all of this item was said.
    pub(super) fn of(item: &Value) -> Self {
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
            steps: Vec::new(),
        }
    }

    /// The same item before anything was said.
    pub(super) fn unsaid(&self) -> Self {
        Self {
            kind: self.kind.clone(),
            id: self.id.clone(),
            said: String::new(),
            logprobs: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// How many events say that it begins, and that it ends.
    pub(super) const fn edges(&self) -> (u64, u64) {
        if self.is_call() { (1, 2) } else { (2, 3) }
    }

    /// The item, with what was said so far.
    pub(super) fn item(&self, status: &str) -> Value {
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

    pub(super) fn begin(&self, index: usize, told: &mut Told<'_>) {
        let added = json!({ "output_index": index, "item": self.empty() });
        told.event("response.output_item.added", added);
        if !self.is_call() {
            let mut part = self.place(index);
            part["part"] = self.part();
            told.event("response.content_part.added", part);
        }
    }

    pub(super) fn more(
        &mut self,
        text: &str,
        logprobs: Vec<Value>,
        index: usize,
        told: &mut Told<'_>,
    ) {
        self.said.push_str(text);
        let mut delta = self.place(index);
        delta["delta"] = text.into();
        if self.kind == Kind::Text {
            delta["logprobs"] = logprobs.as_slice().into();
            self.logprobs.extend(logprobs);
        }
        self.steps.push((self.said.len(), self.logprobs.len()));
        told.event(&format!("{}.delta", self.name()), delta);
    }

    pub(super) fn end(&self, status: &str, index: usize, told: &mut Told<'_>) -> Value {
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

pub(super) fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
