//! The words it says and the JSON around them, in OpenAI's shapes, prepared ahead.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;

use super::behaviour::Behaviour;

/// Bytes of the raw JSON of `messages`, `prompt` or `input` that count as one prompt token.
pub const CHARS_PER_PROMPT_TOKEN: usize = 4;

/// What it says, over and over: one word is one token.
const WORDS: [&str; 12] = [
    "A",
    " farthing",
    " buys",
    " a",
    " word,",
    " and",
    " a",
    " word",
    " is",
    " worth",
    " a",
    " farthing.",
];

/// One time for all answers: nothing here depends on a clock.
const CREATED: u64 = 1_700_000_000;

/// The prompt tokens it will count for this raw JSON of `messages`, `prompt` or `input`.
pub fn prompt_tokens(raw: &str) -> u64 {
    raw.len().div_ceil(CHARS_PER_PROMPT_TOKEN) as u64
}

/// A text in tokens: its lines.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: u64,
    pub(super) completion: u64,
}

impl Usage {
    fn json(self) -> String {
        let Self { prompt, completion } = self;
        let total = prompt.saturating_add(completion);
        format!(
            r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}}}"#
        )
    }
}

/// Everything of a behaviour's answers that does not depend on the request.
#[derive(Debug)]
pub(super) struct Bodies {
    text: String,
    /// Where in `text` each token ends.
    ends: Vec<usize>,
    models: Vec<Arc<Model>>,
}

/// One model's prepared chunks.
#[derive(Debug)]
pub(super) struct Model {
    name: String,
    /// The name as a JSON string.
    quoted: String,
    /// The first chunk of a chat, which only names the role.
    pub(super) role: Bytes,
    pub(super) chat: Vec<Bytes>,
    pub(super) completions: Vec<Bytes>,
}

impl Bodies {
    pub(super) fn prepare(behaviour: &Behaviour) -> Self {
        let long = behaviour.token_bytes.map(|bytes| "x".repeat(bytes));
        let words = WORDS.iter().cycle().take(behaviour.tokens);
        let words: Vec<&str> = match &behaviour.text {
            Some(text) => pieces(text).collect(),
            None => words.map(|word| long.as_deref().unwrap_or(word)).collect(),
        };
        let mut text = String::new();
        let ends = words.iter().map(|word| {
            text.push_str(word);
            text.len()
        });
        let ends = ends.collect();
        let models = behaviour.models.iter();
        let models = models
            .map(|name| Arc::new(Model::prepare(name, &words)))
            .collect();
        Self { text, ends, models }
    }

    pub(super) fn model(&self, name: &str) -> Option<Arc<Model>> {
        self.models.iter().find(|model| model.name == name).cloned()
    }

    /// The first `tokens` tokens as text.
    pub(super) fn text(&self, tokens: usize) -> &str {
        let end = tokens.checked_sub(1).and_then(|last| self.ends.get(last));
        end.map_or("", |end| &self.text[..*end])
    }

    /// What comes after the first `tokens` tokens, as text.
    pub(super) fn text_after(&self, begun: usize, tokens: usize) -> &str {
        let whole = self.text(begun.saturating_add(tokens));
        whole.get(self.text(begun).len()..).unwrap_or_default()
    }

    /// How many of its tokens somebody has said already who ends like this.
    pub(super) fn begun(&self, text: &str) -> usize {
        let ends = self
            .ends
            .iter()
            .rposition(|end| text.ends_with(&self.text[..*end]));
        ends.map_or(0, |last| last + 1)
    }

    /// The answer of `/v1/models`.
    pub(super) fn list(&self) -> String {
        let row = |model: &Arc<Model>| {
            let id = &model.quoted;
            format!(
                r#"{{"id":{id},"object":"model","created":{CREATED},"owned_by":"farthing-tests"}}"#
            )
        };
        let rows: Vec<String> = self.models.iter().map(row).collect();
        format!(r#"{{"object":"list","data":[{}]}}"#, rows.join(","))
    }
}

impl Model {
    fn prepare(name: &str, words: &[&str]) -> Self {
        let quoted = quote(name);
        let (name, role) = (name.to_owned(), Bytes::new());
        let (chat, completions) = (Vec::new(), Vec::new());
        let mut model = Self {
            name,
            quoted,
            role,
            chat,
            completions,
        };
        model.role = model.chat_event(r#"{"role":"assistant","content":""}"#, None);
        model.chat = each(words, |word| model.chat_content(word));
        model.completions = each(words, |word| model.completion_content(word));
        model
    }

    /// A chat chunk with content.
    pub(super) fn chat_content(&self, text: &str) -> Bytes {
        self.chat_event(&format!(r#"{{"content":{}}}"#, quote(text)), None)
    }

    /// A completions chunk with content.
    pub(super) fn completion_content(&self, text: &str) -> Bytes {
        self.completion_event(text, None)
    }

    /// The last chunk of a chat.
    pub(super) fn chat_finish(&self, reason: &str) -> Bytes {
        self.chat_event("{}", Some(reason))
    }

    /// The last chunk of a completion.
    pub(super) fn completion_finish(&self, reason: &str) -> Bytes {
        self.completion_event("", Some(reason))
    }

    /// The chunk of usage, which has no choices.
    pub(super) fn usage_event(&self, chat: bool, usage: Usage) -> Bytes {
        let head = if chat {
            self.chat_head()
        } else {
            self.completion_head()
        };
        event(format!(
            r#"{{{head},"choices":[],"usage":{}}}"#,
            usage.json()
        ))
    }

    /// A chat chunk with this delta, already JSON.
    pub(super) fn chat_delta(&self, delta: &str) -> Bytes {
        self.chat_event(delta, None)
    }

    /// A whole chat answer.
    pub(super) fn chat_answer(&self, text: &str, reason: &str, usage: Option<Usage>) -> String {
        let message = format!(r#"{{"role":"assistant","content":{}}}"#, quote(text));
        self.chat_message(&message, reason, usage)
    }

    /// A whole chat answer with this message, already JSON.
    pub(super) fn chat_message(&self, message: &str, reason: &str, usage: Option<Usage>) -> String {
        let (model, usage) = (&self.quoted, usage_field(usage));
        format!(
            r#"{{"id":"chatcmpl-mock","object":"chat.completion","created":{CREATED},"model":{model},"choices":[{{"index":0,"message":{message},"logprobs":null,"finish_reason":"{reason}"}}]{usage}}}"#
        )
    }

    /// A whole completions answer.
    pub(super) fn completion_answer(
        &self,
        text: &str,
        reason: &str,
        usage: Option<Usage>,
    ) -> String {
        let (head, text, usage) = (self.completion_head(), quote(text), usage_field(usage));
        format!(
            r#"{{{head},"choices":[{{"index":0,"text":{text},"logprobs":null,"finish_reason":"{reason}"}}]{usage}}}"#
        )
    }

    /// An embeddings answer of these vectors, already JSON.
    pub(super) fn embeddings_answer(&self, vectors: &[String], prompt: u64) -> String {
        let row = |(index, vector): (usize, &String)| {
            format!(r#"{{"object":"embedding","index":{index},"embedding":{vector}}}"#)
        };
        let rows: Vec<String> = vectors.iter().enumerate().map(row).collect();
        let (model, rows) = (&self.quoted, rows.join(","));
        format!(
            r#"{{"object":"list","data":[{rows}],"model":{model},"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt}}}}}"#
        )
    }

    /// What it thinks of every text: nothing against it.
    pub(super) fn moderation(&self) -> String {
        let categories = [
            "harassment",
            "harassment/threatening",
            "hate",
            "hate/threatening",
            "illicit",
            "illicit/violent",
            "self-harm",
            "self-harm/instructions",
            "self-harm/intent",
            "sexual",
            "sexual/minors",
            "violence",
            "violence/graphic",
        ];
        let all = |value: &str| {
            let one = |name: &&str| format!("{}:{value}", quote(name));
            let rows: Vec<String> = categories.iter().map(one).collect();
            rows.join(",")
        };
        let (model, no, never, text) = (&self.quoted, all("false"), all("0.0"), all(r#"["text"]"#));
        format!(
            r#"{{"id":"modr-mock","model":{model},"results":[{{"flagged":false,"categories":{{{no}}},"category_scores":{{{never}}},"category_applied_input_types":{{{text}}}}}]}}"#
        )
    }

    fn chat_head(&self) -> String {
        let model = &self.quoted;
        format!(
            r#""id":"chatcmpl-mock","object":"chat.completion.chunk","created":{CREATED},"model":{model}"#
        )
    }

    fn completion_head(&self) -> String {
        let model = &self.quoted;
        format!(
            r#""id":"cmpl-mock","object":"text_completion","created":{CREATED},"model":{model}"#
        )
    }

    fn chat_event(&self, delta: &str, reason: Option<&str>) -> Bytes {
        let (head, reason) = (self.chat_head(), reason.map_or("null".to_owned(), quote));
        event(format!(
            r#"{{{head},"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#
        ))
    }

    fn completion_event(&self, text: &str, reason: Option<&str>) -> Bytes {
        let (head, text) = (self.completion_head(), quote(text));
        let reason = reason.map_or("null".to_owned(), quote);
        event(format!(
            r#"{{{head},"choices":[{{"index":0,"text":{text},"logprobs":null,"finish_reason":{reason}}}]}}"#
        ))
    }
}

/// The chunk of each word; words that are the same share theirs.
fn each(words: &[&str], chunk: impl Fn(&str) -> Bytes) -> Vec<Bytes> {
    let mut known: HashMap<&str, Bytes> = HashMap::new();
    let shared = words.iter().map(|word| {
        let made = known.entry(word).or_insert_with(|| chunk(word));
        made.clone()
    });
    shared.collect()
}

/// One server-sent event.
fn event(json: String) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}

fn usage_field(usage: Option<Usage>) -> String {
    usage.map_or(String::new(), |usage| {
        format!(r#","usage":{}"#, usage.json())
    })
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An error in OpenAI's shape.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> String {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let (message, code) = (quote(message), quote(code));
    format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":null,"code":{code}}}}}"#)
}

/// The embedding of one input as JSON: numbers, or little-endian f32 in base64.
pub(super) fn embedding(input: &str, width: usize, base64: bool) -> String {
    let numbers = (0..width).map(|index| coordinate(input, index));
    if base64 {
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        return quote(&to_base64(&bytes));
    }
    let numbers: Vec<String> = numbers.map(|number| format!("{number:.6}")).collect();
    format!("[{}]", numbers.join(","))
}

/// A number in [-1, 1) that depends on the input and the index alone (FNV-1a).
fn coordinate(input: &str, index: usize) -> f32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    let hash = input
        .bytes()
        .chain(index.to_le_bytes())
        .fold(2_166_136_261, step);
    f32::from((hash >> 16) as u16) / 32_768.0 - 1.0
}

/// Standard base64 with padding; the Python client asks for embeddings in it.
fn to_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| {
            bits << 8 | u32::from(*group.get(at).unwrap_or(&0))
        });
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let padding = place > group.len();
            text.push(if padding {
                '='
            } else {
                char::from(ALPHABET[digit as usize])
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_the_standard_says() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(to_base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_text_is_the_words_of_its_chunks() {
        let bodies = Bodies::prepare(&Behaviour::default().tokens(14));
        assert_eq!(bodies.text(0), "");
        assert_eq!(bodies.text(3), "A farthing buys");
        assert!(bodies.text(14).ends_with(" farthing.A farthing"));
        assert_eq!(bodies.model("mock/model").unwrap().chat.len(), 14);
    }

    #[test]
    fn what_somebody_began_is_found_and_gone_on_with() {
        let bodies = Bodies::prepare(&Behaviour::default().tokens(14));
        assert_eq!(bodies.begun("How much?"), 0);
        assert_eq!(bodies.begun("A farthing buys"), 3);
        assert_eq!(bodies.begun(bodies.text(13)), 13);
        assert_eq!(bodies.text_after(1, 2), " farthing buys");
    }

    #[test]
    fn a_prompt_counts_a_token_for_every_four_bytes_begun() {
        assert_eq!(prompt_tokens(""), 0);
        assert_eq!(prompt_tokens("12345"), 2);
    }
}
