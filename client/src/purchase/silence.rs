//! How long a seller may take to say the next thing. Pure.
//!
//! Only text is news: a seller that says that it is alive, or sends an event that never ends, is
//! as late as a silent one. The few words without text that belong to an answer, its reason for
//! ending and its usage, are excused.

use std::time::Duration;

use tokio::time::Instant;

/// How many words without text move the deadline before more text must come: the beginning of a
/// long event, the reason for the end, the usage.
const EXCUSED: u32 = 3;

/// A seller's deadline for the next thing it says.
#[derive(Debug)]
pub(in crate::purchase) struct Silence {
    by: Instant,
    idle: Duration,
    end: Instant,
    /// The text there was at the last news.
    text: u64,
    /// Moved without text since.
    excused: u32,
}

impl Silence {
    /// The first text is due `by` then, each next within `idle`, and all of it at the `end`.
    pub(in crate::purchase) fn new(by: Instant, idle: Duration, end: Instant) -> Self {
        Self {
            by: by.min(end),
            idle,
            end,
            text: 0,
            excused: 0,
        }
    }

    /// All of it is due at the `end`, whatever is said until then.
    pub(in crate::purchase) const fn until(end: Instant) -> Self {
        Self {
            by: end,
            idle: Duration::ZERO,
            end,
            text: u64::MAX,
            excused: EXCUSED,
        }
    }

    /// By when the next thing must be said.
    pub(in crate::purchase) const fn by(&self) -> Instant {
        self.by
    }

    /// The next thing may take until the end.
    pub(in crate::purchase) const fn excuse(&mut self) {
        self.by = self.end;
    }

    /// Something was said; so many bytes of text are there by now. Words before the first text
    /// are no first token.
    pub(in crate::purchase) fn heard(&mut self, text: u64, now: Instant) {
        if text > self.text {
            (self.text, self.excused) = (text, 0);
        } else if text > 0 && self.excused < EXCUSED {
            self.excused += 1;
        } else {
            return;
        }
        self.by = (now + self.idle).min(self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    fn silence(start: Instant) -> Silence {
        Silence::new(start + 3 * IDLE, IDLE, start + 100 * IDLE)
    }

    #[test]
    fn words_before_the_first_text_do_not_move_the_deadline() {
        let start = Instant::now();
        let mut silence = silence(start);
        for n in 0..50 {
            silence.heard(0, start + n * IDLE / 25);
        }
        assert_eq!(silence.by(), start + 3 * IDLE);
        silence.heard(1, start + 2 * IDLE);
        assert_eq!(silence.by(), start + 3 * IDLE);
        silence.heard(2, start + 3 * IDLE);
        assert_eq!(silence.by(), start + 4 * IDLE);
    }

    #[test]
    fn a_seller_that_prattles_after_its_first_text_is_late() {
        let start = Instant::now();
        let mut silence = silence(start);
        silence.heard(5, start);
        for n in 1..50 {
            silence.heard(5, start + n * IDLE / 2);
        }
        assert_eq!(
            silence.by(),
            start + EXCUSED * IDLE / 2 + IDLE,
            "the end and the usage may follow the text, and no more"
        );
        silence.heard(6, start + IDLE);
        silence.heard(6, start + 2 * IDLE);
        assert_eq!(silence.by(), start + 3 * IDLE, "text is news again");
    }

    #[test]
    fn nothing_moves_the_deadline_past_the_end() {
        let start = Instant::now();
        let end = start + IDLE / 2;
        let mut silence = Silence::new(start + IDLE, IDLE, end);
        assert_eq!(silence.by(), end);
        silence.heard(1, start);
        assert_eq!(silence.by(), end);
        let mut last = Silence::until(end);
        last.heard(9, start + IDLE);
        assert_eq!(last.by(), end);
    }
}
