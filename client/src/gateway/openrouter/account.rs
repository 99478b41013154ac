//! The buyer's books as OpenRouter tells an account: one generation, credits, the key's limits,
//! what was spent by day and model.
//!
//! All of it comes from the receipts and the wallet; what they do not hold is null.

use std::collections::BTreeMap;
use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use serde_json::{Value, json};

use crate::client::{Client, InferError};
use crate::gateway::error::Problem;
use crate::gateway::openrouter::answer::{self, borrowed};
use crate::report::calendar::{Date, stamp};
use crate::report::{
    ActionError, PaymentReport, ReceiptPage, ReceiptQuery, ReceiptReport, Spending, Token,
};

/// A model whose name is not in the books: its receipt was fetched after a crash.
const NAMELESS: &str = "unknown";
/// Days of which activity is told.
const DAYS: u64 = 30;
/// Receipts read at once, and pages of them at most.
const PAGE: u32 = 1_000;
const PAGES: u32 = 100;

/// JSON with amounts of money in it, each exactly.
fn with_money(value: &Value, money: &[(&'static str, String)]) -> String {
    let text = value.to_string();
    let whole = Body::parse(text.as_bytes()).map(|body| body.with(&borrowed(money)));
    // It was made here, and is an object.
    String::from_utf8(whole.unwrap_or_default()).unwrap_or_default()
}

fn data(inner: &str) -> String {
    format!(r#"{{"data":{inner}}}"#)
}

fn list(items: &[String]) -> String {
    format!("[{}]", items.join(","))
}

/// One purchase, however it was paid.
struct Entry {
    model: Option<String>,
    seller: NodeId,
    endpoint: Option<Endpoint>,
    usage: Option<Usage>,
    charged: Amount,
    /// When it began and when it ended; one bought over plain HTTP, when it was paid.
    began: Timestamp,
    ended: Timestamp,
    took: Option<Duration>,
    ending: Option<Ending>,
}

impl From<ReceiptReport> for Entry {
    fn from(report: ReceiptReport) -> Self {
        let receipt = report.signed.receipt;
        Self {
            model: report.model,
            seller: report.signed.seller,
            endpoint: report.endpoint,
            usage: Some(receipt.usage),
            charged: receipt.charged,
            began: receipt.started,
            ended: receipt.finished,
            took: Some(receipt.finished.since(receipt.started)),
            ending: Some(receipt.ending),
        }
    }
}

impl From<PaymentReport> for Entry {
    fn from(report: PaymentReport) -> Self {
        let payment = report.payment;
        Self {
            model: Some(payment.model),
            seller: payment.seller,
            endpoint: None,
            usage: payment.receipt.map(|signed| signed.receipt.usage),
            charged: payment.charged,
            began: payment.at,
            ended: payment.at,
            took: None,
            ending: None,
        }
    }
}

/// `GET /api/v1/generation?id=`.
///
/// # Errors
/// [`Problem::NotHere`] when nothing of this name was bought, or its receipt was pruned.
pub async fn generation(client: &Client, name: &str) -> Result<String, Problem> {
    let missing = || Problem::NotHere("generation of this id in the books".to_owned());
    let request = answer::purchase(name).ok_or_else(missing)?;
    let joint = client.joint(request)?;
    let others = joint.iter().flat_map(|joint| &joint.purchases);
    let others = others.filter(|other| **other != request);
    let mut parts = vec![entry(client, request).await?.ok_or_else(missing)?];
    for other in others {
        parts.extend(entry(client, *other).await?);
    }
    let sellers = parts.iter();
    let sellers = sellers.map(|part| (client.name_of(part.seller), part.status()));
    let sellers: Vec<_> = sellers.collect();
    let mut whole = parts.into_iter().reduce(Entry::and).ok_or_else(missing)?;
    if let Some(joint) = joint {
        whole.charged = joint.charged;
    }
    Ok(data(&whole.generation(request, &sellers, &client.token())))
}

/// What is in the books of one purchase.
async fn entry(client: &Client, request: RequestId) -> Result<Option<Entry>, Problem> {
    match client.receipt(request).await {
        Ok(report) => return Ok(Some(report.into())),
        Err(ActionError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match client.payment(request).await {
        Ok(report) => Ok(Some(report.into())),
        Err(ActionError::Unknown(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Entry {
    /// This and what another seller added to the same answer: the prompt is the first one's.
    fn and(self, next: Self) -> Self {
        let completion = next.usage.unwrap_or_default().completion;
        Self {
            usage: self.usage.map(|usage| Usage {
                completion: usage.completion.saturating_add(completion),
                ..usage
            }),
            charged: self.charged.saturating_add(next.charged),
            ended: next.ended,
            took: Some(next.ended.since(self.began)),
            ending: next.ending,
            ..self
        }
    }

    /// How it ended, as an HTTP status says it.
    const fn status(&self) -> u16 {
        match self.ending {
            None | Some(Ending::Complete) => 200,
            Some(Ending::Cancelled) => 499,
            Some(_) => 502,
        }
    }

    /// As a generation of these sellers, each with how it ended.
    fn generation(&self, request: RequestId, sellers: &[(String, u16)], token: &Token) -> String {
        let responses = sellers.iter().map(|(name, status)| {
            json!({ "provider_name": name, "endpoint_id": name, "status": status, "is_byok": false })
        });
        let responses: Vec<_> = responses.collect();
        let prompt = self.usage.map(|usage| usage.prompt);
        let completion = self.usage.map(|usage| usage.completion);
        let took = self
            .took
            .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let cost = token.number(self.charged);
        let told = json!({
            "id": answer::generation(request),
            "api_type": self.endpoint.and_then(|endpoint| match endpoint {
                Endpoint::Chat | Endpoint::Completions => Some("completions"),
                Endpoint::Embeddings => Some("embeddings"),
                // OpenRouter has no word for them.
                Endpoint::Moderations => None,
            }),
            "app_id": null,
            "cache_discount": null,
            "cancelled": self.ending.map(|ending| ending == Ending::Cancelled),
            "created_at": stamp(self.began),
            "data_region": "global",
            "external_user": null,
            "finish_reason": null,
            "generation_time": took,
            "http_referer": null,
            "is_byok": false,
            "latency": took,
            "model": self.model.as_deref().unwrap_or(NAMELESS),
            "moderation_latency": null,
            "native_finish_reason": null,
            "native_tokens_cached": self.usage.map(|usage| usage.cached),
            "native_tokens_completion": completion,
            "native_tokens_completion_images": null,
            "native_tokens_prompt": prompt,
            "native_tokens_reasoning": null,
            "num_fetches": null,
            "num_input_audio_prompt": null,
            "num_media_completion": null,
            "num_media_prompt": null,
            "num_search_results": null,
            "origin": "",
            "preset_id": null,
            "provider_name": sellers.first().map(|(name, _)| name),
            "provider_responses": responses,
            "request_id": request.to_string(),
            "router": null,
            "service_tier": null,
            "session_id": null,
            "streamed": null,
            "tokens_completion": completion,
            "tokens_prompt": prompt,
            "upstream_id": null,
            "user_agent": null,
            "web_search_engine": null,
            "workspace_id": null,
        });
        with_money(
            &told,
            &[
                ("total_cost", cost.clone()),
                ("usage", cost.clone()),
                ("upstream_inference_cost", cost),
            ],
        )
    }
}

/// `GET /api/v1/credits`: what was spent, and that with what is left of the wallet and in channels.
///
/// # Errors
/// [`InferError::Chain`] while the chain does not say what the wallet holds.
pub async fn credits(client: &Client) -> Result<String, Problem> {
    let wallet = client.wallet().await?;
    let used = client.standing().charged;
    let Some(balance) = wallet.balance else {
        let reason = "it does not say what the wallet holds".to_owned();
        return Err(InferError::Chain(reason).into());
    };
    let left = balance.saturating_add(wallet.in_channels);
    let token = &wallet.token;
    let told = [
        ("total_credits", token.number(left.saturating_add(used))),
        ("total_usage", token.number(used)),
    ];
    Ok(data(&with_money(&json!({}), &told)))
}

/// `GET /api/v1/key`: the spend limits, which hold for every key, and what was used.
///
/// # Errors
/// Any [`Problem`] of the books.
pub async fn key(client: &Client) -> Result<String, Problem> {
    let wallet = client.wallet().await?;
    let token = &wallet.token;
    let used = client.standing().charged;
    let today = client.now().day();
    let Date { year, month, .. } = Date::of(today);
    let first = Date {
        year,
        month,
        day: 1,
    };
    // The epoch began on a Thursday.
    let monday = today.saturating_sub((today + 3) % 7);
    let days = client.charged_by_day(monday.min(first.days()))?;
    let since = |day: u64| {
        let sum = days.range(day..).map(|(_, charged)| *charged);
        token.number(sum.fold(Amount::ZERO, Amount::saturating_add))
    };
    let daily = budget(wallet.today, Some(today), token);
    let total = budget(wallet.total, None, token);
    let tighter = match left(wallet.today) < left(wallet.total) {
        true => &daily,
        false => &total,
    };
    let nothing = || "0".to_owned();
    let told = json!({
        "label": "farthing",
        "limit_reset": null,
        "include_byok_in_limit": false,
        "is_free_tier": false,
        "is_management_key": false,
        "is_provisioning_key": false,
        "free_model_daily_requests": { "limit": 0, "remaining": 0, "used": 0 },
        "rate_limit": { "requests": -1, "interval": "10s", "note": "the gateway has no rate limit" },
        "allowed_data_regions": ["global"],
        "creator_user_id": null,
        "organization_id": null,
        "workspace_id": null,
        "expires_at": null,
    });
    let money = [
        ("limit", token.number(wallet.total.limit)),
        ("limit_remaining", token.number(left(wallet.total))),
        ("usage", token.number(used)),
        ("usage_daily", since(today)),
        ("usage_weekly", since(monday)),
        ("usage_monthly", since(first.days())),
        ("byok_usage", nothing()),
        ("byok_usage_daily", nothing()),
        ("byok_usage_weekly", nothing()),
        ("byok_usage_monthly", nothing()),
        ("effective_budget", tighter.clone()),
        ("budgets", list(&[daily.clone(), total.clone()])),
    ];
    Ok(data(&with_money(&told, &money)))
}

const fn left(spending: Spending) -> Amount {
    spending.limit.saturating_sub(spending.spent)
}

/// A limit as a budget: of a day, or for good. What is promised counts as spent.
fn budget(spending: Spending, day: Option<u64>, token: &Token) -> String {
    let reset = day.map(|day| format!("{}T00:00:00Z", Date::of(day + 1).show()));
    let told = json!({
        "scope": "key_limit",
        "budget_id": null,
        "guardrail_id": null,
        "include_byok": false,
        "reset_interval": day.map(|_| "daily"),
        "resets_at": reset,
    });
    let money = [
        ("limit_usd", token.number(spending.limit)),
        ("spend_usd", token.number(spending.spent)),
        ("remaining_usd", token.number(left(spending))),
    ];
    with_money(&told, &money)
}

/// What one model cost at one seller in one day.
#[derive(Default)]
struct Sum {
    requests: u64,
    prompt: u64,
    cached: u64,
    completion: u64,
    charged: Amount,
}

impl Sum {
    fn add(&mut self, entry: &Entry) {
        let usage = entry.usage.unwrap_or_default();
        self.requests = self.requests.saturating_add(1);
        self.prompt = self.prompt.saturating_add(usage.prompt.into());
        self.cached = self.cached.saturating_add(usage.cached.into());
        self.completion = self.completion.saturating_add(usage.completion.into());
        self.charged = self.charged.saturating_add(entry.charged);
    }
}

/// `GET /api/v1/activity`: by day, model and seller, of one day or of the last ones, the newest
/// first.
///
/// # Errors
/// [`InferError::BadRequest`] for what is no day, or when there is more than is read at once.
pub async fn activity(client: &Client, date: Option<&str>) -> Result<String, Problem> {
    let today = client.now().day();
    let (from, to) = match date {
        None => (today.saturating_sub(DAYS - 1), today),
        Some(text) => {
            let wrong = || bad("`date` is a day such as 2026-11-20".to_owned());
            let day = Date::parse(text).ok_or_else(wrong)?.days();
            (day, day)
        }
    };
    let begin = |day: u64| Timestamp(day.saturating_mul(86_400_000));
    let mut query = ReceiptQuery {
        since: Some(begin(from)),
        before: Some(begin(to + 1)),
        limit: PAGE,
        ..ReceiptQuery::default()
    };
    let mut sums: BTreeMap<(u64, String, NodeId), Sum> = BTreeMap::new();
    for _ in 0..PAGES {
        let page = client.receipts(&query).await?;
        let next = page.next;
        for entry in entries(page) {
            let model = entry.model.clone().unwrap_or_else(|| NAMELESS.to_owned());
            let sum = sums.entry((entry.ended.day(), model, entry.seller));
            sum.or_default().add(&entry);
        }
        if next.is_none() {
            let items = sums.iter().rev().map(|(what, sum)| item(client, what, sum));
            return Ok(data(&list(&items.collect::<Vec<_>>())));
        }
        query.before = next;
    }
    let most = u64::from(PAGE) * u64::from(PAGES);
    Err(bad(format!(
        "there are more than {most} receipts: ask for one `date`, or use `farthing receipts export`"
    )))
}

fn bad(reason: String) -> Problem {
    InferError::BadRequest(reason).into()
}

fn entries(page: ReceiptPage) -> impl Iterator<Item = Entry> {
    let receipts = page.receipts.into_iter().map(Entry::from);
    receipts.chain(page.payments.into_iter().map(Entry::from))
}

fn item(client: &Client, (day, model, seller): &(u64, String, NodeId), sum: &Sum) -> String {
    let provider = client.name_of(*seller);
    let told = json!({
        "date": Date::of(*day).show(),
        "model": model,
        "model_permaslug": model,
        "endpoint_id": provider,
        "provider_name": provider,
        "byok_usage_inference": 0,
        "requests": sum.requests,
        "prompt_tokens": sum.prompt,
        "completion_tokens": sum.completion,
        "cached_tokens": sum.cached,
        "reasoning_tokens": 0,
    });
    with_money(&told, &[("usage", client.token().number(sum.charged))])
}
