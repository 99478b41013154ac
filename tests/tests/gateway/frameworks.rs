//! What agents' developers use, as its registry has it, against the gateway: LangChain and its own
//! suite, the Vercel AI SDK, the `llm` command line, the coding agents aider and Codex. Nothing
//! but the base URL is set, and what only OpenAI's own servers do is off.

use std::collections::BTreeMap;

use farthing_tests::clients;
use farthing_tests::street::{MODEL, RunningGateway, Street, TestNet};
use farthing_tests::upstream::Behaviour;
use serde::Deserialize;

/// A second model, for what chooses one.
const OTHER: &str = "mock/other";

async fn open() -> (Street, RunningGateway) {
    open_with(Behaviour::default()).await
}

async fn open_with(behaviour: Behaviour) -> (Street, RunningGateway) {
    let street = TestNet::new()
        .upstreams(behaviour.models([MODEL, OTHER]))
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

/// What aider makes of an answer: it writes the file down.
const EDIT: &str = "Here you are.\n\ncoin.py\n```\nCOIN = \"farthing\"\n```\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aider_changes_a_file_as_the_model_says() {
    let (street, gateway) = open_with(Behaviour::default().says(EDIT)).await;
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("coin.py");
    for (told, more) in [("streamed", "--stream"), ("whole", "--no-stream")] {
        std::fs::write(&file, "COIN = \"penny\"\n").expect("written");
        let model = format!("openai/{MODEL}");
        let limits = serde_json::json!({&model: {"max_input_tokens": 4096, "litellm_provider": "openai", "mode": "chat"}});
        let metadata = home.path().join(".aider.model.metadata.json");
        std::fs::write(metadata, limits.to_string()).expect("written");
        let mut command = clients::tool("aider", "aider");
        command
            .current_dir(home.path())
            .env("HOME", home.path())
            .env("OPENAI_API_BASE", gateway.base_url())
            .env("OPENAI_API_KEY", "unused")
            // What it would ask the Internet for.
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .args(["--no-check-update", "--analytics-disable", "--no-git"])
            .args(["--no-show-release-notes", "--no-show-model-warnings"])
            .args(["--yes-always", "--no-pretty", more, "--model", &model])
            .args(["--message", "Let the coin be a farthing.", "coin.py"]);
        println!("{told}: {}", clients::run(command).await);
        let changed = std::fs::read_to_string(&file).expect("read");
        assert_eq!(changed, "COIN = \"farthing\"\n", "{told}");
    }
    assert_eq!(street.sellers[0].upstream.count(), 2, "once each time");
    close(street, gateway).await;
}

/// What Codex is told of the gateway. Tools of OpenAI's own servers are off.
fn codex_settings(gateway: &RunningGateway) -> String {
    format!(
        r#"model = "{MODEL}"
model_provider = "farthing"
web_search = "disabled"

[model_providers.farthing]
name = "Farthing"
base_url = "{}"
wire_api = "responses"

[agents]
enabled = false
"#,
        gateway.base_url()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_runs_the_command_that_the_model_asks_for() {
    let (street, gateway) = open().await;
    let home = tempfile::tempdir().expect("a folder");
    let work = tempfile::tempdir().expect("a folder");
    std::fs::write(home.path().join("config.toml"), codex_settings(&gateway)).expect("written");
    // The mock calls the tool that is named, with the words in quotes in the order of its fields:
    // the command, its justification, a rule, a shell, a folder.
    let prompt =
        "Use exec_command: 'printf farthing > coin.txt' 'no' 'printf' '/bin/sh' '.' 10000 10000";
    let mut command = clients::npm_tool("codex", "codex");
    command
        .current_dir(work.path())
        .env("CODEX_HOME", home.path())
        .env("HOME", home.path())
        .args(["exec", "--skip-git-repo-check"])
        .args(["--sandbox", "danger-full-access", prompt]);
    let said = clients::run(command).await;
    println!("{said}");
    assert!(
        said.contains("A farthing buys"),
        "the last word is the model's"
    );
    let written = std::fs::read_to_string(work.path().join("coin.txt"));
    assert_eq!(written.expect("is there"), "farthing");
    assert_eq!(
        street.sellers[0].upstream.count(),
        2,
        "once, and with the result"
    );
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
