use bytes::Bytes;
use farthing_protocol::purchase::Endpoint;
use proptest::prelude::*;

use super::*;
use crate::config::Config;

fn terms(config: &Config) -> Terms {
    let body = Bytes::from_static(br#"{"model":"a/b","messages":[],"stream":true}"#);
    Terms::of(Endpoint::Chat, &body, config).expect("accepted")
}

fn measured(first_token: f64, gap: f64) -> Measured {
    Measured {
        first_token_p99: Some(first_token),
        gap_p99: Some(gap),
        ..Measured::default()
    }
}

#[test]
fn a_quick_seller_is_not_waited_for_as_long_as_one_that_nobody_knows() {
    let terms = terms(&Config::default());
    let unknown = of(&terms, &Measured::default(), false);
    assert_eq!(unknown, terms.deadlines);
    let quick = of(&terms, &measured(200.0, 20.0), false);
    assert!(quick.first_token < Duration::from_secs(6), "{quick:?}");
    assert_eq!(quick.idle, LEAST_GAP);
    assert_eq!(
        (quick.connect, quick.total),
        (unknown.connect, unknown.total)
    );
}

#[test]
fn the_last_seller_is_waited_for_as_long_as_is_configured() {
    let terms = terms(&Config::default());
    assert_eq!(of(&terms, &measured(200.0, 20.0), true), terms.deadlines);
}

#[test]
fn a_longer_prompt_may_take_longer() {
    let mut terms = terms(&Config::default());
    let known = Measured {
        per_prompt: 5.0,
        prompt: 100.0,
        ..measured(1_500.0, 20.0)
    };
    let short = of(&terms, &known, false).first_token;
    terms.expected.prompt = 1_000;
    let long = of(&terms, &known, false).first_token;
    assert_eq!(long.saturating_sub(short), Duration::from_secs(18));
}

#[test]
fn the_waits_read_in_seconds() {
    let told = Told(terms(&Config::default()).deadlines).to_string();
    let expected =
        "waits 5 s to connect, 60 s for the first token, 30 s between tokens, 600 s in all";
    assert_eq!(told, expected);
}

proptest! {
    #[test]
    fn a_wait_is_within_its_bounds_and_slower_sellers_get_no_less(
        first in 0.0_f64..1e9, more in 0.0_f64..1e9, gap in 0.0_f64..1e9,
        ceiling in 1_u64..200, idle in 1_u64..200,
    ) {
        let mut config = Config::default();
        config.router.first_token = Duration::from_secs(ceiling);
        config.router.idle = Duration::from_secs(idle);
        let terms = terms(&config);
        let quick = of(&terms, &measured(first, gap), false);
        let slow = of(&terms, &measured(first + more, gap + more), false);
        prop_assert!(quick.first_token <= slow.first_token && quick.idle <= slow.idle);
        prop_assert!(slow.first_token <= config.router.first_token);
        prop_assert!(slow.idle <= config.router.idle);
        prop_assert!(quick.first_token >= LEAST_FIRST_TOKEN.min(config.router.first_token));
        prop_assert!(quick.idle >= LEAST_GAP.min(config.router.idle));
    }

    #[test]
    fn no_number_makes_it_panic(first in any::<f64>(), gap in any::<f64>(), per in any::<f64>()) {
        let terms = terms(&Config::default());
        let known = Measured { per_prompt: per, ..measured(first, gap) };
        let waits = of(&terms, &known, false);
        prop_assert!(waits.first_token <= terms.deadlines.first_token);
    }
}
