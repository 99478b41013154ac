use std::time::Duration;

use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::offer::MAX_MODELS;
use farthing_protocol::testing;

use super::*;

const START: Timestamp = Timestamp(1_000_000);
const MODEL: &str = "test/model";

fn market(sellers: u8) -> (Market, Clock) {
    let clock = Clock::manual(START);
    let market = Market::new(testing::network(), clock.clone());
    for n in 1..=sellers {
        let heard = market.hear(testing::signed_offer_of(n, 1, START));
        assert!(matches!(heard, Heard::Fresh(_)));
    }
    (market, clock)
}

fn seller(n: u8) -> NodeId {
    testing::node_key(n).id()
}

fn measured(market: &Market, n: u8) -> Measured {
    let snapshot = market.snapshot(MODEL, Endpoint::Chat);
    let candidate = snapshot.iter().find(|c| c.seller() == seller(n));
    *candidate.expect("is on offer").measured
}

fn served(first_ms: u64, all_ms: u64, tokens: u32) -> Outcome {
    Outcome::Served(Served {
        first_token: Some(Duration::from_millis(first_ms)),
        elapsed: Duration::from_millis(all_ms),
        longest_gap: Duration::from_millis(all_ms.saturating_sub(first_ms)),
        prompt: 10,
        tokens,
        charged: Amount::atoms(5),
    })
}

#[test]
fn a_snapshot_holds_everyone_who_offers_the_model_now() {
    let (market, clock) = market(3);
    assert_eq!(market.snapshot(MODEL, Endpoint::Chat).len(), 3);
    assert_eq!(market.snapshot("other/model", Endpoint::Chat).len(), 0);
    assert_eq!(market.sellers(), 3);
    clock.advance(Duration::from_secs(3600));
    assert_eq!(market.snapshot(MODEL, Endpoint::Chat).len(), 0);
    market.sweep();
    assert!(market.lock().shelves.is_empty());
}

#[test]
fn a_model_dropped_from_an_offer_is_no_longer_a_candidate() {
    let (market, _clock) = market(1);
    let mut offer = testing::offer_of(1, 2, START);
    offer.models[0].id = "new/model".into();
    let signed = SignedOffer::sign(&offer, &testing::node_key(1)).expect("signs");
    let bytes = signed.encode().expect("encodes");
    assert!(matches!(market.hear_bytes(&bytes), Heard::Fresh(_)));
    assert_eq!(market.snapshot(MODEL, Endpoint::Chat).len(), 0);
    let snapshot = market.snapshot("new/model", Endpoint::Chat);
    assert_eq!(snapshot[0].model().id, "new/model");
    let Source::Peer(offer) = snapshot[0].source() else {
        panic!("it is a peer");
    };
    assert_eq!(offer.offer().seq, 2);
}

#[test]
fn garbage_is_bad_and_changes_nothing() {
    let (market, _clock) = market(1);
    assert!(matches!(market.hear_bytes(b"garbage"), Heard::Bad(_)));
    assert_eq!(market.sellers(), 1);
}

#[test]
fn speed_and_success_are_measured() {
    let (market, _clock) = market(1);
    assert_eq!(measured(&market, 1), Measured::default());
    let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
    assert_eq!(measured(&market, 1).in_flight, 1);
    trial.record(served(100, 1100, 101));
    let now = measured(&market, 1);
    assert_eq!(now.in_flight, 0);
    assert_eq!(now.first_token, Some(100.0));
    assert_eq!(now.per_token, Some(10.0));
    assert!(now.success > 0.9 && now.success < 1.0);
    assert_eq!(now.paid, Amount::atoms(5));
}

#[test]
fn a_peak_counts_at_once_and_is_soon_forgotten() {
    let (market, clock) = market(1);
    for first in [100, 100, 5000] {
        let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
        trial.record(served(first, first, 1));
    }
    let first_token = || measured(&market, 1).first_token.expect("was measured");
    assert_eq!(first_token(), 5000.0);
    clock.advance(Duration::from_secs(60));
    let later = first_token();
    assert!(later < 2000.0, "{later}");
    clock.advance(Duration::from_secs(60));
    assert!(first_token() <= later);
}

#[test]
fn a_purchase_that_waits_for_its_first_token_counts_by_its_wait() {
    let (market, clock) = market(1);
    let quick = market.begin(seller(1), MODEL, Endpoint::Chat);
    quick.record(served(100, 100, 1));
    let stalled = market.begin(seller(1), MODEL, Endpoint::Chat);
    clock.advance(Duration::from_secs(3));
    assert_eq!(measured(&market, 1).first_token, Some(3000.0));
    stalled.answered();
    assert_eq!(measured(&market, 1).first_token, Some(100.0));
    assert_eq!(measured(&market, 1).in_flight, 1);
    drop(stalled);
    assert_eq!(measured(&market, 1).in_flight, 0);
}

#[test]
fn quantiles_and_what_a_prompt_adds_are_learned_from_answers() {
    let (market, clock) = market(1);
    for n in 0..40_u32 {
        let prompt = (n % 4) * 1000;
        let first_token = Duration::from_millis(u64::from(100 + prompt / 10));
        let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
        clock.advance(Duration::from_millis(10));
        trial.record(Outcome::Served(Served {
            first_token: Some(first_token),
            elapsed: first_token + Duration::from_secs(1),
            longest_gap: Duration::from_millis(30),
            prompt,
            tokens: 50,
            charged: Amount::atoms(1),
        }));
    }
    let now = measured(&market, 1);
    assert_eq!(
        (now.first_token_p50, now.first_token_p99),
        (Some(200.0), Some(400.0))
    );
    assert_eq!(now.gap_p99, Some(30.0));
    assert!((now.per_prompt - 0.1).abs() < 0.01, "{}", now.per_prompt);
    let long = now.with_prompt(200.0, 10_000);
    assert!((900.0..1200.0).contains(&long), "{long}");
    assert_eq!(now.with_prompt(200.0, 0), 200.0);
    assert_eq!(now.tokens, 2000);
}

#[test]
fn endpoints_are_measured_apart() {
    let (market, _clock) = market(1);
    let trial = market.begin(seller(1), MODEL, Endpoint::Embeddings);
    trial.record(Outcome::Failed);
    assert_eq!(measured(&market, 1), Measured::default());
    let snapshot = market.snapshot(MODEL, Endpoint::Embeddings);
    assert_eq!(snapshot[0].measured.failures, 1);
}

#[test]
fn a_purchase_that_is_dropped_says_nothing_of_the_seller() {
    let (market, _clock) = market(1);
    drop(market.begin(seller(1), MODEL, Endpoint::Chat));
    assert_eq!(measured(&market, 1), Measured::default());
}

#[test]
fn a_seller_that_was_overtaken_is_slower_than_it_was_taken_for_and_not_to_blame() {
    let (market, _clock) = market(1);
    let begin = || market.begin(seller(1), MODEL, Endpoint::Chat);
    let overtaken = |millis| Outcome::Overtaken {
        waited: Duration::from_millis(millis),
        prompt: 0,
    };
    begin().record(overtaken(900));
    let unknown = measured(&market, 1);
    assert_eq!(unknown.first_token, None, "of one nobody knows, too short");
    begin().record(served(100, 200, 2));
    begin().record(overtaken(50));
    assert_eq!(
        measured(&market, 1).first_token,
        Some(100.0),
        "it was in time"
    );
    begin().record(overtaken(900));
    let known = measured(&market, 1);
    assert!(
        known.first_token.is_some_and(|millis| millis > 100.0),
        "{known:?}"
    );
    assert_eq!((known.failures, known.pause), (0, None));
}

#[test]
fn regression_a_seller_that_never_answers_and_is_always_overtaken_has_failed() {
    let (market, _clock) = market(1);
    let begin = || market.begin(seller(1), MODEL, Endpoint::Chat);
    let overtaken = |millis| Outcome::Overtaken {
        waited: Duration::from_millis(millis),
        prompt: 0,
    };
    begin().record(overtaken(1_500));
    let once = measured(&market, 1);
    assert_eq!(once.first_token, Some(3_000.0), "it was not waited for");
    assert_eq!((once.failures, once.pause, once.weight), (0, None, 0.0));
    begin().record(overtaken(4_500));
    let twice = measured(&market, 1);
    assert_eq!((twice.failures, twice.weight), (1, 1.0));
    assert!(matches!(twice.pause, Some(Pause::CoolingDown(_))));
    assert!(twice.success < measured_newcomer());
    begin().record(served(100, 200, 2));
    begin().record(overtaken(9_000));
    assert_eq!(measured(&market, 1).failures, 0, "it has answered since");
}

#[test]
fn a_long_prompt_is_waited_for_as_long_as_it_takes_before_a_seller_counts_as_slow() {
    let (market, _clock) = market(1);
    let begin = || market.begin(seller(1), MODEL, Endpoint::Chat);
    for prompt in [1_000, 3_000, 1_000, 3_000, 1_000, 3_000, 1_000, 3_000] {
        let first = Duration::from_millis(400 + u64::from(prompt) / 10);
        begin().record(Outcome::Served(Served {
            first_token: Some(first),
            elapsed: first + Duration::from_secs(1),
            longest_gap: Duration::from_millis(30),
            prompt,
            tokens: 50,
            charged: Amount::atoms(1),
        }));
    }
    let before = measured(&market, 1);
    let given_up = Outcome::Overtaken {
        waited: Duration::from_secs(3),
        prompt: 100_000,
    };
    begin().record(given_up);
    begin().record(given_up);
    let after = measured(&market, 1);
    assert_eq!(
        after.first_token, before.first_token,
        "ten seconds are usual"
    );
    assert_eq!((after.failures, after.pause), (0, None));
}

fn measured_newcomer() -> f64 {
    Measured::default().success
}

#[test]
fn what_is_usual_is_not_moved_far_by_one_that_came_very_late() {
    let (market, clock) = market(2);
    let buy = |n, first| {
        let trial = market.begin(seller(n), MODEL, Endpoint::Chat);
        trial.record(served(first, first + 100, 2));
    };
    for first in [400, 400, 400, 400, 30_000] {
        buy(1, first);
    }
    for first in [400, 400, 400, 400, 1_200] {
        buy(2, first);
    }
    // Time enough for what the peak left, and the offers stand.
    clock.advance(Duration::from_secs(200));
    let usual = |n| measured(&market, n).first_token.expect("was measured");
    assert!((usual(1) - usual(2)).abs() < 1.0);
    assert!(usual(1) < 700.0);
}

#[test]
fn a_failing_seller_cools_down_and_is_tried_by_one_purchase_first() {
    let (market, clock) = market(1);
    for pause in [1, 2, 4] {
        market
            .begin(seller(1), MODEL, Endpoint::Chat)
            .record(Outcome::Failed);
        let cooling = Pause::CoolingDown(Duration::from_secs(pause));
        assert_eq!(measured(&market, 1).pause, Some(cooling));
        clock.advance(Duration::from_secs(pause));
        assert_eq!(measured(&market, 1).pause, None);
    }
    let probe = market.begin(seller(1), MODEL, Endpoint::Chat);
    assert_eq!(measured(&market, 1).pause, Some(Pause::OnProbation));
    probe.record(served(1, 1, 1));
    assert_eq!(measured(&market, 1).pause, None);
    let second = market.begin(seller(1), MODEL, Endpoint::Chat);
    assert_eq!(measured(&market, 1).pause, None);
    drop(second);
}

#[test]
fn a_pause_has_a_longest_length() {
    let (market, _clock) = market(1);
    for _ in 0..100 {
        market
            .begin(seller(1), MODEL, Endpoint::Chat)
            .record(Outcome::Failed);
    }
    let pause = measured(&market, 1).pause.expect("is paused");
    assert_eq!(pause.left(), Duration::from_secs(120));
}

#[test]
fn old_failures_are_forgiven() {
    let (market, clock) = market(1);
    for _ in 0..5 {
        market
            .begin(seller(1), MODEL, Endpoint::Chat)
            .record(Outcome::Failed);
    }
    let bad = measured(&market, 1).success;
    clock.advance(Duration::from_secs(590));
    assert!(measured(&market, 1).success > bad);
}

#[test]
fn busy_is_believed_for_a_moment_and_is_no_failure() {
    let (market, clock) = market(1);
    let retry_after = Duration::from_secs(3600);
    let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
    trial.load(Load {
        running: 8,
        slots: 8,
    });
    trial.record(Outcome::Busy { retry_after });
    let now = measured(&market, 1);
    assert_eq!(now.pause, Some(Pause::Busy(Duration::from_secs(30))));
    assert_eq!(
        now.load,
        Some(Load {
            running: 8,
            slots: 8
        })
    );
    assert_eq!(now.success, Measured::default().success);
    clock.advance(Duration::from_secs(31));
    assert_eq!(measured(&market, 1).pause, None);
    assert_eq!(measured(&market, 1).load, None);
}

#[test]
fn who_often_turns_purchases_away_is_known_for_it_longer_than_it_is_full() {
    let (market, clock) = market(1);
    let load = Load {
        running: 1,
        slots: 8,
    };
    let begin = || market.begin(seller(1), MODEL, Endpoint::Chat);
    let taken = begin();
    taken.load(load);
    taken.record(served(100, 200, 2));
    for _ in 0..3 {
        begin().record(Outcome::Busy {
            retry_after: Duration::ZERO,
        });
    }
    let now = measured(&market, 1);
    assert_eq!((now.full, now.refusals), (1.0, 0.4));
    clock.advance(Duration::from_secs(120));
    let later = measured(&market, 1);
    assert!(later.full < 0.1 && later.refusals > 0.3, "{later:?}");
    for _ in 0..5 {
        begin().load(load);
    }
    assert!(measured(&market, 1).refusals < later.refusals);
}

fn document(all_ms: u64, tokens: u32) -> Outcome {
    Outcome::Served(Served {
        first_token: None,
        elapsed: Duration::from_millis(all_ms),
        longest_gap: Duration::ZERO,
        prompt: 10,
        tokens,
        charged: Amount::atoms(5),
    })
}

#[test]
fn regression_a_document_says_nothing_of_a_first_token_and_its_tokens_are_not_free() {
    let (market, _clock) = market(2);
    let buy = |n, outcome| {
        market
            .begin(seller(n), MODEL, Endpoint::Chat)
            .record(outcome)
    };
    buy(1, document(2_000, 100));
    let now = measured(&market, 1);
    assert_eq!((now.first_token, now.first_token_p50), (None, None));
    assert_eq!(now.per_token, Some(20.0), "all that there is to go by");
    (0..20).for_each(|_| buy(2, served(100, 1_100, 101)));
    let streams = measured(&market, 2);
    (0..20).for_each(|_| buy(2, document(1_100, 100)));
    let both = measured(&market, 2);
    assert_eq!(both.first_token, Some(100.0));
    assert_eq!(both.first_token_p99, streams.first_token_p99);
    assert_eq!(both.gap_p99, streams.gap_p99);
    assert_eq!(both.per_token, Some(10.0), "as in a stream");
}

#[test]
fn a_long_prompt_is_no_sign_that_a_seller_is_slow() {
    let (market, _clock) = market(1);
    let buy = |prompt: u32| {
        let first_token = Duration::from_millis(u64::from(100 + prompt / 10));
        let outcome = Outcome::Served(Served {
            first_token: Some(first_token),
            elapsed: first_token,
            longest_gap: Duration::ZERO,
            prompt,
            tokens: 1,
            charged: Amount::atoms(1),
        });
        let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
        trial.record(outcome);
        measured(&market, 1).first_token.expect("was measured")
    };
    let mut before = 0.0;
    for n in 0..40 {
        before = buy((n % 4) * 1000);
    }
    let after = buy(9_000);
    assert!(after < before + 200.0, "{before} became {after}");
}

#[test]
fn a_listing_shows_the_cheapest_price_of_each_kind() {
    let (market, _clock) = market(2);
    let mut offer = testing::offer_of(3, 1, START);
    offer.models[0].prices.output = Price(400_000);
    offer.models[0].context = 8192;
    let signed = SignedOffer::sign(&offer, &testing::node_key(3)).expect("signs");
    market.hear(signed);
    let listing = &market.models()[0];
    assert_eq!((listing.id.as_str(), listing.sellers), (MODEL, 3));
    assert_eq!(listing.cheapest.output, Price(400_000));
    assert_eq!(listing.cheapest.input, Price(100_000));
    assert_eq!(listing.context, 8192);
    assert_eq!(listing.features, ["tools"]);
    let offers = market.offers();
    assert_eq!(offers.len(), 3);
    assert_eq!(offers[0].seller, seller(3));
    assert_eq!(offers[0].measured, None);
}

#[test]
fn measurements_are_bounded() {
    let (market, _clock) = market(1);
    for n in 0..100 {
        drop(market.begin(seller(1), &format!("model/{n}"), Endpoint::Chat));
    }
    assert_eq!(market.lock().memory.models(seller(1)), MAX_MODELS);
}

#[test]
fn what_is_believed_counts_like_so_many_purchases_and_fades_behind_what_is_measured() {
    let (market, _clock) = market(1);
    let seller = seller(1);
    let belief = Belief {
        success: 0.3,
        weight: 7.0,
        credit: Amount::atoms(9),
    };
    market.believe(seller, MODEL, belief);
    let measured = || measured(&market, 1);
    assert!((measured().success - 0.3).abs() < 1e-9);
    assert_eq!(measured().credit, Amount::atoms(9));
    for _ in 0..7 {
        let trial = market.begin(seller, MODEL, Endpoint::Chat);
        trial.record(served(10, 100, 5));
    }
    assert!((measured().success - 0.65).abs() < 0.01);
    market.forget(seller, MODEL);
    assert!(measured().success > 0.9 && measured().weight > 6.0);
}

#[test]
fn what_became_of_purchases_is_told_once() {
    let (market, _clock) = market(1);
    let seller = seller(1);
    let ends = [
        served(10, 100, 5),
        Outcome::Failed,
        Outcome::Blameless,
        served(10, 100, 5),
    ];
    for outcome in ends {
        market.begin(seller, MODEL, Endpoint::Chat).record(outcome);
    }
    let tallies = market.tallies();
    assert_eq!(tallies.len(), 1);
    let (of, tally) = &tallies[0];
    assert_eq!(*of, (seller, MODEL.to_owned()));
    assert_eq!((tally.served, tally.failed), (2, 1));
    assert!(market.tallies().is_empty());
}

#[test]
fn what_was_measured_outlasts_a_restart() {
    let (market, clock) = market(2);
    for first in [100, 150, 200, 120, 80] {
        let trial = market.begin(seller(1), MODEL, Endpoint::Chat);
        clock.advance(Duration::from_secs(1));
        trial.record(served(first, first + 1000, 101));
    }
    market
        .begin(seller(2), MODEL, Endpoint::Chat)
        .record(Outcome::Failed);
    let running = market.begin(seller(2), MODEL, Endpoint::Chat);
    let rows: Vec<_> = market.unwritten().into_iter().collect();
    assert_eq!(rows.len(), 2);
    assert!(market.unwritten().is_empty());
    // As the disk has them.
    let rows = rows.into_iter().map(|(key, memo)| {
        let bytes = farthing_protocol::codec::encode(&memo.expect("a row")).expect("encodes");
        assert!(bytes.len() <= farthing_protocol::store::MAX_VALUE);
        (
            key,
            farthing_protocol::codec::decode(&bytes, bytes.len()).expect("decodes"),
        )
    });
    let later = Market::new(testing::network(), clock.clone());
    later.load(rows.collect());
    for n in [1, 2] {
        later.hear(testing::signed_offer_of(n, 1, clock.now()));
    }
    drop(running);
    for n in [1, 2] {
        assert_eq!(measured(&later, n), measured(&market, n));
    }
    assert!(later.unwritten().is_empty());
}

#[test]
fn the_disk_hears_of_what_made_room() {
    let (market, _clock) = market(1);
    for n in 0..=MAX_MODELS {
        let trial = market.begin(seller(1), &format!("model/{n}"), Endpoint::Chat);
        trial.record(Outcome::Failed);
    }
    let changes = market.unwritten();
    assert_eq!(
        changes.iter().filter(|(_, memo)| memo.is_some()).count(),
        MAX_MODELS
    );
    assert_eq!(changes.iter().filter(|(_, memo)| memo.is_none()).count(), 1);
}

#[test]
fn a_seller_that_is_met_over_http_is_looked_at_like_others() {
    let (market, _clock) = market(1);
    let setting = crate::config::X402 {
        url: "https://seller.example/v1".into(),
        models: Vec::new(),
        price_input: None,
        price_output: None,
        max_output: 100,
    };
    let listed = |models: &[&str]| {
        let models: Vec<_> = models.iter().map(|model| (*model).to_owned()).collect();
        WebOffer::of(&setting, &models).expect("an address")
    };
    market.list_web(listed(&[MODEL, "other/model"]));
    let snapshot = market.snapshot(MODEL, Endpoint::Chat);
    assert_eq!(snapshot.len(), 2);
    assert!(
        snapshot
            .iter()
            .any(|found| found.goods.is_named("seller.example"))
    );
    market.list_web(listed(&["other/model"]));
    assert_eq!(market.snapshot(MODEL, Endpoint::Chat).len(), 1);
    assert_eq!(market.snapshot("other/model", Endpoint::Chat).len(), 1);
}

#[test]
fn what_runs_at_a_seller_is_counted_over_all_its_models_and_endpoints() {
    let (market, _clock) = market(1);
    let other = market.begin(seller(1), "test/other", Endpoint::Chat);
    let plain = market.begin(seller(1), MODEL, Endpoint::Completions);
    let now = measured(&market, 1);
    assert_eq!((now.in_flight, now.at_seller), (0, 2));
    drop((other, plain));
    assert_eq!(measured(&market, 1).at_seller, 0);
}
