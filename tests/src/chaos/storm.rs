//! What the faults do to the stage: each strikes, lasts a moment, and ends.

use std::time::Duration;

use farthing_protocol::chain::local::LocalChain;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::chaos::ChaosError;
use crate::chaos::fault::{Fault, Side};
use crate::chaos::hands::Hands;
use crate::chaos::line::{Line, Manner};
use crate::chaos::process::{CONFIRMATIONS, Dice, Gateway, NodeProcess};
use crate::chaos::traffic::Pulse;
use crate::upstream::{self, Behaviour, MockUpstream};

/// How long to wait for a fault to be felt by somebody before it ends all the same.
const FELT: Duration = Duration::from_secs(5);
/// How long a reorganisation waits for a block that has something in it.
const BUSY: Duration = Duration::from_secs(8);
/// A clock's jumps: none is farther, in milliseconds; the dice choose the scale first.
const JUMPS: [u64; 4] = [10_000, 120_000, 7_200_000, 172_800_000];

/// Mines a block every now and then, until it is dropped.
#[derive(Debug)]
pub struct Miner(JoinHandle<()>);

impl Miner {
    /// A miner for this chain, which mines no more by itself.
    ///
    /// # Errors
    /// [`ChaosError`] when the chain does not obey.
    pub async fn start(anvil: &LocalChain, every: Duration) -> Result<Self, ChaosError> {
        anvil.set_held(true).await?;
        let anvil = LocalChain::attach(anvil.url(), anvil.network().clone())?;
        Ok(Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Err(error) = anvil.mine(1).await {
                    tracing::warn!(%error, "no block was mined");
                }
            }
        })))
    }
}

impl Drop for Miner {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything that can be struck.
#[derive(Debug)]
pub struct Stage {
    /// The chain.
    pub anvil: LocalChain,
    /// Its miner.
    pub miner: Miner,
    /// The model server.
    pub upstream: MockUpstream,
    /// How it behaves when nothing strikes.
    pub behaviour: Behaviour,
    /// The seller.
    pub node: NodeProcess,
    /// The buyer.
    pub gateway: Gateway,
    /// The seller's line to the chain.
    pub seller_line: Line,
    /// The buyer's.
    pub buyer_line: Line,
    /// How long a fault lasts at most.
    pub longest: Duration,
}

impl Stage {
    /// Lets a fault strike, last and end. Returns how often it was felt, as far as that can be
    /// counted.
    ///
    /// # Errors
    /// [`ChaosError`] when it could not be made to strike.
    pub async fn strike(
        &mut self,
        fault: Fault,
        pulse: &Pulse,
        dice: &mut Dice,
    ) -> Result<u64, ChaosError> {
        match fault {
            Fault::Kill(side) => {
                self.kill(side).await?;
                self.last(dice, 0, 200).await;
                self.start(side).await?;
                Ok(1)
            }
            Fault::DiskFull(side) => self.fill_disk(side, pulse).await,
            Fault::ClockJump(side) => {
                let scale = usize::try_from(dice.between(0, 3)).unwrap_or_default();
                let far = dice.between(1_000, JUMPS.get(scale).copied().unwrap_or(1_000));
                let far = i64::try_from(far).unwrap_or_default();
                let far = if dice.between(0, 1) == 0 { far } else { -far };
                self.jump(side, far).await?;
                self.last(dice, 100, 1_500).await;
                self.jump(side, 0).await?;
                Ok(1)
            }
            Fault::RpcErrors(side) => self.bad_line(side, Manner::Errors, dice).await,
            Fault::RpcSilent(side) => self.bad_line(side, Manner::Silent, dice).await,
            Fault::RpcAnswersLost(side) => self.bad_line(side, Manner::Deaf, dice).await,
            Fault::RpcGarbage(side) => self.bad_line(side, Manner::Garbage, dice).await,
            Fault::Reorg => {
                // What is final is not taken back.
                let depth = dice.between(1, CONFIRMATIONS - 1);
                let hit = self.anvil.busy(BUSY).await?;
                self.anvil.reorg(depth).await?;
                Ok(u64::from(hit))
            }
            Fault::ConnectionsCut => Ok(self.node.cut()? as u64),
            Fault::StreamsDelayed(side) => {
                let hands = self.hands(side)?;
                hands.freeze()?;
                self.last(dice, 50, 2_000).await;
                hands.thaw()?;
                Ok(1)
            }
            Fault::AnswersCut => {
                let cut = usize::try_from(dice.between(0, 190)).unwrap_or_default();
                let fault = upstream::Fault::CutAfter(cut);
                self.bad_answers(fault, pulse, dice).await
            }
            Fault::AnswersStalled => {
                let cut = usize::try_from(dice.between(0, 190)).unwrap_or_default();
                let fault = upstream::Fault::StallAfter(cut);
                self.bad_answers(fault, pulse, dice).await
            }
        }
    }

    async fn kill(&mut self, side: Side) -> Result<(), ChaosError> {
        match side {
            Side::Seller => self.node.kill().await,
            Side::Buyer => self.gateway.kill().await,
        }
    }

    async fn start(&mut self, side: Side) -> Result<(), ChaosError> {
        match side {
            Side::Seller => self.node.start().await,
            Side::Buyer => self.gateway.start().await,
        }
    }

    async fn jump(&mut self, side: Side, millis: i64) -> Result<(), ChaosError> {
        match side {
            Side::Seller => self.node.jump(millis).await,
            Side::Buyer => self.gateway.jump(millis).await,
        }
    }

    const fn line(&self, side: Side) -> &Line {
        match side {
            Side::Seller => &self.seller_line,
            Side::Buyer => &self.buyer_line,
        }
    }

    fn hands(&self, side: Side) -> Result<Hands, ChaosError> {
        match side {
            Side::Seller => self.node.hands(),
            Side::Buyer => self.gateway.hands(),
        }
    }

    /// The first failed write is the last until a restart: so it is started again, as an operator
    /// does who has made room.
    async fn fill_disk(&mut self, side: Side, pulse: &Pulse) -> Result<u64, ChaosError> {
        let failed = pulse.seen().failed;
        self.hands(side)?.fill_disk()?;
        let felt = pulse.until(FELT, |seen| seen.failed > failed).await;
        self.kill(side).await?;
        self.start(side).await?;
        Ok(u64::from(felt))
    }

    async fn bad_line(
        &mut self,
        side: Side,
        manner: Manner,
        dice: &mut Dice,
    ) -> Result<u64, ChaosError> {
        let line = self.line(side);
        let met = line.met();
        line.be(manner);
        // Now and then for longer than anybody waits for an answer.
        if dice.between(0, 15) == 0 {
            self.last(dice, 10_500, 12_000).await;
        } else {
            self.last(dice, 200, 2_000).await;
        }
        // It is felt, or nobody asks.
        tokio::time::timeout(FELT, line.meets(met)).await.ok();
        if manner == Manner::Deaf && dice.between(0, 1) == 0 {
            self.kill(side).await?;
            self.start(side).await?;
        }
        let line = self.line(side);
        line.be(Manner::Good);
        Ok(line.met().saturating_sub(met))
    }

    async fn bad_answers(
        &mut self,
        fault: upstream::Fault,
        pulse: &Pulse,
        dice: &mut Dice,
    ) -> Result<u64, ChaosError> {
        let failed = pulse.seen().failed;
        self.upstream.behave(self.behaviour.clone().fault(fault));
        self.last(dice, 50, 500).await;
        let felt = pulse.until(FELT, |seen| seen.failed > failed).await;
        self.upstream.behave(self.behaviour.clone());
        Ok(u64::from(felt))
    }

    /// How long a fault lasts is the dice's decision, between so many milliseconds.
    async fn last(&self, dice: &mut Dice, low: u64, high: u64) {
        let long = Duration::from_millis(dice.between(low, high));
        tokio::time::sleep(long.min(self.longest)).await;
    }
}
