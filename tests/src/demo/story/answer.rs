//! From a question to its receipt.

use std::collections::BTreeSet;

use farthing_client::ledger::Kept;
use farthing_client::policy::Terms;
use farthing_client::router::{self, Choice, Plan, Reason};
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Endpoint, RequestId};
use futures::future::try_join_all;

use crate::demo::ask::{Answer, Question};
use crate::demo::books::BooksError;
use crate::demo::story::{MORE, QUESTION, Story, StoryError};
use crate::llama::MODEL;
use crate::show::{Table, per_million, shorten, usdc};

/// Windows the long answer must be paid in, at least.
const WINDOWS: usize = 3;

impl Story<'_> {
    /// The long answer: asked, chosen, streamed, paid, receipted.
    pub(in crate::demo::story) async fn question(&mut self) -> Result<(), StoryError> {
        let question = Self::main_question();
        self.page
            .title("A question, by plain HTTP to the buyer's own endpoint")?;
        self.fact("POST", self.application.url())?;
        self.page.flow(&format!("“{QUESTION}”"))?;
        let expected = self.plan(&question)?;
        self.page.title("The answer, as it comes")?;
        let page = self.page;
        let answer = self
            .application
            .ask(&question, |words| {
                // A page that cannot be written on fails the next line.
                page.flow(words).ok();
            })
            .await?;
        self.page.aside(&format!(
            "first word after {:.2} s (a deposit on chain included), all of it after {:.1} s",
            answer.first_word.as_secs_f64(),
            answer.took.as_secs_f64()
        ))?;
        self.checks.holds(
            &format!(
                "it was sold by {}, as planned ({})",
                self.name(expected),
                answer.why
            ),
            answer.seller == expected.to_string(),
        )?;
        let kept = self.receipt_of(&answer).await?;
        self.windows(&answer, &kept)?;
        self.receipt(&question, &answer, &kept)
    }

    /// What the router makes of the question: whom it would buy from, and why not from others.
    fn plan(&self, question: &Question) -> Result<NodeId, StoryError> {
        let buyer = &self.stage.street.buyers[0];
        let body = question.body.clone().into();
        let terms = Terms::of(Endpoint::Chat, &body, &buyer.config)?;
        let market = buyer.client().market();
        let candidates = market.map(|market| market.snapshot(&terms.model, terms.endpoint));
        let plan = router::plan(&terms, candidates.unwrap_or_default(), 0);
        self.page.title("Who is chosen, and why")?;
        let best = plan.choices.first();
        let best = best.ok_or(StoryError::Missing("seller to choose"))?;
        self.explain(&plan, best)?;
        Ok(best.candidate.seller())
    }

    fn explain(&self, plan: &Plan, best: &Choice) -> std::io::Result<()> {
        for choice in &plan.choices {
            let name = self.name(choice.candidate.seller());
            let times = choice.score / best.score;
            if times > 1.0 {
                self.page.line(&format!(
                    "{name}   next, if that fails: {choice} (score {times:.1} × the best; less is better)"
                ))?;
            } else {
                self.page.line(&format!("{name}   chosen: {choice}"))?;
            }
        }
        for dropped in &plan.dropped {
            let why = match dropped.reason {
                Reason::Price { price, limit } => format!(
                    "asks {} USDC per million tokens; the buyer's config allows {}",
                    per_million(price),
                    per_million(limit)
                ),
                other => other.to_string(),
            };
            let name = self.name(dropped.seller);
            self.page.line(&format!("{name}   left out: {why}"))?;
        }
        Ok(())
    }

    async fn receipt_of(&self, answer: &Answer) -> Result<Kept, StoryError> {
        let missing = StoryError::Missing("receipt of the purchase");
        let Ok(request) = answer.request.parse().map(RequestId) else {
            return Err(missing);
        };
        let ledger = self.stage.street.buyers[0].ledger();
        ledger.written().await.map_err(BooksError::from)?;
        let kept = ledger.receipt(request).map_err(BooksError::from)?;
        kept.ok_or(missing)
    }

    /// What each window paid.
    fn windows(&mut self, answer: &Answer, kept: &Kept) -> Result<(), StoryError> {
        self.page
            .title("What was paid while it came: one cumulative voucher per window")?;
        let sent = self.watch.of(&answer.request);
        let mut table = Table::new(&[
            ">voucher",
            ">after",
            ">tokens seen",
            ">ceiling (atoms)",
            ">raised by",
            ">USDC",
        ]);
        let mut before = Amount::ZERO;
        let mut falls = 0;
        for (place, voucher) in sent.iter().enumerate() {
            falls += usize::from(voucher.ceiling < before);
            let after = voucher.at.saturating_duration_since(answer.asked);
            table.row([
                (place + 1).to_string(),
                format!("{:.2} s", after.as_secs_f64()),
                voucher.events.to_string(),
                voucher.ceiling.to_string(),
                format!("+{}", voucher.ceiling.saturating_sub(before)),
                usdc(voucher.ceiling),
            ]);
            before = voucher.ceiling;
        }
        self.page.table(&table)?;
        let charged = kept.receipt.receipt.cumulative;
        self.page.aside(&format!(
            "A voucher says how much may be claimed in all. In the end {charged} atoms were charged; \
             the other {} were signed ahead (a window, and a bound on the prompt) and are what the \
             next purchases start with.",
            before.saturating_sub(charged)
        ))?;
        self.ceiling = before;
        self.checks.holds(
            &format!("{} vouchers, none below the one before", sent.len()),
            sent.len() >= WINDOWS && falls == 0,
        )?;
        self.seller_has(kept, before)
    }

    fn seller_has(&mut self, kept: &Kept, ceiling: Amount) -> Result<(), StoryError> {
        let (seller, channel) = (kept.receipt.seller, kept.receipt.receipt.channel);
        let sellers = &self.stage.street.sellers;
        let node = sellers.iter().find(|each| each.id() == seller);
        let view = node.and_then(|seller| seller.node().ledger().channel(channel));
        let best = view.and_then(|view| view.voucher);
        let best = best.map_or(Amount::ZERO, |voucher| voucher.message.ceiling);
        let what = "the seller's best voucher is the last one sent";
        Ok(self.checks.equal(what, best, ceiling)?)
    }

    /// The receipt, and whether it is about this very question and answer.
    fn receipt(
        &mut self,
        question: &Question,
        answer: &Answer,
        kept: &Kept,
    ) -> Result<(), StoryError> {
        let receipt = &kept.receipt.receipt;
        let usage = receipt.usage;
        self.page.title("The receipt, signed by the seller")?;
        self.fact(
            "receipt",
            &format!(
                "number {} of channel {}",
                receipt.seq,
                receipt.channel.short()
            ),
        )?;
        self.fact("request", &receipt.request.short())?;
        self.fact(
            "tokens",
            &format!("{} prompt + {} answer", usage.prompt, usage.completion),
        )?;
        self.fact(
            "charged",
            &format!("{} atoms = {} USDC", receipt.charged, usdc(receipt.charged)),
        )?;
        self.fact("question's hash", &short(receipt.request_hash))?;
        self.fact("answer's hash", &short(receipt.response_hash))?;
        self.fact("offer's hash", &short(receipt.offer.0))?;
        let good = kept.receipt.clone().verify(kept.receipt.seller).is_ok();
        let signer = self.name(kept.receipt.seller);
        self.checks
            .holds(&format!("the signature is {signer}'s own (ed25519)"), good)?;
        self.checks.holds(
            "it names the question that was sent and the answer that came, hash by hash",
            receipt.request_hash == question.hash() && receipt.response_hash == answer.hash,
        )?;
        let prices = self.prices_of(kept.receipt.seller);
        let due = pricing::cost(&usage, &prices).unwrap_or_default().floor();
        self.checks.equal(
            "its tokens at the offer's prices make",
            due,
            receipt.charged,
        )?;
        let told = "the endpoint told the application the same price";
        Ok(self.checks.equal(told, answer.charged, receipt.charged)?)
    }

    fn prices_of(&self, seller: NodeId) -> farthing_protocol::offer::Prices {
        let market = self.stage.street.buyers[0].client().market();
        let offer = market.and_then(|market| market.offer(seller));
        let model = offer.and_then(|offer| Some(offer.offer().model(MODEL)?.prices));
        model.unwrap_or_default()
    }

    /// Some more at once, on the same channel.
    pub(in crate::demo::story) async fn more(&mut self) -> Result<(), StoryError> {
        let many = MORE.len();
        self.page
            .title(&format!("{many} more at once, on the same channel"))?;
        let block = self.chain.latest().await?.number;
        let questions = MORE.map(|(text, tokens, streams)| Question::new(text, tokens, streams));
        self.page.waiting(&format!("{many} answers"))?;
        let asking = questions
            .iter()
            .map(|question| self.application.ask(question, |_| {}));
        let answers = try_join_all(asking).await?;
        let channels = self.answers(&answers).await?;
        let raised = self.raised(&answers);
        let highest = raised.last().copied().unwrap_or(self.ceiling);
        self.page.aside(&format!(
            "They needed {} new vouchers (the ceiling rose from {} to {highest} atoms); the rest was covered.",
            raised.len(),
            self.ceiling,
        ))?;
        let latest = self.chain.latest().await?.number;
        self.checks.holds(
            &format!("one channel, and the chain did not move (block {latest})"),
            channels == 1 && latest == block,
        )?;
        Ok(())
    }

    /// Shows them in the order of their receipts; returns how many channels paid.
    async fn answers(&self, answers: &[Answer]) -> Result<usize, StoryError> {
        let mut channels = BTreeSet::new();
        let mut rows = Vec::new();
        for ((text, ..), answer) in MORE.iter().zip(answers) {
            let kept = self.receipt_of(answer).await?;
            let receipt = &kept.receipt.receipt;
            let usage = receipt.usage;
            channels.insert(receipt.channel);
            let row = [
                receipt.seq.to_string(),
                shorten(text, 34),
                shorten(&answer.text, 36),
                format!("{} + {}", usage.prompt, usage.completion),
                receipt.charged.to_string(),
            ];
            rows.push((receipt.seq, row));
        }
        rows.sort();
        let mut table = Table::new(&[">receipt", "question", "answer", ">tokens", ">atoms"]);
        rows.into_iter().for_each(|(_, row)| table.row(row));
        self.page.table(&table)?;
        Ok(channels.len())
    }

    /// The new ceilings that were signed for these, lowest first.
    fn raised(&self, answers: &[Answer]) -> BTreeSet<Amount> {
        let sent = answers
            .iter()
            .flat_map(|answer| self.watch.of(&answer.request));
        let ceilings = sent.map(|voucher| voucher.ceiling);
        ceilings.filter(|ceiling| *ceiling > self.ceiling).collect()
    }
}

/// The first and last digits of a hash.
pub(in crate::demo::story) fn short(hash: alloy::primitives::B256) -> String {
    let text = hash.to_string();
    match (text.get(..10), text.get(text.len().saturating_sub(8)..)) {
        (Some(head), Some(tail)) => format!("{head}…{tail}"),
        _ => text,
    }
}
