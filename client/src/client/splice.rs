//! One answer made of what one seller after the other sends: what the application has of it so
//! far, and what of the next event it gets. Pure.
//!
//! The first seller's events pass as they came. A seller that goes on with the answer sends under
//! its own name and counts its own tokens: its events take the name of the first and the sum of
//! all counts, and what the application has already is taken out of them. So the application
//! reads one answer, without a gap and without a word said twice.

use std::borrow::Cow;

use bytes::Bytes;
use farthing_protocol::purchase::{Endpoint, Mode, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::client::failure::Failure;

/// The most bytes of an answer that another seller can go on with: they are sent along.
const MOST_TEXT: usize = 1024 * 1024;
/// The fewest bytes of text that we take a token for, when a seller sends several at once.
const TOKEN: u64 = 3;
/// What a seller's own end of stream looks like.
const DONE: &[u8] = b"[DONE]";
/// What names an answer, the same in all its events.
const NAMES: [&str; 4] = ["id", "created", "model", "system_fingerprint"];

/// Why nobody can go on with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::client) enum Unfit {
    #[error("a tool call was under way")]
    ToolCall,
    #[error("it thought aloud")]
    Reasoning,
    #[error("it has more than text")]
    MoreThanText,
    #[error("there is more than one answer")]
    Several,
    #[error("it is too long to be sent along")]
    TooLong,
    #[error("its `{0}` holds for a whole answer only")]
    Field(&'static str),
}

/// How long a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Length {
    /// Tokens, at least: the pieces that came.
    pub(in crate::client) least: u64,
    /// Tokens by the sellers' count, as far as the text bears it out.
    pub(in crate::client) tokens: u64,
}

/// What of an answer the application has.
#[derive(Debug, Clone)]
pub(in crate::client) struct Splice {
    endpoint: Endpoint,
    mode: Mode,
    /// What names the answer.
    names: Option<Map<String, Value>>,
    text: String,
    unfit: Option<Unfit>,
    /// Whether this seller sent anything an application can see.
    content: bool,
    /// Events with text in them, of this seller.
    pieces: u64,
    /// How many answers were asked for.
    answers: u64,
    /// Which of them said why they ended, by their index.
    ended: u128,
    /// Counted by the sellers before this one.
    earlier: [u64; 3],
    /// Pieces of text that they left.
    heard: u64,
    /// Tokens of that text, by their count.
    tokens: u64,
    /// Whether this one began anew.
    anew: bool,
    part: Part,
}

/// What a seller is to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The answer.
    First,
    /// The rest of it.
    Rest,
    /// All of it once more; this many bytes of the text have come again.
    Again(usize),
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
}

/// A value that says something.
fn full(value: Option<&RawValue>) -> Option<&str> {
    let text = value?.get();
    (!matches!(text, "\"\"" | "[]" | "{}" | "null")).then_some(text)
}

impl Choice<'_> {
    /// Its text as JSON.
    fn text(&self) -> Option<&str> {
        let delta = self.delta.as_ref().and_then(|delta| delta.content);
        full(self.text).or_else(|| full(delta))
    }

    /// What else it holds that cannot be gone on with.
    fn beside(&self) -> Option<Unfit> {
        let delta = self.delta.as_ref()?;
        let any = |values: &[Option<&RawValue>]| values.iter().any(|value| full(*value).is_some());
        if any(&[delta.tool_calls, delta.function_call]) {
            Some(Unfit::ToolCall)
        } else if any(&[delta.reasoning_content, delta.reasoning]) {
            Some(Unfit::Reasoning)
        } else if any(&[delta.refusal, delta.audio]) {
            Some(Unfit::MoreThanText)
        } else {
            None
        }
    }
}

impl Splice {
    /// Nothing yet of so many answers to one request.
    pub(in crate::client) fn new(endpoint: Endpoint, mode: Mode, answers: u64) -> Self {
        Self {
            endpoint,
            mode,
            names: None,
            text: String::new(),
            unfit: (answers > 1).then_some(Unfit::Several),
            content: false,
            pieces: 0,
            answers,
            ended: 0,
            earlier: [0; 3],
            heard: 0,
            tokens: 0,
            anew: false,
            part: Part::First,
        }
    }

    /// The text the application has.
    pub(in crate::client) fn text(&self) -> &str {
        &self.text
    }

    /// Why nobody can go on with it, if so.
    pub(in crate::client) const fn unfit(&self) -> Option<Unfit> {
        match self.mode {
            Mode::Stream => self.unfit,
            Mode::Plain => Some(Unfit::MoreThanText),
        }
    }

    /// Whether this seller sent anything an application can see.
    pub(in crate::client) const fn has_content(&self) -> bool {
        self.content
    }

    /// Whether the answer is all there: each one that was asked for said why it ended.
    pub(in crate::client) fn is_finished(&self) -> bool {
        match self.mode {
            Mode::Plain => self.content,
            Mode::Stream => u64::from(self.ended.count_ones()) >= self.answers,
        }
    }

    /// What is missing of an answer that its seller calls complete. Whether a text without a
    /// reason is at its end nobody but the seller knows, and some model servers never say one.
    pub(in crate::client) fn lacks(&self) -> Option<&'static str> {
        if self.is_finished() {
            return None;
        }
        match (self.mode, self.part) {
            (Mode::Plain, _) => Some("the seller sent no document"),
            (_, Part::Again(_)) => Some("its answer is shorter than what was there"),
            _ if !self.content => Some("the seller ended without a word"),
            _ if self.ended != 0 => Some("one of the answers has no end"),
            _ => None,
        }
    }

    /// Whether a seller is asked to go on, not to begin.
    pub(in crate::client) const fn goes_on(&self) -> bool {
        !matches!(self.part, Part::First)
    }

    /// How many pieces of text this seller sent: at least so many tokens.
    pub(in crate::client) const fn pieces(&self) -> u64 {
        self.pieces
    }

    /// How long the text is, when this seller counted so many tokens.
    pub(in crate::client) fn length(&self, used: Usage) -> Length {
        let least = self.heard.saturating_add(self.pieces);
        let likely = least.max(self.text.len() as u64 / TOKEN);
        Length {
            least,
            tokens: self.delivered(used).clamp(least, likely),
        }
    }

    /// Tokens of the text so far, when this seller counted so many.
    fn delivered(&self, used: Usage) -> u64 {
        let used = u64::from(used.completion);
        match self.anew {
            true => self.tokens.max(used),
            false => self.tokens.saturating_add(used),
        }
    }

    /// The same answer, to be gone on with by another seller: by the rest of it, or all of it
    /// `again`. `used` is what the one before counted.
    pub(in crate::client) fn handed_on(&self, again: bool, used: Usage) -> Self {
        let counts = [used.prompt, used.completion, used.cached].map(u64::from);
        let mut next = self.clone();
        for (sum, count) in next.earlier.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count);
        }
        next.tokens = self.delivered(used);
        next.heard = self.heard.saturating_add(self.pieces);
        next.anew = again;
        next.part = if again { Part::Again(0) } else { Part::Rest };
        (next.content, next.pieces) = (false, 0);
        next
    }

    /// What the application gets of an event; nothing, when it has it already.
    ///
    /// # Errors
    /// [`Failure::Nonsense`] for what is no part of an answer, [`Failure::Differs`] when an answer
    /// given again is another one. Nothing is changed then.
    pub(in crate::client) fn take(&mut self, event: &Bytes) -> Result<Option<Bytes>, Failure> {
        if event.trim_ascii_start().starts_with(DONE) {
            return Ok(None);
        }
        let message = read(event)?;
        if full(message.error).is_some() {
            return Err(Failure::Nonsense("it reports a failure"));
        }
        if self.mode == Mode::Plain {
            self.content = true;
            return Ok(Some(event.clone()));
        }
        match self.part {
            Part::First => {
                self.note(event, &message)?;
                Ok(Some(event.clone()))
            }
            Part::Rest | Part::Again(_) => self.rewritten(event, &message),
        }
    }

    /// Enters an event of the first seller.
    fn note(&mut self, event: &Bytes, message: &Message<'_>) -> Result<(), Failure> {
        if self.names.is_none() {
            let whole = object(event)?;
            let named = whole
                .into_iter()
                .filter(|(name, _)| NAMES.contains(&name.as_str()));
            self.names = Some(named.collect());
        }
        for choice in message.choices.iter().flatten() {
            let text = choice.text().map(decoded).transpose()?.flatten();
            self.enter(choice, text.as_deref());
        }
        Ok(())
    }

    fn enter(&mut self, choice: &Choice<'_>, text: Option<&str>) {
        let beside = choice.beside();
        let several = (choice.index.unwrap_or(0) != 0).then_some(Unfit::Several);
        let is_strange = choice.text().is_some_and(|json| !json.starts_with('"'));
        let strange = is_strange.then_some(Unfit::MoreThanText);
        self.unfit = self.unfit.or(beside).or(several).or(strange);
        self.content |= beside.is_some() || choice.text().is_some();
        if let Some(text) = text {
            self.pieces = self.pieces.saturating_add(1);
            if self.unfit.is_none() {
                self.text.push_str(text);
            }
        }
        if self.text.len() > MOST_TEXT {
            self.unfit = self.unfit.or(Some(Unfit::TooLong));
            self.text = String::new();
        }
        let index = choice.index.unwrap_or(0);
        if full(choice.finish_reason).is_some() && index < self.answers {
            // Of more than can be noted some stay without an end.
            let bit = u32::try_from(index)
                .ok()
                .and_then(|n| 1_u128.checked_shl(n));
            self.ended |= bit.unwrap_or_default();
        }
    }

    /// An event of a seller that goes on, as an event of the first.
    fn rewritten(
        &mut self,
        event: &Bytes,
        message: &Message<'_>,
    ) -> Result<Option<Bytes>, Failure> {
        let mut value = object(event)?;
        let mut next = Cursor::at(self.part);
        let mut says = false;
        for (at, choice) in message.choices.iter().flatten().enumerate() {
            let text = choice.text().map(decoded).transpose()?.flatten();
            let fresh = next.fresh(self, choice, text.map(Cow::into_owned))?;
            let place = value
                .get_mut("choices")
                .and_then(|choices| choices.get_mut(at));
            says |= full(choice.finish_reason).is_some() || choice.beside().is_some();
            says |= fresh.as_ref().is_some_and(|text| !text.is_empty());
            if let Some(place) = place {
                put(place, fresh);
            }
        }
        self.adopt(next, message);
        for (name, known) in self.names.iter().flatten() {
            if value.contains_key(name) {
                value.insert(name.clone(), known.clone());
            }
        }
        says |= message.choices.iter().flatten().next().is_none();
        says |= self.summed(&mut value);
        let bytes = || Bytes::from(Value::Object(value).to_string());
        Ok(says.then(bytes))
    }

    /// Adds what the sellers before counted. Whether the event counts at all.
    fn summed(&self, event: &mut Map<String, Value>) -> bool {
        let Some(usage) = event.get_mut("usage").and_then(Value::as_object_mut) else {
            return false;
        };
        let [prompt, completion, cached] = self.earlier;
        let mut add = |name: &str, more: u64| {
            if let Some(count) = usage.get(name).and_then(Value::as_u64) {
                usage.insert(name.to_owned(), json!(count.saturating_add(more)));
            }
        };
        add("prompt_tokens", prompt);
        add("completion_tokens", completion);
        add("total_tokens", prompt.saturating_add(completion));
        let details = usage.get_mut("prompt_tokens_details");
        if let Some(count) = details.and_then(|details| details.get_mut("cached_tokens")) {
            *count = json!(count.as_u64().unwrap_or(0).saturating_add(cached));
        }
        true
    }

    /// An event that ends the answer because all the tokens that were asked for are there, and
    /// one that counts them.
    pub(in crate::client) fn end_of_length(&mut self) -> [Bytes; 2] {
        self.ended |= 1;
        let choice = match self.endpoint {
            Endpoint::Completions => json!({"index": 0, "text": "", "finish_reason": "length"}),
            _ => json!({"index": 0, "delta": {}, "finish_reason": "length"}),
        };
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            _ => "chat.completion.chunk",
        };
        let mut last = self.names.clone().unwrap_or_default();
        last.insert("object".to_owned(), json!(object));
        let mut usage = last.clone();
        last.insert("choices".to_owned(), json!([choice]));
        usage.insert("choices".to_owned(), json!([]));
        let counts = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
        usage.insert("usage".to_owned(), counts);
        self.summed(&mut usage);
        [last, usage].map(|event| Bytes::from(Value::Object(event).to_string()))
    }
}

/// Where the text of a seller that goes on stands.
struct Cursor {
    part: Part,
    /// What is new.
    added: String,
}

impl Splice {
    fn adopt(&mut self, cursor: Cursor, message: &Message<'_>) {
        self.part = cursor.part;
        let mut added = Some(cursor.added).filter(|text| !text.is_empty());
        for choice in message.choices.iter().flatten() {
            self.enter(choice, added.take().as_deref());
        }
    }
}

impl Cursor {
    const fn at(part: Part) -> Self {
        Self {
            part,
            added: String::new(),
        }
    }

    /// What is new in a choice's text.
    fn fresh(
        &mut self,
        known: &Splice,
        choice: &Choice<'_>,
        text: Option<String>,
    ) -> Result<Option<String>, Failure> {
        if choice.index.unwrap_or(0) != 0 {
            return Err(Failure::Nonsense("a second answer"));
        }
        let Part::Again(at) = self.part else {
            self.added.push_str(text.as_deref().unwrap_or_default());
            return Ok(text);
        };
        let ends = full(choice.finish_reason).is_some() || choice.beside().is_some();
        let expected = known.text.get(at..).unwrap_or_default();
        let said = text.as_deref().unwrap_or_default();
        if let Some(new) = said.strip_prefix(expected) {
            self.part = Part::Rest;
            self.added.push_str(new);
            return Ok(text.as_ref().map(|_| new.to_owned()));
        }
        if ends || !expected.starts_with(said) {
            return Err(Failure::Differs);
        }
        self.part = Part::Again(at + said.len());
        Ok(text.map(|_| String::new()))
    }
}

/// Sets a choice's text and takes the role away, which was said.
fn put(choice: &mut Value, text: Option<String>) {
    let text = text.map(Value::from);
    if let (Some(place), Some(text)) = (choice.get_mut("text"), &text) {
        *place = text.clone();
    }
    if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
        delta.remove("role");
        if let (Some(place), Some(text)) = (delta.get_mut("content"), text) {
            *place = text;
        }
    }
}

fn read(event: &[u8]) -> Result<Message<'_>, Failure> {
    let nonsense = Failure::Nonsense("an event is not a JSON object");
    // A list would be read as the fields in their order.
    if !event.trim_ascii_start().starts_with(b"{") {
        return Err(nonsense);
    }
    serde_json::from_slice(event).map_err(|_| nonsense)
}

fn object(event: &[u8]) -> Result<Map<String, Value>, Failure> {
    serde_json::from_slice(event).map_err(|_| Failure::Nonsense("an event is not a JSON object"))
}

/// A string; nothing for a value of another kind. What was read as JSON and has no escapes is its
/// own text.
fn decoded(json: &str) -> Result<Option<Cow<'_, str>>, Failure> {
    let Some(inner) = json.strip_prefix('"') else {
        return Ok(None);
    };
    match inner.strip_suffix('"') {
        Some(plain) if !plain.contains('\\') => Ok(Some(Cow::Borrowed(plain))),
        _ => {
            let text = serde_json::from_str::<String>(json);
            let text = text.map_err(|_| Failure::Nonsense("a text is not a JSON string"))?;
            Ok(Some(Cow::Owned(text)))
        }
    }
}

#[cfg(test)]
mod tests;
