//! Buying over plain HTTP from sellers that know x402 and nothing of us, honest and otherwise.

use std::sync::{Arc, Mutex, OnceLock};

use alloy::primitives::{Address, Bytes as Hex};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use farthing_client::client::{Event, InferError};
use farthing_client::config::X402;
use farthing_client::ledger::Standing;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::body::Body;
use farthing_protocol::chain::{Chain, ClaimRow, Write};
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::payment::{
    self, Batch, BatchExtra, Caip2, ChannelState, PAYMENT_REQUIRED, PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE, Payment, PaymentPayload, PaymentRequired, PaymentRequirements, Reason,
    Resource, SettlementExtra, SettlementResponse, VERSION, VoucherState, scheme,
};
use farthing_protocol::pricing::Demand;
use farthing_protocol::purchase::Endpoint;
use farthing_protocol::testing;
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use farthing_tests::street::{Buyer, MODEL, Street, TestNet};

const PAYOUT: Address = Address::repeat_byte(0x5e);
const INPUT: Price = Price(100_000);
const OUTPUT: Price = Price(500_000);

/// What a seller does that it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    Honest,
    /// Charges more than it quoted.
    OverCharges,
    /// Its total is not what it was and the charge.
    WrongTotal,
    /// Says "behind" and shows a counter without our signature.
    LyingCounter,
    /// Says "behind" and counts the very voucher it refuses as charged.
    CountsWhatItRefuses,
    /// Quotes, and at the payment names another payee.
    ChangedPayTo,
    /// Quotes anew, dearer, as often as it is paid.
    ChangedPrice,
    /// Asks for all there is.
    Absurd,
    /// Sends us elsewhere.
    Redirects,
    /// Takes a deposit and does not hand it in.
    KeepsDeposit,
    /// Names a token of its own.
    OtherToken,
    /// Ends its stream in the middle and says no price.
    BreaksOff,
    /// Says "behind" and shows the counter of a channel with another seller.
    NamesAnother,
}

#[derive(Default)]
struct Books {
    charged: Amount,
    voucher: Option<SignedVoucher>,
    config: Option<ChannelConfig>,
    /// Requests without a payment.
    unpaid: usize,
    /// Answers.
    sold: usize,
    rises: u128,
    /// A channel with another seller.
    another: Option<ChannelId>,
}

struct Seller {
    manners: Manners,
    chain: OnceLock<Chain>,
    key: EvmKey,
    books: Mutex<Books>,
}

impl Seller {
    async fn start(manners: Manners) -> (Arc<Self>, String) {
        let seller = Arc::new(Self {
            manners,
            chain: OnceLock::new(),
            key: testing::evm_key(230),
            books: Mutex::default(),
        });
        let routes = Router::new()
            .route("/v1/chat/completions", post(sell))
            .route("/v1/models", get(list))
            .with_state(Arc::clone(&seller));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("binds");
        let address = listener.local_addr().expect("has an address");
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (seller, format!("http://{address}/v1"))
    }

    fn quote(&self, body: &[u8]) -> Amount {
        let model = farthing_protocol::offer::ModelOffer {
            max_output: 1024,
            prices: farthing_protocol::offer::Prices {
                input: INPUT,
                cached_input: INPUT,
                output: OUTPUT,
                request: Price(0),
            },
            ..testing::model()
        };
        let fields = Body::parse(body).expect("JSON");
        let demand = Demand::of(body, &fields, Endpoint::Chat, &model).expect("reads");
        demand.quote(&model.prices).expect("fits")
    }

    fn state(&self, id: ChannelId, charged: Amount) -> ChannelState {
        ChannelState {
            channel_id: id,
            balance: Amount::atoms(1_000_000),
            total_claimed: Amount::ZERO,
            withdraw_requested_at: 0,
            refund_nonce: Default::default(),
            charged_cumulative_amount: Some(charged),
        }
    }

    fn asks(&self, amount: Amount, error: Option<Reason>, state: Option<ChannelState>) -> Response {
        let network = testing::network();
        let paid = error.is_some();
        let books = self.books.lock().expect("whole");
        let voucher_state =
            state
                .as_ref()
                .and(books.voucher.as_ref())
                .map(|voucher| VoucherState {
                    signed_max_claimable: voucher.message.ceiling,
                    signature: voucher.signature.to_bytes(),
                });
        let extra = BatchExtra {
            receiver_authorizer: self.key.address(),
            withdraw_delay: 86_400,
            name: network.token_name.clone(),
            version: network.token_version.clone(),
            min_deposit: Some(Amount::atoms(1_000)),
            channel_state: state,
            voucher_state: match self.manners {
                Manners::LyingCounter => voucher_state.map(|state| VoucherState {
                    signature: Hex::from(vec![27; 65]),
                    ..state
                }),
                _ => voucher_state,
            },
        };
        let pay_to = match self.manners {
            Manners::ChangedPayTo if paid => Address::repeat_byte(0xbb),
            Manners::NamesAnother => Address::repeat_byte(0xdd),
            _ => PAYOUT,
        };
        let asset = match self.manners {
            Manners::OtherToken => Address::repeat_byte(0xcc),
            _ => network.token,
        };
        let required = PaymentRequired {
            x402_version: VERSION,
            error: error.map(|reason| reason.text().to_owned()),
            resource: Resource::default(),
            accepts: vec![PaymentRequirements {
                scheme: scheme::BATCH.to_owned(),
                network: Caip2(network.chain_id),
                amount,
                asset,
                pay_to,
                max_timeout_seconds: 60,
                extra: payment::fields(&extra),
            }],
            extensions: Default::default(),
        };
        let mut response = StatusCode::PAYMENT_REQUIRED.into_response();
        let text = payment::encode(&required).expect("fits");
        let value = HeaderValue::from_str(&text).expect("is ASCII");
        response.headers_mut().insert(PAYMENT_REQUIRED, value);
        response
    }

    async fn hand_in(&self, config: ChannelConfig, wire: &scheme::WireDeposit) {
        let given = wire
            .authorization
            .erc3009_authorization
            .clone()
            .expect("EIP-3009");
        let deposit = Deposit {
            amount: wire.amount,
            valid_after: given.valid_after,
            valid_before: given.valid_before,
            salt: given.salt,
            signature: given.signature,
        };
        self.write(Write::Deposit { config, deposit }).await;
    }

    async fn write(&self, write: Write) {
        let chain = self.chain.get().expect("the street stands");
        let prepared = chain
            .prepare(&write, &self.key, None)
            .await
            .expect("is possible");
        chain.broadcast(&prepared.raw).await.expect("is taken");
    }

    /// Claims what was charged and has it paid out.
    async fn claim(&self) -> Amount {
        let (config, voucher, total_claimed) = {
            let books = self.books.lock().expect("whole");
            (
                books.config.expect("a channel"),
                books.voucher.expect("a voucher"),
                books.charged,
            )
        };
        let row = ClaimRow {
            config,
            voucher,
            total_claimed,
        };
        self.write(Write::ClaimAndSettle {
            rows: vec![row],
            receiver: PAYOUT,
            token: testing::network().token,
        })
        .await;
        total_claimed
    }
}

async fn list() -> String {
    format!(r#"{{"data":[{{"id":"{MODEL}"}}]}}"#)
}

async fn sell(State(seller): State<Arc<Seller>>, headers: HeaderMap, body: Bytes) -> Response {
    if seller.manners == Manners::Redirects {
        return (
            StatusCode::TEMPORARY_REDIRECT,
            [("location", "http://127.0.0.1:1/")],
        )
            .into_response();
    }
    let mut amount = seller.quote(&body);
    if seller.manners == Manners::Absurd {
        amount = Amount::MAX;
    }
    if seller.manners == Manners::ChangedPrice {
        let mut books = seller.books.lock().expect("whole");
        books.rises += 1;
        amount = Amount::atoms(amount.get() + books.rises);
    }
    let Some(header) = headers.get(PAYMENT_SIGNATURE) else {
        seller.books.lock().expect("whole").unpaid += 1;
        return seller.asks(amount, None, None);
    };
    let payload: PaymentPayload = payment::decode(header.as_bytes()).expect("a payment");
    let Payment::Batch(batch) = payload.payment().expect("a payment") else {
        panic!("another scheme");
    };
    if matches!(
        seller.manners,
        Manners::ChangedPayTo | Manners::ChangedPrice
    ) || payload.accepted.amount != amount
    {
        return seller.asks(amount, Some(Reason::InvalidRequirements), None);
    }
    if seller.manners == Manners::NamesAnother {
        let another = seller.books.lock().expect("whole").another;
        let state = seller.state(another.expect("is told"), Amount::ZERO);
        return seller.asks(amount, Some(Reason::BatchMismatch), Some(state));
    }
    let (config, voucher) = (*batch.config(), batch.voucher().signed().expect("65 bytes"));
    let network = testing::network();
    let id = config.id(&network);
    assert_eq!(voucher.message.channel, id);
    voucher
        .verify(&network.domain(), config.payer_authorizer)
        .expect("is signed");
    let charged = seller.books.lock().expect("whole").charged;
    let behind = voucher.message.ceiling != charged.saturating_add(amount);
    let lies = matches!(
        seller.manners,
        Manners::LyingCounter | Manners::CountsWhatItRefuses
    );
    if behind || lies {
        let shown = match seller.manners {
            Manners::LyingCounter => Amount::atoms(5_000_000),
            Manners::CountsWhatItRefuses => voucher.message.ceiling,
            _ => charged,
        };
        let mut books = seller.books.lock().expect("whole");
        books.voucher.get_or_insert(voucher);
        drop(books);
        return seller.asks(
            amount,
            Some(Reason::BatchMismatch),
            Some(seller.state(id, shown)),
        );
    }
    if let Batch::Deposit(first) = &batch
        && seller.manners != Manners::KeepsDeposit
    {
        seller.hand_in(config, &first.deposit).await;
    }
    let cost = match seller.manners {
        Manners::OverCharges => amount.saturating_add(Amount::atoms(1)),
        _ => Amount::atoms(amount.get() / 3),
    };
    let total = charged.saturating_add(cost);
    let told = match seller.manners {
        Manners::WrongTotal => total.saturating_add(Amount::atoms(7)),
        _ => total,
    };
    {
        let mut books = seller.books.lock().expect("whole");
        books.charged = total;
        books.voucher = Some(voucher);
        books.config = Some(config);
        books.sold += 1;
    }
    let streamed = String::from_utf8_lossy(&body).contains(r#""stream":true"#);
    answer(&seller, (id, charged), (cost, told), streamed)
}

fn answer(
    seller: &Seller,
    (id, before): (ChannelId, Amount),
    (cost, total): (Amount, Amount),
    streamed: bool,
) -> Response {
    let extra = SettlementExtra {
        charged_amount: Some(if streamed { Amount::ZERO } else { cost }),
        channel_state: Some(seller.state(id, if streamed { before } else { total })),
    };
    let settlement = SettlementResponse {
        success: true,
        network: Caip2(testing::network().chain_id).to_string(),
        extra: payment::fields(&extra),
        ..SettlementResponse::default()
    };
    let event = r#"data: {"choices":[{"delta":{"content":"four"}}]}"#;
    let text = match (streamed, seller.manners) {
        (false, _) => r#"{"choices":[{"message":{"content":"four"}}]}"#.to_owned(),
        (true, Manners::BreaksOff) => format!("{event}\n\n"),
        (true, _) => format!(
            "{event}\n\n{event}\n\n: x402 {{\"chargedAmount\":\"{cost}\",\"chargedCumulativeAmount\":\"{total}\"}}\n\ndata: [DONE]\n\n"
        ),
    };
    let mut response = text.into_response();
    let text = payment::encode(&settlement).expect("fits");
    let value = HeaderValue::from_str(&text).expect("is ASCII");
    response.headers_mut().insert(PAYMENT_RESPONSE, value);
    response
}

fn setting(url: &str, models: &[&str]) -> X402 {
    X402 {
        url: url.to_owned(),
        models: models.iter().map(ToString::to_string).collect(),
        price_input: Some(INPUT),
        price_output: Some(OUTPUT),
        max_output: 1024,
    }
}

/// A street without peers: what is bought is bought over HTTP.
async fn street(manners: Manners, named: bool) -> (Street, Arc<Seller>) {
    let (seller, url) = Seller::start(manners).await;
    let net = TestNet::new().sellers(0).buyer_config(move |_, config| {
        config.x402 = vec![setting(&url, if named { &[MODEL] } else { &[] })];
    });
    let street = net.start().await.expect("starts");
    street
        .ledgers
        .fund(seller.key.address())
        .await
        .expect("funds");
    let chain = street.ledgers.chain().expect("a chain");
    assert!(seller.chain.set(chain).is_ok());
    (street, seller)
}

/// Buys, and says what came and what it cost.
async fn buy(street: &Street, stream: bool) -> Result<(usize, Amount), InferError> {
    let request = if stream {
        Buyer::stream(60)
    } else {
        Buyer::chat(60)
    };
    let mut answer = street.buyers[0].infer(request).await?;
    let mut events = 0;
    while let Some(event) = answer.next().await {
        match event? {
            Event::Data(_) => events += 1,
            Event::Paid(charged) => return Ok((events, charged)),
            Event::End(_) => panic!("there is no peer to sell it"),
        }
    }
    panic!("an answer without an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_seller_corrects_the_counter_of_no_channel_but_its_own() {
    let (seller, url) = Seller::start(Manners::BreaksOff).await;
    let (liar, elsewhere) = Seller::start(Manners::NamesAnother).await;
    let street = TestNet::new().sellers(0).buyer_config(move |_, config| {
        config.x402 = vec![setting(&url, &[MODEL]), setting(&elsewhere, &["other"])];
    });
    let street = street.start().await.expect("starts");
    let gas = street.ledgers.fund(seller.key.address()).await;
    gas.expect("funds");
    let chain = street.ledgers.chain().expect("a chain");
    assert!(seller.chain.set(chain).is_ok());
    buy(&street, true).await.expect_err("it breaks off");
    let (id, before) = street.buyers[0].accounts()[0];
    assert!(
        !before.channel.reserved().is_zero(),
        "nobody said the price"
    );
    liar.books.lock().expect("whole").another = Some(id);
    let mut request = Buyer::chat(60);
    let body = String::from_utf8_lossy(&request.body).replace(MODEL, "other");
    request.body = body.into();
    let refused = street.buyers[0].infer(request).await;
    let Err(InferError::Failed { attempts }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(attempts[0].reason.contains("not paid on"), "{attempts:?}");
    let after = street.buyers[0].ledger().account(id).expect("is there");
    assert_eq!(after.channel, before.channel, "its doubts are left alone");
    street.stop().await;
}

async fn served(manners: Manners, stream: bool) -> Result<(usize, Amount), InferError> {
    let (street, _seller) = street(manners, true).await;
    let bought = buy(&street, stream).await;
    street.stop().await;
    bought
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_x402_seller_is_one_more_seller_and_is_paid_to_the_atom() {
    let (street, seller) = street(Manners::Honest, true).await;
    let mut spent = Amount::ZERO;
    for stream in [false, false, true, true, false] {
        let (events, charged) = buy(&street, stream).await.expect("answers");
        assert_eq!(events, if stream { 2 } else { 1 });
        spent = spent.saturating_add(charged);
    }
    let (unpaid, sold, charged) = {
        let books = seller.books.lock().expect("whole");
        (books.unpaid, books.sold, books.charged)
    };
    assert_eq!((sold, charged), (5, spent));
    assert_eq!(
        unpaid, 1,
        "once the price is known it is paid without being asked for"
    );
    let (id, account) = street.buyers[0].accounts()[0];
    assert_eq!(account.channel.charged(), spent);
    let payments = street.buyers[0].ledger().payments(id).expect("reads");
    assert_eq!(payments.len(), 5);
    let claimed = seller.claim().await;
    let chain = street.ledgers.chain().expect("a chain");
    let paid = chain.token_balance(PAYOUT).await.expect("answers");
    assert_eq!((paid, claimed), (spent, spent));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_lists_its_models_is_found_without_naming_them() {
    let (street, _seller) = street(Manners::Honest, false).await;
    farthing_tests::street::eventually("the seller's models are listed", || {
        !street.buyers[0].client().models().is_empty()
    })
    .await
    .expect("are listed");
    buy(&street, true).await.expect("answers");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_over_the_quote_or_a_total_that_does_not_follow_freezes_the_channel() {
    for (manners, stream) in [
        (Manners::OverCharges, false),
        (Manners::OverCharges, true),
        (Manners::WrongTotal, false),
        (Manners::WrongTotal, true),
    ] {
        let (street, seller) = street(manners, true).await;
        buy(&street, stream).await.ok();
        let standing = || street.buyers[0].accounts()[0].1.standing;
        farthing_tests::street::eventually("the channel is frozen", || {
            standing() == Standing::Frozen
        })
        .await
        .expect("is frozen");
        let again = buy(&street, stream).await;
        assert!(
            matches!(again, Err(InferError::NoSeller { .. })),
            "{again:?}"
        );
        assert_eq!(seller.books.lock().expect("whole").sold, 1, "{manners:?}");
        street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_changes_its_mind_in_the_middle_is_not_paid() {
    for manners in [
        Manners::ChangedPayTo,
        Manners::ChangedPrice,
        Manners::Absurd,
        Manners::Redirects,
        Manners::OtherToken,
        Manners::LyingCounter,
        Manners::CountsWhatItRefuses,
    ] {
        let (street, seller) = street(manners, true).await;
        let bought = buy(&street, false).await;
        assert!(bought.is_err(), "{manners:?}: {bought:?}");
        assert_eq!(seller.books.lock().expect("whole").sold, 0, "{manners:?}");
        for (_, account) in street.buyers[0].accounts() {
            assert!(account.channel.charged().is_zero(), "{manners:?}");
        }
        street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_that_a_seller_keeps_to_itself_is_sent_again_and_never_doubled() {
    let (street, seller) = street(Manners::KeepsDeposit, true).await;
    for _ in 0..3 {
        buy(&street, false).await.expect("answers");
    }
    let (id, account) = street.buyers[0].accounts()[0];
    let chain = street.ledgers.chain().expect("a chain");
    let held = chain.channel(id).await.expect("answers").balance;
    assert!(held.is_zero(), "nothing is on the chain");
    assert!(
        account.channel.balance() <= Amount::atoms(1_000_000),
        "one deposit is counted"
    );
    assert_eq!(seller.books.lock().expect("whole").sold, 3);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_settled_by_the_next_purchase_under_our_own_signature() {
    let broken = served(Manners::BreaksOff, true).await;
    assert!(
        matches!(broken, Err(InferError::Interrupted(_))),
        "{broken:?}"
    );
    let (street, seller) = street(Manners::BreaksOff, true).await;
    assert!(buy(&street, true).await.is_err());
    // The seller has charged what we did not hear of; its counter is proven by our voucher.
    buy(&street, false).await.expect("answers");
    let (_, account) = street.buyers[0].accounts()[0];
    let charged = seller.books.lock().expect("whole").charged;
    assert_eq!(account.channel.charged(), charged);
    assert!(account.channel.reserved().is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_others_can_read_is_refused() {
    let mut config = farthing_client::config::Config::default();
    for (url, good) in [
        ("http://seller.example/v1", false),
        ("ftp://127.0.0.1/v1", false),
        ("https://seller.example/v1", true),
        ("http://127.0.0.1:8000/v1", true),
        ("http://[::1]:8000/v1", true),
        ("no address", false),
    ] {
        config.x402 = vec![X402 {
            url: url.to_owned(),
            models: Vec::new(),
            price_input: None,
            price_output: None,
            max_output: 1,
        }];
        assert_eq!(config.check().is_ok(), good, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_door_of_one_of_our_nodes_is_an_x402_seller_like_any_other() {
    let net = TestNet::new().buyers(0).http();
    let mut street = net.start().await.expect("starts");
    let url = street.sellers[0].http_url();
    let joined = street.join(|_, config| {
        config.network.bootstrap.clear();
        config.x402 = vec![X402 {
            url: url.clone(),
            models: vec![MODEL.to_owned()],
            price_input: None,
            price_output: None,
            max_output: 1024,
        }];
    });
    joined.await.expect("joins");
    let mut spent = Amount::ZERO;
    for stream in [false, true, true, false, false] {
        let (events, charged) = buy(&street, stream).await.expect("answers");
        assert!(events > 0 && !charged.is_zero());
        spent = spent.saturating_add(charged);
    }
    assert_eq!(street.sold(), spent);
    let (_, account) = street.buyers[0].accounts()[0];
    assert_eq!(account.channel.charged(), spent);
    assert_eq!(account.standing, Standing::Good);
    street.stop().await;
}
