//! Purchases over plain HTTP, from the plan to the first piece; and which models such sellers have.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::offer::MAX_MODELS;
use farthing_protocol::purchase::Mode;
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::attempt::Begun;
use crate::client::failure::Failure;
use crate::client::parts::{OpenError, Parts, request_id};
use crate::client::running::{Running, Work};
use crate::client::tokens::Tokenizers;
use crate::config::{Upstream, X402};
use crate::market::{Fee, Market, WebOffer};
use crate::policy::Terms;
use crate::purchase::web::WebDeal;
use crate::router::Choice;
use crate::wallet::Tab;

/// How often sellers that name no models are asked for theirs.
const LIST: Duration = Duration::from_secs(300);
/// How long one may take to say, and how much it may say.
const LIST_WAIT: Duration = Duration::from_secs(10);
const LIST_LIMIT: usize = 1024 * 1024;

impl Parts {
    pub(in crate::client) async fn begin_web(
        self: &Arc<Self>,
        (terms, tab): (&Terms, &Tab),
        choice: &Choice,
        offer: &Arc<WebOffer>,
    ) -> Result<Begun, Failure> {
        let now = Instant::now();
        let deadline = now + terms.deadlines.total;
        let first_by = match terms.mode {
            // A document's head comes with its end.
            Mode::Plain => deadline,
            Mode::Stream => (now + terms.deadlines.first_token).min(deadline),
        };
        let quote = choice.demand.quote(&choice.candidate.model().prices).ok();
        let deal = WebDeal {
            request: request_id(),
            offer: Arc::clone(offer),
            model: terms.model.clone(),
            endpoint: terms.endpoint,
            mode: terms.mode,
            body: terms.body.clone(),
            reckoned: quote.filter(|_| offer.fee == Fee::Stated),
            max_cost: match offer.fee {
                Fee::Asked => terms.max_cost,
                Fee::Stated | Fee::None(_) => choice.max_cost,
            },
            tab: tab.clone(),
            first_by,
            idle: terms.deadlines.idle,
            deadline,
        };
        let purchase = Box::pin(self.web.buy(deal)).await?;
        let work = Work::Web(Box::new(purchase));
        let what = (terms.model.clone(), terms.endpoint, terms.expected.prompt);
        Running::new(Arc::clone(self), work, what, now)
            .first()
            .await
    }
}

/// Lists the model servers of one's own, which never change; returns those that count tokens.
///
/// # Errors
/// [`OpenError::Upstream`].
pub(in crate::client) fn list_own(
    market: &Market,
    own: &[Upstream],
) -> Result<Tokenizers, OpenError> {
    // One without slots only counts.
    for setting in own.iter().filter(|setting| setting.slots > 0) {
        let key = setting.api_key_file.as_deref().map(bearer).transpose()?;
        if let Some(offer) = WebOffer::own(setting, key) {
            market.list_web(offer);
        }
    }
    Tokenizers::open(own)
}

/// The key in a file, as a header that no log shows.
pub(in crate::client) fn bearer(path: &Path) -> Result<HeaderValue, OpenError> {
    let fault = |reason: &dyn std::fmt::Display| OpenError::Upstream {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let text = std::fs::read_to_string(path).map_err(|error| fault(&error))?;
    let text = format!("Bearer {}", text.trim());
    let mut key = HeaderValue::from_str(&text).map_err(|error| fault(&error))?;
    key.set_sensitive(true);
    Ok(key)
}

/// Keeps the market's list of such sellers; ends when its token is cancelled.
pub(in crate::client) struct Lister {
    market: Market,
    settings: Vec<X402>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

impl Lister {
    pub(in crate::client) fn new(market: Market, settings: Vec<X402>) -> Self {
        // Those whose models are stated are there from the first moment.
        let stated = settings.iter().filter(|setting| !setting.models.is_empty());
        for setting in stated {
            if let Some(offer) = WebOffer::of(setting, &setting.models) {
                market.list_web(offer);
            }
        }
        Self { market, settings }
    }

    pub(in crate::client) async fn run(self, stop: CancellationToken) {
        let asked = self
            .settings
            .iter()
            .filter(|setting| setting.models.is_empty());
        let asked: Vec<_> = asked.cloned().collect();
        if asked.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(LIST);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for setting in &asked {
                tokio::select! {
                    () = stop.cancelled() => return,
                    models = models(setting) => self.list(setting, models),
                }
            }
        }
    }

    fn list(&self, setting: &X402, models: Result<Vec<String>, String>) {
        match models {
            Ok(models) => {
                if let Some(offer) = WebOffer::of(setting, &models) {
                    self.market.list_web(offer);
                }
            }
            Err(error) => {
                tracing::warn!(url = setting.url, %error, "a seller does not list its models");
            }
        }
    }
}

/// What a seller lists.
async fn models(setting: &X402) -> Result<Vec<String>, String> {
    let http = reqwest::Client::builder()
        .redirect(Policy::none())
        .timeout(LIST_WAIT)
        .no_proxy()
        .build();
    let url = format!("{}/models", setting.url.trim_end_matches('/'));
    let http = http.map_err(|e| e.to_string())?;
    let mut response = http.get(url).send().await.map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| e.to_string())? {
        if text.len().saturating_add(piece.len()) > LIST_LIMIT {
            return Err("its list is too long".to_owned());
        }
        text.extend_from_slice(&piece);
    }
    let list: List = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let models = list.data.into_iter().map(|listed| listed.id);
    Ok(models.take(MAX_MODELS).collect())
}
