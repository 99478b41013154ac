//! A seller's answer becomes OpenRouter's: the same bytes but for who sold it, what it is called
//! and what it cost. Pure.
//!
//! Money is written as decimal text made of integers, so that it is what the receipt says.

use farthing_protocol::amount::{Cost, Overflow};
use farthing_protocol::body::{Body, BodyError, quote};
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{Endpoint, Prices};
use farthing_protocol::purchase::{RequestId, Usage};
use serde_json::{Value, json};

use crate::gateway::exchange::Settled;
use crate::report::Token;

/// What a request of this dialect is called, from its purchase's id.
const GENERATION: &str = "gen-";

/// How a generation is called.
#[must_use]
pub fn generation(request: RequestId) -> String {
    let hex = request.to_string();
    format!("{GENERATION}{}", hex.trim_start_matches("0x"))
}

/// Which purchase a name of a generation means, if it can be one.
#[must_use]
pub fn purchase(name: &str) -> Option<RequestId> {
    let hex = name.strip_prefix(GENERATION).unwrap_or(name);
    hex.parse().ok().map(RequestId)
}

/// One that would have been asked, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The seller.
    pub seller: NodeId,
    /// How requests may name it.
    pub provider: String,
    /// The model.
    pub model: String,
}

/// How a request was routed, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// The model, as the request names it.
    pub requested: String,
    /// Why this seller, in one line.
    pub why: String,
    /// All that would have been asked, in order.
    pub plan: Vec<Place>,
    /// Those that were tried in vain, and the status that says why.
    pub tried: Vec<(Place, u16)>,
}

/// What is said of an answer beside its seller's own words.
#[derive(Debug, Clone)]
pub struct About {
    /// The generation.
    pub id: String,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Who sells, and what: the model as it is on offer.
    pub place: Place,
    /// What it costs there, if that is known.
    pub prices: Option<Prices>,
    /// What is paid with.
    pub token: Token,
    /// How it was routed, if that is wanted.
    pub routing: Option<Routing>,
    /// Whether what the model thinks is to be left out.
    pub excludes_reasoning: bool,
}

impl About {
    /// A plain answer.
    ///
    /// # Errors
    /// [`BodyError`] when the seller's document is no object.
    pub fn document(&self, document: &[u8], settled: &Settled) -> Result<Vec<u8>, BodyError> {
        let body = Body::parse(document)?;
        let mut changes = self.names();
        if let Some(choices) = self.choices(&body, "message") {
            changes.push(("choices", choices));
        }
        if self.endpoint == Endpoint::Chat && body.raw("system_fingerprint").is_none() {
            changes.push(("system_fingerprint", "null".to_owned()));
        }
        changes.push(("usage", self.usage(body.raw("usage"), settled)));
        changes.extend(self.metadata(settled));
        Ok(body.with(&borrowed(&changes)))
    }

    /// What every document and chunk says.
    #[must_use]
    pub fn names(&self) -> Vec<(&'static str, String)> {
        vec![
            ("id", quote(&self.id)),
            ("model", quote(&self.place.model)),
            ("provider", quote(&self.place.provider)),
        ]
    }

    /// What was used and what it cost. Tokens are as the receipt has them, where one receipt is
    /// about all of it; else as the seller said.
    #[must_use]
    pub fn usage(&self, theirs: Option<&str>, settled: &Settled) -> String {
        let theirs = theirs.unwrap_or("{}");
        let empty = || Body::parse(b"{}");
        let Ok(said) = Body::parse(theirs.as_bytes()).or_else(|_| empty()) else {
            return "{}".to_owned();
        };
        let mut changes = self.counts(&said, settled);
        changes.push(("cost", self.token.number(settled.charged)));
        changes.push(("is_byok", "false".to_owned()));
        changes.push(("cost_details", self.details(settled)));
        String::from_utf8_lossy(&said.with(&borrowed(&changes))).into_owned()
    }

    fn counts(&self, said: &Body<'_>, settled: &Settled) -> Vec<(&'static str, String)> {
        let count = |field| said.get::<u64>(field).ok().flatten();
        let (prompt, completion, cached) = match settled.sole() {
            Some(receipt) => of(receipt.usage),
            None => {
                let told = (count("prompt_tokens"), count("completion_tokens"));
                let (prompt, completion, _) = settled.used().map_or((0, 0, None), of);
                (told.0.unwrap_or(prompt), told.1.unwrap_or(completion), None)
            }
        };
        let total = prompt.saturating_add(completion);
        let mut counts = vec![("prompt_tokens", prompt.to_string())];
        if self.endpoint != Endpoint::Embeddings {
            counts.push(("completion_tokens", completion.to_string()));
        }
        counts.push(("total_tokens", total.to_string()));
        if let Some(cached) = cached {
            let cached = cached.to_string();
            let details = said.raw("prompt_tokens_details").unwrap_or("{}");
            let details = Body::parse(details.as_bytes())
                .map(|details| details.with(&[("cached_tokens", &cached)]))
                .unwrap_or_default();
            if let Ok(details) = String::from_utf8(details)
                && !details.is_empty()
            {
                counts.push(("prompt_tokens_details", details));
            }
        }
        counts
    }

    /// What the prompt and what the answer cost: known where one seller did all of it.
    fn details(&self, settled: &Settled) -> String {
        let parts = self.prices.zip(settled.sole());
        let parts = parts.and_then(|(prices, receipt)| parts_of(&receipt.usage, &prices).ok());
        let Some((prompt, completion)) = parts else {
            return "null".to_owned();
        };
        format!(
            r#"{{"upstream_inference_cost":{},"upstream_inference_prompt_cost":{},"upstream_inference_completions_cost":{}}}"#,
            self.token.number(settled.charged),
            self.token.number_of(prompt),
            self.token.number_of(completion),
        )
    }

    /// How it was routed, if that is wanted, as a field.
    #[must_use]
    pub fn metadata(&self, settled: &Settled) -> Option<(&'static str, String)> {
        let routing = self.routing.as_ref()?;
        let report = routing.report(&self.place, settled);
        Some(("openrouter_metadata", report.to_string()))
    }

    /// The choices with what the model thinks where OpenRouter's libraries look for it; nothing
    /// when they are as they should be.
    #[must_use]
    pub fn choices(&self, body: &Body<'_>, part: &str) -> Option<String> {
        let text = body.raw("choices")?;
        if !text.contains("\"reasoning") {
            return None;
        }
        let mut choices: Vec<Value> = serde_json::from_str(text).ok()?;
        for choice in &mut choices {
            let Some(said) = choice.get_mut(part).and_then(Value::as_object_mut) else {
                continue;
            };
            if self.excludes_reasoning {
                said.retain(|name, _| !name.starts_with("reasoning"));
            } else if let Some(thought) = said.get("reasoning_content").cloned() {
                // Some servers call it so.
                said.entry("reasoning").or_insert(thought);
            }
        }
        Some(Value::from(choices).to_string())
    }
}

fn of(usage: Usage) -> (u64, u64, Option<u64>) {
    let Usage {
        prompt,
        cached,
        completion,
    } = usage;
    (prompt.into(), completion.into(), Some(cached.into()))
}

/// What the tokens of a prompt and those of its answer cost; a request's own price is in neither.
fn parts_of(usage: &Usage, prices: &Prices) -> Result<(Cost, Cost), Overflow> {
    let cached = u64::from(usage.cached.min(usage.prompt));
    let fresh = u64::from(usage.prompt).saturating_sub(cached);
    let cached = prices.cached_input.times(cached);
    let prompt = prices.input.times(fresh).add(cached)?;
    Ok((prompt, prices.output.times(usage.completion.into())))
}

/// Fields as [`Body::with`] takes them.
#[must_use]
pub fn borrowed<'a>(fields: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    let pairs = fields.iter();
    pairs.map(|(name, text)| (*name, text.as_str())).collect()
}

impl Routing {
    fn report(&self, place: &Place, settled: &Settled) -> Value {
        let available = self.plan.iter().map(
            |one| json!({ "provider": one.provider, "model": one.model, "selected": one == place }),
        );
        let tried = self
            .tried
            .iter()
            .map(|(one, status)| (one.clone(), *status));
        // The one that began broke off, and others went on.
        let mut part: Vec<_> = settled.sellers().map(|it| self.place(it, place)).collect();
        let last = part.pop().unwrap_or_else(|| place.clone());
        let broken = part.into_iter().map(|one| (one, BROKE_OFF));
        let all = tried.chain(broken).chain([(last, 200)]);
        let attempts: Vec<_> = all
            .map(|(one, status)| {
                json!({ "provider": one.provider, "model": one.model, "status": status })
            })
            .collect();
        let took = settled.sole().map(|it| it.finished.since(it.started));
        let mut report = json!({
            "requested": self.requested,
            "strategy": self.strategy(&place.model),
            "region": null,
            "summary": self.why,
            "attempt": attempts.len(),
            "is_byok": false,
            "endpoints": {
                "total": self.plan.len(),
                "available": available.collect::<Vec<_>>(),
            },
            "attempts": attempts,
        });
        if let Some(took) = took {
            report["generation_time"] = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into();
        }
        report
    }

    /// Where a seller stands that had a part in an answer.
    fn place(&self, seller: NodeId, begun: &Place) -> Place {
        let known = self
            .plan
            .iter()
            .find(|one| one.seller == seller && one.model == begun.model);
        known.cloned().unwrap_or_else(|| Place {
            seller,
            provider: seller.to_string(),
            model: begun.model.clone(),
        })
    }

    /// How the model was found.
    fn strategy(&self, model: &str) -> &'static str {
        let named = self.requested.as_str();
        if matches!(named, "auto" | "openrouter/auto") {
            return "auto";
        }
        let with_suffix = named
            .strip_prefix(model)
            .is_some_and(|rest| rest.starts_with(':'));
        if named == model || with_suffix {
            return "direct";
        }
        let others = self.plan.iter().any(|place| place.model != model);
        if others { "fallback" } else { "alias" }
    }
}

/// The status of a seller that broke off in the middle.
const BROKE_OFF: u16 = 502;
