//! The whole purchase: terms, plan, and one seller after the other until an answer begins.
//!
//! Before the first content reaches the application, a failure is silent and the next seller is
//! tried ([`crate::client::race`]); after it, another seller goes on where it can
//! ([`crate::client::delivery`]).

use std::sync::Arc;

use farthing_protocol::identity::NodeId;
use tokio::time::Instant;

use crate::client::answer::{Answer, InferError, Request};
use crate::client::delivery::{self, Order};
use crate::client::parts::Parts;
use crate::client::race::Race;
use crate::client::splice::Splice;
use crate::ledger::Standing;
use crate::policy::{Refused, Terms};
use crate::router::{self, Plan};

impl Parts {
    pub(in crate::client) async fn infer(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Answer, InferError> {
        let until = Instant::now() + self.config.gateway.deadline;
        let terms = Terms::of(request.endpoint, &request.body, &self.config)?;
        let plan = self.plan(&terms, &[])?;
        self.hedges().earn(self.config.router.hedge);
        let splice = Splice::new(terms.endpoint, terms.mode);
        let race = Race::new(self, (&terms, until), &plan.choices, splice);
        let won = Box::pin(race.run()).await.map_err(|lost| lost.error)?;
        let why = won.why;
        let order = Order {
            why,
            terms,
            until,
            tried: won.attempts,
        };
        Ok(delivery::deliver(Arc::clone(self), won.opened, order))
    }

    /// Whom to try, but for those. A seller whose receipts were false is not tried again.
    pub(in crate::client) fn plan(
        &self,
        terms: &Terms,
        without: &[NodeId],
    ) -> Result<Plan, InferError> {
        let model = terms.model.clone();
        let mut candidates = self.market.snapshot(&terms.model, terms.endpoint);
        if candidates.is_empty() && self.market.sellers() == 0 {
            let peers = self.net.peers().len();
            let reason = format!(
                "no offers are heard yet ({peers} peers connected); check [network] bootstrap, see `farthing offers`"
            );
            return Err(InferError::NoSeller { model, reason });
        }
        if candidates.is_empty() {
            return Err(InferError::UnknownModel { model });
        }
        candidates.retain(|candidate| {
            let seller = candidate.seller();
            !without.contains(&seller) && !self.is_frozen(seller) && !self.ledger.is_false(seller)
        });
        if candidates.is_empty() {
            let reason = match without {
                [] => "every seller of it has signed a false receipt".to_owned(),
                _ => "there is no other".to_owned(),
            };
            return Err(InferError::NoSeller { model, reason });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one throw of dice; the plan follows from it"
        )]
        let seed = rand::random();
        let plan = router::plan(terms, candidates, seed);
        if let Some(needed) = plan.over_limit() {
            let limit = terms.max_cost;
            let text = format!(
                "this request may cost {needed} atoms, per_purchase is {limit}; set max_tokens lower or raise [spend] per_purchase"
            );
            return Err(InferError::SpendLimit(text));
        }
        if plan.choices.is_empty() {
            return Err(InferError::NoSeller {
                model,
                reason: plan.why_dropped(),
            });
        }
        Ok(plan)
    }

    fn is_frozen(&self, seller: NodeId) -> bool {
        let frozen = |account: &crate::ledger::Account| account.standing == Standing::Frozen;
        self.ledger
            .accounts()
            .iter()
            .any(|(_, account)| account.seller == seller && frozen(account))
    }
}

impl From<Refused> for InferError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge { len, max } => Self::TooLarge { len, max },
            other => Self::BadRequest(other.to_string()),
        }
    }
}
