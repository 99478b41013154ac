//! A seller's books with many receipts: how fast they take one more, find one, turn a page, let
//! old ones go, and how much disk they need.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::{B256, U256, keccak256};
use farthing_node::ledger::{
    Compared, Ledger, LedgerError, Observation, OpenPurchase, RECEIPTS, SERVED, Served, schema,
};
use farthing_protocol::amount::{Amount, Cost, MICRO};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::Signed;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::retention::{Archive, Retention};
use farthing_protocol::root::{self, CoSigned, ReceiptRoot};
use farthing_protocol::store::{OpenError, Store};
use farthing_protocol::testing;
use farthing_protocol::voucher::Voucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

/// When the first receipt ends.
pub const BEGIN: Timestamp = Timestamp(1_767_225_600_000);
/// Purchases that end together.
const TOGETHER: usize = 256;
/// What a channel holds.
const RICH: Amount = Amount::atoms(1_000_000_000_000);

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The books.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The books do not agree with what was written.
    #[error("{0}")]
    Wrong(&'static str),
}

/// A seller's books and the channels in them.
#[derive(Debug)]
pub struct Books {
    /// The books.
    pub ledger: Ledger,
    /// The channels.
    pub channels: Vec<(ChannelId, ChannelConfig)>,
    dir: PathBuf,
    sold: u64,
}

impl Books {
    /// Opens books with so many channels in a directory.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn open(dir: &Path, channels: u64) -> Result<Self, BooksError> {
        let ledger = Ledger::open(Store::open(dir, schema())?, BEGIN).await?;
        let mut books = Self {
            ledger,
            channels: Vec::new(),
            dir: dir.to_owned(),
            sold: 0,
        };
        let network = testing::network();
        for lane in 0..channels {
            let config = ChannelConfig {
                salt: B256::from(U256::from(lane)),
                ..testing::channel_config()
            };
            let id = config.id(&network);
            if books.ledger.channel(id).is_none() {
                books.fund(id, config).await?;
            }
            books.channels.push((id, config));
        }
        Ok(books)
    }

    async fn fund(&self, id: ChannelId, config: ChannelConfig) -> Result<(), BooksError> {
        self.seen(id, config, Amount::ZERO).await?;
        let domain = testing::network().domain();
        let key = testing::evm_key(8);
        let voucher = Voucher {
            channel: id,
            ceiling: RICH,
        };
        let signed = Signed::sign(voucher, &domain, &key);
        let verified = signed.verify(&domain, key.address());
        let verified = verified.map_err(|_| BooksError::Wrong("a voucher is not its own"))?;
        self.ledger.take(verified).await?;
        Ok(())
    }

    async fn seen(
        &self,
        id: ChannelId,
        config: ChannelConfig,
        claimed: Amount,
    ) -> Result<(), BooksError> {
        let seen = Observation {
            balance: RICH,
            claimed,
            armed: Amount::ZERO,
        };
        self.ledger.observe(config, id, seen).await?;
        Ok(())
    }

    /// The name of a purchase.
    #[must_use]
    pub fn request(n: u64) -> RequestId {
        RequestId(keccak256(n.to_be_bytes()))
    }

    /// Sells one atom's worth, a millisecond after the one before, on one channel after the other.
    async fn one(&self, n: u64) -> Result<(), BooksError> {
        let place = usize::try_from(n).unwrap_or(0) % self.channels.len();
        let (id, _) = self.channels[place];
        let finished = Timestamp(BEGIN.0 + n);
        let reservation = self
            .ledger
            .reserve(id, Self::request(n), Amount::atoms(1))?;
        let purchase = OpenPurchase {
            channel: id,
            request_hash: B256::from(U256::from(n)),
            response_hash: keccak256([7]),
            model_hash: keccak256([8]),
            offer: OfferHash(keccak256([9])),
            usage: Usage {
                prompt: 100,
                cached: 0,
                completion: 200,
            },
            cost: Cost::micro_atoms(MICRO),
            started: finished,
        };
        let served = Served {
            purchase,
            finished,
            ending: Ending::Complete,
        };
        self.ledger.finish(reservation, served).await?;
        Ok(())
    }

    /// Sells so many, some together.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn sell(&mut self, count: u64) -> Result<(), BooksError> {
        self.sell_by(count, TOGETHER).await.map(drop)
    }

    /// Sells so many, so many of them at once; returns how long each took until it was on disk.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn sell_by(
        &mut self,
        count: u64,
        at_once: usize,
    ) -> Result<Vec<Duration>, BooksError> {
        let end = self.sold + count;
        let (mut running, mut times) = (FuturesUnordered::new(), Vec::new());
        let books = &*self;
        for n in books.sold..end {
            if running.len() >= at_once
                && let Some(time) = running.next().await
            {
                times.push(time?);
            }
            running.push(async move {
                let begun = Instant::now();
                books.one(n).await.map(|()| begun.elapsed())
            });
        }
        while let Some(time) = running.next().await {
            times.push(time?);
        }
        drop(running);
        self.sold = end;
        Ok(times)
    }

    /// Goes on after so many purchases, on books that were opened again.
    pub const fn resume(&mut self, sold: u64) {
        self.sold = sold;
    }

    /// Both sign the root over all receipts of a channel.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn cosign(&self, place: usize) -> Result<ReceiptRoot, BooksError> {
        let (id, config) = self.channels[place];
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        let (domain, key) = (root::domain(&testing::network()), testing::evm_key(8));
        // A root that cannot be right is answered by the right one.
        let wrong = ReceiptRoot {
            channel: id,
            count: view.channel.receipts(),
            cumulative: Amount::ZERO,
            root: B256::ZERO,
        };
        let verified = Signed::sign(wrong, &domain, &key).verify(&domain, config.payer_authorizer);
        let verified = verified.map_err(|_| BooksError::Wrong("a root is not its own"))?;
        let Compared::Differs(own) = self.ledger.compare(&verified)? else {
            return Err(BooksError::Wrong("the books know no root"));
        };
        let buyer = Signed::sign(own, &domain, &key).signature;
        let seller = Signed::sign(own, &domain, &testing::evm_key(1)).signature;
        let root = own;
        self.ledger
            .cosign(CoSigned {
                root,
                buyer,
                seller,
            })
            .await?;
        Ok(root)
    }

    /// The chain says that all charges of a channel are claimed.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn claim(&self, place: usize) -> Result<(), BooksError> {
        let (id, config) = self.channels[place];
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        self.seen(id, config, view.channel.charged()).await
    }

    /// Bytes of all files.
    ///
    /// # Errors
    /// The disk's.
    pub fn bytes(&self) -> Result<u64, BooksError> {
        let (mut sum, mut folders) = (0, VecDeque::from([self.dir.clone()]));
        while let Some(folder) = folders.pop_front() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push_back(entry.path());
                } else {
                    sum += entry.metadata()?.len();
                }
            }
        }
        Ok(sum)
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Figures {
    /// Receipts in the books.
    pub receipts: u64,
    /// To append all.
    pub append: Duration,
    /// To append the last hundredth.
    pub append_last: Duration,
    /// To find one by its purchase.
    pub lookup: Duration,
    /// To read 256 in order.
    pub page: Duration,
    /// To open the books again.
    pub reopen: Duration,
    /// To prune, and how many went.
    pub prune: (Duration, u64),
    /// Bytes on disk before that.
    pub bytes: u64,
}

/// Measures books with `count` receipts on `channels` channels; `prune` of them go at the end.
///
/// # Errors
/// [`BooksError`].
pub async fn measure(
    dir: &Path,
    count: u64,
    channels: u64,
    prune: u64,
) -> Result<Figures, BooksError> {
    let mut books = Books::open(dir, channels).await?;
    let hundredth = (count / 100).max(1);
    let begun = Instant::now();
    books.sell(count - hundredth).await?;
    let almost = Instant::now();
    books.sell(hundredth).await?;
    let (append, append_last) = (begun.elapsed(), almost.elapsed());
    let looks = 1_000.min(count);
    let spread = |n: u64| keccak_place(n, count);
    let begun = Instant::now();
    for n in 0..looks {
        let request = Books::request(spread(n));
        let store = books.ledger.store();
        let place = store.get(&SERVED, &request.0).map_err(LedgerError::from)?;
        let place = place.ok_or(BooksError::Wrong("a purchase is not found"))?;
        let receipt = store.get(&RECEIPTS, &place).map_err(LedgerError::from)?;
        let receipt = receipt.ok_or(BooksError::Wrong("a receipt is not found"))?;
        if receipt.request != request {
            return Err(BooksError::Wrong("another receipt was found"));
        }
    }
    let lookup = begun.elapsed() / u32::try_from(looks).unwrap_or(1);
    let each = count / channels;
    let begun = Instant::now();
    for n in 0..100 {
        let (id, _) = books.channels[usize::try_from(n % channels).unwrap_or(0)];
        let from = keccak_place(n, each.saturating_sub(256).max(1));
        books.ledger.receipts(id, from, 256)?;
    }
    let page = begun.elapsed() / 100;
    let bytes = books.bytes()?;
    books.ledger.store().stop().await;
    drop(books);
    let begun = Instant::now();
    let books = Books::open(dir, channels).await?;
    let reopen = begun.elapsed();
    for place in 0..books.channels.len() {
        books.cosign(place).await?;
        books.claim(place).await?;
    }
    let retention = Retention {
        keep: Duration::from_secs(86_400 * 365 * 100),
        most: count - prune,
    };
    let now = Timestamp(BEGIN.0 + count).plus(farthing_protocol::retention::MIN_AGE);
    let begun = Instant::now();
    let archive = Archive::new(dir.join("archive"));
    let gone = books.ledger.prune(&retention, Some(&archive), now).await?;
    let prune = (begun.elapsed(), gone);
    books.ledger.store().stop().await;
    Ok(Figures {
        receipts: count,
        append,
        append_last,
        lookup,
        page,
        reopen,
        prune,
        bytes,
    })
}

/// A place that follows no order.
fn keccak_place(n: u64, below: u64) -> u64 {
    let hash = keccak256(n.to_le_bytes());
    let (first, _) = hash.split_at(8);
    let number = first
        .iter()
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    number % below.max(1)
}
