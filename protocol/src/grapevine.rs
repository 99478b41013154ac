//! How testimonies travel: read from the peers we meet, looked up on the chain, handed on.
//!
//! A living part beside sellers and buyers alike: it owns nothing but its pace. One channel is
//! looked up at a time and at most one in [`LOOK`], whoever brings how much. A peer is asked for
//! what it knows when it is met and again after [`AGAIN`]. It ends when its task is dropped or the
//! future given to [`Grapevine::run`] resolves.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::chain::Chain;
use crate::frame::{Answer, Call, TESTIMONY_PAGE};
use crate::identity::NodeId;
use crate::net::ask::{AskError, ask};
use crate::net::{Net, OpenError};
use crate::roll::{MAX_WAITING_PER_PEER, Roll, Told};
use crate::testimony::SignedTestimony;

/// How often something may be looked up on the chain, and how often peers are looked through.
pub const LOOK: Duration = Duration::from_secs(1);
/// After how long a peer is asked again.
pub const AGAIN: Duration = Duration::from_secs(600);
/// Peers read from at once.
const READING: usize = 2;
/// How long one page may take, and how long handing on one testimony may.
const PAGE_WAIT: Duration = Duration::from_secs(10);
/// How long one peer may take for all pages.
const WHOLE_WAIT: Duration = Duration::from_secs(30);
/// The most testimonies read from one peer at a time.
const MOST: usize = 4_096;

/// The most peers remembered as asked that are gone.
const MAX_GONE: usize = 1_024;
/// So many testimonies are checked before other work has its turn.
const TURN: usize = 32;

type Read = (NodeId, Result<Vec<SignedTestimony>, AskError>);

/// The living part.
#[derive(Debug)]
pub struct Grapevine {
    net: Net,
    chain: Chain,
    roll: Roll,
    /// When each peer was asked last, gone ones too: who comes back is not asked sooner.
    asked: HashMap<NodeId, Instant>,
    reading: JoinSet<Read>,
    looking: JoinSet<()>,
}

impl Grapevine {
    /// One that fills this roll.
    #[must_use]
    pub fn new(net: Net, chain: Chain, roll: Roll) -> Self {
        Self {
            net,
            chain,
            roll,
            asked: HashMap::new(),
            reading: JoinSet::new(),
            looking: JoinSet::new(),
        }
    }

    /// Runs until `stop` resolves.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                Some(read) = self.reading.join_next() => self.learn(read.ok()).await,
                Some(looked) = self.looking.join_next() => {
                    if let Err(error) = looked {
                        tracing::error!(%error, "a look at the chain was lost");
                    }
                }
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        self.roll.sweep();
        self.look();
        let (peers, now) = (self.net.peers(), Instant::now());
        forget(&mut self.asked, &peers, now);
        for peer in peers {
            let due = self
                .asked
                .get(&peer)
                .is_none_or(|at| now.duration_since(*at) >= AGAIN);
            if due && self.reading.len() < READING {
                self.asked.insert(peer, now);
                let net = self.net.clone();
                self.reading
                    .spawn(async move { (peer, read(&net, peer).await) });
            }
        }
    }

    /// One look at a time: the chain's own deadline bounds it.
    fn look(&mut self) {
        if !self.looking.is_empty() {
            return;
        }
        let Some(channel) = self.roll.next() else {
            return;
        };
        let (chain, roll) = (self.chain.clone(), self.roll.clone());
        self.looking.spawn(async move {
            match chain.channel(channel).await {
                Ok(state) => roll.looked_up(channel, state.claimed),
                Err(error) => {
                    tracing::debug!(channel = %channel.short(), %error, "a testimony waits for the chain");
                }
            }
        });
    }

    async fn learn(&self, read: Option<Read>) {
        let Some((peer, Ok(said))) = read else { return };
        let mut later = 0;
        for (n, testimony) in said.into_iter().enumerate() {
            if n % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            match self.roll.hear(testimony, peer) {
                Told::Bad(error) => {
                    // One that forwards what is not checked is not read further.
                    tracing::debug!(peer = %peer.short(), %error, "a bad testimony");
                    return;
                }
                Told::Later => later += 1,
                Told::Fresh | Told::Old => {}
            }
            if later >= MAX_WAITING_PER_PEER {
                return;
            }
        }
    }
}

/// Forgets who is gone and would be asked again by now; and all who are gone, if those are too
/// many to remember.
fn forget(asked: &mut HashMap<NodeId, Instant>, peers: &[NodeId], now: Instant) {
    let is_due = |at: &Instant| now.duration_since(*at) >= AGAIN;
    asked.retain(|peer, at| peers.contains(peer) || !is_due(at));
    if asked.len() > peers.len().saturating_add(MAX_GONE) {
        asked.retain(|peer, _| peers.contains(peer));
    }
}

/// Reads what a connected peer knows, page by page. Nothing of it is checked yet.
async fn read(net: &Net, peer: NodeId) -> Result<Vec<SignedTestimony>, AskError> {
    let reading = timeout(WHOLE_WAIT, pages(net, peer));
    reading
        .await
        .unwrap_or(Err(AskError::Open(OpenError::Deadline)))
}

async fn pages(net: &Net, peer: NodeId) -> Result<Vec<SignedTestimony>, AskError> {
    let mut said: Vec<SignedTestimony> = Vec::new();
    while said.len() < MOST {
        let from = u32::try_from(said.len()).unwrap_or(u32::MAX);
        match ask(net, peer, &[], &Call::Testimonies { from }, PAGE_WAIT).await? {
            Answer::Testimonies(page) if page.is_empty() => break,
            Answer::Testimonies(page) if page.len() <= TESTIMONY_PAGE => said.extend(page),
            _ => return Err(AskError::Misfit),
        }
    }
    Ok(said)
}

/// Hands a testimony to a connected peer.
///
/// # Errors
/// [`AskError`]; [`AskError::Misfit`] also when the peer has no room for it now.
pub async fn tell(net: &Net, peer: NodeId, said: &SignedTestimony) -> Result<(), AskError> {
    let call = Call::Testify(Box::new(said.clone()));
    let telling = timeout(PAGE_WAIT, ask(net, peer, &[], &call, PAGE_WAIT));
    let told = telling.await;
    match told.unwrap_or(Err(AskError::Open(OpenError::Deadline)))? {
        Answer::Heard => Ok(()),
        _ => Err(AskError::Misfit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    #[test]
    fn a_peer_that_comes_back_is_not_asked_sooner_and_who_is_gone_is_forgotten_in_time() {
        let now = Instant::now();
        let peer = |n: u32| {
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            NodeKey::from_seed(&seed).id()
        };
        let (here, gone) = (peer(1), peer(2));
        let mut asked = HashMap::from([(here, now), (gone, now)]);
        forget(&mut asked, &[here], now + AGAIN / 2);
        assert_eq!(asked.len(), 2, "it is remembered");
        forget(&mut asked, &[here], now + AGAIN);
        assert_eq!(asked.keys().collect::<Vec<_>>(), [&here]);
        let many = u32::try_from(MAX_GONE).expect("small") + 10;
        asked.extend((10..10 + many).map(|n| (peer(n), now)));
        forget(&mut asked, &[here], now);
        assert_eq!(asked.len(), 1, "bounded");
    }
}
