//! What an upstream can be told to do, well or badly.

use std::time::Duration;

use super::bodies;

/// How a mock upstream behaves. The default answers 16 tokens at once and never fails.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// The names it serves; any other is an unknown model.
    pub models: Vec<String>,
    /// Tokens in an answer; a smaller limit in the request wins.
    pub tokens: usize,
    /// What it says, instead of the words.
    pub text: Option<String>,
    /// Bytes of each token, instead of the words.
    pub token_bytes: Option<usize>,
    /// The time between two tokens. Also stretches an answer that is not streamed.
    pub pace: Duration,
    /// The time between two tokens of a stream, instead of `pace`; the first comes at once.
    pub stream_pace: Option<Duration>,
    /// Whether a stream states its usage.
    pub stream_usage: StreamUsage,
    /// Whether an answer that is not streamed states its usage.
    pub usage: bool,
    /// Numbers in an embedding.
    pub embedding_width: usize,
    /// Whether embeddings come in base64 when a request asks for it. Not every server knows how.
    pub embedding_base64: bool,
    /// Whether it calls tools and keeps to a form when a request asks for it.
    pub skills: bool,
    /// The bearer key it demands, if any.
    pub api_key: Option<String>,
    /// What it makes of an answer that somebody began.
    pub prefix: Prefix,
    /// A fault in every request. One scripted for a request's number goes before it.
    pub fault: Option<Fault>,
    /// Whether to remember requests and announce their stages; fixed at the start. Benches turn
    /// it off, since a memory grows.
    pub remember: bool,
}

/// When a stream ends with a chunk of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamUsage {
    /// When the request sets `stream_options.include_usage`, as OpenAI does.
    WhenAsked,
    /// Always, as some servers do.
    Always,
    /// Never, as older servers do.
    Never,
}

/// What a server makes of an assistant's message at the end of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// It goes on with it, as llama.cpp does.
    Continued,
    /// It begins anew, as a server does that knows no such thing.
    Ignored,
    /// 400, as some models do.
    Refused,
}

/// A named way to fail. Counts are of content chunks; in an answer that is not streamed the
/// fault keeps its nature: half a body for a cut or a stall, broken JSON for a malformed chunk.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// 429 with a `Retry-After` of that many seconds.
    RateLimited {
        /// Seconds to wait, as the header says it.
        retry_after: u64,
    },
    /// 500 to the first request it meets, then no fault.
    ServerErrorOnce,
    /// 503, also to the list of models.
    Unavailable,
    /// The connection is reset before any answer, also to the list of models.
    Reset,
    /// The connection stays open and nothing comes, also to the list of models.
    NoResponse,
    /// The first token takes this long.
    SlowFirstToken(Duration),
    /// Pieces without content come one after the other, and no token ever.
    Prattle,
    /// The connection breaks after this many chunks.
    CutAfter(usize),
    /// Nothing more comes after this many chunks, and the connection stays open.
    StallAfter(usize),
    /// The chunk with this number, counted from 1, is not JSON.
    MalformedChunk(usize),
    /// The stream ends cleanly, without `[DONE]`.
    NoDone,
    /// The same, but of two answers in it only the first has ended.
    OneUnended,
    /// 400: the prompt is longer than the context.
    ContextLength,
    /// 400: the prompt was refused by a content filter.
    ContentFilter,
    /// Usage claims this many times the tokens delivered, and of the prompt.
    OverCount {
        /// The multiple.
        factor: u64,
    },
    /// The first chunk of content has this many bytes.
    HugeChunk(usize),
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            models: vec!["mock/model".to_owned()],
            tokens: 16,
            text: None,
            token_bytes: None,
            pace: Duration::ZERO,
            stream_pace: None,
            stream_usage: StreamUsage::WhenAsked,
            usage: true,
            embedding_width: 8,
            embedding_base64: true,
            skills: true,
            api_key: None,
            prefix: Prefix::Continued,
            fault: None,
            remember: true,
        }
    }
}

impl Behaviour {
    /// Serve these models.
    pub fn models<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.models = names.into_iter().map(Into::into).collect();
        self
    }

    /// Answer with this many tokens.
    pub fn tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// Let embeddings be numbers, whatever a request asks for.
    pub fn plain_embeddings(mut self) -> Self {
        self.embedding_base64 = false;
        self
    }

    /// Answer in words, whatever a request asks for.
    pub fn words_only(mut self) -> Self {
        self.skills = false;
        self
    }

    /// Say this, to the end.
    pub fn says(mut self, text: &str) -> Self {
        self.tokens = bodies::pieces(text).count();
        self.text = Some(text.to_owned());
        self
    }

    /// Let each token have this many bytes.
    pub fn token_bytes(mut self, bytes: usize) -> Self {
        self.token_bytes = Some(bytes);
        self
    }

    /// Leave this time between two tokens.
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// State the usage of a stream like this.
    pub fn stream_usage(mut self, usage: StreamUsage) -> Self {
        self.stream_usage = usage;
        self
    }

    /// Demand this bearer key.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Make this of an answer that somebody began.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// Fail every request in this way.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}
