//! Buying from sellers that take no channel: `exact` and `upto`, from our own node's door behind a
//! front that offers only some ways to pay, and that may misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::Address;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use farthing_client::cli::receipts::{Format, ReceiptsCommand, run};
use farthing_client::cli::render::{self, View};
use farthing_client::client::{Errand, Event, InferError};
use farthing_client::config::{Config, X402};
use farthing_client::ledger::Scheme;
use farthing_client::report::{
    ActionError, ChannelAction, PaymentReport, Permit2Wish, ReceiptQuery,
};
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::payment::{
    self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired,
    SettlementResponse, scheme,
};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::store::Batch;
use farthing_protocol::x402::PERMIT2;
use farthing_tests::street::{Buyer, Ledgers, MODEL, Street, TestNet, WEALTH, eventually};
use tokio::sync::Notify;

const NOON: Timestamp = Timestamp(1_790_000_000_000 / 86_400_000 * 86_400_000 + 43_200_000);
/// Longer than any payment is valid, and than the chain's time may be behind.
const OVER: Duration = Duration::from_secs(1_200);

/// What the front does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    Honest,
    /// Hands the payment in and breaks off before the answer and its price.
    LosesAnswer,
    /// Keeps the payment and says it failed, with this status.
    Keeps(u16),
    /// Takes the payment and closes the connection.
    CutsOff,
    /// Takes the payment and never answers.
    Hangs,
    /// Asks for more than anybody pays.
    Absurd,
    /// Says that it took more than was signed.
    OverClaims,
    /// Sends a receipt that nobody has signed.
    Forges,
    /// Says that a stream cost less than it did, and leaves out the receipt.
    SaysNothing,
}

struct Front {
    door: Mutex<String>,
    schemes: &'static [&'static str],
    manners: Mutex<Manners>,
    http: reqwest::Client,
    /// Payments it has seen.
    paid: AtomicUsize,
    arrived: Notify,
}

impl Front {
    async fn start(schemes: &'static [&'static str], manners: Manners) -> (Arc<Self>, String) {
        let front = Arc::new(Self {
            door: Mutex::default(),
            schemes,
            manners: Mutex::new(manners),
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
            paid: AtomicUsize::new(0),
            arrived: Notify::new(),
        });
        let routes = Router::new().fallback(pass).with_state(Arc::clone(&front));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("binds");
        let address = listener.local_addr().expect("has an address");
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (front, format!("http://{address}/v1"))
    }

    fn manners(&self) -> Manners {
        *self.manners.lock().expect("whole")
    }

    fn behave(&self, manners: Manners) {
        *self.manners.lock().expect("whole") = manners;
    }

    fn paid(&self) -> usize {
        self.paid.load(Ordering::SeqCst)
    }

    /// The ways to pay that it lets through.
    fn offer(&self, text: &HeaderValue) -> HeaderValue {
        let mut required: PaymentRequired = payment::decode(text.as_bytes()).expect("terms");
        required
            .accepts
            .retain(|way| self.schemes.contains(&way.scheme.as_str()));
        if self.manners() == Manners::Absurd {
            for way in &mut required.accepts {
                way.amount = WEALTH;
            }
        }
        let text = payment::encode(&required).expect("fits");
        HeaderValue::from_str(&text).expect("is ASCII")
    }

    /// What it says was taken.
    fn tell(&self, text: &HeaderValue) -> HeaderValue {
        let mut settled: SettlementResponse = payment::decode(text.as_bytes()).expect("a word");
        match self.manners() {
            Manners::OverClaims => settled.amount = Some(WEALTH.to_string()),
            Manners::Forges => {
                let receipt = &mut settled.extensions["farthing"]["receipt"];
                let held = serde_json::from_value(receipt.clone());
                let mut forged: SignedReceipt = held.expect("a receipt");
                forged.receipt.usage.completion += 1;
                *receipt = serde_json::to_value(forged).expect("is JSON");
            }
            Manners::SaysNothing => {
                settled.amount = None;
                settled.extensions.clear();
            }
            _ => return text.clone(),
        }
        let text = payment::encode(&settled).expect("fits");
        HeaderValue::from_str(&text).expect("is ASCII")
    }
}

async fn pass(
    State(front): State<Arc<Front>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let payment = headers.get(PAYMENT_SIGNATURE);
    if let Some(payment) = payment {
        let made: PaymentPayload = payment::decode(payment.as_bytes()).expect("a payment");
        assert!(front.schemes.contains(&made.accepted.scheme.as_str()));
        front.paid.fetch_add(1, Ordering::SeqCst);
        front.arrived.notify_one();
        match front.manners() {
            Manners::Keeps(status) => {
                let status = StatusCode::from_u16(status).expect("a status");
                return status.into_response();
            }
            Manners::CutsOff => panic!("the connection ends here"),
            Manners::Hangs => return std::future::pending().await,
            _ => {}
        }
    }
    let door = front.door.lock().expect("whole").clone();
    let path = uri.path().trim_start_matches("/v1").to_owned();
    let mut request = front
        .http
        .request(method, format!("{door}{path}"))
        .body(body);
    for name in [PAYMENT_SIGNATURE, "content-type"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value.as_bytes());
        }
    }
    let sold = payment.is_some();
    let answer = request.send().await.expect("the node answers");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for name in [PAYMENT_REQUIRED, PAYMENT_RESPONSE, "content-type"] {
        let Some(value) = answer.headers().get(name) else {
            continue;
        };
        let value = match name {
            PAYMENT_REQUIRED => front.offer(value),
            PAYMENT_RESPONSE => front.tell(value),
            _ => value.clone(),
        };
        response.headers_mut().insert(name, value);
    }
    if sold && front.manners() == Manners::LosesAnswer {
        // All of it has arrived here, so the money is taken; none of it goes on.
        answer.bytes().await.expect("all of it");
        response.headers_mut().remove(PAYMENT_RESPONSE);
        let broken = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("cut off"))]);
        *response.body_mut() = Body::from_stream(broken);
        return response;
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}

/// One of our nodes behind a front, and a buyer that knows only the front.
async fn street(
    net: TestNet,
    schemes: &'static [&'static str],
    manners: Manners,
    tweak: impl Fn(&mut Config) + Send + Sync,
) -> (Street, Arc<Front>) {
    let (front, url) = Front::start(schemes, manners).await;
    let mut street = net.buyers(0).http().start().await.expect("starts");
    *front.door.lock().expect("whole") = street.sellers[0].http_url();
    let joined = street.join(move |_, config| {
        config.network.bootstrap.clear();
        config.x402 = vec![X402 {
            url: url.clone(),
            models: vec![MODEL.to_owned()],
            price_input: None,
            price_output: None,
            max_output: 1024,
        }];
        tweak(config);
    });
    joined.await.expect("joins");
    (street, front)
}

fn as_it_is(_: &mut Config) {}

fn manual() -> (TestNet, Clock) {
    let clock = Clock::manual(NOON);
    (TestNet::new().clock(clock.clone()), clock)
}

/// The node makes a new offer where the clock has run past its old one.
async fn reopen(street: &mut Street, front: &Front) {
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    *front.door.lock().expect("whole") = street.sellers[0].http_url();
}

/// Buys, and says what it cost.
async fn buy(street: &Street, stream: bool) -> Result<Amount, InferError> {
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
            Event::Paid(charged) => {
                assert!(events > 0, "an answer without content");
                return Ok(charged);
            }
            Event::End(_) => panic!("there is no peer to sell it"),
        }
    }
    panic!("an answer without an end");
}

fn payer(street: &Street) -> Address {
    street.buyers[0].wallet_keys().payer.address()
}

async fn approve(street: &Street) {
    match &street.ledgers {
        Ledgers::Memory(memory) => memory.approve(payer(street), PERMIT2, WEALTH),
        Ledgers::Anvil(anvil) => {
            anvil
                .fund(payer(street), 1_000_000_000_000_000_000)
                .await
                .expect("funds");
            let approved = anvil.approve(payer(street), PERMIT2, WEALTH).await;
            approved.expect("is allowed");
        }
    }
}

async fn holds(street: &Street, account: Address) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    chain.token_balance(account).await.expect("answers")
}

/// Both sides hold on chain exactly what the books say was charged.
async fn agrees(street: &Street, spent: Amount) {
    let ledger = street.sellers[0].node().ledger();
    let quiet = eventually("the sales have ended", || ledger.running() == 0);
    quiet.await.expect("they end");
    let payout = street.sellers[0].payout();
    assert_eq!(holds(street, payout).await, spent);
    let rest = WEALTH.saturating_sub(spent);
    assert_eq!(holds(street, payer(street)).await, rest);
    assert_eq!(street.buyers[0].ledger().charged_once(), spent);
    assert_eq!(street.buyers[0].client().standing().charged, spent);
}

fn promised(street: &Street) -> Amount {
    let promised = street.buyers[0].ledger().promised(street.clock.now());
    assert_eq!(promised.today, promised.total);
    promised.total
}

async fn payments(street: &Street) -> Vec<PaymentReport> {
    // The books in memory are ahead of the disk by what is on its way there.
    let written = street.buyers[0].ledger().store().commit(Batch::new());
    written.await.expect("is written");
    let query = ReceiptQuery {
        limit: 100,
        ..ReceiptQuery::default()
    };
    let page = street.buyers[0].client().receipts(&query).await;
    page.expect("reads").payments
}

async fn one_way_to_the_atom(net: TestNet, way: &'static [&'static str], expected: Scheme) {
    let (street, front) = street(net, way, Manners::Honest, as_it_is).await;
    approve(&street).await;
    let mut spent = Amount::ZERO;
    for stream in [false, true, false] {
        let charged = buy(&street, stream).await.expect("answers");
        assert!(!charged.is_zero());
        spent = spent.saturating_add(charged);
        agrees(&street, spent).await;
    }
    assert_eq!(front.paid(), 3);
    assert!(
        street.buyers[0].accounts().is_empty(),
        "no channel is opened"
    );
    assert!(promised(&street) >= spent);

    let held = payments(&street).await;
    assert_eq!(held.len(), 3);
    let sum = held.iter().map(|held| held.payment.charged);
    assert_eq!(sum.fold(Amount::ZERO, Amount::saturating_add), spent);
    let url = &street.buyers[0].config.x402[0].url;
    for held in &held {
        let payment = &held.payment;
        assert_eq!((payment.scheme, &payment.url), (expected, url));
        assert!(payment.charged <= payment.signed && payment.dispute.is_none());
        assert_eq!(expected == Scheme::Exact, payment.charged == payment.signed);
        // The seller is one of our nodes: its signed receipt proves it.
        let signed = payment.receipt.clone().expect("a receipt");
        let receipt = signed.verify(street.sellers[0].id()).expect("is signed");
        assert_eq!(receipt.receipt().charged, payment.charged);
        let shown = street.buyers[0].client().payment(payment.request).await;
        assert_eq!(&shown.expect("is found"), held);
    }
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_takes_exact_only_is_paid_to_the_atom_on_anvil() {
    one_way_to_the_atom(TestNet::new().anvil(), &[scheme::EXACT], Scheme::Exact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_takes_upto_only_is_paid_for_what_was_used_on_anvil() {
    one_way_to_the_atom(TestNet::new().anvil(), &[scheme::UPTO], Scheme::Upto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upto_is_preferred_to_exact_and_needs_an_approval_which_is_asked_for_by_name() {
    let both = &[scheme::EXACT, scheme::UPTO];
    let (first, _front) = street(TestNet::new(), both, Manners::Honest, as_it_is).await;
    buy(&first, false).await.expect("exact needs no approval");
    approve(&first).await;
    buy(&first, false).await.expect("answers");
    let used: Vec<_> = payments(&first).await;
    let mut used: Vec<_> = used.iter().map(|held| held.payment.scheme).collect();
    used.sort_by_key(|scheme| *scheme == Scheme::Upto);
    assert_eq!(used, [Scheme::Exact, Scheme::Upto]);
    first.stop().await;

    let (second, front) = street(TestNet::new(), &[scheme::UPTO], Manners::Honest, as_it_is).await;
    let refused = buy(&second, false).await;
    let Err(InferError::Errand(Errand::Approval(why))) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        why.contains("wallet permit2") && why.contains(&PERMIT2.to_string()),
        "{why}"
    );
    assert_eq!((front.paid(), promised(&second)), (0, Amount::ZERO));
    second.stop().await;
}

async fn permit2_is_allowed_by_the_wallet_itself(net: TestNet) {
    let (street, _front) = street(net, &[scheme::UPTO], Manners::Honest, as_it_is).await;
    let client = street.buyers[0].client();
    let amount = Some(Amount::atoms(100_000));
    let poor = client.allow_permit2(Permit2Wish { amount }).await;
    let Err(ActionError::Refused(why)) = poor else {
        panic!("{poor:?}");
    };
    assert!(why.contains("gas"), "{why}");
    buy(&street, false).await.expect_err("nothing is allowed");
    street.ledgers.fund(payer(&street)).await.expect("funds");
    let allowed = client.allow_permit2(Permit2Wish { amount }).await;
    assert_eq!(Some(allowed.expect("is mined").allowed), amount);
    let charged = buy(&street, false).await.expect("answers");
    agrees(&street, charged).await;
    let none = Some(Amount::ZERO);
    let taken_back = client.allow_permit2(Permit2Wish { amount: none }).await;
    taken_back.expect("is mined");
    buy(&street, false).await.expect_err("nothing is allowed");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wallet_allows_permit2_what_upto_needs_and_takes_it_back() {
    permit2_is_allowed_by_the_wallet_itself(TestNet::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wallet_allows_permit2_what_upto_needs_and_takes_it_back_on_anvil() {
    permit2_is_allowed_by_the_wallet_itself(TestNet::new().anvil()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_is_preferred_where_the_seller_takes_one() {
    let all = &[scheme::EXACT, scheme::UPTO, scheme::BATCH];
    let (street, _front) = street(TestNet::new(), all, Manners::Honest, as_it_is).await;
    approve(&street).await;
    let charged = buy(&street, false).await.expect("answers");
    assert_eq!(street.buyers[0].accounts().len(), 1);
    let held = payments(&street).await;
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].payment.scheme, Scheme::BatchSettlement);
    assert_eq!(held[0].payment.charged, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_counts_as_spent_and_the_chain_tells_later_that_it_was_paid() {
    let (net, clock) = manual();
    let (street, front) = street(net, &[scheme::EXACT], Manners::LosesAnswer, as_it_is).await;
    buy(&street, false).await.expect_err("it is lost");
    assert_eq!(front.paid(), 1, "nothing is signed a second time");
    let signed = promised(&street);
    assert!(!signed.is_zero());
    assert!(payments(&street).await.is_empty());
    clock.advance(OVER);
    eventually("the chain is asked", || {
        !street.buyers[0].ledger().charged_once().is_zero()
    })
    .await
    .expect("it says so");
    assert_eq!(promised(&street), signed);
    agrees(&street, signed).await;
    let held = payments(&street).await;
    assert_eq!(held[0].payment.charged, signed);
    assert!(held[0].payment.receipt.is_none());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_payment_counts_as_spent_until_its_time_is_over_unused() {
    for way in [&[scheme::EXACT], &[scheme::UPTO]] {
        let (net, clock) = manual();
        let (mut street, front) = street(net, way, Manners::Keeps(500), |config| {
            // Room for three answers and not for four.
            config.spend.per_day = Amount::atoms(120 * 3 + 60);
        })
        .await;
        approve(&street).await;
        let mut refusals = 0;
        while promised(&street) < Amount::atoms(120 * 2) {
            let why = buy(&street, false).await.expect_err("it fails");
            refusals += 1;
            assert!(refusals < 32, "a refused payment does not count: {why}");
            // An only seller that fails again and again is left alone for a while.
            clock.advance(Duration::from_secs(6));
        }
        // The limit holds although nothing was ever sold.
        let limited = loop {
            match buy(&street, false).await {
                Err(InferError::SpendLimit(why)) => break why,
                other => drop(other.expect_err("it fails")),
            }
            refusals += 1;
            assert!(refusals < 32, "the limit is passed");
            clock.advance(Duration::from_secs(6));
        };
        assert!(limited.contains("per_day"), "{limited}");
        assert_eq!(front.paid(), refusals);
        clock.advance(OVER);
        eventually("it is given back", || promised(&street).is_zero())
            .await
            .expect("the chain shows it was not taken");
        front.behave(Manners::Honest);
        reopen(&mut street, &front).await;
        let charged = buy(&street, false).await.expect("answers");
        agrees(&street, charged).await;
        street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_once_a_payment_has_left_no_other_seller_is_paid_and_this_one_is_blamed() {
    for manners in [
        Manners::Keeps(400),
        Manners::Keeps(429),
        Manners::Keeps(500),
        Manners::Keeps(503),
        Manners::LosesAnswer,
        Manners::CutsOff,
    ] {
        let (net, _clock) = manual();
        let exact = &[scheme::EXACT];
        let (other, url) = Front::start(exact, manners).await;
        let (street, front) = street(net, exact, manners, move |config| {
            let url = url.clone();
            let second = X402 {
                url,
                ..config.x402[0].clone()
            };
            config.x402.push(second);
        })
        .await;
        *other.door.lock().expect("whole") = street.sellers[0].http_url();
        for purchase in 1..=2 {
            let failed = buy(&street, false).await;
            // What the gateway answers with 502 and "do not try again".
            let Err(InferError::Failed { attempts }) = failed else {
                panic!("{manners:?}: {failed:?}");
            };
            assert_eq!(attempts.len(), 1, "{manners:?}");
            assert_eq!(front.paid() + other.paid(), purchase, "{manners:?}");
        }
        // The second purchase has left alone who failed the first.
        assert_eq!((front.paid(), other.paid()), (1, 1), "{manners:?}");
        street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_is_killed_with_a_payment_out_counts_it_until_the_chain_tells() {
    let (net, clock) = manual();
    let net = net.crashable();
    let (mut street, front) = street(net, &[scheme::EXACT], Manners::Hangs, as_it_is).await;
    {
        let buying = buy(&street, false);
        tokio::pin!(buying);
        tokio::select! {
            bought = &mut buying => panic!("nobody answers: {bought:?}"),
            () = front.arrived.notified() => {}
        }
        let signed = promised(&street);
        assert!(!signed.is_zero(), "it is recorded before it is sent");
    }
    let signed = promised(&street);
    street.buyers[0].crash().expect("is killed");
    // It knows its seller by the configuration: nobody is waited for.
    let mut buyer = street.buyers.remove(0);
    buyer.start(&street).await.expect("starts");
    street.buyers.push(buyer);
    assert_eq!(promised(&street), signed, "it is on disk");
    clock.advance(OVER);
    eventually("it is given back", || promised(&street).is_zero())
        .await
        .expect("the chain shows it was not taken");
    front.behave(Manners::Honest);
    reopen(&mut street, &front).await;
    let charged = buy(&street, false).await.expect("answers");
    agrees(&street, charged).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_asks_for_too_much_gets_no_signature() {
    for way in [&[scheme::EXACT], &[scheme::UPTO]] {
        let (street, front) = street(TestNet::new(), way, Manners::Absurd, as_it_is).await;
        approve(&street).await;
        let refused = buy(&street, false).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!((front.paid(), promised(&street)), (0, Amount::ZERO));
        street.stop().await;
    }
    // Stated prices bound it too.
    let (street, front) = street(
        TestNet::new(),
        &[scheme::EXACT],
        Manners::Honest,
        |config| {
            config.x402[0].price_input = Some(Price(1));
            config.x402[0].price_output = Some(Price(1));
        },
    )
    .await;
    assert!(buy(&street, false).await.is_err());
    assert_eq!((front.paid(), promised(&street)), (0, Amount::ZERO));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_says_it_took_more_than_was_signed_is_believed_up_to_that_and_left() {
    for way in [&[scheme::EXACT], &[scheme::UPTO]] {
        let (street, front) = street(TestNet::new(), way, Manners::OverClaims, as_it_is).await;
        approve(&street).await;
        buy(&street, false).await.ok();
        eventually("it is booked", || {
            !street.buyers[0].ledger().charged_once().is_zero()
        })
        .await
        .expect("is booked");
        let held = payments(&street).await;
        assert_eq!(held[0].payment.charged, held[0].payment.signed);
        assert!(held[0].payment.dispute.is_some());
        front.behave(Manners::Honest);
        let again = buy(&street, false).await;
        assert!(
            matches!(again, Err(InferError::NoSeller { .. })),
            "{again:?}"
        );
        assert_eq!(front.paid(), 1);
        street.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_receipt_that_nobody_has_signed_is_disputed_and_not_kept_as_one() {
    let exact = &[scheme::EXACT];
    let (mut street, _front) = street(TestNet::new(), exact, Manners::Forges, as_it_is).await;
    buy(&street, false).await.ok();
    eventually("it is booked", || {
        !street.buyers[0].ledger().charged_once().is_zero()
    })
    .await
    .expect("is booked");
    let held = payments(&street).await;
    assert!(held[0].payment.dispute.is_some());
    assert_eq!(held[0].payment.receipt, None);
    street.buyers[0].stop().await;
    let own = ReceiptsCommand::Verify {
        file: None,
        proof: None,
        channel: None,
    };
    said(&street, own).await.expect("no fault of what is kept");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_whose_price_is_not_said_stays_in_doubt_until_the_chain_tells() {
    let (net, clock) = manual();
    let (street, _front) = street(net, &[scheme::UPTO], Manners::SaysNothing, as_it_is).await;
    approve(&street).await;
    buy(&street, false).await.expect("the answer is whole");
    assert!(
        payments(&street).await.is_empty(),
        "nobody said what it cost"
    );
    let signed = promised(&street);
    clock.advance(OVER);
    eventually("the chain is asked", || {
        !street.buyers[0].ledger().charged_once().is_zero()
    })
    .await
    .expect("it says so");
    // The chain shows that it was used and not for how much: the most counts.
    assert_eq!(street.buyers[0].ledger().charged_once(), signed);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_elsewhere_pays_by_channels_only_and_is_told_so() {
    let (street, front) = street(
        TestNet::new(),
        &[scheme::EXACT],
        Manners::Honest,
        |config| {
            config.wallet.payer = Some(Address::repeat_byte(0xda));
        },
    )
    .await;
    let refused = buy(&street, false).await;
    let Err(InferError::Errand(Errand::Approval(why))) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("elsewhere"), "{why}");
    assert_eq!(front.paid(), 0);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_yes_buys_once_also_where_each_purchase_is_paid_alone() {
    let (street, front) = street(
        TestNet::new(),
        &[scheme::EXACT],
        Manners::Keeps(500),
        |config| {
            config.spend.approve_above = Some(Amount::atoms(5));
        },
    )
    .await;
    let waits = |bought: Result<Amount, InferError>| {
        matches!(bought, Err(InferError::Errand(Errand::Approval(_))))
    };
    assert!(waits(buy(&street, false).await));
    let client = street.buyers[0].client();
    let id = client.approvals()[0].id.to_string();
    let word = farthing_client::report::Word::Granted;
    client.approve(&id, word).await.expect("is waited for");
    assert!(
        !waits(buy(&street, false).await),
        "it is signed, and refused"
    );
    assert_eq!(front.paid(), 1);
    // The seller may still take it: the yes is used up.
    assert!(waits(buy(&street, false).await));
    assert_eq!(front.paid(), 1);
    street.stop().await;
}

async fn refunded_to_the_atom(net: TestNet) {
    let batch = &[scheme::BATCH];
    let (street, _front) = street(net, batch, Manners::Honest, as_it_is).await;
    let mut spent = Amount::ZERO;
    for stream in [false, true] {
        spent = spent.saturating_add(buy(&street, stream).await.expect("answers"));
    }
    let (id, before) = street.buyers[0].accounts()[0];
    let client = street.buyers[0].client();
    let done = client.channel(id, ChannelAction::Refund).await;
    let done = done.expect("the rest comes back");
    assert_eq!(done.channel.balance, spent);
    assert!(done.message.contains("returned"), "{}", done.message);
    assert_eq!(
        holds(&street, payer(&street)).await,
        WEALTH.saturating_sub(spent)
    );
    assert!(before.channel.balance() > spent);
    // It is filled again by the next purchase.
    let more = buy(&street, false).await.expect("answers");
    assert_eq!(street.buyers[0].accounts().len(), 1);
    let (_, account) = street.buyers[0].accounts()[0];
    assert_eq!(account.channel.charged(), spent.saturating_add(more));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_x402_seller_sends_the_rest_of_a_channel_back_when_it_is_asked() {
    refunded_to_the_atom(TestNet::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_x402_seller_sends_the_rest_of_a_channel_back_when_it_is_asked_on_anvil() {
    refunded_to_the_atom(TestNet::new().anvil()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_takes_over_a_counter_that_our_own_signature_proves() {
    let batch = &[scheme::BATCH];
    let (street, front) = street(TestNet::new(), batch, Manners::Honest, as_it_is).await;
    buy(&street, false).await.expect("answers");
    // What the seller charges for the next one is not heard of.
    front.behave(Manners::LosesAnswer);
    buy(&street, false).await.expect_err("it is lost");
    front.behave(Manners::Honest);
    let (id, _) = street.buyers[0].accounts()[0];
    let client = street.buyers[0].client();
    client
        .channel(id, ChannelAction::Refund)
        .await
        .expect("the rest comes back");
    let (_, account) = street.buyers[0].accounts()[0];
    assert_eq!(account.channel.charged(), street.sold());
    assert!(account.channel.reserved().is_zero());
    let rest = WEALTH.saturating_sub(street.sold());
    assert_eq!(holds(&street, payer(&street)).await, rest);
    street.stop().await;
}

/// What `farthing receipts …` says on the buyer's disk while no gateway runs.
async fn said(street: &Street, command: ReceiptsCommand) -> Result<String, String> {
    let config = &street.buyers[0].config;
    let view = View {
        token: render::token(&config.chain),
        json: false,
    };
    let mut out = Vec::new();
    let done = run(config, command, &view, &mut out).await;
    let text = String::from_utf8(out).expect("text");
    match done {
        Ok(()) => Ok(text),
        Err(error) => Err(format!("{text}{error}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_are_paged_shown_exported_and_checked_like_receipts() {
    let (net, clock) = manual();
    let (mut street, _front) = street(net, &[scheme::EXACT], Manners::Honest, as_it_is).await;
    for _ in 0..5 {
        buy(&street, false).await.expect("answers");
        clock.advance(Duration::from_millis(10));
    }
    let all = payments(&street).await;
    assert_eq!(all.len(), 5);
    let client = street.buyers[0].client().clone();
    let mut query = ReceiptQuery {
        limit: 2,
        ..ReceiptQuery::default()
    };
    let mut paged = Vec::new();
    loop {
        let page = client.receipts(&query).await.expect("reads");
        assert!(page.payments.len() <= 2);
        paged.extend(page.payments);
        query.before = page.next;
        if query.before.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);
    // Whoever holds the client holds the books.
    drop(client);
    street.buyers[0].stop().await;
    let request = all[0].payment.request;
    let shown = said(&street, ReceiptsCommand::Show { request }).await;
    let shown = shown.expect("is found");
    assert!(
        shown.contains("exact") && shown.contains("signed receipt"),
        "{shown}"
    );
    let export = |format| ReceiptsCommand::Export {
        channel: None,
        format,
        out: None,
    };
    let csv = said(&street, export(Format::Csv)).await.expect("exports");
    assert_eq!(csv.lines().count(), 6);
    let lines = said(&street, export(Format::Jsonl)).await.expect("exports");
    let verify = |file: &std::path::Path| ReceiptsCommand::Verify {
        file: Some(file.into()),
        proof: None,
        channel: None,
    };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("payments.jsonl");
    std::fs::write(&file, &lines).expect("writes");
    said(&street, verify(&file)).await.expect("no fault");
    let tampered = lines.replacen("\"completion\":", "\"completion\":1", 1);
    assert_ne!(tampered, lines);
    std::fs::write(&file, tampered).expect("writes");
    let fault = said(&street, verify(&file)).await.expect_err("a fault");
    assert!(fault.contains("not signed"), "{fault}");
    street.stop().await;
}
