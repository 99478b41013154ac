//! One seller asked once, with repairs: until it sends something, or why it does not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::net::ask::read_book;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Mode, Refusal};
use farthing_protocol::receipt::model_hash;
use farthing_protocol::x402::ChannelId;
use tokio::time::{Instant, timeout_at};

use crate::client::failure::{Failure, blame};
use crate::client::parts::{Parts, request_id};
use crate::client::running::{Close, Piece, Running, Work};
use crate::client::splice::Splice;
use crate::ledger::{LedgerError, Want, Wish};
use crate::market::{Candidate, Measured, Source};
use crate::policy::Terms;
use crate::purchase::{Deal, Purchase, PurchaseError};
use crate::router::{self, Choice};
use crate::wallet::{Order, Tab};

/// How often one seller is tried again after its own cause was removed: a stale offer replaced,
/// books reconciled, a channel topped up.
const REPAIRS: u32 = 2;
/// The most events without content that are held back before the first with some.
const MOST_HELD: usize = 64;
/// And their bytes: one that sends more has no answer.
const MOST_HELD_BYTES: usize = 1024 * 1024;
/// How long those that were told to stop are waited for, where what they may charge leaves the
/// next one too little.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Events without content, until the first with some.
#[derive(Debug, Default)]
struct Held {
    events: Vec<Bytes>,
    bytes: usize,
}

impl Held {
    /// Holds one back. Whether that is as many as are held.
    ///
    /// # Errors
    /// [`Failure::Nonsense`] when they are larger than anything that says nothing.
    fn keep(&mut self, event: Option<Bytes>) -> Result<bool, Failure> {
        let more = event.as_ref().map_or(0, Bytes::len);
        self.bytes = self.bytes.saturating_add(more);
        if self.bytes > MOST_HELD_BYTES {
            return Err(Failure::Nonsense("it is long and says nothing"));
        }
        self.events.extend(event);
        Ok(self.events.len() >= MOST_HELD)
    }
}

/// A purchase whose first piece is here.
pub(in crate::client) type Begun = (Running, Piece);

/// An answer that has begun, by its seller's first content.
pub(in crate::client) struct Opened {
    pub(in crate::client) running: Running,
    /// What the application gets first.
    pub(in crate::client) events: Vec<Bytes>,
    /// What it then has.
    pub(in crate::client) splice: Splice,
    /// The end, when that is all.
    pub(in crate::client) end: Option<Close>,
}

impl Running {
    /// The first thing it sends. A seller that may still be heard after a failure is asked for
    /// its receipt.
    pub(in crate::client) async fn first(mut self) -> Result<Begun, Failure> {
        match self.next().await {
            Ok(first) => Ok((self, first)),
            // Its books are compared next, and nothing may be under way meanwhile.
            Err(failure @ Failure::Purchase(PurchaseError::Overreach { .. })) => {
                self.let_go();
                Err(failure)
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// The next thing it sends, by when the first content must be there: a seller that only says
    /// that it is alive is late.
    async fn next_by(&mut self, terms: &Terms) -> Result<Piece, Failure> {
        let wait = match terms.mode {
            Mode::Stream => terms.deadlines.first_token,
            Mode::Plain => terms.deadlines.total,
        };
        match timeout_at(self.asked() + wait, self.next()).await {
            Ok(piece) => piece,
            Err(_) => {
                let late = "first token";
                Err(match self.is_paid_once() {
                    true => PurchaseError::Taken(format!("no {late} in time")).into(),
                    false => PurchaseError::Late(late).into(),
                })
            }
        }
    }

    /// Ends it after a failure, without waiting for its receipt.
    fn failed(self, failure: Failure) -> Failure {
        drop(self.give_up(&failure));
        failure
    }
}

impl Parts {
    /// Asks one seller, and waits for its first content: roles, empty pieces and words that it is
    /// alive are none. What it sends is taken into `splice`.
    ///
    /// # Errors
    /// [`Failure`]; the market has heard of it.
    pub(in crate::client) async fn open(
        self: &Arc<Self>,
        (terms, tab): (&Terms, &Tab),
        choice: &Choice,
        mut splice: Splice,
    ) -> Result<Opened, Failure> {
        let seller = choice.candidate.seller();
        let trial = self.market.begin(seller, &terms.model, terms.endpoint);
        let (mut running, mut piece) = match Box::pin(self.begin((terms, tab), choice)).await {
            Ok(begun) => begun,
            Err(failure) => {
                trial.record(blame(&failure));
                return Err(failure);
            }
        };
        running.tried(trial);
        let mut held = Held::default();
        loop {
            let full = match piece {
                Piece::Data(event) => {
                    let kept = match splice.take(&event) {
                        Ok(taken) if splice.has_content() => {
                            held.events.extend(taken);
                            Ok(true)
                        }
                        Ok(taken) => held.keep(taken),
                        Err(failure) => Err(failure),
                    };
                    match kept {
                        Ok(full) => full,
                        Err(failure) => return Err(running.failed(failure)),
                    }
                }
                Piece::End(end) => match end.fault().or(splice.lacks()) {
                    Some(fault) if !splice.has_content() => {
                        running.close(end, false).await;
                        return Err(Failure::Ended(fault));
                    }
                    _ => {
                        return Ok(Opened {
                            running,
                            events: held.events,
                            splice,
                            end: Some(end),
                        });
                    }
                },
            };
            if full {
                running.begun();
                return Ok(Opened {
                    running,
                    events: held.events,
                    splice,
                    end: None,
                });
            }
            piece = match running.next_by(terms).await {
                Ok(next) => next,
                Err(failure) => return Err(running.failed(failure)),
            };
        }
    }

    /// One seller, with repairs.
    async fn begin(
        self: &Arc<Self>,
        (terms, tab): (&Terms, &Tab),
        choice: &Choice,
    ) -> Result<Begun, Failure> {
        let mut offer = match choice.candidate.source() {
            Source::Peer(offer) => Arc::clone(offer),
            Source::Web(offer) => return self.begin_web((terms, tab), choice, offer).await,
            Source::Record => {
                return Err(PurchaseError::Protocol("it is only known from a record").into());
            }
        };
        let mut repairs = 0;
        loop {
            let failure = match self.buy((terms, tab), choice, &offer).await {
                Ok(begun) => return Ok(begun),
                Err(failure) => failure,
            };
            repairs += 1;
            if repairs > REPAIRS || !self.repair(&failure, &mut offer, terms).await {
                return Err(failure);
            }
        }
    }

    async fn buy(
        self: &Arc<Self>,
        (terms, tab): (&Terms, &Tab),
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
            max_cost: within(tab, choice).await,
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
            tab,
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
        let asked = Instant::now();
        let purchase = Purchase::ask(&self.lines, deal, terms, hold, voucher).await?;
        let work = Work::Peer(Box::new(purchase));
        let what = (terms.model.clone(), terms.endpoint, terms.expected.prompt);
        Running::new(Arc::clone(self), work, what, asked)
            .first()
            .await
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
                    Some(newer) if replaces(terms, &newer, offer) => {
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

/// What a purchase may cost beside what those may charge that were asked before. A document is
/// bought whole or not at all, and so is the beginning of a stream: the wallet says so if there is
/// too little.
async fn within(tab: &Tab, choice: &Choice) -> Amount {
    let until = Instant::now() + LAST_WORD;
    let room = tab.room_for(choice.max_cost, until).await;
    let prices = &choice.candidate.model().prices;
    let least = choice.demand.opening(prices, pricing::FIRST_WINDOW);
    let least = least.unwrap_or(choice.max_cost);
    choice.max_cost.min(room.max(least))
}

/// Whether a request may go on with a newer offer in the place of an older one. The plan was made
/// for the older: a dearer one must be planned anew, and so must one that the request would have
/// left out, or that states less.
fn replaces(terms: &Terms, newer: &Arc<VerifiedOffer>, older: &VerifiedOffer) -> bool {
    let Some(before) = older.offer().model(&terms.model) else {
        return false;
    };
    let Some(after) = Candidate::of(newer, &terms.model, Measured::default()) else {
        return false;
    };
    let model = after.model();
    let states = |feature| model.features.contains(feature);
    newer.hash() != older.hash()
        && model.prices == before.prices
        && before.features.iter().all(states)
        && router::check(terms, &after.goods).is_ok()
}

#[cfg(test)]
mod tests;
