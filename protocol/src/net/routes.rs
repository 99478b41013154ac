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

/// How often all parts of the table are refreshed, as Kademlia's authors do it. One asks some twenty
/// peers for each part: for most of them that is a new connection.
const REFRESH: Duration = Duration::from_secs(3_600);

/// Where a part of the table is full, a peer that is new is taken up so often at most: to make room
/// for it, the table dials whoever has been silent longest. A crowd of strangers would keep it
/// dialling, and each peer it meets would be new to somebody else.
const PAUSE: Duration = Duration::from_secs(60);

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

/// Others may search our table from now on. Those who are close to us hear of it.
pub(super) fn open(table: &mut Behaviour) {
    table.set_mode(Some(kad::Mode::Server));
    // Nobody is there to be told.
    if let Err(error) = table.bootstrap() {
        tracing::debug!(%error, "nobody_to_tell");
    }
}

/// What keeps the table good at little cost.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// When a peer was last taken up for which there was no room.
    last: Option<Instant>,
    /// When all parts were last refreshed; at first, when we first looked around.
    refreshed: Option<Instant>,
    /// The query that refreshes them now.
    refreshing: Option<QueryId>,
}

impl Upkeep {
    /// Whether a peer is taken up now. One that has a place keeps it.
    pub(super) fn admits(&mut self, table: &mut Behaviour, peer: PeerId, now: Instant) -> bool {
        let bucket = table.kbucket(peer);
        let entries = bucket.map_or(0, |bucket| bucket.num_entries());
        entries < kad::K_VALUE.get() || !known(table, peer).is_empty() || self.is_time(now)
    }

    /// A step of looking around is done. libp2p looks around whenever somebody comes into a table of
    /// less than twenty, first for who is close to us, then for each part of the table; the former
    /// alone makes us found, so the latter is left to the refreshes.
    pub(super) fn looked(&mut self, table: &mut Behaviour, query: QueryId, now: Instant) {
        if !self.goes_on(query, now)
            && let Some(mut rest) = table.query_mut(&query)
        {
            rest.finish();
        }
    }

    fn goes_on(&mut self, query: QueryId, now: Instant) -> bool {
        if self.refreshing == Some(query) {
            return true;
        }
        let since = |then| now.saturating_duration_since(then);
        // The timer runs from one beginning to the next, and we hear of them a little later.
        let is_due = self
            .refreshed
            .is_some_and(|then| since(then) >= REFRESH / 2);
        if is_due || self.refreshed.is_none() {
            self.refreshed = Some(now);
        }
        if is_due {
            self.refreshing = Some(query);
        }
        is_due
    }

    fn is_time(&mut self, now: Instant) -> bool {
        let waited = |last| now.saturating_duration_since(last) >= PAUSE;
        let is_time = self.last.is_none_or(waited);
        if is_time {
            self.last = Some(now);
        }
        is_time
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
    anybody.then(|| table.get_n_closest_peers(peer, CLOSEST))
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

    #[tokio::test]
    async fn where_the_table_has_room_peers_are_taken_up_as_they_come_and_else_now_and_then() {
        let mut table = behaviour(PeerId::random());
        let mut upkeep = Upkeep::default();
        let now = Instant::now();
        // Half of all names belong to the part that is farthest away, which has twenty places.
        let mut refused = Vec::new();
        for peer in std::iter::repeat_with(PeerId::random).take(200) {
            match upkeep.admits(&mut table, peer, now) {
                true => add(&mut table, peer, addresses(0)),
                false => refused.push(peer),
            }
        }
        let entries = |table: &mut Behaviour| -> Vec<usize> {
            table
                .kbuckets()
                .map(|bucket| bucket.num_entries())
                .collect()
        };
        let full = entries(&mut table).into_iter().filter(|n| *n == 20).count();
        assert!(full >= 1 && entries(&mut table).iter().sum::<usize>() >= 40);
        let late = refused.pop().expect("many are refused");
        assert!(!upkeep.admits(&mut table, late, now + PAUSE.mul_f64(0.9)));
        assert!(upkeep.admits(&mut table, late, now + PAUSE), "its turn");
        assert!(!upkeep.admits(&mut table, late, now + PAUSE), "the next");
        let somebody = table.kbuckets().flat_map(|bucket| {
            bucket
                .iter()
                .map(|entry| *entry.node.key.preimage())
                .collect::<Vec<_>>()
        });
        let somebody = somebody.last().expect("somebody is there");
        assert!(upkeep.admits(&mut table, somebody, now), "has a place");
    }

    #[tokio::test]
    async fn all_parts_are_refreshed_once_an_hour_however_often_the_table_looks_around() {
        let mut table = behaviour(PeerId::random());
        add(&mut table, PeerId::random(), addresses(0));
        let mut upkeep = Upkeep::default();
        let begun = Instant::now();
        let looks: Vec<QueryId> = (0..5).map(|_| table.bootstrap().unwrap()).collect();
        let mut goes_on = |look: usize, at: Duration| {
            upkeep.looked(&mut table, looks[look], begun + at);
            table.query_mut(&looks[look]).is_some()
        };
        let second = Duration::from_secs(1);
        assert!(!goes_on(0, Duration::ZERO), "the start");
        assert!(!goes_on(1, second), "somebody has come");
        assert!(goes_on(2, REFRESH) && goes_on(2, REFRESH + second * 8));
        assert!(!goes_on(3, REFRESH + second * 9), "somebody has come");
        assert!(goes_on(4, REFRESH * 2));
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
