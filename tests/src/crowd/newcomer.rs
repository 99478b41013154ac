//! How soon somebody who has just arrived has bought: the real client and nodes, from the client's
//! start to the whole first answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use farthing_protocol::clock::Clock;
use farthing_protocol::frame::Frame;
use farthing_protocol::identity::NodeKey;
use farthing_protocol::net::sky::{Sky, Weather};
use farthing_protocol::net::{Config, Net, Reach};
use farthing_protocol::purchase::Endpoint;
use farthing_protocol::testing;
use tokio::time::Instant;

use crate::crowd::swarms::offer;
use crate::crowd::{CrowdError, Newcomers};
use crate::street::{Buyer, MODEL, Street, TestNet, eventually};

/// Where a newcomer arrives.
pub(super) struct Place {
    pub(super) name: &'static str,
    /// The round trip to everybody; over loopback if none.
    round_trip: Option<Duration>,
    /// Offers of others that fill the books.
    offers: usize,
}

/// The places that are measured.
pub(super) const PLACES: [Place; 3] = [
    Place {
        name: "over loopback",
        round_trip: None,
        offers: 0,
    },
    Place {
        name: "over loopback, a full market",
        round_trip: None,
        offers: 1_000,
    },
    Place {
        name: "50 ms from everybody",
        round_trip: Some(Duration::from_millis(50)),
        offers: 0,
    },
];

/// Sellers of the model that is bought.
const SELLERS: u8 = 3;

/// Has newcomers arrive one after the other.
pub(super) async fn arrive(place: Place, trials: u8) -> Result<Newcomers, CrowdError> {
    let net = match place.round_trip {
        Some(round_trip) => under_a_sky(round_trip, trials),
        None => TestNet::new(),
    };
    let street = net.sellers(usize::from(SELLERS)).buyers(0).start().await?;
    let mut street = Box::pin(fill(street, place.offers)).await?;
    let mut bought = crate::bench::figures::Sample::default();
    for _ in 0..trials {
        let begun = Instant::now();
        let under_sky = place.round_trip.is_some();
        street
            .join(move |_, config| {
                if under_sky {
                    config.network.listen = vec!["/ip4/0.0.0.0/tcp/4801".into()];
                }
            })
            .await?;
        let newcomer = street.buyers.last();
        let newcomer = newcomer.ok_or_else(|| CrowdError::Failed("nobody came".into()))?;
        loop {
            // Until it has heard of a seller there is nothing to buy.
            let market = newcomer.client().market();
            let known = market.is_some_and(|market| market.on_offer(MODEL, Endpoint::Chat) > 0);
            if known {
                break;
            }
            if begun.elapsed() > crate::street::PATIENCE {
                return Err(CrowdError::Failed("a newcomer found nobody".into()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let heard = newcomer.buy(Buyer::chat(4)).await;
        heard.map_err(|error| CrowdError::Failed(error.to_string()))?;
        bought.push(begun.elapsed());
        // It stays in the list, so that the next has another name.
        if let Some(newcomer) = street.buyers.last_mut() {
            newcomer.stop().await;
        }
    }
    street.stop().await;
    Ok(Newcomers {
        place: place.name,
        offers: place.offers + usize::from(SELLERS),
        bought,
    })
}

fn under_a_sky(round_trip: Duration, trials: u8) -> TestNet {
    let weather = Weather {
        delay: round_trip / 2,
        ..Weather::default()
    };
    let sky = Sky::new(1, weather);
    for n in (1..=SELLERS).chain(100..100 + trials) {
        sky.public(testing::node_key(n).id(), Ipv4Addr::new(9, 2, 0, n));
    }
    TestNet::new().seller_config(|_, config| {
        config.network.listen = vec!["/ip4/0.0.0.0/tcp/4801".into()];
    })
}

/// Fills the sellers' books with offers of others, who sell something else.
async fn fill(street: Street, offers: usize) -> Result<Street, CrowdError> {
    if offers == 0 {
        return Ok(street);
    }
    let config = Config {
        listen: Vec::new(),
        bootstrap: street
            .sellers
            .iter()
            .flat_map(|seller| seller.addresses())
            .collect(),
        topic: street.network.topic(),
        reach: Reach::Local,
        ..Config::default()
    };
    let (crier, mut inbox) = Net::start([0x77; 32], config).await?;
    // It can be heard once a seller is its neighbour on the topic.
    while let Some(event) = inbox.peers.recv().await {
        if matches!(event, farthing_protocol::net::PeerEvent::Neighbour(_)) {
            break;
        }
    }
    let clock = Clock::system();
    for n in 0..offers {
        let mut seed = [0x33; 32];
        if let Some(head) = seed.get_mut(..8) {
            head.copy_from_slice(&(n as u64).to_be_bytes());
        }
        let key = NodeKey::from_seed(&seed);
        let signed = offer(&key, 1, Some("crowd/model"), &clock);
        let bytes = signed.and_then(|signed| signed.encode().ok());
        let bytes = bytes.ok_or_else(|| CrowdError::Failed("an offer cannot be made".into()))?;
        crier.publish(bytes).await.ok();
        // Within the rate one neighbour may bring.
        tokio::time::sleep(Duration::from_millis(6)).await;
    }
    let wanted = offers * 95 / 100;
    let full = || street.sellers.iter().all(|seller| seller.known() >= wanted);
    eventually("the books are full", full).await?;
    crier.stop().await;
    Ok(street)
}
