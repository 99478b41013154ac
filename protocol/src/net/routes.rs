//! Kademlia, for one thing only: finding where a peer is when only its name is known. It keeps
//! no records: offers travel by gossip and in books, and what strangers ask us to store is not
//! stored.

mod shares;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    kad::{
        self, BucketInserts, Caching, QueryId, StoreInserts,
        store::{MemoryStore, MemoryStoreConfig},
    },
};

use tokio::time::Instant;

use crate::net::{origin::Origin, peer};

use shares::{Room, Shares};

/// Ours alone: the tables of other networks are of no use here.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/farthing/kad/1");

/// The longest search: what was found by then counts.
const SEARCH: Duration = Duration::from_secs(8);

/// The longest look around: longer than dials to those who do not answer, else a few would end it.
const LOOK: Duration = Duration::from_secs(30);

/// Peers asked at once in one search.
const PARALLEL: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// Largest message: twenty peers with eight addresses each.
const MESSAGE: usize = 16 * 1024;

/// How often we look for who is close to us, which tells them where we are: some twenty peers.
const AROUND: Duration = Duration::from_secs(1_200);

/// How often that goes on to the other parts of the table, as Kademlia's authors have it: some twenty
/// peers for each, to most of whom that is a new connection.
const PARTS: Duration = Duration::from_secs(3_600);

/// The timer runs from one beginning to the next, and we hear of them later.
const SLACK: Duration = Duration::from_secs(60);

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
        .set_query_timeout(LOOK)
        .set_parallelism(PARALLEL)
        .set_max_packet_size(MESSAGE)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_caching(Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(AROUND));
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
    shares: Shares,
    /// When a peer was last taken up for which there was no room, for each part of the table.
    crowded: HashMap<Option<u32>, Instant>,
    /// When all parts were last refreshed; at first, when we first looked around.
    refreshed: Option<Instant>,
    /// The query that refreshes them now.
    refreshing: Option<QueryId>,
}

impl Upkeep {
    /// Whether a peer that is met at `origin` is taken up now. One that has a place keeps it; another
    /// must be of a network that has not had its share, and not behind a relay, which does not tell.
    pub(super) fn admits(
        &mut self,
        table: &mut Behaviour,
        (peer, origin): (PeerId, Origin),
        now: Instant,
    ) -> bool {
        let Some(bucket) = table.kbucket(peer) else {
            return false;
        };
        let (entries, part) = (bucket.num_entries(), bucket.range().0.ilog2());
        if !known(table, peer).is_empty() {
            self.shares.met(&peer, now);
            return true;
        }
        let room = match origin {
            Origin::Unknown => Room::None,
            Origin::Near | Origin::Named => Room::Free,
            Origin::Network(network) => {
                self.shares.keep(&present(table), now);
                self.shares.room(network, part, now)
            }
        };
        if room == Room::None || entries >= kad::K_VALUE.get() && !self.is_time(part, now) {
            return false;
        }
        if let Room::Instead(silent) = room {
            table.remove_peer(&silent);
            self.shares.left(&silent);
        }
        if let Origin::Network(network) = origin {
            self.shares.take(peer, (network, part), now);
        }
        true
    }

    /// A step of looking around is done. libp2p looks around now and then, and whenever somebody comes
    /// into a table of less than twenty: first for who is close to us, then in each other part of the
    /// table. The former alone makes us found, so the latter is seldom let.
    pub(super) fn looked(
        &mut self,
        table: &mut Behaviour,
        query: QueryId,
        result: &kad::QueryResult,
        now: Instant,
    ) {
        // Who did not find anybody does not go on by itself, and the parts are still to be refreshed.
        if matches!(result, kad::QueryResult::Bootstrap(Ok(_)))
            && !self.goes_on(query, now)
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
        let is_due = self
            .refreshed
            .is_some_and(|then| since(then) >= PARTS - SLACK);
        if is_due || self.refreshed.is_none() {
            self.refreshed = Some(now);
        }
        if is_due {
            self.refreshing = Some(query);
        }
        is_due
    }

    fn is_time(&mut self, part: Option<u32>, now: Instant) -> bool {
        let waited = |last: &Instant| now.saturating_duration_since(*last) >= PAUSE;
        let is_time = self.crowded.get(&part).is_none_or(waited);
        if is_time {
            self.crowded.insert(part, now);
        }
        is_time
    }
}

/// Searches for peers of whom only the name is known.
#[derive(Debug, Default)]
pub(super) struct Searches(HashMap<QueryId, Search>);

#[derive(Debug)]
struct Search {
    peer: PeerId,
    /// When it is to end; none if it was told to.
    until: Option<Instant>,
}

impl Searches {
    /// Looks for a peer; false when nobody is there to be asked.
    pub(super) fn begin(&mut self, table: &mut Behaviour, peer: PeerId, now: Instant) -> bool {
        let anybody = table.kbuckets().any(|bucket| !bucket.is_empty());
        if anybody {
            let until = Some(now + SEARCH);
            let query = table.get_closest_peers(peer);
            self.0.insert(query, Search { peer, until });
        }
        anybody
    }

    /// When one is to end.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|search| search.until).min()
    }

    /// Has those end whose time is up, with what they have found.
    pub(super) fn end_due(&mut self, table: &mut Behaviour, now: Instant) {
        for (query, search) in &mut self.0 {
            if search.until.is_some_and(|until| until <= now) {
                search.until = None;
                if let Some(mut query) = table.query_mut(query) {
                    query.finish();
                }
            }
        }
    }

    /// Whom the query looks for, if it is a search.
    pub(super) fn peer(&self, query: &QueryId) -> Option<PeerId> {
        self.0.get(query).map(|search| search.peer)
    }

    /// The search is over.
    pub(super) fn ended(&mut self, query: &QueryId) {
        self.0.remove(query);
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

/// Who has a place in the table.
fn present(table: &mut Behaviour) -> HashSet<PeerId> {
    let mut peers = HashSet::new();
    for bucket in table.kbuckets() {
        peers.extend(bucket.iter().map(|entry| *entry.node.key.preimage()));
    }
    peers
}

/// The addresses of a peer that has a place in the table.
fn known(table: &mut Behaviour, peer: PeerId) -> Vec<Multiaddr> {
    let bucket = table.kbucket(peer);
    let entries = bucket.iter().flat_map(kad::KBucketRef::iter);
    let of_peer = entries.filter(|entry| *entry.node.key.preimage() == peer);
    let addresses = of_peer.map(|entry| entry.node.value.iter().cloned());
    addresses.flatten().collect()
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
            match upkeep.admits(&mut table, (peer, Origin::Near), now) {
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
        assert!(!upkeep.admits(&mut table, (late, Origin::Near), now + PAUSE.mul_f64(0.9)));
        assert!(
            upkeep.admits(&mut table, (late, Origin::Near), now + PAUSE),
            "its turn"
        );
        assert!(
            !upkeep.admits(&mut table, (late, Origin::Near), now + PAUSE),
            "the next"
        );
        let somebody = table.kbuckets().flat_map(|bucket| {
            bucket
                .iter()
                .map(|entry| *entry.node.key.preimage())
                .collect::<Vec<_>>()
        });
        let somebody = somebody.last().expect("somebody is there");
        assert!(
            upkeep.admits(&mut table, (somebody, Origin::Near), now),
            "has a place"
        );
    }

    #[tokio::test]
    async fn many_names_of_one_network_cannot_fill_a_table() {
        let mut kept = (behaviour(PeerId::random()), Upkeep::default());
        let now = Instant::now();
        let from = |n: u32| {
            let [_, _, high, low] = n.to_be_bytes();
            let ip = std::net::Ipv4Addr::new(9, 9, high, low);
            Origin::of(&Multiaddr::from(ip))
        };
        let meet = |(table, upkeep): &mut (Behaviour, Upkeep), origin, now| {
            let peer = PeerId::random();
            let admitted = upkeep.admits(table, (peer, origin), now);
            if admitted {
                add(table, peer, addresses(0));
            }
            admitted
        };
        let count = |kept: &mut (Behaviour, Upkeep)| present(&mut kept.0).len();
        // A new name every minute, for a week, none of which is met again.
        let minute = Duration::from_secs(60);
        for n in 0..7 * 24 * 60 {
            meet(&mut kept, from(n % 256), now + minute * n);
        }
        let taken = count(&mut kept);
        assert!((4..=10).contains(&taken), "{taken}");
        assert!(!meet(&mut kept, Origin::Unknown, now), "through a relay");
        // Others find their places.
        for n in 1..=40 {
            meet(&mut kept, from(n * 256), now);
        }
        assert!(count(&mut kept) >= taken + 20);
    }

    #[tokio::test]
    async fn all_parts_are_refreshed_once_an_hour_however_often_the_table_looks_around() {
        let mut table = behaviour(PeerId::random());
        add(&mut table, PeerId::random(), addresses(0));
        let mut upkeep = Upkeep::default();
        let begun = Instant::now();
        let looks: Vec<QueryId> = (0..7).map(|_| table.bootstrap().unwrap()).collect();
        let (peer, num_remaining) = (PeerId::random(), 3);
        let went = kad::QueryResult::Bootstrap(Ok(kad::BootstrapOk {
            peer,
            num_remaining,
        }));
        let failed = kad::QueryResult::Bootstrap(Err(kad::BootstrapError::Timeout {
            peer,
            num_remaining: None,
        }));
        let mut looked = |look: usize, result: &kad::QueryResult, at: Duration| {
            upkeep.looked(&mut table, looks[look], result, begun + at);
            table.query_mut(&looks[look]).is_some()
        };
        let second = Duration::from_secs(1);
        assert!(!looked(0, &went, Duration::ZERO), "the start");
        assert!(!looked(1, &went, PARTS - SLACK - second));
        looked(2, &failed, PARTS - SLACK);
        assert!(looked(3, &went, PARTS), "a failure does not count");
        assert!(looked(3, &went, PARTS + second), "each part");
        assert!(!looked(4, &went, PARTS + second * 2), "somebody has come");
        assert!(!looked(5, &went, PARTS * 2 - SLACK - second));
        assert!(looked(6, &went, PARTS * 2 - SLACK));
    }

    #[tokio::test]
    async fn a_search_ends_in_time_with_what_it_has_found() {
        let mut table = behaviour(PeerId::random());
        let mut searches = Searches::default();
        let (peer, now) = (PeerId::random(), Instant::now());
        assert!(!searches.begin(&mut table, peer, now), "nobody to ask");
        add(&mut table, PeerId::random(), addresses(0));
        assert!(searches.begin(&mut table, peer, now));
        let query = *searches.0.keys().next().unwrap();
        assert_eq!(searches.next(), Some(now + SEARCH));
        searches.end_due(&mut table, now + SEARCH.mul_f64(0.9));
        assert!(table.query_mut(&query).is_some(), "goes on");
        searches.end_due(&mut table, now + SEARCH);
        assert!(table.query_mut(&query).is_none(), "has ended");
        assert_eq!((searches.peer(&query), searches.next()), (Some(peer), None));
        searches.ended(&query);
        assert_eq!(searches.peer(&query), None);
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
