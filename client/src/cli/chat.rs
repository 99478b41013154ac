//! `farthing chat`: one prompt through the gateway's own endpoint, the answer as it flows, then
//! who sold it and for how much.

use farthing_protocol::offer::Endpoint;
use std::io::Write;
use std::path::PathBuf;

use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::remote::{Remote, RemoteError};
use crate::cli::{Failure, render};
use crate::config::Config;
use crate::gateway::exchange::WHY;
use crate::report::ModelListing;

/// The longest line of a stream that is kept.
const LONGEST_LINE: usize = 4 * 1024 * 1024;

/// What is asked.
#[derive(Clone)]
pub struct Question {
    /// The model; the cheapest on offer if not named.
    pub model: Option<String>,
    /// The most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// The prompt.
    pub prompt: String,
    /// A key, for a gateway that asks for one.
    pub api_key: Option<String>,
}

/// The comment before `[DONE]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Bill {
    /// The purchase's id.
    pub request: String,
    /// Who sold.
    pub seller: String,
    /// Atoms.
    pub charged: farthing_protocol::amount::Amount,
    /// The receipt's place on its channel.
    pub receipt_seq: u64,
}

/// Asks, and writes the answer while it comes.
///
/// # Errors
/// Any [`Failure`].
pub async fn chat(
    config: &Config,
    question: Question,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let model = match question.model {
        Some(model) => model,
        None => cheapest(&Remote::new(config)?.models().await?).ok_or(Failure::NoModel)?,
    };
    let body = json!({
        "model": model,
        "stream": true,
        "max_tokens": question.max_tokens,
        "messages": [{ "role": "user", "content": question.prompt }],
    });
    let response = Door::new(config, question.api_key)?.ask(&body).await?;
    if !response.status().is_success() {
        let error: Value = response.json().await.map_err(RemoteError::from)?;
        return Err(refused(&error["error"]));
    }
    let why = response
        .headers()
        .get(WHY)
        .and_then(|why| why.to_str().ok());
    let why = why.unwrap_or_default().to_owned();
    let bill = answer(response, out).await?;
    let token = render::token(&config.chain);
    let failed = Failure::io("cannot write to standard output");
    writeln!(out, "\n\n{}", render::bill(&token, &model, &bill, &why)).map_err(failed)
}

/// The cheapest model that chats.
pub(in crate::cli) fn cheapest(models: &[ModelListing]) -> Option<String> {
    let chats = models
        .iter()
        .filter(|model| model.endpoints.contains(&Endpoint::Chat));
    let cheapest = chats.min_by_key(|model| model.cheapest.output);
    cheapest.map(|model| model.id.clone())
}

/// The gateway's own endpoint for chats.
#[derive(Debug)]
pub(in crate::cli) struct Door {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    data_dir: PathBuf,
}

impl Door {
    /// The endpoint of the gateway that is configured so. Nothing is connected yet.
    ///
    /// # Errors
    /// [`RemoteError::Broken`].
    pub(in crate::cli) fn new(config: &Config, key: Option<String>) -> Result<Self, RemoteError> {
        let builder = reqwest::Client::builder().no_proxy();
        let http = builder.read_timeout(config.gateway.deadline).build()?;
        Ok(Self {
            http,
            url: format!("http://{}/v1/chat/completions", config.gateway.listen),
            key,
            data_dir: config.data_dir.clone(),
        })
    }

    /// Sends a request and returns its answer's head, whatever it says.
    ///
    /// # Errors
    /// [`RemoteError::NotRunning`] and [`RemoteError::Broken`].
    pub(in crate::cli) async fn ask(&self, body: &Value) -> Result<reqwest::Response, RemoteError> {
        let mut request = self.http.post(&self.url).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        request
            .send()
            .await
            .map_err(|error| match error.is_connect() {
                true => RemoteError::NotRunning {
                    data_dir: self.data_dir.clone(),
                },
                false => error.into(),
            })
    }
}

fn refused(error: &Value) -> Failure {
    let message = error["message"]
        .as_str()
        .unwrap_or("an error without words");
    RemoteError::Refused(render::safe(message)).into()
}

/// Writes a stream's text and returns its bill.
async fn answer(response: reqwest::Response, out: &mut impl Write) -> Result<Bill, Failure> {
    let mut parts = response.bytes_stream();
    let mut pending = Vec::new();
    let mut bill = None;
    while let Some(part) = parts.next().await {
        pending.extend_from_slice(&part.map_err(RemoteError::from)?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match read(line.trim_end())? {
                Line::Text(text) => write(out, &text)?,
                Line::Bill(last) => bill = Some(last),
                Line::Other => {}
            }
        }
        if pending.len() > LONGEST_LINE {
            break;
        }
    }
    let broken = || RemoteError::Refused("the answer ended without a bill".into()).into();
    bill.ok_or_else(broken)
}

fn write(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    let written = out.write_all(render::safe(text).as_bytes());
    let written = written.and_then(|()| out.flush());
    written.map_err(Failure::io("cannot write to standard output"))
}

/// What a line of the stream says.
enum Line {
    Text(String),
    Bill(Bill),
    Other,
}

fn read(line: &str) -> Result<Line, Failure> {
    if let Some(bill) = line.strip_prefix(": farthing ") {
        return Ok(serde_json::from_str(bill).map_or(Line::Other, Line::Bill));
    }
    let chunk = line
        .strip_prefix("data: ")
        .map(serde_json::from_str::<Value>);
    let Some(Ok(chunk)) = chunk else {
        return Ok(Line::Other);
    };
    if chunk["error"].is_object() {
        return Err(refused(&chunk["error"]));
    }
    let text = chunk["choices"][0]["delta"]["content"].as_str();
    Ok(text.map_or(Line::Other, |text| Line::Text(text.to_owned())))
}
