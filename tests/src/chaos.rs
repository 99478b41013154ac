//! Chaos: real processes, real traffic, faults of every named kind, and an audit after each act.
//!
//! One seller and one buyer run as their own programs on their own disks, paid on a real chain
//! that mines by the clock. Faults strike one after the other, in the order a seed decides, while
//! applications buy; after each, an application must get a whole answer again. After each act
//! both programs are stopped in order and every book is opened and compared: see [`audit`].

pub mod audit;
pub mod clock;
pub mod fault;
pub mod hands;
pub mod line;
pub mod process;
pub mod storm;
pub mod table;
pub mod traffic;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::chain::local::{ARTIFACTS, LocalChain};
use farthing_protocol::testing;
use tokio::time::Instant;

use crate::chaos::audit::{Audit, Books, Harm, Work, allowance};
use crate::chaos::fault::Fault;
use crate::chaos::line::Line;
use crate::chaos::process::{Dice, Gateway, NodeProcess, Programs};
use crate::chaos::storm::{Miner, Stage};
use crate::chaos::traffic::{Kind, Pulse, Traffic};
use crate::street::{StreetError, WEALTH, anvil};
use crate::upstream::{Behaviour, MockUpstream};

/// What each token of an answer costs, in micro-atoms.
pub const OUTPUT_PRICE: u64 = 500_000;
/// What each token of a prompt costs, in micro-atoms.
pub const INPUT_PRICE: u64 = 100_000;
/// Purchases at once.
pub const WORKERS: usize = 6;
/// Tokens of an answer.
const TOKENS: usize = 200;
/// Between two tokens of an answer.
const PACE: Duration = Duration::from_millis(3);
/// Where the seller's money goes.
const PAYOUT: Address = Address::repeat_byte(0xc4);
/// Between two blocks.
const BLOCK: Duration = Duration::from_millis(200);
/// Pieces of answers between two faults, at most.
const CALM: u64 = 400;
/// How long it may take until a fault has been got over. What takes longer is stuck.
const HEALING: Duration = Duration::from_secs(90);
/// Tries to buy when nothing strikes any more.
const TRIES: usize = 5;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What strikes, in this order.
    pub faults: Vec<Fault>,
    /// How long a fault lasts at most.
    pub longest: Duration,
    /// After how many of them everything is stopped and compared.
    pub act: usize,
    /// Decides when and for how long.
    pub seed: u64,
    /// What is struck.
    pub programs: Programs,
    /// Where the disks and logs are; a temporary folder if not said.
    pub dir: Option<PathBuf>,
}

/// One fault, and what came of it.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    /// Its number, from 1.
    pub number: usize,
    /// What struck.
    pub fault: Fault,
    /// How often it was felt, as far as that can be counted.
    pub felt: u64,
    /// How long after its end an answer that began then was whole; none if that never came.
    pub healed: Option<Duration>,
    /// Work on its account that was not paid.
    pub unpaid: Amount,
    /// Work on its account that was paid and not done.
    pub invented: Amount,
}

/// How it went.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every fault.
    pub strikes: Vec<Strike>,
    /// What the last audit found, and whatever those before it did.
    pub audit: Audit,
}

/// Why the run could not be made. (What it found is in the [`Report`].)
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The chain or a file.
    #[error(transparent)]
    Street(#[from] StreetError),
    /// A process did not do as it should.
    #[error("{0}")]
    Process(String),
    /// A book cannot be opened.
    #[error("a book cannot be read: {0}")]
    Book(String),
}

impl From<std::io::Error> for ChaosError {
    fn from(error: std::io::Error) -> Self {
        Self::Street(error.into())
    }
}

impl From<farthing_protocol::chain::local::LocalError> for ChaosError {
    fn from(error: farthing_protocol::chain::local::LocalError) -> Self {
        Self::Street(error.into())
    }
}

impl From<farthing_protocol::chain::ChainError> for ChaosError {
    fn from(error: farthing_protocol::chain::ChainError) -> Self {
        Self::Street(error.into())
    }
}

/// Runs the plan; `progress` is told of each fault when it is over.
///
/// # Errors
/// [`ChaosError`] when the run could not be made to its end.
pub async fn run(plan: Plan, mut progress: impl FnMut(&Strike)) -> Result<Report, ChaosError> {
    let temporary = tempfile::tempdir()?;
    let dir = plan.dir.as_deref().unwrap_or_else(|| temporary.path());
    let mut stage = set_up(&plan, dir).await?;
    let mut dice = Dice::new(plan.seed);
    let pulse = Arc::new(Pulse::default());
    let mut report = Report::default();
    for act in plan.faults.chunks(plan.act.max(1)) {
        stage.node.start().await?;
        stage.gateway.start().await?;
        let traffic = Traffic::start(&pulse, &stage.gateway.url(), WORKERS, &mut dice);
        for fault in act {
            let number = report.strikes.len() + 1;
            let strike = one(&mut stage, &pulse, &mut dice, (number, *fault)).await?;
            progress(&strike);
            report.strikes.push(strike);
        }
        traffic.stop().await;
        calm(&mut report, &pulse, &stage).await;
        stage.gateway.stop().await?;
        stage.node.stop().await?;
        let books = Books::open(&stage.node.data_dir(), &stage.gateway.data_dir()).await?;
        let before = std::mem::take(&mut report.audit.violations);
        report.audit = books.audit(&stage.anvil, PAYOUT).await?;
        report.audit.violations = merged(before, &report.audit);
    }
    account(&mut report, &pulse, &stage);
    Ok(report)
}

async fn set_up(plan: &Plan, dir: &Path) -> Result<Stage, ChaosError> {
    let programs = &plan.programs;
    let anvil = LocalChain::start(&anvil()?, testing::network(), ARTIFACTS.as_ref()).await?;
    let behaviour = Behaviour::default().tokens(TOKENS).pace(PACE);
    let upstream = MockUpstream::start(behaviour.clone()).await?;
    let (seller_line, buyer_line) = (
        Line::to(address(&anvil)?).await?,
        Line::to(address(&anvil)?).await?,
    );
    let url = seller_line.url();
    let node = NodeProcess::set_up(programs, &dir.join("seller"), &url, &upstream).await?;
    let url = buyer_line.url();
    let gateway = Gateway::set_up(programs, &dir.join("buyer"), &url, &node).await?;
    anvil.fund(node.claim, 10_u128.pow(19)).await?;
    anvil.mint(gateway.payer, WEALTH).await?;
    // So far that no reorganisation reaches the mint.
    anvil.mine(10).await?;
    let miner = Miner::start(&anvil, BLOCK).await?;
    Ok(Stage {
        anvil,
        miner,
        upstream,
        behaviour,
        node,
        gateway,
        seller_line,
        buyer_line,
        longest: plan.longest,
    })
}

fn address(anvil: &LocalChain) -> Result<std::net::SocketAddr, ChaosError> {
    let place = anvil.url().trim_start_matches("http://");
    let place = place
        .trim_end_matches('/')
        .replace("localhost", "127.0.0.1");
    let parsed = place.parse();
    parsed.map_err(|_| ChaosError::Process(format!("anvil listens at {}", anvil.url())))
}

/// One fault from the calm before it to the first whole answer after it.
async fn one(
    stage: &mut Stage,
    pulse: &Pulse,
    dice: &mut Dice,
    (number, fault): (usize, Fault),
) -> Result<Strike, ChaosError> {
    // It strikes in the middle of work.
    let pieces = pulse.seen().pieces + dice.between(1, CALM);
    pulse.until(HEALING, |seen| seen.pieces >= pieces).await;
    pulse.strikes(number);
    let felt = stage.strike(fault, pulse, dice).await?;
    let over = Instant::now();
    let era = pulse.new_era();
    let healed = pulse.until(HEALING, |seen| seen.healed >= era).await;
    Ok(Strike {
        number,
        fault,
        felt,
        healed: healed.then(|| over.elapsed()),
        unpaid: Amount::ZERO,
        invented: Amount::ZERO,
    })
}

/// When nothing strikes any more one can buy, and by this the buyer reconciles.
async fn calm(report: &mut Report, pulse: &Pulse, stage: &Stage) {
    for _ in 0..TRIES {
        if pulse.once(&stage.gateway.url(), Kind::Plain).await {
            return;
        }
    }
    let log = stage.gateway.log();
    let stuck = format!("in peace no purchase succeeds; log: {}", log.display());
    report.audit.violations.push((Harm::Stuck, stuck));
}

/// What was found before and what is found now, each once.
fn merged(before: Vec<(Harm, String)>, audit: &Audit) -> Vec<(Harm, String)> {
    let mut known = HashSet::new();
    let all = before.into_iter().chain(audit.violations.iter().cloned());
    all.filter(|found| known.insert(found.clone())).collect()
}

/// Puts work, paid and unpaid, on the account of the fault during which it ended.
fn account(report: &mut Report, pulse: &Pulse, stage: &Stage) {
    let worked = stage.upstream.requests();
    let work = Work::compare(&pulse.asked(), &worked, &report.audit.sold);
    let cost = |tokens: u64| Price(OUTPUT_PRICE).times(tokens).ceil();
    for (asked, tokens) in work.unpaid {
        if let Some(strike) = report.strikes.get_mut(asked.fault.saturating_sub(1)) {
            strike.unpaid = strike.unpaid.saturating_add(cost(tokens));
        }
    }
    for (asked, tokens) in work.invented {
        if let Some(strike) = report.strikes.get_mut(asked.fault.saturating_sub(1)) {
            strike.invented = strike.invented.saturating_add(cost(tokens));
        }
    }
    let audit = &mut report.audit;
    for strike in &report.strikes {
        let (number, fault) = (strike.number, strike.fault);
        let mut found = |holds: bool, harm: Harm, what: String| {
            if !holds {
                let what = format!("fault {number} ({fault}): {what}");
                audit.violations.push((harm, what));
            }
        };
        found(
            strike.healed.is_some(),
            Harm::Stuck,
            format!("no whole answer within {HEALING:?} after it"),
        );
        found(
            strike.unpaid <= allowance(),
            Harm::Unpaid,
            format!("{} atoms, {} are allowed", strike.unpaid, allowance()),
        );
        found(
            strike.invented.is_zero(),
            Harm::DoubleCharge,
            format!("{} atoms for no work", strike.invented),
        );
    }
    let seen = pulse.seen();
    audit.note("answers whole", seen.whole);
    audit.note("answers broken or refused", seen.failed);
    let tokens: u64 = worked.iter().map(|request| request.chunks).sum();
    audit.note("tokens of streams made by the model server", tokens);
    let streams = pulse.asked().into_iter();
    let streams = streams.filter(|asked| asked.kind != Kind::Plain);
    let sold = streams.filter_map(|asked| audit.sold.get(&asked.hash));
    let sold: u64 = sold.sum();
    if sold == 0 {
        let nothing = "no stream was sold at all".to_owned();
        audit.violations.push((Harm::Stuck, nothing));
    }
    audit.note("tokens of streams in receipts", sold);
}

/// The programs beside the running one.
///
/// # Errors
/// The system's.
pub fn programs_beside_this() -> std::io::Result<Programs> {
    let here = std::env::current_exe()?;
    let dir = here.parent().map(PathBuf::from).unwrap_or_default();
    Ok(Programs {
        seller: dir.join("seller"),
        buyer: dir.join("buyer"),
    })
}
