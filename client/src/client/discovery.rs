//! The buyer's ear on the network: gossip as it comes, and the books of the peers it meets, so
//! that a newcomer can buy within a second.

use std::time::Duration;

use farthing_protocol::book::Heard;
use farthing_protocol::frame::{Answer, CALL_LIMIT, Call, CallRefusal, TESTIMONY_PAGE};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::ask::read_book;
use farthing_protocol::net::session::Limits;
use farthing_protocol::net::wire::{self, WireError};
use farthing_protocol::net::{Gossip, Inbox, Incoming, Net, PeerEvent, Protocol};
use farthing_protocol::offer::SignedOffer;
use farthing_protocol::roll::Roll;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::market::Market;
use crate::purchase::Lines;

/// Books read at once.
const READING: usize = 8;
/// Strangers' questions answered at once.
const ANSWERING: usize = 16;
/// How often an empty book is tried to be filled.
const HUNGRY: Duration = Duration::from_millis(500);
/// Every so many looks, the texts of expired offers are dropped.
const SWEEP: usize = 60;
/// How long a stranger may take to ask.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// A living part without questions. It ends when its token is cancelled.
pub(in crate::client) struct Discovery {
    net: Net,
    market: Market,
    lines: Lines,
    roll: Roll,
    reading: JoinSet<Vec<SignedOffer>>,
    answering: JoinSet<()>,
    turn: usize,
}

impl Discovery {
    pub(in crate::client) fn new(net: Net, market: Market, lines: Lines, roll: Roll) -> Self {
        Self {
            net,
            market,
            lines,
            roll,
            reading: JoinSet::new(),
            answering: JoinSet::new(),
            turn: 0,
        }
    }

    pub(in crate::client) async fn run(mut self, mut inbox: Inbox, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(HUNGRY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                message = inbox.gossip.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                Some(event) = inbox.peers.recv() => self.met(event),
                Some(read) = self.reading.join_next() => self.learn(read.unwrap_or_default()),
                Some(ended) = self.answering.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an answer's task failed");
                    }
                }
                Some(incoming) = inbox.streams.recv() => self.asked(incoming),
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn hear(&self, message: Gossip) {
        match self.market.hear_bytes(&message.bytes) {
            Heard::Fresh(_) => message.verdict.accept(),
            Heard::Old => message.verdict.ignore(),
            Heard::Bad(error) => {
                tracing::debug!(source = %message.source.short(), %error, "a bad offer");
                message.verdict.reject();
            }
        }
    }

    fn met(&mut self, event: PeerEvent) {
        if let PeerEvent::Connected(peer) | PeerEvent::Neighbour(peer) = event {
            self.read(peer);
        }
    }

    fn read(&mut self, peer: NodeId) {
        if self.reading.len() < READING {
            let net = self.net.clone();
            // A peer that keeps no book is no loss.
            self.reading
                .spawn(async move { read_book(&net, peer).await.unwrap_or_default() });
        }
    }

    fn learn(&self, offers: Vec<SignedOffer>) {
        for offer in offers {
            self.market.hear(offer);
        }
    }

    /// Nothing on offer yet: asks one peer after the other again.
    fn tick(&mut self) {
        if self.turn.is_multiple_of(SWEEP) {
            self.market.sweep();
            self.lines.sweep();
        }
        self.turn = self.turn.wrapping_add(1);
        if self.market.sellers() > 0 {
            return;
        }
        let peers = self.net.peers();
        if let Some(peer) = peers.get(self.turn % peers.len().max(1)) {
            self.read(*peer);
        }
    }

    /// Buyers sell nothing, but they share their book.
    fn asked(&mut self, incoming: Incoming) {
        if incoming.protocol == Protocol::Call && self.answering.len() < ANSWERING {
            self.answering
                .spawn(answer(self.market.clone(), self.roll.clone(), incoming));
        }
    }
}

async fn answer(market: Market, roll: Roll, incoming: Incoming) {
    if let Err(error) = converse(&market, &roll, incoming).await {
        tracing::debug!(%error, "a call was not answered");
    }
}

async fn converse(market: &Market, roll: &Roll, incoming: Incoming) -> Result<(), WireError> {
    let peer = incoming.peer;
    let (mut hears, mut speaks) = wire::over(incoming.stream, Limits::default());
    let answer = match hears.expect(CALL_LIMIT, Instant::now() + CALL_WAIT).await? {
        Call::Book { from } => Answer::Book(market.page(from as usize)),
        Call::Testimonies { from } => Answer::Testimonies(roll.page(from as usize, TESTIMONY_PAGE)),
        Call::Testify(said) => roll.answer(*said, peer).unwrap_or_else(Answer::Refused),
        _ => Answer::Refused(CallRefusal::NoChannel),
    };
    speaks.send(&answer).await?;
    speaks.close().await
}
