use farthing_protocol::amount::Price;
use farthing_protocol::offer::SignedOffer;
use farthing_protocol::testing;
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);
const LATER: Timestamp = Timestamp(2_000_000);
const SALT: u64 = 7;

fn id(n: u16) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_le_bytes());
    NodeId::from_bytes(bytes)
}

fn goods(n: u16, output: u64) -> Arc<Goods> {
    let offer = testing::offer_of(1, 1, NOW);
    let signed = SignedOffer::sign(&offer, &testing::node_key(1)).expect("signs");
    let offer = Arc::new(signed.verify(&testing::network(), NOW).expect("verifies"));
    let candidate = Candidate::of(&offer, "test/model", Measured::default());
    let mut goods = (*candidate.expect("offers it").goods).clone();
    goods.seller = id(n);
    goods.model.prices.output = Price(output);
    Arc::new(goods)
}

fn shelf(sellers: u16) -> Shelf {
    let mut shelf = Shelf::default();
    let one = goods(0, 0);
    for n in 0..sellers {
        let mut goods = (*one).clone();
        goods.seller = id(n);
        goods.model.prices.output = Price(100_000 + u64::from(n));
        shelf.put(Arc::new(goods), LATER, SALT);
    }
    shelf
}

fn measured(first_token: f64) -> Measured {
    Measured {
        weight: 10.0,
        success: 0.99,
        first_token: Some(first_token),
        per_token: Some(10.0),
        ..Measured::default()
    }
}

fn look(shelf: &Shelf, seed: u64) -> Vec<NodeId> {
    look_by(shelf, seed, &|_| true, &|_| None)
}

fn look_by(
    shelf: &Shelf,
    seed: u64,
    admits: &dyn Fn(&Goods) -> bool,
    measured: &dyn Fn(NodeId) -> Option<Measured>,
) -> Vec<NodeId> {
    let seen = shelf.look(&Look {
        newcomer: Measured::default(),
        now: NOW,
        seed,
        admits,
        names: None,
        warm: None,
        measured,
    });
    seen.iter().map(Candidate::seller).collect()
}

#[test]
fn of_few_sellers_all_are_looked_at_even_those_that_will_not_do() {
    let shelf = shelf(64);
    assert_eq!(look_by(&shelf, 1, &|_| false, &|_| None).len(), 64);
}

#[test]
fn of_many_sellers_some_are_looked_at_the_cheapest_among_them() {
    let shelf = shelf(5000);
    let seen = look(&shelf, 1);
    assert!(seen.len() <= FEW, "{}", seen.len());
    for n in (0..).take(BEST[PRICE]) {
        assert!(seen.contains(&id(n)), "{n}");
    }
    assert_ne!(seen, look(&shelf, 2));
    assert_eq!(seen, look(&shelf, 1));
}

#[test]
fn the_best_of_those_that_were_measured_are_among_them_however_dear_and_many_the_others() {
    let mut shelf = shelf(5000);
    shelf.order(id(4000), Some(&measured(1.0)), SALT);
    for n in 0..100 {
        shelf.order(id(3000 + n), Some(&measured(900.0)), SALT);
    }
    let known = |seller| (seller == id(4000)).then(|| measured(1.0));
    let seen = look_by(&shelf, 1, &|_| true, &known);
    assert!(seen.contains(&id(4000)));
    assert!(seen.len() <= FEW);
}

#[test]
fn what_only_one_of_many_can_do_is_found() {
    let shelf = shelf(5000);
    let rare = |goods: &Goods| goods.seller == id(4321);
    assert_eq!(look_by(&shelf, 1, &rare, &|_| None), [id(4321)]);
}

#[test]
fn who_is_paused_does_not_take_the_place_of_others() {
    let shelf = shelf(5000);
    let busy = |seller: NodeId| {
        let pause = crate::market::Pause::Busy(std::time::Duration::from_secs(1));
        (seller < id(40)).then(|| Measured {
            pause: Some(pause),
            ..Measured::default()
        })
    };
    let seen = look_by(&shelf, 1, &|_| true, &busy);
    let well = seen.iter().filter(|seller| busy(**seller).is_none());
    // Some of those by lot may be paused, too.
    assert!(well.count() > BEST[PRICE]);
}

#[test]
fn sellers_named_by_the_request_and_the_one_with_the_conversation_are_looked_at() {
    let shelf = shelf(5000);
    let named = |goods: &Goods| goods.seller == id(2222);
    let seen = shelf.look(&Look {
        newcomer: Measured::default(),
        now: NOW,
        seed: 1,
        admits: &|_| true,
        names: Some(&named),
        warm: Some(id(3333)),
        measured: &|_| None,
    });
    let seen: Vec<_> = seen.iter().map(Candidate::seller).collect();
    assert!(seen.contains(&id(2222)) && seen.contains(&id(3333)));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u16, u64, bool),
    Take(u16),
    Order(u16, f64),
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u16..200, 1_u64..1000, any::<bool>()).prop_map(|(n, price, ends)| Step::Put(n, price, ends)),
        1 => (0_u16..200).prop_map(Step::Take),
        2 => (0_u16..200, 1.0..1e4).prop_map(|(n, first)| Step::Order(n, first)),
        1 => Just(Step::Sweep),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_shelf_holds_what_was_put_there_and_nothing_else(steps in steps(), seed: u64) {
        let template = goods(0, 0);
        let mut shelf = Shelf::default();
        let mut there = std::collections::BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(n, price, ends) => {
                    let mut goods = (*template).clone();
                    goods.seller = id(n);
                    goods.model.prices.output = Price(price);
                    shelf.put(Arc::new(goods), if ends { NOW } else { LATER }, SALT);
                    there.insert(id(n), !ends);
                }
                Step::Take(n) => {
                    shelf.take(id(n));
                    there.remove(&id(n));
                }
                Step::Order(n, first) => shelf.order(id(n), Some(&measured(first)), SALT),
                Step::Sweep => {
                    shelf.sweep(NOW);
                    there.retain(|_, lives| *lives);
                }
            }
        }
        prop_assert_eq!(shelf.len(), there.len());
        let listed = shelf.orders[PRICE].len();
        prop_assert_eq!(listed, there.len());
        let seen = look(&shelf, seed);
        prop_assert!(seen.iter().all(|seller| there.get(seller) == Some(&true)));
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), seen.len());
        let lives = there.values().filter(|lives| **lives).count();
        prop_assert_eq!(seen.is_empty(), lives == 0);
    }
}
