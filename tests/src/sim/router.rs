//! The client's own market and router, as one buyer of the simulation: the only file here that
//! knows how they are called.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farthing_client::config::Config;
use farthing_client::market::{Goods, Market, Outcome, Served, Trial, Wanted};
use farthing_client::policy::{Deadlines, Terms};
use farthing_client::router::hedge::{self, Allowance};
use farthing_client::router::{self, Choice, patience};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Clock;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::purchase::{Endpoint, Load};
use farthing_protocol::testing;

use crate::sim::chooser::{Ask, Chooser, Word};
use crate::sim::dice::Dice;
use crate::sim::workload::Request;
use crate::sim::world::{MODEL, World};

/// Bytes of text for a token of a prompt.
const BYTES_PER_TOKEN: usize = 4;

/// Who is who: the places of the sellers by their names.
pub type Places = Arc<HashMap<NodeId, usize>>;

/// The places of a world's sellers.
#[must_use]
pub fn places(world: &World) -> Places {
    let named = |place| (world.id(place), place);
    Arc::new((0..world.sellers.len()).map(named).collect())
}

/// A request as a client sees it: a body to send, and its terms.
///
/// # Panics
/// Never: the body is one that the policy accepts.
#[must_use]
pub fn terms(request: &Request, config: &Config) -> Terms {
    let text = "lore".repeat(request.prompt as usize * BYTES_PER_TOKEN / 4);
    let body = format!(
        r#"{{"model":"{MODEL}","stream":true,"max_tokens":{},"messages":[{{"role":"user","content":"{text}"}}]}}"#,
        request.max_tokens
    );
    Terms::of(Endpoint::Chat, &Bytes::from(body), config).expect("a body that is in order")
}

/// One buyer's market: what was measured there, for whoever chooses.
#[derive(Debug, Clone)]
pub struct Stall {
    market: Market,
}

impl Stall {
    /// An empty one, whose order among equals is its own.
    #[must_use]
    pub fn new(clock: Clock, salt: u64) -> Self {
        let market = Market::salted(testing::network(), clock, salt);
        Self { market }
    }

    /// Hears an offer.
    pub fn hear(&self, offer: &Arc<VerifiedOffer>) {
        self.market.take(Arc::clone(offer));
    }

    /// How long a seller is waited for, by what this buyer has measured of it: the client's rule.
    #[must_use]
    pub fn patience(&self, terms: &Terms, seller: NodeId, is_last: bool) -> Deadlines {
        let only = |goods: &Goods| goods.seller == seller;
        let found = self.market.look(&Wanted {
            model: MODEL,
            endpoint: terms.endpoint,
            seed: 0,
            warm: Some(seller),
            admits: &only,
            names: None,
        });
        let mut found = found.iter().filter(|found| found.seller() == seller);
        let measured = found
            .next()
            .map(|found| *found.measured)
            .unwrap_or_default();
        patience::of(terms, &measured, is_last)
    }

    /// Begins a purchase.
    #[must_use]
    pub fn begin(&self, seller: NodeId) -> Purchase {
        Purchase(self.market.begin(seller, MODEL, Endpoint::Chat))
    }
}

/// A purchase under way, as the market counts it.
#[derive(Debug)]
pub struct Purchase(Trial);

impl Purchase {
    /// The seller said how busy it is.
    pub fn load(&self, load: Load) {
        self.0.load(load);
    }

    /// Its first token is here.
    pub fn answered(&self) {
        self.0.answered();
    }

    /// It has ended, after a prompt of so many tokens, and cost so many micro-atoms.
    pub fn ended(self, word: Word, prompt: u32, charged: f64) {
        let millis = |millis: f64| Duration::from_secs_f64(millis / 1000.0);
        let outcome = match word {
            Word::Served {
                first,
                elapsed,
                tokens,
            } => Outcome::Served(Served {
                first_token: Some(millis(first)),
                elapsed: millis(elapsed),
                // Tokens come at an even pace here.
                longest_gap: millis((elapsed - first) / f64::from(tokens.max(1))),
                prompt,
                tokens,
                charged: Amount::atoms((charged / 1e6) as u128),
            }),
            Word::Busy(wait) => Outcome::Busy {
                retry_after: Duration::from_millis(wait.unwrap_or(0)),
            },
            Word::Failed | Word::Late => Outcome::Failed,
            Word::Overtaken(waited) => Outcome::Overtaken {
                waited: millis(waited),
                prompt,
            },
        };
        self.0.record(outcome);
    }
}

/// The router, choosing for one buyer.
#[derive(Debug)]
pub struct Router {
    market: Market,
    places: Places,
    /// Hedges for a hundred requests.
    share: u8,
    allowance: Allowance,
    /// Those of the last plan.
    choices: Vec<Choice>,
}

impl Router {
    /// A router over a buyer's market, with the default settings.
    #[must_use]
    pub fn new(stall: &Stall, places: &Places) -> Self {
        Self {
            market: stall.market.clone(),
            places: Arc::clone(places),
            share: Config::default().router.hedge,
            allowance: Allowance::default(),
            choices: Vec::new(),
        }
    }

    /// The same, but for hedges: one seller after the other.
    #[must_use]
    pub fn one_by_one(self) -> Self {
        Self { share: 0, ..self }
    }
}

impl Chooser for Router {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        let seed = dice.any();
        let candidates = router::look(&self.market, ask.terms, seed);
        let plan = router::plan(ask.terms, candidates, seed);
        self.choices = plan.choices;
        let sellers = self.choices.iter().take(ask.most);
        let sellers = sellers.map(|choice| choice.candidate.seller());
        sellers
            .filter_map(|seller| self.places.get(&seller).copied())
            .collect()
    }

    fn hedge(&mut self, terms: &Terms) -> Vec<Option<u64>> {
        self.allowance.earn(self.share);
        let micros = |wait: Duration| u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let after = |pair: &[Choice]| hedge::after(terms, &pair[0], &pair[1]).map(micros);
        let pairs = self.choices.windows(2).filter(|_| self.share > 0);
        pairs.map(after).collect()
    }

    fn hedges(&mut self) -> bool {
        self.allowance.take()
    }
}
