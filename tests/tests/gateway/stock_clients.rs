//! The unmodified libraries of OpenAI (Python, Node), Anthropic and OpenRouter (Python) against the gateway:
//! nothing of theirs is patched, and nothing but the base URL is set.

use farthing_tests::clients;
use farthing_tests::llama::{self, Llama};
use farthing_tests::street::{MODEL, RunningGateway, Street, TestNet};
use tokio::process::Command;

/// The key that the endpoint accepts in these tests.
const KEY: &str = "sk-farthing-a-key-for-tests";

fn python() -> Command {
    clients::python("clients", "openai_python.py")
}

fn anthropic() -> Command {
    clients::python("clients", "anthropic_python.py")
}

fn openrouter() -> Command {
    clients::python("openrouter", "openrouter_python.py")
}

fn node() -> Command {
    clients::node("npm", "openai_node.mjs")
}

/// Runs it to its good end against the gateway.
async fn run(mut command: Command, gateway: &RunningGateway, settings: &[(&str, &str)]) {
    command
        .env("BASE_URL", gateway.base_url())
        .envs(settings.iter().copied());
    println!("{}", clients::run(command).await);
}

/// Both sides' books agree on what the client was charged.
fn assert_agreed(street: &Street) {
    let charged = street.buyers[0].charged();
    assert!(!charged.is_zero());
    assert_eq!(charged, street.sellers[0].charged());
}

/// An endpoint that asks for [`KEY`].
async fn locked(street: &Street) -> RunningGateway {
    let keys = street.buyers[0].dir().join("keys.txt");
    std::fs::write(&keys, format!("{KEY}\n")).expect("written");
    let mut settings = street.buyers[0].config.gateway.clone();
    settings.listen.set_port(0);
    settings.api_keys_file = Some(keys);
    let gateway = RunningGateway::open(&street.buyers[0], settings).await;
    gateway.expect("listens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_openai_finds_everything_as_it_expects() {
    let street = TestNet::new().start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0])
        .await
        .expect("listens");
    let settings = [
        ("MODEL", MODEL),
        ("EMBED", "1"),
        ("RESPONSES", "1"),
        ("TOOLS", "1"),
        ("MODERATE", "1"),
    ];
    run(python(), &gateway, &settings).await;
    assert_agreed(&street);
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_openai_finds_everything_as_it_expects() {
    let street = TestNet::new().start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0])
        .await
        .expect("listens");
    run(node(), &gateway, &[("MODEL", MODEL)]).await;
    assert_agreed(&street);
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_libraries_send_their_key_and_understand_a_refusal() {
    let street = TestNet::new().start().await.expect("starts");
    let gateway = locked(&street).await;
    let settings = [
        ("MODEL", MODEL),
        ("API_KEY", KEY),
        ("API_KEY_EXPECTED", "1"),
    ];
    for command in [python(), node()] {
        run(command, &gateway, &settings).await;
    }
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_anthropic_finds_everything_as_it_expects() {
    let street = TestNet::new().start().await.expect("starts");
    let gateway = locked(&street).await;
    let url = gateway.base_url();
    let base = url.strip_suffix("/v1").expect("ends in /v1");
    let settings = [
        ("BASE_URL", base),
        ("MODEL", MODEL),
        ("API_KEY", KEY),
        ("API_KEY_EXPECTED", "1"),
    ];
    run(anthropic(), &gateway, &settings).await;
    assert_agreed(&street);
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_openrouter_finds_everything_as_it_expects() {
    let street = TestNet::new().sellers(2).start().await.expect("starts");
    let gateway = locked(&street).await;
    let base = gateway.base_url().replace("/v1", "/api/v1");
    let settings = [
        ("BASE_URL", base.as_str()),
        ("MODEL", MODEL),
        ("API_KEY", KEY),
        ("API_KEY_EXPECTED", "1"),
    ];
    run(openrouter(), &gateway, &settings).await;
    let charged = street.settled().await.expect("agrees");
    assert!(!charged.is_zero());
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_python_libraries_buy_from_the_real_model() {
    assert!(
        Llama::is_installed(),
        "no model server: run tests/tools/setup.sh model"
    );
    let logs = tempfile::tempdir().expect("a folder");
    let llama = Llama::start(4, &logs.path().join("llama.log")).await;
    let llama = llama.expect("starts");
    let upstream = llama.base_url().to_owned();
    let street = TestNet::new()
        .seller_config(move |_, config| {
            config.upstream.base_url.clone_from(&upstream);
            for model in &mut config.models {
                llama::MODEL.clone_into(&mut model.id);
                model.context = llama::CONTEXT;
                model.slots = 8;
            }
        })
        .start()
        .await
        .expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0])
        .await
        .expect("listens");
    let settings = [("MODEL", llama::MODEL), ("EMBED", "1"), ("RESPONSES", "1")];
    run(python(), &gateway, &settings).await;
    let url = gateway.base_url();
    let base = url.strip_suffix("/v1").expect("ends in /v1");
    let settings = [("BASE_URL", base), ("MODEL", llama::MODEL)];
    run(anthropic(), &gateway, &settings).await;
    assert_agreed(&street);
    gateway.stop().await;
    street.stop().await;
    llama.stop().await;
}
