//! A real model server behind two nodes, one of which is killed in the middle of an answer.

use farthing_client::client::{Event, Request};
use farthing_client::config::Strategy;
use farthing_protocol::offer::{ASSISTANT_PREFIX, Endpoint};
use farthing_tests::llama::{self, Llama};
use farthing_tests::street::{TestNet, listen};
use serde_json::{Value, json};

const TOKENS: u64 = 48;

fn text(event: &[u8]) -> String {
    let event: Value = serde_json::from_slice(event).expect("JSON");
    let text = &event["choices"][0]["delta"]["content"];
    text.as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn llama_goes_on_at_another_node_when_the_first_is_killed_in_the_middle() {
    assert!(
        Llama::is_installed(),
        "no model server: run tests/tools/setup.sh model"
    );
    let logs = tempfile::tempdir().expect("a folder");
    let llama = Llama::start(2, &logs.path().join("llama.log")).await;
    let llama = llama.expect("starts");
    let upstream = llama.base_url().to_owned();
    let net = TestNet::new().sellers(2).crashable();
    let net = net.seller_config(move |_, config| {
        config.upstream.base_url.clone_from(&upstream);
        let model = &mut config.models[0];
        llama::MODEL.clone_into(&mut model.id);
        model.context = llama::CONTEXT;
        model.features = vec![ASSISTANT_PREFIX.to_owned()];
    });
    let net = net.buyer_config(|_, config| config.router.strategy = Strategy::Cheapest);
    let mut street = net.start().await.expect("starts");
    let body = json!({
        "model": llama::MODEL, "stream": true, "temperature": 0.7, "seed": 7, "max_tokens": TOKENS,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "Tell me a long story about a small coin."}],
    });
    let request = Request {
        endpoint: Endpoint::Chat,
        body: body.to_string().into(),
    };
    let mut answer = street.buyers[0].infer(request).await.expect("begins");
    assert_eq!(answer.seller, street.sellers[0].id());
    let mut heard = Vec::new();
    while heard.len() < 8 {
        let event = answer.next().await.expect("goes on").expect("goes on");
        if let Event::Data(event) = event {
            heard.push(event);
        }
    }
    street.sellers[0].crash().expect("crashes");
    let (rest, end) = listen(&mut answer).await;
    let bill = end.expect("ends well");
    assert_eq!(bill.receipt.seller, street.sellers[1].id());
    let first: String = heard.iter().map(|event| text(event)).collect();
    let second: String = rest.iter().map(|event| text(event)).collect();
    assert!(!first.is_empty() && !second.is_empty());
    let names = heard.iter().chain(&rest).map(|event| {
        let event: Value = serde_json::from_slice(event).expect("JSON");
        event["id"].to_string()
    });
    let names: std::collections::BTreeSet<_> = names.collect();
    assert_eq!(names.len(), 1, "one answer under one name");
    let last: Value = serde_json::from_slice(rest.last().expect("a last")).expect("JSON");
    let counted = last["usage"]["completion_tokens"].as_u64().expect("usage");
    assert!(counted <= TOKENS, "{counted} of {TOKENS}, over both");
    println!("{first}|{second}");
    street.stop().await;
    llama.stop().await;
}
