//! Tests against shapes recorded from the servers of the field.

use proptest::prelude::*;

use super::*;

fn usage(prompt: u32, cached: u32, completion: u32) -> Usage {
    Usage {
        prompt,
        cached,
        completion,
    }
}

/// Feeds a stream; the usage after each event.
fn stream(events: &[&str]) -> (Meter, Vec<Usage>) {
    let mut meter = Meter::new(400);
    let feed = |event: &&str| meter.event(event.as_bytes()).expect("an answer");
    let seen = events.iter().map(feed).collect();
    (meter, seen)
}

#[test]
fn llama_cpp_reports_in_a_last_event_without_choices() {
    let (meter, seen) = stream(&[
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1769000000,"id":"chatcmpl-x","model":"m.gguf","system_fingerprint":"b7000","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hello"}}],"created":1769000000,"id":"chatcmpl-x","model":"m.gguf","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" \"world\"\n"}}],"created":1769000000,"id":"chatcmpl-x","model":"m.gguf","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1769000000,"id":"chatcmpl-x","model":"m.gguf","object":"chat.completion.chunk"}"#,
        r#"{"choices":[],"created":1769000000,"id":"chatcmpl-x","model":"m.gguf","object":"chat.completion.chunk","usage":{"completion_tokens":4,"prompt_tokens":31,"total_tokens":35,"prompt_tokens_details":{"cached_tokens":12}},"timings":{"cache_n":12,"prompt_n":19,"prompt_ms":22.5,"predicted_n":4,"predicted_per_second":121.1}}"#,
    ]);
    assert_eq!(seen[0], usage(100, 0, 0));
    assert_eq!(seen[2], usage(100, 0, 2));
    assert_eq!(seen[4], usage(31, 12, 4));
    assert!(meter.finished(1) && meter.is_reported());
}

#[test]
fn vllm_reports_as_it_goes_and_between_reports_deltas_count() {
    let (meter, seen) = stream(&[
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"reasoning_content":"Hm"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3}}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5,"prompt_tokens_details":null}}"#,
    ]);
    let completions: Vec<u32> = seen.iter().map(|usage| usage.completion).collect();
    assert_eq!(completions, [0, 3, 4, 4, 5]);
    assert_eq!(seen[0].prompt, 9);
    assert!(meter.finished(1));
}

#[test]
fn ollama_without_usage_is_counted() {
    let (meter, seen) = stream(&[
        r#"{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Let"},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}"#,
    ]);
    assert_eq!(seen[2], usage(100, 0, 2));
    assert!(meter.finished(1) && !meter.is_reported());
}

#[test]
fn openai_says_usage_null_until_the_end() {
    let (meter, seen) = stream(&[
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x1"}"#,
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"get","arguments":""}}]},"logprobs":null,"finish_reason":null}],"usage":null}"#,
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\""}}]},"logprobs":null,"finish_reason":null}],"usage":null}"#,
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}"#,
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt","choices":[],"usage":{"prompt_tokens":50,"completion_tokens":12,"total_tokens":62,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}"#,
    ]);
    assert_eq!(seen[2].completion, 2);
    assert_eq!(meter.usage(), usage(50, 0, 12));
}

#[test]
fn a_text_completion_is_counted_by_its_text() {
    let (meter, seen) = stream(&[
        r#"{"id":"cmpl","object":"text_completion","choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}]}"#,
        r#"{"id":"cmpl","object":"text_completion","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}]}"#,
    ]);
    assert_eq!(seen[1].completion, 1);
    assert!(meter.finished(1));
}

#[test]
fn an_answer_is_finished_when_all_its_choices_are() {
    let (meter, seen) = stream(&[
        r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#,
        r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#,
    ]);
    assert_eq!(seen[1].completion, 2);
    assert!(!meter.finished(1) && !meter.finished(2));
    let (meter, _) = stream(&[
        r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{}}]}"#,
        r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
    ]);
    assert!(meter.finished(2) && meter.finished(1));
    // One after the other, and the second never began.
    let (meter, _) = stream(&[r#"{"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}"#]);
    assert!(meter.finished(1) && !meter.finished(2));
}

#[test]
fn a_document_is_counted_by_its_report_or_its_bytes() {
    let reported = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#;
    let mut meter = Meter::new(400);
    assert_eq!(meter.document(reported.as_bytes()), Ok(usage(9, 0, 3)));
    assert!(meter.finished(1));
    let silent =
        r#"{"choices":[{"index":0,"message":{"content":[{"type":"text","text":"12345"}]}}]}"#;
    let counted = Meter::new(401).document(silent.as_bytes()).expect("reads");
    assert_eq!(counted, usage(101, 0, 3));
}

#[test]
fn embeddings_use_prompt_tokens_only() {
    for report in [
        r#"{"prompt_tokens":8,"total_tokens":8}"#,
        r#"{"total_tokens":8}"#,
    ] {
        let document = format!(
            r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":[0.1,-2e-3]}}],"model":"e","usage":{report}}}"#
        );
        let used = Meter::new(40).document(document.as_bytes());
        assert_eq!(used, Ok(usage(8, 0, 0)));
    }
}

#[test]
fn strange_numbers_neither_overflow_nor_go_unpaid() {
    let (_, seen) = stream(&[
        r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
        r#"{"choices":[{"index":999,"delta":{"content":"b"}}],"usage":{"prompt_tokens":99999999999999,"completion_tokens":-5,"prompt_tokens_details":{"cached_tokens":1e30}}}"#,
        r#"{"choices":null,"usage":{"prompt_tokens":7.0,"completion_tokens":4294967295}}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"c"}}]}"#,
    ]);
    assert_eq!(seen[0], usage(100, 0, 1));
    assert_eq!(seen[1], usage(u32::MAX, u32::MAX, 0));
    assert_eq!(seen[3], usage(7, 0, u32::MAX));
}

#[test]
fn what_is_not_an_answer_changes_nothing() {
    let mut meter = Meter::new(8);
    for bad in ["", "[]", "{", "\"text\"", r#"{"choices":5}"#, "{}x"] {
        assert!(meter.event(bad.as_bytes()).is_err(), "{bad}");
    }
    assert_eq!(meter.usage(), usage(2, 0, 0));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut meter = Meter::new(8);
        let before = meter.usage();
        if meter.event(&bytes).is_err() {
            prop_assert_eq!(meter.usage(), before);
        }
    }

    #[test]
    fn each_delta_with_content_counts_one(deltas in proptest::collection::vec(any::<bool>(), 0..50)) {
        let mut meter = Meter::new(8);
        for full in &deltas {
            let text = if *full { "x" } else { "" };
            let event = format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
            meter.event(event.as_bytes()).expect("an answer");
        }
        let expected = deltas.iter().filter(|full| **full).count();
        prop_assert_eq!(meter.usage().completion as usize, expected);
    }
}

#[test]
fn an_event_of_several_tokens_counts_as_several_until_the_server_says() {
    let mut meter = Meter::new(0);
    let long = format!(
        r#"{{"choices":[{{"index":0,"delta":{{"content":"{}"}}}}]}}"#,
        "x".repeat(60)
    );
    let usage = meter.event(long.as_bytes()).expect("an answer");
    assert_eq!(usage.completion, 10);
    let report = br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":12}}"#;
    assert_eq!(meter.event(report).expect("an answer").completion, 12);
}
