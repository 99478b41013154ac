//! The money of a purchase over HTTP: the turn, the deposit, the exact voucher, the correction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::Signed;
use farthing_protocol::identity::NodeId;
use farthing_protocol::payment::{Reason, scheme};
use farthing_protocol::receipt::model_hash;
use farthing_protocol::voucher::Voucher;
use farthing_protocol::x402::ChannelId;
use tokio::time::timeout_at;

use crate::channels::{ChannelError, Channels};
use crate::ledger::{Ledger, PendingDeposit, Want, Wish};
use crate::market::Fee;
use crate::purchase::PurchaseError;
use crate::purchase::web::ask::{Unpayable, Way};
use crate::purchase::web::once::Single;
use crate::purchase::web::own::Slots;
use crate::purchase::web::{Door, Paid, PaidOn, Said, Turn, WebDeal, WebPurchase, door, refused};
use crate::wallet::{Hold, Order, Wallet};

/// How often one purchase is paid anew: after a correction, and after a new price.
const TRIES: u32 = 3;

/// What purchases over HTTP stand on.
#[derive(Debug, Clone)]
pub struct Purse {
    /// The channels.
    pub channels: Arc<Channels>,
    /// The wallet.
    pub wallet: Wallet,
    /// The books.
    pub ledger: Ledger,
    /// The time of day.
    pub clock: Clock,
}

/// Buys from x402 sellers.
#[derive(Debug)]
pub struct WebShop {
    pub(in crate::purchase) purse: Purse,
    pub(in crate::purchase) door: Door,
    /// How each seller was last paid, where its price is the one we reckon: it can be paid
    /// without being asked first.
    known: Mutex<HashMap<NodeId, Way>>,
    /// The slots of those that are ours.
    pub(in crate::purchase) slots: Slots,
}

/// A payment on its way.
struct Made {
    hold: Hold,
    id: ChannelId,
    pending: Option<PendingDeposit>,
    payload: farthing_protocol::payment::PaymentPayload,
    before: Amount,
    given: Given,
}

/// What a purchase has signed so far.
#[derive(Debug, Clone, Copy)]
pub(in crate::purchase) struct Given {
    /// The ceiling that was promised before it.
    earlier: Amount,
    /// The ceiling it has signed.
    ceiling: Amount,
}

impl WebShop {
    /// A shop over these parts.
    ///
    /// # Errors
    /// [`PurchaseError::Protocol`] when there is no HTTP.
    pub fn new(purse: Purse, connect: Duration) -> Result<Self, PurchaseError> {
        Ok(Self {
            purse,
            door: Door::new(connect)?,
            known: Mutex::default(),
            slots: Slots::default(),
        })
    }

    /// Asks, pays, and returns when the answer begins.
    ///
    /// # Errors
    /// [`PurchaseError`]; nothing is charged for a refusal, but where it has a payment for this
    /// purchase alone ([`PurchaseError::Taken`]).
    pub async fn buy(&self, deal: WebDeal) -> Result<WebPurchase, PurchaseError> {
        if let Fee::None(access) = &Arc::clone(&deal.offer).fee {
            return self.ask_own(deal, access).await;
        }
        let turn = self.purse.channels.turn(deal.offer.id).lock_owned();
        let turn = timeout_at(deal.deadline, turn).await;
        let turn = turn.map_err(|_| PurchaseError::Late("turn with this seller"))?;
        let turn = Turn::Alone(turn);
        let mut way = self.remembered(&deal);
        let mut corrected = None;
        let mut given: Option<Given> = None;
        let mut on = None;
        let mut first = way.clone();
        for _ in 0..=TRIES {
            let made = match &way {
                None => None,
                Some(way) => Some(self.pay(&deal, way, corrected).await?),
            };
            given = given.or(made.as_ref().map(|made| made.given));
            on = made.as_ref().map(|made| made.id).or(on);
            let (paid, said) = self.ask(&deal, made).await?;
            match said {
                Said::Sold { settlement, body } => {
                    if let (Some(paid), Some(way)) = (&paid, &way) {
                        self.remember(&deal, way, paid.amount());
                    }
                    return Ok(WebPurchase::begin(deal, paid, (settlement, body), turn));
                }
                Said::Refused(turned) => return Err(refused(turned)),
                Said::Asked(required) => {
                    let network = self.purse.channels.network();
                    let asked = match Way::of(&required, network) {
                        Ok(asked) => asked,
                        Err(unpayable) => {
                            self.forget(deal.offer.id);
                            let singles = Single::all(&required, network);
                            // Who was promised something on a channel is not paid otherwise too.
                            if given.is_some() || singles.is_empty() {
                                return Err(unpayable.into());
                            }
                            return self.buy_once(deal, singles, turn).await;
                        }
                    };
                    if first
                        .as_ref()
                        .is_some_and(|first| !first.same_seller(&asked))
                    {
                        return Err(Unpayable::Terms("payTo, changed in the middle").into());
                    }
                    first.get_or_insert_with(|| asked.clone());
                    let stale = way.as_ref().map(Way::amount) == Some(asked.amount());
                    let behind = asked.required.error.as_deref().and_then(Reason::of);
                    match behind {
                        Some(Reason::BatchMismatch | Reason::BatchBelowClaimed)
                            if corrected.is_none() =>
                        {
                            corrected = Some(self.correct(&asked, on, given).await?);
                        }
                        // Nothing was paid yet, or the price is another one.
                        None if way.is_none() => {}
                        _ if !stale => {}
                        _ => return Err(PurchaseError::Lost(told(&asked))),
                    }
                    way = Some(asked);
                }
            }
        }
        Err(PurchaseError::Protocol("it asks again and again"))
    }

    /// What we know to be the price, without asking.
    fn remembered(&self, deal: &WebDeal) -> Option<Way> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut way = known.get(&deal.offer.id)?.clone();
        way.requirements.amount = deal.reckoned?;
        let url = door::url(&deal.offer.base, deal.endpoint).ok()?;
        way.required.resource.url = url.to_string();
        Some(way)
    }

    fn remember(&self, deal: &WebDeal, way: &Way, amount: Amount) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if deal.reckoned == Some(amount) {
            known.insert(deal.offer.id, way.clone());
        } else {
            known.remove(&deal.offer.id);
        }
    }

    fn forget(&self, seller: NodeId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&seller);
    }

    /// Sets money aside and makes the payment. `base` is the seller's proven counter, if it
    /// differs from ours.
    async fn pay(
        &self,
        deal: &WebDeal,
        way: &Way,
        base: Option<Amount>,
    ) -> Result<Made, PurchaseError> {
        let amount = way.amount();
        if amount > deal.max_cost {
            let allowed = deal.max_cost;
            return Err(Unpayable::Dear { amount, allowed }.into());
        }
        let Purse {
            channels, wallet, ..
        } = &self.purse;
        let (payer, authorizer) = (wallet.payer(), wallet.authorizer());
        let terms = |salt| way.config(payer, authorizer, salt);
        let min = way.extra.min_deposit.unwrap_or_default();
        let filled = channels.fill(deal.offer.id, &terms, amount, min).await;
        let (id, config, pending) = filled?;
        let want = Want {
            channel: id,
            request: deal.request,
            model: model_hash(&deal.model),
            more: amount,
            headroom: Amount::ZERO,
            floor: Amount::ZERO,
        };
        let wish = Wish {
            model: &deal.model,
            seller: deal.offer.id,
            max_cost: amount,
        };
        let order = Order {
            wish,
            endpoint: deal.endpoint,
            body: &deal.body,
            tab: &deal.tab,
        };
        let earlier = self.promised(id);
        let (mut hold, _) = wallet.hold(want, order).await?;
        let before = base.unwrap_or_else(|| self.charged(id));
        let ceiling = before.saturating_add(amount);
        let voucher = hold.exactly(ceiling).await?;
        let deposit = pending.as_ref().map(|pending| &pending.deposit);
        let payload = way.payload(config, &voucher, deposit);
        hold.at_risk();
        Ok(Made {
            hold,
            id,
            pending,
            payload,
            before,
            given: Given { earlier, ceiling },
        })
    }

    async fn ask(
        &self,
        deal: &WebDeal,
        made: Option<Made>,
    ) -> Result<(Option<Paid>, Said), PurchaseError> {
        let url = door::url(&deal.offer.base, deal.endpoint)?;
        let payload = made.as_ref().map(|made| &made.payload);
        let asked = self
            .door
            .ask(url, Some(deal.body.clone()), payload, deal.first_by);
        let said = asked.await;
        let Some(mut made) = made else {
            return Ok((None, said?));
        };
        if matches!(said, Err(PurchaseError::Unreached(_))) {
            made.hold.refused();
        }
        let said = said?;
        if !matches!(said, Said::Sold { .. }) {
            // x402 charges nothing for what it refuses; a counter that says otherwise is
            // corrected only under our own signature.
            made.hold.refused();
            return Ok((None, said));
        }
        if let Some(pending) = &made.pending {
            self.purse.channels.confirm(pending).await?;
        }
        let doubts = self.purse.ledger.doubts(made.id);
        // It took a voucher over exactly our count: it has charged nothing we do not know.
        self.purse.ledger.settle_doubts(made.id, &doubts);
        let paid = PaidOn {
            amount: made.payload.accepted.amount,
            before: made.before,
            hold: made.hold,
        };
        Ok((Some(Paid::Channel(paid)), said))
    }

    fn charged(&self, id: ChannelId) -> Amount {
        let account = self.purse.ledger.account(id);
        account.map_or(Amount::ZERO, |account| account.channel.charged())
    }

    fn promised(&self, id: ChannelId) -> Amount {
        let account = self.purse.ledger.account(id);
        account.map_or(Amount::ZERO, |account| account.channel.ceiling())
    }

    /// Takes over the seller's counter of the channel we have just paid it `on`, if our own
    /// signature proves it: one made before this purchase, for the voucher it has just refused
    /// has bought nothing.
    pub(in crate::purchase) async fn correct(
        &self,
        asked: &Way,
        on: Option<ChannelId>,
        given: Option<Given>,
    ) -> Result<Amount, PurchaseError> {
        let liar = |what| PurchaseError::from(ChannelError::Liar(what));
        let state = asked.extra.channel_state.as_ref();
        let state = state.ok_or_else(|| liar("it corrects a counter and shows none"))?;
        let id = state.channel_id;
        // Another one may be another seller's, whose doubts are not this one's to settle.
        if on != Some(id) {
            return Err(liar("the counter of a channel that it was not paid on"));
        }
        let charged = state
            .charged_cumulative_amount
            .unwrap_or(state.total_claimed);
        let proven = match &asked.extra.voucher_state {
            None => Amount::ZERO,
            Some(voucher) => {
                let ceiling = voucher.signed_max_claimable;
                let signature = scheme::signature(&voucher.signature);
                let signed = signature.map(|signature| Signed {
                    message: Voucher {
                        channel: id,
                        ceiling,
                    },
                    signature,
                });
                let ours = signed.is_some_and(|signed| self.purse.wallet.is_ours(&signed));
                if !ours {
                    return Err(liar("a voucher we did not sign"));
                }
                if given.is_some_and(|given| given.ceiling == ceiling && charged > given.earlier) {
                    return Err(liar("charges for the voucher it refuses"));
                }
                ceiling
            }
        };
        Ok(self.purse.channels.correct(id, charged, proven).await?)
    }
}

fn told(asked: &Way) -> String {
    let why = asked.required.error.clone().unwrap_or_default();
    format!(
        "it does not take the payment: {}",
        why.chars().take(200).collect::<String>()
    )
}
