//! May we, and on what terms: a request and the configuration become [`Terms`], or a named
//! refusal. Pure, and before any seller is looked at.

use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::body::{Body, BodyError, quote};
use farthing_protocol::offer::{MAX_TEXT, ModelOffer, Prices};
use farthing_protocol::pricing::Demand;
use farthing_protocol::purchase::{Endpoint, Mode, Usage};

use crate::config::{Config, Strategy};

/// Bytes of a body per token of a prompt, as a guess: English text in JSON has four to five.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens an answer is expected to have when the request does not limit it.
const EXPECTED_OUTPUT: u64 = 256;

/// Why a request is refused before anybody is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a JSON object, or a field of the wrong kind.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// More bytes than are passed on.
    #[error("the request body has {len} bytes; at most {max} are accepted")]
    TooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// A field without which there is no request.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A model's name that no offer can have.
    #[error("`model` must be 1 to {MAX_TEXT} bytes long")]
    ModelName,
    /// Embeddings come in one document.
    #[error("embeddings cannot be streamed")]
    StreamedEmbeddings,
}

/// How long each step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Until a seller is connected.
    pub connect: Duration,
    /// Until its first token.
    pub first_token: Duration,
    /// Between two tokens.
    pub idle: Duration,
    /// Until the whole answer is there.
    pub total: Duration,
}

/// On what terms a request may be bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The model's id, aliases resolved.
    pub model: String,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The body to send: the one given, but for an alias.
    pub body: Bytes,
    /// How the answer is delivered.
    pub mode: Mode,
    /// What it can use at most, of a model without limits of its own.
    pub bound: Bound,
    /// What it is expected to use.
    pub expected: Usage,
    /// The most it may cost.
    pub max_cost: Amount,
    /// The dearest prompt token.
    pub max_price_input: Option<Price>,
    /// The dearest token of an answer.
    pub max_price_output: Option<Price>,
    /// What matters most.
    pub strategy: Strategy,
    /// How many sellers are tried before the first token.
    pub attempts: u32,
    /// How long each step may take.
    pub deadlines: Deadlines,
}

/// The part of a [`Demand`] that does not depend on a model's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// An upper bound of the prompt's tokens.
    pub prompt: u64,
    /// The most tokens of one answer.
    pub each: u64,
    /// How many answers are made.
    pub answers: u64,
}

impl Terms {
    /// On what terms this request may be bought.
    ///
    /// # Errors
    /// Any [`Refused`].
    pub fn of(endpoint: Endpoint, body: &Bytes, config: &Config) -> Result<Self, Refused> {
        let max = config.gateway.max_body;
        if body.len() > max {
            let len = body.len();
            return Err(Refused::TooLarge { len, max });
        }
        let fields = Body::parse(body)?;
        let named = model(&fields)?;
        complete(&fields, endpoint)?;
        let alias = config.aliases.get(&named);
        let body = match alias {
            Some(id) => Bytes::from(fields.with(&[("model", &quote(id))])),
            None => body.clone(),
        };
        let sent = Body::parse(&body)?;
        let (bound, mode) = Bound::of(&body, &sent, endpoint)?;
        let router = &config.router;
        Ok(Self {
            model: alias.cloned().unwrap_or(named),
            endpoint,
            mode,
            bound,
            expected: bound.expected(body.len()),
            max_cost: config.spend.per_purchase,
            max_price_input: router.max_price_input,
            max_price_output: router.max_price_output,
            strategy: router.strategy,
            attempts: router.attempts,
            deadlines: Deadlines {
                connect: router.connect,
                first_token: router.first_token,
                idle: router.idle,
                total: config.gateway.deadline,
            },
            body,
        })
    }

    /// The same terms for another body: the rest of the same answer is asked for with it.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn asking(&self, body: Bytes) -> Result<Self, BodyError> {
        let sent = Body::parse(&body)?;
        let (bound, mode) = Bound::of(&body, &sent, self.endpoint)?;
        Ok(Self {
            mode,
            bound,
            expected: bound.expected(body.len()),
            body,
            ..self.clone()
        })
    }

    /// What the request can use of this model; the same as [`Demand::of`], without reading the
    /// body once for each seller.
    #[must_use]
    pub fn demand(&self, model: &ModelOffer) -> Demand {
        let each = self.bound.each.min(u64::from(model.max_output));
        Demand {
            prompt: self.bound.prompt,
            output: each.saturating_mul(self.bound.answers),
            mode: self.mode,
        }
    }

    /// What the request is expected to use of this model.
    #[must_use]
    pub fn expected_of(&self, model: &ModelOffer) -> Usage {
        let most = self.demand(model).output;
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Usage {
            completion: self.expected.completion.min(most),
            ..self.expected
        }
    }

    /// Whether the body may carry images or sound, whose bytes say nothing about tokens.
    #[must_use]
    pub fn carries_media(&self) -> bool {
        const MARK: &[u8] = b";base64,";
        const AUDIO: &[u8] = b"\"input_audio\"";
        let has = |mark: &[u8]| self.body.windows(mark.len()).any(|bytes| bytes == mark);
        has(MARK) || has(AUDIO)
    }
}

impl Bound {
    /// How many tokens are asked for is [`Demand::of`]'s rule; two probes find its parameters.
    fn of(bytes: &[u8], body: &Body<'_>, endpoint: Endpoint) -> Result<(Self, Mode), BodyError> {
        let one = Demand::of(bytes, body, endpoint, &probe(1))?;
        let most = Demand::of(bytes, body, endpoint, &probe(u32::MAX))?;
        let bound = Self {
            prompt: one.prompt,
            each: most.output.checked_div(one.output).unwrap_or(0),
            answers: one.output,
        };
        Ok((bound, one.mode))
    }

    fn expected(&self, bytes: usize) -> Usage {
        let prompt = bytes as u64 / BYTES_PER_TOKEN;
        let each = self.each.min(EXPECTED_OUTPUT);
        let small = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage {
            prompt: small(prompt.max(1)),
            cached: 0,
            completion: small(each.saturating_mul(self.answers)),
        }
    }
}

/// A model that limits one answer to so many tokens.
fn probe(max_output: u32) -> ModelOffer {
    ModelOffer {
        id: String::new(),
        endpoints: Vec::new(),
        features: Vec::new(),
        context: u32::MAX,
        max_output,
        quantization: None,
        weights_digest: None,
        prices: Prices::default(),
        slots: 1,
    }
}

fn model(body: &Body<'_>) -> Result<String, Refused> {
    let model = body.get::<String>("model")?;
    let model = model.ok_or(Refused::Missing("model"))?;
    if model.is_empty() || model.len() > MAX_TEXT {
        return Err(Refused::ModelName);
    }
    Ok(model)
}

/// What no model server accepts is not worth a deposit.
fn complete(body: &Body<'_>, endpoint: Endpoint) -> Result<(), Refused> {
    let needed = match endpoint {
        Endpoint::Chat => "messages",
        Endpoint::Completions => "prompt",
        Endpoint::Embeddings => "input",
    };
    if body.raw(needed).is_none() {
        return Err(Refused::Missing(needed));
    }
    let streams = body.get::<bool>("stream")?.unwrap_or(false);
    if endpoint == Endpoint::Embeddings && streams {
        return Err(Refused::StreamedEmbeddings);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(endpoint: Endpoint, text: &str) -> Result<Terms, Refused> {
        let mut config = Config::default();
        config.aliases.insert("fast".into(), "a/b".into());
        Terms::of(endpoint, &Bytes::copy_from_slice(text.as_bytes()), &config)
    }

    #[test]
    fn a_body_without_an_alias_is_sent_as_it_came() {
        let text = r#"{"messages":[], "model" : "a/b","x": 1.0}"#;
        let terms = terms(Endpoint::Chat, text).expect("accepted");
        assert_eq!(terms.body, text.as_bytes());
        assert_eq!(terms.model, "a/b");
        assert_eq!(terms.mode, Mode::Plain);
    }

    #[test]
    fn an_alias_becomes_the_model_it_stands_for() {
        let text = r#"{"messages":[],"model":"fast","stream":true}"#;
        let terms = terms(Endpoint::Chat, text).expect("accepted");
        assert_eq!(terms.model, "a/b");
        let expected = r#"{"messages":[],"model":"a/b","stream":true}"#;
        assert_eq!(terms.body, expected.as_bytes());
        assert_eq!(terms.mode, Mode::Stream);
    }

    #[test]
    fn what_no_seller_would_take_is_refused_by_name() {
        use Endpoint::{Chat, Completions, Embeddings};
        let refused = |endpoint, text: &str| terms(endpoint, text).expect_err(text);
        assert!(matches!(refused(Chat, "{"), Refused::Body(_)));
        assert!(matches!(
            refused(Chat, r#"{"model":7,"messages":[]}"#),
            Refused::Body(BodyError::Field { field: "model", .. })
        ));
        assert_eq!(
            refused(Chat, r#"{"messages":[]}"#),
            Refused::Missing("model")
        );
        assert_eq!(
            refused(Chat, r#"{"model":"m"}"#),
            Refused::Missing("messages")
        );
        assert_eq!(
            refused(Completions, r#"{"model":"m"}"#),
            Refused::Missing("prompt")
        );
        assert_eq!(
            refused(Embeddings, r#"{"model":"m"}"#),
            Refused::Missing("input")
        );
        assert_eq!(
            refused(Chat, r#"{"model":"","messages":[]}"#),
            Refused::ModelName
        );
        assert_eq!(
            refused(Embeddings, r#"{"model":"m","input":"x","stream":true}"#),
            Refused::StreamedEmbeddings
        );
        let large = "x".repeat(Config::default().gateway.max_body + 1);
        assert!(matches!(refused(Chat, &large), Refused::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn a_demand_is_what_the_seller_will_compute(
            max_tokens in proptest::option::of(any::<u64>()),
            newer in proptest::option::of(0_u64..5000),
            n in proptest::option::of(0_u64..300),
            best_of in proptest::option::of(0_u64..300),
            max_output in 1_u32..,
        ) {
            let body = serde_json::json!({
                "model": "a/b", "prompt": "p",
                "max_tokens": max_tokens, "max_completion_tokens": newer,
                "n": n, "best_of": best_of,
            });
            let text = body.to_string();
            let terms = terms(Endpoint::Completions, &text).expect("accepted");
            let model = probe(max_output);
            let fields = Body::parse(text.as_bytes()).expect("parses");
            let theirs = Demand::of(text.as_bytes(), &fields, Endpoint::Completions, &model);
            prop_assert_eq!(terms.demand(&model), theirs.expect("reads"));
        }
    }
}
