//! The offers a node knows: at most one per seller, never an older one again, bounded.
//!
//! Pure: the time is an argument. Sellers and buyers keep the same book; a buyer chooses from
//! it, and either hands it to a newcomer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::codec;
use crate::frame::Frame;
use crate::identity::NodeId;
use crate::offer::{OfferError, SignedOffer, VerifiedOffer};
use crate::x402::Network;

/// The most sellers remembered.
pub const MAX_SELLERS: usize = 20_000;

/// What became of an offer that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// New: keep it, pass it on.
    Fresh(Arc<VerifiedOffer>),
    /// Known, older than what we have, or no room: do not pass it on, blame nobody.
    Old,
    /// Bad: do not pass it on, blame the peer that sent it.
    Bad(BadOffer),
}

/// Why an offer is bad.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOffer {
    /// Not a frame.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// Not a believable offer.
    #[error(transparent)]
    Offer(#[from] OfferError),
}

#[derive(Debug)]
struct Entry {
    seq: u64,
    expires: Timestamp,
    /// Dropped when it expires; `seq` stays, so that an older offer cannot come back.
    offer: Option<Arc<VerifiedOffer>>,
}

/// Checks an offer that somebody sent, without a book: signatures take a while, and whoever keeps
/// the book need not hold it meanwhile.
///
/// # Errors
/// What became of it: [`Heard::Old`] or [`Heard::Bad`].
pub fn check(
    offer: SignedOffer,
    network: &Network,
    now: Timestamp,
) -> Result<VerifiedOffer, Heard> {
    offer.verify(network, now).map_err(|error| match error {
        // Late by a moment on a slow path is nobody's fault.
        OfferError::Expired | OfferError::OtherNetwork => Heard::Old,
        error => Heard::Bad(error.into()),
    })
}

/// The book of offers on one network.
#[derive(Debug)]
pub struct Book {
    network: Network,
    sellers: HashMap<NodeId, Entry>,
    /// When each seller's offer ends, so that a flood of new ones need not be compared with all.
    ends: BTreeSet<(Timestamp, NodeId)>,
    max: usize,
}

impl Book {
    /// An empty book for offers on `network`.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self {
            network,
            sellers: HashMap::new(),
            ends: BTreeSet::new(),
            max: MAX_SELLERS,
        }
    }

    /// Takes the bytes of a gossip message.
    pub fn hear_bytes(&mut self, bytes: &[u8], now: Timestamp) -> Heard {
        match SignedOffer::decode(bytes) {
            Ok(offer) => self.hear(offer, now),
            Err(error) => Heard::Bad(error.into()),
        }
    }

    /// Takes an offer that somebody sent.
    pub fn hear(&mut self, offer: SignedOffer, now: Timestamp) -> Heard {
        match check(offer, &self.network, now) {
            Err(heard) => heard,
            Ok(offer) => self.take(Arc::new(offer), now),
        }
    }

    /// Takes an offer that is checked already.
    pub fn take(&mut self, offer: Arc<VerifiedOffer>, now: Timestamp) -> Heard {
        let (seller, seq) = (offer.offer().seller, offer.offer().seq);
        let known = self.sellers.get(&seller);
        // The newest may come again when its text was dropped: by a clock that was wrong.
        let is_old = |entry: &Entry| match entry.offer {
            Some(_) => entry.seq >= seq,
            None => entry.seq > seq,
        };
        if known.is_some_and(is_old) {
            return Heard::Old;
        }
        if known.is_none() && self.sellers.len() >= self.max && !self.make_room(now) {
            return Heard::Old;
        }
        let expires = offer.offer().expires;
        let entry = Entry {
            seq,
            expires,
            offer: Some(Arc::clone(&offer)),
        };
        if let Some(before) = self.sellers.insert(seller, entry) {
            self.ends.remove(&(before.expires, seller));
        }
        self.ends.insert((expires, seller));
        Heard::Fresh(offer)
    }

    /// Forgets the seller whose offer expired longest ago, if any has expired.
    fn make_room(&mut self, now: Timestamp) -> bool {
        let oldest = self.ends.first().filter(|(end, _)| *end <= now).copied();
        oldest.is_some_and(|(end, seller)| {
            self.ends.remove(&(end, seller));
            self.sellers.remove(&seller).is_some()
        })
    }

    /// The unexpired offers.
    pub fn offers(&self, now: Timestamp) -> impl Iterator<Item = &Arc<VerifiedOffer>> {
        let live = move |entry: &&Entry| entry.expires > now;
        self.sellers
            .values()
            .filter(live)
            .filter_map(|entry| entry.offer.as_ref())
    }

    /// One seller's unexpired offer.
    #[must_use]
    pub fn offer(&self, seller: NodeId, now: Timestamp) -> Option<&Arc<VerifiedOffer>> {
        self.sellers
            .get(&seller)
            .filter(|entry| entry.expires > now)?
            .offer
            .as_ref()
    }

    /// A page of the book for a newcomer, in a stable order: from the `from`th seller on.
    #[must_use]
    pub fn page(&self, from: usize, size: usize, now: Timestamp) -> Vec<SignedOffer> {
        let mut offers: Vec<_> = self.offers(now).collect();
        offers.sort_unstable_by_key(|offer| offer.offer().seller);
        offers
            .into_iter()
            .skip(from)
            .take(size)
            .map(|offer| offer.signed().clone())
            .collect()
    }

    /// Drops the texts of expired offers. Call it now and then.
    pub fn sweep(&mut self, now: Timestamp) {
        for entry in self
            .sellers
            .values_mut()
            .filter(|entry| entry.expires <= now)
        {
            entry.offer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Label;
    use crate::testing;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn an_older_offer_cannot_come_back_even_after_expiry() {
        let mut book = Book::new(testing::network());
        let old = testing::signed_offer(1, NOW);
        let new = testing::signed_offer(2, NOW);
        assert!(matches!(book.hear(new, NOW), Heard::Fresh(_)));
        assert_eq!(book.hear(old.clone(), NOW), Heard::Old);
        book.sweep(NOW.plus(Duration::from_secs(3600)));
        assert_eq!(book.offers(NOW.plus(Duration::from_secs(3600))).count(), 0);
        assert_eq!(book.hear(old, NOW), Heard::Old);
    }

    #[test]
    fn regression_the_newest_offer_comes_back_when_a_wrong_clock_dropped_it() {
        let mut book = Book::new(testing::network());
        let (old, new) = (testing::signed_offer(1, NOW), testing::signed_offer(2, NOW));
        book.hear(new.clone(), NOW);
        assert_eq!(book.hear(new.clone(), NOW), Heard::Old, "it is known");
        book.sweep(NOW.plus(Duration::from_secs(86_400)));
        assert_eq!(book.offers(NOW).count(), 0);
        assert_eq!(book.hear(old, NOW), Heard::Old);
        assert!(matches!(book.hear(new, NOW), Heard::Fresh(_)));
        assert_eq!(book.offers(NOW).count(), 1);
    }

    #[test]
    fn garbage_and_forged_offers_are_bad_but_late_ones_are_only_old() {
        let mut book = Book::new(testing::network());
        assert!(matches!(
            book.hear_bytes(&[], NOW),
            Heard::Bad(BadOffer::Codec(_))
        ));
        let mut forged = testing::signed_offer(1, NOW);
        forged.signature.0[0] ^= 1;
        assert!(matches!(
            book.hear(forged, NOW),
            Heard::Bad(BadOffer::Offer(_))
        ));
        let offer = testing::signed_offer(1, NOW);
        assert_eq!(
            book.hear(offer, NOW.plus(Duration::from_secs(3600))),
            Heard::Old
        );
    }

    #[test]
    fn two_clocks_that_differ_a_little_hear_each_other_and_those_that_differ_much_do_not() {
        let seconds = Duration::from_secs;
        let noon = NOW.plus(seconds(86_400));
        let offer = || testing::signed_offer(1, noon);
        let heard = |at| Book::new(testing::network()).hear(offer(), at);
        // The reader's clock is half a minute behind the seller's, or as much ahead.
        assert!(matches!(heard(NOW.plus(seconds(86_370))), Heard::Fresh(_)));
        assert!(matches!(heard(noon.plus(seconds(30))), Heard::Fresh(_)));
        assert!(!matches!(heard(NOW), Heard::Fresh(_)), "of the future");
        assert!(!matches!(
            heard(noon.plus(seconds(86_400))),
            Heard::Fresh(_)
        ));
    }

    /// An offer whose JSON was changed by its own seller.
    fn rewritten(
        change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    ) -> SignedOffer {
        let offer = testing::offer_of(1, 1, NOW);
        let json = serde_json::to_value(&offer).expect("JSON");
        let mut fields = json.as_object().expect("an object").clone();
        change(&mut fields);
        let bytes = serde_json::to_vec(&fields).expect("JSON");
        SignedOffer {
            signature: testing::node_key(1).sign(Label::Offer, &bytes),
            offer: bytes.into(),
        }
    }

    #[test]
    fn an_offer_without_an_end_is_no_offer() {
        let mut book = Book::new(testing::network());
        let endless = rewritten(|fields| {
            fields.remove("expires");
        });
        assert!(matches!(book.hear(endless, NOW), Heard::Bad(_)));
        let never = rewritten(|fields| {
            fields.insert("expires".into(), 0.into());
        });
        assert_eq!(book.hear(never, NOW), Heard::Old);
        let too_long = rewritten(|fields| {
            fields.insert("expires".into(), u64::MAX.into());
        });
        assert!(matches!(book.hear(too_long, NOW), Heard::Bad(_)));
        let future = rewritten(|fields| {
            let day = NOW.plus(Duration::from_secs(86_400));
            fields.insert("issued".into(), day.0.into());
            fields.insert("expires".into(), day.plus(Duration::from_secs(60)).0.into());
        });
        assert!(matches!(book.hear(future, NOW), Heard::Bad(_)));
        assert!(matches!(book.hear(rewritten(|_| {}), NOW), Heard::Fresh(_)));
    }

    #[test]
    fn an_offer_with_fields_of_a_later_version_is_read_kept_and_passed_on() {
        let mut book = Book::new(testing::network());
        let later = rewritten(|fields| {
            fields.insert("bond".into(), serde_json::json!({"atoms": "5"}));
            let models = fields.get_mut("models").and_then(|m| m.as_array_mut());
            let model = models
                .and_then(|m| m.first_mut())
                .and_then(|m| m.as_object_mut());
            let model = model.expect("a model");
            model.insert("energy".into(), "wind".into());
            let endpoints = model
                .get_mut("endpoints")
                .and_then(|list| list.as_array_mut());
            endpoints.expect("a list").push("telepathy".into());
        });
        let Heard::Fresh(heard) = book.hear(later.clone(), NOW) else {
            panic!("it is not read");
        };
        assert_eq!(heard.offer().models, testing::offer_of(1, 1, NOW).models);
        assert_eq!(book.page(0, 9, NOW), [later], "byte for byte");
    }

    #[test]
    fn a_full_book_keeps_what_is_alive() {
        let mut book = Book {
            max: 2,
            ..Book::new(testing::network())
        };
        for seed in [1, 2] {
            assert!(matches!(
                book.hear(testing::signed_offer_of(seed, 1, NOW), NOW),
                Heard::Fresh(_)
            ));
        }
        assert_eq!(
            book.hear(testing::signed_offer_of(3, 1, NOW), NOW),
            Heard::Old
        );
        let later = NOW.plus(Duration::from_secs(3600));
        let offer = testing::signed_offer_of(3, 1, later);
        assert!(matches!(book.hear(offer, later), Heard::Fresh(_)));
        assert_eq!(book.page(0, 10, later).len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_heard_a_book_is_bounded_and_forgets_only_what_has_ended(
            said in proptest::collection::vec((1_u8..30, 0_u64..4, 0_u64..400), 0..80),
        ) {
            let mut book = Book {
                max: 8,
                ..Book::new(testing::network())
            };
            let mut now = NOW;
            for (seed, seq, wait) in said {
                now = now.plus(Duration::from_secs(wait));
                let live: Vec<NodeId> = book.offers(now).map(|offer| offer.offer().seller).collect();
                book.hear(testing::signed_offer_of(seed, seq, now), now);
                for seller in live {
                    proptest::prop_assert!(book.offer(seller, now).is_some());
                }
                proptest::prop_assert!(book.sellers.len() <= 8);
                let ends = book.sellers.iter().map(|(seller, entry)| (entry.expires, *seller));
                proptest::prop_assert_eq!(&book.ends, &ends.collect::<BTreeSet<_>>());
            }
        }
    }
}
