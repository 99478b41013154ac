//! Keeps what is believed of sellers in step with what happens, and tells others of it if we are
//! to.
//!
//! A living part without questions: every second the reputation takes in what the market saw,
//! now and then it is written, and at its own pace what became of our purchases is signed and
//! handed to some of the peers at hand. It ends when its token is cancelled, after a last write.

use std::time::Duration;

use farthing_protocol::clock::Clock;
use farthing_protocol::grapevine::{Grapevine, tell};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Net;
use farthing_protocol::roll::Roll;
use farthing_protocol::testimony::{RECENT, SignedTestimony, Testimony};
use farthing_protocol::x402::ChannelId;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::channels;
use crate::client::probe::Probing;
use crate::config::Config;
use crate::ledger::{Account, Ledger, LedgerError};
use crate::market::Market;
use crate::reputation::judgement::Rules;
use crate::reputation::{self, Reputation};
use crate::wallet::Wallet;

/// How often news are taken in.
const LOOK: Duration = Duration::from_secs(1);
/// How often experience is written.
const WRITE: Duration = Duration::from_secs(10);
/// To how many peers a testimony is handed; they hand it on.
const LISTENERS: usize = 8;
/// Testimonies handed over at once.
const TELLING: usize = 8;
/// The most sellers spoken of at a time.
const SUBJECTS: usize = 64;

/// What is believed of sellers, and where it comes from.
#[derive(Debug)]
pub(in crate::client) struct Repute {
    pub(in crate::client) reputation: Reputation,
    pub(in crate::client) roll: Roll,
    pub(in crate::client) probing: Probing,
}

impl Repute {
    /// What was known before, and the parts that keep it up to date.
    pub(in crate::client) fn open(
        config: &Config,
        ground: &channels::Ground,
        market: &Market,
    ) -> Result<(Self, Living), LedgerError> {
        let (clock, ledger) = (&ground.clock, &ground.ledger);
        let roll = Roll::new(ground.chain.network().clone(), clock.clone());
        let known = reputation::Ground {
            store: ledger.store().clone(),
            market: market.clone(),
            roll: roll.clone(),
            clock: clock.clone(),
            us: ground.wallet.payer(),
        };
        let settings = &config.reputation;
        let rules = Rules {
            credit: settings.credit,
            stake: settings.stake,
            listen: settings.listen,
        };
        let reputation = Reputation::open(known, rules)?;
        let stands = Ground {
            net: ground.net.clone(),
            roll: roll.clone(),
            wallet: ground.wallet.clone(),
            ledger: ledger.clone(),
            clock: clock.clone(),
            reputation: reputation.clone(),
        };
        let renown = Renown::new(stands, settings.testify.then_some(settings.testify_every));
        let (net, chain) = (ground.net.clone(), ground.chain.clone());
        let grapevine = Grapevine::new(net, chain, roll.clone());
        let repute = Self {
            reputation,
            roll,
            probing: Probing::default(),
        };
        let living = Living {
            renown,
            grapevine: settings.listen.then_some(grapevine),
        };
        Ok((repute, living))
    }
}

/// The parts that keep it up to date.
pub(in crate::client) struct Living {
    renown: Renown,
    /// None if others are not listened to.
    grapevine: Option<Grapevine>,
}

impl Living {
    /// Starts them; they end with the token.
    pub(in crate::client) fn spawn(self, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let heard = self.grapevine.map(|grapevine| {
            let end = stop.clone().cancelled_owned();
            tokio::spawn(grapevine.run(end))
        });
        let renown = tokio::spawn(self.renown.run(stop.clone()));
        heard.into_iter().chain([renown]).collect()
    }
}

/// What the living part stands on.
struct Ground {
    net: Net,
    roll: Roll,
    wallet: Wallet,
    ledger: Ledger,
    clock: Clock,
    reputation: Reputation,
}

/// The living part.
pub(in crate::client) struct Renown {
    ground: Ground,
    /// How often others are told; never, if not.
    testify: Option<Duration>,
    telling: JoinSet<()>,
}

impl Renown {
    fn new(ground: Ground, testify: Option<Duration>) -> Self {
        Self {
            ground,
            testify,
            telling: JoinSet::new(),
        }
    }

    pub(in crate::client) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut written = Instant::now();
        let mut told = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Whoever did not hear it asks for it.
                Some(_) = self.telling.join_next() => continue,
                _ = ticks.tick() => self.ground.reputation.refresh(),
            }
            if written.elapsed() >= WRITE {
                self.write().await;
                written = Instant::now();
            }
            if self.testify.is_some_and(|every| told.elapsed() >= every) {
                self.testify();
                told = Instant::now();
            }
        }
        self.ground.reputation.refresh();
        self.write().await;
    }

    async fn write(&self) {
        if let Err(error) = self.ground.reputation.save().await {
            tracing::warn!(%error, "what became of purchases is not written yet");
        }
    }

    /// Tells some peers of the sellers bought from lately.
    fn testify(&mut self) {
        let peers = self.ground.net.peers();
        for (id, account) in self.ground.subjects() {
            let said = match self.ground.testimony(&account, id) {
                Ok(Some(said)) => said,
                Ok(None) => continue,
                Err(error) => return tracing::warn!(%error, "no testimony could be made"),
            };
            self.ground.roll.hear(said.clone(), self.ground.net.local());
            // The seller itself is the last who should carry it, but it may be the only one.
            let mut listeners = peers.clone();
            listeners.sort_by_key(|peer| *peer == account.seller);
            for peer in listeners.into_iter().take(LISTENERS) {
                self.hand(peer, said.clone());
            }
        }
    }

    fn hand(&mut self, peer: NodeId, said: SignedTestimony) {
        if self.telling.len() >= TELLING * SUBJECTS {
            return;
        }
        let net = self.ground.net.clone();
        self.telling.spawn(async move {
            if let Err(error) = tell(&net, peer, &said).await {
                tracing::debug!(peer = %peer.short(), %error, "a testimony was not heard");
            }
        });
    }
}

impl Ground {
    /// For each seller the channel that has paid it most.
    fn subjects(&self) -> Vec<(ChannelId, Account)> {
        let mut accounts = self.ledger.accounts();
        let paid = |account: &Account| account.channel.charged();
        accounts.retain(|(_, account)| !paid(account).is_zero());
        accounts
            .sort_by_key(|(id, account)| (account.seller, std::cmp::Reverse(paid(account)), *id));
        accounts.dedup_by_key(|(_, account)| account.seller);
        accounts.truncate(SUBJECTS);
        accounts
    }

    /// What became of the purchases from a seller; none without a receipt of these days.
    fn testimony(
        &self,
        account: &Account,
        channel: ChannelId,
    ) -> Result<Option<SignedTestimony>, LedgerError> {
        let now = self.clock.now();
        let newest = self.ledger.newest_receipts(channel, 1)?;
        let Some(kept) = newest.into_iter().next() else {
            return Ok(None);
        };
        let receipt = kept.receipt;
        if now.since(receipt.receipt.finished) > RECENT {
            return Ok(None);
        }
        let Some((since, lines)) = self.reputation.lines(account.seller) else {
            return Ok(None);
        };
        let said = Testimony {
            channel,
            seller: account.seller,
            since,
            until: now,
            lines,
        };
        Ok(Some(self.wallet.testify(said, account.config, receipt)))
    }
}
