//! The OpenRouter dialect on the real gateway: what an answer costs is what its receipt says, the
//! books as their endpoints tell them, and errors in their shape.

use farthing_client::client::Client;
use farthing_client::config::Strategy;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::body::Body;
use farthing_protocol::offer::ASSISTANT_PREFIX;
use farthing_protocol::receipt::Receipt;
use farthing_tests::street::{MODEL, PATIENCE, RunningGateway, Street, TestNet, WEALTH};
use farthing_tests::upstream::{Behaviour, Fault, Prefix, StreamUsage};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// One answer of the gateway.
#[derive(Debug)]
struct Told {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str());
        value.transpose().expect("text").unwrap_or_default()
    }

    /// The chunks of a stream, as text.
    fn chunks(&self) -> Vec<&str> {
        let events = self.text.split("\n\n");
        let data = events.filter_map(|event| event.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").collect()
    }

    /// How often `[DONE]` came.
    fn done(&self) -> usize {
        self.text.matches("data: [DONE]").count()
    }

    /// Checks that it is an error of this kind in OpenRouter's shape, and named; and returns it.
    fn error(&self, status: u16, word: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], status, "{error}");
        assert!(error["message"].as_str().is_some_and(|it| !it.is_empty()));
        assert_eq!(error["metadata"]["error_type"], word, "{error}");
        assert!(self.header("x-request-id").starts_with("req_"), "{self:?}");
        error
    }
}

struct Shop {
    street: Street,
    gateway: RunningGateway,
    http: reqwest::Client,
}

impl Shop {
    async fn open(net: TestNet) -> Self {
        let street = net.start().await.expect("starts");
        let gateway = RunningGateway::free(&street.buyers[0]).await;
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy();
        Self {
            gateway: gateway.expect("listens"),
            street,
            http: http.build().expect("a client"),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1{path}", self.gateway.address())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Told {
        let response = request.send().await.expect("answers");
        Told {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.expect("text"),
        }
    }

    async fn get(&self, path: &str) -> Told {
        self.send(self.http.get(self.url(path))).await
    }

    async fn post(&self, path: &str, body: &Value) -> Told {
        self.send(self.http.post(self.url(path)).json(body)).await
    }

    /// What is below `data` at a path.
    async fn data(&self, path: &str) -> Value {
        let told = self.get(path).await;
        assert_eq!(told.status, 200, "{told:?}");
        told.json()["data"].clone()
    }

    fn seller(&self, n: usize) -> String {
        self.street.sellers[n].id().to_string()
    }

    fn client(&self) -> &Client {
        self.street.buyers[0].client()
    }

    /// The newest receipt, when both sides agree.
    async fn receipt(&self) -> Receipt {
        self.street.settled().await.expect("agrees");
        self.street.buyers[0].receipts().await.remove(0)
    }

    /// An amount in whole units.
    fn units(&self, amount: Amount) -> String {
        self.client().token().number(amount)
    }

    async fn stop(self) {
        self.gateway.stop().await;
        self.street.stop().await;
    }
}

fn chat(fields: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "max_tokens": 8,
        "messages": [{"role": "user", "content": "How much is a farthing?"}],
    });
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

/// A field of the usage as it was written, digit by digit.
fn written<'a>(document: &'a str, field: &str) -> &'a str {
    let document = Body::parse(document.as_bytes()).expect("an object");
    let usage = Body::parse(document.raw("usage").expect("usage").as_bytes()).expect("an object");
    usage.raw(field).expect("is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_answer_costs_what_its_receipt_says_to_the_atom() {
    let shop = Shop::open(TestNet::new()).await;
    for (path, body) in [
        ("/chat/completions", chat(json!({}))),
        (
            "/completions",
            json!({"model": MODEL, "prompt": "How much?", "max_tokens": 8}),
        ),
        (
            "/embeddings",
            json!({"model": MODEL, "input": ["a quarter", "of a penny"]}),
        ),
    ] {
        let told = shop.post(path, &body).await;
        assert_eq!(told.status, 200, "{told:?}");
        let (document, receipt) = (told.json(), shop.receipt().await);
        assert_eq!(
            written(&told.text, "cost"),
            shop.units(receipt.charged),
            "{path}"
        );
        let usage = &document["usage"];
        assert_eq!(usage["prompt_tokens"], receipt.usage.prompt);
        if path != "/embeddings" {
            assert_eq!(usage["completion_tokens"], receipt.usage.completion);
        }
        let parts = &usage["cost_details"];
        let part = |name: &str| parts[name].as_f64().expect("a number");
        let sum =
            part("upstream_inference_prompt_cost") + part("upstream_inference_completions_cost");
        assert!(
            (sum - part("upstream_inference_cost")).abs() <= 0.000_001,
            "{usage}"
        );
        assert_eq!(document["provider"], shop.seller(0));
        assert_eq!(document["model"], MODEL);
        let id = format!(
            "gen-{}",
            receipt.request.to_string().trim_start_matches("0x")
        );
        assert_eq!(
            (&document["id"], told.header("x-generation-id")),
            (&json!(id), id.as_str())
        );
        assert_eq!(told.header("x-request-id"), receipt.request.to_string());
    }
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_one_chunk_of_usage_and_the_cost_of_its_receipt() {
    for usage in [
        StreamUsage::WhenAsked,
        StreamUsage::Always,
        StreamUsage::Never,
    ] {
        let upstream = Behaviour::default().stream_usage(usage);
        let shop = Shop::open(TestNet::new().upstreams(upstream)).await;
        for (path, body) in [
            ("/chat/completions", chat(json!({"stream": true}))),
            (
                "/completions",
                json!({"model": MODEL, "prompt": "How much?", "stream": true}),
            ),
        ] {
            let told = shop.post(path, &body).await;
            assert_eq!((told.status, told.done()), (200, 1), "{told:?}");
            assert!(told.text.ends_with("data: [DONE]\n\n"));
            let (mut chunks, receipt) = (told.chunks(), shop.receipt().await);
            let last = chunks.pop().expect("chunks");
            assert_eq!(written(last, "cost"), shop.units(receipt.charged), "{last}");
            assert_eq!(
                written(last, "completion_tokens"),
                receipt.usage.completion.to_string()
            );
            let last: Value = serde_json::from_str(last).expect("JSON");
            assert_eq!(last["choices"], json!([]));
            assert!(chunks.len() > 2, "{chunks:?}");
            for chunk in chunks {
                let chunk: Value = serde_json::from_str(chunk).expect("JSON");
                assert_eq!(chunk.get("usage"), None, "{chunk}");
                assert_eq!(chunk["id"], told.header("x-generation-id"));
                assert_eq!(chunk["provider"], shop.seller(0));
            }
        }
        shop.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_can_go_on_with_ends_in_an_error_chunk() {
    let shop = Shop::open(TestNet::new()).await;
    let upstream = &shop.street.sellers[0].upstream;
    let cut = Behaviour::default()
        .prefix(Prefix::Refused)
        .fault(Fault::CutAfter(3));
    upstream.behave(cut);
    let told = shop
        .post("/chat/completions", &chat(json!({"stream": true})))
        .await;
    assert_eq!((told.status, told.done()), (200, 0), "{told:?}");
    let last: Value = serde_json::from_str(told.chunks().pop().expect("chunks")).expect("JSON");
    assert_eq!(last["choices"][0]["finish_reason"], "error");
    assert_eq!(last["error"]["code"], 502);
    assert_eq!(
        last["error"]["metadata"]["error_type"],
        "provider_unavailable"
    );
    let tried = &last["error"]["metadata"]["previous_errors"];
    assert_eq!(tried[0]["provider"], shop.seller(0));
    assert!(!told.text.contains("127.0.0.1"), "{}", told.text);
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_two_sellers_is_one_generation_at_the_cost_of_both() {
    let net = TestNet::new()
        .sellers(2)
        .upstreams(Behaviour::default().tokens(60))
        .seller_config(|_, config| {
            config.models[0].features = vec![ASSISTANT_PREFIX.to_owned()];
        })
        .buyer_config(|_, config| {
            config.router.strategy = Strategy::Cheapest;
            config.router.hedge = 0;
        });
    let shop = Shop::open(net).await;
    let first = &shop.street.sellers[0].upstream;
    first.fail(1, Fault::CutAfter(20));
    let body = chat(json!({"stream": true, "max_tokens": 60}));
    let told = shop.post("/chat/completions", &body).await;
    assert_eq!((told.status, told.done()), (200, 1), "{told:?}");
    shop.street.settled().await.expect("agrees");
    let receipts = shop.street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), 2);
    let cost = shop.units(shop.street.buyers[0].charged());
    let last = told.chunks().pop().expect("chunks");
    assert_eq!(written(last, "cost"), cost);
    assert_eq!(written(last, "completion_tokens"), "60");
    let id = told.header("x-generation-id");
    let generation = shop.get(&format!("/generation?id={id}")).await;
    assert!(
        generation.text.contains(&format!("\"total_cost\":{cost},")),
        "{generation:?}"
    );
    let generation = &generation.json()["data"];
    assert_eq!(generation["tokens_completion"], 60);
    let parts = generation["provider_responses"]
        .as_array()
        .expect("a list")
        .iter();
    let parts: Vec<_> = parts
        .map(|it| (it["provider_name"].clone(), it["status"].clone()))
        .collect();
    let expected = [(shop.seller(0), 502), (shop.seller(1), 200)];
    assert_eq!(
        parts,
        expected.map(|(seller, status)| (json!(seller), json!(status)))
    );
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_tell_the_generation_the_credits_the_key_and_the_activity() {
    let shop = Shop::open(TestNet::new()).await;
    let before = shop.data("/credits").await;
    assert_eq!(before, json!({"total_credits": 1000, "total_usage": 0}));
    let told = shop.post("/chat/completions", &chat(json!({}))).await;
    let receipt = shop.receipt().await;
    let cost = shop.units(receipt.charged);

    let id = told.header("x-generation-id").to_owned();
    let generation = shop.get(&format!("/generation?id={id}")).await;
    assert!(
        generation.text.contains(&format!("\"total_cost\":{cost},")),
        "{generation:?}"
    );
    let generation = generation.json()["data"].clone();
    assert_eq!(generation["id"], id);
    assert_eq!(generation["model"], MODEL);
    assert_eq!(generation["provider_name"], shop.seller(0));
    assert_eq!(generation["tokens_prompt"], receipt.usage.prompt);
    assert_eq!(
        generation["native_tokens_completion"],
        receipt.usage.completion
    );
    let took = receipt.finished.since(receipt.started).as_millis();
    assert_eq!(
        generation["latency"],
        json!(u64::try_from(took).expect("short"))
    );
    assert_eq!(generation["cancelled"], false);
    for missing in ["gen-00", &format!("gen-{}", "00".repeat(32)), "x"] {
        let path = format!("/generation?id={missing}");
        shop.get(&path).await.error(404, "not_found");
    }
    shop.get("/generation").await.error(400, "invalid_request");

    let credits = shop.get("/credits").await;
    assert!(
        credits.text.contains(&format!("\"total_usage\":{cost}}}")),
        "{credits:?}"
    );
    assert_eq!(
        credits.json()["data"]["total_credits"],
        1000,
        "nothing is lost"
    );

    let key = shop.get("/key").await;
    for field in ["usage", "usage_daily", "usage_weekly", "usage_monthly"] {
        assert!(
            key.text.contains(&format!("\"{field}\":{cost},")),
            "{field}: {key:?}"
        );
    }
    let key = key.json()["data"].clone();
    assert_eq!(
        key["limit"],
        shop.units(WEALTH).parse::<u64>().expect("whole")
    );
    let promised = key["limit"].as_f64().zip(key["limit_remaining"].as_f64());
    assert!(promised.is_some_and(|(limit, left)| left < limit), "{key}");
    assert_eq!(key["budgets"].as_array().map(Vec::len), Some(2));

    shop.post("/chat/completions", &chat(json!({}))).await;
    shop.street.settled().await.expect("agrees");
    let activity = shop.data("/activity").await;
    let rows = activity.as_array().expect("a list");
    assert_eq!(rows.len(), 1, "{activity}");
    assert_eq!(rows[0]["requests"], 2);
    assert_eq!(rows[0]["model"], MODEL);
    assert_eq!(rows[0]["provider_name"], shop.seller(0));
    let charged = shop.units(shop.street.buyers[0].charged());
    assert_eq!(
        rows[0]["usage"].to_string(),
        charged
            .parse::<f64>()
            .map(|it| json!(it))
            .expect("a number")
            .to_string()
    );
    let day = rows[0]["date"].as_str().expect("a day");
    assert_eq!(shop.data(&format!("/activity?date={day}")).await, activity);
    assert_eq!(shop.data("/activity?date=2001-01-01").await, json!([]));
    shop.get("/activity?date=yesterday")
        .await
        .error(400, "invalid_request");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_market_is_told_as_models_endpoints_and_providers() {
    let net = TestNet::new().sellers(2).seller_config(|n, config| {
        let model = &mut config.models[0];
        model.prices.output = Price(if n == 0 { 500_000 } else { 700_000 });
        model.features = vec!["tools".to_owned(), "vision".to_owned()];
    });
    let shop = Shop::open(net).await;
    let models = shop.get("/models").await.json();
    assert_eq!(models["total_count"], 1);
    let model = &models["data"][0];
    assert_eq!(model["id"], MODEL);
    assert_eq!(model["pricing"]["completion"], "0.0000005", "the cheapest");
    assert_eq!(
        model["architecture"]["modality"],
        "text+image->text+embeddings"
    );
    let takes = model["supported_parameters"].as_array().expect("a list");
    assert!(
        takes.contains(&json!("tools")) && !takes.contains(&json!("top_k")),
        "{takes:?}"
    );
    assert_eq!(shop.data(&format!("/model/{MODEL}")).await, *model);
    for (query, count) in [
        ("?supported_parameters=tools", 1),
        ("?supported_parameters=seed", 0),
        ("?q=MOCK", 1),
        ("?q=other", 0),
        ("?offset=1", 0),
    ] {
        let found = shop.data(&format!("/models{query}")).await;
        assert_eq!(found.as_array().map(Vec::len), Some(count), "{query}");
    }
    shop.get("/models?offset=x")
        .await
        .error(400, "invalid_request");
    assert_eq!(shop.data("/models/count").await["count"], 1);
    assert_eq!(shop.data("/embeddings/models").await[0]["id"], MODEL);

    shop.post("/chat/completions", &chat(json!({}))).await;
    shop.receipt().await;
    let one = shop.data(&format!("/models/{MODEL}/endpoints")).await;
    let sellers = one["endpoints"].as_array().expect("a list");
    let prices: Vec<_> = sellers
        .iter()
        .map(|it| &it["pricing"]["completion"])
        .collect();
    assert_eq!(prices, ["0.0000005", "0.0000007"]);
    assert_eq!(sellers[0]["provider_name"], shop.seller(0));
    assert_eq!(
        (&sellers[0]["status"], &sellers[1]["status"]),
        (&json!(0), &json!(0))
    );
    assert!(
        sellers[0]["uptime_last_30m"]
            .as_f64()
            .is_some_and(|up| up > 50.0),
        "{one}"
    );
    assert_eq!(
        sellers[1]["uptime_last_30m"],
        Value::Null,
        "nobody asked it"
    );
    shop.get("/models/no/such/endpoints")
        .await
        .error(404, "not_found");

    let providers = shop.data("/providers").await;
    let slugs: Vec<_> = providers
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| &it["slug"])
        .collect();
    let mut expected = [shop.seller(0), shop.seller(1)];
    expected.sort();
    let expected = expected.map(Value::from);
    let expected: Vec<_> = expected.iter().collect();
    assert_eq!(slugs, expected);
    // What stands there as a provider can be asked for as one.
    let wanted = chat(json!({"provider": {"only": [shop.seller(1)]}}));
    let told = shop.post("/chat/completions", &wanted).await;
    assert_eq!(told.json()["provider"], shop.seller(1));
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_of_the_routing_is_in_the_answer_for_those_who_ask() {
    let shop = Shop::open(TestNet::new().sellers(2)).await;
    let first = &shop.street.sellers[0].upstream;
    first.behave(Behaviour::default().fault(Fault::Unavailable));
    for (stream, header) in [
        (false, "X-OpenRouter-Metadata"),
        (true, "X-OpenRouter-Experimental-Metadata"),
    ] {
        let model = format!("{MODEL}:floor");
        let body = chat(json!({"model": model, "stream": stream}));
        let asked = shop.http.post(shop.url("/chat/completions")).json(&body);
        let told = shop.send(asked.header(header, "enabled")).await;
        let report = match stream {
            false => told.json()["openrouter_metadata"].clone(),
            true => {
                let last = told.chunks().pop().expect("chunks");
                let last: Value = serde_json::from_str(last).expect("JSON");
                last["openrouter_metadata"].clone()
            }
        };
        assert_eq!(report["requested"], model, "{told:?}");
        assert_eq!(report["strategy"], "direct");
        assert_eq!(report["summary"], told.header("x-farthing-why"));
        let attempts = report["attempts"].as_array().expect("a list");
        let won = json!({"provider": shop.seller(1), "model": MODEL, "status": 200});
        assert_eq!(attempts.last(), Some(&won));
        if !stream {
            // The next one knows that the first has failed.
            assert_eq!(report["endpoints"]["total"], 2);
            assert_eq!(attempts.len(), 2, "{report}");
            assert_eq!(attempts[0]["provider"], shop.seller(0));
            assert_ne!(attempts[0]["status"], 200);
        }
    }
    let plain = shop.post("/chat/completions", &chat(json!({}))).await;
    assert_eq!(plain.json().get("openrouter_metadata"), None);
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_told_in_their_shape() {
    let shop = Shop::open(TestNet::new()).await;
    for body in [
        json!([]),
        json!({"model": MODEL}),
        chat(json!({"stream": 1})),
    ] {
        let told = shop.post("/chat/completions", &body).await;
        told.error(400, "invalid_request");
    }
    let search = chat(json!({"plugins": [{"id": "web"}]}));
    let told = shop.post("/chat/completions", &search).await;
    let error = told.error(400, "invalid_request");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|it| it.contains("`web`"))
    );
    let unknown = chat(json!({"model": "no/such"}));
    let told = shop.post("/chat/completions", &unknown).await;
    assert_eq!(
        told.error(404, "not_found")["metadata"]["reason"],
        "model_not_found"
    );
    shop.get("/nothing").await.error(404, "not_found");
    shop.get("/chat/completions")
        .await
        .error(405, "invalid_request");
    let nobody = chat(json!({"provider": {"only": ["nobody"]}}));
    let told = shop.post("/chat/completions", &nobody).await;
    told.error(503, "provider_overloaded");
    let upstream = &shop.street.sellers[0].upstream;
    upstream.behave(Behaviour::default().fault(Fault::ContextLength));
    let told = shop.post("/chat/completions", &chat(json!({}))).await;
    told.error(400, "context_length_exceeded");
    assert_eq!(told.header("x-should-retry"), "false");
    assert!(shop.street.buyers[0].charged().is_zero());
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_sellers_and_money_is_told_in_their_shape() {
    for (fault, status, word) in [
        (
            Fault::RateLimited { retry_after: 7 },
            429,
            "rate_limit_exceeded",
        ),
        (Fault::Unavailable, 502, "provider_unavailable"),
    ] {
        let shop = Shop::open(TestNet::new()).await;
        let upstream = &shop.street.sellers[0].upstream;
        upstream.behave(Behaviour::default().fault(fault));
        let told = shop.post("/chat/completions", &chat(json!({}))).await;
        let error = told.error(status, word);
        let tried = &error["metadata"]["previous_errors"];
        assert_eq!(tried[0]["provider"], shop.seller(0), "{error}");
        assert_eq!(tried[0]["model"], MODEL);
        assert!(tried[0]["message"].is_string() && tried[0]["status"].is_u64());
        assert!(
            !told.text.contains("127.0.0.1") && !told.text.contains("/ip4/"),
            "{told:?}"
        );
        match status {
            429 => assert_eq!(told.header("retry-after"), "7"),
            _ => assert_eq!(told.header("x-should-retry"), "false"),
        }
        shop.stop().await;
    }
    let poor = TestNet::new().buyer_config(|_, config| {
        config.spend.per_purchase = Amount::atoms(1);
    });
    let shop = Shop::open(poor).await;
    let told = shop.post("/chat/completions", &chat(json!({}))).await;
    let error = told.error(402, "payment_required");
    assert_eq!(error["metadata"]["reason"], "spend_limit_reached");
    assert_eq!(told.header("x-should-retry"), "false");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_asks_for_a_key_where_there_are_keys() {
    let street = TestNet::new().start().await.expect("starts");
    let file = street.buyers[0].dir().join("keys.txt");
    std::fs::write(&file, "sk-one\n").expect("written");
    let mut settings = street.buyers[0].config.gateway.clone();
    settings.listen.set_port(0);
    settings.api_keys_file = Some(file);
    let gateway = RunningGateway::open(&street.buyers[0], settings).await;
    let shop = Shop {
        gateway: gateway.expect("listens"),
        street,
        http: reqwest::Client::new(),
    };
    for path in [
        "/models",
        "/models/count",
        "/providers",
        "/credits",
        "/key",
        "/activity",
        "/generation?id=x",
        "/models/mock/model/endpoints",
        "/chat/completions",
        "/nothing",
    ] {
        shop.get(path).await.error(401, "authentication");
        let wrong = shop.http.get(shop.url(path)).bearer_auth("sk-other");
        shop.send(wrong).await.error(401, "authentication");
    }
    let right = shop.http.get(shop.url("/key")).bearer_auth("sk-one");
    let told = shop.send(right).await;
    assert_eq!(told.status, 200);
    assert!(!told.text.contains("sk-one"));
    shop.stop().await;
}
