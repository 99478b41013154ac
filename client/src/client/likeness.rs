//! How alike the answers of several sellers are, and who stands alone. Pure.
//!
//! The same model at temperature 0 says nearly the same everywhere: not to the letter, for
//! machines round differently and one other word leads elsewhere. So answers are compared by the
//! words and pairs of words they share, and nobody is blamed by one other seller's word: of three,
//! the one is blamed that is far from two who agree. Counts of tokens likewise: of three sellers
//! of one model the one is blamed that counts far above the middle.

use std::collections::HashMap;

/// From so much on two answers agree (share of words and pairs of words, 0 to 1).
pub(in crate::client) const ALIKE: f64 = 0.5;
/// The one that stands alone has at most this part of the agreement of the other two.
const ALONE: f64 = 0.5;
/// Counts may be above the middle by this part …
const ABOVE: f64 = 1.25;
/// … and so many tokens: templates differ …
const TEMPLATE: f64 = 16.0;
/// … or in an answer so many: an end of the turn, or how a short word is cut, is no padding.
const SLACK: f64 = 8.0;
/// Tokens for each byte by which one may be above another, whatever the text.
const DENSER: f64 = 0.1;

/// What one seller answered.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::client) struct Saying {
    pub(in crate::client) text: String,
    /// Tokens of the prompt and of the answer, by the seller's count.
    pub(in crate::client) prompt: u32,
    pub(in crate::client) completion: u32,
}

impl Saying {
    /// Tokens of the answer for each byte of it.
    fn density(&self) -> f64 {
        f64::from(self.completion) / self.bytes()
    }

    fn bytes(&self) -> f64 {
        f64::from(u32::try_from(self.text.len()).unwrap_or(u32::MAX).max(1))
    }

    /// Whether it counts far more tokens than an answer of its length has at this density.
    fn is_padded(&self, density: f64) -> bool {
        f64::from(self.completion) > (density * ABOVE + DENSER) * self.bytes() + SLACK
    }
}

/// How alike two texts are, 0 to 1.
pub(in crate::client) fn likeness(a: &str, b: &str) -> f64 {
    let (a, b) = (pieces(a), pieces(b));
    let size = |all: &HashMap<String, u32>| all.values().map(|n| f64::from(*n)).sum::<f64>();
    let both = size(&a) + size(&b);
    if both == 0.0 {
        return 1.0;
    }
    let shared = a.iter().map(|(piece, n)| {
        let other = b.get(piece).copied().unwrap_or(0);
        f64::from(other.min(*n))
    });
    2.0 * shared.sum::<f64>() / both
}

/// Words and pairs of words, each with how often it is there.
fn pieces(text: &str) -> HashMap<String, u32> {
    let plain = |word: &str| {
        let kept = word.chars().filter(|c| c.is_alphanumeric());
        kept.flat_map(char::to_lowercase).collect::<String>()
    };
    let words: Vec<String> = text
        .split_whitespace()
        .map(plain)
        .filter(|word| !word.is_empty())
        .collect();
    let mut pieces = HashMap::new();
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    for piece in words.iter().cloned().chain(pairs) {
        *pieces.entry(piece).or_default() += 1;
    }
    pieces
}

/// Whether a third seller has to be asked: two do not agree, in words or in counts.
pub(in crate::client) fn differ(a: &Saying, b: &Saying) -> bool {
    let above = |x: f64, y: f64, more: f64| x > y * ABOVE + more;
    let apart = |x: f64, y: f64, more: f64| above(x, y, more) || above(y, x, more);
    let (one, other) = (f64::from(a.prompt), f64::from(b.prompt));
    likeness(&a.text, &b.text) < ALIKE
        || apart(one, other, TEMPLATE)
        || a.is_padded(b.density())
        || b.is_padded(a.density())
}

/// Who of three stands alone, by what was said or by what was counted.
pub(in crate::client) fn alone(of: &[Saying; 3]) -> Option<usize> {
    let like = |a: usize, b: usize| likeness(&of[a].text, &of[b].text);
    let others = [(1, 2), (0, 2), (0, 1)];
    let words = others.iter().enumerate().find(|(one, (a, b))| {
        let agreed = like(*a, *b);
        agreed >= ALIKE && like(*one, *a).max(like(*one, *b)) < agreed * ALONE
    });
    let counts = || {
        let prompts = of.each_ref().map(|saying| f64::from(saying.prompt));
        let usual = middle(prompts) * ABOVE + TEMPLATE;
        let density = middle(of.each_ref().map(Saying::density));
        let templates = prompts.iter().position(|prompt| *prompt > usual);
        templates.or_else(|| of.iter().position(|saying| saying.is_padded(density)))
    };
    words.map(|(one, _)| one).or_else(counts)
}

fn middle(mut of: [f64; 3]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saying(text: &str, prompt: u32) -> Saying {
        let words = text.split_whitespace().count();
        Saying {
            text: text.to_owned(),
            prompt,
            completion: u32::try_from(words * 4 / 3).expect("small"),
        }
    }

    const TRUE: &str = "A farthing was a quarter of a penny, and was minted in England until 1956.";
    const NEAR: &str = "A farthing was a quarter of a penny. It was minted in England until 1956";
    const FALSE: &str =
        "I like turtles and so does everybody else who has ever met one in the sea.";

    #[test]
    fn nearly_the_same_words_are_alike_and_others_are_not() {
        assert!(likeness(TRUE, NEAR) > 0.8);
        assert!(likeness(TRUE, FALSE) < 0.3);
        assert!(!differ(&saying(TRUE, 20), &saying(NEAR, 22)));
        assert!(differ(&saying(TRUE, 20), &saying(FALSE, 20)));
    }

    #[test]
    fn of_three_the_one_is_blamed_that_two_others_agree_against() {
        let three = |a, b, c| [saying(a, 20), saying(b, 20), saying(c, 20)];
        assert_eq!(alone(&three(TRUE, NEAR, FALSE)), Some(2));
        assert_eq!(alone(&three(FALSE, TRUE, NEAR)), Some(0));
        assert_eq!(alone(&three(TRUE, NEAR, TRUE)), None);
        let other = "Nobody knows anything about coins here";
        assert_eq!(alone(&three(TRUE, FALSE, other)), None, "nobody agrees");
    }

    #[test]
    fn of_three_the_one_is_blamed_that_counts_far_above_the_middle() {
        let prompts = |a, b, c| [saying(TRUE, a), saying(TRUE, b), saying(TRUE, c)];
        assert_eq!(alone(&prompts(400, 410, 900)), Some(2));
        assert_eq!(alone(&prompts(400, 410, 420)), None);
        assert_eq!(alone(&prompts(12, 25, 12)), None, "templates differ");
        let mut padded = [saying(TRUE, 20), saying(TRUE, 20), saying(TRUE, 20)];
        padded[1].completion *= 3;
        assert_eq!(alone(&padded), Some(1));
    }

    #[test]
    fn nobody_is_blamed_for_a_token_or_two_of_a_short_answer() {
        let short = |text: &str, completion| Saying {
            text: text.to_owned(),
            prompt: 20,
            completion,
        };
        let (one, two) = (short("Yes", 1), short("Yes", 2));
        assert!(!differ(&one, &two));
        assert_eq!(alone(&[one.clone(), one.clone(), two]), None);
        assert_eq!(alone(&[short("", 0), short("", 1), short("", 0)]), None);
        let padded = short("Yes", 40);
        assert_eq!(alone(&[one.clone(), padded, one]), Some(1));
    }

    proptest! {
        #[test]
        fn likeness_is_between_nothing_and_all_and_the_same_both_ways(a in ".{0,60}", b in ".{0,60}") {
            let like = likeness(&a, &b);
            prop_assert!((0.0..=1.0).contains(&like));
            prop_assert!((like - likeness(&b, &a)).abs() < 1e-9);
            prop_assert!(likeness(&a, &a) > 0.999);
        }
    }
}
