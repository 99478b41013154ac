//! What buyers ask for, and when: requests of all sizes, in bursts.

use crate::sim::dice::Dice;
use crate::sim::seller::SECOND;

/// The middle prompt, in tokens, and how widely prompts spread.
const PROMPT: (f64, f64) = (600.0, 1.0);
/// The middle answer, in tokens, and how widely answers spread.
const OUTPUT: (f64, f64) = (180.0, 0.8);
/// The longest prompt and the longest answer.
const LONGEST: (f64, f64) = (32_000.0, 4_000.0);
/// How many times the calm rate requests come in a burst.
const BURST: f64 = 6.0;
/// Seconds of a burst, and of the calm between two, on average.
const BURST_SECONDS: (f64, f64) = (8.0, 60.0);

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its number in the order of time.
    pub id: u64,
    /// When it comes.
    pub at: u64,
    /// Whose it is.
    pub buyer: usize,
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Tokens of its answer, which nobody knows before.
    pub output: u32,
    /// The most tokens it asks for.
    pub max_tokens: u32,
}

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Buyers at work.
    pub buyers: usize,
    /// Requests a second of each, bursts included.
    pub rate: f64,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// All requests of all buyers, in the order of time.
#[must_use]
pub fn requests(seed: u64, demand: &Demand) -> Vec<Request> {
    let mut all = Vec::new();
    for buyer in 0..demand.buyers {
        all.extend(of(seed, buyer, demand));
    }
    all.sort_by_key(|request| (request.at, request.buyer));
    for (id, request) in all.iter_mut().enumerate() {
        request.id = id as u64;
    }
    all
}

/// One buyer's requests: a Poisson stream whose rate rises in bursts.
fn of(seed: u64, buyer: usize, demand: &Demand) -> Vec<Request> {
    let mut dice = Dice::of(seed, &[0xa5, buyer as u64]);
    let (burst, calm) = BURST_SECONDS;
    let mean = (calm + BURST * burst) / (calm + burst);
    let end = demand.seconds * SECOND;
    let (mut at, mut until, mut bursting) = (0.0, 0.0, true);
    let mut requests = Vec::new();
    loop {
        if at >= until {
            bursting = !bursting;
            until = at + dice.exponential(if bursting { burst } else { calm });
        }
        let rate = demand.rate / mean * if bursting { BURST } else { 1.0 };
        let next = at + dice.exponential(1.0 / rate);
        // What would come after the change is thrown again at the new rate: so is it Poisson.
        if next >= until {
            at = until;
            continue;
        }
        at = next;
        let moment = (at * SECOND as f64) as u64;
        if moment >= end {
            return requests;
        }
        requests.push(one(&mut dice, moment, buyer));
    }
}

fn one(dice: &mut Dice, at: u64, buyer: usize) -> Request {
    let prompt = dice.log_normal(PROMPT.0, PROMPT.1).clamp(8.0, LONGEST.0) as u32;
    let output = dice.log_normal(OUTPUT.0, OUTPUT.1).clamp(4.0, LONGEST.1) as u32;
    // People ask for round numbers, and for more than they need.
    let room = output.next_power_of_two() << dice.below(2);
    Request {
        id: 0,
        at,
        buyer,
        prompt,
        output,
        max_tokens: room.min(4096),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_at_the_rate_asked_for_and_in_bursts() {
        let demand = Demand {
            buyers: 20,
            rate: 1.0,
            seconds: 1000,
        };
        let all = requests(1, &demand);
        let rate = all.len() as f64 / 20_000.0;
        assert!((0.85..1.15).contains(&rate), "{rate}");
        let mut seconds = vec![0_u32; 1000];
        for request in all.iter().filter(|request| request.buyer == 3) {
            seconds[(request.at / SECOND) as usize] += 1;
        }
        let busy = seconds.iter().filter(|count| **count >= 4).count();
        // A Poisson stream alone has about 19 such seconds.
        assert!(busy > 30, "{busy}");
        assert!(all.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }
}
