//! The world of a simulation: its sellers, made from a seed, and what they state in public.
//!
//! Four in five sellers are honest, which still means crashes, queues and a heavy tail. The others
//! are bad, in equal shares of each [`Kind`].

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::EvmSignature;
use farthing_protocol::identity::{NodeId, NodeKey};
use farthing_protocol::offer::{
    MAX_LIFETIME, ModelOffer, Offer, Prices, SellerBinding, SignedOffer, VerifiedOffer,
};
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Endpoint, Usage};
use farthing_protocol::testing;

use crate::sim::dice::Dice;
use crate::sim::seller::{Kind, MILLI, Outage, SECOND, Seller};
use crate::sim::workload::{self, Demand, Request};

/// The one model that all sell.
pub const MODEL: &str = "sim/model";
/// The date on which virtual time begins.
const EPOCH: u64 = 1_700_000_000_000;
/// The middle price of an answer's token, micro-atoms, and how widely prices spread.
const PRICE: (f64, f64) = (500_000.0, 0.45);
/// A prompt's token costs this share of it.
const INPUT_SHARE: f64 = 0.25;
/// How much of a seller's speed shows in its price.
const PRICE_OF_SPEED: f64 = 0.25;
/// Milliseconds per token: the middle, and how widely sellers spread.
const PER_TOKEN: (f64, f64) = (18.0, 0.4);
/// Milliseconds to the first token, the same.
const FIRST: (f64, f64) = (250.0, 0.5);
/// Milliseconds for a prompt's token, the same.
const PREFILL: (f64, f64) = (0.15, 0.4);
/// Milliseconds of the way there and back, the same.
const RTT: (f64, f64) = (60.0, 0.6);
/// The share of sellers that state twice the slots they have.
const CROWDED: f64 = 0.25;
/// Seconds up and down of an honest seller, on average.
const UPTIME: (f64, f64) = (7200.0, 90.0);
/// Seconds up and down of a flapping one.
const FLAPPING: (f64, f64) = (20.0, 20.0);
/// Seconds between two moves of a price, on average, and how far each goes.
const REPRICE: (f64, f64) = (1200.0, 0.15);

/// How large a world is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Sellers.
    pub sellers: usize,
    /// The share of them that is bad.
    pub bad: f64,
    /// What is asked of them.
    pub demand: Demand,
}

/// Sellers, requests, and the seed they are from.
#[derive(Debug)]
pub struct World {
    /// The seed.
    pub seed: u64,
    /// Its size.
    pub size: Size,
    /// The sellers.
    pub sellers: Vec<Seller>,
    /// All requests, in the order of time.
    pub requests: Vec<Request>,
    /// What a middling honest seller takes: the unit in which costs and times are compared.
    pub yardstick: Yardstick,
    bindings: Vec<EvmSignature>,
}

/// A middling honest seller: what a request is reckoned to cost and take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yardstick {
    /// Prices.
    pub prices: Prices,
    /// Milliseconds to the first token of an empty prompt.
    pub first: f64,
    /// Milliseconds per token of the prompt.
    pub prefill: f64,
    /// Milliseconds per token of the answer.
    pub per_token: f64,
}

impl Yardstick {
    /// Micro-atoms for a request.
    #[must_use]
    pub fn cost(&self, request: &Request) -> f64 {
        cost(request.prompt, request.output, &self.prices)
    }

    /// Milliseconds for a request, to its end.
    #[must_use]
    pub fn millis(&self, request: &Request) -> f64 {
        let rest = request.output.saturating_sub(1);
        self.first + self.prefill * f64::from(request.prompt) + self.per_token * f64::from(rest)
    }
}

/// What so many tokens cost, in micro-atoms.
#[must_use]
pub fn cost(prompt: u32, completion: u32, prices: &Prices) -> f64 {
    let usage = Usage {
        prompt,
        cached: 0,
        completion,
    };
    let cost = pricing::cost(&usage, prices).expect("prices of the simulation are small");
    cost.get() as f64
}

/// The date at a moment of virtual time.
#[must_use]
pub const fn date(at: u64) -> Timestamp {
    Timestamp(EPOCH + at / MILLI)
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64, size: Size) -> Self {
        let bad = (size.sellers as f64 * size.bad).round() as usize;
        let end = size.demand.seconds * SECOND;
        let kind = |place: usize| match place.checked_sub(size.sellers - bad) {
            None => Kind::Honest,
            Some(place) => match Kind::BAD[place % Kind::BAD.len()] {
                // Of two in their share, one names a wait.
                Kind::Limiter if (place / Kind::BAD.len()) % 2 == 1 => Kind::SilentLimiter,
                kind => kind,
            },
        };
        let make = |place| seller(seed, place, kind(place), end);
        let sellers: Vec<_> = (0..size.sellers).map(make).collect();
        let claim = testing::evm_key(1);
        let bind = |seller: &Seller| {
            let binding = SellerBinding {
                node: seller.key.id(),
                payout: testing::payout(),
                claim: claim.address(),
            };
            binding.sign(&testing::network(), &claim)
        };
        Self {
            seed,
            size,
            bindings: sellers.iter().map(bind).collect(),
            yardstick: yardstick(),
            requests: workload::requests(seed, &size.demand),
            sellers,
        }
    }

    /// When a seller states its offer anew: at the start, when a price moves, and before it
    /// expires.
    #[must_use]
    pub fn announcements(&self, place: usize) -> Vec<u64> {
        let end = self.size.demand.seconds * SECOND;
        let renew = u64::try_from(MAX_LIFETIME.as_micros()).unwrap_or(u64::MAX) / 2;
        let mut at = Vec::new();
        for (from, _) in &self.sellers[place].prices {
            while let Some(last) = at.last().copied().filter(|last| last + renew < *from) {
                at.push(last + renew);
            }
            at.push(*from);
        }
        while let Some(last) = at.last().copied().filter(|last| last + renew < end) {
            at.push(last + renew);
        }
        at
    }

    /// A seller's offer as it is stated at a time, signed and checked.
    #[must_use]
    pub fn offer(&self, place: usize, at: u64) -> Arc<VerifiedOffer> {
        let seller = &self.sellers[place];
        let network = testing::network();
        let offer = Offer {
            seller: self.id(place),
            seq: at + 1,
            issued: date(at),
            expires: date(at).plus(MAX_LIFETIME),
            chain_id: network.chain_id,
            settlement: network.settlement,
            token: network.token,
            payout: testing::payout(),
            claim: testing::evm_key(1).address(),
            withdraw_delay: 86_400,
            min_deposit: Amount::atoms(1000),
            models: vec![model(seller, seller.prices_at(at))],
            region: None,
            data_policy: Some("none".into()),
            addresses: Vec::new(),
            binding: self.bindings[place],
        };
        let signed = SignedOffer::sign(&offer, &seller.key).expect("it is small");
        Arc::new(signed.verify(&network, date(at)).expect("it is in order"))
    }

    /// A seller's name.
    #[must_use]
    pub fn id(&self, place: usize) -> NodeId {
        self.sellers[place].key.id()
    }

    /// How long the world lasts.
    #[must_use]
    pub const fn length(&self) -> Duration {
        Duration::from_secs(self.size.demand.seconds)
    }
}

fn model(seller: &Seller, prices: Prices) -> ModelOffer {
    ModelOffer {
        id: MODEL.into(),
        endpoints: Endpoint::ALL.to_vec(),
        features: vec!["assistant-prefix".into()],
        context: 131_072,
        max_output: 8192,
        quantization: None,
        weights_digest: None,
        prices,
        slots: seller.stated_slots,
    }
}

fn yardstick() -> Yardstick {
    Yardstick {
        prices: prices(PRICE.0),
        first: RTT.0 + FIRST.0,
        prefill: PREFILL.0,
        per_token: PER_TOKEN.0,
    }
}

fn prices(output: f64) -> Prices {
    let price = |value: f64| Price(value.max(1.0) as u64);
    Prices {
        input: price(output * INPUT_SHARE),
        cached_input: price(output * INPUT_SHARE),
        output: price(output),
        request: Price(0),
    }
}

fn seller(seed: u64, place: usize, kind: Kind, end: u64) -> Seller {
    let mut dice = Dice::of(seed, &[0x5e, place as u64]);
    let mut bytes = [0_u8; 32];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&dice.any().to_le_bytes());
    }
    let per_token = dice.log_normal(PER_TOKEN.0, PER_TOKEN.1);
    let speed = PER_TOKEN.0 / per_token;
    let own = dice.log_normal(PRICE.0, PRICE.1) * speed.powf(PRICE_OF_SPEED);
    let base = match kind {
        Kind::Magnet => PRICE.0 * 0.2,
        Kind::Liar => PRICE.0 * 0.35,
        _ => own,
    };
    let stated = 2_u32 << dice.below(4);
    // A node turns away whom it has no slot for. Where it states more slots than its model server
    // has, they wait behind it.
    let crowded = dice.chance(CROWDED);
    let slots = if crowded { stated / 2 } else { stated };
    let fast = matches!(kind, Kind::Liar | Kind::Magnet);
    let up_down = match kind {
        Kind::Stale => None,
        Kind::Flapping => Some(FLAPPING),
        _ => Some(UPTIME),
    };
    Seller {
        kind,
        key: NodeKey::from_seed(&bytes),
        rtt: dice.log_normal(RTT.0, RTT.1),
        first: dice.log_normal(FIRST.0, FIRST.1),
        prefill: dice.log_normal(PREFILL.0, PREFILL.1),
        per_token,
        slots,
        queue: stated - slots,
        stated_slots: if fast { 64 } else { stated },
        stated_rate: if fast { 250.0 } else { 1000.0 / per_token },
        outages: outages(&mut dice, up_down, end),
        prices: moves(&mut dice, base, end),
    }
}

fn outages(dice: &mut Dice, up_down: Option<(f64, f64)>, end: u64) -> Vec<Outage> {
    let Some((up, down)) = up_down else {
        let silent = dice.chance(0.5);
        return vec![Outage {
            from: 0,
            until: u64::MAX,
            silent,
        }];
    };
    let mut outages = Vec::new();
    let second = SECOND as f64;
    let mut at = dice.exponential(up) * second;
    while at < end as f64 {
        let until = at + dice.exponential(down) * second;
        outages.push(Outage {
            from: at as u64,
            until: until as u64,
            silent: dice.chance(0.3),
        });
        at = until + dice.exponential(up) * second;
    }
    outages
}

fn moves(dice: &mut Dice, base: f64, end: u64) -> Vec<(u64, Prices)> {
    let mut moves = vec![(0, prices(base))];
    let (mean, spread) = REPRICE;
    let mut at = dice.exponential(mean) * SECOND as f64;
    while at < end as f64 {
        moves.push((at as u64, prices(dice.log_normal(base, spread))));
        at += dice.exponential(mean) * SECOND as f64;
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> Size {
        Size {
            sellers: 100,
            bad: 0.2,
            demand: Demand {
                buyers: 2,
                rate: 1.0,
                seconds: 1800,
            },
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_world() {
        let draw = |seed| format!("{:?}", World::new(seed, size()).sellers);
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }

    #[test]
    fn one_in_five_sellers_is_bad_in_each_of_the_named_ways() {
        let world = World::new(1, size());
        let count = |kind| world.sellers.iter().filter(|s| s.kind == kind).count();
        assert_eq!(count(Kind::Honest), 80);
        assert_eq!((count(Kind::Limiter), count(Kind::SilentLimiter)), (1, 1));
        let others = Kind::BAD.iter().filter(|kind| **kind != Kind::Limiter);
        assert!(others.into_iter().all(|kind| count(*kind) == 2));
    }

    #[test]
    fn an_offer_is_renewed_before_it_expires() {
        let world = World::new(2, size());
        let life = MAX_LIFETIME.as_micros() as u64;
        for place in 0..world.sellers.len() {
            let stated = world.announcements(place);
            assert_eq!(stated[0], 0);
            assert!(stated.windows(2).all(|pair| pair[1] - pair[0] < life));
            let last = stated.last().expect("there is a first");
            assert!(last + life > 1800 * SECOND);
            assert_eq!(world.offer(place, *last).offer().seller, world.id(place));
        }
    }
}
