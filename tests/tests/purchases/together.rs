//! Purchases that share a channel: they share its slack, and none breaks another.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_tests::street::{Buyer, Street, TestNet, listen};
use farthing_tests::upstream::Behaviour;

const PACE: Duration = Duration::from_millis(1);

async fn street(behaviour: Behaviour) -> Street {
    let net = TestNet::new().upstreams(behaviour);
    net.start().await.expect("starts")
}

async fn total(street: &Street) -> Amount {
    let charged = street.buyers[0]
        .receipts()
        .await
        .into_iter()
        .map(|r| r.charged);
    charged.fold(Amount::ZERO, Amount::saturating_add)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_does_not_break_the_answers_of_others() {
    let street = street(Behaviour::default().tokens(1000)).await;
    let buyer = &street.buyers[0];
    // Whole documents leave slack behind, which the seller spends on whom it likes.
    for _ in 0..5 {
        buyer.buy(Buyer::chat(1000)).await.expect("answers");
    }
    let mut paused = Vec::new();
    for _ in 0..4 {
        let begun = buyer.infer(Buyer::stream(1000)).await;
        paused.push(begun.expect("begins"));
    }
    let buying = (0..12).map(|n| buyer.buy(Buyer::stream(50 + n * 30)));
    for heard in futures::future::join_all(buying).await {
        heard.expect("answers");
    }
    for mut answer in paused {
        let (_, end) = listen(&mut answer).await;
        let usage = end.expect("answers").receipt.receipt.usage;
        assert_eq!(usage.completion, 1000);
    }
    let charged = street.settled().await.expect("agrees");
    assert_eq!(charged, total(&street).await);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_answers_at_once_in_every_manner_leave_the_books_agreed() {
    let street = street(Behaviour::default().tokens(300).pace(PACE)).await;
    let buyer = &street.buyers[0];
    let buying = (0_u32..100).map(|n| async move {
        let tokens = 10 + n * 7 % 290;
        if n % 5 == 0 {
            buyer.buy(Buyer::chat(tokens / 10)).await.map(drop)?;
            return Ok(());
        }
        let mut answer = buyer.infer(Buyer::stream(tokens)).await?;
        if n % 5 == 1 {
            for _ in 0..n % 30 {
                answer.next().await;
            }
            return Ok(());
        }
        listen(&mut answer).await.1.map(drop)
    });
    for end in futures::future::join_all(buying).await {
        // All seats may be taken: that is an answer, too.
        if let Err(error) = end {
            let busy = matches!(error, farthing_client::client::InferError::Busy { .. });
            assert!(busy, "{error:?}");
        }
    }
    let charged = street.settled().await.expect("agrees");
    assert_eq!(charged, total(&street).await);
    assert_eq!(buyer.accounts().len(), 1);
    street.stop().await;
}
