//! What the operator is told of what was sold: through which door, and to whom.

use farthing_node::ledger::Door;
use farthing_protocol::payment::scheme;
use farthing_tests::street::{Agent, Buyer, TestNet, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_receipt_is_known_by_its_door_also_after_a_restart() {
    let mut street = TestNet::new().http().start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let mut agent = agent.expect("has money");
    street.buyers[0]
        .buy(Buyer::stream(16))
        .await
        .expect("answers");
    for body in [Agent::plain("hello", 20), Agent::stream("hello", 20)] {
        let reply = agent.buy(&body).await.expect("answers");
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let body = Agent::plain("hello", 20);
    let told = agent.ask(&body, None).await.expect("answers");
    let way = told.way(scheme::EXACT).expect("is offered");
    let reply = agent.ask(&body, Some(&agent.exact(way, 1))).await;
    assert_eq!(reply.expect("answers").status, 200);
    let ledger = street.sellers[0].node().ledger();
    let quiet = eventually("the sales have ended", || ledger.running() == 0);
    quiet.await.expect("they end");
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts");

    let seller = &street.sellers[0];
    let ledger = seller.node().ledger();
    let buyer = street.buyers[0].wallet_keys().payer.address();
    let mut found = Vec::new();
    for (id, view) in seller.channels() {
        for receipt in ledger.receipts(id, 0, 9).expect("reads") {
            let door = ledger.door(&receipt).expect("reads");
            found.push((door.text(), view.config.payer == buyer));
        }
    }
    found.sort_unstable();
    let expected = [
        (Door::Batch.text(), false),
        (Door::Batch.text(), false),
        (Door::Exact.text(), false),
        (Door::Peer.text(), true),
    ];
    assert_eq!(found, expected);
    street.stop().await;
}
