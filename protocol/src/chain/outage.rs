//! Chains that are away, deaf, dead or somebody else's.

use super::bench::*;
use super::*;
use crate::chain::local::LocalChain;
use crate::testing::network;

#[tokio::test]
async fn a_chain_that_is_away_says_nothing_is_known() {
    let bench = Bench::twin();
    bench.open(10_000).await;
    let Hands::Twin(memory) = &bench.hands else {
        unreachable!("made a twin");
    };
    let write = claim(&[row(1_000, 1_000)]);
    let chain = &bench.chain;
    let prepared = chain
        .prepare(&write, &seller(), None)
        .await
        .expect("possible");
    memory.set_away(true);
    let away = |error: ChainError| error.is_unavailable();
    assert!(chain.verify().await.is_err_and(away));
    assert!(chain.latest().await.is_err_and(away));
    assert!(chain.channel(id()).await.is_err_and(away));
    assert!(
        chain
            .prepare(&write, &seller(), None)
            .await
            .is_err_and(away)
    );
    assert!(chain.broadcast(&prepared.raw).await.is_err_and(away));
    let waited = chain
        .wait(prepared.hash, 1, Duration::from_millis(10))
        .await;
    assert!(waited.is_err_and(away));
    memory.set_away(false);
    assert_eq!(chain.outcome(prepared.hash).await, Ok(None));
    chain.broadcast(&prepared.raw).await.expect("is taken");
    assert_eq!(bench.held().await, (10_000, 1_000));
}

#[tokio::test]
async fn a_lost_answer_is_not_a_lost_transaction() {
    let bench = Bench::twin();
    bench.open(10_000).await;
    let Hands::Twin(memory) = &bench.hands else {
        unreachable!("made a twin");
    };
    let write = claim(&[row(1_000, 1_000)]);
    let chain = &bench.chain;
    let prepared = chain
        .prepare(&write, &seller(), None)
        .await
        .expect("possible");
    memory.set_deaf(true);
    let sent = chain.broadcast(&prepared.raw).await;
    assert!(sent.is_err_and(|error| error.is_unavailable()));
    memory.set_deaf(false);
    assert_eq!(chain.broadcast(&prepared.raw).await, Ok(prepared.hash));
    assert_eq!(bench.held().await, (10_000, 1_000));
}

#[tokio::test]
async fn a_dead_node_hands_over_and_a_foreign_one_is_named() {
    let bench = Bench::anvil().await;
    let Hands::Anvil(local) = &bench.hands else {
        unreachable!("made an anvil");
    };
    let nobody = "http://127.0.0.1:1".to_owned();
    let config = |urls: Vec<String>| RpcConfig {
        urls,
        ..local.config()
    };
    let urls = vec![nobody.clone(), local.url().to_owned()];
    let chain = Chain::connect(network(), config(urls)).expect("valid");
    assert_eq!(chain.verify().await, Ok(()));
    assert!(chain.latest().await.is_ok());

    let foreign = Network {
        chain_id: 5,
        ..network()
    };
    let foreign = LocalChain::start_bare(&anvil_binary(), foreign)
        .await
        .expect("starts");
    let urls = vec![nobody, foreign.url().to_owned()];
    let chain = Chain::connect(network(), config(urls)).expect("valid");
    for error in [
        chain.verify().await.expect_err("is foreign"),
        chain.latest().await.map(|_| ()).expect_err("is foreign"),
    ] {
        assert!(
            matches!(
                error,
                ChainError::WrongChain {
                    expected: 31337,
                    got: 5,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn every_question_can_be_asked_from_a_spawned_task() {
    let chain = Bench::twin().chain;
    let asked = tokio::spawn(async move {
        let write = claim(&[row(1, 1)]);
        let prepared = chain.prepare(&write, &seller(), None).await;
        let hash = B256::ZERO;
        let waited = chain.wait(hash, 2, Duration::from_millis(1)).await;
        let told = chain.events(0..=1).await.map(|events| events.len());
        (
            prepared.is_err(),
            waited.is_err(),
            told,
            chain.verify().await,
        )
    });
    let answers = asked.await.expect("no panic");
    assert_eq!(answers, (true, true, Ok(0), Ok(())));
}
