//! One model on sale.

use farthing_protocol::amount::Price;
use farthing_protocol::offer::{ModelOffer, Prices};
use farthing_protocol::purchase::Endpoint;
use serde::{Deserialize, Serialize};

/// One model on sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Its name on the market, `author/name`.
    pub id: String,
    /// Its name at the model server; without it, [`ModelConfig::at_upstream`] decides.
    #[serde(default)]
    pub upstream_name: Option<String>,
    /// Where it is sold.
    #[serde(default = "endpoints")]
    pub endpoints: Vec<Endpoint>,
    /// What it can do beyond text: `tools`, `json_schema`, `vision`,
    /// [`farthing_protocol::offer::ASSISTANT_PREFIX`], …
    #[serde(default)]
    pub features: Vec<String>,
    /// Tokens of prompt and answer together, as the server is set up.
    pub context: u32,
    /// The most tokens of one answer.
    #[serde(default = "max_output")]
    pub max_output: u32,
    /// `q4_1`, `bf16`, …
    #[serde(default)]
    pub quantization: Option<String>,
    /// Digest of the weights.
    #[serde(default)]
    pub weights_digest: Option<String>,
    /// Purchases served at once.
    #[serde(default = "slots")]
    pub slots: u32,
    /// What it costs.
    pub prices: PriceConfig,
}

/// Prices in micro-atoms per token: with a token of 6 decimals, $0.50 per million tokens is
/// 500 000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    /// Per prompt token.
    pub input: Price,
    /// Per prompt token served from a cache; as `input` when not given.
    #[serde(default)]
    pub cached_input: Option<Price>,
    /// Per token of the answer.
    pub output: Price,
    /// Per request, in micro-atoms.
    #[serde(default)]
    pub request: Price,
}

fn endpoints() -> Vec<Endpoint> {
    vec![Endpoint::Chat, Endpoint::Completions]
}

const fn max_output() -> u32 {
    2048
}

const fn slots() -> u32 {
    4
}

impl ModelConfig {
    /// What the offer says of it.
    #[must_use]
    pub fn offer(&self) -> ModelOffer {
        ModelOffer {
            id: self.id.clone(),
            endpoints: self.endpoints.clone(),
            features: self.features.clone(),
            context: self.context,
            max_output: self.max_output,
            quantization: self.quantization.clone(),
            weights_digest: self.weights_digest.clone(),
            prices: Prices {
                input: self.prices.input,
                cached_input: self.prices.cached_input.unwrap_or(self.prices.input),
                output: self.prices.output,
                request: self.prices.request,
            },
            slots: self.slots,
        }
    }

    /// The model's name at a server that has these: the one configured, else the one with the
    /// same id, else the one called as the part after the slash, else the only one there is.
    #[must_use]
    pub fn at_upstream<'a>(&self, discovered: &'a [String]) -> Option<&'a str> {
        let find = |name: &str| discovered.iter().find(|found| *found == name);
        let found = match &self.upstream_name {
            Some(name) => find(name),
            None => find(&self.id)
                .or_else(|| self.id.split_once('/').and_then(|(_, name)| find(name)))
                .or(match discovered {
                    [only] => Some(only),
                    _ => None,
                }),
        };
        found.map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, upstream_name: Option<&str>) -> ModelConfig {
        let text = format!(
            "id = \"{id}\"\ncontext = 2048\nprices = {{ input = 100_000, output = 500_000 }}"
        );
        let mut model: ModelConfig = toml::from_str(&text).expect("parses");
        model.upstream_name = upstream_name.map(ToOwned::to_owned);
        model
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_name_at_the_server_is_the_configured_or_the_likeliest() {
        let two = names(&["b", "a/b"]);
        assert_eq!(model("a/b", None).at_upstream(&two), Some("a/b"));
        assert_eq!(model("x/b", None).at_upstream(&two), Some("b"));
        assert_eq!(model("x/y", None).at_upstream(&two), None);
        assert_eq!(model("x/y", Some("b")).at_upstream(&two), Some("b"));
        let one = names(&["model.gguf"]);
        assert_eq!(model("x/y", None).at_upstream(&one), Some("model.gguf"));
        assert_eq!(model("x/y", Some("z")).at_upstream(&one), None);
    }

    #[test]
    fn cached_prompt_tokens_cost_as_others_unless_said_otherwise() {
        assert_eq!(
            model("a/b", None).offer().prices.cached_input,
            Price(100_000)
        );
    }
}
