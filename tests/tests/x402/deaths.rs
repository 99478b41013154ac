//! Crashes around payments for one purchase: whatever is cut off, the money is taken once, for
//! what was sold, and none is lost.

use std::time::Duration;

use farthing_node::ledger::OPEN;
use farthing_node::ledger::records::Purpose;
use farthing_protocol::amount::Amount;
use farthing_protocol::payment::{PaymentPayload, PaymentRequirements, Reason, scheme};
use farthing_protocol::purchase::Ending;
use farthing_protocol::store::Order;
use farthing_protocol::x402::PERMIT2;
use farthing_tests::street::{Agent, PATIENCE, Seller, Street, TestNet, WEALTH, eventually};
use farthing_tests::upstream::Behaviour;
use serde_json::Value;
use tokio::task::JoinHandle;

/// When the seller dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The payment is in the books, and nothing is worked yet.
    Entered,
    /// Its transaction is on its way, and not mined.
    OnItsWay,
    /// It is mined, and nothing is handed over.
    Mined,
}

async fn street(behaviour: Behaviour) -> (Street, Agent) {
    let net = TestNet::new()
        .buyers(0)
        .http()
        .crashable()
        .upstreams(behaviour)
        .seller_config(|_, config| config.limits.checkpoint = Duration::from_millis(1));
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    let memory = street.ledgers.memory();
    memory.approve(agent.payer.address(), PERMIT2, WEALTH);
    (street, agent)
}

/// The price, once the door has asked the chain which ways there are.
async fn price(agent: &Agent, body: &Value, scheme: &str) -> PaymentRequirements {
    let told = async {
        loop {
            // Right after a crash there may be no offer yet.
            let reply = agent.ask(body, None).await;
            if let Some(way) = reply.ok().and_then(|reply| reply.way(scheme).cloned()) {
                return way;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("is offered")
}

fn payment(agent: &Agent, way: &PaymentRequirements) -> PaymentPayload {
    match way.scheme.as_str() {
        scheme::EXACT => agent.exact(way, 1),
        _ => agent.upto(way, 1),
    }
}

/// Asks, and does not mind that nobody answers any more.
fn begin(agent: &Agent, body: &Value, payment: &PaymentPayload) -> JoinHandle<()> {
    let (agent, body, payment) = (agent.clone(), body.clone(), payment.clone());
    tokio::spawn(async move { drop(agent.ask(&body, Some(&payment)).await) })
}

fn untaken(seller: &Seller) -> usize {
    seller.node().ledger().untaken().expect("reads").len()
}

fn on_its_way(seller: &Seller) -> bool {
    let in_flight = seller.node().settlement().outlook().in_flight;
    let mut purposes = in_flight.iter().map(|one| one.purpose);
    purposes.any(|purpose| matches!(purpose, Purpose::Once(_)))
}

async fn received(street: &Street) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    let payout = street.sellers[0].payout();
    chain.token_balance(payout).await.expect("answers")
}

async fn restart(street: &mut Street, agent: &mut Agent) {
    street.sellers[0].crash().expect("crashes");
    street.start_seller(0).await.expect("starts");
    agent.url = street.sellers[0].http_url();
}

async fn settles(street: &Street) {
    let seller = &street.sellers[0];
    let settled = eventually("nothing is left to be taken", || {
        untaken(seller) == 0 && seller.node().ledger().running() == 0
    });
    settled.await.expect("in time");
}

async fn dies(moment: Moment, scheme: &str) {
    let slow = Behaviour::default().pace(Duration::from_millis(20));
    let (mut street, mut agent) = street(slow).await;
    let memory = street.ledgers.memory().clone();
    let body = Agent::plain("hello", 50);
    let way = price(&agent, &body, scheme).await;
    let mut payment = payment(&agent, &way);
    memory.set_held(moment != Moment::Mined);
    let asked = begin(&agent, &body, &payment);
    let seller = &street.sellers[0];
    match moment {
        Moment::Entered => {
            let entered = eventually("it is entered", || untaken(seller) == 1);
            entered.await.expect("in time");
        }
        Moment::OnItsWay => {
            let sent = eventually("it is sent", || on_its_way(seller));
            sent.await.expect("in time");
        }
        Moment::Mined => {
            let mined = async { while received(&street).await.is_zero() {} };
            let mined = tokio::time::timeout(PATIENCE, mined).await;
            mined.expect("in time");
        }
    }
    restart(&mut street, &mut agent).await;
    asked.await.expect("ends");
    if moment == Moment::OnItsWay {
        // Still on its way: it is neither forgotten nor sold for again.
        assert!(on_its_way(&street.sellers[0]), "{scheme}");
        // The same signature under the offer of today.
        payment.accepted = price(&agent, &body, scheme).await;
        let again = agent.ask(&body, Some(&payment)).await.expect("answers");
        let used = [Reason::ExactNonceUsed, Reason::UptoNonceUsed];
        let reason = again.reason().expect("not taken");
        assert!(used.contains(&reason), "{scheme}: {reason}");
    }
    memory.set_held(false);
    memory.mine(3);
    settles(&street).await;
    // What bought nothing and was not taken may be used again; what was taken may not.
    let before = received(&street).await;
    payment.accepted = price(&agent, &body, scheme).await;
    let again = agent.ask(&body, Some(&payment)).await.expect("answers");
    let taken = received(&street).await;
    if before.is_zero() {
        assert_eq!(again.status, 200, "{moment:?} {scheme}: {}", again.text());
        let receipt = again.receipt().expect("a receipt").receipt;
        assert_eq!(taken, receipt.charged, "{moment:?} {scheme}");
    } else {
        assert_eq!(again.status, 402, "{moment:?} {scheme}");
        assert_eq!(taken, before, "{moment:?} {scheme}: taken once");
        let channels = street.sellers[0].channels();
        assert_eq!(channels.len(), 1, "{moment:?} {scheme}: it is in the books");
    }
    assert!(taken <= way.amount && !taken.is_zero());
    settles(&street).await;
    let rest = WEALTH.saturating_sub(taken);
    let chain = street.ledgers.chain().expect("a chain");
    let left = chain.token_balance(agent.payer.address()).await;
    assert_eq!(left.expect("answers"), rest, "{moment:?} {scheme}");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_a_single_payment_is_entered_lets_it_be_used_again() {
    for scheme in [scheme::EXACT, scheme::UPTO] {
        dies(Moment::Entered, scheme).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_crash_while_a_single_payment_is_on_its_way_neither_forgets_nor_sells_it_again()
 {
    for scheme in [scheme::EXACT, scheme::UPTO] {
        dies(Moment::OnItsWay, scheme).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_taking_a_single_payment_and_serving_takes_it_once() {
    for scheme in [scheme::EXACT, scheme::UPTO] {
        dies(Moment::Mined, scheme).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_middle_of_an_upto_stream_takes_what_its_checkpoint_says_once() {
    let slow = Behaviour::default()
        .tokens(500)
        .pace(Duration::from_millis(10));
    let (mut street, mut agent) = street(slow).await;
    let body = Agent::stream("hello", 500);
    let way = price(&agent, &body, scheme::UPTO).await;
    let asked = begin(&agent, &body, &agent.upto(&way, 1));
    let store = street.sellers[0].node().ledger().store().clone();
    let checkpoint = eventually("a checkpoint is written", || {
        let open = store.scan(&OPEN, .., Order::Up, 1).expect("reads");
        open.iter()
            .any(|(_, purchase)| purchase.usage.completion > 20)
    });
    checkpoint.await.expect("in time");
    drop(store);
    restart(&mut street, &mut agent).await;
    asked.await.expect("ends");
    settles(&street).await;
    let charged = street.sellers[0].charged();
    assert!(!charged.is_zero() && charged < way.amount);
    assert_eq!(received(&street).await, charged);
    let (id, _) = street.sellers[0].channels()[0];
    let receipts = street.sellers[0].node().ledger().receipts(id, 0, 9);
    let receipts = receipts.expect("reads");
    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].ending, Ending::Interrupted);
    // And a second crash changes nothing.
    restart(&mut street, &mut agent).await;
    settles(&street).await;
    assert_eq!(received(&street).await, charged);
    street.stop().await;
}

/// Sells a stream by `upto` whose payment cannot be taken when it ends.
async fn owes(street: &Street, agent: &Agent) -> Amount {
    let memory = street.ledgers.memory();
    let body = Agent::stream("hello", 50);
    let way = price(agent, &body, scheme::UPTO).await;
    let asked = begin(agent, &body, &agent.upto(&way, 1));
    street.sellers[0].upstream.sent(1, 1).await;
    memory.set_away(true);
    asked.await.expect("ends");
    let seller = &street.sellers[0];
    let ledger = seller.node().ledger();
    let owed = eventually("it is owed", || {
        untaken(seller) == 1 && ledger.running() == 0 && !seller.charged().is_zero()
    });
    owed.await.expect("in time");
    seller.charged()
}

fn slowly() -> Behaviour {
    Behaviour::default().pace(Duration::from_millis(50))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owed_by_upto_is_taken_when_the_chain_is_back() {
    let (street, agent) = street(slowly()).await;
    let owed = owes(&street, &agent).await;
    street.ledgers.memory().set_away(false);
    assert_eq!(received(&street).await, Amount::ZERO);
    settles(&street).await;
    assert_eq!(received(&street).await, owed);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_serving_by_upto_and_taking_loses_nothing() {
    let (mut street, mut agent) = street(slowly()).await;
    let owed = owes(&street, &agent).await;
    street.sellers[0].crash().expect("crashes");
    street.ledgers.memory().set_away(false);
    assert_eq!(received(&street).await, Amount::ZERO);
    street.start_seller(0).await.expect("starts");
    agent.url = street.sellers[0].http_url();
    settles(&street).await;
    assert_eq!(received(&street).await, owed);
    street.stop().await;
}
