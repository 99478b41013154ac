//! The whole purchase: terms, plan, and one seller after the other until an answer begins.
//!
//! Before the first event reaches the application, a failure is silent and the next seller is
//! tried. [`Parts::infer`] alone tells the market how a purchase went.

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::net::ask::read_book;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::pricing;
use farthing_protocol::purchase::Refusal;
use farthing_protocol::receipt::model_hash;
use farthing_protocol::x402::ChannelId;

use crate::channels::ChannelError;
use crate::client::answer::{Answer, Attempt, Errand, InferError, Request};
use crate::client::parts::{Parts, request_id};
use crate::client::route::explained;
use crate::client::{delivery, web};
use crate::ledger::{LedgerError, Want, Wish};
use crate::market::{Outcome, Source};
use crate::policy::{Refused, Terms};
use crate::purchase::web::Unpayable;
use crate::purchase::{Deal, Purchase, PurchaseError, Step};
use crate::router::Choice;
use crate::wallet::Order;

/// How often one seller is tried again after its own cause was removed: a stale offer replaced,
/// books reconciled, a channel topped up.
const REPAIRS: u32 = 2;

/// Why one seller did not begin.
#[derive(Debug, thiserror::Error)]
pub(in crate::client) enum Failure {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Purchase(#[from] PurchaseError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Failure {
    /// Whether the seller may still be heard.
    pub(in crate::client) const fn leaves_the_stream(&self) -> bool {
        match self {
            Self::Purchase(error) => error.leaves_the_stream(),
            Self::Channel(_) | Self::Ledger(_) => true,
        }
    }

    /// Whether the seller has a payment for this purchase alone.
    const fn is_taken(&self) -> bool {
        matches!(self, Self::Purchase(PurchaseError::Taken(_)))
    }
}

/// A purchase that has begun, with a seller of either kind.
pub(in crate::client) enum Started {
    Peer(Box<Begun>),
    Web(Box<web::Begun>),
}

/// A purchase whose first event is here.
pub(in crate::client) struct Begun {
    pub(in crate::client) purchase: Purchase,
    pub(in crate::client) first: Step,
    pub(in crate::client) load: Option<farthing_protocol::purchase::Load>,
}

impl Parts {
    pub(in crate::client) async fn infer(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Answer, InferError> {
        let terms = Terms::of(request.endpoint, &request.body, &self.config)?;
        let plan = self.plan(&terms, &[])?;
        let mut attempts = Vec::new();
        let mut causes = Vec::new();
        // Models that refuse the request, whoever serves them, and what they say.
        let mut unfit: Vec<(&str, InferError)> = Vec::new();
        for choice in plan.choices.iter().take(terms.attempts as usize) {
            let model = choice.candidate.model().id.as_str();
            if unfit.iter().any(|(known, _)| *known == model) {
                continue;
            }
            let terms = terms.toward(model).into_owned();
            let seller = choice.candidate.seller();
            let trial = self.market.begin(seller, &terms.model, terms.endpoint);
            let asked = tokio::time::Instant::now();
            match self.begin(&terms, choice).await {
                Ok(begun) => {
                    let order = delivery::Order {
                        why: explained(&terms, choice),
                        terms: terms.clone(),
                        trial,
                        asked,
                    };
                    let answer = match begun {
                        Started::Peer(begun) => delivery::deliver(Arc::clone(self), *begun, order),
                        Started::Web(begun) => web::deliver(Arc::clone(self), *begun, order),
                    };
                    self.routed(&terms, plan.seed, &answer);
                    return Ok(answer);
                }
                Err(failure) => {
                    trial.record(blame(&failure));
                    if let Some(error) = terminal(&failure) {
                        if !error.is_about_the_request() || terms.models.len() == 1 {
                            return Err(error);
                        }
                        unfit.push((model, error));
                    }
                    attempts.push(Attempt {
                        seller,
                        reason: failure.to_string(),
                    });
                    // That seller may be paid for this purchase: a second one is not.
                    if failure.is_taken() {
                        return Err(InferError::Failed { attempts });
                    }
                    tracing::info!(seller = %seller.short(), %failure, "trying the next seller");
                    causes.push(failure);
                }
            }
        }
        match unfit.pop() {
            Some((_, error)) => Err(error),
            None => Err(verdict(attempts, causes)),
        }
    }

    /// One seller, with repairs.
    async fn begin(&self, terms: &Terms, choice: &Choice) -> Result<Started, Failure> {
        let mut offer = match choice.candidate.source() {
            Source::Peer(offer) => Arc::clone(offer),
            Source::Web(offer) => {
                let begun = self.begin_web(terms, choice, offer).await?;
                return Ok(Started::Web(Box::new(begun)));
            }
            Source::Record => {
                return Err(PurchaseError::Protocol("it is only known from a record").into());
            }
        };
        let mut repairs = 0;
        loop {
            let failure = match self.buy(terms, choice, &offer).await {
                Ok(begun) => return Ok(Started::Peer(Box::new(begun))),
                Err(failure) => failure,
            };
            repairs += 1;
            if repairs > REPAIRS || !self.repair(&failure, &mut offer, terms).await {
                return Err(failure);
            }
        }
    }

    async fn buy(
        &self,
        terms: &Terms,
        choice: &Choice,
        offer: &Arc<VerifiedOffer>,
    ) -> Result<Begun, Failure> {
        let model = offer
            .offer()
            .model(&terms.model)
            .unwrap_or(choice.candidate.model())
            .clone();
        let mut deal = Deal {
            request: request_id(),
            offer: Arc::clone(offer),
            demand: choice.demand,
            max_cost: choice.max_cost,
            window: pricing::FIRST_WINDOW,
            model,
        };
        let channel = self.channels.ready(offer, deal.opening()?).await?;
        deal.window = self.window(&deal, channel);
        let want = Want {
            channel,
            request: deal.request,
            model: model_hash(&deal.model.id),
            more: deal.opening()?,
            headroom: deal.headroom(),
            floor: Amount::ZERO,
        };
        let order = Order {
            wish: Wish {
                model: &terms.model,
                seller: offer.offer().seller,
                max_cost: deal.max_cost,
            },
            endpoint: terms.endpoint,
            body: &terms.body,
        };
        let held = self.wallet.hold(want, order).await;
        let (hold, voucher) = match held {
            Err(LedgerError::Rejected(Rejected::OverDeposit { .. })) => {
                self.channels.ready(offer, want.more).await?;
                self.wallet.hold(want, order).await?
            }
            other => other?,
        };
        self.upkeep.used(channel, offer);
        let mut purchase = Purchase::ask(&self.lines, deal, terms, hold, voucher).await?;
        let mut load = None;
        loop {
            match purchase.next().await? {
                Step::Accepted(now) => load = Some(now),
                first => {
                    return Ok(Begun {
                        purchase,
                        first,
                        load,
                    });
                }
            }
        }
    }

    /// Signs further ahead the more was paid on the channel without trouble.
    fn window(&self, deal: &Deal, channel: ChannelId) -> u64 {
        let account = self.ledger.account(channel);
        let earned = account.map(|account| account.channel.earned());
        pricing::window(&deal.model.prices, earned.unwrap_or(Amount::ZERO))
    }

    /// Removes the cause of a failure if it is one of those that can be removed.
    async fn repair(
        &self,
        failure: &Failure,
        offer: &mut Arc<VerifiedOffer>,
        terms: &Terms,
    ) -> bool {
        let seller = offer.offer().seller;
        match failure {
            Failure::Purchase(PurchaseError::Refused(Refusal::StaleOffer)) => {
                for signed in read_book(&self.net, seller).await.unwrap_or_default() {
                    self.market.hear(signed);
                }
                match self.market.offer(seller) {
                    // The price ceilings were checked for the old offer: a dearer one must be
                    // planned anew.
                    Some(newer)
                        if same_prices(&newer, offer, &terms.model)
                            && newer.hash() != offer.hash() =>
                    {
                        *offer = newer;
                        true
                    }
                    _ => false,
                }
            }
            // The books differ, or the seller was restarted, or lost its books, and wants to see the
            // channel's key.
            Failure::Purchase(
                PurchaseError::Overreach { .. }
                | PurchaseError::Refused(Refusal::Voucher(_) | Refusal::NoChannel),
            ) => match self.channels.reconcile_with(offer).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(seller = %seller.short(), %error, "the books could not be reconciled");
                    false
                }
            },
            _ => false,
        }
    }
}

fn same_prices(newer: &VerifiedOffer, older: &VerifiedOffer, model: &str) -> bool {
    let prices = |offer: &VerifiedOffer| offer.offer().model(model).map(|model| model.prices);
    prices(newer).is_some() && prices(newer) == prices(older)
}

/// What a failure says about the seller.
pub(in crate::client) fn blame(failure: &Failure) -> Outcome {
    match failure {
        Failure::Purchase(error) => match error {
            PurchaseError::Refused(Refusal::Busy { retry_after_ms }) => Outcome::Busy {
                retry_after: Duration::from_millis(*retry_after_ms),
            },
            PurchaseError::Refused(refusal) if !refusal.may_succeed_elsewhere() => {
                Outcome::Blameless
            }
            PurchaseError::Refused(Refusal::StaleOffer)
            | PurchaseError::Ledger(_)
            | PurchaseError::Unpayable(Unpayable::Allowance { .. }) => Outcome::Blameless,
            PurchaseError::Channel(error) => blame_channel(error),
            _ => Outcome::Failed,
        },
        Failure::Channel(error) => blame_channel(error),
        Failure::Ledger(_) => Outcome::Blameless,
    }
}

/// Our own wallet, limits and chain are not the seller's fault.
const fn blame_channel(error: &ChannelError) -> Outcome {
    match error {
        ChannelError::Silent(_) | ChannelError::Refused(_) | ChannelError::Liar(_) => {
            Outcome::Failed
        }
        _ => Outcome::Blameless,
    }
}

/// A failure that no other seller could mend.
fn terminal(failure: &Failure) -> Option<InferError> {
    let ledger = match failure {
        Failure::Purchase(PurchaseError::Refused(refusal)) if !refusal.may_succeed_elsewhere() => {
            return Some(refusal.clone().into());
        }
        Failure::Purchase(PurchaseError::Ledger(error)) | Failure::Ledger(error) => error,
        Failure::Channel(ChannelError::Ledger(error)) => error,
        Failure::Purchase(PurchaseError::Channel(error)) => match &**error {
            ChannelError::Ledger(error) => error,
            _ => return None,
        },
        _ => return None,
    };
    match ledger {
        // Another seller may still be paid.
        LedgerError::Limit {
            limit: "per_seller",
            ..
        } => None,
        LedgerError::Limit { .. } => Some(InferError::SpendLimit(ledger.to_string())),
        LedgerError::Approval { .. } => Some(Errand::Approval(ledger.to_string()).into()),
        LedgerError::Commit(_)
        | LedgerError::Read(_)
        | LedgerError::Batch(_)
        | LedgerError::Archive(_) => Some(InferError::Internal(ledger.to_string())),
        _ => None,
    }
}

/// What to tell the application when all were tried: the cause it can act on, if there is one.
fn verdict(attempts: Vec<Attempt>, causes: Vec<Failure>) -> InferError {
    let mut shortest = None;
    let mut busy = 0;
    for cause in &causes {
        if let Failure::Purchase(PurchaseError::Refused(Refusal::Busy { retry_after_ms })) = cause {
            busy += 1;
            let wait = *retry_after_ms;
            shortest = Some(shortest.map_or(wait, |least: u64| least.min(wait)));
        } else if let Some(error) = ours(cause) {
            return error;
        }
    }
    match shortest {
        Some(retry_after_ms) if busy == causes.len() => InferError::Busy { retry_after_ms },
        _ => InferError::Failed { attempts },
    }
}

/// A cause that lies with the buyer's own money or chain.
fn ours(cause: &Failure) -> Option<InferError> {
    match cause {
        Failure::Channel(error) => our_channel(error),
        Failure::Purchase(PurchaseError::Channel(error)) => our_channel(error),
        Failure::Purchase(PurchaseError::Ledger(error)) | Failure::Ledger(error) => match error {
            LedgerError::Limit { .. } => Some(InferError::SpendLimit(error.to_string())),
            LedgerError::Elsewhere(_) => Some(Errand::Approval(error.to_string()).into()),
            _ => None,
        },
        Failure::Purchase(PurchaseError::Unpayable(error @ Unpayable::Allowance { .. })) => {
            Some(Errand::Approval(error.to_string()).into())
        }
        Failure::Purchase(_) => None,
    }
}

fn our_channel(error: &ChannelError) -> Option<InferError> {
    match error {
        ChannelError::EmptyWallet {
            address,
            balance,
            needed,
        } => Some(InferError::Errand(Errand::EmptyWallet {
            address: address.clone(),
            balance: *balance,
            needed: *needed,
        })),
        ChannelError::MaxDeposit { .. } => Some(InferError::SpendLimit(error.to_string())),
        ChannelError::Elsewhere { .. } => Some(Errand::Approval(error.to_string()).into()),
        ChannelError::Chain(error) => Some(InferError::Chain(error.to_string())),
        ChannelError::Ledger(error @ LedgerError::Limit { .. }) => {
            Some(InferError::SpendLimit(error.to_string()))
        }
        _ => None,
    }
}

/// How a failure after the first event reads to the application.
pub(in crate::client) fn broken_off(failure: &Failure) -> InferError {
    ours(failure).unwrap_or_else(|| InferError::Interrupted(failure.to_string()))
}

impl From<Refused> for InferError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge { len, max } => Self::TooLarge { len, max },
            other => Self::BadRequest(other.to_string()),
        }
    }
}
