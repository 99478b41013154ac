//! One run of a world: every request of every buyer, under one way of choosing.
//!
//! Virtual time: events in order, nothing waits. What a client does around the choice is the same
//! for every way: so many sellers before the first token, each waited for as long as the client's
//! own rule says, and a broken stream is continued by the next seller. Only hedges are a matter of
//! the way. As with the client, the first token wins a race, and the others are told to stop and
//! paid for what was under way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use farthing_client::config::Config;
use farthing_client::policy::{Deadlines, Terms};
use farthing_client::router::PASSES;
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

/// Sellers of a plan: for a race to the first token, and as many again to continue what breaks.
const MOST: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Announce(usize),
    First(usize),
    End(usize),
    Late(usize),
    Hedge(usize),
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
    /// After how long the next is asked beside each.
    hedges: Vec<Option<u64>>,
    terms: Option<Terms>,
    /// Those that are being asked.
    running: Vec<usize>,
    /// Of the present race: tries, and those who said that they are busy.
    tried: u32,
    passed: u32,
    /// The same before the first token.
    tries: u32,
    busy: u32,
    /// Whether two are asked at once, in this race and in any.
    beside: bool,
    hedged: bool,
    broken: u32,
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
    /// When its first token must be there.
    late: u64,
    /// Microseconds that it may be silent.
    idle: u64,
    answered: bool,
    over: bool,
    trial: Option<Purchase>,
    prompt: u32,
    tokens: u32,
}

/// The state of a run.
pub struct Run<'a> {
    world: &'a World,
    config: Config,
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
    pub fn new(world: &'a World, way: Way) -> Self {
        let clock = Clock::manual(date(0));
        let places = router::places(world);
        let buyers = 0..world.size.demand.buyers;
        let mut run = Self {
            world,
            config: Config::default(),
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
                Event::Hedge(attempt) => self.hedge(attempt),
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
        if self.way.oracle().is_some() {
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
        let terms = router::terms(request, &self.config);
        let ask = Ask {
            request,
            terms: &terms,
            board: &self.board,
            at: self.now,
            most: MOST,
        };
        let mut hedges = Vec::new();
        let plan = match &mut buyer.mind {
            Mind::Blind(chooser) => {
                let began = Instant::now();
                let plan = chooser.choose(&ask, &mut buyer.dice);
                self.figures.decided(began.elapsed());
                hedges = chooser.hedge(&terms);
                plan
            }
            Mind::Seer(sight) => oracle::choose(*sight, self.world, &self.shops, request, MOST),
        };
        let state = &mut self.orders[order];
        (state.plan, state.hedges, state.terms) = (plan, hedges, Some(terms));
        self.next(order);
    }

    /// The first token of an attempt is late: the next seller is asked as well, if the way does so.
    fn hedge(&mut self, attempt: usize) {
        let Attempt {
            order,
            answered,
            over,
            ..
        } = self.attempts[attempt];
        let state = &self.orders[order];
        if answered || over || state.beside || state.running.len() != 1 {
            return;
        }
        let buyer = &mut self.buyers[self.world.requests[order].buyer];
        if let Mind::Blind(chooser) = &mut buyer.mind
            && chooser.hedges()
        {
            let started = self.start(order);
            let state = &mut self.orders[order];
            (state.beside, state.hedged) = (started, state.hedged || started);
        }
    }

    /// Asks the next seller; where none is left, the request has failed.
    fn next(&mut self, order: usize) {
        if !self.start(order) {
            self.close(order, false);
        }
    }

    /// Asks the next seller, if one is left.
    fn start(&mut self, order: usize) -> bool {
        let state = &mut self.orders[order];
        let Some(terms) = &state.terms else {
            return false;
        };
        let Some(place) = state.plan.get(state.next).copied() else {
            return false;
        };
        if state.tried >= terms.attempts {
            return false;
        }
        let hedge = state.hedges.get(state.next).copied().flatten();
        let is_alone = state.running.is_empty() && !state.beside;
        state.next += 1;
        state.tried += 1;
        let is_last = state.tried == terms.attempts || state.next == state.plan.len();
        let request = &self.world.requests[order];
        let stall = &self.buyers[request.buyer].stall;
        let waits = match self.way.oracle() {
            Some(_) => terms.deadlines,
            None => stall.patience(terms, self.world.id(place), is_last),
        };
        let attempt = self.ask(order, place, waits);
        if let Some(wait) = hedge.filter(|_| is_alone) {
            self.at(self.now.saturating_add(wait), Event::Hedge(attempt));
        }
        true
    }

    fn ask(&mut self, order: usize, place: usize, waits: Deadlines) -> usize {
        let request = &self.world.requests[order];
        let state = &mut self.orders[order];
        let attempt = self.attempts.len();
        state.running.push(attempt);
        let seller = &self.world.sellers[place];
        let door = self.shops[place].door(seller, self.now);
        let buyer = &mut self.buyers[request.buyer];
        let trial = buyer.stall.begin(self.world.id(place));
        if let Mind::Blind(chooser) = &mut buyer.mind {
            chooser.began(place, self.now);
        }
        self.attempts.push(Attempt {
            order,
            place,
            asked: self.now,
            door,
            fate: None,
            late: self.now.saturating_add(length(waits.first_token)),
            idle: length(waits.idle),
            answered: false,
            over: false,
            trial: Some(trial),
            prompt: request.prompt + state.delivered,
            tokens: request.output - state.delivered,
        });
        match door {
            Door::Refused | Door::Busy(_) => {
                let there_and_back = (seller.rtt * MILLI as f64) as u64;
                self.at(self.now + there_and_back, Event::End(attempt));
            }
            Door::Silent => self.at(self.now + length(waits.connect), Event::End(attempt)),
            Door::Free | Door::Queue => self.enter(attempt, door),
        }
        attempt
    }

    fn enter(&mut self, attempt: usize, door: Door) {
        let Attempt {
            place, order, late, ..
        } = self.attempts[attempt];
        self.at(late, Event::Late(attempt));
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
        // What falls silent is noticed only after a while.
        let end = match (fate.how, fate.first) {
            (How::Silent, None) => state.late,
            (How::Silent, Some(_)) => fate.end.saturating_add(state.idle),
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
        let order = &mut self.orders[state.order];
        order.first.get_or_insert(self.now);
        for other in std::mem::replace(&mut order.running, vec![attempt]) {
            if other != attempt {
                let waited = (self.now - self.attempts[other].asked) as f64 / MILLI as f64;
                self.release(other, Word::Overtaken(waited));
            }
        }
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
        let Attempt {
            order, answered, ..
        } = self.attempts[attempt];
        self.release(attempt, word);
        let state = &mut self.orders[order];
        state.running.retain(|running| *running != attempt);
        let is_busy = matches!(word, Word::Busy(_));
        if state.first.is_none() {
            state.tries += u32::from(!is_busy);
            state.busy += u32::from(is_busy);
        }
        if answered {
            // What it broke off is a race of its own.
            state.broken += 1;
            (state.tried, state.passed, state.beside) = (0, 0, false);
        }
        if is_busy && state.passed < PASSES {
            state.passed += 1;
            state.tried -= 1;
        }
        let most = state.terms.as_ref().map_or(0, |terms| terms.attempts);
        if state.broken > most {
            self.close(order, false);
        } else if state.running.is_empty() {
            self.next(order);
        } else if is_busy {
            // Whoever was to be asked beside another has no room: somebody else is.
            self.start(order);
        }
    }

    /// An attempt is over: it is paid for what it delivered, its slot is free, and whoever chose
    /// it is told.
    fn release(&mut self, attempt: usize, word: Word) {
        let state = &mut self.attempts[attempt];
        state.over = true;
        let place = state.place;
        let seller = &self.world.sellers[place];
        // Whoever is told to stop hears of it half a way later, and what it sent until then is
        // half a way behind.
        let way = (seller.rtt * MILLI as f64) as u64;
        let sent = match (state.fate, word) {
            (Some(fate), Word::Overtaken(_)) => fate.delivered(self.now + way),
            (Some(fate), _) if state.answered => fate.tokens,
            _ => 0,
        };
        let mut paid = 0.0;
        if sent > 0 {
            let prices = seller.prices_at(state.asked);
            paid = cost(state.prompt, sent, &prices) * seller.surcharge();
        }
        let order = &mut self.orders[state.order];
        order.paid += paid;
        order.delivered += if state.answered { sent } else { 0 };
        if let Some(trial) = state.trial.take() {
            trial.ended(word, state.prompt, paid);
        }
        let buyer = &mut self.buyers[self.world.requests[state.order].buyer];
        if let Mind::Blind(chooser) = &mut buyer.mind {
            chooser.ended(place, word, self.now);
        }
        let shop = &mut self.shops[place];
        shop.tokens += u64::from(sent);
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
            tried: state.tries + u32::from(whole),
            busy: state.busy,
            hedged: state.hedged,
            rescued: state.broken,
        });
        (state.plan, state.hedges, state.terms) = (Vec::new(), Vec::new(), None);
    }
}

fn length(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)
}

fn buyer(world: &World, way: Way, place: usize, (clock, places): (&Clock, &Places)) -> Buyer {
    let mut dice = Dice::of(world.seed, &[0xb0, place as u64]);
    let stall = Stall::new(clock.clone(), dice.any());
    let mind = match way.oracle() {
        Some(sight) => Mind::Seer(sight),
        None => Mind::Blind(match way.baseline(world.sellers.len(), &mut dice) {
            Some(baseline) => baseline,
            None if way == Way::OneByOne => Box::new(Router::new(&stall, places).one_by_one()),
            None => Box::new(Router::new(&stall, places)),
        }),
    };
    Buyer { stall, mind, dice }
}
