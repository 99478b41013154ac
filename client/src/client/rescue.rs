//! Who goes on with an answer that broke off, and how.
//!
//! By the rest of it, from a seller that takes what is there as the beginning of its own answer;
//! or, where the same request makes the same answer, from any seller by all of it once more, of
//! which the application gets what it does not have. Whatever cannot be gone on with ends with an
//! error that says what went wrong first.

use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use tokio::time::Instant;

use crate::client::answer::{Break, InferError};
use crate::client::attempt::Opened;
use crate::client::delivery::{Broken, Delivery};
use crate::client::failure::ours;
use crate::client::race::Race;
use crate::client::sequel::{self, ASSISTANT_PREFIX, Sequel};
use crate::policy::Terms;
use crate::router::Choice;

/// What becomes of an answer that broke off.
pub(in crate::client) enum Rescue {
    /// Somebody goes on with it.
    By(Box<Opened>),
    /// There is nothing to go on with: it has as many tokens as were asked for.
    Length,
}

/// How somebody can go on.
struct Way {
    terms: Terms,
    /// By all of it once more.
    again: bool,
}

impl Delivery {
    /// Finds somebody.
    ///
    /// # Errors
    /// [`InferError::Interrupted`], or what of our own money is in the way.
    pub(in crate::client) async fn rescue(
        &mut self,
        broken: &Broken,
    ) -> Result<Rescue, InferError> {
        if let Some(error) = ours(&broken.failure) {
            return Err(error);
        }
        let most = usize::try_from(self.terms.attempts).unwrap_or(usize::MAX);
        let hinders = if !self.parts.config.router.rescue {
            Some("`router.rescue` is off")
        } else if broken.is_paid_once {
            Some("it was paid for as a whole")
        } else if self.broken.len() > most {
            Some("it broke off too often")
        } else if Instant::now() >= self.until {
            Some("its time is over")
        } else {
            None
        };
        if let Some(reason) = hinders {
            return Err(self.lost(broken, reason));
        }
        let (ways, unfit) = self.ways(broken);
        let Some(ways) = ways else {
            return Ok(Rescue::Length);
        };
        let mut reason = unfit.unwrap_or_else(|| "no other seller can go on with it".to_owned());
        for way in ways {
            match self.by(&way, broken).await {
                Some(opened) => return Ok(Rescue::By(Box::new(opened))),
                None if way.again => reason = "no seller gave the same answer again".to_owned(),
                None => {}
            }
        }
        Err(self.lost(broken, &reason))
    }

    fn lost(&self, broken: &Broken, reason: &str) -> InferError {
        InferError::Interrupted(Break {
            reason: format!("{}; {reason}", broken.failure.reason()),
            attempts: self.tried.clone(),
        })
    }

    /// How it can be gone on with, and else why not; nothing when it is as long as it may be.
    fn ways(&self, broken: &Broken) -> (Option<Vec<Way>>, Option<String>) {
        let terms = &self.terms;
        if let Some(unfit) = self.splice.unfit() {
            return (Some(Vec::new()), Some(unfit.to_string()));
        }
        let length = self.splice.length(broken.used);
        let rest = sequel::rest(terms.endpoint, &terms.body, self.splice.text(), length);
        // Who broke off may still say that it charges less: it is waited for where that matters.
        let left = self.tab.hoped();
        let with = |body| {
            let mut terms = terms.asking(body).ok()?;
            terms.max_cost = left;
            // A plan of one is not what is wanted here: who that one is, is settled.
            terms.preferences.no_fallbacks &= !self.is_bound();
            Some(terms)
        };
        let mut ways = Vec::new();
        let unfit = match rest {
            Ok(Sequel::Nothing) => return (None, None),
            Ok(Sequel::Rest(body)) => {
                let terms = with(body).into_iter();
                ways.extend(terms.map(|terms| Way {
                    terms,
                    again: false,
                }));
                None
            }
            Err(unfit) => Some(unfit.to_string()),
        };
        if sequel::is_repeatable(&terms.body) {
            let terms = with(terms.body.clone()).into_iter();
            ways.extend(terms.map(|terms| Way { terms, again: true }));
        }
        (Some(ways), unfit)
    }

    /// Whether the request wants no other seller than the one it began with.
    fn is_bound(&self) -> bool {
        let wanted = &self.terms.preferences;
        wanted.no_fallbacks && wanted.order.is_empty()
    }

    /// Asks those that can go on in this way.
    async fn by(&mut self, way: &Way, broken: &Broken) -> Option<Opened> {
        let mut choices = self.able(way, &self.used);
        // One that stumbled is better than nobody.
        let stumbled = self.tried.iter().filter(|one| one.seller == broken.seller);
        if broken.failure.may_pass() && stumbled.count() == 1 {
            let mut others = self.used.clone();
            others.extend(choices.iter().map(|choice| choice.candidate.seller()));
            others.retain(|seller| *seller != broken.seller);
            choices.extend(self.able(way, &others));
        }
        if self.is_bound() {
            choices.retain(|choice| choice.candidate.seller() == broken.seller);
        }
        if choices.is_empty() {
            return None;
        }
        let splice = self.splice.handed_on(way.again, broken.used);
        let tab = self.tab.clone();
        let race = Race::new(
            &self.parts,
            (&way.terms, &tab, self.until),
            &choices,
            splice,
        );
        let (won, attempts) = match Box::pin(race.run()).await {
            Ok(won) => (Some(won.opened), won.attempts),
            Err(lost) => (None, lost.attempts),
        };
        // Who does not go on with a text may still say it again.
        if way.again || won.is_some() {
            self.used.extend(attempts.iter().map(|one| one.seller));
        }
        self.tried.extend(attempts);
        if let Some(opened) = &won {
            let (_, seller) = opened.running.names();
            tracing::info!(seller = %seller.short(), "another seller goes on with an answer");
            self.used.push(seller);
        }
        won
    }

    /// The sellers that can go on in this way, but for those.
    fn able(&self, way: &Way, without: &[NodeId]) -> Vec<Choice> {
        // Anybody can be asked to go on with a text, or for the same answer.
        let anybody = way.again || way.terms.endpoint != Endpoint::Chat;
        let can = |choice: &Choice| {
            let features = &choice.candidate.model().features;
            anybody || features.iter().any(|feature| feature == ASSISTANT_PREFIX)
        };
        let plan = self.parts.plan(&way.terms, without).unwrap_or_default();
        plan.choices.into_iter().filter(can).collect()
    }
}
