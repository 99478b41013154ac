//! Tokens counted by a model server of one's own, which has the model's tokenizer (`/tokenize`, as
//! llama.cpp and vLLM have it): what sellers say that they counted is held against it.
//!
//! Nothing is sold by it: a seller that counts more than it may have is believed less. One answer
//! is counted at a time, beside everything else; one that comes meanwhile is not, and nothing is
//! said of what the server does not count. Whoever configures the tokenizer of another model
//! believes all sellers of this one less.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::body::{Body, quote};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use serde_json::{Value, json};

use crate::client::answer::Request;
use crate::client::likeness::Saying;
use crate::client::parts::OpenError;
use crate::client::web::bearer;
use crate::config::Upstream;
use crate::purchase::PurchaseError;

/// How long one count may take.
const WAIT: Duration = Duration::from_secs(5);
/// The most bytes of a prompt that is counted, and of what the server says.
const MOST_PROMPT: usize = 256 * 1024;
const MOST_REPLY: usize = 8 * 1024 * 1024;

/// What a count may be above ours: so many hundredths …
const ANSWER_SHARE: u32 = 5;
/// … and so many tokens that leave no text, such as the end of a turn.
const ANSWER_SLACK: u32 = 16;
/// Templates differ more.
const PROMPT_SHARE: u32 = 10;
const PROMPT_SLACK: u32 = 32;

/// One server with the tokenizer of some model.
#[derive(Debug, Clone)]
struct Tokenizer {
    base: Url,
    key: Option<HeaderValue>,
    /// The model's name there.
    name: String,
}

/// All that are configured.
#[derive(Debug)]
pub(in crate::client) struct Tokenizers {
    http: reqwest::Client,
    by_model: HashMap<String, Tokenizer>,
    runs: AtomicBool,
}

/// What is wrong with a seller's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it counts {said} tokens of the {what} where our own tokenizer counts {ours}")]
pub(in crate::client) struct Inflated {
    what: &'static str,
    said: u32,
    ours: u32,
}

/// Until it is dropped, no other answer is counted.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Tokenizers {
    /// Those of the servers that may be asked.
    ///
    /// # Errors
    /// [`OpenError::Upstream`].
    pub(in crate::client) fn open(servers: &[Upstream]) -> Result<Self, OpenError> {
        let mut by_model = HashMap::new();
        for server in servers.iter().filter(|server| server.tokenize) {
            let key = server.api_key_file.as_deref().map(bearer).transpose()?;
            let Some(base) = root(&server.url) else {
                continue;
            };
            by_model.extend(server.models.iter().map(|(id, name)| {
                let (base, key, name) = (base.clone(), key.clone(), name.clone());
                (id.clone(), Tokenizer { base, key, name })
            }));
        }
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(WAIT)
            .no_proxy()
            .build();
        Ok(Self {
            http: http.map_err(|_| OpenError::Web(PurchaseError::Protocol("there is no HTTP")))?,
            by_model,
            runs: AtomicBool::default(),
        })
    }

    /// Whether there is any.
    pub(in crate::client) fn is_empty(&self) -> bool {
        self.by_model.is_empty()
    }

    /// What is wrong with a seller's counts of this request and its answer; nothing where we
    /// cannot count.
    pub(in crate::client) async fn check(
        &self,
        model: &str,
        request: &Request,
        said: &Saying,
    ) -> Option<Inflated> {
        let tokenizer = self.by_model.get(model)?;
        if self.runs.swap(true, Ordering::AcqRel) {
            return None;
        }
        let _turn = Turn(&self.runs);
        let ours = self.count(tokenizer, &said.text).await;
        if let Some(ours) = ours.filter(|ours| is_above(said.completion, *ours, ANSWER)) {
            let (what, said) = ("answer", said.completion);
            return Some(Inflated { what, said, ours });
        }
        let ours = self.prompt(tokenizer, request).await?;
        let (what, said) = ("prompt", said.prompt);
        is_above(said, ours, PROMPT).then_some(Inflated { what, said, ours })
    }

    /// Tokens of a text.
    async fn count(&self, tokenizer: &Tokenizer, text: &str) -> Option<u32> {
        // The first of each pair is llama.cpp's word for it, the second vLLM's.
        let body = json!({
            "model": tokenizer.name,
            "content": text, "prompt": text,
            "add_special": false, "add_special_tokens": false,
        });
        let reply = self
            .post(tokenizer, "tokenize", body.to_string().into())
            .await?;
        tokens(&reply)
    }

    /// Tokens of a prompt, if it is all text.
    async fn prompt(&self, tokenizer: &Tokenizer, request: &Request) -> Option<u32> {
        if request.body.len() > MOST_PROMPT {
            return None;
        }
        let body = Body::parse(&request.body).ok()?;
        if let Ok(Some(prompt)) = body.get::<String>("prompt") {
            return self.count(tokenizer, &prompt).await;
        }
        let messages = body.get::<Vec<Value>>("messages").ok().flatten()?;
        if !messages.iter().all(is_text) {
            return None;
        }
        let chat = body.rewritten(
            &[
                ("model", &quote(&tokenizer.name)),
                ("add_generation_prompt", "true"),
            ],
            &["provider", "models", "stream", "stream_options"],
        );
        // llama.cpp writes the prompt out; vLLM counts it at once.
        let written = self.post(tokenizer, "apply-template", chat.clone()).await;
        match written
            .as_ref()
            .and_then(|written| written["prompt"].as_str())
        {
            Some(prompt) => self.count(tokenizer, prompt).await,
            None => tokens(&self.post(tokenizer, "tokenize", chat).await?),
        }
    }

    async fn post(&self, tokenizer: &Tokenizer, path: &str, body: Vec<u8>) -> Option<Value> {
        let url = tokenizer.base.join(path).ok()?;
        let mut asked = self.http.post(url).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &tokenizer.key {
            asked = asked.header(AUTHORIZATION, key.clone());
        }
        let mut reply = asked.body(body).send().await.ok()?;
        if !reply.status().is_success() {
            return None;
        }
        let mut text = Vec::new();
        while let Some(piece) = reply.chunk().await.ok()? {
            if text.len().saturating_add(piece.len()) > MOST_REPLY {
                return None;
            }
            text.extend_from_slice(&piece);
        }
        serde_json::from_slice(&Bytes::from(text)).ok()
    }
}

/// Where `/tokenize` is: beside `/v1`, not below it.
fn root(url: &str) -> Option<Url> {
    let url = url.trim_end_matches('/');
    let root = url.strip_suffix("/v1").unwrap_or(url);
    format!("{root}/").parse().ok()
}

fn tokens(reply: &Value) -> Option<u32> {
    let count = reply["count"].as_u64();
    let listed = reply["tokens"].as_array().map(|tokens| tokens.len() as u64);
    u32::try_from(count.or(listed)?).ok()
}

/// Whether a message says nothing but text.
fn is_text(message: &Value) -> bool {
    match &message["content"] {
        Value::String(_) | Value::Null => true,
        Value::Array(parts) => parts.iter().all(|part| part["type"] == "text"),
        _ => false,
    }
}

const ANSWER: (u32, u32) = (ANSWER_SHARE, ANSWER_SLACK);
const PROMPT: (u32, u32) = (PROMPT_SHARE, PROMPT_SLACK);

const fn is_above(said: u32, ours: u32, (share, slack): (u32, u32)) -> bool {
    let more = (ours as u64) * (share as u64) / 100;
    said as u64 > ours as u64 + more + slack as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_may_be_a_little_above_ours_and_no_more() {
        assert!(!is_above(121, 100, ANSWER));
        assert!(is_above(122, 100, ANSWER));
        assert!(!is_above(142, 100, PROMPT));
        assert!(is_above(143, 100, PROMPT));
        assert!(!is_above(16, 0, ANSWER), "an end of the turn");
        assert!(is_above(u32::MAX, u32::MAX / 2, PROMPT));
    }

    #[test]
    fn both_kinds_of_servers_are_understood() {
        assert_eq!(tokens(&json!({"tokens": [5, 6, 7]})), Some(3));
        assert_eq!(
            tokens(&json!({"count": 4, "max_model_len": 9, "tokens": [1]})),
            Some(4)
        );
        assert_eq!(tokens(&json!({"error": "no"})), None);
        for url in ["http://h:1/v1", "http://h:1/v1/", "http://h:1"] {
            let root = root(url).expect("an address");
            assert_eq!(
                root.join("tokenize").expect("joins").as_str(),
                "http://h:1/tokenize"
            );
        }
    }

    #[test]
    fn a_prompt_with_anything_but_text_is_not_counted() {
        assert!(is_text(&json!({"role": "user", "content": "hi"})));
        assert!(is_text(
            &json!({"content": [{"type": "text", "text": "hi"}]})
        ));
        assert!(is_text(&json!({"role": "assistant", "content": null})));
        assert!(!is_text(&json!({"content": [{"type": "image_url"}]})));
    }
}
