//! What agents' developers use, as its registry has it, against the gateway: LangChain and its own
//! suite, the Vercel AI SDK, the `llm` command line. Nothing but the base URL is set.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]
#![allow(clippy::print_stdout, reason = "a test says what it saw")]

use std::collections::BTreeMap;

use farthing_tests::clients;
use farthing_tests::street::{MODEL, RunningGateway, Street, TestNet};
use farthing_tests::upstream::Behaviour;
use serde::Deserialize;

/// A second model, for what chooses one.
const OTHER: &str = "mock/other";

async fn open() -> (Street, RunningGateway) {
    let street = TestNet::new()
        .upstreams(Behaviour::default().models([MODEL, OTHER]))
        .seller_config(|_, config| {
            let mut other = config.models[0].clone();
            OTHER.clone_into(&mut other.id);
            config.models.push(other);
        })
        .start()
        .await
        .expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    (street, gateway.expect("listens"))
}

/// Both sides' books agree on what was charged, which is something.
async fn close(street: Street, gateway: RunningGateway) {
    let charged = street.settled().await.expect("agrees");
    assert!(!charged.is_zero());
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn langchain_finds_what_it_expects() {
    let (street, gateway) = open().await;
    let mut command = clients::python("agents", "langchain.py");
    command
        .env("BASE_URL", gateway.base_url())
        .env("MODEL", MODEL);
    println!("{}", clients::run(command).await);
    close(street, gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ai_sdk_finds_what_it_expects() {
    let (street, gateway) = open().await;
    let mut command = clients::node("agents-npm", "ai_sdk.mjs");
    command
        .env("BASE_URL", gateway.base_url())
        .env("MODEL", MODEL);
    println!("{}", clients::run(command).await);
    close(street, gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_llm_command_line_asks_by_its_own_configuration() {
    let (street, gateway) = open().await;
    let home = tempfile::tempdir().expect("a folder");
    let models = format!(
        "- model_id: farthing\n  model_name: {MODEL}\n  api_base: {}\n  supports_schema: true\n  supports_tools: true\n",
        gateway.base_url()
    );
    let file = home.path().join("extra-openai-models.yaml");
    std::fs::write(file, models).expect("written");
    let ask = |more: &'static [&'static str]| {
        let mut command = clients::tool("agents", "llm");
        command.env("LLM_USER_PATH", home.path());
        command.args([
            "-m",
            "farthing",
            "--key",
            "unused",
            "How much is a farthing?",
        ]);
        command.args(more);
        clients::run(command)
    };
    let streamed = ask(&["-o", "max_tokens", "3"]).await;
    assert_eq!(streamed.trim(), "A farthing buys");
    let whole = ask(&["--no-stream", "-o", "max_tokens", "3"]).await;
    assert_eq!(whole.trim(), "A farthing buys");
    let object = ask(&["--schema", "coin, worth float"]).await;
    let object: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&object).expect("an object");
    assert_eq!(object.keys().collect::<Vec<_>>(), ["coin", "worth"]);
    close(street, gateway).await;
}

/// What became of LangChain's suite.
#[derive(Deserialize)]
struct Outcomes {
    ended: i32,
    passed: usize,
    skipped: BTreeMap<String, String>,
    failed: BTreeMap<String, String>,
}

/// The tests of the suite that do not run here, each with why.
const NOT_RUN: [(&str, &str); 8] = [
    (
        "test_image_inputs",
        "the suite fetches its picture from the Internet",
    ),
    (
        "test_pdf_inputs",
        "the suite fetches its document from the Internet",
    ),
    (
        "test_audio_inputs",
        "the suite fetches its sound from the Internet",
    ),
    (
        "test_image_tool_message",
        "the suite fetches its picture from the Internet",
    ),
    (
        "test_pdf_tool_message",
        "the suite fetches its document from the Internet",
    ),
    (
        "test_anthropic_inputs",
        "the content blocks of Anthropic's API, not of this one",
    ),
    (
        "test_structured_output_pydantic_2_v1",
        "pydantic's older models, on Python before 3.14",
    ),
    (
        "test_stream_time",
        "compares times with a recorded cassette; none is recorded",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn langchains_own_suite_for_chat_models_passes() {
    let (street, gateway) = open().await;
    let mut command = clients::python("agents", "langchain_suite.py");
    command
        .env("BASE_URL", gateway.base_url())
        .env("MODEL", MODEL)
        .env("OTHER", OTHER);
    let said = clients::run(command).await;
    let outcomes: Outcomes = serde_json::from_str(&said).expect("one line of JSON");
    let Outcomes {
        passed,
        skipped,
        failed,
        ended,
    } = outcomes;
    println!("{passed} passed; skipped: {skipped:#?}");
    assert!(failed.is_empty() && ended == 0, "{ended}: {failed:#?}");
    for (test, why) in skipped {
        let known = NOT_RUN.iter().any(|(name, _)| test.contains(name));
        assert!(known, "{test} was skipped: {why}");
    }
    assert!(passed >= 80, "only {passed} passed");
    close(street, gateway).await;
}
