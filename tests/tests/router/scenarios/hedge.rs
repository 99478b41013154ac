//! Two sellers asked at once, because the first is late.

use std::time::Duration;

use farthing_client::config::Config;
use farthing_protocol::amount::Amount;
use farthing_tests::street::{TestNet, WEALTH};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::{Value, json};

use super::stage::{Stage, TOKENS, net, patient};

/// Later than any first token so far by far, and soon enough to be waited for.
pub(crate) const LATE: Duration = Duration::from_secs(1);
/// Longer than anybody waits.
const NEVER: Duration = Duration::from_secs(3600);

/// A buyer that may always ask a second seller, and asks nobody because it is new.
pub(crate) fn eager(config: &mut Config) {
    patient(config);
    config.router.hedge = 100;
    config.router.explore = 0;
}

fn late(first_token: Duration) -> Behaviour {
    let behaviour = Behaviour::default().tokens(TOKENS);
    behaviour.fault(Fault::SlowFirstToken(first_token))
}

/// Lets the buyer find out how fast the first seller is, and nobody else.
pub(crate) async fn acquaint(stage: &Stage) {
    let mut question = Stage::question();
    question["provider"] = json!({"only": [stage.street.sellers[0].id().to_string()]});
    for _ in 0..12 {
        stage.post("chat/completions", &question).await.is_whole();
    }
    stage.paid().await;
}

async fn stage(net: TestNet) -> Stage {
    let stage = Stage::of(net).await;
    acquaint(&stage).await;
    stage
}

/// Who has sold how many tokens, and was asked how often, since.
async fn since(stage: &Stage, (tokens, asked): &(Vec<u32>, Vec<u64>)) -> (Vec<u32>, Vec<u64>) {
    let sold = stage.tokens().await;
    let sold = sold.iter().zip(tokens).map(|(now, then)| now - then);
    let counts = stage.asked();
    let counts = counts.iter().zip(asked).map(|(now, then)| now - then);
    (sold.collect(), counts.collect())
}

async fn so_far(stage: &Stage) -> (Vec<u32>, Vec<u64>) {
    (stage.tokens().await, stage.asked())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_to_be_asked_beside_a_late_seller_and_is_busy_makes_room_for_the_next() {
    let stage = stage(net(3).buyer_config(|_, config| eager(config))).await;
    let before = so_far(&stage).await;
    stage.street.sellers[0].upstream.behave(late(NEVER));
    let busy = Behaviour::default().fault(Fault::RateLimited { retry_after: 20 });
    stage.street.sellers[1].upstream.behave(busy);
    stage.ask().await.is_whole();
    let loser = &stage.street.sellers[0].upstream;
    let loser = loser.disconnected(before.1[0] + 1).await;
    assert_eq!(loser.chunks, 0, "told to stop before it had begun");
    let paid = stage.street.sellers[0].charged();
    stage.paid().await;
    let (sold, asked) = since(&stage, &before).await;
    assert_eq!(asked, [1, 1, 1], "each once");
    assert_eq!(sold, [0, 0, 60], "one answer, one payment");
    assert_eq!(
        stage.street.sellers[0].charged(),
        paid,
        "the loser has none"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_seller_that_answers_first_after_all_is_paid_and_the_second_is_not() {
    let stage = stage(net(2).buyer_config(|_, config| eager(config))).await;
    let before = so_far(&stage).await;
    stage.street.sellers[0].upstream.behave(late(LATE));
    stage.street.sellers[1].upstream.behave(late(NEVER));
    stage.ask().await.is_whole();
    let second = stage.street.sellers[1].upstream.disconnected(1).await;
    assert_eq!(second.chunks, 0, "told to stop before it had begun");
    stage.paid().await;
    let (sold, asked) = since(&stage, &before).await;
    assert_eq!((sold, asked), (vec![60, 0], vec![1, 1]));
    assert!(stage.street.sellers[1].charged().is_zero());
    stage.stop().await;
}

/// The first is late and answers after all: who has sold how many tokens, and was asked how often.
async fn late_once(stage: &Stage, question: &Value) -> (Vec<u32>, Vec<u64>) {
    let before = so_far(stage).await;
    stage.street.sellers[0].upstream.behave(late(LATE));
    stage.street.sellers[1].upstream.behave(late(NEVER));
    stage.post("chat/completions", question).await.is_whole();
    stage.paid().await;
    assert!(stage.street.sellers[1].charged().is_zero());
    since(stage, &before).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_beside_a_late_seller_if_both_together_may_cost_too_much() {
    // The prompt's bound of 400 to 500 tokens and 100 of the answer: 90 to 100 atoms, and twice
    // as much of the second.
    for (most, second) in [("300", 1), ("210", 0)] {
        let stage = stage(net(2).buyer_config(|_, config| eager(config))).await;
        let mut question = Stage::question();
        question["max_tokens"] = json!(100);
        question["provider"] = json!({"max_cost": most});
        let (sold, asked) = late_once(&stage, &question).await;
        assert_eq!(
            (sold, asked),
            (vec![60, 0], vec![1, second]),
            "at most {most}"
        );
        stage.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_seller_that_our_wallet_cannot_pay_is_not_asked_and_the_first_goes_on() {
    let net = net(2).buyer_config(|_, config| {
        eager(config);
        // All of it lies with the first seller.
        (config.spend.deposit, config.spend.max_deposit) = (WEALTH, WEALTH);
    });
    let stage = stage(net).await;
    let wallet = stage.street.buyers[0].client().wallet().await;
    assert_eq!(wallet.expect("a wallet").balance, Some(Amount::ZERO));
    let mut question = Stage::question();
    question["max_tokens"] = json!(100);
    let (sold, asked) = late_once(&stage, &question).await;
    assert_eq!((sold, asked), (vec![60, 0], vec![1, 0]));
    // What it would have cost alone is another matter: it is asked when the first is gone.
    let gone = Behaviour::default().fault(Fault::Unavailable);
    stage.street.sellers[0].upstream.behave(gone);
    let told = stage.post("chat/completions", &question).await;
    told.is_error(402, "wallet_empty");
    stage.stop().await;
}
