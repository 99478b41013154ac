//! A request in OpenAI's dialect reaches the model server byte for byte, through the gateway, the
//! network and the seller, where nothing in it must change.

use farthing_tests::street::{RunningGateway, TestNet};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_golden_request_reaches_the_model_server_as_it_was_written() {
    let net = TestNet::new().seller_config(|_, config| {
        config.models[0].features = ["vision", "audio"].map(str::to_owned).to_vec();
    });
    let street = net.start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    let gateway = gateway.expect("listens");
    let golden = include_str!("../../../client/src/gateway/openai/golden.json");
    let golden: Value = serde_json::from_str(golden).expect("JSON");
    let pairs = golden["requests"].as_array().expect("a list");
    for pair in pairs {
        let (path, body) = (pair["path"].as_str(), pair["body"].as_str());
        let (path, body) = (path.expect("a path"), body.expect("a body"));
        let url = format!("http://{}{path}", gateway.address());
        let reply = reqwest::Client::new().post(url).body(body.to_owned());
        let reply = reply.send().await.expect("is answered");
        let status = reply.status();
        let text = reply.text().await.expect("is whole");
        assert!(status.is_success(), "{}: {text}", pair["name"]);
        let seen = street.sellers[0].upstream.requests();
        let seen = &seen.last().expect("was asked").body;
        assert_eq!(String::from_utf8_lossy(seen), body, "{}", pair["name"]);
    }
    assert!(!street.settled().await.expect("agrees").is_zero());
    gateway.stop().await;
    street.stop().await;
}
