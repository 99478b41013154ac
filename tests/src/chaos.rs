//! Chaos: real processes, real traffic, `kill -9` at random moments, and an audit at the end.
//!
//! One seller and one buyer run as their own programs on their own disks, paid on a real chain.
//! After the last kill both are stopped in order and every book is opened and compared: see
//! [`audit`].

pub mod audit;
pub mod process;
pub mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::chain::local::{ARTIFACTS, LocalChain};
use farthing_protocol::testing;
use tokio_util::sync::CancellationToken;

use crate::chaos::audit::Audit;
use crate::chaos::process::{Dice, Gateway, NodeProcess, Programs};
use crate::chaos::traffic::Traffic;
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

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kills.
    pub rounds: u32,
    /// Decides when and whom.
    pub seed: u64,
    /// What is killed.
    pub programs: Programs,
    /// Where the disks and logs are; a temporary folder if not said.
    pub dir: Option<PathBuf>,
}

/// Why the run could not be made. (What it found is in the [`Audit`].)
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

/// Runs the plan; `progress` is told of each round.
///
/// # Errors
/// [`ChaosError`] when the run could not be made to its end.
pub async fn run(plan: Plan, progress: impl Fn(u32, &str)) -> Result<Audit, ChaosError> {
    let temporary = tempfile::tempdir()?;
    let dir = plan.dir.as_deref().unwrap_or_else(|| temporary.path());
    let network = testing::network();
    let anvil = LocalChain::start(&anvil()?, network, ARTIFACTS.as_ref()).await?;
    let upstream = MockUpstream::start(Behaviour::default().tokens(TOKENS).pace(PACE)).await?;
    let mut node =
        NodeProcess::set_up(&plan.programs, &dir.join("seller"), &anvil, &upstream).await?;
    let mut gateway = Gateway::set_up(&plan.programs, &dir.join("buyer"), &anvil, &node).await?;
    anvil.fund(node.claim, 10_u128.pow(19)).await?;
    anvil.mint(gateway.payer, WEALTH).await?;
    node.start().await?;
    gateway.start().await?;

    let traffic = Traffic::start(gateway.url(), WORKERS, plan.seed);
    let mut dice = Dice::new(plan.seed);
    let mut kills = (0_u32, 0_u32);
    for round in 1..=plan.rounds {
        tokio::time::sleep(Duration::from_millis(dice.between(30, 900))).await;
        if dice.between(0, 1) == 0 {
            progress(round, "the seller");
            kills.0 += 1;
            node.kill().await?;
            tokio::time::sleep(Duration::from_millis(dice.between(0, 200))).await;
            node.start().await?;
        } else {
            progress(round, "the buyer");
            kills.1 += 1;
            gateway.kill().await?;
            gateway.start().await?;
        }
    }
    let counts = traffic.stop().await;
    settle(&gateway).await?;
    gateway.stop().await?;
    node.stop().await?;
    let books = audit::Books::open(&node.data_dir(), &gateway.data_dir()).await?;
    let scene = audit::Scene {
        anvil: &anvil,
        payout: PAYOUT,
        upstream: &upstream,
        kills,
        counts,
    };
    books.audit(scene).await
}

/// A few purchases in peace, which make the buyer reconcile.
async fn settle(gateway: &Gateway) -> Result<(), ChaosError> {
    let stop = CancellationToken::new();
    for _ in 0..200 {
        if traffic::once(&gateway.url(), traffic::Kind::Plain, &stop).await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(ChaosError::Process(format!(
        "after the last kill no purchase succeeds; logs: {}",
        gateway.log().display()
    )))
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
