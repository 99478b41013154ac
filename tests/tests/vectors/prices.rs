//! What work costs: quotes, openings, windows, charges, and how they are rounded.

use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::body::Body;
use farthing_protocol::channel::Channel;
use farthing_protocol::offer::{ModelOffer, Prices};
use farthing_protocol::pricing::{self, Demand, FIRST_WINDOW};
use farthing_protocol::purchase::{Endpoint, Mode, Usage};
use farthing_protocol::testing;
use serde::{Deserialize, Serialize};

use super::samples;
use super::sheet::Vector;

pub const ABOUT: &str = "Prices are micro-atoms; amounts are atoms; `micro_atoms` are costs before rounding. An opening is for the first window.";

/// An example of one rule.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceVector {
    name: String,
    #[serde(flatten)]
    rule: Rule,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    /// A body's demand and what is asked for it.
    Demand {
        prices: Prices,
        max_output: u32,
        endpoint: Endpoint,
        body: String,
        prompt: u64,
        output: u64,
        mode: Mode,
        quote: Amount,
        opening: Amount,
    },
    /// The cost of a usage.
    Cost {
        prices: Prices,
        usage: Usage,
        micro_atoms: String,
        rounded_up: Amount,
        rounded_down: Amount,
    },
    /// How far a buyer signs ahead.
    Window {
        prices: Prices,
        paid: Amount,
        tokens: u64,
        value: Amount,
    },
    /// Costs in their order on one channel, and what is charged for each.
    Charges {
        micro_atoms: Vec<String>,
        charged: Vec<Amount>,
        cumulative: Amount,
    },
}

impl Vector for PriceVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let again = match &self.rule {
            Rule::Demand {
                prices,
                max_output,
                endpoint,
                body,
                ..
            } => demand(*prices, *max_output, *endpoint, body),
            Rule::Cost { prices, usage, .. } => cost(*prices, *usage),
            Rule::Window { prices, paid, .. } => window(*prices, *paid),
            Rule::Charges { micro_atoms, .. } => {
                let costs = micro_atoms
                    .iter()
                    .map(|text| text.parse().expect("a number"));
                charges(&costs.collect::<Vec<u128>>())
            }
        };
        assert_eq!(again, self.rule, "{}", self.name);
    }
}

pub fn examples() -> Vec<PriceVector> {
    let prices = testing::model().prices;
    let dear_cache = Prices {
        cached_input: farthing_protocol::amount::Price(400_000),
        request: farthing_protocol::amount::Price(2_000_000),
        ..prices
    };
    let chat = |body| demand(prices, 1024, Endpoint::Chat, body);
    let used = |prompt, cached, completion| Usage {
        prompt,
        cached,
        completion,
    };
    let all = [
        ("plain-chat", chat(samples::BODY)),
        ("streamed-chat", chat(samples::STREAM_BODY)),
        ("no-limit-asked", chat("{}")),
        ("limit-over-the-offer", chat(r#"{"max_tokens":99999}"#)),
        (
            "newer-limit-wins",
            chat(r#"{"max_tokens":7,"max_completion_tokens":8}"#),
        ),
        (
            "several-choices",
            chat(r#"{"max_tokens":7,"n":3,"best_of":5}"#),
        ),
        (
            "embeddings",
            demand(prices, 1024, Endpoint::Embeddings, r#"{"input":"hi"}"#),
        ),
        (
            "dearest-input-price-bounds",
            demand(dear_cache, 1024, Endpoint::Chat, r#"{"max_tokens":1}"#),
        ),
        ("cost-of-a-usage", cost(prices, used(12, 4, 301))),
        (
            "cost-with-request-price",
            cost(dear_cache, used(12, 4, 300)),
        ),
        ("more-cached-than-prompt", cost(prices, used(1, 5, 0))),
        ("window-of-a-stranger", window(prices, Amount::ZERO)),
        ("window-grown", window(prices, Amount::atoms(1_600))),
        ("window-at-most", window(prices, Amount::MAX)),
        (
            "remainders-carry",
            charges(&[400_000, 400_000, 400_000, 1_900_000]),
        ),
    ];
    let vector = |(name, rule): (&str, Rule)| PriceVector {
        name: name.to_owned(),
        rule,
    };
    all.map(vector).into()
}

fn demand(prices: Prices, max_output: u32, endpoint: Endpoint, body: &str) -> Rule {
    let model = ModelOffer {
        prices,
        max_output,
        ..testing::model()
    };
    let parsed = Body::parse(body.as_bytes()).expect("a body");
    let demand = Demand::of(body.as_bytes(), &parsed, endpoint, &model).expect("a demand");
    Rule::Demand {
        prices,
        max_output,
        endpoint,
        body: body.to_owned(),
        prompt: demand.prompt,
        output: demand.output,
        mode: demand.mode,
        quote: demand.quote(&prices).expect("fits"),
        opening: demand.opening(&prices, FIRST_WINDOW).expect("fits"),
    }
}

fn cost(prices: Prices, usage: Usage) -> Rule {
    let cost = pricing::cost(&usage, &prices).expect("fits");
    Rule::Cost {
        prices,
        usage,
        micro_atoms: cost.get().to_string(),
        rounded_up: cost.ceil(),
        rounded_down: cost.floor(),
    }
}

fn window(prices: Prices, paid: Amount) -> Rule {
    let tokens = pricing::window(&prices, paid);
    Rule::Window {
        prices,
        paid,
        tokens,
        value: pricing::window_value(&prices, tokens),
    }
}

fn charges(costs: &[u128]) -> Rule {
    let mut channel = Channel::open(Amount::atoms(1_000), Amount::ZERO);
    channel.accept(Amount::atoms(1_000)).expect("covered");
    let charge = |cost: &u128| {
        let cost = Cost::micro_atoms(*cost);
        channel.reserve(cost.ceil()).expect("covered");
        channel.charge(cost.ceil(), cost).expect("reserved").charged
    };
    let charged = costs.iter().map(charge).collect();
    Rule::Charges {
        micro_atoms: costs.iter().map(u128::to_string).collect(),
        charged,
        cumulative: channel.charged(),
    }
}
