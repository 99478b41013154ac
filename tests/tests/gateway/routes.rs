//! What a request can say about its seller and its model, as the gateway shows it: OpenRouter's
//! `provider` object, `models`, suffixes, conversations, `auto`; and why, said and replayed.

use farthing_client::cli::render::{self, View};
use farthing_client::cli::route::RouteCommand;
use farthing_client::client::{DECISIONS, InferError};
use farthing_client::config::{Auto, Task};
use farthing_client::gateway::control::Control;
use farthing_client::market::Market;
use farthing_protocol::purchase::{Endpoint, RequestId};
use farthing_tests::street::{Buyer, MODEL, RunningGateway, Street, TestNet, eventually};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One answer of the gateway.
struct Told {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Told {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str());
        value.transpose().expect("text").unwrap_or_default()
    }

    fn seller(&self) -> &str {
        assert_eq!(self.status, 200, "{}", self.body);
        self.header("x-farthing-seller")
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
        Self {
            gateway: gateway.expect("listens"),
            street,
            http: reqwest::Client::new(),
        }
    }

    /// Two sellers of one model, the first the cheaper one.
    async fn of_two() -> Self {
        Self::open(TestNet::new().sellers(2)).await
    }

    /// Asks for something, with these fields beside the usual ones.
    async fn ask(&self, fields: Value) -> Told {
        let mut body = json!({
            "model": MODEL, "max_tokens": 8,
            "messages": [{"role": "user", "content": "How much is a farthing?"}],
        });
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let url = format!("{}/chat/completions", self.gateway.base_url());
        let response = self.http.post(url).json(&body).send().await;
        let response = response.expect("answers");
        Told {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.json().await.expect("is JSON"),
        }
    }

    fn id(&self, seller: usize) -> String {
        self.street.sellers[seller].id().to_string()
    }

    /// What the model server of a seller was last asked.
    fn asked(&self, seller: usize) -> Value {
        let requests = self.street.sellers[seller].upstream.requests();
        serde_json::from_slice(&requests.last().expect("was asked").body).expect("is JSON")
    }

    async fn stop(self) {
        self.gateway.stop().await;
        self.street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_object_chooses_the_seller_and_stays_here() {
    let shop = Shop::of_two().await;
    let (cheap, dear) = (shop.id(0), shop.id(1));
    let short = shop.street.sellers[1].id().to_string();
    assert_eq!(shop.ask(json!({})).await.seller(), cheap);
    for provider in [
        json!({"order": [dear]}),
        json!({"only": [short]}),
        json!({"ignore": [cheap]}),
        json!({"order": [short], "allow_fallbacks": false}),
    ] {
        let told = shop
            .ask(json!({"provider": provider, "session_id": "s"}))
            .await;
        assert_eq!(told.seller(), dear, "{provider}");
        let asked = shop.asked(1);
        assert_eq!(asked.get("provider"), None);
        assert_eq!(asked.get("session_id"), None);
        assert_eq!(asked["max_tokens"], 8);
    }
    // 0.3 of the token per million: what the first asks is 0.5.
    let told = shop
        .ask(json!({"provider": {"max_price": {"completion": 0.3}}}))
        .await;
    assert_eq!(told.status, 503);
    let text = told.body["error"]["message"].as_str().expect("a message");
    assert!(
        text.contains("2 × price over ceiling") || text.contains("price over ceiling"),
        "{text}"
    );
    let told = shop
        .ask(json!({"provider": {"only": ["nobody-at-all"]}}))
        .await;
    assert!(
        told.body
            .to_string()
            .contains("not among the sellers asked for")
    );
    let told = shop.ask(json!({"provider": {"order": dear}})).await;
    assert_eq!(told.status, 400);
    assert!(
        told.body.to_string().contains("`provider.order`"),
        "{}",
        told.body
    );
    shop.stop().await;
}

/// Each seller sells a model of its own: `own/0`, `own/1`, …
fn own_models(net: TestNet) -> TestNet {
    net.seller_config(|n, config| {
        for model in &mut config.models {
            model.upstream_name = Some("mock/model".to_owned());
            model.id = format!("own/{n}");
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_answers_when_the_first_one_refuses_the_request() {
    let shop = Shop::open(own_models(TestNet::new().sellers(2))).await;
    let first = &shop.street.sellers[0].upstream;
    first.behave(Behaviour::default().fault(Fault::ContextLength));
    let alone = shop.ask(json!({"model": "own/0"})).await;
    assert_eq!(alone.status, 400);
    let told = shop
        .ask(json!({"model": "own/0", "models": ["own/0", "own/1"]}))
        .await;
    assert_eq!(told.seller(), shop.id(1));
    assert_eq!(told.header("x-farthing-model"), "own/1");
    assert_eq!(shop.asked(1).get("models"), None);
    let told = shop
        .ask(json!({"model": "no/such", "models": ["own/1"]}))
        .await;
    assert_eq!(told.header("x-farthing-model"), "own/1");
    let told = shop
        .ask(json!({"model": "no/such", "models": ["own/0"]}))
        .await;
    assert_eq!(told.status, 400, "the last word is the model server's");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suffix_orders_the_sellers() {
    let shop = Shop::of_two().await;
    for suffix in ["floor", "nitro", "exacto"] {
        let told = shop
            .ask(json!({"model": format!("{MODEL}:{suffix}")}))
            .await;
        assert_eq!(told.header("x-farthing-model"), MODEL, "{suffix}");
        if suffix == "floor" {
            assert_eq!(told.seller(), shop.id(0));
        }
    }
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_stays_with_its_seller() {
    let net = TestNet::new().sellers(4).seller_config(|_, config| {
        for model in &mut config.models {
            model.prices.input = farthing_protocol::amount::Price(100_000);
            model.prices.output = farthing_protocol::amount::Price(500_000);
        }
    });
    let shop = Shop::open(net).await;
    for session in ["one", "two", "three"] {
        let first = shop.ask(json!({"session_id": session})).await;
        for _ in 0..4 {
            let again = shop.ask(json!({"session_id": session})).await;
            assert_eq!(again.seller(), first.seller());
            assert!(again.header("x-farthing-why").contains("conversation"));
        }
    }
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_chooses_the_model_by_the_rules_and_says_which() {
    let net = own_models(TestNet::new().sellers(2)).buyer_config(|_, config| {
        config.aliases.insert("coder".into(), "own/1".into());
        config.auto = vec![
            Auto {
                name: Some("programs".into()),
                tasks: vec![Task::Code],
                models: vec!["coder".into()],
                ..Auto::default()
            },
            Auto {
                max_prompt: Some(1000),
                models: vec!["own/0".into()],
                ..Auto::default()
            },
        ];
    });
    let shop = Shop::open(net).await;
    let say = |text: &str| json!([{"role": "user", "content": text}]);
    let code = json!({"model": "auto", "messages": say("What does this do? ```fn main() {}```")});
    let told = shop.ask(code).await;
    assert_eq!(told.header("x-farthing-model"), "own/1");
    let why = told.header("x-farthing-why");
    assert!(why.starts_with("rule programs (code, about"), "{why}");
    let told = shop.ask(json!({"model": "auto"})).await;
    assert_eq!(told.header("x-farthing-model"), "own/0");
    let said = json!({"model": "auto", "metadata": {"task": "code"}});
    assert_eq!(shop.ask(said).await.header("x-farthing-model"), "own/1");
    let long = json!({"model": "auto", "messages": say(&"once upon a time ".repeat(500))});
    let told = shop.ask(long).await;
    assert_eq!(told.status, 400);
    assert!(
        told.body.to_string().contains("no [[auto]] rule"),
        "{}",
        told.body
    );
    shop.stop().await;
}

async fn run(street: &Street, command: RouteCommand) -> Result<String, String> {
    let config = &street.buyers[0].config;
    let view = View {
        token: render::token(&config.chain),
        json: false,
    };
    let done = command.run(config, &view).await;
    done.map_err(|error| error.to_string())
}

fn explain(request: RequestId) -> RouteCommand {
    RouteCommand::Explain {
        request: Some(request),
        model: None,
        body: None,
        endpoint: Endpoint::Chat,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_explained_and_comes_out_the_same_when_replayed() {
    let net = TestNet::new().sellers(3).buyer_config(|_, config| {
        config.router.decisions = 10;
        config.router.max_price_output = Some(farthing_protocol::amount::Price(1_000_000));
    });
    let shop = Shop::open(net).await;
    let told = shop.ask(json!({})).await;
    let request = RequestId(told.header("x-request-id").parse().expect("an id"));
    let record = shop.street.buyers[0].config.data_dir.join(DECISIONS);
    let lines = || std::fs::read_to_string(&record).map_or(0, |text| text.lines().count());
    eventually("the record is written", || lines() == 2)
        .await
        .expect("holds");
    let text = run(&shop.street, explain(request))
        .await
        .expect("is recorded");
    for part in [
        told.seller().get(told.seller().len() - 8..).expect("an id"),
        "3 on offer, 3 looked at, 2 may be asked",
        "price over ceiling",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let unknown = RequestId(alloy::primitives::B256::ZERO);
    let error = run(&shop.street, explain(unknown))
        .await
        .expect_err("unknown");
    assert!(error.contains("router"), "{error}");
    let replay = |file| run(&shop.street, RouteCommand::Replay { file });
    let same = replay(None).await.expect("comes out the same");
    assert!(same.contains("1 decisions come out the same"), "{same}");
    // Whoever changes a number is found out.
    let text = std::fs::read_to_string(&record).expect("reads");
    let forged = shop.street.buyers[0].config.data_dir.join("forged.jsonl");
    let text = text.replacen("\"output\":500000", "\"output\":900000000", 1);
    std::fs::write(&forged, text).expect("writes");
    let differs = replay(Some(forged)).await.expect_err("differs");
    assert!(differs.contains("1 of 1 decisions"), "{differs}");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_is_explained_before_anything_is_bought() {
    let shop = Shop::of_two().await;
    let buyer = &shop.street.buyers[0];
    let control = Control::bind(buyer.client().clone(), &buyer.config.data_dir).await;
    let until = CancellationToken::new();
    let serving = tokio::spawn(control.expect("binds").serve(until.clone()));
    let body = buyer.config.data_dir.join("body.json");
    let text = json!({
        "model": "x", "messages": [], "provider": {"ignore": [shop.id(0)]},
    });
    std::fs::write(&body, text.to_string()).expect("writes");
    let command = RouteCommand::Explain {
        request: None,
        model: Some(MODEL.to_owned()),
        body: Some(body),
        endpoint: Endpoint::Chat,
    };
    let text = run(&shop.street, command).await.expect("is explained");
    assert!(text.contains("not among the sellers asked for"), "{text}");
    assert!(
        text.contains("2 on offer, 2 looked at, 1 may be asked"),
        "{text}"
    );
    assert!(text.contains("never tried"), "{text}");
    assert_eq!(shop.street.sellers[1].upstream.count(), 0);
    until.cancel();
    serving.await.expect("ends").expect("served");
    shop.stop().await;
}

fn market(street: &Street) -> Option<&Market> {
    street.buyers[0].client().market()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_measured_is_remembered_after_a_restart() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::stream(16))
        .await
        .expect("answers");
    let seen = |street: &Street| {
        let offers = market(street).map(Market::offers).unwrap_or_default();
        let measured = offers.first().and_then(|offer| offer.measured.clone());
        measured.map(|measured| (measured.first_token_ms, measured.paid))
    };
    let before = seen(&street);
    assert!(before.is_some());
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    street.acquainted().await.expect("meets its seller");
    assert_eq!(seen(&street), before);
    street.stop().await;
}

async fn fails(street: &Street) -> InferError {
    let heard = street.buyers[0].buy(Buyer::chat(8)).await;
    heard.expect_err("nothing is answered")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_only_seller_that_fails_again_and_again_is_not_asked_by_every_request() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().fault(Fault::CutAfter(0)))
        .start()
        .await
        .expect("starts");
    let upstream = &street.sellers[0].upstream;
    let first = fails(&street).await;
    assert!(!matches!(first, InferError::Busy { .. }), "{first}");
    let mut tries = 0;
    while !matches!(fails(&street).await, InferError::Busy { .. }) {
        tries += 1;
        assert!(tries < 3, "it is asked again and again");
    }
    let asked = upstream.count();
    let error = fails(&street).await;
    let InferError::Busy { retry_after_ms, .. } = error else {
        panic!("{error}");
    };
    assert!((1000..=5000).contains(&retry_after_ms), "{retry_after_ms}");
    assert_eq!(upstream.count(), asked);
    street.stop().await;
}
