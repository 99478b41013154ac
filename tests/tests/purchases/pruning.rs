//! Receipts that leave the books, and what stays true of the rest.

use std::time::Duration;

use farthing_node::ledger::SERVED;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::retention::{Archive, MIN_AGE, Retention};
use farthing_tests::bench::receipts::{BEGIN, Books, measure};

const EVERYTHING: Retention = Retention {
    keep: Duration::ZERO,
    most: 0,
};

/// Long after the last of a few thousand receipts.
fn later() -> Timestamp {
    BEGIN.plus(MIN_AGE).plus(Duration::from_secs(60))
}

#[tokio::test]
async fn a_seller_prunes_what_is_claimed_and_under_a_root_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut books = Books::open(dir.path(), 1).await.expect("opens");
    books.sell(200).await.expect("sells");
    let (id, _) = books.channels[0];
    let archive = Archive::new(dir.path().join("archive"));
    let prune = || books.ledger.prune(&EVERYTHING, Some(&archive), later());
    assert_eq!(prune().await.expect("prunes"), 0, "no root covers it");
    let root = books.cosign(0).await.expect("signs");
    assert_eq!(prune().await.expect("prunes"), 0, "nothing is claimed");
    books.claim(0).await.expect("claims");
    let young = books.ledger.prune(&EVERYTHING, None, BEGIN).await;
    assert_eq!(young.expect("prunes"), 0, "a request could come again");
    assert_eq!(prune().await.expect("prunes"), 192);
    let left = books.ledger.receipts(id, 0, 300).expect("reads");
    assert_eq!(
        left.iter().map(|it| it.seq).collect::<Vec<_>>(),
        (192..200).collect::<Vec<_>>()
    );
    let request = Books::request(0).0;
    let served = books.ledger.store().get(&SERVED, &request);
    assert_eq!(served.expect("reads"), None);
    let day = later().day();
    let file = dir.path().join(format!("archive/receipts-{day:06}.jsonl"));
    let lines = std::fs::read_to_string(file).expect("is archived");
    assert_eq!(lines.lines().count(), 192);

    // The tree goes on, also after a restart.
    books.ledger.store().stop().await;
    drop(books);
    let mut books = Books::open(dir.path(), 1).await.expect("opens again");
    assert_eq!(books.cosign(0).await.expect("signs"), root);
    let peaks = books.ledger.peaks_under(&root).expect("reads");
    assert_eq!(peaks.len(), 2, "192 is 128 and 64");
    books.resume(200);
    books.sell(100).await.expect("sells");
    assert_eq!(books.cosign(0).await.expect("signs").count, 300);
}

#[tokio::test]
async fn regression_receipts_of_a_buyer_that_signs_no_roots_go_by_age_into_the_archive() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut books = Books::open(dir.path(), 1).await.expect("opens");
    books.sell(200).await.expect("sells");
    books.claim(0).await.expect("claims");
    let archive = Archive::new(dir.path().join("archive"));
    let lost = books.ledger.prune(&EVERYTHING, None, later()).await;
    assert_eq!(lost.expect("prunes"), 0, "nowhere else would they be");
    let year = Retention {
        keep: Duration::from_secs(86_400 * 365),
        most: 0,
    };
    let full = books.ledger.prune(&year, Some(&archive), later()).await;
    assert_eq!(
        full.expect("prunes"),
        0,
        "not before their time, however many"
    );
    let pruned = books
        .ledger
        .prune(&EVERYTHING, Some(&archive), later())
        .await;
    assert_eq!(pruned.expect("prunes"), 192);
    let day = later().day();
    let file = dir.path().join(format!("archive/receipts-{day:06}.jsonl"));
    let lines = std::fs::read_to_string(file).expect("is archived");
    assert_eq!(lines.lines().count(), 192);
    // A root over all of them can still be signed, also after a restart.
    books.ledger.store().stop().await;
    drop(books);
    let books = Books::open(dir.path(), 1).await.expect("opens again");
    assert_eq!(books.cosign(0).await.expect("signs").count, 200);
}

#[tokio::test]
async fn the_oldest_of_all_channels_go_first_and_only_what_is_too_many() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut books = Books::open(dir.path(), 3).await.expect("opens");
    books.sell(900).await.expect("sells");
    for place in 0..3 {
        books.cosign(place).await.expect("signs");
        books.claim(place).await.expect("claims");
    }
    let some = Retention {
        keep: Duration::from_secs(86_400 * 365),
        most: 700,
    };
    let gone = books.ledger.prune(&some, None, later()).await;
    assert_eq!(gone.expect("prunes"), 256);
    let firsts = books.channels.iter().map(|(id, _)| {
        let first = books.ledger.receipts(*id, 0, 1).expect("reads");
        first[0].seq
    });
    let mut firsts: Vec<_> = firsts.collect();
    firsts.sort_unstable();
    assert_eq!(firsts, [64, 64, 128]);
    let again = books.ledger.prune(&some, None, later()).await;
    assert_eq!(again.expect("prunes"), 0);
}

#[tokio::test]
async fn many_receipts_are_found_turned_and_pruned() {
    let dir = tempfile::tempdir().expect("a directory");
    let figures = measure(dir.path(), 2_000, 4, 200).await.expect("measures");
    assert_eq!(figures.receipts, 2_000);
    assert_eq!(figures.prune.1, 256, "whole blocks");
}
