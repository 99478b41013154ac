//! Kademlia, for one thing only: finding where a peer is when only its name is known. It keeps
//! no records: offers travel by gossip and in books, and what strangers ask us to store is not
//! stored.

use std::{num::NonZeroUsize, time::Duration};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    kad::{
        self, BucketInserts, Caching, QueryId, StoreInserts,
        store::{MemoryStore, MemoryStoreConfig},
    },
};

use tokio::time::Instant;

use crate::net::peer;

/// Ours alone: the tables of other networks are of no use here.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/farthing/kad/1");

/// The longest search.
const SEARCH: Duration = Duration::from_secs(8);

/// Peers asked at once in one search.
const PARALLEL: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// Largest message: twenty peers with eight addresses each.
const MESSAGE: usize = 16 * 1024;

/// How many of the peers closest to a name are asked before a search ends.
const CLOSEST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// How often the table is refreshed by looking around.
const REFRESH: Duration = Duration::from_secs(600);

/// So many peers are taken up as they come. Each makes the table look around anew: that is a search
/// for each of its buckets, which meets others who are new.
const ENOUGH: usize = 20;
/// Beyond, peers that are new are taken up so often …
const PAUSE: Duration = Duration::from_secs(120);
/// … and for so long, so that the table looks around once for all of them.
const BATCH: Duration = Duration::from_secs(2);

pub(super) type Behaviour = kad::Behaviour<MemoryStore>;

/// An empty table.
pub(super) fn behaviour(local: PeerId) -> Behaviour {
    let nothing = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: 0,
        max_provided_keys: 0,
    };
    let mut config = kad::Config::new(PROTOCOL);
    config
        .set_query_timeout(SEARCH)
        .set_parallelism(PARALLEL)
        .set_replication_factor(CLOSEST)
        .set_max_packet_size(MESSAGE)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_caching(Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(REFRESH));
    kad::Behaviour::with_config(local, MemoryStore::with_config(local, nothing), config)
}

/// When peers that are new are taken up.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// When the last batch began.
    begun: Option<Instant>,
}

impl Admission {
    /// Whether a peer is taken up now. One that has a place keeps it.
    pub(super) fn admits(&mut self, table: &mut Behaviour, peer: PeerId, now: Instant) -> bool {
        let entries = table.kbuckets().map(|bucket| bucket.num_entries()).sum();
        !known(table, peer).is_empty() || self.is_open(entries, now)
    }

    fn is_open(&mut self, entries: usize, now: Instant) -> bool {
        if entries < ENOUGH {
            return true;
        }
        let since = self.begun.map(|begun| now.saturating_duration_since(begun));
        if since.is_none_or(|since| since >= PAUSE) {
            self.begun = Some(now);
            return true;
        }
        since.is_some_and(|since| since < BATCH)
    }
}

/// Takes up a peer that speaks the protocol, at these addresses and no others: those it named
/// before are forgotten, else a peer that changes its mind would fill the memory.
pub(super) fn add(table: &mut Behaviour, peer: PeerId, addresses: Vec<Multiaddr>) {
    if addresses.is_empty() {
        return;
    }
    let before = known(table, peer);
    if before.is_empty() {
        // It may be waiting for a place, where its addresses are not shown.
        table.remove_peer(&peer);
    }
    let stale = |before: &Multiaddr| {
        let (place, _) = peer::split(before.clone());
        !addresses.contains(&place)
    };
    let stale: Vec<Multiaddr> = before.into_iter().filter(stale).collect();
    for address in addresses {
        table.add_address(&peer, address);
    }
    for address in stale {
        table.remove_address(&peer, &address);
    }
}

/// The addresses of a peer that has a place in the table.
fn known(table: &mut Behaviour, peer: PeerId) -> Vec<Multiaddr> {
    let bucket = table.kbucket(peer);
    let entries = bucket.iter().flat_map(kad::KBucketRef::iter);
    let of_peer = entries.filter(|entry| *entry.node.key.preimage() == peer);
    let addresses = of_peer.map(|entry| entry.node.value.iter().cloned());
    addresses.flatten().collect()
}

/// Looks for a peer; `None` when nobody is there to be asked.
pub(super) fn search(table: &mut Behaviour, peer: PeerId) -> Option<QueryId> {
    let anybody = table.kbuckets().any(|bucket| !bucket.is_empty());
    anybody.then(|| table.get_closest_peers(peer))
}

/// Where a search has found the peer to be; nothing while it goes on.
pub(super) fn found(result: kad::QueryResult, peer: &PeerId) -> Vec<String> {
    let peers = match result {
        kad::QueryResult::GetClosestPeers(Ok(found)) => found.peers,
        kad::QueryResult::GetClosestPeers(Err(kad::GetClosestPeersError::Timeout {
            peers,
            ..
        })) => peers,
        _ => return Vec::new(),
    };
    let wanted = peers.into_iter().filter(|found| found.peer_id == *peer);
    wanted
        .flat_map(|found| found.addrs)
        .map(|address| address.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(push: usize) -> Vec<Multiaddr> {
        let address = |n| format!("/ip4/9.9.9.9/tcp/{}", push * 8 + n + 1).parse();
        (0..8).map(|n| address(n).unwrap()).collect()
    }

    #[test]
    fn a_table_that_has_enough_takes_up_new_peers_in_batches() {
        let mut admission = Admission::default();
        let begun = Instant::now();
        let mut at = |entries, seconds: f64| {
            admission.is_open(entries, begun + Duration::from_secs_f64(seconds))
        };
        assert!(at(0, 0.0) && at(ENOUGH - 1, 1.0), "as they come");
        assert!(at(ENOUGH, 2.0) && at(ENOUGH + 1, 3.9), "the first batch");
        assert!(!at(ENOUGH + 2, 4.1) && !at(ENOUGH + 2, 121.0));
        assert!(at(ENOUGH + 2, 122.1) && !at(ENOUGH + 3, 125.0), "the next");
        assert!(at(ENOUGH - 1, 126.0), "when many have gone");
    }

    #[tokio::test]
    async fn a_peer_that_names_ever_new_addresses_keeps_only_the_last() {
        let mut table = behaviour(PeerId::random());
        let peer = PeerId::random();
        for push in 0..1_000 {
            add(&mut table, peer, addresses(push));
            assert_eq!(known(&mut table, peer).len(), 8);
        }
        let kept = known(&mut table, peer).into_iter();
        let kept: Vec<Multiaddr> = kept.map(|address| peer::split(address).0).collect();
        assert_eq!(kept, addresses(999));
        add(&mut table, peer, Vec::new());
        assert_eq!(known(&mut table, peer).len(), 8, "silence changes nothing");
    }
}
