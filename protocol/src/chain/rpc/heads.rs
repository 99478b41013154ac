//! The heads that nodes have shown: which of them is behind the others, and is passed over.
//!
//! A node is measured by what *others* have shown of late, never by what it showed itself: a chain
//! that is set back is followed. One node that is ahead of all others is believed against them for
//! [`DOUBT`] only; then one that moves on by itself is asked again, however far ahead the other
//! says it is. So a node that lies about its height shuts nobody out for good, and one that stands
//! still stays shut out while another moves.

use std::time::Duration;

use tokio::time::Instant;

/// Blocks that a node may be behind another before that one is believed instead.
pub(super) const MOST_BEHIND: u64 = 8;
/// How long a head that was shown speaks for its node: then the node is asked for it anew.
const FRESH: Duration = Duration::from_secs(2);
/// How long a head that was shown speaks against other nodes.
const LEASE: Duration = Duration::from_secs(60);
/// How long one node alone may shut out another that moves on.
const DOUBT: Duration = Duration::from_secs(600);

/// What one node has shown.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    /// Its head, and when it was shown.
    head: Option<(u64, Instant)>,
    /// Since when it is behind another, and the head it had then.
    behind: Option<(Instant, u64)>,
    /// Whether it was passed over when it last showed its head.
    late: bool,
}

/// What all nodes have shown, by their places in the configuration.
#[derive(Debug)]
pub(super) struct Heads(Vec<Shown>);

impl Heads {
    pub(super) fn of(nodes: usize) -> Self {
        Self(vec![Shown::default(); nodes])
    }

    /// Whether a node need not be asked for its head before it is asked something else.
    pub(super) fn is_trusted(&self, node: usize, now: Instant) -> bool {
        // With nobody to compare with there is nothing to find out.
        self.0.len() < 2
            || self.0.get(node).is_some_and(|shown| {
                let fresh = |at: Instant| now.saturating_duration_since(at) < FRESH;
                !shown.late && shown.head.is_some_and(|(_, at)| fresh(at))
            })
    }

    /// The nodes, but for this one, that have not shown their heads for so long that they speak
    /// neither for themselves nor against others.
    pub(super) fn silent(&self, but: usize, now: Instant) -> Vec<usize> {
        let half = LEASE / 2;
        let silent = |shown: &Shown| {
            let head = shown.head;
            head.is_none_or(|(_, at)| now.saturating_duration_since(at) >= half)
        };
        let all = self.0.iter().enumerate();
        let all = all.filter(|(node, shown)| *node != but && silent(shown));
        all.map(|(node, _)| node).collect()
    }

    /// A node shows its head. Returns by how many blocks it is behind, if that is too many.
    pub(super) fn show(&mut self, node: usize, head: u64, now: Instant) -> Option<u64> {
        let speaks = |shown: &Shown| match shown.head {
            Some((head, at)) if now.saturating_duration_since(at) < LEASE => Some(head),
            _ => None,
        };
        let ahead: Vec<u64> = self
            .0
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != node)
            .filter_map(|(_, shown)| speaks(shown))
            .filter(|other| head.saturating_add(MOST_BEHIND) < *other)
            .collect();
        let shown = self.0.get_mut(node)?;
        shown.head = Some((head, now));
        let Some(highest) = ahead.iter().max() else {
            (shown.behind, shown.late) = (None, false);
            return None;
        };
        let (since, then) = *shown.behind.get_or_insert((now, head));
        let doubted = now.saturating_duration_since(since) >= DOUBT;
        shown.late = !(ahead.len() == 1 && doubted && head > then);
        shown.late.then(|| highest.saturating_sub(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_a_few_blocks_behind_is_believed_and_one_farther_behind_is_not() {
        let (mut heads, now) = (Heads::of(2), Instant::now());
        assert_eq!(heads.show(0, 100, now), None);
        assert_eq!(heads.show(1, 100 - MOST_BEHIND, now), None);
        assert!(heads.is_trusted(1, now));
        assert_eq!(heads.show(1, 99 - MOST_BEHIND, now), Some(MOST_BEHIND + 1));
        assert!(!heads.is_trusted(1, now), "it is asked again each time");
        assert_eq!(heads.show(1, 100, now), None);
    }

    #[test]
    fn a_head_speaks_for_its_node_for_seconds_and_against_others_for_a_minute() {
        let (mut heads, now) = (Heads::of(2), Instant::now());
        heads.show(0, 100, now);
        assert!(heads.is_trusted(0, now));
        assert!(!heads.is_trusted(0, now + FRESH));
        assert!(!heads.is_trusted(1, now));
        assert_eq!(heads.silent(1, now), [0_usize; 0]);
        assert_eq!(heads.silent(1, now + LEASE / 2), [0]);
        assert!(heads.show(1, 5, now + LEASE - SECOND).is_some());
        assert_eq!(heads.show(1, 5, now + LEASE), None);
    }

    #[test]
    fn a_chain_that_is_set_back_is_followed() {
        let (mut heads, now) = (Heads::of(1), Instant::now());
        heads.show(0, 1_000, now);
        assert_eq!(heads.show(0, 3, now), None);
        let mut heads = Heads::of(2);
        heads.show(0, 1_000, now);
        heads.show(1, 1_000, now);
        let later = now + LEASE;
        assert_eq!(heads.show(0, 3, later), None);
        assert_eq!(heads.show(1, 3, later), None);
    }

    #[test]
    fn a_node_that_lies_about_its_height_shuts_one_that_moves_on_out_for_ten_minutes_at_most() {
        let (mut heads, start) = (Heads::of(2), Instant::now());
        let mut honest = 100;
        for minute in 0..10 {
            let now = start + minute * 60 * SECOND;
            heads.show(1, u64::MAX, now);
            assert!(heads.show(0, honest, now).is_some(), "minute {minute}");
            honest += 5;
        }
        let now = start + DOUBT;
        heads.show(1, u64::MAX, now);
        assert_eq!(heads.show(0, honest, now), None);
    }

    #[test]
    fn a_node_that_stands_still_stays_shut_out_and_so_does_one_that_two_contradict() {
        let (mut heads, start) = (Heads::of(3), Instant::now());
        let now = start + 2 * DOUBT;
        heads.show(0, 500, start);
        assert!(heads.show(1, 100, start).is_some());
        heads.show(0, 900, now);
        assert!(heads.show(1, 100, now).is_some(), "it has not moved");
        heads.show(2, 899, now);
        assert!(heads.show(1, 101, now).is_some(), "two say so");
        heads.show(2, 102, now);
        assert_eq!(heads.show(1, 101, now), None, "one says so, for too long");
    }
}
