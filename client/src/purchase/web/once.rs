//! Buying from a seller that takes no channel: `upto` where Permit2 may move the payer's tokens,
//! else `exact`. One payment for each purchase, signed after it is on disk, and never a second one
//! for the same purchase: whoever has the first may still take it.

use alloy::primitives::{Address, B256, U256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::ChainError;
use farthing_protocol::payment::scheme::{
    self, ExactAuthorization, Permitted, UptoAuthorization, UptoWitness,
};
use farthing_protocol::payment::{
    Caip2, Exact, Fields, PaymentPayload, PaymentRequired, PaymentRequirements, Upto, VERSION,
    fields,
};
use farthing_protocol::x402::{Network, PERMIT2, Permit, Transfer, UPTO_PROXY};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::channels::ChannelError;
use crate::ledger::once::{Once, OpenOnce};
use crate::ledger::{Scheme, Wish};
use crate::purchase::PurchaseError;
use crate::purchase::web::ask::Unpayable;
use crate::purchase::web::{Paid, Said, Turn, WebDeal, WebPurchase, WebShop, door};
use crate::wallet::Order;
use crate::wallet::once::{OnceHold, SignedOnce};

/// The longest a seller may take to take a payment, whatever it asks for: so long it counts as
/// spent when its answer is lost.
const LONGEST: u64 = 900;

/// A way to pay for one purchase that we take.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::purchase) struct Single {
    requirements: PaymentRequirements,
    kind: Kind,
    required: PaymentRequired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Taken by this account only.
    Upto(Address),
    Exact,
}

impl Single {
    /// The ways in a 402 that name only contracts that we pinned, the better first: `upto` costs
    /// what was used.
    pub(in crate::purchase) fn all(required: &PaymentRequired, network: &Network) -> Vec<Self> {
        let of = |way: &PaymentRequirements| {
            let ours = way.network == Caip2(network.chain_id)
                && way.asset == network.token
                && !way.pay_to.is_zero()
                && !way.amount.is_zero();
            let kind = match way.scheme.as_str() {
                scheme::UPTO => {
                    let facilitator = way.extra_text("facilitatorAddress")?.parse().ok()?;
                    Kind::Upto(facilitator)
                }
                scheme::EXACT => {
                    // By Permit2, or in another domain, it would be another signature.
                    let method = way.extra_text("assetTransferMethod");
                    let named = way.extra_text("name") == Some(network.token_name.as_str())
                        && way.extra_text("version") == Some(network.token_version.as_str());
                    (named && method.is_none_or(|it| it == "eip3009")).then_some(Kind::Exact)?
                }
                _ => return None,
            };
            ours.then(|| Self {
                requirements: way.clone(),
                kind,
                required: required.clone(),
            })
        };
        let mut all: Vec<_> = required.accepts.iter().filter_map(of).collect();
        all.sort_by_key(|single| single.kind == Kind::Exact);
        all
    }

    const fn amount(&self) -> Amount {
        self.requirements.amount
    }

    /// What is signed: valid from now on, for as long as the seller asks, within bounds.
    fn once(&self, payer: Address, now: u64, nonce: B256) -> Once {
        let way = &self.requirements;
        let until = now.saturating_add(way.max_timeout_seconds.min(LONGEST));
        match self.kind {
            Kind::Exact => Once::Exact(Transfer {
                from: payer,
                to: way.pay_to,
                amount: way.amount,
                valid_after: 0,
                valid_before: until,
                nonce,
            }),
            Kind::Upto(facilitator) => Once::Upto(Permit {
                owner: payer,
                token: way.asset,
                ceiling: way.amount,
                nonce: U256::from_be_bytes(nonce.0),
                deadline: until,
                to: way.pay_to,
                facilitator,
                valid_after: 0,
            }),
        }
    }

    fn payload(&self, signed: &SignedOnce) -> PaymentPayload {
        PaymentPayload {
            x402_version: VERSION,
            resource: Some(self.required.resource.clone()),
            accepted: self.requirements.clone(),
            payload: Value::Object(words(signed)),
            extensions: Fields::new(),
        }
    }
}

/// A seller's words, for people.
fn short(words: &str) -> String {
    let words = words.chars().filter(|letter| !letter.is_control());
    words.take(200).collect()
}

fn words(signed: &SignedOnce) -> Fields {
    match signed {
        SignedOnce::Exact(signed) => fields(&Exact {
            signature: signed.signature.to_bytes(),
            authorization: ExactAuthorization {
                from: signed.message.from,
                to: signed.message.to,
                value: signed.message.amount,
                valid_after: signed.message.valid_after,
                valid_before: signed.message.valid_before,
                nonce: signed.message.nonce,
            },
        }),
        SignedOnce::Upto(signed) => fields(&Upto {
            signature: signed.signature.to_bytes(),
            permit2_authorization: UptoAuthorization {
                from: signed.message.owner,
                permitted: Permitted {
                    token: signed.message.token,
                    amount: signed.message.ceiling,
                },
                spender: UPTO_PROXY,
                nonce: signed.message.nonce,
                deadline: signed.message.deadline,
                witness: UptoWitness {
                    to: signed.message.to,
                    facilitator: signed.message.facilitator,
                    valid_after: signed.message.valid_after,
                },
            },
        }),
    }
}

/// What the payer can pay with.
#[derive(Debug, Clone, Copy, Default)]
struct Means {
    balance: Amount,
    /// What Permit2 may move of it.
    allowance: Amount,
}

impl Means {
    /// The first way whose price is within bounds and covered.
    fn pick(
        self,
        payer: Address,
        allowed: Amount,
        singles: Vec<Single>,
    ) -> Result<Single, PurchaseError> {
        let mut why = PurchaseError::from(Unpayable::NoWay);
        for single in singles {
            let amount = single.amount();
            why = if amount > allowed {
                Unpayable::Dear { amount, allowed }.into()
            } else if matches!(single.kind, Kind::Upto(_)) && self.allowance < amount {
                let token = single.requirements.asset;
                Unpayable::Allowance {
                    payer,
                    token,
                    permit2: PERMIT2,
                    amount,
                }
                .into()
            } else if self.balance < amount {
                ChannelError::EmptyWallet {
                    address: payer.to_string(),
                    balance: self.balance,
                    needed: amount,
                }
                .into()
            } else {
                return Ok(single);
            };
        }
        Err(why)
    }
}

/// A payment on its way, for one purchase.
#[derive(Debug)]
pub(in crate::purchase) struct PaidOnce {
    pub(in crate::purchase) hold: OnceHold,
    /// What was signed.
    pub(in crate::purchase) amount: Amount,
    pub(in crate::purchase) scheme: Scheme,
}

impl WebShop {
    /// Buys with a payment made for this purchase alone.
    pub(in crate::purchase) async fn buy_once(
        &self,
        deal: WebDeal,
        singles: Vec<Single>,
        turn: Turn,
    ) -> Result<WebPurchase, PurchaseError> {
        let single = self.choose(&deal, singles).await?;
        let (mut paid, payload) = self.sign(&deal, &single).await?;
        let url = door::url(&deal.offer.base, deal.endpoint)?;
        paid.hold.at_risk();
        let asked = self
            .door
            .ask(url, Some(deal.body.clone()), Some(&payload), deal.first_by);
        let said = match asked.await {
            Err(error @ PurchaseError::Unreached(_)) => {
                paid.hold.unsent().await?;
                return Err(error);
            }
            // Lost or refused, the seller has it and may take it: it counts until its time is over,
            // and nobody else is paid for this purchase.
            Err(error) => return Err(PurchaseError::Taken(error.to_string())),
            Ok(said) => said,
        };
        match said {
            Said::Sold { settlement, body } => Ok(WebPurchase::begin(
                deal,
                Some(Paid::Once(paid)),
                (settlement, body),
                turn,
            )),
            Said::Refused(turned) => {
                let why = String::from_utf8_lossy(&turned.body);
                Err(PurchaseError::Taken(format!(
                    "it answers {} {}",
                    turned.status,
                    short(&why)
                )))
            }
            Said::Asked(required) => {
                let why = required.error.unwrap_or_default();
                let why = format!("it asks for another, {}", short(&why));
                Err(PurchaseError::Taken(why))
            }
        }
    }

    /// The best way whose price is within bounds and that the payer can use, while there is time
    /// to buy by it.
    async fn choose(&self, deal: &WebDeal, singles: Vec<Single>) -> Result<Single, PurchaseError> {
        let wallet = &self.purse.wallet;
        let payer = wallet.payer();
        if !wallet.signs_deposits() {
            return Err(crate::ledger::LedgerError::Elsewhere(payer).into());
        }
        let bound = |single: &Single| single.amount() <= deal.max_cost;
        let means = match singles.iter().any(bound) {
            true => self.means(deal).await?,
            false => Means::default(),
        };
        if Instant::now() >= deal.first_by {
            return Err(PurchaseError::Late("time left to pay"));
        }
        means.pick(payer, deal.max_cost, singles)
    }

    /// What the chain shows of the payer, asked once and no longer than the purchase may wait.
    async fn means(&self, deal: &WebDeal) -> Result<Means, PurchaseError> {
        let (payer, chain) = (self.purse.wallet.payer(), self.purse.channels.chain());
        let read = async {
            Ok::<_, ChainError>(Means {
                balance: chain.token_balance(payer).await?,
                allowance: chain.permit2_allowance(payer).await?,
            })
        };
        let late = || ChainError::Unavailable("it does not answer in a purchase's time".into());
        let read = timeout_at(deal.first_by, read).await;
        let read = read.unwrap_or_else(|_| Err(late()));
        Ok(read.map_err(ChannelError::from)?)
    }

    async fn sign(
        &self,
        deal: &WebDeal,
        single: &Single,
    ) -> Result<(PaidOnce, PaymentPayload), PurchaseError> {
        let wallet = &self.purse.wallet;
        let (now, amount) = (self.purse.clock.now(), single.amount());
        // Nobody can guess a request's name, and no two purchases have the same.
        let nonce = keccak256([b"farthing once".as_slice(), deal.request.0.as_slice()].concat());
        let opened = OpenOnce {
            request: deal.request,
            seller: deal.offer.id,
            url: deal.shown(),
            model: deal.model.clone(),
            once: single.once(wallet.payer(), now.seconds(), nonce),
            at: now,
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
        let (hold, signed) = wallet.once(&opened, order).await?;
        let paid = PaidOnce {
            hold,
            amount,
            scheme: match single.kind {
                Kind::Upto(_) => Scheme::Upto,
                Kind::Exact => Scheme::Exact,
            },
        };
        Ok((paid, single.payload(&signed)))
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::payment::Resource;
    use farthing_protocol::testing;
    use serde_json::json;

    use super::*;

    fn way(scheme: &str, extra: Value) -> PaymentRequirements {
        let network = testing::network();
        let Value::Object(extra) = extra else {
            panic!("an object");
        };
        PaymentRequirements {
            scheme: scheme.to_owned(),
            network: Caip2(network.chain_id),
            amount: Amount::atoms(500),
            asset: network.token,
            pay_to: Address::repeat_byte(1),
            max_timeout_seconds: 60,
            extra,
        }
    }

    fn domain() -> Value {
        let network = testing::network();
        json!({ "name": network.token_name, "version": network.token_version })
    }

    fn upto() -> PaymentRequirements {
        let facilitator = Address::repeat_byte(2).to_checksum(None);
        way(scheme::UPTO, json!({ "facilitatorAddress": facilitator }))
    }

    fn all(accepts: Vec<PaymentRequirements>) -> Vec<Kind> {
        let required = PaymentRequired {
            x402_version: VERSION,
            error: None,
            resource: Resource::default(),
            accepts,
            extensions: Fields::new(),
        };
        let all = Single::all(&required, &testing::network());
        all.into_iter().map(|single| single.kind).collect()
    }

    #[test]
    fn what_costs_less_comes_first_in_whatever_order_it_is_offered() {
        let both = all(vec![way(scheme::EXACT, domain()), upto()]);
        assert_eq!(both, [Kind::Upto(Address::repeat_byte(2)), Kind::Exact]);
    }

    #[test]
    fn a_way_in_other_terms_than_ours_is_no_way() {
        let change = |change: fn(&mut PaymentRequirements)| {
            let mut ways = vec![upto(), way(scheme::EXACT, domain())];
            ways.iter_mut().for_each(change);
            all(ways)
        };
        assert!(change(|way| way.network = Caip2(1)).is_empty());
        assert!(change(|way| way.asset = Address::repeat_byte(9)).is_empty());
        assert!(change(|way| way.pay_to = Address::ZERO).is_empty());
        assert!(change(|way| way.amount = Amount::ZERO).is_empty());
        assert!(change(|way| way.scheme = "gift".to_owned()).is_empty());
        assert!(change(|way| way.extra.clear()).is_empty());
        // A domain that would make it another signature, or another contract's.
        let named = json!({ "name": "Other", "version": "2" });
        assert!(all(vec![way(scheme::EXACT, named)]).is_empty());
        let mut extra = domain();
        extra["assetTransferMethod"] = "permit2".into();
        assert!(all(vec![way(scheme::EXACT, extra)]).is_empty());
    }

    fn costing(kind: Kind, amount: u128) -> Single {
        let mut requirements = upto();
        requirements.amount = Amount::atoms(amount);
        Single {
            requirements,
            kind,
            required: PaymentRequired {
                x402_version: VERSION,
                error: None,
                resource: Resource::default(),
                accepts: Vec::new(),
                extensions: Fields::new(),
            },
        }
    }

    #[test]
    fn regression_a_way_that_the_balance_does_not_cover_leaves_the_cheaper_one() {
        let kind = Kind::Upto(Address::repeat_byte(2));
        let ways = || vec![costing(kind, 500), costing(Kind::Exact, 300)];
        let pick = |balance, allowance| {
            let means = Means {
                balance: Amount::atoms(balance),
                allowance: Amount::atoms(allowance),
            };
            means.pick(Address::ZERO, Amount::atoms(500), ways())
        };
        let picked = |balance, allowance| pick(balance, allowance).expect("is covered").kind;
        assert_eq!(picked(500, 500), kind);
        assert_eq!(picked(499, 500), Kind::Exact);
        assert_eq!(picked(500, 499), Kind::Exact);
        let Err(PurchaseError::Channel(error)) = pick(299, 500) else {
            panic!("nothing is covered");
        };
        assert!(
            matches!(*error, ChannelError::EmptyWallet { needed, .. } if needed == Amount::atoms(300)),
            "{error:?}"
        );
    }

    #[test]
    fn no_seller_gets_more_than_a_quarter_of_an_hour() {
        let mut required = way(scheme::EXACT, domain());
        for (asked, given) in [(60, 60), (u64::MAX, LONGEST)] {
            required.max_timeout_seconds = asked;
            let mut single = costing(Kind::Exact, 500);
            single.requirements = required.clone();
            let once = single.once(Address::repeat_byte(3), 1_000, B256::ZERO);
            assert_eq!(once.until(), 1_000 + given);
        }
    }
}
