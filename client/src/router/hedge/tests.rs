use std::sync::Arc;

use bytes::Bytes;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::{Endpoint, SignedOffer};
use farthing_protocol::testing;
use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::market::{Candidate, Measured, Pause};
use crate::router;

const NOW: Timestamp = Timestamp(1_000_000);

fn terms(stream: bool) -> Terms {
    let body =
        format!(r#"{{"model":"test/model","messages":[],"max_tokens":100,"stream":{stream}}}"#);
    Terms::of(Endpoint::Chat, &Bytes::from(body), &Config::default()).expect("accepted")
}

fn known() -> Measured {
    Measured {
        weight: 10.0,
        first_token: Some(100.0),
        first_token_p95: Some(250.0),
        ..Measured::default()
    }
}

/// A seller at this price as the only choice of a plan.
fn choice(n: u8, output: u64, measured: Measured) -> Choice {
    let mut offer = testing::offer_of(n, 1, NOW);
    offer.models[0].prices.output = Price(output);
    let signed = SignedOffer::sign(&offer, &testing::node_key(n)).expect("signs");
    let offer = Arc::new(signed.verify(&testing::network(), NOW).expect("verifies"));
    let candidate = Candidate::of(&offer, "test/model", measured).expect("offers it");
    let mut plan = router::plan(&terms(true), vec![candidate], 1);
    plan.choices.pop().expect("is kept")
}

#[test]
fn the_second_is_asked_when_the_first_is_later_than_it_nearly_ever_is() {
    let (first, second) = (choice(1, 500_000, known()), choice(2, 600_000, known()));
    let wait = |second| after(&terms(true), &first, second);
    let slow = Measured {
        first_token: Some(200.0),
        ..known()
    };
    let slow = choice(2, 600_000, slow);
    assert_eq!(wait(&slow), Some(Duration::from_millis(250)));
    assert_eq!(wait(&second), Some(Duration::from_millis(200)));
}

#[test]
fn one_that_nobody_knows_is_waited_for_twice_as_long_as_is_expected() {
    let second = choice(2, 600_000, known());
    let unknown = choice(1, 500_000, Measured::default());
    assert_eq!(
        after(&terms(true), &unknown, &second),
        millis(second.expected.first_token * LATE)
    );
    let seldom = Measured {
        weight: 1.0,
        first_token: Some(40.0),
        ..known()
    };
    let seldom = choice(1, 500_000, seldom);
    assert_eq!(
        after(&terms(true), &seldom, &second),
        millis(seldom.expected.first_token * LATE)
    );
}

fn millis(millis: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(millis / 1000.0).ok()
}

#[test]
fn nobody_is_asked_as_well_where_neither_is_known_or_for_a_document() {
    let unknown = |n| choice(n, 500_000, Measured::default());
    assert_eq!(after(&terms(true), &unknown(1), &unknown(2)), None);
    let (first, second) = (choice(1, 500_000, known()), choice(2, 600_000, known()));
    assert_eq!(after(&terms(false), &first, &second), None);
}

#[test]
fn nobody_is_asked_as_well_before_half_of_the_first_ones_answers_have_begun() {
    let slow = Measured {
        first_token: Some(900.0),
        first_token_p50: Some(800.0),
        first_token_p95: Some(2_000.0),
        ..known()
    };
    let (first, second) = (choice(1, 500_000, slow), choice(2, 600_000, known()));
    assert!(second.expected.first_token * LATE < 800.0);
    let wait = after(&terms(true), &first, &second);
    assert_eq!(wait, Some(Duration::from_millis(800)));
}

#[test]
fn both_together_stay_within_the_limit_of_one_purchase() {
    let (first, second) = (choice(1, 500_000, known()), choice(2, 600_000, known()));
    let both = first.max_cost.saturating_add(second.max_cost);
    let mut terms = terms(true);
    terms.max_cost = both;
    assert!(after(&terms, &first, &second).is_some());
    terms.max_cost = both.saturating_sub(Amount::atoms(1));
    assert_eq!(after(&terms, &first, &second), None);
}

#[test]
fn one_that_is_dear_or_paused_is_not_asked_as_well() {
    let first = choice(1, 500_000, known());
    assert_eq!(
        after(&terms(true), &first, &choice(2, 5_000_000, known())),
        None
    );
    let paused = Measured {
        pause: Some(Pause::CoolingDown(Duration::from_secs(1))),
        ..known()
    };
    assert_eq!(
        after(&terms(true), &first, &choice(2, 600_000, paused)),
        None
    );
}

#[test]
fn a_wait_beyond_the_deadline_is_none() {
    let late = Measured {
        first_token: Some(1e9),
        first_token_p95: Some(1e9),
        ..known()
    };
    let first = choice(1, 500_000, late);
    let second = choice(2, 600_000, late);
    assert_eq!(after(&terms(true), &first, &second), None);
}

#[test]
fn one_that_is_often_late_is_not_waited_for_much_longer_than_the_next_would_take() {
    let often = Measured {
        first_token_p95: Some(4_000.0),
        ..known()
    };
    let first = choice(1, 500_000, often);
    let wait = |second| after(&terms(true), &first, &choice(2, 600_000, second));
    assert_eq!(wait(known()), Some(Duration::from_millis(200)));
    let slow = Measured {
        first_token: Some(3_000.0),
        ..known()
    };
    assert_eq!(wait(slow), Some(Duration::from_secs(4)));
}

proptest! {
    #[test]
    fn no_more_hedges_are_made_than_the_share_allows(
        percent in 0_u8..=100,
        wishes in prop::collection::vec(any::<bool>(), 0..400),
    ) {
        let mut allowance = Allowance::default();
        let mut made = 0;
        for wishes in &wishes {
            allowance.earn(percent);
            if *wishes && allowance.take() {
                made += 1;
            }
        }
        prop_assert!(made <= 1 + wishes.len() * usize::from(percent) / 100);
    }
}
