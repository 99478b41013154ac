//! The sellers of a plan, one after the other and now and then two at once, until one of them has
//! begun to answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::amount::Amount;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, Sleep, sleep};

use crate::client::answer::{Attempt, InferError};
use crate::client::attempt::Opened;
use crate::client::failure::{Failure, ours, terminal, verdict};
use crate::client::parts::Parts;
use crate::client::splice::Splice;
use crate::policy::Terms;
use crate::router::{Choice, PASSES, hedge, patience};
use crate::wallet::Tab;

/// One seller being asked: its place in the plan, and what came of it.
type Run<'a> = Pin<Box<dyn Future<Output = (usize, Result<Opened, Failure>)> + Send + 'a>>;

/// The seller that was first.
pub(in crate::client) struct Won {
    pub(in crate::client) opened: Opened,
    /// Why this seller: one line for people.
    pub(in crate::client) why: String,
    /// The model that answers.
    pub(in crate::client) model: String,
    /// Those that were tried in vain before.
    pub(in crate::client) attempts: Vec<Attempt>,
}

/// Nobody has begun.
pub(in crate::client) struct Lost {
    pub(in crate::client) error: InferError,
    pub(in crate::client) attempts: Vec<Attempt>,
}

/// A race for one answer.
pub(in crate::client) struct Race<'a> {
    parts: &'a Arc<Parts>,
    terms: &'a Terms,
    tab: &'a Tab,
    until: Instant,
    choices: &'a [Choice],
    splice: Splice,
    running: FuturesUnordered<Run<'a>>,
    /// The first that was not tried.
    next: usize,
    /// The one that was asked last.
    latest: usize,
    /// What it may cost, beside what those may charge that have failed.
    room: Amount,
    /// Whether two are asked at once.
    beside: bool,
    /// Those that may be tried once more, when there is no other.
    again: VecDeque<usize>,
    /// How many may still be asked.
    left: u32,
    /// How many may still say that they are busy before that counts as a try.
    passes: u32,
    /// Those after whom nobody came: they had all the time there is.
    lasts: Vec<usize>,
    attempts: Vec<Attempt>,
    causes: Vec<Failure>,
    /// What no other seller could mend.
    hopeless: Option<InferError>,
    /// Models that refuse what the request says, whoever serves them; and what the last one said.
    unfit: Vec<&'a str>,
    refusal: Option<InferError>,
}

impl<'a> Race<'a> {
    /// A race among `choices` for what is missing in `splice`, over at `until`.
    pub(in crate::client) fn new(
        parts: &'a Arc<Parts>,
        (terms, tab, until): (&'a Terms, &'a Tab, Instant),
        choices: &'a [Choice],
        splice: Splice,
    ) -> Self {
        Self {
            parts,
            terms,
            tab,
            room: tab.room(),
            until,
            choices,
            splice,
            running: FuturesUnordered::new(),
            next: 0,
            latest: 0,
            beside: false,
            again: VecDeque::new(),
            left: terms.attempts,
            passes: PASSES,
            lasts: Vec::new(),
            attempts: Vec::new(),
            causes: Vec::new(),
            hopeless: None,
            unfit: Vec::new(),
            refusal: None,
        }
    }

    fn model(&self, place: usize) -> &'a str {
        &self.choices[place].candidate.model().id
    }

    /// Runs it. Whoever is still running when one has begun is told to stop, and paid for what it
    /// delivered.
    ///
    /// # Errors
    /// [`Lost`].
    pub(in crate::client) async fn run(mut self) -> Result<Won, Lost> {
        self.start();
        let timer = sleep(Duration::ZERO);
        tokio::pin!(timer);
        let mut armed = self.arm(timer.as_mut());
        loop {
            tokio::select! {
                biased;
                ended = self.running.next() => match ended {
                    Some((place, Ok(opened))) => return Ok(self.won(place, opened)),
                    Some((place, Err(failure))) => {
                        self.lost(place, failure);
                        armed = self.arm(timer.as_mut());
                    }
                    None => return Err(self.over()),
                },
                () = &mut timer, if armed => {
                    armed = false;
                    if self.parts.hedges().take() {
                        tracing::debug!("the first token is late: asking the next seller as well");
                        self.beside = true;
                        self.start();
                    }
                }
            }
        }
    }

    /// Asks the next seller, if there is one.
    fn start(&mut self) {
        while self.next < self.choices.len() && self.unfit.contains(&self.model(self.next)) {
            self.next += 1;
        }
        let place = match self.next < self.choices.len() {
            true => Some(self.next),
            false => self.again.pop_front(),
        };
        let now = Instant::now();
        let Some(place) = place.filter(|_| self.left > 0 && now < self.until) else {
            return;
        };
        self.left -= 1;
        self.latest = place;
        self.next = self.next.max(place + 1);
        let choice = &self.choices[place];
        // Nobody comes after it: by the number of tries, or because nobody is left.
        let is_last = self.left == 0 || (self.next >= self.choices.len() && self.again.is_empty());
        if is_last {
            self.lasts.push(place);
        }
        let mut deadlines = patience::of(self.terms, &choice.candidate.measured, is_last);
        deadlines.total = self.until.duration_since(now);
        let terms = Terms {
            deadlines,
            ..self.terms.toward(self.model(place)).into_owned()
        };
        if self.running.is_empty() {
            self.room = self.tab.room();
        }
        let (parts, tab, splice) = (self.parts, self.tab, self.splice.clone());
        self.running.push(Box::pin(async move {
            (place, parts.open((&terms, tab), choice, splice).await)
        }));
    }

    /// Sets the timer for a seller that was just asked and is asked alone. Whether it is set.
    fn arm(&self, timer: Pin<&mut Sleep>) -> bool {
        let wait = self.hedge();
        if let Some(wait) = wait {
            timer.reset(Instant::now() + wait);
        }
        wait.is_some()
    }

    /// After how long the next seller is asked beside the one that is asked, if at all.
    fn hedge(&self) -> Option<Duration> {
        if self.beside || self.running.len() != 1 || self.left == 0 {
            return None;
        }
        let first = self.choices.get(self.latest)?;
        let second = self.choices.get(self.next)?;
        let same = first.candidate.model().id == second.candidate.model().id;
        let both = first.max_cost.saturating_add(second.max_cost);
        (same && both <= self.room && self.parts.config.router.hedge > 0)
            .then(|| hedge::after(self.terms, first, second))
            .flatten()
    }

    fn won(self, place: usize, opened: Opened) -> Won {
        let choice = &self.choices[place];
        let deadlines = patience::of(
            self.terms,
            &choice.candidate.measured,
            self.lasts.contains(&place),
        );
        Won {
            opened,
            why: format!("{choice}; {}", patience::Told(deadlines)),
            model: self.model(place).to_owned(),
            attempts: self.attempts,
        }
    }

    /// Whether a model that has not refused the request is left to ask.
    fn has_other_models(&self) -> bool {
        (self.next..self.choices.len()).any(|place| !self.unfit.contains(&self.model(place)))
    }

    fn lost(&mut self, place: usize, failure: Failure) {
        let seller = self.choices[place].candidate.seller();
        let is_busy = failure.is_busy();
        if is_busy && self.passes > 0 {
            self.passes -= 1;
            self.left += 1;
        }
        let forbidden = |error: InferError| !error.is_about_the_request();
        let is_ours = ours(&failure).is_some() || terminal(&failure).is_some_and(forbidden);
        if !self.running.is_empty() && is_ours {
            // Our own limits forbid a second one beside the first, which goes on; alone it may do.
            tracing::debug!(seller = %seller.short(), %failure, "not asked as well");
            self.left += 1;
            match self.next == place + 1 {
                true => self.next = place,
                false => self.again.push_back(place),
            }
            return;
        }
        let tried_before = self.attempts.iter().any(|one| one.seller == seller);
        tracing::info!(seller = %seller.short(), %failure, "a seller was tried in vain");
        self.attempts.push(failure.of(seller, self.model(place)));
        // One that does not go on with another's answer says nothing of the request.
        let is_declined = self.splice.goes_on() && failure.is_refusal();
        if let Some(error) = terminal(&failure).filter(|_| !is_declined) {
            if error.is_about_the_request() {
                self.unfit.push(self.model(place));
            }
            if error.is_about_the_request() && self.has_other_models() {
                self.refusal = Some(error);
            } else {
                self.hopeless.get_or_insert(error);
            }
        } else if failure.is_taken() {
            // That seller may be paid for this purchase: a second one is not.
            self.left = 0;
        } else if failure.may_pass() && !tried_before {
            self.again.push_back(place);
        }
        self.causes.push(failure);
        // Who was to be asked beside another and has no room makes room for somebody else.
        let goes_on = self.running.is_empty() || (is_busy && self.beside);
        if goes_on && self.hopeless.is_none() {
            self.start();
        }
    }

    fn over(self) -> Lost {
        let attempts = self.attempts.clone();
        let taken = self.causes.iter().any(Failure::is_taken);
        let error = match self.hopeless {
            Some(error) => error,
            None if taken => InferError::Failed {
                attempts: self.attempts,
            },
            None => match self.refusal {
                // Nobody has anything else to say.
                Some(error) if self.causes.iter().all(|cause| terminal(cause).is_some()) => error,
                _ => verdict(self.attempts, self.causes),
            },
        };
        Lost { error, attempts }
    }
}
