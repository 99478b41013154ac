//! The testimonies a node knows: looked up on the chain before they count, one for each channel,
//! bounded.
//!
//! A handle over one short lock; nothing waits inside and nothing is asked here: [`Roll::next`]
//! says which channel to look up and [`Roll::looked_up`] takes what the chain says
//! ([`crate::grapevine`] does both, at its own pace). A stranger can fill its share of the waiting
//! room and no more: in a full one, who has brought few takes the place of who has brought many.
//! Who has money behind its word pushes out who has less of the same seller, never the other way;
//! and where all room is taken, it is made among the words about the seller most is said of.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::amount::Amount;
use crate::clock::{Clock, Timestamp};
use crate::frame::{Answer, CallRefusal};
use crate::identity::NodeId;
use crate::testimony::{LIFETIME, SignedTestimony, TestimonyError, VerifiedTestimony};
use crate::x402::{ChannelId, Network};

/// The most testimonies kept.
pub const MAX_KEPT: usize = 4_096;
/// The most about one seller.
pub const MAX_PER_SELLER: usize = 64;
/// The most that wait to be looked up.
pub const MAX_WAITING: usize = 256;
/// The most that wait of those that one peer has brought.
pub const MAX_WAITING_PER_PEER: usize = 32;
/// The most channels remembered that nothing was claimed on.
const MAX_EMPTY: usize = 1_024;
/// For how long a look at the chain counts.
pub const RECHECK: Duration = Duration::from_secs(6 * 3_600);
/// How much later a testimony must end than the one before on its channel: to sign another costs
/// its witness nothing.
pub const RENEWED: Duration = Duration::from_secs(60);
/// For how long a channel without a claim is not looked up again.
const EMPTY_FOR: Duration = Duration::from_secs(3_600);

/// What became of a testimony that was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It counts, or waits to be looked up.
    Fresh,
    /// A later one is known or one hardly older, or it is too old.
    Old,
    /// No room to wait, or nothing was claimed on its channel a short while ago.
    Later,
    /// It is none.
    Bad(TestimonyError),
}

/// A testimony with the money behind it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// What is said, by whom, of whom.
    pub testimony: Arc<VerifiedTestimony>,
    /// Atoms claimed on its channel, by the chain.
    pub claimed: Amount,
}

#[derive(Debug)]
struct Kept {
    heard: Heard,
    checked: Timestamp,
}

#[derive(Debug)]
struct Waiting {
    testimony: Arc<VerifiedTestimony>,
    source: NodeId,
}

/// The testimonies known. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Roll {
    state: Arc<Mutex<State>>,
    network: Arc<Network>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct State {
    kept: BTreeMap<ChannelId, Kept>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// Whose turn was last.
    turn: Option<NodeId>,
    /// Channels on which nothing was claimed, and when that was seen.
    empty: HashMap<ChannelId, Timestamp>,
    changes: u64,
}

impl Roll {
    /// An empty one, for channels on `network`.
    #[must_use]
    pub fn new(network: Network, clock: Clock) -> Self {
        Self {
            state: Arc::default(),
            network: Arc::new(network),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a testimony that `source` has brought.
    pub fn hear(&self, signed: SignedTestimony, source: NodeId) -> Told {
        let now = self.clock.now();
        let (channel, until) = (signed.testimony.channel, signed.testimony.until);
        // What needs no signature first: the same one comes from every neighbour.
        if let Some(told) = self.lock().known(channel, until, source, now) {
            return told;
        }
        match signed.verify(&self.network, now) {
            Ok(verified) => self.lock().take(Arc::new(verified), source, now),
            Err(TestimonyError::Expired) => Told::Old,
            Err(error) => Told::Bad(error),
        }
    }

    /// The answer to whoever brings a testimony by a call.
    ///
    /// # Errors
    /// [`CallRefusal::Unavailable`], with what is wrong with it, or with us.
    pub fn answer(&self, signed: SignedTestimony, source: NodeId) -> Result<Answer, CallRefusal> {
        match self.hear(signed, source) {
            Told::Fresh | Told::Old => Ok(Answer::Heard),
            Told::Later => Err(CallRefusal::Unavailable(
                "no testimony on this channel is looked up now".to_owned(),
            )),
            Told::Bad(error) => Err(CallRefusal::Unavailable(error.to_string())),
        }
    }

    /// Which channel to look up next: of those that wait, a peer's at a time; else the one that
    /// was looked up longest ago, when that is long ago.
    #[must_use]
    pub fn next(&self) -> Option<ChannelId> {
        let now = self.clock.now();
        self.lock().next(now)
    }

    /// What the chain says was claimed on a channel. The testimony that waited counts from now
    /// on, if that is anything.
    pub fn looked_up(&self, channel: ChannelId, claimed: Amount) {
        let now = self.clock.now();
        self.lock().looked_up(channel, claimed, now);
    }

    /// A page of those that count, in the order of their channels, from the `from`th on.
    #[must_use]
    pub fn page(&self, from: usize, size: usize) -> Vec<SignedTestimony> {
        let now = self.clock.now();
        let state = self.lock();
        let live = state.kept.values().filter(|kept| kept.is_live(now));
        let page = live.skip(from).take(size);
        page.map(|kept| kept.heard.testimony.signed().clone())
            .collect()
    }

    /// All that count.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        let now = self.clock.now();
        let state = self.lock();
        let live = state.kept.values().filter(|kept| kept.is_live(now));
        live.map(|kept| kept.heard.clone()).collect()
    }

    /// A number that rises whenever another testimony counts, or one counts for more.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// How many wait to be looked up.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Forgets what is too old. Call it now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        let before = state.kept.len();
        state.kept.retain(|_, kept| kept.is_live(now));
        if state.kept.len() != before {
            state.changes += 1;
        }
        state.empty.retain(|_, seen| now.since(*seen) < EMPTY_FOR);
    }
}

impl Kept {
    fn is_live(&self, now: Timestamp) -> bool {
        now.since(self.until()) < LIFETIME
    }

    fn until(&self) -> Timestamp {
        self.heard.testimony.testimony().until
    }

    fn seller(&self) -> NodeId {
        self.heard.testimony.testimony().seller
    }

    /// The least of these makes room.
    fn rank(&self) -> (Amount, Timestamp) {
        (self.heard.claimed, self.until())
    }
}

impl State {
    /// What becomes of a testimony that is not worth checking.
    fn known(
        &self,
        channel: ChannelId,
        until: Timestamp,
        source: NodeId,
        now: Timestamp,
    ) -> Option<Told> {
        let is_new = |before: Timestamp| before.plus(RENEWED) <= until;
        let kept = self.kept.get(&channel);
        if kept.is_some_and(|kept| !is_new(kept.until())) {
            return Some(Told::Old);
        }
        let waits = self.waits(channel);
        if waits.is_some_and(|waiting| !is_new(waiting.testimony.testimony().until)) {
            return Some(Told::Old);
        }
        if kept.is_some() || waits.is_some() {
            return None;
        }
        let seen = self.empty.get(&channel);
        if seen.is_some_and(|seen| now.since(*seen) < EMPTY_FOR) {
            return Some(Told::Later);
        }
        let theirs = self.waiting.iter().filter(|it| it.source == source).count();
        let full = self.waiting.len() >= MAX_WAITING && self.crowding(theirs).is_none();
        (full || theirs >= MAX_WAITING_PER_PEER).then_some(Told::Later)
    }

    /// Who has brought most of those that wait, if that is more than somebody with one more than
    /// so many.
    fn crowding(&self, theirs: usize) -> Option<NodeId> {
        let mut brought: HashMap<NodeId, usize> = HashMap::new();
        for waiting in &self.waiting {
            *brought.entry(waiting.source).or_default() += 1;
        }
        let most = brought.into_iter().max_by_key(|(source, n)| (*n, *source));
        let (source, most) = most?;
        (most > theirs.saturating_add(1)).then_some(source)
    }

    /// The last that this peer has brought waits no more.
    fn turn_away(&mut self, source: NodeId) {
        let last = self.waiting.iter().rposition(|it| it.source == source);
        last.and_then(|place| self.waiting.remove(place));
    }

    fn waits(&self, channel: ChannelId) -> Option<&Waiting> {
        let mut waiting = self.waiting.iter();
        waiting.find(|it| it.testimony.testimony().channel == channel)
    }

    fn take(&mut self, testimony: Arc<VerifiedTestimony>, source: NodeId, now: Timestamp) -> Told {
        let said = testimony.testimony();
        let (channel, until) = (said.channel, said.until);
        // Another may have brought it while its signatures were checked.
        if let Some(told) = self.known(channel, until, source, now) {
            return told;
        }
        if let Some(kept) = self.kept.get_mut(&channel) {
            // What is claimed only rises: the channel need not be looked up again for this.
            kept.heard.testimony = testimony;
            self.changes += 1;
            return Told::Fresh;
        }
        let mut waiting = self.waiting.iter_mut();
        if let Some(waiting) = waiting.find(|it| it.testimony.testimony().channel == channel) {
            waiting.testimony = testimony;
            return Told::Fresh;
        }
        if self.waiting.len() >= MAX_WAITING {
            let theirs = self.waiting.iter().filter(|it| it.source == source).count();
            if let Some(most) = self.crowding(theirs) {
                self.turn_away(most);
            }
        }
        self.waiting.push_back(Waiting { testimony, source });
        Told::Fresh
    }

    fn next(&mut self, now: Timestamp) -> Option<ChannelId> {
        let sources = self.waiting.iter().map(|waiting| waiting.source);
        let after = sources
            .clone()
            .filter(|source| Some(*source) > self.turn)
            .min();
        if let Some(turn) = after.or_else(|| sources.min()) {
            self.turn = Some(turn);
            let theirs = self.waiting.iter().find(|it| it.source == turn)?;
            return Some(theirs.testimony.testimony().channel);
        }
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.checked);
        let (channel, _) = oldest.filter(|(_, kept)| now.since(kept.checked) >= RECHECK)?;
        Some(*channel)
    }

    fn looked_up(&mut self, channel: ChannelId, claimed: Amount, now: Timestamp) {
        if let Some(kept) = self.kept.get_mut(&channel) {
            kept.checked = now;
            if kept.heard.claimed != claimed {
                kept.heard.claimed = claimed;
                self.changes += 1;
            }
            return;
        }
        let mut places = self.waiting.iter();
        let place = places.position(|it| it.testimony.testimony().channel == channel);
        let Some(waiting) = place.and_then(|place| self.waiting.remove(place)) else {
            return;
        };
        if claimed.is_zero() {
            self.note_empty(channel, now);
            return;
        }
        let testimony = waiting.testimony;
        let heard = Heard { testimony, claimed };
        let kept = Kept {
            heard,
            checked: now,
        };
        if self.make_room(&kept) {
            self.kept.insert(channel, kept);
            self.changes += 1;
        } else {
            self.note_empty(channel, now);
        }
    }

    /// Remembers that looking was in vain; the oldest such memory makes room.
    fn note_empty(&mut self, channel: ChannelId, now: Timestamp) {
        if self.empty.len() >= MAX_EMPTY {
            let oldest = self.empty.iter().min_by_key(|(_, seen)| **seen);
            if let Some(oldest) = oldest.map(|(channel, _)| *channel) {
                self.empty.remove(&oldest);
            }
        }
        self.empty.insert(channel, now);
    }

    /// Room for a newcomer: of its own seller's, if it has more behind it than the least; where
    /// all is full, of that seller's of whom most is said, or else for more money.
    fn make_room(&mut self, newcomer: &Kept) -> bool {
        let seller = newcomer.seller();
        let of_seller = |kept: &Kept| kept.seller() == seller;
        if self.kept.values().filter(|kept| of_seller(kept)).count() >= MAX_PER_SELLER {
            return self.push_out(of_seller, |least| least < newcomer.rank());
        }
        if self.kept.len() < MAX_KEPT {
            return true;
        }
        let mut said: HashMap<NodeId, usize> = HashMap::new();
        for kept in self.kept.values() {
            *said.entry(kept.seller()).or_default() += 1;
        }
        let most = said.values().copied().max().unwrap_or(0);
        let theirs = said.get(&seller).copied().unwrap_or(0);
        let fair = most > theirs.saturating_add(1);
        let of_most = |kept: &Kept| said.get(&kept.seller()) == Some(&most);
        self.push_out(of_most, |least| fair || least < newcomer.rank())
    }

    /// Forgets the least of these if it may be.
    fn push_out(
        &mut self,
        among: impl Fn(&Kept) -> bool,
        may: impl Fn((Amount, Timestamp)) -> bool,
    ) -> bool {
        let ranked = self.kept.iter().filter(|(_, kept)| among(kept));
        let least = ranked.min_by_key(|(_, kept)| kept.rank());
        let weaker = least.filter(|(_, kept)| may(kept.rank()));
        let Some(channel) = weaker.map(|(channel, _)| *channel) else {
            return false;
        };
        self.kept.remove(&channel).is_some()
    }
}

#[cfg(test)]
mod tests;
