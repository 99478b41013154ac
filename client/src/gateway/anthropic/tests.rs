use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).expect("JSON")
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The events on a page, each with its name checked.
fn read(page: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(page).expect("text");
    let event = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").expect("two lines");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    events.map(event).collect()
}

#[test]
fn every_golden_request_becomes_its_chat_request() {
    for pair in golden()["requests"].as_array().expect("a list") {
        let chat = request::to_chat(&bytes(&pair["messages"])).expect("translates");
        assert_eq!(chat, pair["chat"], "{}", pair["name"]);
    }
}

#[test]
fn what_has_no_counterpart_is_refused_by_name() {
    for pair in golden()["refused"].as_array().expect("a list") {
        let refused = request::to_chat(&bytes(&pair["messages"])).expect_err("refused");
        let why = pair["why"].as_str().expect("why");
        assert!(refused.to_string().contains(why), "{refused}: {why}");
    }
}

#[test]
fn every_golden_completion_becomes_its_message() {
    for pair in golden()["answers"].as_array().expect("a list") {
        let message = answer::message(&bytes(&pair["completion"]), "msg_1").expect("translates");
        assert_eq!(message, pair["message"], "{}", pair["name"]);
    }
}

#[test]
fn every_golden_stream_becomes_its_events() {
    for pair in golden()["streams"].as_array().expect("a list") {
        let mut telling = events::Telling::new("msg_1".into());
        let mut told = Vec::new();
        for chunk in pair["chunks"].as_array().expect("a list") {
            let page = telling.chunk(&bytes(chunk)).expect("translates");
            told.extend(read(&page));
        }
        told.extend(read(&telling.end()));
        assert_eq!(Value::from(told), pair["events"], "{}", pair["name"]);
    }
}

#[test]
fn a_call_whose_arguments_are_no_json_is_no_message() {
    let strange =
        br#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]}}]}"#;
    assert!(answer::message(strange, "m").is_err());
    assert!(answer::message(b"{\"choices\":[]}", "m").is_err());
    assert!(answer::message(b"[", "m").is_err());
}

#[test]
fn a_call_cannot_go_on_once_another_has_begun() {
    let call = |n: u64| {
        let text = format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":{n}}}]}}}}]}}"#);
        text.into_bytes()
    };
    let mut telling = events::Telling::new("m".into());
    for n in [0, 0, 1, 3] {
        telling.chunk(&call(n)).expect("in order");
    }
    assert!(telling.chunk(&call(1)).is_err());
}

proptest! {
    #[test]
    fn no_bytes_of_a_stranger_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        request::to_chat(&bytes).ok();
        answer::message(&bytes, "m").ok();
        events::Telling::new("m".into()).chunk(&bytes).ok();
    }

    #[test]
    fn blocks_are_opened_and_closed_in_order(kinds in prop::collection::vec(0_u8..3, 0..30)) {
        let mut telling = events::Telling::new("m".into());
        let mut told = Vec::new();
        for (n, kind) in kinds.iter().enumerate() {
            let delta = match kind {
                0 => r#"{"content":"a"}"#.to_owned(),
                1 => r#"{"reasoning":"b"}"#.to_owned(),
                _ => format!(r#"{{"tool_calls":[{{"index":{n}}}]}}"#),
            };
            let chunk = format!(r#"{{"choices":[{{"delta":{delta}}}]}}"#);
            told.extend(read(&telling.chunk(chunk.as_bytes()).expect("translates")));
        }
        told.extend(read(&telling.end()));
        let (mut open, mut next) = (None, 0);
        for event in &told {
            match event["type"].as_str() {
                Some("content_block_start") => {
                    prop_assert_eq!((open, event["index"].as_u64()), (None, Some(next)));
                    (open, next) = (Some(next), next + 1);
                }
                Some("content_block_delta") => prop_assert_eq!(event["index"].as_u64(), open),
                Some("content_block_stop") => {
                    prop_assert_eq!(event["index"].as_u64(), open);
                    open = None;
                }
                _ => prop_assert_eq!(open, None),
            }
        }
        prop_assert_eq!(told.last().map(|event| event["type"].clone()), Some("message_stop".into()));
    }
}
