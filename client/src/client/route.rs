//! From terms to a plan: what the market knows, the throw of dice, and what is written down of
//! the decision.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::identity::NodeId;

use crate::client::answer::{Answer, InferError};
use crate::client::parts::Parts;
use crate::market::Candidate;
use crate::policy::{Terms, Warm};
use crate::report::{ActionError, RouteReport, RouteWish};
use crate::router::record::{Decision, Line};
use crate::router::{self, Dropped, Plan, Reason, explain};

impl Parts {
    /// Whom to try, but for those. A seller whose receipts were false is not tried again.
    pub(in crate::client) fn plan(
        &self,
        terms: &Terms,
        without: &[NodeId],
    ) -> Result<Plan, InferError> {
        let terms = &*self.warm(terms);
        #[expect(
            clippy::disallowed_methods,
            reason = "the one throw of dice; the plan follows from it"
        )]
        let seed = rand::random();
        let mut candidates = self.look(terms, seed);
        if candidates.is_empty() {
            return Err(self.nobody(terms));
        }
        let barred = self.barred();
        let known = candidates.len();
        candidates.retain(|candidate| {
            let seller = candidate.seller();
            !without.contains(&seller) && !barred(seller)
        });
        if candidates.is_empty() {
            let reason = match without.len() {
                0 => "every seller of it has signed a false receipt".to_owned(),
                _ => format!("there is no other ({known} known)"),
            };
            let model = terms.model.clone();
            return Err(InferError::NoSeller { model, reason });
        }
        let on_offer = || self.on_offer(terms);
        let draft = |candidates: &[Candidate]| {
            Decision::draft(terms, candidates, self.clock.now(), on_offer())
        };
        let draft = self.decisions.wanted().then(|| draft(&candidates));
        let plan = router::plan(terms, candidates, seed);
        if let Some(draft) = draft {
            self.decisions
                .note(Line::Decision(Box::new(draft.made(&plan))));
        }
        sold_out(terms, plan)
    }

    /// The terms, with the seller that has the conversation in its cache.
    fn warm<'a>(&self, terms: &'a Terms) -> Cow<'a, Terms> {
        let idle = self.config.router.sticky;
        let warm = terms.session.and_then(|name| self.market.warm(name, idle));
        match warm {
            None => Cow::Borrowed(terms),
            Some(warm) => Cow::Owned(Terms {
                warm: Some(warm),
                ..terms.clone()
            }),
        }
    }

    /// Those of the market that a request looks at; everyone, for the reasons, when none will do.
    fn look(&self, terms: &Terms, seed: u64) -> Vec<Candidate> {
        let candidates = router::look(&self.market, terms, seed);
        match candidates.is_empty() {
            true => self.all(terms),
            false => candidates,
        }
    }

    fn all(&self, terms: &Terms) -> Vec<Candidate> {
        let all = |model: &String| self.market.snapshot(model, terms.endpoint);
        terms.models.iter().flat_map(all).collect()
    }

    fn on_offer(&self, terms: &Terms) -> usize {
        let count = |model: &String| self.market.on_offer(model, terms.endpoint);
        terms.models.iter().map(count).sum()
    }

    fn nobody(&self, terms: &Terms) -> InferError {
        let model = terms.models.join("`, `");
        if self.market.sellers() > 0 {
            return InferError::UnknownModel { model };
        }
        let peers = self.net.peers().len();
        let reason = format!(
            "no offers are heard yet ({peers} peers connected); check [network] bootstrap, see `farthing offers`"
        );
        InferError::NoSeller { model, reason }
    }

    /// Who has signed a false receipt.
    fn barred(&self) -> impl Fn(NodeId) -> bool {
        let frozen: HashSet<NodeId> = self.ledger.frozen();
        move |seller| frozen.contains(&seller) || self.ledger.is_false(seller)
    }

    /// An answer has begun: its seller has read the conversation, and the record names it.
    pub(in crate::client) fn routed(&self, terms: &Terms, seed: u64, answer: &Answer) {
        let (request, seller) = (answer.request, answer.seller);
        if let Some(session) = terms.session {
            let tokens = terms.expected.prompt;
            self.market.warmed(session, Warm { seller, tokens });
        }
        if self.decisions.wanted() {
            self.decisions.note(Line::Purchase {
                seed,
                request,
                seller,
            });
        }
    }

    /// Whom the router would ask now for a request, of all there are. Nothing is bought.
    pub(in crate::client) fn explain(&self, wish: &RouteWish) -> Result<RouteReport, ActionError> {
        let body = Bytes::copy_from_slice(wish.body.as_bytes());
        let terms = Terms::of(wish.endpoint, &body, &self.config)
            .map_err(|refused| ActionError::Refused(refused.to_string()))?;
        let terms = self.warm(&terms);
        let barred = self.barred();
        let (left, all): (Vec<_>, Vec<_>) = self
            .all(&terms)
            .into_iter()
            .partition(|candidate| barred(candidate.seller()));
        #[expect(
            clippy::disallowed_methods,
            reason = "another throw of dice might decide otherwise between equals"
        )]
        let mut plan = router::plan(&terms, all, rand::random());
        plan.dropped.extend(left.iter().map(|candidate| Dropped {
            seller: candidate.seller(),
            model: candidate.model().id.clone(),
            reason: Reason::False,
        }));
        let about = (self.clock.now(), self.on_offer(&terms));
        Ok(explain::report(&terms, &plan, about))
    }
}

/// The plan, unless there is nobody in it.
fn sold_out(terms: &Terms, plan: Plan) -> Result<Plan, InferError> {
    if let Some(needed) = plan.over_limit() {
        let limit = terms.max_cost;
        let text = format!(
            "this request may cost {needed} atoms and the limit is {limit}; set max_tokens lower, or raise [spend] per_purchase and the request's own provider.max_cost"
        );
        return Err(InferError::SpendLimit(text));
    }
    if let Some(wait) = plan.retry_after() {
        let retry_after_ms = millis(wait);
        return Err(InferError::Busy {
            retry_after_ms,
            attempts: Vec::new(),
        });
    }
    if plan.choices.is_empty() {
        return Err(InferError::NoSeller {
            model: terms.models.join("`, `"),
            reason: plan.why_dropped(),
        });
    }
    Ok(plan)
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}
