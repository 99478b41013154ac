//! A question over plain HTTP, as any application would ask it, and the answer as it comes.

use std::time::Duration;

use alloy::primitives::{B256, Keccak256, keccak256};
use farthing_protocol::amount::Amount;
use futures::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::llama::MODEL;

/// The longest an answer may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection.
    #[error("the endpoint cannot be asked: {0}")]
    Http(#[from] reqwest::Error),
    /// It said no.
    #[error("the endpoint answered {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// What came is not what a gateway sends.
    #[error("the answer is not one: {0}")]
    Strange(String),
}

/// What is asked, and how.
#[derive(Debug, Clone)]
pub struct Question {
    /// The body, byte for byte.
    pub body: String,
    streams: bool,
}

impl Question {
    /// One message to the model. The seed makes two runs alike, as far as the model server can.
    #[must_use]
    pub fn new(text: &str, max_tokens: u32, streams: bool) -> Self {
        let mut body = json!({
            "model": MODEL,
            "messages": [{ "role": "user", "content": text }],
            "max_tokens": max_tokens,
            "temperature": 0.6,
            "repeat_penalty": 1.2,
            "seed": 7,
            "stream": streams,
        });
        if streams {
            body["stream_options"] = json!({ "include_usage": true });
        }
        Self {
            body: body.to_string(),
            streams,
        }
    }

    /// Lets the model talk on to the limit, so that every run is as long (llama.cpp's own field;
    /// unknown fields pass through to the seller's model server).
    #[must_use]
    pub fn to_the_limit(mut self) -> Self {
        if let Some(body) = self.body.strip_suffix('}') {
            self.body = format!(r#"{body},"ignore_eos":true}}"#);
        }
        self
    }

    /// What the receipt must call the request.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.body.as_bytes())
    }
}

/// A whole answer, and what was seen of it on the wire.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The purchase, as the head names it.
    pub request: String,
    /// Who sold it, as the head names it.
    pub seller: String,
    /// Why, as the head says.
    pub why: String,
    /// What it cost, as the gateway says.
    pub charged: Amount,
    /// What was said.
    pub text: String,
    /// keccak-256 of all data that came.
    pub hash: B256,
    /// When it was asked.
    pub asked: Instant,
    /// Until the first word.
    pub first_word: Duration,
    /// Until the end.
    pub took: Duration,
}

/// What the gateway says at a stream's end.
#[derive(Deserialize)]
struct Bill {
    charged: Amount,
}

/// An application's HTTP client.
#[derive(Debug, Clone)]
pub struct Application {
    http: reqwest::Client,
    url: String,
}

impl Application {
    /// One that asks the endpoint at this base URL.
    ///
    /// # Errors
    /// [`AskError::Http`].
    pub fn new(base_url: &str) -> Result<Self, AskError> {
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy();
        Ok(Self {
            http: http.build()?,
            url: format!("{base_url}/chat/completions"),
        })
    }

    /// Where it asks.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks, and hands over what is said as it comes.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        question: &Question,
        mut say: impl FnMut(&str),
    ) -> Result<Answer, AskError> {
        let asked = Instant::now();
        let request = self.http.post(&self.url).body(question.body.clone());
        let response = request
            .header(CONTENT_TYPE, "application/json")
            .send()
            .await?;
        let status = response.status();
        if !status.is_success() {
            return Err(AskError::Refused {
                status: status.as_u16(),
                body: response.text().await?,
            });
        }
        let head = response.headers().clone();
        let mut heard = Heard::new(asked);
        if question.streams {
            let mut bytes = response.bytes_stream();
            while let Some(piece) = bytes.next().await {
                heard.bytes(&piece?, &mut say)?;
            }
        } else {
            let document = response.bytes().await?;
            heard.document(&document, &head, &mut say)?;
        }
        heard.answer(&head)
    }
}

/// What has come so far.
struct Heard {
    asked: Instant,
    first_word: Option<Duration>,
    /// A line that is not whole yet.
    line: Vec<u8>,
    hash: Keccak256,
    text: String,
    charged: Option<Amount>,
    done: bool,
}

impl Heard {
    fn new(asked: Instant) -> Self {
        Self {
            asked,
            first_word: None,
            line: Vec::new(),
            hash: Keccak256::new(),
            text: String::new(),
            charged: None,
            done: false,
        }
    }

    fn bytes(&mut self, bytes: &[u8], say: &mut impl FnMut(&str)) -> Result<(), AskError> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.line(&line, say)?;
            } else {
                self.line.push(*byte);
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], say: &mut impl FnMut(&str)) -> Result<(), AskError> {
        if let Some(bill) = line.strip_prefix(b": farthing ") {
            let bill: Bill = serde_json::from_slice(bill).map_err(strange)?;
            self.charged = Some(bill.charged);
        }
        match line.strip_prefix(b"data: ") {
            None => Ok(()),
            Some(b"[DONE]") if self.done => Err(AskError::Strange("a second [DONE]".into())),
            Some(b"[DONE]") => {
                self.done = true;
                Ok(())
            }
            Some(data) => self.data(data, "/choices/0/delta/content", say),
        }
    }

    fn document(
        &mut self,
        document: &[u8],
        head: &HeaderMap,
        say: &mut impl FnMut(&str),
    ) -> Result<(), AskError> {
        let charged = header(head, "x-farthing-charged")?;
        self.charged = charged.parse().ok();
        self.done = true;
        self.data(document, "/choices/0/message/content", say)
    }

    fn data(
        &mut self,
        data: &[u8],
        place: &str,
        say: &mut impl FnMut(&str),
    ) -> Result<(), AskError> {
        self.hash.update(data);
        let event: Value = serde_json::from_slice(data).map_err(strange)?;
        if let Some(error) = event.get("error") {
            return Err(AskError::Strange(error.to_string()));
        }
        if let Some(words) = event.pointer(place).and_then(Value::as_str) {
            self.first_word.get_or_insert_with(|| self.asked.elapsed());
            self.text.push_str(words);
            say(words);
        }
        Ok(())
    }

    fn answer(self, head: &HeaderMap) -> Result<Answer, AskError> {
        let missing = |what: &str| AskError::Strange(format!("it has no {what}"));
        if !self.done {
            return Err(missing("[DONE]"));
        }
        let took = self.asked.elapsed();
        Ok(Answer {
            request: header(head, "x-request-id")?,
            seller: header(head, "x-farthing-seller")?,
            why: header(head, "x-farthing-why")?,
            charged: self.charged.ok_or_else(|| missing("bill"))?,
            text: self.text,
            hash: self.hash.finalize(),
            asked: self.asked,
            first_word: self.first_word.unwrap_or(took),
            took,
        })
    }
}

fn header(head: &HeaderMap, name: &str) -> Result<String, AskError> {
    let value = head.get(name).and_then(|value| value.to_str().ok());
    let missing = || AskError::Strange(format!("the header {name} is missing"));
    Ok(value.ok_or_else(missing)?.to_owned())
}

fn strange(error: serde_json::Error) -> AskError {
    AskError::Strange(error.to_string())
}
