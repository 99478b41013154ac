//! May we, and on what terms: a request and the configuration become [`Terms`], or a named
//! refusal. Pure, and before any seller is looked at.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::body::{Body, BodyError, quote};
use farthing_protocol::offer::{MAX_TEXT, ModelOffer, Prices};
use farthing_protocol::pricing::Demand;
use farthing_protocol::purchase::{Endpoint, Mode, Usage};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Strategy, Task};
use crate::policy::choice::Asked;

mod needs;
mod session;
mod preferences;
mod auto;
mod choice;

pub use crate::policy::needs::Needs;
pub use crate::policy::preferences::{Percentiles, Preferences, Sort};
pub use crate::policy::session::{Session, Warm};

/// Bytes of a body per token of a prompt, as a guess: English text in JSON has four to five.
pub(crate) const BYTES_PER_TOKEN: u64 = 4;
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
    /// More models than are tried for one request.
    #[error("`models` has more than {0} names")]
    TooManyModels(usize),
    /// No rule says which model to take.
    #[error(
        "`auto`: no [[auto]] rule of the configuration fits a request about {task} of about {prompt} tokens; add one without conditions"
    )]
    NoRule {
        /// What it is about.
        task: Task,
        /// Tokens of its prompt.
        prompt: u32,
    },
    /// What is not written comes in one document.
    #[error("{0} cannot be streamed")]
    Unstreamed(Endpoint),
}

/// How long each step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// On what terms a request may be bought. All but the body can be written down: with the
/// candidates and a seed, a decision follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The model's id, aliases resolved.
    pub model: String,
    /// The models that will do, the wanted one first: it is `model`, or was.
    pub models: Vec<String>,
    /// Which rule chose them, for a request that left it to the rules.
    pub rule: Option<String>,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The body to send: the one given, but for its model and what is for the router alone.
    #[serde(skip)]
    pub body: Bytes,
    /// Bytes of the body.
    pub bytes: u64,
    /// Whether the body carries images or sound, whose bytes say nothing about tokens.
    pub media: bool,
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
    /// What it asks of a model beyond text.
    pub needs: Needs,
    /// What it wants of a seller.
    pub preferences: Preferences,
    /// Of a hundred requests, how many may try a seller that is new.
    pub explore: u8,
    /// The conversation it belongs to.
    pub session: Option<Session>,
    /// The seller that has the conversation in its cache, if the market knows one.
    pub warm: Option<Warm>,
    /// How many sellers are tried before the first token.
    pub attempts: u32,
    /// How long each step may take.
    pub deadlines: Deadlines,
}

/// The part of a [`Demand`] that does not depend on a model's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
        complete(&fields, endpoint)?;
        let asked = Asked::of(&fields, endpoint, config, body.len())?;
        let model = asked.models[0].clone();
        let given = body;
        let body = asked.send(&fields, given);
        let (bound, mode) = match body.as_ptr() == given.as_ptr() {
            true => Bound::of(&body, &fields, endpoint)?,
            false => Bound::of(&body, &Body::parse(&body)?, endpoint)?,
        };
        let router = &config.router;
        let least = |a: Option<Price>, b: Option<Price>| a.into_iter().chain(b).min();
        let per_purchase = config.spend.per_purchase;
        let models = u32::try_from(asked.models.len()).unwrap_or(u32::MAX);
        Ok(Self {
            session: Session::of(&model, &fields)?.filter(|_| !router.sticky.is_zero()),
            warm: None,
            model,
            models: asked.models,
            rule: asked.rule,
            endpoint,
            bytes: body.len() as u64,
            media: asked.needs.audio || carries_media(&body),
            mode,
            bound,
            expected: bound.expected(body.len()),
            max_cost: asked
                .max_price
                .cost
                .map_or(per_purchase, |own| own.min(per_purchase)),
            max_price_input: least(router.max_price_input, asked.max_price.input),
            max_price_output: least(router.max_price_output, asked.max_price.output),
            strategy: asked.strategy,
            needs: asked.needs,
            preferences: asked.preferences,
            explore: router.explore,
            attempts: router.attempts.saturating_mul(models),
            deadlines: Deadlines {
                connect: router.connect,
                first_token: router.first_token,
                idle: router.idle,
                total: config.gateway.deadline,
            },
            body,
        })
    }

    /// The same terms with another of its models: its body names that one.
    #[must_use]
    pub fn toward(&self, model: &str) -> Cow<'_, Self> {
        if self.model == model {
            return Cow::Borrowed(self);
        }
        let named = |body: &Bytes| {
            let fields = Body::parse(body).ok()?;
            Some(Bytes::from(fields.with(&[("model", &quote(model))])))
        };
        let mut terms = self.clone();
        // It was read before, when the terms were made.
        terms.body = named(&self.body).unwrap_or_default();
        terms.bytes = terms.body.len() as u64;
        terms.bound.prompt = self.prompt_with(model);
        model.clone_into(&mut terms.model);
        Cow::Owned(terms)
    }

    /// The same terms with one of its models and no other: what is left of an answer is asked of
    /// the model that began it.
    #[must_use]
    pub fn only(&self, model: &str) -> Self {
        let models = u32::try_from(self.models.len()).unwrap_or(u32::MAX);
        let mut terms = self.toward(model).into_owned();
        terms.attempts = self.attempts.checked_div(models).unwrap_or(1).max(1);
        terms.models = vec![model.to_owned()];
        terms
    }

    /// Why, in one line, with the rule that chose the model if one did.
    #[must_use]
    pub fn explained(&self, why: &str) -> String {
        match &self.rule {
            Some(rule) => format!("rule {rule}; {why}"),
            None => why.to_owned(),
        }
    }

    /// The bound of the prompt's tokens in a body that names this model.
    fn prompt_with(&self, model: &str) -> u64 {
        if self.model == model {
            return self.bound.prompt;
        }
        let prompt = self.bound.prompt + quote(model).len() as u64;
        prompt.saturating_sub(quote(&self.model).len() as u64)
    }

    /// How much a model is wanted: 0 for the first. None for one that will not do.
    #[must_use]
    pub fn rank(&self, model: &str) -> Option<usize> {
        self.models.iter().position(|named| named == model)
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
            bytes: body.len() as u64,
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
            prompt: self.prompt_with(&model.id),
            output: each.saturating_mul(self.bound.answers),
            mode: self.mode,
        }
    }

    /// What the request is expected to use of this model.
    #[must_use]
    pub fn expected_of(&self, model: &ModelOffer) -> Usage {
        self.expected_within(&self.demand(model))
    }

    /// The same, where what it can use is known.
    #[must_use]
    pub fn expected_within(&self, demand: &Demand) -> Usage {
        let most = u32::try_from(demand.output).unwrap_or(u32::MAX);
        Usage {
            completion: self.expected.completion.min(most),
            ..self.expected
        }
    }
}

/// Whether a body carries images or sound: as data, whose bytes are many and tokens few.
fn carries_media(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| text.contains(";base64,"))
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

/// What no model server accepts is not worth a deposit.
fn complete(body: &Body<'_>, endpoint: Endpoint) -> Result<(), Refused> {
    let needed = match endpoint {
        Endpoint::Chat => "messages",
        Endpoint::Completions => "prompt",
        Endpoint::Embeddings | Endpoint::Moderations => "input",
    };
    if body.raw(needed).is_none() {
        return Err(Refused::Missing(needed));
    }
    let streams = body.get::<bool>("stream")?.unwrap_or(false);
    if streams && !endpoint.writes() {
        return Err(Refused::Unstreamed(endpoint));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
