//! The story itself, scene by scene. Every figure in it is checked against another source, and
//! one that does not agree ends it with an error.

mod answer;
mod money;

use std::collections::HashMap;

use farthing_client::policy::Refused;
use farthing_node::settlement::SettlementError;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::identity::NodeId;

use crate::demo::ask::{Application, AskError, Question};
use crate::demo::books::{Balances, BooksError, Checks};
use crate::demo::stage::{Stage, name};
use crate::demo::watch::Watch;
use crate::show::{Page, Table, per_million};
use crate::street::StreetError;

/// The question whose answer is paid in windows.
const QUESTION: &str = "Tell me the story of a small copper coin that travels around the world. \
     Write at least five paragraphs.";
/// Tokens of its answer: several windows of 64.
const LONG: u32 = 300;
/// What is asked at once afterwards, how long the answers are, and whether they are streamed.
const MORE: [(&str, u32, bool); 4] = [
    ("Name three colours.", 24, false),
    ("What is the capital of France?", 24, true),
    ("Write one sentence about the sea.", 40, false),
    ("How many days does a week have?", 40, true),
];

/// Why the story has no good end.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// The page cannot be written on.
    #[error("the terminal cannot be written to: {0}")]
    Page(#[from] std::io::Error),
    /// A question was not answered.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The street.
    #[error(transparent)]
    Street(#[from] StreetError),
    /// The books.
    #[error(transparent)]
    Books(#[from] BooksError),
    /// A claim.
    #[error("the claim failed: {0}")]
    Claim(#[from] SettlementError),
    /// The question itself.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Something that must be there is not.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// Figures do not agree.
    #[error("{} of {made} checks failed: {}", .wrong.len(), .wrong.join("; "))]
    Wrong {
        /// How many checks there were.
        made: usize,
        /// Those that failed.
        wrong: Vec<String>,
    },
}

/// Tells it, and returns how many checks were made.
///
/// # Errors
/// [`StoryError`]; [`StoryError::Wrong`] when any figure does not agree.
pub async fn tell(stage: &Stage, watch: &Watch, page: &Page) -> Result<usize, StoryError> {
    let mut story = Story::new(stage, watch, page)?;
    let at_first = story.balances().await?;
    story.offers()?;
    story.question().await?;
    story.more().await?;
    story.claim(&at_first).await?;
    let (made, wrong) = story.checks.verdict();
    if wrong.is_empty() {
        Ok(made)
    } else {
        Err(StoryError::Wrong { made, wrong })
    }
}

/// What the scenes share.
struct Story<'a> {
    stage: &'a Stage,
    watch: &'a Watch,
    page: &'a Page,
    checks: Checks,
    application: Application,
    chain: Chain,
    /// The highest voucher of the long answer.
    ceiling: Amount,
    /// Sellers are called by a letter.
    names: HashMap<NodeId, char>,
}

impl<'a> Story<'a> {
    fn new(stage: &'a Stage, watch: &'a Watch, page: &'a Page) -> Result<Self, StoryError> {
        let sellers = stage.street.sellers.iter().enumerate();
        Ok(Self {
            stage,
            watch,
            page,
            checks: Checks::new(page.clone()),
            application: Application::new(&stage.gateway.base_url())?,
            chain: stage.street.ledgers.chain()?,
            ceiling: Amount::ZERO,
            names: sellers.map(|(n, seller)| (seller.id(), name(n))).collect(),
        })
    }

    fn name(&self, seller: NodeId) -> char {
        self.names.get(&seller).copied().unwrap_or('?')
    }

    async fn balances(&self) -> Result<Balances, ChainError> {
        Balances::read(&self.stage.street, &self.chain).await
    }

    fn fact(&self, what: &str, value: &str) -> std::io::Result<()> {
        self.page.line(&format!("{what:<18}{value}"))
    }

    /// What the buyer has heard on the network.
    fn offers(&mut self) -> Result<(), StoryError> {
        self.page
            .title("Offers the buyer has heard (signed, over libp2p gossip)")?;
        let offers = self.stage.street.buyers[0].client().offers();
        let mut table = Table::new(&["seller", "peer", "model", ">prompt", ">answer", ">slots"]);
        let mut lines: Vec<_> = offers
            .iter()
            .map(|offer| {
                [
                    self.name(offer.seller).to_string(),
                    format!("…{}", offer.seller.short()),
                    offer.model.clone(),
                    per_million(offer.prices.input),
                    per_million(offer.prices.output),
                    offer.slots.to_string(),
                ]
            })
            .collect();
        lines.sort();
        let heard = lines.len();
        for line in lines {
            table.row(line);
        }
        self.page.table(&table)?;
        self.page
            .aside("prices in USDC per million tokens; 1 USDC is 1 000 000 atoms")?;
        let there = self.stage.street.sellers.len();
        self.checks.holds(
            &format!("{heard} of {there} sellers' offers are known"),
            heard == there,
        )?;
        Ok(())
    }

    fn main_question() -> Question {
        Question::new(QUESTION, LONG, true).to_the_limit()
    }
}
