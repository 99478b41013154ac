use alloy::primitives::B256;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::root::{CoSigned, ReceiptRoot};
use farthing_protocol::testing;

use super::*;

fn receipt(seq: u64) -> Receipt {
    Receipt {
        channel: testing::channel_config().id(&testing::network()),
        seq,
        request: RequestId(B256::ZERO),
        request_hash: B256::ZERO,
        response_hash: B256::ZERO,
        model_hash: B256::ZERO,
        offer: OfferHash(B256::ZERO),
        usage: Usage::default(),
        charged: Amount::atoms(5),
        cumulative: Amount::atoms(5 * (u128::from(seq) + 1)),
        started: Timestamp(1),
        finished: Timestamp(2),
        ending: Ending::Complete,
    }
}

fn held(receipt: Receipt) -> ReceiptReport {
    ReceiptReport {
        model: None,
        endpoint: None,
        dispute: None,
        signed: receipt.sign(&testing::node_key(1)),
    }
}

fn cosigned(root: ReceiptRoot) -> CoSigned {
    let domain = root::domain(&testing::network());
    CoSigned {
        root,
        buyer: Signed::sign(root, &domain, &testing::evm_key(8)).signature,
        seller: Signed::sign(root, &domain, &testing::evm_key(1)).signature,
    }
}

/// The tree over so many receipts.
fn history(count: u64) -> History {
    let mut history = History::new(receipt(0).channel);
    for seq in 0..count {
        history.push(&receipt(seq)).expect("follows");
    }
    history
}

/// Ten receipts, of which seven are under a root.
fn book() -> ReceiptBook {
    ReceiptBook {
        channel: receipt(0).channel,
        network: testing::network(),
        config: testing::channel_config(),
        seller: testing::node_key(1).id(),
        from: 0,
        peaks: Vec::new(),
        count: 10,
        root: history(7).root().map(cosigned),
        contradiction: None,
        doubles: Vec::new(),
    }
}

fn audit(book: ReceiptBook, receipts: impl IntoIterator<Item = ReceiptReport>) -> Verdict {
    let mut audit = Audit::of(book);
    for held in receipts {
        audit.take(&held);
    }
    audit.end()
}

fn all() -> Vec<ReceiptReport> {
    (0..10).map(|seq| held(receipt(seq))).collect()
}

#[test]
fn good_receipts_have_no_fault_and_their_root_covers_them() {
    let verdict = audit(book(), all());
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!((verdict.checked, verdict.covered), (10, 7));
    assert_eq!(verdict.charged, Amount::atoms(50));
}

#[test]
fn receipts_whose_beginning_was_pruned_are_checked_against_the_peaks_of_the_rest() {
    for from in 0..7 {
        let book = ReceiptBook {
            from,
            peaks: history(from).peaks().hashes().to_vec(),
            ..book()
        };
        let rest = all().into_iter().skip(usize::try_from(from).expect("few"));
        let verdict = audit(book, rest);
        assert_eq!(
            (verdict.count, verdict.covered),
            (0, 7),
            "{from}: {:?}",
            verdict.faults
        );
    }
    let exactly = ReceiptBook {
        from: 7,
        peaks: history(7).peaks().hashes().to_vec(),
        ..book()
    };
    assert_eq!(audit(exactly, all().into_iter().skip(7)).covered, 7);
    let unknown = ReceiptBook { from: 3, ..book() };
    let verdict = audit(unknown, all().into_iter().skip(3));
    assert!(
        verdict.faults[0].contains("cannot be compared"),
        "{:?}",
        verdict.faults
    );
}

#[test]
fn receipts_beyond_the_last_without_a_gap_may_have_gaps() {
    let book = ReceiptBook { count: 8, ..book() };
    let verdict = audit(
        book,
        all().into_iter().filter(|it| it.signed.receipt.seq != 8),
    );
    assert_eq!(
        (verdict.count, verdict.covered),
        (0, 7),
        "{:?}",
        verdict.faults
    );
}

/// What is said of ten receipts of which one is changed.
fn changed(seq: usize, change: impl Fn(&mut ReceiptReport)) -> Vec<String> {
    let mut all = all();
    change(&mut all[seq]);
    audit(book(), all).faults
}

#[test]
fn every_kind_of_fault_is_found() {
    let said = |faults: Vec<String>, what: &str| {
        assert!(
            faults.iter().any(|fault| fault.contains(what)),
            "{what}: {faults:?}"
        );
    };
    let forged = changed(3, |it| it.signed.receipt.charged = Amount::atoms(6));
    said(forged.clone(), "receipt 3 is not signed by the seller");
    said(forged, "does not follow");
    let resign = |receipt: Receipt| receipt.sign(&testing::node_key(1));
    let dearer = |it: &mut ReceiptReport| {
        it.signed.receipt.cumulative = Amount::atoms(1_000);
        it.signed = resign(it.signed.receipt.clone());
    };
    said(changed(3, dearer), "does not follow");
    let other = |it: &mut ReceiptReport| {
        it.signed.receipt.usage.completion = 9;
        it.signed = resign(it.signed.receipt.clone());
    };
    said(changed(3, other), "not those of the root");
    assert!(changed(8, other).is_empty(), "which covers seven only");
    let elsewhere = |it: &mut ReceiptReport| {
        it.signed.receipt.channel.0 = B256::ZERO;
        it.signed = resign(it.signed.receipt.clone());
    };
    said(changed(3, elsewhere), "another channel's");

    let without = |missing: u64| {
        all()
            .into_iter()
            .filter(move |it| it.signed.receipt.seq != missing)
    };
    said(
        audit(book(), without(4)).faults,
        "receipt 5 where 4 is the next",
    );
    said(
        audit(book(), without(9)).faults,
        "receipts 9 to 9 are missing",
    );
    said(
        audit(book(), Vec::new()).faults,
        "receipts 0 to 9 are missing",
    );

    let root = history(7).root().expect("seven");
    let with_root = |root: CoSigned| ReceiptBook {
        root: Some(root),
        ..book()
    };
    let once = CoSigned {
        seller: cosigned(root).buyer,
        ..cosigned(root)
    };
    said(
        audit(with_root(once), all()).faults,
        "the seller did not sign it",
    );
    let more = cosigned(ReceiptRoot {
        cumulative: Amount::atoms(36),
        ..root
    });
    said(
        audit(with_root(more), all()).faults,
        "not those of the root",
    );

    let mut strange = book();
    strange.config.salt = B256::repeat_byte(1);
    said(audit(strange, all()).faults, "not that of its terms");
    let domain = root::domain(&testing::network());
    let against = ReceiptBook {
        contradiction: Some(Signed::sign(root, &domain, &testing::evm_key(1))),
        ..book()
    };
    said(
        audit(against, all()).faults,
        "the seller has signed another root",
    );
    let mut twice = all()[3].signed.receipt.clone();
    twice.request.0 = B256::repeat_byte(9);
    let twice = ReceiptBook {
        doubles: vec![resign(twice)],
        ..book()
    };
    said(
        audit(twice, all()).faults,
        "the seller has signed another receipt 3 too",
    );
}
