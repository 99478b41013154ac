//! Those that learn nothing of price: by lot, in turn, and by what sellers state of themselves.

use farthing_protocol::purchase::Load;

use crate::sim::chooser::{Ask, Chooser, Word, least};
use crate::sim::dice::Dice;
use crate::sim::seller::SECOND;

/// Anybody, by lot.
#[derive(Debug)]
pub struct Random;

impl Chooser for Random {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        least(ask, dice, |_| 0.0)
    }
}

/// One after the other, in an order of its own.
#[derive(Debug)]
pub struct RoundRobin {
    order: Vec<usize>,
    next: usize,
}

impl RoundRobin {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize, dice: &mut Dice) -> Self {
        let mut order: Vec<_> = (0..sellers).collect();
        dice.shuffle(&mut order);
        Self { order, next: 0 }
    }
}

impl Chooser for RoundRobin {
    fn choose(&mut self, ask: &Ask<'_>, _: &mut Dice) -> Vec<usize> {
        let sellers = self.order.len();
        let most = ask.most.min(sellers);
        let taken = (0..most).map(|step| self.order[(self.next + step) % sellers]);
        let taken = taken.collect();
        self.next = (self.next + 1) % sellers.max(1);
        taken
    }
}

/// Petals: the least cost of an edge, which is half the way there and back (a running mean of
/// pings), 18 ms, ten seconds where there is no room, and the time that the stated throughput
/// makes of the work. Who fails is banned for 15 s, twice as long each time; when all are banned,
/// none is.
#[derive(Debug)]
pub struct Petals {
    full: Vec<bool>,
    banned: Vec<u64>,
    strikes: Vec<u32>,
}

/// What an edge costs beside its way, in seconds, and where there is no room.
const EDGE: f64 = 0.018;
const NO_ROOM: f64 = 10.0;
/// The first ban.
const BAN: u64 = 15 * SECOND;

impl Petals {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize) -> Self {
        Self {
            full: vec![false; sellers],
            banned: vec![0; sellers],
            strikes: vec![0; sellers],
        }
    }
}

impl Chooser for Petals {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        let board = ask.board;
        let tokens = f64::from(ask.request.max_tokens.min(256));
        let all = self.banned.iter().all(|until| *until > ask.at);
        let weight = |place: usize| {
            if self.banned[place] > ask.at && !all {
                return f64::MAX;
            }
            let way = board.ping[place] / 2000.0;
            let room = if self.full[place] { NO_ROOM } else { 0.0 };
            way + EDGE + room + tokens / board.rate[place]
        };
        least(ask, dice, weight)
    }

    fn load(&mut self, place: usize, load: Load, _: u64) {
        self.full[place] = load.running >= load.slots;
    }

    fn ended(&mut self, place: usize, word: Word, at: u64) {
        match word {
            Word::Served { .. } => {
                self.strikes[place] = 0;
                self.full[place] = false;
            }
            Word::Overtaken(_) => {}
            Word::Busy(_) | Word::Failed | Word::Late => {
                let doubled = 1_u64 << self.strikes[place].min(20);
                self.banned[place] = at + BAN * doubled;
                self.strikes[place] += 1;
            }
        }
    }
}
