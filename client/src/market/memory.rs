//! [`Memory`]: what was measured of every seller, bounded, and what of it the disk does not have
//! yet.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{Endpoint, MAX_MODELS};
use farthing_protocol::store::Table;
use serde::{Deserialize, Serialize};

use crate::market::belief::Beliefs;
use crate::market::goods::Goods;
use crate::market::sketch::Spread;
use crate::market::stats::{Measured, Stats};

/// The most sellers whose measurements are kept.
pub(super) const MAX_MEASURED: usize = 10_000;

/// What was measured, by seller and the hash of model and endpoint.
pub const MEASURED: Table<(B256, B256), Memo> = Table::new("measured", 1);

/// What was measured of one model at one endpoint of one seller, as it is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memo {
    model: String,
    endpoint: Endpoint,
    stats: Stats,
}

/// A change for the disk: the row, or that there is none any more.
pub type Change = ((B256, B256), Option<Memo>);

/// One model at one endpoint of one seller.
type Name = (NodeId, String, Endpoint);

#[derive(Debug, Default)]
pub(super) struct Memory {
    sellers: HashMap<NodeId, Vec<(String, Endpoint, Stats)>>,
    pub(super) beliefs: Beliefs,
    /// What has changed since it was last written.
    changed: HashSet<Name>,
}

impl Memory {
    /// What was measured, as it counts now.
    pub(super) fn of(
        &self,
        seller: NodeId,
        model: &str,
        endpoint: Endpoint,
        now: Timestamp,
    ) -> Option<Measured> {
        let all = self.sellers.get(&seller).map_or(&[][..], Vec::as_slice);
        let mut kept = all
            .iter()
            .filter(|(id, at, _)| *at == endpoint && id == model);
        let belief = self.beliefs.known(seller, model);
        let running = all.iter().map(|(_, _, stats)| stats.in_flight());
        let at_seller = running.fold(0, u32::saturating_add);
        let measured = match kept.next() {
            Some((_, _, stats)) => Some(stats.at(now, belief.unwrap_or(self.beliefs.newcomer()))),
            None if at_seller > 0 => {
                Some(Measured::untried(belief.unwrap_or(self.beliefs.newcomer())))
            }
            None => belief.map(Measured::untried),
        };
        let mut measured = measured?;
        measured.at_seller = at_seller;
        Some(measured)
    }

    /// The times to the first token of a seller's last purchases, unless the last one is `idle` ago.
    pub(super) fn first_tokens(
        &self,
        goods: &Goods,
        idle: Duration,
        now: Timestamp,
    ) -> Option<Spread> {
        let mut kept = self.sellers.get(&goods.seller)?.iter();
        let (_, _, stats) = kept.find(|(model, _, _)| *model == goods.model.id)?;
        stats.first_tokens(idle, now)
    }

    /// Of a seller that was never measured, and that nothing is believed of.
    pub(super) const fn newcomer(&self) -> Measured {
        Measured::untried(self.beliefs.newcomer())
    }

    /// Changes the measurements of a seller, model and endpoint; the least recently used ones make
    /// room.
    pub(super) fn change(
        &mut self,
        (seller, model, endpoint): (NodeId, &str, Endpoint),
        now: Timestamp,
        change: impl FnOnce(&mut Stats),
    ) {
        if !self.sellers.contains_key(&seller) && self.sellers.len() >= MAX_MEASURED {
            self.forget_oldest();
        }
        let kept = self.sellers.entry(seller).or_default();
        let place = kept
            .iter()
            .position(|(id, at, _)| *at == endpoint && id == model);
        let place = place.unwrap_or_else(|| {
            if kept.len() >= MAX_MODELS {
                let oldest = (0..kept.len()).min_by_key(|place| kept[*place].2.used());
                let (model, endpoint, _) = kept.swap_remove(oldest.unwrap_or(0));
                self.changed.insert((seller, model, endpoint));
            }
            kept.push((model.to_owned(), endpoint, Stats::new(now)));
            kept.len() - 1
        });
        change(&mut kept[place].2);
    }

    /// Notes that the disk should know.
    pub(super) fn note(&mut self, seller: NodeId, model: &str, endpoint: Endpoint) {
        self.changed.insert((seller, model.to_owned(), endpoint));
    }

    fn forget_oldest(&mut self) {
        let used = |kept: &Vec<(String, Endpoint, Stats)>| {
            kept.iter().map(|(_, _, stats)| stats.used()).max()
        };
        let oldest = self.sellers.iter().min_by_key(|(_, kept)| used(kept));
        let Some(seller) = oldest.map(|(seller, _)| *seller) else {
            return;
        };
        for (model, endpoint, _) in self.sellers.remove(&seller).unwrap_or_default() {
            self.changed.insert((seller, model, endpoint));
        }
    }

    /// What the disk does not have yet; it counts as written.
    pub(super) fn unwritten(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed);
        let row = |(seller, model, endpoint): Name| {
            let key = key(seller, &model, endpoint);
            let kept = self.sellers.get(&seller).into_iter().flatten();
            let mut kept = kept.filter(|(id, at, _)| *at == endpoint && *id == model);
            let memo = kept.next().map(|(_, _, stats)| Memo {
                model,
                endpoint,
                stats: stats.clone(),
            });
            (key, memo)
        };
        changed.into_iter().map(row).collect()
    }

    /// Takes in what is on disk. What has no room is forgotten there, too.
    pub(super) fn load(&mut self, rows: Vec<((B256, B256), Memo)>, now: Timestamp) {
        let mut rows = rows;
        rows.sort_by_key(|(_, memo)| std::cmp::Reverse(memo.stats.used()));
        for ((seller, _), mut memo) in rows {
            let seller = NodeId::from_bytes(seller.0);
            let room = match self.sellers.get(&seller) {
                Some(kept) => kept.len() < MAX_MODELS,
                None => self.sellers.len() < MAX_MEASURED,
            };
            if room {
                memo.stats.wake(now);
                let kept = self.sellers.entry(seller).or_default();
                kept.push((memo.model, memo.endpoint, memo.stats));
            } else {
                self.changed.insert((seller, memo.model, memo.endpoint));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn models(&self, seller: NodeId) -> usize {
        self.sellers.get(&seller).map_or(0, Vec::len)
    }
}

/// The name of a row.
fn key(seller: NodeId, model: &str, endpoint: Endpoint) -> (B256, B256) {
    let what = keccak256(format!("{endpoint} {model}"));
    (B256::from(*seller.as_bytes()), what)
}
