//! Purchases over plain HTTP, from the plan to the booked payment; and which models such sellers
//! have.

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::offer::MAX_MODELS;
use farthing_protocol::purchase::Mode;
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::answer::{Answer, Event, InferError};
use crate::client::delivery::Order;
use crate::client::infer::{Failure, blame, broken_off};
use crate::client::parts::{Parts, request_id};
use crate::config::X402;
use crate::ledger::Standing;
use crate::market::{Market, Outcome, Served, WebOffer};
use crate::policy::Terms;
use crate::purchase::web::{WebDeal, WebEnd, WebPurchase, WebStep};
use crate::router::Choice;

/// Events that wait for a slow reader before the seller is slowed down too.
const EVENTS: usize = 32;
/// How often sellers that name no models are asked for theirs.
const LIST: Duration = Duration::from_secs(300);
/// How long one may take to say, and how much it may say.
const LIST_WAIT: Duration = Duration::from_secs(10);
const LIST_LIMIT: usize = 1024 * 1024;

/// A purchase whose first event is here.
pub(in crate::client) struct Begun {
    purchase: WebPurchase,
    first: WebStep,
}

impl Parts {
    pub(in crate::client) async fn begin_web(
        &self,
        terms: &Terms,
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
            reckoned: quote.filter(|_| offer.priced),
            max_cost: if offer.priced {
                choice.max_cost
            } else {
                terms.max_cost
            },
            first_by,
            idle: terms.deadlines.idle,
            deadline,
        };
        let mut purchase = Box::pin(self.web.buy(deal)).await?;
        let first = purchase.next().await?;
        Ok(Begun { purchase, first })
    }
}

/// Hands the answer over; the rest of it is delivered by a task that ends with it.
pub(in crate::client) fn deliver(parts: Arc<Parts>, begun: Begun, order: Order) -> Answer {
    let Begun { purchase, first } = begun;
    let (events, receiver) = mpsc::channel(EVENTS);
    let (request, seller) = (purchase.deal().request, purchase.seller());
    let (model, why) = (order.terms.model.clone(), order.why.clone());
    let first_token = order.asked.elapsed();
    order.trial.answered();
    let delivery = Delivery {
        parts,
        purchase,
        order,
        first_token,
        heard: Instant::now(),
        longest_gap: Duration::ZERO,
        events,
    };
    tokio::spawn(delivery.run(first));
    Answer {
        request,
        seller,
        model,
        why,
        events: receiver,
    }
}

struct Delivery {
    parts: Arc<Parts>,
    purchase: WebPurchase,
    order: Order,
    first_token: Duration,
    heard: Instant,
    longest_gap: Duration,
    events: mpsc::Sender<Result<Event, InferError>>,
}

impl Delivery {
    async fn run(mut self, first: WebStep) {
        let mut step = first;
        loop {
            match step {
                WebStep::End(end) => return self.done(*end).await,
                WebStep::Data(data) => {
                    self.longest_gap = self.longest_gap.max(self.heard.elapsed());
                    if self.events.send(Ok(Event::Data(data))).await.is_err() {
                        // Dropping it hangs up; what was charged shows with the next purchase.
                        return self.order.trial.record(Outcome::Blameless);
                    }
                    self.heard = Instant::now();
                }
            }
            let next = tokio::select! {
                biased;
                () = self.events.closed() => return self.order.trial.record(Outcome::Blameless),
                next = self.purchase.next() => next,
            };
            match next {
                Ok(next) => step = next,
                Err(error) => {
                    let failure = Failure::Purchase(error);
                    tracing::warn!(error = %failure, "an answer broke off");
                    self.order.trial.record(blame(&failure));
                    drop(self.purchase);
                    // Whoever asked may have gone.
                    self.events.send(Err(broken_off(&failure))).await.ok();
                    return;
                }
            }
        }
    }

    async fn done(mut self, end: WebEnd) {
        let booked = self.book(&end).await;
        let charged = end.charged.unwrap_or(self.purchase.held());
        let good = end.whole && end.dispute.is_none() && booked.is_ok();
        let event = match (booked, end.whole) {
            (Err(error), _) => Err(InferError::Internal(error.to_string())),
            (Ok(()), true) => Ok(Event::Paid(charged)),
            (Ok(()), false) => {
                let text = "the seller ended the stream in the middle".to_owned();
                Err(InferError::Interrupted(text))
            }
        };
        self.order.trial.record(if good {
            Outcome::Served(Served {
                first_token: self.first_token,
                elapsed: self.order.asked.elapsed(),
                longest_gap: self.longest_gap,
                prompt: 0,
                tokens: 0,
                charged,
            })
        } else {
            Outcome::Failed
        });
        // Whoever asked may have gone.
        self.events.send(event).await.ok();
    }

    /// Books what was charged. A price that is not the agreed one is kept as evidence, and its
    /// channel is used no more. One that was not said stays in doubt until the next purchase.
    async fn book(&mut self, end: &WebEnd) -> Result<(), crate::ledger::LedgerError> {
        let now = self.parts.clock.now();
        self.purchase.book(end, &self.parts.ledger, now).await?;
        if let Some(dispute) = end.dispute {
            let url = self.purchase.deal().shown();
            tracing::error!(%url, dispute, "a false price; the seller is not used again");
            if let Some(id) = self.purchase.channel()
                && let Err(error) = self.parts.channels.stand(id, Standing::Frozen).await
            {
                tracing::error!(%error, "a channel could not be frozen");
            }
        }
        Ok(())
    }
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
