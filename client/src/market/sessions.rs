//! [`Sessions`]: which seller has a conversation in its prompt cache.
//!
//! A name for a conversation is a hash; nothing of what was said is kept. Bounded, and forgotten
//! when idle: a seller's cache does not last either.

use std::collections::HashMap;
use std::time::Duration;

use farthing_protocol::clock::Timestamp;

use crate::policy::{Session, Warm};

/// The most conversations remembered.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Sessions {
    known: HashMap<Session, (Warm, Timestamp)>,
}

impl Sessions {
    /// Who has it, unless that is longer ago than `idle`.
    pub(super) fn of(&self, session: Session, idle: Duration, now: Timestamp) -> Option<Warm> {
        let (warm, used) = self.known.get(&session)?;
        (now.since(*used) < idle).then_some(*warm)
    }

    /// A seller has read this conversation.
    pub(super) fn note(&mut self, session: Session, warm: Warm, now: Timestamp) {
        if self.known.len() >= MOST && !self.known.contains_key(&session) {
            self.make_room();
        }
        self.known.insert(session, (warm, now));
    }

    /// Forgets the older half.
    fn make_room(&mut self) {
        let mut ages: Vec<_> = self.known.values().map(|(_, used)| *used).collect();
        let (_, middle, _) = ages.select_nth_unstable(MOST / 2);
        let middle = *middle;
        self.known.retain(|_, (_, used)| *used > middle);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::testing;

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    fn warm(n: u8) -> Warm {
        Warm {
            seller: testing::node_key(n).id(),
            tokens: 100,
        }
    }

    #[test]
    fn a_conversation_is_forgotten_when_idle() {
        let mut sessions = Sessions::default();
        sessions.note(Session(1), warm(1), Timestamp(0));
        assert_eq!(
            sessions.of(Session(1), IDLE, Timestamp(1000)),
            Some(warm(1))
        );
        assert_eq!(sessions.of(Session(2), IDLE, Timestamp(1000)), None);
        assert_eq!(sessions.of(Session(1), IDLE, Timestamp(600_000)), None);
    }

    #[test]
    fn conversations_are_bounded_and_the_newest_stay() {
        let mut sessions = Sessions::default();
        for n in 0..3 * MOST as u64 {
            sessions.note(Session(n), warm(1), Timestamp(n));
            assert!(sessions.len() <= MOST);
        }
        let newest = Session(3 * MOST as u64 - 1);
        let now = Timestamp(3 * MOST as u64);
        assert_eq!(sessions.of(newest, IDLE, now), Some(warm(1)));
    }
}
