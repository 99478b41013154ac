//! Cut off at every await between a payment's entry and its receipt: it is taken once, or it may be
//! used again, and the books say which.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use axum::body::Bytes;
use farthing_protocol::chain::MemoryChain;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::frame::Part;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, Usage};
use farthing_protocol::store::Store;
use farthing_protocol::testing;
use farthing_protocol::x402::PERMIT2;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::http::window::{Window, Word};
use crate::ledger::{OpenPurchase, Reservation, Served, schema};
use crate::serve::{Counter, Flush};
use crate::settlement::{Ground, Policy};

const START: Timestamp = Timestamp(1_790_000_000_000);
const GAS: u128 = 1_000_000_000_000_000_000;
const WEALTH: Amount = Amount::atoms(1_000_000);
const CEILING: Amount = Amount::atoms(1_000);
const USED: Amount = Amount::atoms(300);

/// A way to be paid for one purchase, and when that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Exact,
    UptoDocument,
    UptoStream,
}

/// A future that is dropped in the middle of what it does.
struct Mortal<F> {
    life: Pin<Box<F>>,
    polls: u32,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    /// Whether it came to its end.
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let Some(left) = self.polls.checked_sub(1) else {
            return Poll::Ready(false);
        };
        self.polls = left;
        self.life.as_mut().poll(context).map(|()| true)
    }
}

struct World {
    memory: MemoryChain,
    clock: Clock,
    dir: TempDir,
}

struct Office {
    chain: Chain,
    ledger: Ledger,
    settlement: Settlement,
    task: JoinHandle<()>,
    ordered: Arc<Ordered>,
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual(START);
        let memory = MemoryChain::new(testing::network(), clock.clone());
        let payer = testing::evm_key(9).address();
        memory.mint(payer, WEALTH);
        memory.approve(payer, PERMIT2, WEALTH);
        memory.fund(testing::evm_key(1).address(), GAS);
        Self {
            memory,
            clock,
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    async fn open(&self) -> Office {
        let store = Store::open(self.dir.path(), schema()).expect("opens");
        let ledger = Ledger::open(store, self.clock.now()).await.expect("opens");
        let chain = Chain::memory(testing::network(), &self.memory);
        let ground = Ground {
            chain: chain.clone(),
            ledger: ledger.clone(),
            key: testing::evm_key(1),
            clock: self.clock.clone(),
        };
        let (settlement, task) = Settlement::start(ground, Policy::default());
        Office {
            chain,
            ledger,
            settlement,
            task,
            ordered: Arc::default(),
        }
    }

    async fn paid(&self, office: &Office) -> Amount {
        let payer = testing::evm_key(9).address();
        let rest = office.chain.token_balance(payer).await.expect("answers");
        WEALTH.saturating_sub(rest)
    }
}

impl Office {
    /// Ends where it stands; what the store has taken is kept.
    async fn crash(self) {
        self.task.abort();
        self.task.await.ok();
        self.ledger.store().stop().await;
    }

    fn purse(&self) -> Purse<'_> {
        Purse {
            chain: &self.chain,
            ordered: &self.ordered,
            ledger: &self.ledger,
            settlement: &self.settlement,
        }
    }

    /// A sale whose payment is entered and reserved. Its words go nowhere but have room.
    async fn begin(&self, way: Way) -> (Window, mpsc::Receiver<Word>, Reservation) {
        let (id, config, once) = payment(way);
        let means = Means::Once {
            once,
            id,
            config,
            funds: WEALTH,
            least: Amount::ZERO,
            settlement: self.settlement.clone(),
            ordered: Arc::clone(&self.ordered),
            streams: way == Way::UptoStream,
        };
        let (window, words) = Window::new(self.ledger.clone(), means, true);
        window.enter().await.expect("is entered");
        let request = RequestId(payment::once_request(id));
        let reservation = self.ledger.reserve(id, request, CEILING);
        (window, words, reservation.expect("is covered"))
    }

    /// A sale from the payment's entry to its receipt, with the calls that [`crate::serve`] makes.
    async fn sell(&self, way: Way) {
        let (mut window, _words, reservation) = self.begin(way).await;
        let (id, ..) = payment(way);
        let due = if way == Way::Exact { CEILING } else { USED };
        window.before(due).await.expect("is taken");
        let piece = Bytes::from_static(b"{}");
        let handed = window.deliver(piece, Part::Last, Usage::default(), Flush::Now);
        handed.await.expect("is heard");
        let purchase = OpenPurchase {
            channel: id,
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage::default(),
            cost: due.to_cost().expect("small"),
            started: START,
        };
        let checkpoint = self.ledger.checkpoint(&reservation, &purchase).await;
        checkpoint.expect("is sent");
        let served = Served {
            purchase,
            finished: START,
            ending: Ending::Complete,
        };
        let receipt = self.ledger.finish(reservation, served).await;
        window.after(receipt.expect("ends").charged).await;
    }
}

fn payment(way: Way) -> (ChannelId, ChannelConfig, Once) {
    let (key, claim) = (testing::evm_key(9), testing::evm_key(1).address());
    let (to, until) = (Address::repeat_byte(0x5e), START.seconds() + 300);
    let once = match way {
        Way::Exact => {
            let message = Transfer {
                from: key.address(),
                to,
                amount: CEILING,
                valid_after: 0,
                valid_before: until,
                nonce: B256::repeat_byte(1),
            };
            let domain = testing::network().token_domain();
            Once::Exact(Signed::sign(message, &domain, &key))
        }
        Way::UptoDocument | Way::UptoStream => {
            let message = Permit {
                owner: key.address(),
                token: testing::network().token,
                ceiling: CEILING,
                nonce: U256::from(1),
                deadline: until,
                to,
                facilitator: claim,
                valid_after: 0,
            };
            let domain = Permit::domain(testing::network().chain_id);
            Once::Upto(Signed::sign(message, &domain, &key))
        }
    };
    let config = ChannelConfig {
        token: testing::network().token,
        ..once.terms(claim)
    };
    (config.id(&testing::network()), config, once)
}

/// Sells with a seller that dies after so many polls, and then wakes up. Returns whether it died.
async fn die_after(polls: u32, way: Way) -> bool {
    let world = World::new();
    let office = world.open().await;
    let lived = Mortal {
        life: Box::pin(office.sell(way)),
        polls,
    };
    let lived = lived.await;
    office.crash().await;
    let office = world.open().await;
    let mut left = office.ledger.untaken().expect("reads");
    let waking = async {
        while !left.is_empty() {
            left = resume(office.purse(), std::mem::take(&mut left)).await;
        }
    };
    let woke = tokio::time::timeout(Duration::from_secs(60), waking).await;
    assert!(woke.is_ok(), "{way:?} after {polls} polls: it never ends");
    let (id, ..) = payment(way);
    let said = format!("{way:?} after {polls} polls");
    let paid = world.paid(&office).await;
    let due = if way == Way::Exact { CEILING } else { USED };
    assert!(paid.is_zero() || paid == due, "{said}: {paid}");
    let view = office.ledger.channel(id);
    let charged = view.map(|view| view.channel.charged());
    let receipts = office.ledger.receipts(id, 0, 9).expect("reads");
    assert_eq!(
        view.is_some(),
        !paid.is_zero(),
        "{said}: it may be used again, or is known"
    );
    let claimed = view.map_or(Amount::ZERO, |view| view.channel.claimed());
    assert_eq!(claimed, paid, "{said}: the books say what was taken");
    let unclaimed = view.map(|view| view.channel.unclaimed());
    assert!(unclaimed.is_none_or(Amount::is_zero), "{said}: it is owed");
    // What has a receipt was paid, to the atom.
    if !receipts.is_empty() {
        assert_eq!((receipts.len(), charged), (1, Some(paid)), "{said}");
    }
    if lived {
        assert_eq!((receipts.len(), paid), (1, due), "{said}");
    }
    // A second waking finds nothing to do.
    office.crash().await;
    let office = world.open().await;
    let left = office.ledger.untaken().expect("reads");
    assert!(left.is_empty(), "{said}: {left:?}");
    assert_eq!(world.paid(&office).await, paid, "{said}");
    office.crash().await;
    !lived
}

#[tokio::test]
async fn cut_off_at_any_await_a_single_payment_is_taken_once_or_may_be_used_again() {
    for way in [Way::Exact, Way::UptoDocument, Way::UptoStream] {
        let mut polls = 0;
        while die_after(polls, way).await {
            polls += 1;
        }
        assert!(polls > 4, "{way:?}: only {polls} places to die in");
    }
}

#[tokio::test]
async fn regression_a_payment_whose_taking_ended_in_doubt_is_free_again_without_a_restart() {
    let world = World::new();
    let office = world.open().await;
    let (mut window, _words, reservation) = office.begin(Way::Exact).await;
    world.memory.set_away(true);
    assert!(window.before(CEILING).await.is_err());
    drop(reservation);
    window.forget().await;
    let (id, ..) = payment(Way::Exact);
    assert_eq!(office.ledger.untaken().expect("reads").len(), 1);
    world.memory.set_away(false);
    collect(office.purse()).await;
    assert!(office.ledger.untaken().expect("reads").is_empty());
    assert!(office.ledger.channel(id).is_none(), "it may be used again");
    office.crash().await;
}

#[tokio::test]
async fn regression_what_is_owed_past_its_time_is_not_tried_for_ever() {
    let world = World::new();
    let office = world.open().await;
    world.memory.set_contrary(true);
    office.sell(Way::UptoStream).await;
    let (id, ..) = payment(Way::UptoStream);
    collect(office.purse()).await;
    assert_eq!(office.ledger.untaken().expect("reads").len(), 1);
    world.clock.advance(Duration::from_secs(301));
    world.memory.mine(1);
    collect(office.purse()).await;
    assert!(office.ledger.untaken().expect("reads").is_empty());
    let owed = office
        .ledger
        .channel(id)
        .map(|view| view.channel.unclaimed());
    assert_eq!(owed, Some(USED), "it stays owed");
    office.crash().await;
}
