//! The simulation on a small world: it repeats itself, and the router passes its bars there.

use farthing_tests::sim::figures::Figures;
use farthing_tests::sim::run::Run;
use farthing_tests::sim::ways::Way;
use farthing_tests::sim::workload::Demand;
use farthing_tests::sim::world::{Size, World};

const SECONDS: u64 = 400;

fn world(seed: u64) -> World {
    World::new(
        seed,
        Size {
            sellers: 150,
            bad: 0.2,
            demand: Demand {
                buyers: 6,
                rate: 1.0,
                seconds: SECONDS,
            },
        },
    )
}

fn run(world: &World, way: Way) -> Figures {
    Run::new(world, way).finish()
}

#[test]
fn the_same_seed_gives_the_same_figures_and_another_gives_others() {
    let answers = |seed| run(&world(seed), Way::Farthing).answers;
    let first = answers(1);
    assert!(first.len() > 1000, "{}", first.len());
    assert!(first == answers(1), "the second run differs");
    assert!(first != answers(2), "the seed decides nothing");
}

#[test]
fn the_router_is_ahead_of_every_baseline_where_one_in_five_sellers_is_bad() {
    let world = world(1);
    let (warm, end) = (SECONDS / 2, SECONDS);
    let ours = run(&world, Way::Farthing).summary(warm, end);
    let oracle = run(&world, Way::Oracle).summary(warm, end);
    assert!(ours.success >= 0.999, "{ours:?}");
    assert!(oracle.objective <= ours.objective, "{oracle:?} {ours:?}");
    for way in Way::ALL.into_iter().filter(|way| way.is_baseline()) {
        let theirs = run(&world, way).summary(warm, end);
        assert!(
            ours.objective < theirs.objective,
            "{way}: {theirs:?} {ours:?}"
        );
    }
}
