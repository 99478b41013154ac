//! How long the router takes to choose: the one thing here that depends on the machine. Counted is
//! the processor's time for the thread, so that whatever else runs does not count.

use std::time::Duration;

use farthing_client::config::Config;
use farthing_protocol::clock::Clock;
use rustix::time::{ClockId, clock_gettime};

use crate::sim::chooser::{Ask, Board, Chooser, Word};
use crate::sim::dice::Dice;
use crate::sim::report::Pace;
use crate::sim::router::{Router, Stall, places, terms};
use crate::sim::seller::SECOND;
use crate::sim::world::{World, date};

/// Times that it is measured. The middle one is told: one round may fall into somebody else's work.
const ROUNDS: usize = 3;

/// How many purchases went before, so that there is something to look at.
const BEFORE: usize = 5_000;

/// The processor's time that this thread has had.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Measures so many choices among the sellers of a world, as a buyer makes them that has bought
/// from many of them: of three rounds, the one in the middle.
#[must_use]
pub fn measure(world: &World, choices: usize) -> Pace {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| round(world, choices)).collect();
    rounds.sort_by_key(|pace| pace.p99);
    rounds.swap_remove(ROUNDS / 2)
}

fn round(world: &World, choices: usize) -> Pace {
    let clock = Clock::manual(date(0));
    let stall = Stall::new(clock.clone(), 1);
    let sellers = world.sellers.len();
    for place in 0..sellers {
        stall.hear(&world.offer(place, 0));
    }
    let mut dice = Dice::of(world.seed, &[0x9a]);
    for _ in 0..BEFORE {
        clock.advance(Duration::from_millis(20));
        let place = dice.below(sellers);
        let (first, per_token) = world.sellers[place].nature(600, 180);
        let word = if dice.chance(0.95) {
            Word::Served {
                first,
                elapsed: first + 180.0 * per_token,
                tokens: 180,
            }
        } else {
            Word::Failed
        };
        stall.begin(world.id(place)).ended(word, 600, 1e8);
    }
    let mut router = Router::new(&stall, &places(world));
    let (board, config) = (Board::new(world), Config::default());
    let mut took = Vec::with_capacity(choices);
    for request in world.requests.iter().cycle().take(choices) {
        clock.advance(Duration::from_millis(20));
        let terms = terms(request, &config);
        let ask = Ask {
            request,
            terms: &terms,
            board: &board,
            at: 100 * SECOND,
            most: 3,
        };
        let began = spent();
        let chosen = router.choose(&ask, &mut dice);
        took.push(spent().saturating_sub(began));
        // A choice that nobody looks at could be left out.
        std::hint::black_box(chosen);
    }
    took.sort_unstable();
    let at = |share: f64| {
        let place = (took.len() as f64 * share) as usize;
        took.get(place).copied().unwrap_or_default()
    };
    Pace {
        sellers,
        p50: at(0.5),
        p99: at(0.99),
    }
}
