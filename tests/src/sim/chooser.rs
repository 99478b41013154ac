//! A way of choosing sellers, as one buyer does it: what it sees, and what it learns.

use farthing_client::policy::Terms;
use farthing_protocol::offer::Prices;
use farthing_protocol::purchase::Load;

use crate::sim::dice::Dice;
use crate::sim::workload::Request;
use crate::sim::world::{World, cost};

/// What everybody can see without buying: offers, and the way to each seller.
#[derive(Debug)]
pub struct Board {
    /// Each seller's prices as it last stated them.
    pub prices: Vec<Prices>,
    /// Slots as stated.
    pub slots: Vec<u32>,
    /// Tokens a second as stated. Offers do not carry it; the rule that asks for it has it.
    pub rate: Vec<f64>,
    /// The way there and back by ping, milliseconds.
    pub ping: Vec<f64>,
}

impl Board {
    /// The board at the beginning of a world.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let sellers = &world.sellers;
        Self {
            prices: sellers.iter().map(|seller| seller.prices_at(0)).collect(),
            slots: sellers.iter().map(|seller| seller.stated_slots).collect(),
            rate: sellers.iter().map(|seller| seller.stated_rate).collect(),
            ping: sellers.iter().map(|seller| seller.rtt).collect(),
        }
    }

    /// How many sellers there are.
    #[must_use]
    pub const fn sellers(&self) -> usize {
        self.prices.len()
    }

    /// What a request is expected to cost at a seller. As long as nobody knows an answer's length,
    /// it is taken for what is usual.
    #[must_use]
    pub fn expected_cost(&self, request: &Request, place: usize) -> f64 {
        let output = request.max_tokens.min(USUAL_OUTPUT);
        cost(request.prompt, output, &self.prices[place]).max(1.0)
    }
}

/// Tokens of an answer where nothing limits it: the same as the client's.
const USUAL_OUTPUT: u32 = 256;

/// What a chooser is told of an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Word {
    /// The whole answer came.
    Served {
        /// Milliseconds to the first token.
        first: f64,
        /// Milliseconds to the end.
        elapsed: f64,
        /// Tokens.
        tokens: u32,
    },
    /// "Busy", with the milliseconds to wait if it named them.
    Busy(Option<u64>),
    /// It did not work.
    Failed,
    /// A deadline passed.
    Late,
    /// Another was first, and nobody waits for it any more; so many milliseconds were waited.
    Overtaken(f64),
}

/// One buyer's way of choosing.
pub trait Chooser {
    /// Whom to try for a request, the first first; at most `most`.
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize>;

    /// After how many microseconds the next of the last choice is asked beside each; none, or no
    /// place, where one is asked after the other.
    fn hedge(&mut self, _terms: &Terms) -> Vec<Option<u64>> {
        Vec::new()
    }

    /// That time has come: whether the next is asked.
    fn hedges(&mut self) -> bool {
        false
    }

    /// An attempt begins at a seller.
    fn began(&mut self, _place: usize, _at: u64) {}

    /// A seller has taken a request and says how busy it is.
    fn load(&mut self, _place: usize, _load: Load, _at: u64) {}

    /// An attempt has ended.
    fn ended(&mut self, _place: usize, _word: Word, _at: u64) {}
}

/// What is asked of a chooser.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The request.
    pub request: &'a Request,
    /// The same as a client sees it.
    pub terms: &'a Terms,
    /// The board.
    pub board: &'a Board,
    /// When.
    pub at: u64,
    /// How many sellers are wanted.
    pub most: usize,
}

/// The `most` places of least weight, the least first; equals by lot.
#[must_use]
pub fn least(ask: &Ask<'_>, dice: &mut Dice, weight: impl Fn(usize) -> f64) -> Vec<usize> {
    let weighed = (0..ask.board.sellers()).map(|place| (weight(place), dice.any(), place));
    let mut weighed: Vec<_> = weighed.collect();
    let by = |a: &(f64, u64, usize), b: &(f64, u64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let most = ask.most.min(weighed.len());
    if most < weighed.len() {
        weighed.select_nth_unstable_by(most, by);
        weighed.truncate(most);
    }
    weighed.sort_unstable_by(by);
    weighed.into_iter().map(|(_, _, place)| place).collect()
}

/// `most` places drawn one after the other, each with the chance that its share gives it among
/// those that are left.
#[must_use]
pub fn drawn(ask: &Ask<'_>, dice: &mut Dice, share: impl Fn(usize) -> f64) -> Vec<usize> {
    // The first of many exponential clocks rings with just that chance.
    let mut clocks = vec![0.0; ask.board.sellers()];
    for (place, clock) in clocks.iter_mut().enumerate() {
        *clock = dice.exponential(1.0) / share(place).max(f64::MIN_POSITIVE);
    }
    least(ask, dice, |place| clocks[place])
}
