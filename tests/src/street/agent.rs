//! An agent with a wallet and no Farthing: it buys over plain HTTP and pays by x402, written from
//! the words of the protocol alone. It can be made to say anything.

use alloy::primitives::B256;
use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::{EvmKey, Signed};
use farthing_protocol::payment::{
    Batch, BatchDeposit, BatchExtra, BatchRefund, BatchVoucher, Fields, PAYMENT_REQUIRED,
    PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements,
    Reason, SettlementResponse, VERSION, WireConfig, WireDeposit, WireVoucher, decode, encode,
    fields, scheme,
};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::testing;
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{ChannelConfig, Deposit, DepositTerms, Network};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::street::{MODEL, PATIENCE, Seller, Street, StreetError, WEALTH};

/// What a seller answered.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its head.
    pub headers: HeaderMap,
    /// How to pay, if it says so.
    pub required: Option<PaymentRequired>,
    /// What was paid, if it says so.
    pub settled: Option<SettlementResponse>,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    async fn of(response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let header = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
        let required = header(PAYMENT_REQUIRED).and_then(|bytes| decode(&bytes).ok());
        let settled = header(PAYMENT_RESPONSE).and_then(|bytes| decode(&bytes).ok());
        let body = response.bytes().await?;
        Ok(Self {
            status,
            headers,
            required,
            settled,
            body,
        })
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Why a payment was not taken.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        Reason::of(self.required.as_ref()?.error.as_deref()?)
    }

    /// One way to pay.
    #[must_use]
    pub fn way(&self, scheme: &str) -> Option<&PaymentRequirements> {
        let ways = &self.required.as_ref()?.accepts;
        ways.iter().find(|way| way.scheme == scheme)
    }

    /// What the answer says was charged for it.
    #[must_use]
    pub fn charged(&self) -> Option<Amount> {
        self.settled.as_ref()?.batch()?.charged_amount
    }

    /// What the seller says was charged in all.
    #[must_use]
    pub fn cumulative(&self) -> Option<Amount> {
        let state = self.settled.as_ref()?.batch()?.channel_state?;
        state.charged_cumulative_amount
    }

    /// The receipt: of a document in its head, of a stream in a comment.
    #[must_use]
    pub fn receipt(&self) -> Option<SignedReceipt> {
        let value = match self.comment() {
            Some(comment) => comment.get("receipt").cloned(),
            None => {
                let extensions = &self.settled.as_ref()?.extensions;
                extensions.get("farthing")?.get("receipt").cloned()
            }
        };
        serde_json::from_value(value?).ok()
    }

    /// What a stream says of its price, before it ends.
    #[must_use]
    pub fn comment(&self) -> Option<Value> {
        let text = self.text();
        let line = text.lines().find_map(|line| line.strip_prefix(": x402 "))?;
        serde_json::from_str(line).ok()
    }
}

/// An agent and its channel with one seller.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its HTTP client.
    pub http: reqwest::Client,
    /// The seller's door.
    pub url: String,
    /// Where the money lives.
    pub network: Network,
    /// The time of day.
    pub clock: Clock,
    /// The wallet.
    pub payer: EvmKey,
    /// Signs vouchers.
    pub key: EvmKey,
    /// The lane.
    pub salt: B256,
    /// What was charged, as the agent knows it.
    pub charged: Amount,
    /// What is deposited, as the agent knows it.
    pub balance: Amount,
}

impl Agent {
    /// The `n`th agent, with money, at a seller's door.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn new(street: &Street, seller: &Seller, n: u8) -> Result<Self, StreetError> {
        let payer = testing::evm_key(100_u8.saturating_add(n));
        street.ledgers.mint(payer.address(), WEALTH).await?;
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Self {
            http,
            url: seller.http_url(),
            network: street.network.clone(),
            clock: street.clock.clone(),
            key: payer.clone(),
            payer,
            salt: B256::ZERO,
            charged: Amount::ZERO,
            balance: Amount::ZERO,
        })
    }

    /// A question for a document.
    #[must_use]
    pub fn plain(text: &str, tokens: u64) -> Value {
        json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens})
    }

    /// A question for a stream.
    #[must_use]
    pub fn stream(text: &str, tokens: u64) -> Value {
        let mut body = Self::plain(text, tokens);
        body["stream"] = json!(true);
        body
    }

    /// A request as it leaves.
    pub fn request(
        &self,
        body: &Value,
        payment: Option<&PaymentPayload>,
    ) -> reqwest::RequestBuilder {
        let url = format!("{}/chat/completions", self.url);
        let request = self.http.post(url).body(body.to_string());
        match payment.and_then(|payment| encode(payment).ok()) {
            Some(header) => request.header(PAYMENT_SIGNATURE, header),
            None => request,
        }
    }

    /// Asks with a payment or without one.
    ///
    /// # Errors
    /// The connection's.
    pub async fn ask(
        &self,
        body: &Value,
        payment: Option<&PaymentPayload>,
    ) -> Result<Reply, reqwest::Error> {
        Reply::of(self.request(body, payment).send().await?).await
    }

    /// Sends any request.
    ///
    /// # Errors
    /// The connection's.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Reply, reqwest::Error> {
        Reply::of(request.send().await?).await
    }

    /// What `batch-settlement` costs for this body.
    ///
    /// # Errors
    /// [`StreetError::Io`] when no price is told.
    pub async fn price(&self, body: &Value) -> Result<PaymentRequirements, StreetError> {
        let reply = self.ask(body, None).await.map_err(std::io::Error::other)?;
        let told = reply.way(scheme::BATCH).cloned();
        told.ok_or_else(|| std::io::Error::other(format!("no price: {}", reply.text())).into())
    }

    /// The channel's terms, as a seller's way to pay has them.
    #[must_use]
    pub fn config(&self, way: &PaymentRequirements) -> ChannelConfig {
        let extra: Option<BatchExtra> =
            serde_json::from_value(Value::Object(way.extra.clone())).ok();
        let (claim, delay) = extra
            .map(|extra| (extra.receiver_authorizer, extra.withdraw_delay))
            .unwrap_or_default();
        ChannelConfig {
            payer: self.payer.address(),
            payer_authorizer: self.key.address(),
            receiver: way.pay_to,
            receiver_authorizer: claim,
            token: way.asset,
            withdraw_delay: delay,
            salt: self.salt,
        }
    }

    /// A signed voucher.
    #[must_use]
    pub fn sign(&self, config: &ChannelConfig, ceiling: Amount) -> SignedVoucher {
        let voucher = Voucher {
            channel: config.id(&self.network),
            ceiling,
        };
        Signed::sign(voucher, &self.network.domain(), &self.key)
    }

    /// A payment that chose this way.
    #[must_use]
    pub fn payload(&self, way: &PaymentRequirements, payment: &Batch) -> PaymentPayload {
        PaymentPayload {
            x402_version: VERSION,
            resource: None,
            accepted: way.clone(),
            payload: Value::Object(fields(payment)),
            extensions: Fields::new(),
        }
    }

    /// A voucher as a payment.
    #[must_use]
    pub fn voucher(&self, way: &PaymentRequirements, ceiling: Amount) -> PaymentPayload {
        let config = self.config(way);
        let voucher = BatchVoucher {
            channel_config: WireConfig(config),
            voucher: WireVoucher::from(&self.sign(&config, ceiling)),
        };
        self.payload(way, &Batch::Voucher(voucher))
    }

    /// A deposit, and a voucher on it.
    #[must_use]
    pub fn deposit(
        &self,
        way: &PaymentRequirements,
        ceiling: Amount,
        amount: Amount,
    ) -> PaymentPayload {
        let config = self.config(way);
        let mut salt = B256::repeat_byte(7);
        salt.0[16..].copy_from_slice(&self.balance.get().to_be_bytes());
        let valid = std::time::Duration::from_secs(way.max_timeout_seconds);
        let terms = DepositTerms {
            amount,
            valid_before: self.clock.now().plus(valid),
            salt,
        };
        let deposit = Deposit::sign(&config, terms, &self.network, &self.payer);
        let payment = BatchDeposit {
            channel_config: WireConfig(config),
            voucher: WireVoucher::from(&self.sign(&config, ceiling)),
            deposit: WireDeposit::from(&deposit),
        };
        self.payload(way, &Batch::Deposit(payment))
    }

    /// What an honest agent would pay with: a voucher, or a deposit when that is not enough.
    #[must_use]
    pub fn payment(&self, way: &PaymentRequirements) -> PaymentPayload {
        let ceiling = self.charged.saturating_add(way.amount);
        if ceiling <= self.balance {
            return self.voucher(way, ceiling);
        }
        let amount = way.amount.get().saturating_mul(5).max(100_000);
        self.deposit(way, ceiling, Amount::atoms(amount))
    }

    /// Buys as a stock client does: asks for the price, pays, and tries once more when it is told
    /// what was charged.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn buy(&mut self, body: &Value) -> Result<Reply, StreetError> {
        let way = self.price(body).await?;
        let payment = self.payment(&way);
        let first = self.ask(body, Some(&payment)).await;
        let first = self.learn(&payment, first.map_err(std::io::Error::other)?);
        if first.reason() != Some(Reason::BatchMismatch) {
            return Ok(first);
        }
        let payment = self.payment(&way);
        let second = self.ask(body, Some(&payment)).await;
        Ok(self.learn(&payment, second.map_err(std::io::Error::other)?))
    }

    /// Takes over what an answer says of the channel.
    fn learn(&mut self, payment: &PaymentPayload, reply: Reply) -> Reply {
        if let Some(settled) = &reply.settled {
            if let Ok(farthing_protocol::payment::Payment::Batch(Batch::Deposit(deposit))) =
                payment.payment()
            {
                self.balance = self.balance.saturating_add(deposit.deposit.amount);
            }
            let charged = settled.batch().and_then(|extra| extra.charged_amount);
            self.charged = self.charged.saturating_add(charged.unwrap_or_default());
        }
        let state = reply.way(scheme::BATCH).and_then(|way| {
            let state = way.extra.get("channelState")?.clone();
            serde_json::from_value::<farthing_protocol::payment::ChannelState>(state).ok()
        });
        if let Some(state) = state {
            self.charged = state.charged_cumulative_amount.unwrap_or_default();
            self.balance = state.balance;
        }
        reply
    }

    /// Asks for the rest back, or for part of it, as a stock client does.
    ///
    /// # Errors
    /// [`StreetError::Io`].
    pub async fn refund(&mut self, amount: Option<Amount>) -> Result<Reply, StreetError> {
        let url = format!("{}/chat/completions", self.url);
        let probe = self.send(self.http.get(&url)).await;
        let probe = probe.map_err(std::io::Error::other)?;
        let way = probe.way(scheme::BATCH).cloned();
        let way = way.ok_or_else(|| std::io::Error::other("no price"))?;
        let config = self.config(&way);
        let payment = BatchRefund {
            channel_config: WireConfig(config),
            voucher: WireVoucher::from(&self.sign(&config, self.charged)),
            amount,
        };
        let payment = self.payload(&way, &Batch::Refund(payment));
        let header = encode(&payment).map_err(std::io::Error::other)?;
        let request = self.http.get(&url).header(PAYMENT_SIGNATURE, header);
        let reply = self.send(request).await.map_err(std::io::Error::other)?;
        Ok(self.learn(&payment, reply))
    }
}
