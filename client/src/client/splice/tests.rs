use farthing_protocol::purchase::{Endpoint, Mode, Usage};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn stream(endpoint: Endpoint) -> Splice {
    Splice::new(endpoint, Mode::Stream, 1)
}

fn event(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// A piece of a chat, as the seller with this name sends it.
fn piece(seller: &str, text: &str) -> Bytes {
    event(&json!({
        "id": seller, "created": 1, "model": seller, "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}],
    }))
}

fn role(seller: &str) -> Bytes {
    event(&json!({
        "id": seller, "choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}],
    }))
}

fn finish(seller: &str) -> Bytes {
    event(&json!({
        "id": seller, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    }))
}

fn count(prompt: u32, completion: u32) -> Bytes {
    event(&json!({
        "id": "b", "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion,
            "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": 1}},
    }))
}

fn used(prompt: u32, completion: u32) -> Usage {
    Usage {
        prompt,
        cached: 2,
        completion,
    }
}

/// What the application reads of it.
fn text(event: &Bytes) -> String {
    let value: Value = serde_json::from_slice(event).expect("JSON");
    let text = &value["choices"][0]["delta"]["content"];
    text.as_str().unwrap_or_default().to_owned()
}

fn took(splice: &mut Splice, event: &Bytes) -> Option<Bytes> {
    splice.take(event).expect("is taken")
}

#[test]
fn the_first_sellers_events_pass_as_they_came() {
    let mut splice = stream(Endpoint::Chat);
    for event in [role("a"), piece("a", "Hel"), piece("a", "lo"), finish("a")] {
        assert_eq!(took(&mut splice, &event), Some(event));
    }
    assert_eq!(splice.text(), "Hello");
    assert!(splice.is_finished() && splice.has_content());
    assert_eq!(splice.unfit(), None);
}

#[test]
fn a_role_and_an_empty_piece_are_no_content() {
    let mut splice = stream(Endpoint::Chat);
    took(&mut splice, &role("a"));
    took(&mut splice, &piece("a", ""));
    assert!(!splice.has_content());
    took(&mut splice, &piece("a", "x"));
    assert!(splice.has_content());
}

#[test]
fn the_second_seller_goes_on_under_the_name_of_the_first_and_its_count_is_added() {
    let mut first = stream(Endpoint::Chat);
    took(&mut first, &piece("a", "Hel"));
    let mut splice = first.handed_on(false, used(10, 1));
    assert_eq!(took(&mut splice, &role("b")), None);
    let next = took(&mut splice, &piece("b", "lo")).expect("passes");
    let next: Value = serde_json::from_slice(&next).expect("JSON");
    assert_eq!((&next["id"], &next["model"]), (&json!("a"), &json!("a")));
    assert_eq!(next["choices"][0]["delta"], json!({"content": "lo"}));
    assert_eq!(splice.text(), "Hello");
    assert!(took(&mut splice, &finish("b")).is_some());
    let counted = took(&mut splice, &count(14, 4)).expect("passes");
    let counted: Value = serde_json::from_slice(&counted).expect("JSON");
    let expected = json!({"prompt_tokens": 24, "completion_tokens": 5, "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 3}});
    assert_eq!(counted["usage"], expected);
}

#[test]
fn an_answer_given_again_passes_only_what_is_new() {
    let mut first = stream(Endpoint::Chat);
    took(&mut first, &piece("a", "Hello, wo"));
    let mut splice = first.handed_on(true, used(10, 3));
    assert_eq!(took(&mut splice, &piece("b", "Hello")), None);
    let next = took(&mut splice, &piece("b", ", world")).expect("passes");
    assert_eq!(text(&next), "rld");
    let next = took(&mut splice, &piece("b", "!")).expect("passes");
    assert_eq!(text(&next), "!");
    assert_eq!(splice.text(), "Hello, world!");
    assert_eq!(splice.delivered(used(10, 6)), 6);
}

#[test]
fn an_answer_that_is_another_or_ends_sooner_is_refused_and_changes_nothing() {
    let mut first = stream(Endpoint::Chat);
    took(&mut first, &piece("a", "Hello"));
    let mut splice = first.handed_on(true, used(10, 3));
    took(&mut splice, &piece("b", "He"));
    for other in [piece("b", "y there"), finish("b")] {
        let refused = splice.take(&other);
        assert!(matches!(refused, Err(Failure::Differs)), "{refused:?}");
    }
    assert_eq!(splice.text(), "Hello");
    let next = took(&mut splice, &piece("b", "llo you")).expect("passes");
    assert_eq!(text(&next), " you");
}

#[test]
fn what_is_no_part_of_an_answer_is_refused() {
    for bad in [
        "",
        "{",
        "[]",
        "7",
        r#"{"choices":[{"delta":"#,
        r#"{"error":{"message":"x"}}"#,
    ] {
        for splice in [
            stream(Endpoint::Chat),
            stream(Endpoint::Chat).handed_on(false, Usage::default()),
            Splice::new(Endpoint::Chat, Mode::Plain, 1),
        ] {
            let taken = splice.clone().take(&Bytes::from_static(bad.as_bytes()));
            assert!(
                matches!(taken, Err(Failure::Nonsense(_))),
                "{bad}: {taken:?}"
            );
        }
    }
    let done = stream(Endpoint::Chat).take(&Bytes::from_static(b" [DONE]"));
    assert!(matches!(done, Ok(None)), "{done:?}");
}

#[test]
fn what_cannot_be_gone_on_with_says_why() {
    let delta = |delta: Value| event(&json!({"choices": [{"index": 0, "delta": delta}]}));
    let second = json!({"choices": [{"index": 1, "delta": {"content": "x"}}]});
    for (event, why) in [
        (
            delta(json!({"tool_calls": [{"index": 0}]})),
            Unfit::ToolCall,
        ),
        (delta(json!({"reasoning_content": "hm"})), Unfit::Reasoning),
        (delta(json!({"reasoning": "hm"})), Unfit::Reasoning),
        (delta(json!({"refusal": "no"})), Unfit::MoreThanText),
        (
            delta(json!({"content": [{"type": "text"}]})),
            Unfit::MoreThanText,
        ),
        (event(&second), Unfit::Several),
        (piece("a", &"x".repeat(MOST_TEXT + 1)), Unfit::TooLong),
    ] {
        let mut splice = stream(Endpoint::Chat);
        took(&mut splice, &piece("a", "Hel"));
        took(&mut splice, &event);
        assert_eq!(splice.unfit(), Some(why));
    }
}

#[test]
fn an_answer_as_long_as_asked_for_ends_by_its_length_and_is_counted() {
    for (endpoint, path) in [(Endpoint::Chat, "delta"), (Endpoint::Completions, "text")] {
        let mut splice = stream(endpoint);
        took(&mut splice, &piece("a", "Hello"));
        let mut splice = splice.handed_on(false, used(10, 5));
        let [last, usage] = splice.end_of_length();
        let last: Value = serde_json::from_slice(&last).expect("JSON");
        assert_eq!(last["choices"][0]["finish_reason"], "length");
        assert!(last["choices"][0].get(path).is_some());
        assert_eq!(last["id"], "a");
        let usage: Value = serde_json::from_slice(&usage).expect("JSON");
        assert_eq!(usage["usage"]["total_tokens"], 15);
        assert!(splice.is_finished());
    }
}

#[test]
fn an_answer_given_again_that_stops_before_what_is_there_is_not_whole() {
    let mut first = stream(Endpoint::Chat);
    took(&mut first, &piece("a", "Hello, wo"));
    let mut splice = first.handed_on(true, used(10, 3));
    took(&mut splice, &piece("b", "He"));
    assert!(splice.has_content() && splice.lacks().is_some());
    took(&mut splice, &piece("b", "llo, world"));
    assert_eq!(splice.lacks(), None, "its seller knows whether that is all");
}

#[test]
fn an_answer_without_a_word_is_whole_only_if_it_says_why_it_ended() {
    let empty = stream(Endpoint::Chat);
    let gone_on = || {
        let mut first = stream(Endpoint::Chat);
        took(&mut first, &piece("a", "Hel"));
        first.handed_on(false, used(10, 1))
    };
    for mut splice in [empty, gone_on()] {
        took(&mut splice, &role("b"));
        assert!(splice.lacks().is_some());
        took(&mut splice, &finish("b"));
        assert!(splice.is_finished() && splice.lacks().is_none());
    }
    let mut silent = gone_on();
    took(&mut silent, &piece("b", "lo"));
    assert_eq!(silent.lacks(), None, "some model servers say no reason");
    let document = Splice::new(Endpoint::Chat, Mode::Plain, 1);
    assert!(document.lacks().is_some());
}

#[test]
fn of_two_answers_the_end_of_the_first_is_not_the_end() {
    let end = |index: u64| {
        let choice = json!({"index": index, "delta": {}, "finish_reason": "stop"});
        event(&json!({"id": "a", "choices": [choice]}))
    };
    let mut splice = Splice::new(Endpoint::Chat, Mode::Stream, 2);
    took(&mut splice, &piece("a", "Hello"));
    took(&mut splice, &end(0));
    took(&mut splice, &end(0));
    took(&mut splice, &end(7));
    assert!(!splice.is_finished() && splice.lacks().is_some());
    assert_eq!(splice.unfit(), Some(Unfit::Several));
    took(&mut splice, &end(1));
    assert!(splice.is_finished() && splice.lacks().is_none());
    let mut endless = Splice::new(Endpoint::Chat, Mode::Stream, u64::MAX);
    took(&mut endless, &end(u64::MAX - 1));
    assert!(!endless.is_finished());
}

#[test]
fn a_text_is_as_long_as_its_pieces_whatever_its_seller_counts() {
    let mut splice = stream(Endpoint::Chat);
    took(&mut splice, &piece("a", "Hello, "));
    took(&mut splice, &piece("a", "you there"));
    let told = |count| splice.length(used(10, count));
    let long = |least, tokens| Length { least, tokens };
    assert_eq!(told(0), long(2, 2));
    assert_eq!(told(4), long(2, 4));
    assert_eq!(told(900), long(2, 5), "no more than the text bears out");
    let mut again = splice.handed_on(true, used(10, 4));
    took(&mut again, &piece("b", "Hello, you there, and"));
    assert_eq!(again.length(used(10, 5)), long(3, 5));
    let mut rest = splice.handed_on(false, used(10, 4));
    took(&mut rest, &piece("b", ", and"));
    assert_eq!(rest.length(used(10, 2)), long(3, 6));
}

/// `text` cut into pieces at these places.
fn cut(text: &str, places: &[prop::sample::Index]) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut ends: Vec<usize> = places
        .iter()
        .map(|at| at.index(letters.len() + 1))
        .collect();
    ends.extend([0, letters.len()]);
    ends.sort_unstable();
    let pieces = ends
        .windows(2)
        .map(|ends| letters[ends[0]..ends[1]].iter().collect());
    pieces.collect()
}

proptest! {
    #[test]
    fn however_it_is_cut_and_gone_on_with_the_text_is_whole(
        text in "\\PC{0,60}",
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        anew in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        breaks in any::<prop::sample::Index>(),
        again in any::<bool>(),
    ) {
        let pieces = cut(&text, &places);
        let had = breaks.index(pieces.len() + 1);
        let mut heard = String::new();
        let mut splice = stream(Endpoint::Chat);
        for part in &pieces[..had] {
            let passed = took(&mut splice, &piece("a", part)).expect("passes");
            heard.push_str(&self::text(&passed));
        }
        let mut splice = splice.handed_on(again, used(1, 1));
        let rest = text.strip_prefix(heard.as_str()).expect("a prefix");
        let all = if again { text.as_str() } else { rest };
        for part in cut(all, &anew) {
            if let Some(passed) = took(&mut splice, &piece("b", &part)) {
                heard.push_str(&self::text(&passed));
            }
        }
        prop_assert_eq!(&heard, &text);
        prop_assert_eq!(splice.text(), &text);
    }

    #[test]
    fn no_bytes_make_it_panic(
        events in prop::collection::vec(any::<Vec<u8>>(), 0..4),
        again in any::<bool>(),
    ) {
        let mut splice = stream(Endpoint::Chat).handed_on(again, used(1, 1));
        for event in events {
            let before = splice.text().to_owned();
            if splice.take(&Bytes::from(event)).is_err() {
                prop_assert_eq!(splice.text(), before);
            }
        }
    }
}
