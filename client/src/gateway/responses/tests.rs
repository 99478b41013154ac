use std::fs::{self, File};
use std::io::Read;
use std::pin::pin;
use std::process::Command;

use farthing_protocol::purchase::Usage as Counted;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::answer::Standing;
use super::*;
use crate::client::Client;
use crate::config;
use crate::gateway::{Gateway, Metrics};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).expect("JSON")
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn telling() -> Telling {
    let asked = Asked::read(br#"{"model":"a/b","temperature":0.5,"store":false}"#);
    let head = Head {
        id: "resp_ff".into(),
        created_at: 7,
        model: "a/b".into(),
        settings: asked.expect("reads").settings,
    };
    Telling::new(head, "ff".into())
}

/// The events on some pages, each with its name and number checked.
fn read(pages: &[Bytes]) -> Vec<Value> {
    let text = String::from_utf8(pages.concat()).expect("text");
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let read = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once("\ndata: ").expect("two lines");
        let mut data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        let numbered = data.as_object_mut().expect("an object");
        assert_eq!(numbered.remove("sequence_number"), Some(number.into()));
        data
    };
    events.enumerate().map(read).collect()
}

fn stream(chunks: &Value) -> (Telling, Vec<Value>) {
    let mut telling = telling();
    let chunks = chunks.as_array().expect("a list").iter();
    let pages: Vec<_> = chunks
        .map(|chunk| telling.chunk(&bytes(chunk)).expect("translates"))
        .collect();
    let mut told = pages;
    told.push(telling.end());
    (telling, read(&told))
}

#[test]
fn every_golden_request_becomes_its_chat_request() {
    for pair in golden()["requests"].as_array().expect("a list") {
        let asked = Asked::read(&bytes(&pair["responses"])).expect("is read");
        let chat = asked.chat(&[]).expect("translates");
        assert_eq!(chat, pair["chat"], "{}", pair["name"]);
    }
}

#[test]
fn what_has_no_counterpart_is_refused_by_name() {
    for pair in golden()["refused"].as_array().expect("a list") {
        let asked = Asked::read(&bytes(&pair["responses"]));
        let refused = asked
            .and_then(|asked| asked.chat(&[]))
            .expect_err("refused");
        let why = pair["why"].as_str().expect("why");
        assert!(refused.to_string().contains(why), "{refused}: {why}");
    }
}

#[test]
fn every_golden_completion_becomes_its_response() {
    for pair in golden()["answers"].as_array().expect("a list") {
        let response = telling().whole(&bytes(&pair["completion"]), None);
        let response = response.expect("translates");
        for (field, value) in pair["said"].as_object().expect("an object") {
            assert_eq!(&response[field], value, "{}: {field}", pair["name"]);
        }
    }
}

#[test]
fn a_response_repeats_what_holds_for_it() {
    let said = br#"{"choices":[{"message":{"content":"x"}}]}"#;
    let response = telling().whole(said, None).expect("translates");
    let expected = json!({
        "id": "resp_ff", "object": "response", "created_at": 7, "model": "a/b",
        "temperature": 0.5, "store": false, "tools": [], "tool_choice": "auto",
        "parallel_tool_calls": true, "metadata": {}, "truncation": "disabled",
        "text": { "format": { "type": "text" } }, "previous_response_id": null,
    });
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(&response[field], value, "{field}");
    }
}

#[test]
fn what_a_receipt_counts_goes_before_what_the_answer_says_of_itself() {
    let said = br#"{"choices":[{"message":{"content":"x"}}],
        "usage":{"prompt_tokens":1,"completion_tokens":5,"total_tokens":6,
                 "completion_tokens_details":{"reasoning_tokens":3}}}"#;
    let counted = Counted {
        prompt: 7,
        cached: 2,
        completion: 4,
    };
    let response = telling().whole(said, Some(counted)).expect("translates");
    let expected = json!({
        "input_tokens": 7, "output_tokens": 4, "total_tokens": 11,
        "input_tokens_details": { "cached_tokens": 2, "cache_write_tokens": 0 },
        "output_tokens_details": { "reasoning_tokens": 3 },
    });
    assert_eq!(response["usage"], expected);
}

#[test]
fn every_golden_stream_becomes_its_events() {
    for pair in golden()["streams"].as_array().expect("a list") {
        let (telling, told) = stream(&pair["chunks"]);
        let (begin, rest) = told.split_at(2);
        let (last, middle) = rest.split_last().expect("an end");
        assert_eq!(begin[0]["type"], "response.created");
        assert_eq!(begin[1]["type"], "response.in_progress");
        for event in begin {
            assert_eq!(event["response"]["status"], "in_progress");
            assert_eq!(event["response"]["output"], json!([]));
        }
        assert_eq!(&Value::from(middle), &pair["events"], "{}", pair["name"]);
        assert_eq!(last["type"], pair["last"]);
        assert_eq!(last["response"], telling.response());
        let again = again::again(&telling.response(), None, None);
        assert_eq!(read(&[again]).last(), Some(last));
    }
}

#[test]
fn a_stream_that_breaks_tells_what_there_was_and_that_it_failed() {
    let mut telling = telling();
    let chunk = br#"{"choices":[{"delta":{"content":"Hel"}}]}"#;
    let begun = telling.chunk(chunk).expect("translates");
    let problem = json!({ "message": "gone", "code": "interrupted", "param": null });
    let told = read(&[begun, telling.broken(&problem)]);
    let [.., error, failed] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(
        (&error["type"], &error["error"]),
        (&"error".into(), &problem)
    );
    assert_eq!(
        (&error["message"], &error["code"]),
        (&"gone".into(), &"interrupted".into())
    );
    assert_eq!(failed["type"], "response.failed");
    let response = &failed["response"];
    assert_eq!(response, &telling.failed("gone"));
    assert_eq!(response["error"]["message"], "gone");
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["output"][0]["content"][0]["text"], "Hel");
}

#[test]
fn a_response_told_again_can_leave_out_its_first_event() {
    let said = br#"{"choices":[{"message":{"content":"x"}}]}"#;
    let response = telling().whole(said, None).expect("translates");
    let whole = again::again(&response, None, None);
    let rest = again::again(&response, None, Some(0));
    assert!(whole.ends_with(&rest) && rest.starts_with(b"event: response.in_progress"));
}

#[test]
fn listed_items_have_all_that_a_reader_expects() {
    let items = [
        json!({ "role": "user", "content": "Hi" }),
        json!({ "role": "assistant", "content": "Dear" }),
        json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" }),
        json!({ "type": "message", "id": "own", "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }),
    ];
    let listed = items::listed(&items, "ff");
    let expected = json!([
        { "type": "message", "id": "msg_ffi0", "role": "user", "status": "completed",
          "content": [{ "type": "input_text", "text": "Hi" }] },
        { "type": "message", "id": "msg_ffi1", "role": "assistant", "status": "completed",
          "content": [{ "type": "output_text", "text": "Dear", "annotations": [] }] },
        { "type": "function_call", "id": "fc_ffi2", "call_id": "c", "name": "f", "arguments": "{}",
          "status": "completed" },
        { "type": "message", "id": "own", "role": "user", "status": "completed",
          "content": [{ "type": "input_image", "image_url": "x", "detail": "auto" }] },
    ]);
    assert_eq!(Value::from(listed.clone()), expected);
    // What is listed asks for the same as what was said.
    let said = items::messages(None, items.iter()).expect("translates");
    let mut again = items::messages(None, listed.iter()).expect("translates");
    again[2]["content"][0]["image_url"]
        .as_object_mut()
        .map(|image| image.remove("detail"));
    assert_eq!(said, again);
}

/// What the handlers of a gateway share; nobody sells to it.
async fn shared() -> Arc<Shared> {
    let mut settings = config::Gateway::default();
    settings.listen.set_port(0);
    let client = Client::scripted(|_| Err(InferError::Interrupted("gone".into())));
    let gateway = Gateway::bind(client, settings, Metrics::default()).await;
    gateway.expect("binds").shared
}

fn commission(shared: &Shared) -> Commission {
    let asked = Asked::read(br#"{"model":"a/b","input":"x","background":true}"#);
    let asked = asked.expect("reads");
    Commission {
        record: Record::of(shared, &asked, "ff"),
        head: Head {
            id: "resp_ff".into(),
            created_at: 7,
            model: "a/b".into(),
            settings: asked.settings,
        },
        stem: "ff".into(),
        request: Request {
            endpoint: Endpoint::Chat,
            body: Bytes::from_static(b"{}"),
        },
        place: None,
    }
}

#[tokio::test]
async fn who_hangs_up_before_they_know_its_id_leaves_nothing_behind() {
    let shared = shared().await;
    {
        let begun = pin!(shared.background.begin(&shared, commission(&shared)));
        assert!(futures::poll!(begun).is_pending());
    }
    let stopped = CancellationToken::new();
    stopped.cancel();
    shared.background.end(stopped).await;
    assert!(shared.background.find("resp_ff").is_none());
    let kept: Option<Kept> = shared.responses.get("resp_ff").await.expect("is read");
    assert_eq!(kept, None);
}

#[tokio::test]
async fn none_is_begun_once_the_gateway_is_being_stopped() {
    let shared = shared().await;
    let stopped = CancellationToken::new();
    stopped.cancel();
    shared.background.end(stopped).await;
    let late = shared.background.begin(&shared, commission(&shared)).await;
    assert!(matches!(late, Err(Problem::Stopping)), "{late:?}");
    assert!(shared.background.find("resp_ff").is_none());
}

#[tokio::test]
async fn one_whose_end_cannot_be_written_is_kept_as_failed_with_the_reason() {
    let shared = shared().await;
    let Commission {
        record, head, stem, ..
    } = commission(&shared);
    let mut telling = Telling::new(head, stem);
    telling.stands(Standing::Queued);
    let mut response = telling.response();
    let queued = record.put(response.clone(), None).await;
    assert!(matches!(queued, Ok(true)), "{queued:?}");
    // A write to a pipe fails when its reader is gone; the next finds no pipe in its way.
    let folder = shared.client.data_dir().join(store::FOLDER);
    let part = folder.join("resp_ff.part");
    let made = Command::new("mkfifo").arg(&part).status().expect("runs");
    assert!(made.success());
    let reading = tokio::task::spawn_blocking(move || {
        let mut pipe = File::open(&part)?;
        pipe.read_exact(&mut [0])?;
        fs::remove_file(part)
    });
    response["status"] = "completed".into();
    response["output"] = json!(["x".repeat(1 << 20)]);
    let over = record.keep(response, None).await;
    reading.await.expect("ends").expect("reads and removes");
    assert_eq!(over["status"], "failed");
    assert!(over["error"]["message"].to_string().contains("written"));
    let kept: Option<Kept> = shared.responses.get("resp_ff").await.expect("is read");
    assert_eq!(kept.expect("is kept").response, over);
}

proptest! {
    #[test]
    fn no_bytes_of_a_stranger_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        Asked::read(&bytes).ok();
        telling().whole(&bytes, None).ok();
        telling().chunk(&bytes).ok();
    }

    #[test]
    fn a_stream_and_a_whole_answer_are_the_same_response(
        said in prop::collection::vec((0_u8..3, "[a-z]{1,4}"), 0..12)
    ) {
        let mut text = String::new();
        let mut calls = Vec::new();
        let mut chunks = Vec::new();
        // A whole answer holds its text before its calls.
        let (words, tools): (Vec<_>, Vec<_>) = said.into_iter().partition(|(kind, _)| *kind < 2);
        for (_, word) in words {
            text.push_str(&word);
            chunks.push(json!({ "choices": [{ "delta": { "content": word } }] }));
        }
        for (index, (_, name)) in tools.into_iter().enumerate() {
            let call = json!({
                "index": index, "id": format!("c{index}"),
                "function": { "name": name, "arguments": "{}" },
            });
            chunks.push(json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }));
            calls.push(call);
        }
        let whole = json!({ "choices": [{ "message": { "content": text, "tool_calls": calls } }] });
        let whole = telling().whole(&bytes(&whole), None).expect("translates");
        let (streamed, told) = stream(&chunks.into());
        prop_assert_eq!(streamed.response(), whole);
        let mut open = None;
        for event in &told {
            match event["type"].as_str().expect("a name") {
                "response.output_item.added" => {
                    prop_assert_eq!(open, None);
                    open = event["output_index"].as_u64();
                }
                "response.output_item.done" => {
                    prop_assert_eq!(event["output_index"].as_u64(), open.take());
                }
                name if name.contains("text") || name.contains("arguments") => {
                    prop_assert_eq!(event["output_index"].as_u64(), open);
                }
                _ => {}
            }
        }
    }
}
