use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn asked(endpoint: Endpoint, body: &Value, text: &str, tokens: u64) -> Result<Value, Unfit> {
    let length = exactly(tokens);
    match rest(endpoint, body.to_string().as_bytes(), text, length)? {
        Sequel::Rest(body) => Ok(serde_json::from_slice(&body).expect("JSON")),
        Sequel::Nothing => Ok(Value::Null),
    }
}

const fn exactly(tokens: u64) -> Length {
    Length {
        least: tokens,
        tokens,
    }
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "a/b", "stream": true,
        "messages": [{"role": "user", "content": "hi"}]});
    let fields = extra.as_object().cloned().unwrap_or_default();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

#[test]
fn a_chat_is_gone_on_with_behind_the_text_and_all_else_stays() {
    let body = chat(json!({"stop": ["\n"], "max_tokens": 10, "x": {"y": 1}}));
    let next = asked(Endpoint::Chat, &body, "Hello \"you\"", 4).expect("fits");
    let begun = json!({"role": "assistant", "content": "Hello \"you\""});
    assert_eq!(
        next["messages"],
        json!([{"role": "user", "content": "hi"}, begun])
    );
    assert_eq!(next["max_tokens"], 6);
    assert_eq!(next["continue_final_message"], true);
    assert_eq!(next["add_generation_prompt"], false);
    for field in ["stop", "x", "stream", "model"] {
        assert_eq!(next[field], body[field]);
    }
}

#[test]
fn an_answer_the_application_began_itself_is_made_longer() {
    let messages = json!([{"role": "user", "content": "hi"},
        {"role": "assistant", "content": "He", "name": "x"}]);
    let body = chat(json!({"messages": messages}));
    let next = asked(Endpoint::Chat, &body, "llo", 1).expect("fits");
    let last = json!({"role": "assistant", "content": "Hello", "name": "x"});
    assert_eq!(next["messages"][1], last);
    assert_eq!(next["messages"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_completion_is_gone_on_with_behind_its_prompt() {
    let body = json!({"model": "a/b", "prompt": "Once", "max_tokens": 5});
    let next = asked(Endpoint::Completions, &body, " upon", 2).expect("fits");
    assert_eq!(next["prompt"], "Once upon");
    assert_eq!(next["max_tokens"], 3);
    let tokens = json!({"model": "a/b", "prompt": [1, 2]});
    let unfit = asked(Endpoint::Completions, &tokens, " upon", 2);
    assert_eq!(unfit, Err(Unfit::Field("prompt")));
}

#[test]
fn both_limits_shrink_and_nothing_is_asked_when_nothing_is_left() {
    let body = chat(json!({"max_tokens": 9, "max_completion_tokens": 7}));
    let next = asked(Endpoint::Chat, &body, "x", 5).expect("fits");
    assert_eq!(
        (&next["max_tokens"], &next["max_completion_tokens"]),
        (&json!(4), &json!(2))
    );
    assert_eq!(asked(Endpoint::Chat, &body, "x", 7), Ok(Value::Null));
}

#[test]
fn a_seller_that_broke_off_is_not_believed_that_nothing_is_left() {
    let body = chat(json!({"max_tokens": 9})).to_string();
    let asked = |least, tokens| {
        let length = Length { least, tokens };
        rest(Endpoint::Chat, body.as_bytes(), "x", length)
    };
    for claimed in [9, 500, u64::MAX] {
        let Ok(Sequel::Rest(next)) = asked(8, claimed) else {
            panic!("eight pieces are not nine tokens");
        };
        let next: Value = serde_json::from_slice(&next).expect("JSON");
        assert_eq!(next["max_tokens"], 1);
    }
    assert_eq!(asked(9, 9), Ok(Sequel::Nothing));
}

#[test]
fn a_request_asks_for_n_answers_to_each_prompt() {
    for (body, count) in [
        (json!({}), 1),
        (json!({"n": 3}), 3),
        (json!({"n": null, "prompt": "x"}), 1),
        (json!({"prompt": ["x"]}), 1),
        (json!({"n": 2, "prompt": ["x", "y"]}), 4),
        (json!({"prompt": [1, 2, 3]}), 1),
        (json!({"prompt": [[1, 2], [3]]}), 2),
        (json!({"prompt": []}), 1),
    ] {
        assert_eq!(answers(body.to_string().as_bytes()), count, "{body}");
    }
}

#[test]
fn what_holds_for_a_whole_answer_is_not_gone_on_with() {
    for (extra, why) in [
        (json!({"n": 2}), Unfit::Several),
        (json!({"logprobs": true}), Unfit::Field("logprobs")),
        (
            json!({"response_format": {"type": "json_schema"}}),
            Unfit::Field("response_format"),
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            Unfit::Field("response_format"),
        ),
        (json!({"grammar": "root ::= x"}), Unfit::Field("grammar")),
        (
            json!({"tool_choice": "required"}),
            Unfit::Field("tool_choice"),
        ),
        (
            json!({"modalities": ["text", "audio"]}),
            Unfit::Field("modalities"),
        ),
        (
            json!({"messages": [{"role": "assistant", "content": [1]}]}),
            Unfit::Field("messages"),
        ),
        (json!({"messages": "hi"}), Unfit::Field("messages")),
    ] {
        let unfit = asked(Endpoint::Chat, &chat(extra.clone()), "x", 1);
        assert_eq!(unfit, Err(why), "{extra}");
    }
    for extra in [
        json!({"n": 1, "logprobs": false, "response_format": {"type": "text"}}),
        json!({"tools": [{"type": "function"}], "tool_choice": "auto"}),
    ] {
        assert!(
            asked(Endpoint::Chat, &chat(extra.clone()), "x", 1).is_ok(),
            "{extra}"
        );
    }
}

#[test]
fn only_a_request_without_chance_makes_the_same_answer_again() {
    let repeats = |extra: Value| is_repeatable(chat(extra).to_string().as_bytes());
    assert!(repeats(json!({"temperature": 0})));
    assert!(repeats(json!({"temperature": 0.0, "n": 1})));
    assert!(!repeats(json!({"temperature": 0.1})));
    assert!(!repeats(json!({})));
    assert!(!repeats(json!({"temperature": 0, "n": 2})));
    assert!(!is_repeatable(b"{"));
}

proptest! {
    #[test]
    fn the_limit_and_what_is_there_are_the_limit_that_was_asked_for(
        limit in 1_u64..5000,
        tokens in 0_u64..6000,
        text in "\\PC{0,40}",
    ) {
        let body = chat(json!({"max_tokens": limit}));
        match asked(Endpoint::Chat, &body, &text, tokens) {
            Ok(Value::Null) => prop_assert!(tokens >= limit),
            Ok(next) => {
                prop_assert_eq!(next["max_tokens"].as_u64().map(|left| left + tokens), Some(limit));
                prop_assert_eq!(next["messages"][1]["content"].as_str(), Some(text.as_str()));
            }
            Err(unfit) => prop_assert!(false, "{unfit}"),
        }
    }

    #[test]
    fn no_body_makes_it_panic(body in any::<Vec<u8>>(), text in "\\PC{0,9}") {
        for endpoint in Endpoint::ALL {
            rest(endpoint, &body, &text, exactly(1)).ok();
        }
        is_repeatable(&body);
        answers(&body);
    }
}
