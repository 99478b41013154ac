//! Responses that go on without anybody listening.
//!
//! Each is a task that buys, hears the answer to its end and keeps it; whoever asks for it meanwhile
//! is told what there is, by the numbers of its events. Bounded by number (`gateway.background`) and
//! by what is kept of one (`gateway.max_body`). It ends when all is said, when it is cancelled or
//! removed, or with the gateway, [`GRACE`] after that is told to stop; what there was is kept, and
//! why it ended. One that was under way when the process died is told as failed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Answer, Event, InferError, Request};
use crate::gateway::error::Problem;
use crate::gateway::exchange::{self, Bought, Settled};
use crate::gateway::inflight::Place;
use crate::gateway::responses::answer::{Head, Standing};
use crate::gateway::responses::events::Telling;
use crate::gateway::responses::store::Kept;
use crate::gateway::responses::{Record, bad, interrupted};
use crate::gateway::sse;
use crate::gateway::{GRACE, Shared};

/// How long the last words of one that is ended may take to be kept.
const LAST: Duration = Duration::from_secs(5);

/// All that are under way.
#[derive(Debug, Default)]
pub(crate) struct Background {
    live: Mutex<HashMap<String, Arc<Live>>>,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

/// One that is under way.
#[derive(Debug)]
pub(in crate::gateway) struct Live {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    cancelled: CancellationToken,
}

#[derive(Debug)]
struct State {
    telling: Telling,
    /// Its purchase, once there is one.
    purchase: Option<String>,
    /// The response, once it is over and kept.
    ended: Option<Value>,
    /// Whether it is not to be kept: it was removed.
    removed: bool,
}

/// What is to be said in the background.
pub(super) struct Commission {
    pub(super) head: Head,
    /// What its items are named after.
    pub(super) stem: String,
    pub(super) request: Request,
    pub(super) record: Record,
    /// The request's own, until it is answered.
    pub(super) place: Option<Place>,
}

impl Background {
    fn live(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        // A map is whole between any two lines.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this id, while it is under way.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Live>> {
        self.live().get(id).cloned()
    }

    /// Begins one. It is kept as queued before anybody is asked for it.
    ///
    /// # Errors
    /// [`Problem::Crowded`], [`Problem::Stopping`], or when it cannot be kept.
    pub(super) async fn begin(
        &self,
        shared: &Arc<Shared>,
        commission: Commission,
    ) -> Result<Arc<Live>, Problem> {
        let id = commission.head.id.clone();
        let mut telling = Telling::new(commission.head.clone(), commission.stem.clone());
        telling.stands(Standing::Queued);
        let queued = telling.response();
        let live = Arc::new(Live {
            state: Mutex::new(State {
                telling,
                purchase: None,
                ended: None,
                removed: false,
            }),
            changed: watch::Sender::new(()),
            cancelled: CancellationToken::new(),
        });
        let (tell, told) = oneshot::channel();
        {
            let mut all = self.live();
            if self.tasks.is_closed() {
                return Err(Problem::Stopping);
            }
            if all.len() >= shared.settings.background {
                return Err(Problem::Crowded);
            }
            all.insert(id, Arc::clone(&live));
            // Whoever asks may hang up from here on: the task takes it away again.
            let (shared, saying) = (Arc::clone(shared), Arc::clone(&live));
            self.tasks.spawn(async move {
                saying.begin(&shared, commission, queued, tell).await;
            });
        }
        told.await.map_err(|_| Problem::Stopping)??;
        Ok(live)
    }

    /// Waits until the gateway is to stop, lets them come to their end for a while, and ends those
    /// that do not.
    pub(in crate::gateway) async fn end(&self, until: CancellationToken) {
        until.cancelled().await;
        {
            // None begins between the look and its task.
            let _all = self.live();
            self.tasks.close();
        }
        if timeout(GRACE, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.stopped.cancel();
        if timeout(LAST, self.tasks.wait()).await.is_err() {
            tracing::warn!("a response in the background could not be kept");
        }
    }
}

/// How one came to its end.
enum End {
    Said(Settled),
    Broke(Problem),
    Cancelled,
    Stopped,
}

impl Live {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what there is of it, and tells those who follow.
    fn tell<T>(&self, tell: impl FnOnce(&mut State) -> T) -> T {
        let told = tell(&mut self.state());
        self.changed.send_replace(());
        told
    }

    fn is_over(&self) -> bool {
        self.state().ended.is_some()
    }

    /// As far as it is said.
    pub(super) fn response(&self) -> Value {
        let state = self.state();
        let ended = state.ended.clone();
        ended.unwrap_or_else(|| state.telling.so_far())
    }

    /// Ends it, now. Its seller is paid for what was delivered.
    pub(super) async fn cancel(&self) -> Value {
        self.cancelled.cancel();
        let mut changed = self.changed.subscribe();
        let over = async {
            while !self.is_over() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(LAST, over).await.is_err() {
            tracing::warn!("a response that was cancelled could not be kept in time");
        }
        self.response()
    }

    /// Ends it, and it is not kept.
    pub(super) async fn remove(&self) {
        self.state().removed = true;
        self.cancel().await;
    }

    /// Its events after the number `after`, as they come.
    pub(super) fn follow(self: Arc<Self>, after: Option<u64>, keep_alive: Duration) -> Response {
        let changed = self.changed.subscribe();
        let events = Follower {
            live: self,
            changed,
            after,
            keep_alive,
        };
        (sse::head(), Body::from_stream(events.stream())).into_response()
    }

    /// Keeps it as queued, tells whoever asks for it, and says it. Nothing is bought for somebody
    /// who hung up before they knew its id.
    async fn begin(
        &self,
        shared: &Shared,
        commission: Commission,
        queued: Value,
        tell: oneshot::Sender<Result<(), Problem>>,
    ) {
        let id = commission.head.id.clone();
        let nothing = || bad(&"`background`: nothing is kept here (`gateway.responses_kept`)");
        let kept = match commission.record.put(queued, None).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(nothing()),
            Err(problem) => Err(problem),
        };
        if kept.is_err() {
            shared.background.live().remove(&id);
            // It does not matter here whether anybody hears it.
            tell.send(kept).ok();
            return;
        }
        if tell.send(kept).is_ok() {
            self.say(shared, commission).await;
            return;
        }
        if let Err(error) = shared.responses.remove::<Kept>(&id).await {
            tracing::warn!(%error, "a response that nobody waits for cannot be removed");
        }
        shared.background.live().remove(&id);
    }

    async fn say(&self, shared: &Shared, commission: Commission) {
        let _place = commission.place;
        let end = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => End::Cancelled,
            () = shared.background.stopped.cancelled() => End::Stopped,
            heard = self.hear(shared, commission.request.clone()) => match heard {
                Ok(settled) => End::Said(settled),
                Err(problem) => End::Broke(problem),
            },
        };
        let (mut telling, purchase, removed) = {
            let state = self.state();
            (state.telling.clone(), state.purchase.clone(), state.removed)
        };
        let mut about = json!({ "request": purchase });
        match end {
            End::Said(settled) => {
                telling.counted(settled.used());
                let bill = settled.bill.as_deref();
                about["charged"] = json!(settled.charged);
                about["seller"] = json!(bill.map(|bill| bill.receipt.seller));
                about["receipt_seq"] = json!(bill.map(|bill| bill.receipt.receipt.seq));
            }
            End::Broke(problem) => telling.stands(Standing::Failed(problem.message())),
            End::Cancelled => telling.stands(Standing::Cancelled),
            End::Stopped => {
                let why = "the gateway was stopped before all was said";
                telling.stands(Standing::Failed(why.to_owned()));
            }
        }
        telling.end();
        let mut response = telling.response();
        response["farthing"] = about;
        if !removed {
            response = commission
                .record
                .keep(response, Some(telling.steps()))
                .await;
        }
        // It can be read there by now.
        shared.background.live().remove(&commission.head.id);
        self.tell(|state| {
            state.telling = telling;
            state.ended = Some(response);
        });
    }

    /// Buys it and hears it to its end.
    async fn hear(&self, shared: &Shared, request: Request) -> Result<Settled, Problem> {
        let bought = exchange::buy(shared, request, &HeaderMap::new()).await?;
        let Bought {
            mut answer, first, ..
        } = bought;
        self.begun(&answer);
        let mut next: Option<Result<Event, InferError>> = Some(Ok(first));
        loop {
            match next {
                Some(Ok(Event::Data(json))) if sse::is_end(&json) => {}
                Some(Ok(Event::Data(json))) => self.heard(&json, shared.settings.max_body)?,
                Some(Ok(Event::Paid(charged))) => return Ok(charged.into()),
                Some(Ok(Event::End(bill))) => return Ok(bill.into()),
                Some(Err(error)) => return Err(error.into()),
                None => {
                    let error = "it ended without a receipt";
                    return Err(InferError::Interrupted(error.into()).into());
                }
            }
            next = timeout(shared.settings.deadline, answer.next())
                .await
                .map_err(|_| Problem::Deadline)?;
        }
    }

    fn begun(&self, answer: &Answer) {
        self.tell(|state| {
            state.telling.answered_by(&answer.model);
            state.purchase = Some(answer.request.to_string());
        });
    }

    fn heard(&self, json: &Bytes, most: usize) -> Result<(), Problem> {
        let kept = self.tell(|state| {
            let chunk = state.telling.chunk(json);
            chunk.map(|_| state.telling.kept())
        });
        match kept.map_err(interrupted)? {
            kept if kept > most => {
                let error = format!("it is longer than {most} bytes (`gateway.max_body`)");
                Err(InferError::Interrupted(error.into()).into())
            }
            _ => Ok(()),
        }
    }
}

/// Somebody who listens.
struct Follower {
    live: Arc<Live>,
    changed: watch::Receiver<()>,
    /// The number of the last event they heard.
    after: Option<u64>,
    keep_alive: Duration,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        futures::stream::unfold(Some(self), |follower| async move {
            let mut follower = follower?;
            let (page, goes_on) = follower.next().await?;
            Some((Ok(page), goes_on.then_some(follower)))
        })
    }

    /// What is new, and whether more may follow.
    async fn next(&mut self) -> Option<(Bytes, bool)> {
        loop {
            self.changed.borrow_and_update();
            let (page, next, over) = {
                let state = self.live.state();
                let ended = state.ended.as_ref();
                let (page, next) = state.telling.since(self.after, ended);
                (page, next, ended.is_some())
            };
            self.after = self.after.max(next.checked_sub(1));
            if !page.is_empty() {
                return Some((page, !over));
            }
            if over {
                return None;
            }
            match timeout(self.keep_alive, self.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((sse::KEEP_ALIVE, true)),
            }
        }
    }
}
