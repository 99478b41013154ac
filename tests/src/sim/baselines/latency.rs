//! Those that measure time.

use std::collections::VecDeque;

use crate::sim::chooser::{Ask, Chooser, Word, least};
use crate::sim::dice::Dice;
use crate::sim::seller::SECOND;

/// LiteLLM's `lowest_latency`: the mean of the last ten times to the first token, kept for an
/// hour; a timeout counts as a thousand seconds; who was never measured counts as zero and so is
/// tried first; one of the lowest by lot (its buffer is 0). Beside it its cooldowns: five seconds
/// for a 429, and when more than half of at least five requests of a minute failed.
#[derive(Debug)]
pub struct LowestLatency {
    samples: Vec<VecDeque<(u64, f64)>>,
    cooling: Vec<u64>,
    minute: Vec<Minute>,
}

/// A minute's count at one seller.
#[derive(Debug, Clone, Copy, Default)]
struct Minute {
    number: u64,
    all: u32,
    failed: u32,
}

const SAMPLES: usize = 10;
const KEPT: u64 = 3600 * SECOND;
const TIMEOUT: f64 = 1_000_000.0;
const COOLDOWN: u64 = 5 * SECOND;
const ENOUGH: u32 = 5;

impl LowestLatency {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize) -> Self {
        Self {
            samples: vec![VecDeque::new(); sellers],
            cooling: vec![0; sellers],
            minute: vec![Minute::default(); sellers],
        }
    }

    fn mean(&self, place: usize, at: u64) -> f64 {
        let fresh = self.samples[place]
            .iter()
            .filter(|(when, _)| when + KEPT > at);
        let (sum, count) = fresh.fold((0.0, 0.0), |(sum, count), (_, sample)| {
            (sum + sample, count + 1.0)
        });
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

impl Chooser for LowestLatency {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        least(ask, dice, |place| {
            if self.cooling[place] > ask.at {
                return f64::MAX;
            }
            self.mean(place, ask.at)
        })
    }

    fn ended(&mut self, place: usize, word: Word, at: u64) {
        let sample = match word {
            Word::Served { first, .. } => Some(first),
            Word::Late => Some(TIMEOUT),
            _ => None,
        };
        if let Some(sample) = sample {
            self.samples[place].push_back((at, sample));
            if self.samples[place].len() > SAMPLES {
                self.samples[place].pop_front();
            }
        }
        if matches!(word, Word::Overtaken(_)) {
            return;
        }
        let minute = &mut self.minute[place];
        let number = at / (60 * SECOND);
        if minute.number != number {
            *minute = Minute {
                number,
                ..Minute::default()
            };
        }
        minute.all += 1;
        minute.failed += u32::from(!matches!(word, Word::Served { .. }));
        let mostly = minute.all >= ENOUGH && 2 * minute.failed > minute.all;
        if matches!(word, Word::Busy(_)) || mostly {
            self.cooling[place] = at + COOLDOWN;
        }
    }
}

/// Helicone's gateway, which stands on tower: two by lot, and of them the one with less latency
/// (an average that jumps to a peak at once and decays over 30 seconds, 250 ms where nothing is
/// known) times requests in flight. A 429 takes a seller out for as long as it says, or for 30
/// seconds; so does an error ratio of ten percent over a minute, from 20 requests on.
#[derive(Debug)]
pub struct PeakEwma {
    peers: Vec<Peer>,
}

#[derive(Debug, Clone)]
struct Peer {
    latency: f64,
    updated: u64,
    pending: u32,
    out: u64,
    recent: VecDeque<(u64, bool)>,
}

const UNKNOWN: f64 = 250.0;
const DECAY: f64 = 30.0;
const OUT: u64 = 30 * SECOND;
const WINDOW: u64 = 60 * SECOND;
const GRACE: usize = 20;
const ERRORS: f64 = 0.1;

impl PeakEwma {
    /// Over so many sellers.
    #[must_use]
    pub fn new(sellers: usize) -> Self {
        let peer = Peer {
            latency: UNKNOWN,
            updated: 0,
            pending: 0,
            out: 0,
            recent: VecDeque::new(),
        };
        Self {
            peers: vec![peer; sellers],
        }
    }
}

impl Peer {
    fn load(&self, at: u64) -> f64 {
        self.decayed(at) * f64::from(self.pending + 1)
    }

    /// Falls towards nothing while no word comes.
    fn decayed(&self, at: u64) -> f64 {
        let age = at.saturating_sub(self.updated) as f64 / SECOND as f64;
        self.latency * (-age / DECAY).exp()
    }

    fn sample(&mut self, millis: f64, at: u64) {
        if millis > self.latency {
            self.latency = millis;
        } else {
            let age = at.saturating_sub(self.updated) as f64 / SECOND as f64;
            let old = (-age / DECAY).exp();
            self.latency = self.latency * old + millis * (1.0 - old);
        }
        self.updated = at;
    }

    fn note(&mut self, failed: bool, at: u64) {
        self.recent.push_back((at, failed));
        while self
            .recent
            .front()
            .is_some_and(|(when, _)| when + WINDOW < at)
        {
            self.recent.pop_front();
        }
        let failures = self.recent.iter().filter(|(_, failed)| *failed).count();
        let ratio = failures as f64 / self.recent.len() as f64;
        if self.recent.len() >= GRACE && ratio > ERRORS {
            self.out = self.out.max(at + OUT);
        }
    }
}

impl Chooser for PeakEwma {
    fn choose(&mut self, ask: &Ask<'_>, dice: &mut Dice) -> Vec<usize> {
        let within = |peer: &Peer| peer.out <= ask.at;
        let mut left: Vec<_> = (0..self.peers.len())
            .filter(|place| within(&self.peers[*place]))
            .collect();
        if left.is_empty() {
            left = (0..self.peers.len()).collect();
        }
        let mut chosen = Vec::with_capacity(ask.most);
        while chosen.len() < ask.most && !left.is_empty() {
            let (a, b) = (dice.below(left.len()), dice.below(left.len()));
            let load = |place: usize| self.peers[left[place]].load(ask.at);
            let better = if load(b) < load(a) { b } else { a };
            chosen.push(left.swap_remove(better));
        }
        chosen
    }

    fn began(&mut self, place: usize, _: u64) {
        self.peers[place].pending += 1;
    }

    fn ended(&mut self, place: usize, word: Word, at: u64) {
        let peer = &mut self.peers[place];
        peer.pending = peer.pending.saturating_sub(1);
        match word {
            Word::Served { first, .. } => {
                peer.sample(first, at);
                peer.note(false, at);
            }
            Word::Busy(wait) => {
                let wait = wait.map_or(OUT, |millis| millis * 1000);
                peer.out = peer.out.max(at + wait);
            }
            Word::Failed | Word::Late => peer.note(true, at),
            Word::Overtaken(_) => {}
        }
    }
}
