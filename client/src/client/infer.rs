//! The whole purchase: terms, plan, and one seller after the other until an answer begins.
//!
//! Before the first content reaches the application, a failure is silent and the next seller is
//! tried ([`crate::client::race`]); after it, another seller goes on where it can
//! ([`crate::client::delivery`]).

use std::sync::Arc;

use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use tokio::time::Instant;

use crate::client::answer::{Answer, InferError, Request};
use crate::client::delivery::{self, Order};
use crate::client::parts::Parts;
use crate::client::race::Race;
use crate::client::sequel;
use crate::client::splice::Splice;
use crate::policy::{Refused, Terms};

impl Parts {
    pub(in crate::client) async fn infer(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Answer, InferError> {
        self.infer_of(request, &[], Amount::MAX).await
    }

    /// The same of any seller but those, for at most so much.
    pub(in crate::client) async fn infer_of(
        self: &Arc<Self>,
        request: Request,
        without: &[NodeId],
        most: Amount,
    ) -> Result<Answer, InferError> {
        let until = Instant::now() + self.config.gateway.deadline;
        let mut terms = Terms::of(request.endpoint, &request.body, &self.config)?;
        terms.max_cost = terms.max_cost.min(most);
        let plan = self.plan(&terms, without)?;
        self.hedges().earn(self.config.router.hedge);
        let answers = sequel::answers(&terms.body);
        let splice = Splice::new(terms.endpoint, terms.mode, answers);
        let race = Race::new(self, (&terms, until), &plan.choices, splice);
        let won = Box::pin(race.run()).await.map_err(|lost| lost.error)?;
        let terms = terms.only(&won.model);
        let order = Order {
            why: terms.explained(&won.why),
            terms: terms.clone(),
            until,
            tried: won.attempts,
        };
        let answer = delivery::deliver(Arc::clone(self), won.opened, order);
        // A second opinion moves no conversation to another seller's cache.
        if without.is_empty() {
            self.routed(&terms, plan.seed, &answer);
        }
        Ok(answer)
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
