//! The market as OpenRouter lists it: models, the sellers of one, and all sellers. Pure.
//!
//! What nobody states or measured is null, or left out where their shape allows it. A model's
//! price is that of its cheapest seller, not the best of several.

use std::collections::{BTreeMap, HashSet};

use farthing_protocol::offer::{Endpoint, Prices};
use serde_json::{Value, json};

use crate::market::{Goods, Pause, Ware};
use crate::report::{ModelListing, Token};

/// The price of a seller that states none.
const UNSTATED: &str = "-1";
/// The context of a seller that states none, where it may not be left out.
const NO_CONTEXT: u32 = 0;
/// What a feature of an offer lets a request ask for.
const PARAMETERS: [(&str, &[&str]); 4] = [
    ("tools", &["tools", "tool_choice"]),
    ("json_schema", &["response_format", "structured_outputs"]),
    ("logprobs", &["logprobs", "top_logprobs"]),
    (
        "reasoning",
        &["reasoning", "include_reasoning", "reasoning_effort"],
    ),
];
/// Features that are named as what a request asks for.
const PLAIN: [&str; 16] = [
    "frequency_penalty",
    "logit_bias",
    "min_p",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "structured_outputs",
    "temperature",
    "tool_choice",
    "top_k",
    "top_p",
    "verbosity",
];

/// The models, by id.
#[must_use]
pub fn models(listed: &[ModelListing], wares: &[Ware], token: &Token) -> Vec<Value> {
    let mut sellers: BTreeMap<&str, Vec<&Goods>> = BTreeMap::new();
    for ware in wares {
        let goods = &*ware.goods;
        sellers.entry(&goods.model.id).or_default().push(goods);
    }
    let known = listed.iter();
    known
        .filter_map(|model| Some(card(model, sellers.get(model.id.as_str())?, token)))
        .collect()
}

fn card(model: &ModelListing, sellers: &[&Goods], token: &Token) -> Value {
    let id = &model.id;
    // They are in the order of their prices.
    let priced = sellers.iter().find(|goods| goods.is_priced());
    let top = priced.or(sellers.first());
    let context = sellers.iter().filter_map(|goods| context_of(goods)).max();
    json!({
        "id": id,
        "canonical_slug": id,
        "name": id,
        "created": model.since.seconds(),
        "context_length": context,
        "architecture": architecture(model),
        "pricing": top.map(|goods| pricing(goods, token)),
        "top_provider": {
            "context_length": top.and_then(|goods| context_of(goods)),
            "max_completion_tokens": top.map(|goods| goods.model.max_output),
            "is_moderated": false,
        },
        "per_request_limits": null,
        "supported_parameters": parameters(&model.endpoints, &model.features),
        "default_parameters": null,
        "supported_voices": null,
        "links": { "details": format!("/api/v1/models/{id}/endpoints") },
    })
}

/// Tokens of prompt and answer together, if the seller states it.
fn context_of(goods: &Goods) -> Option<u32> {
    goods.stated.then_some(goods.model.context)
}

fn architecture(model: &ModelListing) -> Value {
    let has = |feature: &str| model.features.iter().any(|known| known == feature);
    let senses = [("vision", "image"), ("audio", "audio")];
    let senses = senses.iter().filter(|(feature, _)| has(feature));
    let input: Vec<_> = ["text"]
        .into_iter()
        .chain(senses.map(|(_, it)| *it))
        .collect();
    let mut output = Vec::new();
    if model.endpoints.iter().any(|it| *it != Endpoint::Embeddings) {
        output.push("text");
    }
    if model.endpoints.contains(&Endpoint::Embeddings) {
        output.push("embeddings");
    }
    json!({
        "modality": format!("{}->{}", input.join("+"), output.join("+")),
        "input_modalities": input,
        "output_modalities": output,
        "tokenizer": null,
        "instruct_type": null,
    })
}

/// Per token, in whole units of the payment token.
fn pricing(goods: &Goods, token: &Token) -> Value {
    if !goods.is_priced() {
        return json!({ "prompt": UNSTATED, "completion": UNSTATED });
    }
    let Prices {
        input,
        cached_input,
        output,
        request,
    } = goods.model.prices;
    let number = |price: farthing_protocol::amount::Price| token.number_of(price.times(1));
    json!({
        "prompt": number(input),
        "completion": number(output),
        "request": number(request),
        "input_cache_read": number(cached_input),
    })
}

/// What a request may ask for: the limit that every seller keeps, and what is stated.
fn parameters(endpoints: &[Endpoint], features: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    if endpoints.iter().any(|it| *it != Endpoint::Embeddings) {
        names.extend(["max_tokens", "max_completion_tokens"]);
    }
    for feature in features {
        let known = PARAMETERS.iter().find(|(name, _)| name == feature);
        names.extend(known.map_or(&[][..], |(_, names)| names));
        names.extend(PLAIN.iter().filter(|name| *name == feature));
    }
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}

/// One model with everyone who sells it.
#[must_use]
pub fn endpoints(model: &ModelListing, wares: &[Ware], token: &Token) -> Value {
    let sellers = wares.iter().map(|ware| endpoint(ware, token));
    json!({
        "id": model.id,
        "name": model.id,
        "created": model.since.seconds(),
        "description": "",
        "architecture": architecture(model),
        "endpoints": sellers.collect::<Vec<_>>(),
    })
}

fn endpoint(ware: &Ware, token: &Token) -> Value {
    let goods = &*ware.goods;
    let (model, prices) = (&goods.model, goods.model.prices);
    let measured = ware.measured.as_ref();
    let pause = measured.and_then(|measured| measured.pause);
    let tools = model.features.iter().any(|feature| feature == "tools");
    json!({
        "name": format!("{} | {}", goods.name, model.id),
        "model_id": model.id,
        "model_name": model.id,
        "provider_name": goods.name,
        "tag": goods.name,
        "quantization": model.quantization,
        "context_length": context_of(goods).unwrap_or(NO_CONTEXT),
        "max_completion_tokens": model.max_output,
        "max_prompt_tokens": null,
        "pricing": pricing(goods, token),
        "supported_parameters": parameters(&model.endpoints, &model.features),
        "native_tools": {},
        "supports_tool_choice": {
            "auto": tools, "function": false, "none": false, "required": false,
        },
        "supports_implicit_caching": prices.cached_input < prices.input,
        "supports_diarization": false,
        "service_tier": null,
        "status": status(pause),
        "uptime_last_5m": null,
        "uptime_last_30m": measured.map(|measured| (measured.success * 10_000.0).round() / 100.0),
        "uptime_last_1d": null,
        "latency_last_30m": ware.first_tokens,
        "throughput_last_30m": null,
    })
}

/// 0 for one that is asked like any other; less for one that is left alone.
const fn status(pause: Option<Pause>) -> i8 {
    match pause {
        None => 0,
        Some(Pause::Busy(_)) => -1,
        Some(Pause::OnProbation) => -2,
        Some(Pause::CoolingDown(_)) => -3,
    }
}

/// Everyone who sells something, by the name that `provider.order` takes.
#[must_use]
pub fn providers(wares: &[Ware]) -> Vec<Value> {
    let mut seen = HashSet::new();
    let all = wares.iter().map(|ware| ware.goods.name.as_str());
    let mut names: Vec<_> = all.filter(|name| seen.insert(*name)).collect();
    names.sort_unstable();
    let one = |name: &str| {
        json!({
            "name": name, "slug": name, "privacy_policy_url": null,
            "terms_of_service_url": null, "status_page_url": null,
        })
    };
    names.into_iter().map(one).collect()
}

/// Which models are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Only those with this in their id.
    pub text: Option<String>,
    /// Only those that take all of these.
    pub parameters: Vec<String>,
    /// Only those that make one of these.
    pub outputs: Vec<String>,
    /// All before this place are left out.
    pub offset: usize,
    /// So many at most.
    pub limit: Option<usize>,
}

impl Query {
    /// What these pairs ask for; others are not known here.
    ///
    /// # Errors
    /// The name of one that should be a number.
    pub fn of(pairs: impl Iterator<Item = (String, String)>) -> Result<Self, &'static str> {
        let list = |text: &str| text.split(',').map(|it| it.trim().to_owned()).collect();
        let mut query = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "q" => query.text = Some(value.to_lowercase()),
                "supported_parameters" => query.parameters = list(&value),
                "output_modalities" if value != "all" => query.outputs = list(&value),
                "offset" => query.offset = value.parse().map_err(|_| "offset")?,
                "limit" => query.limit = Some(value.parse().map_err(|_| "limit")?),
                _ => {}
            }
        }
        Ok(query)
    }

    fn wants(&self, model: &Value) -> bool {
        let has = |list: &Value, wanted: &String| {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(Value::as_str).any(|it| it == wanted)
        };
        let outputs = &model["architecture"]["output_modalities"];
        let id = model["id"].as_str().unwrap_or_default().to_lowercase();
        self.text.as_ref().is_none_or(|text| id.contains(text))
            && self
                .parameters
                .iter()
                .all(|it| has(&model["supported_parameters"], it))
            && (self.outputs.is_empty() || self.outputs.iter().any(|it| has(outputs, it)))
    }

    /// The page of these models that is wanted, and where at `path` the next one is.
    #[must_use]
    pub fn page(&self, models: Vec<Value>, path: &str) -> Value {
        let mut models: Vec<_> = models.into_iter().filter(|it| self.wants(it)).collect();
        let total = models.len();
        let page: Vec<_> = models.drain(self.offset.min(total)..).collect();
        let limit = self.limit.unwrap_or(page.len());
        let end = self.offset.saturating_add(limit);
        let next = (end < total && limit > 0).then(|| format!("{path}?offset={end}&limit={limit}"));
        let page: Vec<_> = page.into_iter().take(limit).collect();
        json!({ "data": page, "links": { "next": next }, "total_count": total })
    }
}
