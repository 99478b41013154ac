//! What was sold: the newest, or all in pages.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use alloy::primitives::B256;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::receipt::{Receipt, model_hash};
use farthing_protocol::x402::ChannelId;
use serde_json::json;

use crate::control::{Desk, Told};
use crate::ledger::{Ledger, LedgerError};
use crate::report::{Sold, SoldPage};

/// The most receipts of one answer.
pub(in crate::control) const PAGE: usize = 256;
/// Channels looked at between two rests.
const STRIDE: usize = 64;

/// Answers `/receipts/newest/{most}`.
pub(in crate::control) async fn newest(
    State(desk): State<Arc<Desk>>,
    Path(most): Path<usize>,
) -> Told<SoldPage> {
    let found = newest_of(desk.node.ledger(), most.min(PAGE)).await;
    desk.told(found)
}

/// Answers `/receipts/after/{channel}/{seq}`: the order is that of channels and their receipts.
/// The first page is after the zero channel.
pub(in crate::control) async fn after(
    State(desk): State<Arc<Desk>>,
    Path((channel, seq)): Path<(B256, u64)>,
) -> Told<SoldPage> {
    let found = desk
        .node
        .ledger()
        .receipts_after(ChannelId(channel), seq, PAGE);
    desk.told(found)
}

/// The newest receipts of all channels, the newest first. Each channel's are in their order, so
/// only as many are read as there are channels and receipts asked for.
async fn newest_of(ledger: &Ledger, most: usize) -> Result<Vec<Receipt>, LedgerError> {
    let mut last: BinaryHeap<(Timestamp, ChannelId, u64)> = BinaryHeap::new();
    for (n, (id, view)) in ledger.channels().into_iter().enumerate() {
        if let Some(seq) = view.channel.receipts().checked_sub(1)
            && let Some(receipt) = ledger.receipt(id, seq)?
        {
            last.push((receipt.finished, id, seq));
        }
        if n % STRIDE == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut found = Vec::new();
    while let Some((_, id, seq)) = last.pop().filter(|_| found.len() < most) {
        found.extend(ledger.receipt(id, seq)?);
        if let Some(before) = seq.checked_sub(1)
            && let Some(receipt) = ledger.receipt(id, before)?
        {
            last.push((receipt.finished, id, before));
        }
    }
    Ok(found)
}

impl Desk {
    fn told(&self, found: Result<Vec<Receipt>, LedgerError>) -> Told<SoldPage> {
        let sold = found.and_then(|receipts| {
            let models = self.config.models.iter();
            let models: HashMap<_, _> = models
                .map(|model| (model_hash(&model.id), model.id.as_str()))
                .collect();
            let sold = receipts
                .into_iter()
                .map(|receipt| self.sold(receipt, &models));
            sold.collect::<Result<Vec<_>, _>>()
        });
        match sold {
            Ok(sold) => Ok(Json(SoldPage {
                token: self.token(),
                sold,
            })),
            Err(error) => {
                let fault = json!({ "error": error.to_string() });
                Err((StatusCode::INTERNAL_SERVER_ERROR, Json(fault)))
            }
        }
    }

    fn sold(&self, receipt: Receipt, models: &HashMap<B256, &str>) -> Result<Sold, LedgerError> {
        let ledger = self.node.ledger();
        let view = ledger.channel(receipt.channel);
        Ok(Sold {
            payer: view.map(|view| view.config.payer),
            door: ledger.door(&receipt)?.text().to_owned(),
            model: models.get(&receipt.model_hash).map(|&id| id.to_owned()),
            signed: receipt.sign(&self.node.shop().key),
        })
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::store::{Batch, Store};
    use farthing_protocol::testing;

    use super::*;
    use crate::ledger::{Observation, RECEIPTS, schema};
    use crate::ledger::{OpenPurchase, Served};
    use farthing_protocol::amount::{Amount, Cost};
    use farthing_protocol::eip712::Signed;
    use farthing_protocol::offer::OfferHash;
    use farthing_protocol::purchase::{Ending, RequestId, Usage};
    use farthing_protocol::voucher::Voucher;

    const BEGIN: Timestamp = Timestamp(1_790_000_000_000);

    async fn sell(ledger: &Ledger, lane: u8, at: u64) {
        let mut config = testing::channel_config();
        config.salt.0[31] = lane;
        let id = config.id(&testing::network());
        let rich = Observation {
            balance: Amount::atoms(1_000),
            claimed: Amount::ZERO,
            armed: Amount::ZERO,
        };
        ledger.observe(config, id, rich).await.expect("is entered");
        let voucher = Voucher {
            channel: id,
            ceiling: Amount::atoms(1_000),
        };
        let domain = testing::network().domain();
        let signed = Signed::sign(voucher, &domain, &testing::evm_key(8));
        let good = signed.verify(&domain, testing::evm_key(8).address());
        ledger.take(good.expect("signed")).await.expect("is taken");
        let request = RequestId(B256::left_padding_from(&at.to_be_bytes()));
        let reservation = ledger.reserve(id, request, Amount::atoms(10));
        let purchase = OpenPurchase {
            channel: id,
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage::default(),
            cost: Cost::default(),
            started: BEGIN,
        };
        let served = Served {
            purchase,
            finished: Timestamp(BEGIN.0 + at),
            ending: Ending::Complete,
        };
        let reservation = reservation.expect("is covered");
        ledger.finish(reservation, served).await.expect("ends");
    }

    #[tokio::test]
    async fn the_newest_of_all_channels_come_first_and_pages_come_to_an_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path(), schema()).expect("opens");
        let ledger = Ledger::open(store, BEGIN).await.expect("opens");
        for (lane, at) in [(1, 1), (2, 2), (1, 3), (3, 4), (2, 5), (1, 6)] {
            sell(&ledger, lane, at).await;
        }
        let times = |receipts: Vec<Receipt>| -> Vec<u64> {
            let ages = receipts.iter().map(|it| it.finished.0 - BEGIN.0);
            ages.collect()
        };
        let newest = async |most| times(newest_of(&ledger, most).await.expect("reads"));
        assert_eq!(newest(4).await, [6, 5, 4, 3]);
        assert_eq!(newest(99).await, [6, 5, 4, 3, 2, 1]);
        // What has left the books ends its channel's list.
        let first = newest_of(&ledger, 6).await.expect("reads").pop();
        let first = first.expect("the oldest");
        let gone = Batch::new().delete(&RECEIPTS, &(first.channel.0, first.seq));
        ledger.store().commit(gone).await.expect("is written");
        assert_eq!(newest(99).await, [6, 5, 4, 3, 2]);
        let (mut place, mut all) = ((ChannelId(B256::ZERO), 0), Vec::new());
        loop {
            let page = ledger.receipts_after(place.0, place.1, 2).expect("reads");
            let Some(last) = page.last() else { break };
            place = (last.channel, last.seq);
            assert!(page.len() <= 2);
            all.extend(times(page));
        }
        all.sort_unstable();
        assert_eq!(all, [2, 3, 4, 5, 6]);
    }
}
