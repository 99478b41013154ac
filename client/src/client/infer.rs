//! The whole purchase: terms, plan, and one seller after the other until an answer begins.
//!
//! Before the first content reaches the application, a failure is silent and the next seller is
//! tried ([`crate::client::race`]); after it, another seller goes on where it can
//! ([`crate::client::delivery`]).

use std::sync::Arc;

use farthing_protocol::purchase::Mode;
use tokio::time::Instant;

use crate::client::answer::{Answer, InferError, Request};
use crate::client::delivery::{self, Order};
use crate::client::parts::Parts;
use crate::client::race::Race;
use crate::client::sequel;
use crate::client::splice::Splice;
use crate::policy::{Refused, Terms};
use crate::router::Choice;
use crate::wallet::Tab;

impl Parts {
    pub(in crate::client) async fn infer(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Answer, InferError> {
        let until = Instant::now() + self.config.gateway.deadline;
        let terms = Terms::of(request.endpoint, &request.body, &self.config)?;
        let plan = self.plan(&terms, &[])?;
        if terms.mode == Mode::Stream {
            self.hedges().earn(self.config.router.hedge);
        }
        let answer = self.ask(&terms, &plan.choices, until).await?;
        self.routed(&terms, plan.seed, &answer);
        Ok(answer)
    }

    /// Asks those, on these terms, by then.
    ///
    /// # Errors
    /// [`InferError`], when none of them has begun. Some of them may charge for it all the same.
    pub(in crate::client) async fn ask(
        self: &Arc<Self>,
        terms: &Terms,
        choices: &[Choice],
        until: Instant,
    ) -> Result<Answer, InferError> {
        let answers = sequel::answers(&terms.body);
        let splice = Splice::new(terms.endpoint, terms.mode, answers);
        let tab = Tab::new(terms.max_cost);
        let race = Race::new(self, (terms, &tab, until), choices, splice);
        let won = Box::pin(race.run()).await.map_err(|lost| lost.error)?;
        let terms = terms.only(&won.model);
        let order = Order {
            why: terms.explained(&won.why),
            terms,
            tab,
            until,
            tried: won.attempts,
            plan: choices
                .iter()
                .map(|choice| Arc::clone(&choice.candidate.goods))
                .collect(),
        };
        Ok(delivery::deliver(Arc::clone(self), won.opened, order))
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
