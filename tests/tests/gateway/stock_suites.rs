//! The tests that the makers of stock libraries run themselves, against the gateway: nothing of
//! theirs is changed, and what does not apply is on a list with its reason.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use farthing_client::config::Auto;
use farthing_tests::street::{MODEL, RunningGateway, Street, TestNet};
use farthing_tests::upstream::Behaviour;
use tokio::process::Command;

/// The names of models in the suites.
const THEIRS: [&str; 6] = [
    "gpt-6-astra",
    "gpt-3.5-turbo-instruct",
    "text-embedding-3-small",
    "omni-moderation-2024-09-26",
    "claude-opus-5-5",
    "model_id",
];
/// What OpenAI takes for a moderation that names no model.
const MODERATOR: &str = "omni-moderation-latest";
/// A suite, as `tests/tools/setup.sh` has fetched it.
struct Suite {
    folder: &'static str,
    /// Which of its tests are about things that are sold here.
    tests: &'static [&'static str],
    /// Those of them that do not apply.
    list: &'static str,
    /// What its own settings ask pytest for and it cannot do without.
    options: &'static str,
}

const OPENAI: Suite = Suite {
    folder: "openai-3.51.0",
    tests: &[
        "chat",
        "conversations",
        "responses",
        "test_completions.py",
        "test_conversations.py",
        "test_embeddings.py",
        "test_models.py",
        "test_moderations.py",
        "test_responses.py",
    ],
    list: "openai.txt",
    options: "",
};
const ANTHROPIC: Suite = Suite {
    folder: "anthropic-2.10.0",
    tests: &["test_messages.py", "test_models.py"],
    list: "anthropic.txt",
    options: "-p tests._alias_httpx",
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A seller that takes everything, and a buyer to whom the suites' models are known by those names, and one model is the usual one.
async fn street(more: Vec<String>) -> Street {
    // The suites' strict readers know embeddings as numbers alone, though the library asks for
    // base64: their own mock server does not hear it.
    let seller = Behaviour::default().plain_embeddings();
    let net = TestNet::new()
        .upstreams(seller)
        .buyer_config(move |_, config| {
            let names = THEIRS.into_iter().chain([MODERATOR]).map(str::to_owned);
            let names = names.chain(more.clone());
            config
                .aliases
                .extend(names.map(|name| (name, MODEL.to_owned())));
            config.auto.push(Auto {
                models: vec![MODEL.to_owned()],
                ..Auto::default()
            });
        });
    net.start().await.expect("starts")
}

fn python() -> Command {
    let mut command = Command::new(root().join(".tools/suites/bin/python"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The models that Anthropic's library warns of; its suite asks each of them.
async fn outdated() -> Vec<String> {
    let print = "from anthropic.resources.messages.messages import DEPRECATED_MODELS as all\n\
                 print(*all)";
    let output = python().args(["-c", print]).output().await;
    let text = String::from_utf8(output.expect("starts").stdout).expect("text");
    text.split_whitespace().map(str::to_owned).collect()
}

async fn run(suite: &Suite, street: &Street, base: &str) -> Output {
    let sources = root().join(".tools/suites-src").join(suite.folder);
    let there = sources.exists();
    assert!(there, "no {}: run tests/tools/setup.sh", suite.folder);
    let mine = root().join("tests/clients/suites");
    let tests = suite.tests.iter();
    let data_dir = &street.buyers[0].config.data_dir;
    let mut command = python();
    command
        .current_dir(sources)
        .args(["-m", "pytest", "-p", "suite", "-p", "no:cacheprovider"])
        // Their own settings ask for many processes.
        .args(["-o", &format!("addopts={}", suite.options)])
        .args(["-q", "--tb=short", "-rfE"])
        .args(tests.map(|name| format!("tests/api_resources/{name}")))
        .env("PYTHONPATH", &mine)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TEST_API_BASE_URL", base)
        .env("SUITE_LIST", mine.join(suite.list))
        .env("RESPONSES_DIR", data_dir.join("responses"))
        .env("MODEL", MODEL)
        // Whatever proxy the machine has, this is about loopback.
        .env("NO_PROXY", "127.0.0.1");
    command.output().await.expect("starts")
}

/// How many tests its last line says have passed, or failed as they must.
fn said(text: &str, what: &str) -> u32 {
    let words: Vec<_> = text.lines().last().unwrap_or_default().split(' ').collect();
    let place = words
        .iter()
        .position(|word| word.trim_end_matches(',') == what);
    place.map_or(0, |place| words[place - 1].parse().expect("a number"))
}

/// At least so many pass, and none fails but those on the list.
async fn assert_passes(suite: &Suite, street: &Street, base: &str, least: u32) {
    let output = run(suite, street, base).await;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "some failed that should not have");
    assert!(said(&text, "passed") >= least, "some were not run");
    assert_eq!(street.buyers[0].charged(), street.sellers[0].charged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_openai_tests_its_python_library_with_passes() {
    let street = street(Vec::new()).await;
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    let gateway = gateway.expect("listens");
    assert_passes(&OPENAI, &street, &gateway.base_url(), 500).await;
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_anthropic_tests_its_python_library_with_passes() {
    let street = street(outdated().await).await;
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    let gateway = gateway.expect("listens");
    let url = gateway.base_url();
    let base = url.strip_suffix("/v1").expect("ends in /v1");
    assert_passes(&ANTHROPIC, &street, base, 80).await;
    gateway.stop().await;
    street.stop().await;
}
