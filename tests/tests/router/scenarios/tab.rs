//! What one request may cost holds for all sellers together that are asked for it: what those may
//! charge that were given up is not there for the next.

use farthing_client::config::Config;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::offer::ASSISTANT_PREFIX;
use farthing_tests::street::{Liar, Lie, Stall, TestNet, eventually};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::{Value, json};

use super::hedge::{LATE, acquaint, eager};
use super::stage::{Stage, Told, impatient, net};

/// What the request may cost. A whole answer of the honest seller costs more.
const MOST: u128 = 300;
/// Tokens of a whole answer.
const LONG: usize = 400;
/// What one that stalls charges for ten tokens of the prompt and twenty more.
const CHARGED: Amount = Amount::atoms(11);

/// A stage that also knows one that lies like this.
async fn beside(
    lie: Lie,
    net: TestNet,
    buyer: impl Fn(&mut Config) + Send + Sync + 'static,
) -> (Stage, Liar) {
    let liar = Liar::start(lie).await.expect("listens");
    let addresses = liar.addresses();
    let net = net.buyer_config(move |_, config| {
        buyer(config);
        config.network.bootstrap.extend(addresses.iter().cloned());
    });
    let stage = Stage::of(net).await;
    liar.enter(&stage.street).await.expect("has gas");
    eventually("the buyer knows the liar", || {
        stage.street.buyers[0].knows(liar.id())
    })
    .await
    .expect("is known");
    (stage, liar)
}

/// One honest seller, twice as dear as the one that stalls: an atom for each token.
async fn beside_an_honest_one(stall: Stall) -> (Stage, Liar) {
    let net = net(1).upstreams(Behaviour::default().tokens(LONG));
    let net = net.seller_config(|_, config| {
        let model = &mut config.models[0];
        (model.prices.input, model.prices.output) = (Price(100_000), Price(1_000_000));
        model.features = vec![ASSISTANT_PREFIX.to_owned()];
    });
    beside(Lie::Stalls(stall), net, impatient).await
}

fn question() -> Value {
    let mut question = Stage::question();
    question["provider"] = json!({"max_cost": MOST.to_string()});
    question
}

/// Asks once: what the honest seller has charged then, and what was signed to the other and is
/// not charged.
async fn asked(stage: &Stage, liar: &Liar, question: Value) -> (Told, Amount, Amount, Amount) {
    let told = stage.post("chat/completions", &question).await;
    let sells = || stage.street.sellers[0].node().ledger().running() == 0;
    eventually("the seller is done", sells)
        .await
        .expect("is done");
    let (buyer, honest) = (&stage.street.buyers[0], &stage.street.sellers[0]);
    let of = |id| {
        let mut accounts = buyer.accounts().into_iter().map(|(_, account)| account);
        accounts
            .find(|account| account.seller == id)
            .expect("an account")
            .channel
    };
    eventually("both books agree", || {
        of(honest.id()).charged() == honest.charged()
    })
    .await
    .expect("they do");
    let lost = of(liar.id());
    let doubt = lost.ceiling().saturating_sub(lost.charged());
    (told, honest.charged(), lost.charged(), doubt)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_a_seller_charges_that_was_given_up_is_not_there_for_the_next() {
    let stall = Stall {
        silent: 20,
        early: 0,
        late: 0,
        tells: true,
    };
    let (stage, liar) = beside_an_honest_one(stall).await;
    let (told, honest, lost, signed) = asked(&stage, &liar, question()).await;
    told.is_error(200, "interrupted");
    assert_eq!(lost, CHARGED, "pieces without text are tokens too");
    let (all, most) = (honest.saturating_add(lost), Amount::atoms(MOST));
    assert!(all <= most, "{honest} and {lost}");
    // Its receipt was waited for: the next had more than what the signed left of it.
    assert!(all.saturating_add(signed) > most, "{honest}, {signed}");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_seller_that_works_on_when_it_was_told_to_stop_gets_no_more_than_was_signed() {
    let stall = Stall {
        silent: 20,
        early: 0,
        late: 400,
        tells: true,
    };
    let (stage, liar) = beside_an_honest_one(stall).await;
    let (told, honest, lost, signed) = asked(&stage, &liar, question()).await;
    told.is_error(200, "interrupted");
    assert!(lost.is_zero(), "a charge beyond what was signed: {lost}");
    assert!(!honest.is_zero(), "somebody went on with it");
    let all = honest.saturating_add(signed);
    assert!(all <= Amount::atoms(MOST), "{honest} and {signed}");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_money_in_doubt_before_the_first_token_is_not_there_for_the_next() {
    let stall = Stall {
        silent: 20,
        early: 0,
        late: 0,
        tells: false,
    };
    let (stage, liar) = beside_an_honest_one(stall).await;
    let (told, honest, lost, doubt) = asked(&stage, &liar, question()).await;
    told.is_error(200, "interrupted");
    assert!(lost.is_zero() && !doubt.is_zero());
    assert!(!honest.is_zero());
    assert!(
        honest.saturating_add(doubt) <= Amount::atoms(MOST),
        "{honest} and {doubt}"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_money_in_doubt_in_the_middle_of_an_answer_is_not_there_for_who_goes_on() {
    let stall = Stall {
        silent: 0,
        early: 5,
        late: 0,
        tells: false,
    };
    let (stage, liar) = beside_an_honest_one(stall).await;
    let (told, honest, lost, doubt) = asked(&stage, &liar, question()).await;
    assert!(
        told.text().starts_with("word word word word word "),
        "{told:?}"
    );
    assert!(lost.is_zero() && !doubt.is_zero());
    assert!(!honest.is_zero(), "somebody went on with it");
    assert!(
        honest.saturating_add(doubt) <= Amount::atoms(MOST),
        "{honest} and {doubt}"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposits_that_are_added_to_in_the_middle_do_not_stretch_what_a_request_may_cost() {
    let stall = Stall {
        silent: 20,
        early: 0,
        late: 0,
        tells: false,
    };
    let (deposit, most) = (Amount::atoms(1_000), Amount::atoms(3_000));
    let net = net(1).upstreams(Behaviour::default().tokens(LONG));
    let net = net.seller_config(move |_, config| {
        config.chain.min_deposit = deposit;
        // A whole answer is more than the request may cost, and that is three deposits.
        config.models[0].prices.output = Price(10_000_000);
    });
    let (stage, liar) = beside(Lie::Stalls(stall), net, move |config| {
        impatient(config);
        (config.spend.deposit, config.spend.top_up_below) = (deposit, Amount::ZERO);
    })
    .await;
    let mut question = question();
    question["provider"] = json!({"max_cost": most.to_string()});
    let (told, honest, lost, doubt) = asked(&stage, &liar, question).await;
    told.is_error(200, "interrupted");
    assert!(lost.is_zero() && !doubt.is_zero());
    assert!(honest > deposit.saturating_add(deposit), "{honest}");
    assert!(honest.saturating_add(doubt) <= most, "{honest}, {doubt}");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_seller_delivers_before_it_hears_that_it_lost_is_paid_within_the_limit() {
    let stall = Stall {
        silent: 0,
        early: 0,
        late: 20,
        tells: true,
    };
    // The honest one is the cheaper here, and asked first.
    let net = net(1).seller_config(|_, config| config.models[0].prices.output = Price(400_000));
    let (stage, liar) = beside(Lie::Stalls(stall), net, eager).await;
    acquaint(&stage).await;
    let before = stage.street.sellers[0].charged();
    let slow = Behaviour::default().tokens(super::stage::TOKENS);
    let slow = slow.fault(Fault::SlowFirstToken(LATE));
    stage.street.sellers[0].upstream.behave(slow);
    let mut question = question();
    question["max_tokens"] = json!(100);
    let (told, honest, lost, _) = asked(&stage, &liar, question).await;
    told.is_whole();
    assert_eq!(liar.taken().asks, 1, "it was asked as well");
    let paid = honest.saturating_sub(before);
    eventually("its receipt is booked", || {
        let accounts = stage.street.buyers[0].accounts();
        accounts
            .iter()
            .all(|(_, account)| account.channel.reserved().is_zero())
    })
    .await
    .expect("is booked");
    let accounts = stage.street.buyers[0].accounts();
    let lost = accounts
        .iter()
        .find(|(_, account)| account.seller == liar.id())
        .map_or(lost, |(_, account)| account.channel.charged());
    assert_eq!(lost, CHARGED);
    assert!(
        paid.saturating_add(lost) <= Amount::atoms(MOST),
        "{paid} and {lost}"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_nobody_is_asked_as_well_when_money_in_doubt_leaves_too_little_for_two() {
    for (most, second) in [("440", 1), ("370", 0)] {
        let net = net(2).seller_config(|n, config| {
            let prices = &mut config.models[0].prices;
            // More than twice as dear as the one that leaves, beside which nobody is asked so.
            let output = if n == 0 { 1_200_000 } else { 1_300_000 };
            (prices.input, prices.output) = (Price(100_000), Price(output));
        });
        let (stage, liar) = beside(Lie::Leaves, net, eager).await;
        acquaint(&stage).await;
        let slow = Behaviour::default().tokens(super::stage::TOKENS);
        let slow = slow.fault(Fault::SlowFirstToken(LATE));
        stage.street.sellers[0].upstream.behave(slow.clone());
        stage.street.sellers[1].upstream.behave(slow);
        let mut question = Stage::question();
        question["max_tokens"] = json!(100);
        question["provider"] = json!({"max_cost": most});
        stage.post("chat/completions", &question).await.is_whole();
        assert_eq!(liar.taken().asks, 1, "it failed first");
        assert_eq!(stage.asked()[1], second, "at most {most}");
        stage.stop().await;
    }
}
