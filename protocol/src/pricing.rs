//! Usage × prices → cost: the one place where work becomes money.
//!
//! Both sides compute quotes and windows with these functions, from the body and the offer alone,
//! so that they agree without asking. The rounding rule: a quote is [`Cost::ceil`], a charge is
//! floored with the remainder carried ([`crate::channel`]).

use crate::amount::{Amount, Cost, Overflow};
use crate::body::{Body, BodyError};
use crate::offer::{ModelOffer, Prices};
use crate::purchase::{Endpoint, Mode, Usage};

/// The first window of a stream, in output tokens: how far a buyer without history signs ahead.
pub const FIRST_WINDOW: u64 = 64;
/// The largest window, in output tokens.
pub const MAX_WINDOW: u64 = 4096;
/// A window grows to this fraction of what was already paid on the channel.
const GROWTH: u128 = 16;
/// Prompt tokens a chat template may add to what the body holds.
const TEMPLATE_TOKENS: u64 = 256;
/// The most choices (`n`) one request may ask for.
const MAX_CHOICES: u64 = 128;

/// The most that a request can use: what a quote is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// An upper bound of the prompt's tokens: no tokenizer makes more than one token per byte.
    pub prompt: u64,
    /// The most tokens of all answers together.
    pub output: u64,
    /// How the answer is delivered.
    pub mode: Mode,
}

impl Demand {
    /// What this body can use of this model.
    ///
    /// # Errors
    /// [`BodyError`] when a field that limits output is not a number.
    pub fn of(
        bytes: &[u8],
        body: &Body<'_>,
        endpoint: Endpoint,
        model: &ModelOffer,
    ) -> Result<Self, BodyError> {
        let prompt = (bytes.len() as u64).saturating_add(TEMPLATE_TOKENS);
        if !endpoint.writes() {
            return Ok(Self {
                prompt,
                output: 0,
                mode: Mode::Plain,
            });
        }
        let streams = body.get::<bool>("stream")?.unwrap_or(false);
        let newer = body.get::<u64>("max_completion_tokens")?;
        let asked = newer.or(body.get::<u64>("max_tokens")?);
        let limit = u64::from(model.max_output);
        let one = asked.map_or(limit, |tokens| tokens.min(limit));
        let choices = choices(body)?;
        // `best_of` generates that many and returns the best `n` (completions only).
        let generated = body
            .get::<u64>("best_of")?
            .unwrap_or(1)
            .clamp(choices, MAX_CHOICES.max(choices));
        let mode = if streams { Mode::Stream } else { Mode::Plain };
        Ok(Self {
            prompt,
            output: one.saturating_mul(generated),
            mode,
        })
    }

    /// The most this demand can cost.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn quote(&self, prices: &Prices) -> Result<Amount, Overflow> {
        Ok(self.up_to(prices, self.output)?.ceil())
    }

    /// What is reserved before work starts: all of it in plain mode, the prompt and one window of
    /// `window` output tokens in a stream.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn opening(&self, prices: &Prices, window: u64) -> Result<Amount, Overflow> {
        let output = match self.mode {
            Mode::Plain => self.output,
            Mode::Stream => self.output.min(window),
        };
        Ok(self.up_to(prices, output)?.ceil())
    }

    /// What this demand has cost at most when so many tokens of the answer exist.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn up_to(&self, prices: &Prices, output: u64) -> Result<Cost, Overflow> {
        // A cached token may be priced higher by a strange seller: the bound takes the dearer.
        let input = prices.input.max(prices.cached_input);
        let fixed = prices.request.times(1).add(input.times(self.prompt))?;
        fixed.add(prices.output.times(output))
    }
}

/// How many answers (`n`) a body asks for.
///
/// # Errors
/// [`BodyError`] when that is not a number.
pub fn choices(body: &Body<'_>) -> Result<u64, BodyError> {
    let asked = body.get::<u64>("n")?;
    Ok(asked.unwrap_or(1).clamp(1, MAX_CHOICES))
}

/// What this usage costs.
///
/// # Errors
/// [`Overflow`].
pub fn cost(usage: &Usage, prices: &Prices) -> Result<Cost, Overflow> {
    let cached = u64::from(usage.cached.min(usage.prompt));
    let fresh = u64::from(usage.prompt).saturating_sub(cached);
    prices
        .request
        .times(1)
        .add(prices.input.times(fresh))?
        .add(prices.cached_input.times(cached))?
        .add(prices.output.times(u64::from(usage.completion)))
}

/// How many output tokens a buyer signs ahead, given what the channel has earned
/// ([`crate::channel::Channel::earned`]): [`FIRST_WINDOW`] for a stranger and after trouble, more
/// with settled history, never over [`MAX_WINDOW`].
#[must_use]
pub fn window(prices: &Prices, earned: Amount) -> u64 {
    let per_token = u128::from(prices.output.0).max(1);
    let earned = earned.get().saturating_mul(crate::amount::MICRO) / GROWTH / per_token;
    u64::try_from(earned)
        .unwrap_or(MAX_WINDOW)
        .clamp(FIRST_WINDOW, MAX_WINDOW)
}

/// The value of a window, rounded up.
#[must_use]
pub fn window_value(prices: &Prices, window: u64) -> Amount {
    prices.output.times(window).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::Price;

    fn prices() -> Prices {
        Prices {
            input: Price(100_000),
            cached_input: Price(10_000),
            output: Price(500_000),
            request: Price(2_000_000),
        }
    }

    fn model() -> ModelOffer {
        ModelOffer {
            id: "a/b".into(),
            endpoints: Endpoint::ALL.to_vec(),
            features: vec![],
            context: 2048,
            max_output: 512,
            quantization: None,
            weights_digest: None,
            prices: prices(),
            slots: 1,
        }
    }

    fn demand(text: &str) -> Demand {
        let body = Body::parse(text.as_bytes()).expect("parses");
        Demand::of(text.as_bytes(), &body, Endpoint::Chat, &model()).expect("reads")
    }

    #[test]
    fn usage_is_priced_per_kind_of_token() {
        let usage = Usage {
            prompt: 30,
            cached: 10,
            completion: 5,
        };
        let expected = 2_000_000 + 20 * 100_000 + 10 * 10_000 + 5 * 500_000;
        assert_eq!(cost(&usage, &prices()), Ok(Cost::micro_atoms(expected)));
    }

    #[test]
    fn more_cached_than_prompt_tokens_cannot_make_a_discount() {
        let usage = Usage {
            prompt: 1,
            cached: 4_000_000_000,
            completion: 0,
        };
        assert_eq!(cost(&usage, &prices()), Ok(Cost::micro_atoms(2_010_000)));
    }

    #[test]
    fn a_demand_is_bounded_by_the_body_and_the_offer() {
        assert_eq!(demand("{}").output, 512);
        assert_eq!(demand(r#"{"max_tokens":7}"#).output, 7);
        assert_eq!(demand(r#"{"max_tokens":9999}"#).output, 512);
        assert_eq!(
            demand(r#"{"max_tokens":7,"max_completion_tokens":8,"n":3}"#).output,
            24
        );
        assert_eq!(demand(r#"{"n":99999999999}"#).output, 512 * MAX_CHOICES);
        assert_eq!(demand(r#"{"stream":true}"#).mode, Mode::Stream);
    }

    #[test]
    fn a_stream_opens_with_one_window_and_a_document_in_full() {
        let stream = demand(r#"{"stream":true}"#);
        let prompt = u128::from(stream.prompt) * 100_000;
        let opening = stream.opening(&prices(), 64).expect("fits");
        assert_eq!(
            opening,
            Cost::micro_atoms(2_000_000 + prompt + 64 * 500_000).ceil()
        );
        let plain = demand("{}");
        assert_eq!(plain.opening(&prices(), 64), plain.quote(&prices()));
    }

    #[test]
    fn a_window_grows_with_history_between_its_bounds() {
        assert_eq!(window(&prices(), Amount::ZERO), FIRST_WINDOW);
        assert_eq!(window(&prices(), Amount::atoms(16 * 100)), 200);
        assert_eq!(window(&prices(), Amount::MAX), MAX_WINDOW);
        assert_eq!(window(&Prices::default(), Amount::ZERO), FIRST_WINDOW);
    }
}
