//! A real llama.cpp sold by two nodes: what the model server can do reaches the application from
//! either of them. The model is small and says nothing sensible; what it may say is settled by the
//! server's grammar, so shapes are checked and not wisdom.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, Uri};
use farthing_client::client::Request;
use farthing_client::config::Upstream;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::purchase::Endpoint;
use farthing_tests::llama::{self, Llama};
use farthing_tests::street::{RunningGateway, Street, TestNet, eventually};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

const PLACES: [&str; 2] = ["Bath", "Leeds"];

/// Two sellers of one model server, and a buyer's gateway.
struct Stage {
    street: Street,
    gateway: RunningGateway,
    llama: Llama,
    http: reqwest::Client,
    charged: Amount,
    _logs: tempfile::TempDir,
}

impl Stage {
    async fn open() -> Self {
        let logs = tempfile::tempdir().expect("a folder");
        let llama = Llama::start_with_tools(2, &logs.path().join("llama.log")).await;
        let llama = llama.expect("a model server (tests/tools/setup.sh model)");
        let upstream = llama.base_url().to_owned();
        let net = TestNet::new().sellers(2).seller_config(move |_, config| {
            config.upstream.base_url.clone_from(&upstream);
            let model = &mut config.models[0];
            llama::MODEL.clone_into(&mut model.id);
            model.context = llama::CONTEXT;
            // A few words' embedding costs something, too.
            model.prices.input = Price(2_000_000);
        });
        let street = net.start().await.expect("starts");
        let gateway = RunningGateway::free(&street.buyers[0]).await;
        let http = reqwest::Client::builder().no_proxy().build();
        Self {
            street,
            gateway: gateway.expect("listens"),
            llama,
            http: http.expect("a client"),
            charged: Amount::ZERO,
            _logs: logs,
        }
    }

    /// Asks one of the sellers and nobody else, which that seller's books must show.
    async fn ask(&mut self, seller: usize, path: &str, mut body: Value) -> (HeaderMap, String) {
        let id = self.street.sellers[seller].id();
        body["model"] = llama::MODEL.into();
        body["provider"] = json!({"only": [id], "allow_fallbacks": false});
        let sold = |street: &Street| -> u64 {
            let channels = street.sellers[seller].channels().into_iter();
            channels.map(|(_, view)| view.channel.receipts()).sum()
        };
        let before = sold(&self.street);
        let url = format!("{}/{path}", self.gateway.base_url());
        let answer = self.http.post(url).json(&body).send().await;
        let answer = answer.expect("answers");
        let (status, head) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.expect("text");
        assert_eq!(status, 200, "{text}");
        assert_eq!(head["x-farthing-seller"], id.to_string().as_str());
        self.charged = self.street.settled().await.expect("agrees");
        assert_eq!(sold(&self.street), before + 1, "it has no receipt");
        (head, text)
    }

    async fn whole(&mut self, seller: usize, path: &str, body: Value) -> Value {
        let (_, text) = self.ask(seller, path, body).await;
        serde_json::from_str(&text).expect("JSON")
    }

    /// A stream's chunks. It must end with one bill and one `[DONE]`.
    async fn chunks(&mut self, seller: usize, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let (_, text) = self.ask(seller, "chat/completions", body).await;
        assert_eq!(text.matches("data: [DONE]\n\n").count(), 1, "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(text.matches("\n: farthing {").count(), 1, "{text}");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data = data.filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).expect("JSON"))
            .collect()
    }

    async fn close(self) {
        assert!(!self.charged.is_zero());
        self.gateway.stop().await;
        self.street.stop().await;
        self.llama.stop().await;
    }
}

fn said(chunks: &[Value], pointer: &str) -> String {
    let parts = chunks.iter().filter_map(|chunk| chunk.pointer(pointer));
    parts.filter_map(Value::as_str).collect()
}

fn finish(chunks: &[Value]) -> Vec<&str> {
    let reasons = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["finish_reason"]);
    reasons.filter_map(Value::as_str).collect()
}

fn assert_place(arguments: &str) {
    let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
    let place = arguments["place"].as_str().expect("a place");
    assert!(PLACES.contains(&place), "{arguments}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_tool_is_called_through_either_seller_whole_and_streamed() {
    let mut stage = Stage::open().await;
    let parameters = json!({
        "type": "object",
        "properties": {"place": {"type": "string", "enum": PLACES}},
        "required": ["place"],
        "additionalProperties": false,
    });
    let function = json!({"name": "get_weather", "description": "The weather in a place.", "parameters": parameters});
    // The grammar lets a model talk before it calls, and call again and again: the answer begins
    // with the mark of a call, and ends with that of a second.
    let begun = json!({"role": "assistant", "content": "<tool_call>\n"});
    let body = json!({
        "messages": [{"role": "user", "content": "What is the weather in Bath?"}, begun],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required", "stop": ["<tool_call>"], "max_tokens": 128, "temperature": 0,
    });
    for seller in [0, 1] {
        let answer = stage.whole(seller, "chat/completions", body.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(call["type"], "function", "{answer}");
        assert_eq!(call["function"]["name"], "get_weather", "{answer}");
        assert!(call["id"].as_str().is_some_and(|id| !id.is_empty()));
        assert_place(call["function"]["arguments"].as_str().expect("text"));

        let chunks = stage.chunks(seller, body.clone()).await;
        let call = "/choices/0/delta/tool_calls/0";
        assert_eq!(
            said(&chunks, &format!("{call}/function/name")),
            "get_weather"
        );
        assert_place(&said(&chunks, &format!("{call}/function/arguments")));
        assert_eq!(finish(&chunks), ["tool_calls"]);
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_schema_is_kept_through_either_seller_whole_and_streamed() {
    let mut stage = Stage::open().await;
    let schema = json!({
        "type": "object",
        "properties": {
            "coin": {"type": "string", "enum": ["farthing", "penny"]},
            "old": {"type": "boolean"},
        },
        "required": ["coin", "old"],
        "additionalProperties": false,
    });
    let body = json!({
        "messages": [{"role": "user", "content": "Name a coin."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "coin", "strict": true, "schema": schema}},
        "max_tokens": 64, "temperature": 0,
    });
    let fits = |text: &str| {
        let made: Value = serde_json::from_str(text).expect("JSON");
        let coin = made["coin"].as_str().expect("a coin");
        assert!(["farthing", "penny"].contains(&coin), "{made}");
        assert!(made["old"].is_boolean(), "{made}");
        assert_eq!(made.as_object().expect("an object").len(), 2, "{made}");
    };
    for seller in [0, 1] {
        let answer = stage.whole(seller, "chat/completions", body.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        fits(choice["message"]["content"].as_str().expect("text"));
        let chunks = stage.chunks(seller, body.clone()).await;
        fits(&said(&chunks, "/choices/0/delta/content"));
        assert_eq!(finish(&chunks), ["stop"]);
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_are_the_same_from_either_seller_and_differ_by_input() {
    let mut stage = Stage::open().await;
    let mut vectors = Vec::new();
    for (seller, input) in [(0, "a farthing"), (1, "a farthing"), (0, "a mountain")] {
        let body = json!({"input": input, "encoding_format": "float"});
        let answer = stage.whole(seller, "embeddings", body).await;
        let numbers = answer["data"][0]["embedding"].as_array().expect("numbers");
        let numbers = numbers.iter().map(|n| n.as_f64().expect("a number"));
        vectors.push(numbers.collect::<Vec<f64>>());
        assert!(answer["usage"]["prompt_tokens"].as_u64().expect("usage") > 0);
    }
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let [one, same, other] = &vectors[..] else {
        panic!("three")
    };
    assert!(!one.is_empty() && one.len() == other.len());
    let (near, far) = (cosine(one, same), cosine(one, other));
    assert!(near > 0.999 && far < near, "{near} and {far}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_flows_from_either_seller_with_its_usage_on_the_receipt() {
    let mut stage = Stage::open().await;
    for seller in [0, 1] {
        let body = json!({
            "messages": [{"role": "user", "content": "Tell me about a small coin."}],
            "stream_options": {"include_usage": true}, "max_tokens": 24, "temperature": 0,
        });
        let chunks = stage.chunks(seller, body).await;
        let text = said(&chunks, "/choices/0/delta/content");
        let pieces = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["delta"]["content"].is_string());
        assert!(!text.is_empty() && pieces.count() > 4, "{chunks:#?}");
        assert_eq!(finish(&chunks).len(), 1, "{chunks:#?}");
        let usage = &chunks.last().expect("chunks")["usage"];
        let receipts = stage.street.buyers[0].receipts().await;
        let newest = receipts.iter().max_by_key(|receipt| receipt.finished);
        let counted = newest.expect("a receipt").usage;
        assert_eq!(usage["completion_tokens"], counted.completion, "{usage}");
        assert_eq!(usage["prompt_tokens"], counted.prompt, "{usage}");
        println!("seller {seller}: {text}");
    }
    stage.close().await;
}

/// A server before the model server, and what it was asked for and answered.
async fn before(model_server: &str) -> (String, Arc<Mutex<Vec<(String, StatusCode)>>>) {
    let to = model_server.trim_end_matches("/v1").to_owned();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (http, noted) = (reqwest::Client::new(), Arc::clone(&seen));
    let pass = move |uri: Uri, body: Bytes| {
        let (http, noted) = (http.clone(), Arc::clone(&noted));
        let url = format!("{to}{uri}");
        async move {
            let answer = http.post(url).body(body).send().await.expect("answers");
            let status = answer.status();
            let text = answer.bytes().await.expect("is read");
            let path = uri.path().to_owned();
            noted.lock().expect("no panic").push((path, status));
            (status, text)
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("listens");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let routes = Router::new().fallback(pass);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_llama_of_our_own_counts_after_an_honest_seller_and_finds_nothing() {
    let logs = tempfile::tempdir().expect("a folder");
    let llama = Llama::start_with_tools(2, &logs.path().join("llama.log")).await;
    let llama = llama.expect("a model server (tests/tools/setup.sh model)");
    let (url, seen) = before(llama.base_url()).await;
    let upstream = llama.base_url().to_owned();
    let net = TestNet::new()
        .seller_config(move |_, config| {
            config.upstream.base_url.clone_from(&upstream);
            llama::MODEL.clone_into(&mut config.models[0].id);
            config.models[0].context = llama::CONTEXT;
        })
        .buyer_config(move |_, config| {
            config.probes.share = 0;
            config.upstream.push(Upstream {
                url: url.clone(),
                models: [(llama::MODEL.to_owned(), llama::MODEL.to_owned())].into(),
                api_key_file: None,
                slots: 0,
                tokenize: true,
                max_output: 1024,
            });
        });
    let street = net.start().await.expect("starts");
    let buyer = &street.buyers[0];
    let body = json!({
        "model": llama::MODEL, "temperature": 0, "max_tokens": 64, "stop": ["."], "stream": true,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Tell me about a small coin."},
        ],
    });
    let request = Request {
        endpoint: Endpoint::Chat,
        body: body.to_string().into(),
    };
    buyer.buy(request).await.expect("is answered");
    let asked = [
        ("/tokenize".to_owned(), StatusCode::OK),
        ("/apply-template".to_owned(), StatusCode::OK),
        ("/tokenize".to_owned(), StatusCode::OK),
    ];
    eventually("the answer and the prompt are counted", || {
        *seen.lock().expect("no panic") == asked
    })
    .await
    .expect("are counted");
    street.settled().await.expect("agrees");
    let found = buyer
        .client()
        .sellers()
        .into_iter()
        .map(|seller| seller.invalid);
    assert_eq!(found.sum::<u32>(), 0);
    street.stop().await;
    llama.stop().await;
}
