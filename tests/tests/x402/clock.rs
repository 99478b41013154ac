//! A seller whose clock is set while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farthing_protocol::clock::Clock;
use farthing_protocol::offer::MAX_SKEW;
use farthing_tests::street::{Agent, TestNet, eventually};

/// Milliseconds of a year.
const YEAR: i64 = 365 * 86_400_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_seller_whose_clock_is_set_sells_again_before_its_next_round() {
    let wrong = Arc::new(AtomicI64::new(0));
    let clock = Clock::wrong_by(Arc::clone(&wrong));
    let net = TestNet::new().buyers(0).http().clock(clock.clone());
    let street = net.start().await.expect("starts");
    let seller = &street.sellers[0];
    let agent = Agent::new(&street, seller, 1).await.expect("has money");
    let body = Agent::plain("what does it cost?", 10);
    for (set, status) in [(YEAR, 503), (0, 402)] {
        assert_eq!(agent.ask(&body, None).await.expect("answers").status, 402);
        wrong.store(set, Ordering::SeqCst);
        // Forward, its offer is over; back, it is from the future and nobody takes it in.
        let reply = agent.ask(&body, None).await.expect("answers");
        assert_eq!(reply.status, status, "{}", reply.text());
        let fresh = eventually("an offer of this time", || {
            let now = clock.now();
            seller.node().offer().is_some_and(|offer| {
                let offer = offer.offer();
                offer.expires > now && offer.issued < now.plus(MAX_SKEW)
            })
        });
        fresh.await.expect("in time");
    }
    assert_eq!(agent.ask(&body, None).await.expect("answers").status, 402);
    street.stop().await;
}
