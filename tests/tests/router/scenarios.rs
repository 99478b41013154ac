//! Sixteen ways in which a seller fails, through the real gateway: what a perfect client makes of
//! each, and what it costs to the atom. The table is in docs/failures.md.

mod stage;
mod hedge;
mod tab;

use std::time::Duration;

use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::offer::ASSISTANT_PREFIX;
use farthing_protocol::purchase::Ending;
use farthing_tests::upstream::{Behaviour, Fault, Prefix};
use serde_json::{Value, json};

use stage::{Stage, TOKENS, net, patient, whole};

/// Where clocks that are moved by hand begin.
const NOON: Timestamp = Timestamp(1_790_000_000_000);

/// The first seller fails so, the second answers, and only that is paid.
async fn the_second_answers_alone(fault: Fault) {
    let stage = Stage::failing(2, &[fault]).await;
    let told = stage.ask().await;
    told.is_whole();
    let paid = stage.paid().await;
    assert_eq!(stage.tokens().await, [0, 60]);
    assert!(!paid.is_zero());
    assert!(stage.street.sellers[0].charged().is_zero());
    assert_eq!(stage.asked(), [1, 1], "each was asked once");
    stage.stop().await;
}

/// The first seller fails so after `first` tokens, the second goes on, and each is paid for its
/// part.
async fn the_second_goes_on(fault: Fault, first: u32) {
    let stage = Stage::failing(2, &[fault]).await;
    let told = stage.ask().await;
    told.is_whole();
    assert_eq!(told.usage().expect("usage, once")["completion_tokens"], 60);
    stage.paid().await;
    assert_eq!(stage.tokens().await, [first, 60 - first]);
    let asked: Value =
        serde_json::from_slice(&stage.street.sellers[1].upstream.requests()[0].body).expect("JSON");
    let last = asked["messages"]
        .as_array()
        .and_then(|all| all.last())
        .expect("messages");
    assert_eq!(last["role"], "assistant");
    assert!(whole().starts_with(last["content"].as_str().expect("text")));
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_a_seller_that_says_429_and_when_is_left_alone_until_then() {
    let stage = Stage::failing(2, &[Fault::RateLimited { retry_after: 20 }]).await;
    stage.ask().await.is_whole();
    stage.ask().await.is_whole();
    assert_eq!(stage.asked(), [1, 2], "nobody hammers it");
    stage.paid().await;
    assert_eq!(stage.tokens().await, [0, 120]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s02_when_all_say_429_the_application_hears_429_and_for_how_long() {
    let stage = Stage::failing(2, &[]).await;
    for (seller, retry_after) in stage.street.sellers.iter().zip([20, 7]) {
        let behaviour = Behaviour::default().fault(Fault::RateLimited { retry_after });
        seller.upstream.behave(behaviour);
    }
    let told = stage.ask().await;
    told.is_error(429, "sellers_busy");
    assert_eq!(told.header("retry-after"), Some("7"), "the shortest");
    assert_eq!(stage.asked(), [1, 1]);
    assert!(stage.paid().await.is_zero());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_a_500_is_asked_again_of_the_same_seller_when_there_is_no_other() {
    let stage = Stage::failing(1, &[Fault::ServerErrorOnce]).await;
    stage.ask().await.is_whole();
    assert_eq!(stage.asked(), [2]);
    stage.paid().await;
    assert_eq!(stage.tokens().await, [60]);
    stage.stop().await;
    the_second_answers_alone(Fault::ServerErrorOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_a_503_is_passed_over_and_alone_it_is_an_error_after_one_question() {
    the_second_answers_alone(Fault::Unavailable).await;
    let stage = Stage::failing(1, &[Fault::Unavailable, Fault::Unavailable]).await;
    let told = stage.ask().await;
    told.is_error(502, "sellers_failed");
    assert_eq!(told.header("x-should-retry"), Some("false"));
    assert_eq!(stage.asked(), [1]);
    let attempts = &told.error().expect("an error")["attempts"];
    let seller = stage.street.sellers[0].id().short();
    assert_eq!(attempts[0]["seller"], json!(seller));
    assert!(!attempts.to_string().contains("127.0.0.1"), "{attempts}");
    assert!(stage.paid().await.is_zero());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_reset_connection_is_passed_over() {
    the_second_answers_alone(Fault::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_seller_whose_connection_breaks_in_the_middle_is_gone_on_with() {
    let clock = Clock::manual(NOON);
    let net = net(2)
        .crashable()
        .clock(clock.clone())
        .seller_config(|_, config| {
            config.models[0].features = vec![ASSISTANT_PREFIX.to_owned()];
            config.limits.checkpoint = Duration::ZERO;
        });
    let mut stage = Stage::of(net).await;
    stage.street.sellers[0]
        .upstream
        .fail(1, Fault::StallAfter(20));
    let asking = tokio::spawn(stage.asking("chat/completions", &Stage::question()));
    stage.street.sellers[0].upstream.sent(1, 20).await;
    stage.street.sellers[0].crash().expect("crashes");
    asking.await.expect("ends").is_whole();
    stage.street.start_seller(0).await.expect("starts again");
    // The next purchase from it settles what was in doubt.
    clock.advance(Duration::from_secs(60));
    stage.ask().await.is_whole();
    stage.paid().await;
    let tokens = stage.tokens().await;
    assert!(
        (60..=80).contains(&tokens[0]) && (40..=60).contains(&tokens[1]),
        "{tokens:?}"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_seller_whose_connection_breaks_before_the_first_token_is_passed_over() {
    let clock = Clock::manual(NOON);
    let mut stage = Stage::of(net(2).crashable().clock(clock.clone())).await;
    stage.street.sellers[0].upstream.fail(1, Fault::NoResponse);
    let asking = tokio::spawn(stage.asking("chat/completions", &Stage::question()));
    stage.street.sellers[0].upstream.started(1).await;
    stage.street.sellers[0].crash().expect("crashes");
    asking.await.expect("ends").is_whole();
    stage.street.start_seller(0).await.expect("starts again");
    // The next purchase from it settles what was in doubt.
    clock.advance(Duration::from_secs(60));
    stage.ask().await.is_whole();
    stage.paid().await;
    assert_eq!(stage.tokens().await, [60, 60]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_a_silent_seller_is_given_up_in_time_asked_once_and_not_paid() {
    the_second_answers_alone(Fault::NoResponse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_a_slow_first_token_is_not_waited_for() {
    the_second_answers_alone(Fault::SlowFirstToken(Duration::from_secs(3600))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_words_that_say_nothing_are_no_first_token() {
    let stage = Stage::failing(2, &[Fault::Prattle]).await;
    stage.ask().await.is_whole();
    stage.paid().await;
    assert_eq!(stage.tokens().await, [0, 60]);
    assert_eq!(stage.asked(), [1, 1]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_a_cut_stream_is_gone_on_with_by_another_seller() {
    the_second_goes_on(Fault::CutAfter(40), 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_a_cut_stream_of_the_only_seller_is_gone_on_with_by_the_same() {
    let stage = Stage::failing(1, &[Fault::CutAfter(40)]).await;
    stage.ask().await.is_whole();
    stage.paid().await;
    assert_eq!(stage.tokens().await, [60]);
    assert_eq!(stage.asked(), [2]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_stalled_stream_is_gone_on_with_by_another_seller() {
    the_second_goes_on(Fault::StallAfter(20), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_malformed_chunk_reaches_nobody_and_another_seller_goes_on() {
    the_second_goes_on(Fault::MalformedChunk(10), 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_stream_without_done_is_whole_when_it_said_why_it_ended() {
    let stage = Stage::failing(2, &[Fault::NoDone]).await;
    let told = stage.ask().await;
    told.is_whole();
    assert_eq!(told.usage().expect("usage, once")["completion_tokens"], 60);
    stage.paid().await;
    assert_eq!(stage.tokens().await, [60, 0]);
    assert_eq!(stage.asked(), [1, 0]);
    stage.stop().await;
}

/// A request that one model server calls wrong is wrong everywhere: its own words, asked once.
async fn wrong(fault: Fault, code: &str) {
    let stage = Stage::failing(2, &[fault]).await;
    let told = stage.ask().await;
    told.is_error(400, code);
    assert_eq!(told.header("x-should-retry"), Some("false"));
    assert_eq!(stage.asked(), [1, 0]);
    assert!(stage.paid().await.is_zero());
    stage.ask().await.is_whole();
    assert_eq!(stage.asked(), [2, 0], "the seller is not to blame");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_prompt_too_long_for_the_model_is_asked_once() {
    wrong(Fault::ContextLength, "context_length_exceeded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s13_a_refusal_by_a_content_filter_is_passed_on_in_its_own_words() {
    wrong(Fault::ContentFilter, "content_filter").await;
}

/// The first seller cuts its stream and is then gone; the second does not go on with it.
async fn rejected(prefix: Prefix) -> Stage {
    let stage = Stage::failing(
        2,
        &[Fault::CutAfter(40), Fault::Unavailable, Fault::Unavailable],
    );
    let stage = stage.await;
    let stubborn = Behaviour::default().tokens(TOKENS).prefix(prefix);
    stage.street.sellers[1].upstream.behave(stubborn);
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s14_a_fallback_that_rejects_a_beginning_says_it_again_where_it_says_the_same() {
    let stage = rejected(Prefix::Refused).await;
    let mut question = Stage::question();
    question["temperature"] = json!(0);
    let told = stage.post("chat/completions", &question).await;
    told.is_whole();
    assert_eq!(
        told.usage().expect("usage, once")["completion_tokens"],
        100,
        "all that was paid"
    );
    stage.paid().await;
    assert_eq!(stage.tokens().await, [40, 60]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s14_a_fallback_that_rejects_a_beginning_does_not_hide_what_went_wrong() {
    let stage = rejected(Prefix::Refused).await;
    let told = stage.ask().await;
    told.is_error(200, "interrupted");
    assert!(whole().starts_with(&told.text()) && !told.text().is_empty());
    let error = told.error().expect("an error");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("model server failed"), "{message}");
    assert!(
        error["attempts"]
            .as_array()
            .is_some_and(|all| all.len() >= 2),
        "{error}"
    );
    stage.paid().await;
    assert_eq!(stage.tokens().await, [40, 0]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_a_flapping_seller_is_left_alone_while_it_is_down_and_found_again() {
    let clock = Clock::manual(NOON);
    let stage = Stage::of(
        net(2)
            .clock(clock.clone())
            .buyer_config(|_, config| patient(config)),
    );
    let stage = stage.await;
    let down = Behaviour::default().fault(Fault::RateLimited { retry_after: 30 });
    stage.street.sellers[0].upstream.behave(down);
    for _ in 0..10 {
        stage.ask().await.is_whole();
    }
    assert_eq!(
        stage.asked(),
        [1, 10],
        "served by the other while it is down"
    );
    stage.street.sellers[0]
        .upstream
        .behave(Behaviour::default().tokens(TOKENS));
    let mut rounds = 0;
    while stage.asked()[0] < 3 {
        clock.advance(Duration::from_secs(20));
        stage.ask().await.is_whole();
        rounds += 1;
        assert!(rounds < 20, "it is found again");
    }
    stage.paid().await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s16_after_all_of_them_the_chain_the_receipts_and_both_books_say_the_same() {
    let faults = [
        Fault::RateLimited { retry_after: 0 },
        Fault::ServerErrorOnce,
        Fault::Unavailable,
        Fault::Reset,
        Fault::NoResponse,
        Fault::SlowFirstToken(Duration::from_secs(3600)),
        Fault::Prattle,
        Fault::CutAfter(40),
        Fault::StallAfter(20),
        Fault::MalformedChunk(10),
        Fault::NoDone,
        Fault::ContextLength,
        Fault::ContentFilter,
    ];
    let clock = Clock::manual(NOON);
    let street = net(2)
        .clock(clock.clone())
        .buyer_config(|_, config| stage::impatient(config))
        .seller_config(|n, config| {
            let model = &mut config.models[0];
            model.features = vec![ASSISTANT_PREFIX.to_owned()];
            // However the first fails, it stays the cheapest by far.
            model.prices.output = Price(if n == 0 { 500_000 } else { 20_000_000 });
        });
    let stage = Stage::of(street).await;
    let (mut refused, mut whole) = (0, 0);
    for fault in faults {
        // A good answer in between, and time enough for whoever failed to be asked again.
        clock.advance(Duration::from_secs(20));
        stage.ask().await.is_whole();
        let asked = stage.asked()[0];
        stage.street.sellers[0]
            .upstream
            .fail(asked + 1, fault.clone());
        clock.advance(Duration::from_secs(20));
        let told = stage.ask().await;
        match told.status {
            400 => refused += 1,
            _ => told.is_whole(),
        }
        whole += if told.status == 400 { 1 } else { 2 };
        assert!(stage.asked()[0] > asked, "it met {fault:?}");
    }
    // Everybody is busy; and one breaks off, is gone, and nobody goes on with it.
    let busy = Behaviour::default().fault(Fault::RateLimited { retry_after: 1 });
    let stubborn = Behaviour::default().tokens(TOKENS).prefix(Prefix::Refused);
    let (first, second) = (&stage.street.sellers[0], &stage.street.sellers[1]);
    clock.advance(Duration::from_secs(20));
    for seller in [first, second] {
        seller.upstream.behave(busy.clone());
    }
    stage.ask().await.is_error(429, "sellers_busy");
    for (seller, behaviour) in [
        (first, Behaviour::default().tokens(TOKENS)),
        (second, stubborn),
    ] {
        seller.upstream.behave(behaviour);
    }
    let asked = first.upstream.count();
    let gone = [Fault::CutAfter(40), Fault::Unavailable, Fault::Unavailable];
    for (number, fault) in (asked + 1..).zip(gone) {
        first.upstream.fail(number, fault);
    }
    clock.advance(Duration::from_secs(20));
    stage.ask().await.is_error(200, "interrupted");
    let charged = stage.paid().await;
    assert_eq!(refused, 2);
    let tokens: u32 = stage.tokens().await.iter().sum();
    assert_eq!(tokens, 60 * whole + 40, "every token once, and none twice");
    let endings = stage.street.buyers[0].receipts().await;
    let broken = endings
        .iter()
        .filter(|receipt| receipt.ending == Ending::UpstreamFailed);
    assert_eq!(broken.count(), 3, "the cut ones and the malformed one");
    let chain = stage.street.ledgers.chain().expect("a chain");
    let channels: Vec<_> = stage.street.buyers[0]
        .accounts()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    // Whoever stops claims first.
    stage.stop().await;
    let mut claimed = Amount::ZERO;
    for id in channels {
        claimed = claimed.saturating_add(chain.channel(id).await.expect("answers").claimed);
    }
    assert_eq!(claimed, charged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_first_token_is_asked_of_the_next_seller_as_well_and_the_loser_is_not_paid() {
    let net = net(2).buyer_config(|_, config| {
        patient(config);
        config.router.hedge = 100;
    });
    let stage = Stage::of(net).await;
    for _ in 0..12 {
        stage.ask().await.is_whole();
    }
    stage.paid().await;
    let sold = stage.tokens().await;
    let slow = Behaviour::default().fault(Fault::SlowFirstToken(Duration::from_secs(3600)));
    stage.street.sellers[0].upstream.behave(slow.tokens(TOKENS));
    let before = stage.street.sellers[0].upstream.count();
    // Nothing here is waited for as long as the deadline, which is a minute.
    stage.ask().await.is_whole();
    let loser = stage.street.sellers[0]
        .upstream
        .disconnected(before + 1)
        .await;
    assert_eq!(loser.chunks, 0);
    stage.paid().await;
    assert_eq!(stage.tokens().await, [sold[0], sold[1] + 60]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_is_gone_on_with_behind_its_prompt_and_its_limit_is_kept() {
    let stage = Stage::failing(2, &[Fault::CutAfter(40)]).await;
    let body = json!({"model": "mock/model", "stream": true, "prompt": "Say:", "max_tokens": 50});
    let told = stage.post("completions", &body).await;
    assert_eq!(
        (told.status, told.error(), told.done),
        (200, None, 1),
        "{told:?}"
    );
    assert!(whole().starts_with(&told.text()));
    let last = told.events.last().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    stage.paid().await;
    assert_eq!(stage.tokens().await, [40, 10]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_at_its_limit_ends_by_its_length_and_nobody_else_is_asked() {
    let stage = Stage::failing(2, &[Fault::CutAfter(40)]).await;
    let mut question = Stage::question();
    question["max_tokens"] = json!(40);
    let told = stage.post("chat/completions", &question).await;
    assert_eq!(
        (told.status, told.error(), told.done),
        (200, None, 1),
        "{told:?}"
    );
    assert_eq!(told.usage().expect("usage, once")["completion_tokens"], 40);
    let reasons = told
        .events
        .iter()
        .map(|event| &event["choices"][0]["finish_reason"]);
    assert_eq!(reasons.filter(|reason| *reason == "length").count(), 1);
    stage.paid().await;
    assert_eq!(
        (stage.tokens().await, stage.asked()),
        (vec![40, 0], vec![1, 0])
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_for_a_whole_answer_only_is_not_gone_on_with() {
    let stage = Stage::failing(2, &[Fault::CutAfter(40)]).await;
    let mut question = Stage::question();
    question["response_format"] = json!({"type": "json_object"});
    let told = stage.post("chat/completions", &question).await;
    told.is_error(200, "interrupted");
    stage.paid().await;
    assert_eq!(stage.asked(), [1, 0]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_to_go_on_who_does_not_say_that_it_can() {
    let plain = net(2).seller_config(|_, config| config.models[0].features.clear());
    let stage = Stage::of(plain).await;
    stage.street.sellers[0]
        .upstream
        .fail(1, Fault::CutAfter(40));
    let told = stage.ask().await;
    told.is_error(200, "interrupted");
    stage.paid().await;
    assert_eq!(stage.asked(), [1, 0]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_one_seller_only_is_gone_on_with_by_no_other() {
    let gone = [Fault::CutAfter(40), Fault::Unavailable, Fault::Unavailable];
    let mut question = Stage::question();
    question["provider"] = json!({"allow_fallbacks": false});
    for (faults, is_whole) in [(&gone[..1], true), (&gone[..], false)] {
        let stage = Stage::failing(2, faults).await;
        let told = stage.post("chat/completions", &question).await;
        if is_whole {
            told.is_whole();
        } else {
            told.is_error(200, "interrupted");
        }
        stage.paid().await;
        assert_eq!(stage.asked()[1], 0, "the other never sees the text");
        stage.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_leaves_during_a_rescue_pays_for_what_came() {
    let stage = Stage::failing(2, &[Fault::CutAfter(40)]).await;
    let silent = Behaviour::default().fault(Fault::NoResponse);
    stage.street.sellers[1].upstream.behave(silent);
    let asking = tokio::spawn(stage.asking("chat/completions", &Stage::question()));
    stage.street.sellers[1].upstream.started(1).await;
    asking.abort();
    stage.street.sellers[1].upstream.disconnected(1).await;
    stage.paid().await;
    assert_eq!(stage.tokens().await, [40, 0]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_again_while_it_is_answered_is_not_bought_twice() {
    let stage = Stage::failing(2, &[Fault::StallAfter(1)]).await;
    let asking = tokio::spawn(stage.named("again"));
    stage.street.sellers[0].upstream.sent(1, 1).await;
    let told = stage.named("again").await;
    told.is_error(409, "in_flight");
    assert_eq!(told.header("retry-after"), Some("1"));
    assert_eq!(stage.asked()[0], 1);
    asking.await.expect("ends").is_whole();
    stage.paid().await;
    stage.stop().await;
}
