//! Sellers with model servers that fail, a buyer, its gateway, and an application that speaks HTTP.

use farthing_client::config::Strategy;
use farthing_protocol::amount::Amount;
use farthing_protocol::offer::ASSISTANT_PREFIX;
use farthing_protocol::receipt::Receipt;
use farthing_tests::street::{MODEL, PATIENCE, RunningGateway, Street, TestNet};
use farthing_tests::upstream::Behaviour;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// How many tokens a whole answer has.
pub(crate) const TOKENS: usize = 60;

/// A whole answer.
pub(crate) fn whole() -> String {
    "A farthing buys a word, and a word is worth a farthing.".repeat(5)
}

/// What an application got.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// The events of a stream but for `[DONE]`, or the one document.
    pub(crate) events: Vec<Value>,
    /// How often `[DONE]` came.
    pub(crate) done: usize,
}

impl Told {
    /// The text of the answer.
    pub(crate) fn text(&self) -> String {
        let pieces = self.events.iter().map(|event| {
            let choice = &event["choices"][0];
            let text = [
                &choice["delta"]["content"],
                &choice["message"]["content"],
                &choice["text"],
            ];
            text.into_iter().find_map(Value::as_str).unwrap_or_default()
        });
        pieces.collect()
    }

    /// The error, if it is one or ends in one.
    pub(crate) fn error(&self) -> Option<&Value> {
        self.events.last()?.get("error")
    }

    /// The usage, if it was told once.
    pub(crate) fn usage(&self) -> Option<&Value> {
        let told: Vec<_> = self
            .events
            .iter()
            .filter_map(|event| event.get("usage"))
            .collect();
        match told.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Checks that it is the whole answer, told once, under one name, and ended once.
    pub(crate) fn is_whole(&self) {
        assert_eq!((self.status, self.error()), (200, None), "{self:?}");
        assert_eq!(self.text(), whole());
        assert_eq!(self.done, 1);
        let names = self
            .events
            .iter()
            .map(|event| (&event["id"], &event["created"]));
        let names: std::collections::BTreeSet<_> = names.map(|name| format!("{name:?}")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let ends = self.events.iter().filter(|event| {
            let reason = &event["choices"][0]["finish_reason"];
            reason.is_string()
        });
        assert_eq!(ends.count(), 1, "one reason why it ended");
    }

    /// Checks that it is an error with this status and code, and no `[DONE]`.
    pub(crate) fn is_error(&self, status: u16, code: &str) {
        let error = self.error().expect("an error");
        assert_eq!(
            (self.status, &error["code"]),
            (status, &json!(code)),
            "{self:?}"
        );
        assert_eq!(self.done, 0, "an error is no end");
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A street with a gateway in front of its buyer.
pub(crate) struct Stage {
    pub(crate) street: Street,
    gateway: RunningGateway,
    http: reqwest::Client,
}

/// Sellers of 60 tokens that go on with what another began; the first is the cheapest and asked
/// first.
pub(crate) fn net(sellers: usize) -> TestNet {
    TestNet::new()
        .sellers(sellers)
        .upstreams(Behaviour::default().tokens(TOKENS))
        .seller_config(|_, config| {
            config.models[0].features = vec![ASSISTANT_PREFIX.to_owned()];
        })
        .buyer_config(|_, config| patient(config))
}

/// A buyer that asks the cheapest first.
pub(crate) fn patient(config: &mut farthing_client::config::Config) {
    config.router.strategy = Strategy::Cheapest;
    config.router.hedge = 0;
}

/// The same, but it loses patience soon.
pub(crate) fn impatient(config: &mut farthing_client::config::Config) {
    patient(config);
    config.router.first_token = std::time::Duration::from_secs(2);
    config.router.idle = std::time::Duration::from_secs(1);
}

impl Stage {
    pub(crate) async fn of(net: TestNet) -> Self {
        let street = net.start().await.expect("starts");
        let gateway = RunningGateway::free(&street.buyers[0])
            .await
            .expect("opens");
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .build();
        Self {
            street,
            gateway,
            http: http.expect("a client"),
        }
    }

    /// So many sellers, the first of which fails so in its first requests.
    pub(crate) async fn failing(
        sellers: usize,
        faults: &[farthing_tests::upstream::Fault],
    ) -> Self {
        let stage = Self::of(net(sellers).buyer_config(|_, config| impatient(config))).await;
        for (number, fault) in (1..).zip(faults) {
            stage.street.sellers[0].upstream.fail(number, fault.clone());
        }
        stage
    }

    /// A request for a stream with its usage.
    pub(crate) fn question() -> Value {
        json!({
            "model": MODEL, "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "How much is a farthing?"}],
        })
    }

    pub(crate) async fn ask(&self) -> Told {
        self.post("chat/completions", &Self::question()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Told {
        self.asking(path, body).await
    }

    /// The question under an idempotency key.
    pub(crate) fn named(&self, key: &str) -> impl Future<Output = Told> + Send + 'static {
        let url = format!("{}/chat/completions", self.gateway.base_url());
        let request = self.http.post(url).header("idempotency-key", key);
        let asked = request.body(Self::question().to_string()).send();
        async move { told(asked.await.expect("answers")).await }
    }

    /// The same, to be waited for while something happens to the street.
    pub(crate) fn asking(
        &self,
        path: &str,
        body: &Value,
    ) -> impl Future<Output = Told> + Send + 'static {
        let url = format!("{}/{path}", self.gateway.base_url());
        let asked = self.http.post(url).body(body.to_string()).send();
        async move { told(asked.await.expect("answers")).await }
    }

    /// How often each seller's model server was asked.
    pub(crate) fn asked(&self) -> Vec<u64> {
        let sellers = self.street.sellers.iter();
        sellers.map(|seller| seller.upstream.count()).collect()
    }

    /// What was paid in all, to the atom: the receipts, the books of both sides and the wallet
    /// say the same, and nothing is left in doubt.
    pub(crate) async fn paid(&self) -> Amount {
        let charged = self.street.settled().await.expect("the books agree");
        let buyer = &self.street.buyers[0];
        let receipts: Vec<Receipt> = buyer.receipts().await;
        let sum = receipts.iter().map(|receipt| receipt.charged);
        assert_eq!(sum.fold(Amount::ZERO, Amount::saturating_add), charged);
        let balances = buyer
            .accounts()
            .into_iter()
            .map(|(_, account)| account.channel.balance());
        let deposited = balances.fold(Amount::ZERO, Amount::saturating_add);
        let wallet = buyer.client().wallet().await.expect("a wallet");
        assert_eq!(deposited.saturating_sub(wallet.in_channels), charged);
        charged
    }

    /// Tokens of answers that were paid, per seller.
    pub(crate) async fn tokens(&self) -> Vec<u32> {
        let receipts = self.street.buyers[0].receipts().await;
        let accounts = self.street.buyers[0].accounts();
        let of = |id| {
            let sold = |receipt: &&Receipt| {
                accounts
                    .iter()
                    .any(|(channel, account)| *channel == receipt.channel && account.seller == id)
            };
            let tokens = receipts
                .iter()
                .filter(sold)
                .map(|receipt| receipt.usage.completion);
            tokens.sum()
        };
        self.street
            .sellers
            .iter()
            .map(|seller| of(seller.id()))
            .collect()
    }

    pub(crate) async fn stop(self) {
        self.gateway.stop().await;
        self.street.stop().await;
    }
}

async fn told(answer: reqwest::Response) -> Told {
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("ends");
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    if !text.contains("data: ") {
        let events = vec![json(&text)];
        return Told {
            status,
            headers,
            events,
            done: 0,
        };
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let (done, events): (Vec<_>, Vec<_>) = data.partition(|data| *data == "[DONE]");
    Told {
        status,
        headers,
        events: events.into_iter().map(json).collect(),
        done: done.len(),
    }
}
