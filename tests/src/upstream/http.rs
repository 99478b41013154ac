//! The doors of the mock: OpenAI's endpoints.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::behaviour::{Behaviour, Fault, Prefix, StreamUsage};
use super::bodies::{self, Model, Usage, prompt_tokens};
use super::plan::{self, Parts};
use super::record::{Endpoint, Record, Visit};
use super::skills::{Skill, Wanted};
use super::socket::{Cord, Door};
use super::{Manner, Shared};

/// Bodies larger than this are refused, as every server has some limit.
const BODY_LIMIT: usize = 64 << 20;

/// Serve until dropped.
pub(super) async fn serve(door: Door, shared: Arc<Shared>) {
    let routes = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/moderations", post(moderations))
        .route("/tokenize", post(tokenize))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(shared);
    let service = routes.into_make_service_with_connect_info::<Cord>();
    if let Err(error) = axum::serve(door, service).await {
        tracing::error!(%error, "the mock upstream stopped");
    }
}

/// An answer that ends the matter; boxed, since the happy path carries it along.
type Refusal = Box<Response>;

/// The fields of a request that matter here.
#[derive(Debug, Deserialize)]
struct Ask<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    encoding_format: Option<Cow<'a, str>>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
    parallel_tool_calls: Option<bool>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    #[serde(default)]
    mock: Wishes,
}

/// What a request may wish of the mock itself, in the field `mock`: unknown fields pass through
/// everything in between, so that one process can serve every shape of a bench.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Wishes {
    /// Microseconds between two chunks, instead of the behaviour's paces.
    pace_us: Option<u64>,
    /// Let each chunk of content say in a field `sent` when it was sent.
    stamp: bool,
}

impl Ask<'_> {
    fn skill(&self) -> Option<Skill> {
        Skill::of(&Wanted {
            messages: self.messages,
            tools: self.tools,
            tool_choice: self.tool_choice,
            parallel: self.parallel_tool_calls,
            response_format: self.response_format,
        })
    }
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

async fn models(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cord): ConnectInfo<Cord>,
    headers: HeaderMap,
) -> Response {
    shared.record.models_listed();
    let manner = shared.manner();
    match &manner.behaviour.fault {
        Some(fault @ Fault::Unavailable) => return plain_fault(fault).unwrap_or_else(out_of_order),
        Some(Fault::Reset) => hang(Some(&cord)).await,
        Some(Fault::NoResponse) => hang(None).await,
        _ => {}
    }
    match check_key(&manner.behaviour, &headers) {
        Ok(()) => json(StatusCode::OK, manner.bodies.list()),
        Err(refusal) => *refusal,
    }
}

async fn chat(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cord): ConnectInfo<Cord>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(shared, Endpoint::Chat, cord, headers, body).await
}

async fn completions(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cord): ConnectInfo<Cord>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(shared, Endpoint::Completions, cord, headers, body).await
}

async fn embeddings(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cord): ConnectInfo<Cord>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(shared, Endpoint::Embeddings, cord, headers, body).await
}

async fn moderations(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cord): ConnectInfo<Cord>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(shared, Endpoint::Moderations, cord, headers, body).await
}

/// The tokens of a text, or of a chat's messages, as it counts them itself.
async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    #[derive(Deserialize)]
    struct Text<'a> {
        #[serde(borrow)]
        content: Option<Cow<'a, str>>,
        #[serde(borrow)]
        messages: Option<&'a RawValue>,
    }
    let Ok(text) = serde_json::from_slice::<Text<'_>>(&body) else {
        return json(StatusCode::BAD_REQUEST, "{}".to_owned());
    };
    let words = text
        .content
        .map(|text| text.split_whitespace().count() as u64);
    let prompt = text.messages.map(|raw| super::prompt_tokens(raw.get()));
    shared.counts.fetch_add(1, Ordering::AcqRel);
    let count = words.or(prompt).unwrap_or_default();
    json(StatusCode::OK, format!(r#"{{"count":{count}}}"#))
}

/// Note the request, decide its fault, answer.
async fn answer(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    cord: Cord,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let authorization = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let authorization = authorization.map(str::to_owned);
    let mut visit = Record::begin(&shared, endpoint, body.clone(), authorization);
    let manner = shared.manner();
    let fault = shared
        .record
        .fault(visit.number, manner.behaviour.fault.as_ref());
    match fault {
        Some(Fault::Reset) => {
            visit.finish();
            hang(Some(&cord)).await;
        }
        Some(Fault::NoResponse) => hang(None).await,
        _ => {}
    }
    let refusal = check_key(&manner.behaviour, &headers).err();
    if let Some(refusal) =
        refusal.or_else(|| fault.as_ref().and_then(plain_fault).map(Refusal::from))
    {
        visit.finish();
        return *refusal;
    }
    let asked = read(&manner, endpoint, &body).and_then(|(ask, model)| {
        let begun = begun(&manner, endpoint, &ask)?;
        Ok((ask, model, begun))
    });
    match asked {
        Ok((ask, model, begun)) => {
            Answer {
                manner: &manner,
                endpoint,
                skill: ask
                    .skill()
                    .filter(|_| endpoint == Endpoint::Chat && manner.behaviour.skills),
                ask,
                model,
                begun,
                fault,
            }
            .give(visit)
            .await
        }
        Err(refusal) => {
            visit.finish();
            *refusal
        }
    }
}

/// Hold the connection without a word, or break it, until the server drops this request.
async fn hang(cord: Option<&Cord>) {
    if let Some(cord) = cord {
        cord.pull();
    }
    std::future::pending().await
}

/// Understand the request, or say in OpenAI's shape why not.
fn read<'a>(
    manner: &Manner,
    endpoint: Endpoint,
    body: &'a [u8],
) -> Result<(Ask<'a>, Arc<Model>), Refusal> {
    let bad = |message: &str| -> Refusal {
        refuse(StatusCode::BAD_REQUEST, "invalid_request", message).into()
    };
    let ask: Ask<'a> = serde_json::from_slice(body).map_err(|error| bad(&error.to_string()))?;
    let name = ask
        .model
        .as_deref()
        .ok_or_else(|| bad("you must provide a model"))?;
    let (field, given) = match endpoint {
        Endpoint::Chat => ("messages", ask.messages),
        Endpoint::Completions => ("prompt", ask.prompt),
        Endpoint::Embeddings | Endpoint::Moderations => ("input", ask.input),
    };
    if given.is_none() {
        return Err(bad(&format!("missing required parameter: '{field}'")));
    }
    let model = manner.bodies.model(name).ok_or_else(|| {
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        Refusal::from(refuse(StatusCode::NOT_FOUND, "model_not_found", &message))
    })?;
    Ok((ask, model))
}

/// How much of the answer is there already: an assistant's last message, or the end of a prompt.
fn begun(manner: &Manner, endpoint: Endpoint, ask: &Ask<'_>) -> Result<usize, Refusal> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        role: Cow<'a, str>,
        content: Option<serde_json::Value>,
    }
    let text = match endpoint {
        Endpoint::Chat => {
            let messages = ask.messages.map_or("[]", RawValue::get);
            let messages: Vec<Message<'_>> = serde_json::from_str(messages).unwrap_or_default();
            let last = messages.into_iter().last();
            let last = last.filter(|message| message.role == "assistant");
            match (last, manner.behaviour.prefix) {
                (None, _) | (Some(_), Prefix::Ignored) => return Ok(0),
                (Some(_), Prefix::Refused) => {
                    let message = "This model does not support assistant message prefill.";
                    let status = StatusCode::BAD_REQUEST;
                    return Err(refuse(status, "invalid_request", message).into());
                }
                (Some(last), Prefix::Continued) => last.content,
            }
        }
        Endpoint::Completions => {
            let prompt = ask.prompt.map_or("null", RawValue::get);
            serde_json::from_str(prompt).ok()
        }
        Endpoint::Embeddings | Endpoint::Moderations => None,
    };
    let text = text.and_then(|text| text.as_str().map(str::to_owned));
    Ok(text.map_or(0, |text| manner.bodies.begun(&text)))
}

/// One request with all that decides its answer.
struct Answer<'a> {
    manner: &'a Manner,
    endpoint: Endpoint,
    ask: Ask<'a>,
    /// What it says instead of its words.
    skill: Option<Skill>,
    model: Arc<Model>,
    /// Tokens of the answer that somebody has said already.
    begun: usize,
    fault: Option<Fault>,
}

impl Answer<'_> {
    async fn give(self, visit: Visit) -> Response {
        if self.endpoint == Endpoint::Embeddings {
            let body = self.embeddings();
            return self.whole(body, Duration::ZERO, visit).await;
        }
        if self.endpoint == Endpoint::Moderations {
            let body = self.model.moderation();
            return self.whole(body, Duration::ZERO, visit).await;
        }
        if self.ask.stream == Some(true) {
            return self.stream(visit);
        }
        let tokens = u32::try_from(self.tokens()).unwrap_or(u32::MAX);
        let takes = self.manner.behaviour.pace.saturating_mul(tokens);
        let body = self.text();
        self.whole(body, takes, visit).await
    }

    fn tokens(&self) -> usize {
        let limit = self.ask.max_completion_tokens.or(self.ask.max_tokens);
        let left = match &self.skill {
            Some(skill) => skill.tokens(),
            None => self.manner.behaviour.tokens.saturating_sub(self.begun),
        };
        limit.map_or(left, |limit| limit.min(left))
    }

    fn reason(&self) -> &'static str {
        if let Some(skill) = &self.skill {
            return skill.reason(self.tokens());
        }
        if self.begun + self.tokens() < self.manner.behaviour.tokens {
            "length"
        } else {
            "stop"
        }
    }

    /// The usage it will claim: the truth, unless told to lie.
    fn usage(&self) -> Usage {
        let input = self.ask.messages.or(self.ask.prompt).or(self.ask.input);
        let prompt = input.map_or(0, |raw| prompt_tokens(raw.get()));
        let factor = match self.fault {
            Some(Fault::OverCount { factor }) => factor,
            _ => 1,
        };
        let completion = self.tokens() as u64;
        Usage {
            prompt: prompt.saturating_mul(factor),
            completion: completion.saturating_mul(factor),
        }
    }

    fn text(&self) -> String {
        let usage = self.manner.behaviour.usage.then(|| self.usage());
        if let Some(skill) = &self.skill {
            let message = skill.message(self.tokens()).to_string();
            return self.model.chat_message(&message, self.reason(), usage);
        }
        let huge = match self.fault {
            Some(Fault::HugeChunk(bytes)) => "x".repeat(bytes),
            _ => String::new(),
        };
        let text = self.manner.bodies.text_after(self.begun, self.tokens());
        let text = if huge.is_empty() { text } else { &huge };
        match self.endpoint {
            Endpoint::Chat => self.model.chat_answer(text, self.reason(), usage),
            _ => self.model.completion_answer(text, self.reason(), usage),
        }
    }

    fn embeddings(&self) -> String {
        let raw = self.ask.input.map_or("null", RawValue::get);
        let many: Option<Vec<&RawValue>> = serde_json::from_str(raw).ok();
        // A list of numbers is one input given as tokens; any other list is a list of inputs.
        let many = many.filter(|inputs| {
            inputs
                .first()
                .is_none_or(|first| !first.get().starts_with(|c: char| c.is_ascii_digit()))
        });
        let inputs = many.map_or(vec![raw], |inputs| {
            inputs.into_iter().map(RawValue::get).collect()
        });
        let width = self.manner.behaviour.embedding_width;
        let base64 = self.ask.encoding_format.as_deref() == Some("base64");
        let base64 = base64 && self.manner.behaviour.embedding_base64;
        let vectors = inputs
            .iter()
            .map(|input| bodies::embedding(input, width, base64));
        self.model
            .embeddings_answer(&vectors.collect::<Vec<_>>(), self.usage().prompt)
    }

    fn stream(self, visit: Visit) -> Response {
        let (is_chat, tokens) = (self.endpoint == Endpoint::Chat, self.tokens());
        let prepared = if is_chat {
            &self.model.chat
        } else {
            &self.model.completions
        };
        let left = prepared.iter().skip(self.begun);
        let mut content: Vec<Bytes> = match &self.skill {
            None => left.take(tokens).cloned().collect(),
            Some(skill) => {
                let deltas = skill.deltas(tokens);
                deltas.map(|delta| self.model.chat_delta(&delta)).collect()
            }
        };
        if let (Some(Fault::HugeChunk(bytes)), Some(first)) = (&self.fault, content.first_mut()) {
            let text = "x".repeat(*bytes);
            *first = if is_chat {
                self.model.chat_content(&text)
            } else {
                self.model.completion_content(&text)
            };
        }
        let finish = self.reason();
        let mut tail = vec![if is_chat {
            self.model.chat_finish(finish)
        } else {
            self.model.completion_finish(finish)
        }];
        let asked = self
            .ask
            .stream_options
            .as_ref()
            .and_then(|options| options.include_usage);
        let told = match self.manner.behaviour.stream_usage {
            StreamUsage::WhenAsked => asked == Some(true),
            StreamUsage::Always => true,
            StreamUsage::Never => false,
        };
        if told {
            tail.push(self.model.usage_event(is_chat, self.usage()));
        }
        let head = is_chat.then(|| self.model.role.clone());
        let behaviour = &self.manner.behaviour;
        let wished = self.ask.mock.pace_us.map(Duration::from_micros);
        let eager = wished.is_none() && behaviour.stream_pace.is_some();
        let pace = wished.or(behaviour.stream_pace);
        let pace = pace.unwrap_or(behaviour.pace);
        let stamp = self.ask.mock.stamp;
        let steps = plan::stream(
            Parts {
                head,
                content,
                tail,
                pace,
                eager,
                stamp,
            },
            self.fault.as_ref(),
        );
        respond(
            StatusCode::OK,
            "text/event-stream",
            Body::from_stream(plan::play(steps, visit)),
        )
    }

    async fn whole(&self, body: String, takes: Duration, mut visit: Visit) -> Response {
        let mut steps = plan::whole(Bytes::from(body), takes, self.fault.as_ref());
        // Time passes before the status, as with a real server.
        if let Some(plan::Step::Wait(delay)) = steps.first() {
            tokio::time::sleep(*delay).await;
            steps.remove(0);
        }
        if let [plan::Step::Send(body)] = steps.as_slice() {
            visit.finish();
            return json(StatusCode::OK, body.clone());
        }
        respond(
            StatusCode::OK,
            "application/json",
            Body::from_stream(plan::play(steps, visit)),
        )
    }
}

/// The faults that are an answer of their own.
fn plain_fault(fault: &Fault) -> Option<Response> {
    let (status, code, message) = match fault {
        Fault::RateLimited { retry_after } => {
            let status = StatusCode::TOO_MANY_REQUESTS;
            let mut answer = refuse(status, "rate_limit_exceeded", "Rate limit reached.");
            answer
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(*retry_after));
            return Some(answer);
        }
        Fault::ServerErrorOnce => return Some(out_of_order()),
        Fault::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The server is overloaded or loading.",
        ),
        Fault::ContextLength => (
            StatusCode::BAD_REQUEST,
            "context_length_exceeded",
            "This model's maximum context length is 2048 tokens. Please shorten the messages.",
        ),
        Fault::ContentFilter => (
            StatusCode::BAD_REQUEST,
            "content_filter",
            "The prompt was refused by the content filter.",
        ),
        _ => return None,
    };
    Some(refuse(status, code, message))
}

fn out_of_order() -> Response {
    refuse(
        StatusCode::INTERNAL_SERVER_ERROR,
        "server_error",
        "The server had an error.",
    )
}

fn check_key(behaviour: &Behaviour, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(key) = &behaviour.api_key else {
        return Ok(());
    };
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    Err(refuse(
        StatusCode::UNAUTHORIZED,
        "invalid_api_key",
        "Incorrect API key provided.",
    )
    .into())
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    json(status, bodies::error(status, code, message))
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    respond(status, "application/json", body.into())
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
