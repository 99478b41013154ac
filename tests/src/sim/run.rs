//! One run of a world: every request of every buyer, under one way of choosing.
//!
//! Virtual time: events in order, nothing waits. What a client does around the choice is the same
//! for every way: so many sellers before the first token, the same deadlines, and a broken stream
//! is continued by the next seller.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use farthing_protocol::clock::Clock;
use tokio::time::Instant;

use crate::sim::chooser::{Ask, Board, Chooser, Word};
use crate::sim::dice::Dice;
use crate::sim::figures::{Answer, Figures};
use crate::sim::oracle::{self, Sight};
use crate::sim::router::{self, Places, Purchase, Router, Stall};
use crate::sim::seller::{Fate, How, MILLI, Work};
use crate::sim::shop::{Door, Shop};
use crate::sim::ways::Way;
use crate::sim::world::{World, cost, date};

/// How often a broken stream is continued.
const RESCUES: u32 = 2;

/// How many sellers may say that they are busy before that counts as a try. It costs one way there
/// and back.
const PASSES: u32 = 8;

/// What a client does around a choice.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Sellers tried before the first token.
    pub attempts: u32,
    /// Microseconds for a connection.
    pub connect: u64,
    /// Microseconds to the first token.
    pub first_token: u64,
    /// Microseconds between two tokens.
    pub idle: u64,
}

impl Default for Rules {
    fn default() -> Self {
        let deadlines = router::deadlines();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            attempts: router::attempts(),
            connect: micros(deadlines.connect),
            first_token: micros(deadlines.first_token),
            idle: micros(deadlines.idle),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Announce(usize),
    First(usize),
    End(usize),
    Late(usize),
    Arrive(usize),
}

/// How a buyer comes to its choice.
enum Mind {
    Blind(Box<dyn Chooser>),
    Seer(Sight),
}

struct Buyer {
    stall: Stall,
    mind: Mind,
    dice: Dice,
}

/// A request under way.
#[derive(Debug, Default)]
struct Order {
    plan: Vec<usize>,
    next: usize,
    tried: u32,
    passed: u32,
    rescued: u32,
    delivered: u32,
    first: Option<u64>,
    paid: f64,
}

#[derive(Debug)]
struct Attempt {
    order: usize,
    place: usize,
    asked: u64,
    door: Door,
    fate: Option<Fate>,
    answered: bool,
    over: bool,
    trial: Option<Purchase>,
    prompt: u32,
    tokens: u32,
}

/// The state of a run.
pub struct Run<'a> {
    world: &'a World,
    rules: Rules,
    way: Way,
    clock: Clock,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    board: Board,
    shops: Vec<Shop>,
    buyers: Vec<Buyer>,
    orders: Vec<Order>,
    attempts: Vec<Attempt>,
    figures: Figures,
}

impl<'a> Run<'a> {
    /// A run that is about to begin.
    #[must_use]
    pub fn new(world: &'a World, way: Way, rules: Rules) -> Self {
        let clock = Clock::manual(date(0));
        let places = router::places(world);
        let buyers = 0..world.size.demand.buyers;
        let mut run = Self {
            world,
            rules,
            way,
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            board: Board::new(world),
            shops: world.sellers.iter().map(|_| Shop::default()).collect(),
            buyers: buyers
                .map(|place| buyer(world, way, place, (&clock, &places)))
                .collect(),
            orders: world.requests.iter().map(|_| Order::default()).collect(),
            attempts: Vec::new(),
            figures: Figures::new(way),
            clock,
        };
        for place in 0..world.sellers.len() {
            for at in world.announcements(place) {
                run.at(at, Event::Announce(place));
            }
        }
        for (order, request) in world.requests.iter().enumerate() {
            run.at(request.at, Event::Arrive(order));
        }
        run
    }

    /// Runs it to the end.
    #[must_use]
    pub fn finish(mut self) -> Figures {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            let late = date(at).since(self.clock.now());
            self.clock.advance(late);
            match event {
                Event::Announce(place) => self.announce(place),
                Event::Arrive(order) => self.arrive(order),
                Event::First(attempt) => self.first(attempt),
                Event::End(attempt) => self.end(attempt),
                Event::Late(attempt) => self.late(attempt),
            }
        }
        for (seller, shop) in self.world.sellers.iter().zip(&self.shops) {
            self.figures.seller(seller, shop);
        }
        self.figures
    }

    fn at(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    fn announce(&mut self, place: usize) {
        self.board.prices[place] = self.world.sellers[place].prices_at(self.now);
        if self.way != Way::Farthing {
            return;
        }
        let offer = self.world.offer(place, self.now);
        for buyer in &self.buyers {
            buyer.stall.hear(&offer);
        }
    }

    fn arrive(&mut self, order: usize) {
        let request = &self.world.requests[order];
        let buyer = &mut self.buyers[request.buyer];
        // Who fails before the first token, and who breaks off after it.
        let most = (self.rules.attempts + PASSES + RESCUES) as usize;
        let ask = Ask {
            request,
            board: &self.board,
            at: self.now,
            most,
        };
        let plan = match &mut buyer.mind {
            Mind::Blind(chooser) => {
                chooser.prepare(request);
                let began = Instant::now();
                let plan = chooser.choose(&ask, &mut buyer.dice);
                self.figures.decided(began.elapsed());
                plan
            }
            Mind::Seer(sight) => oracle::choose(*sight, self.world, &self.shops, request, most),
        };
        self.orders[order].plan = plan;
        self.next(order);
    }

    /// Tries the next seller, if one is left.
    fn next(&mut self, order: usize) {
        let state = &mut self.orders[order];
        let spent = match state.first {
            None => state.tried >= self.rules.attempts,
            Some(_) => state.rescued >= RESCUES,
        };
        let Some(place) = state.plan.get(state.next).copied().filter(|_| !spent) else {
            return self.close(order, false);
        };
        state.next += 1;
        if state.first.is_some() {
            state.rescued += 1;
        } else {
            state.tried += 1;
        }
        self.ask(order, place);
    }

    fn ask(&mut self, order: usize, place: usize) {
        let request = &self.world.requests[order];
        let delivered = self.orders[order].delivered;
        let seller = &self.world.sellers[place];
        let door = self.shops[place].door(seller, self.now);
        let buyer = &mut self.buyers[request.buyer];
        let trial = buyer.stall.begin(self.world.id(place));
        if let Mind::Blind(chooser) = &mut buyer.mind {
            chooser.began(place, self.now);
        }
        let attempt = self.attempts.len();
        self.attempts.push(Attempt {
            order,
            place,
            asked: self.now,
            door,
            fate: None,
            answered: false,
            over: false,
            trial: Some(trial),
            prompt: request.prompt + delivered,
            tokens: request.output - delivered,
        });
        let there_and_back = (seller.rtt * MILLI as f64) as u64;
        match door {
            Door::Refused | Door::Busy(_) => {
                self.at(self.now + there_and_back, Event::End(attempt))
            }
            Door::Silent => self.at(self.now + self.rules.connect, Event::End(attempt)),
            Door::Free | Door::Queue => self.enter(attempt, door),
        }
    }

    fn enter(&mut self, attempt: usize, door: Door) {
        let Attempt { place, order, .. } = self.attempts[attempt];
        self.at(self.now + self.rules.first_token, Event::Late(attempt));
        self.shops[place].enter(self.now);
        if door == Door::Free {
            self.work(attempt);
        } else {
            self.shops[place].wait(attempt);
        }
        let load = self.shops[place].load(&self.world.sellers[place]);
        if let Some(trial) = &self.attempts[attempt].trial {
            trial.load(load);
        }
        let buyer = &mut self.buyers[self.world.requests[order].buyer];
        if let Mind::Blind(chooser) = &mut buyer.mind {
            chooser.load(place, load, self.now);
        }
    }

    /// A seller begins to work on an attempt.
    fn work(&mut self, attempt: usize) {
        let state = &mut self.attempts[attempt];
        let shop = &mut self.shops[state.place];
        let work = Work {
            seed: self.world.seed,
            request: &self.world.requests[state.order],
            place: state.place as u64,
            prompt: state.prompt,
            tokens: state.tokens,
        };
        let beside = shop.running() as u32;
        let fate = self.world.sellers[state.place].fate(&work, self.now, beside);
        state.fate = Some(fate);
        let late = state.asked + self.rules.first_token;
        // What falls silent is noticed only after a while.
        let end = match (fate.how, fate.first) {
            (How::Silent, None) => late,
            (How::Silent, Some(_)) => fate.end.saturating_add(self.rules.idle),
            _ => fate.end,
        };
        shop.begin(attempt, end);
        if let Some(first) = fate.first {
            self.at(first, Event::First(attempt));
        }
        if fate.how != How::Silent || fate.first.is_some() {
            self.at(end, Event::End(attempt));
        }
    }

    fn first(&mut self, attempt: usize) {
        let state = &mut self.attempts[attempt];
        if state.over {
            return;
        }
        state.answered = true;
        if let Some(trial) = &state.trial {
            trial.answered();
        }
        self.orders[state.order].first.get_or_insert(self.now);
    }

    fn late(&mut self, attempt: usize) {
        if !self.attempts[attempt].answered {
            self.fail(attempt, Word::Late);
        }
    }

    fn end(&mut self, attempt: usize) {
        let state = &self.attempts[attempt];
        if state.over {
            return;
        }
        let since = |from: u64| (self.now - from) as f64 / MILLI as f64;
        let word = match (state.door, state.fate) {
            (Door::Refused, _) => Word::Failed,
            (Door::Silent, _) => Word::Late,
            (Door::Busy(wait), _) => Word::Busy(wait.map(|wait| wait / MILLI)),
            (_, Some(fate)) if fate.how == How::Done => {
                let first = fate.first.unwrap_or(self.now);
                Word::Served {
                    first: since(state.asked) - since(first),
                    elapsed: since(state.asked),
                    tokens: state.tokens,
                }
            }
            (_, Some(fate)) if fate.how == How::Silent => Word::Late,
            _ => Word::Failed,
        };
        if matches!(word, Word::Served { .. }) {
            let order = state.order;
            self.release(attempt, word);
            return self.close(order, true);
        }
        self.fail(attempt, word);
    }

    fn fail(&mut self, attempt: usize, word: Word) {
        if self.attempts[attempt].over {
            return;
        }
        let order = self.attempts[attempt].order;
        self.release(attempt, word);
        let state = &mut self.orders[order];
        if matches!(word, Word::Busy(_)) && state.first.is_none() && state.passed < PASSES {
            state.passed += 1;
            state.tried -= 1;
        }
        self.next(order);
    }

    /// An attempt is over: it is paid for what it delivered, its slot is free, and whoever chose
    /// it is told.
    fn release(&mut self, attempt: usize, word: Word) {
        let state = &mut self.attempts[attempt];
        state.over = true;
        let place = state.place;
        let seller = &self.world.sellers[place];
        let fate = state.fate.filter(|_| state.answered);
        let delivered = fate.map_or(0, |fate| fate.tokens);
        let mut paid = 0.0;
        if delivered > 0 {
            let prices = seller.prices_at(state.asked);
            paid = cost(state.prompt, delivered, &prices) * seller.surcharge();
        }
        let order = &mut self.orders[state.order];
        order.paid += paid;
        order.delivered += delivered;
        if let Some(trial) = state.trial.take() {
            trial.ended(word, state.prompt, paid);
        }
        let buyer = &mut self.buyers[self.world.requests[state.order].buyer];
        if let Mind::Blind(chooser) = &mut buyer.mind {
            chooser.ended(place, word, self.now);
        }
        let shop = &mut self.shops[place];
        shop.tokens += u64::from(delivered);
        shop.served += u64::from(matches!(word, Word::Served { .. }));
        if let Some(next) = shop.leave(attempt) {
            self.work(next);
        }
    }

    /// A request is over.
    fn close(&mut self, order: usize, whole: bool) {
        let state = &mut self.orders[order];
        let request = &self.world.requests[order];
        let millis = |at: u64| (at - request.at) as f64 / MILLI as f64;
        let elapsed = millis(self.now);
        self.figures.answer(Answer {
            at: request.at,
            buyer: request.buyer,
            whole,
            first: state.first.map(millis),
            elapsed,
            paid: state.paid,
            reckoned: self.world.yardstick.cost(request),
            value: oracle::objective(self.world, request, state.paid, elapsed),
            tried: state.tried,
            rescued: state.rescued,
        });
        state.plan = Vec::new();
    }
}

fn buyer(world: &World, way: Way, place: usize, (clock, places): (&Clock, &Places)) -> Buyer {
    let mut dice = Dice::of(world.seed, &[0xb0, place as u64]);
    let stall = Stall::new(clock.clone(), dice.any());
    let mind = match way.oracle() {
        Some(sight) => Mind::Seer(sight),
        None => Mind::Blind(match way.baseline(world.sellers.len(), &mut dice) {
            Some(baseline) => baseline,
            None => Box::new(Router::new(&stall, places)),
        }),
    };
    Buyer { stall, mind, dice }
}
