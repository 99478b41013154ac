//! Chunks of a chat completion become the events of a response. Pure: a machine that is fed chunks
//! and yields bytes. A whole completion is one long chunk to it, so that a response is the same
//! however it was asked for.
//!
//! A response is a sequence of items, one open at a time. A chunk that speaks of another kind of
//! thing than the open item closes it and opens the next.

use bytes::Bytes;
use farthing_protocol::purchase::Usage as Counted;
use serde_json::{Value, json};

use crate::gateway::chat::{Choice, Completion, Page, Piece, Reader, Said, Strange, Usage};
use crate::gateway::responses::again::{self, Script};
use crate::gateway::responses::answer::{Head, Standing, document};
use crate::gateway::responses::item::{Kind, Open, Step, Told};

/// What an item and a step weigh by themselves, in bytes.
const ITEM: usize = 256;
const STEP: usize = size_of::<Step>();

/// A response that is being told.
#[derive(Debug, Clone, Default)]
pub struct Telling {
    head: Head,
    /// What the items are named after.
    stem: String,
    begun: bool,
    sequence: u64,
    reader: Reader,
    open: Option<Open>,
    output: Vec<Value>,
    /// Of each item of the output, how it was told.
    steps: Vec<Vec<Step>>,
    /// Bytes of all that is kept of it.
    kept: usize,
    usage: Option<Usage>,
    standing: Standing,
}

impl Telling {
    /// A response that begins so; its items are named after `stem`.
    #[must_use]
    pub fn new(head: Head, stem: String) -> Self {
        Self {
            head,
            stem,
            ..Self::default()
        }
    }

    /// The events that say what this chunk says; often none or one.
    ///
    /// # Errors
    /// [`Strange`].
    pub fn chunk(&mut self, json: &[u8]) -> Result<Bytes, Strange> {
        let chunk = Completion::read(json)?;
        self.told(|telling, told| {
            if chunk.usage.is_some() {
                telling.usage = chunk.usage;
            }
            let Some(mut choice) = chunk.choices.into_iter().next() else {
                return Ok(());
            };
            let said = choice.delta.take().unwrap_or_default();
            let pieces = telling.reader.read(said)?;
            telling.choice(&mut choice, pieces, told);
            Ok(())
        })
    }

    /// The response that says what this completion says.
    ///
    /// # Errors
    /// [`Strange`].
    pub fn whole(mut self, document: &[u8], counted: Option<Counted>) -> Result<Value, Strange> {
        let whole = Completion::read(document)?;
        let none = || Strange("it has no choice".to_owned());
        let mut choice = whole.choices.into_iter().next().ok_or_else(none)?;
        let said: Said = choice.message.take().ok_or_else(none)?;
        let pieces = self.reader.read_whole(said)?;
        self.usage = whole.usage;
        self.counted(counted);
        self.told(|telling, told| {
            telling.choice(&mut choice, pieces, told);
            Ok(())
        })?;
        self.end();
        Ok(self.response())
    }

    /// What was paid for, where a receipt says it: it goes before what the answer says of itself.
    pub fn counted(&mut self, counted: Option<Counted>) {
        if let Some(counted) = counted {
            self.usage = Some(self.usage.unwrap_or_default().counted(counted));
        }
    }

    /// The last events: what all of it was.
    pub fn end(&mut self) -> Bytes {
        if self.standing == Standing::InProgress {
            self.standing = Standing::Completed;
        }
        let ended = self.told(|telling, told| {
            telling.close_as(telling.standing.item(), told);
            let name = format!("response.{}", telling.standing.status());
            told.event(&name, json!({ "response": telling.response() }));
            Ok(())
        });
        // Nothing in there can go wrong.
        ended.unwrap_or_default()
    }

    /// The last events of a response that broke off: `problem` as OpenAI's libraries know errors,
    /// and what there is of the response.
    #[must_use]
    pub fn broken(&self, problem: &Value) -> Bytes {
        let mut sequence = self.sequence;
        let mut told = Told {
            page: Page::default(),
            sequence: &mut sequence,
            after: None,
        };
        let [code, message, param] = ["code", "message", "param"].map(|field| &problem[field]);
        // Some libraries read it flat, some raise what stands in `error`.
        let error = json!({ "code": code, "message": message, "param": param, "error": problem });
        told.event("error", error);
        let why = message.as_str().unwrap_or_default();
        let failed = json!({ "response": self.failed(why) });
        told.event("response.failed", failed);
        told.page.into()
    }

    /// The response as far as it was told.
    #[must_use]
    pub fn response(&self) -> Value {
        document(&self.head, &self.standing, &self.output, self.usage)
    }

    /// The response as far as it was said, the open item with it. It is not over before its bill
    /// is there, whatever was said last.
    #[must_use]
    pub fn so_far(&self) -> Value {
        let standing = match self.standing {
            Standing::Queued => Standing::Queued,
            _ => Standing::InProgress,
        };
        let mut output = self.output.clone();
        output.extend(self.open.as_ref().map(|open| open.item("in_progress")));
        document(&self.head, &standing, &output, None)
    }

    /// How each item was told, for telling it again by the same numbers.
    #[must_use]
    pub fn steps(&self) -> Vec<Vec<Step>> {
        let open = self.open.iter().map(|open| open.steps.clone());
        self.steps.iter().cloned().chain(open).collect()
    }

    /// About how many bytes are kept of what was said so far: text, names, logprobs, and what each
    /// item and each step takes besides.
    #[must_use]
    pub const fn kept(&self) -> usize {
        self.kept
    }

    /// It stands so from now on, whatever was said.
    pub fn stands(&mut self, standing: Standing) {
        self.standing = standing;
    }

    /// The model that answers, as its offer names it.
    pub fn answered_by(&mut self, model: &str) {
        self.head.model = model.to_owned();
        self.standing = Standing::InProgress;
    }

    /// The events after the number `after` of what was said so far, and the number of the next.
    /// `ended` is the response, if all is said.
    #[must_use]
    pub fn since(&self, after: Option<u64>, ended: Option<&Value>) -> (Bytes, u64) {
        let empty = || document(&self.head, &Standing::InProgress, &[], None);
        let script = Script {
            queued: self.head.background(),
            begun: self.standing != Standing::Queued,
            items: &self.output,
            steps: Some(&self.steps),
            open: self.open.as_ref(),
            ended,
        };
        script.since(&empty, after)
    }

    /// The response, had it ended here for this reason.
    #[must_use]
    pub fn failed(&self, why: &str) -> Value {
        let standing = Standing::Failed(why.to_owned());
        let mut output = self.output.clone();
        output.extend(self.open.as_ref().map(|open| open.item(standing.item())));
        document(&self.head, &standing, &output, self.usage)
    }

    /// Tells something, after what comes before everything.
    fn told(
        &mut self,
        tell: impl FnOnce(&mut Self, &mut Told<'_>) -> Result<(), Strange>,
    ) -> Result<Bytes, Strange> {
        let mut sequence = self.sequence;
        let mut told = Told {
            page: Page::default(),
            sequence: &mut sequence,
            after: None,
        };
        if !std::mem::replace(&mut self.begun, true) {
            let empty = || document(&self.head, &Standing::InProgress, &[], None);
            again::begin(self.head.background(), true, &empty, &mut told);
        }
        let result = tell(self, &mut told);
        let page = told.page;
        self.sequence = sequence;
        result.map(|()| page.into())
    }

    fn choice(&mut self, choice: &mut Choice, pieces: Vec<Piece>, told: &mut Told<'_>) {
        let logprobs = choice.logprobs.take().and_then(|it| it.content);
        let mut logprobs = logprobs.unwrap_or_default();
        for piece in pieces {
            let (kind, text) = match piece {
                Piece::Thought(text) => (Kind::Thought, text),
                Piece::Text(text) => (Kind::Text, text),
                Piece::Refusal(text) => (Kind::Refusal, text),
                Piece::Call { id, name } => {
                    self.close_as("completed", told);
                    self.turn_to(Kind::Call { id, name }, told);
                    continue;
                }
                Piece::Arguments(part) => {
                    self.more(&part, Vec::new(), told);
                    continue;
                }
            };
            self.turn_to(kind.clone(), told);
            let logprobs = match kind {
                Kind::Text => std::mem::take(&mut logprobs),
                _ => Vec::new(),
            };
            self.more(&text, logprobs, told);
        }
        if let Some(reason) = choice.finish_reason.as_deref() {
            self.standing = Standing::of(Some(reason));
        }
    }

    fn turn_to(&mut self, kind: Kind, told: &mut Told<'_>) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        // What was being said is whole: more follows it.
        self.close_as("completed", told);
        let index = self.output.len();
        let prefix = match kind {
            Kind::Thought => "rs",
            Kind::Text | Kind::Refusal => "msg",
            Kind::Call { .. } => "fc",
        };
        let named = match &kind {
            Kind::Call { id, name } => id.len() + name.len(),
            Kind::Thought | Kind::Text | Kind::Refusal => 0,
        };
        self.kept += ITEM + named;
        let open = Open {
            kind,
            id: format!("{prefix}_{stem}o{index}", stem = self.stem),
            said: String::new(),
            logprobs: Vec::new(),
            steps: Vec::new(),
        };
        open.begin(index, told);
        self.open = Some(open);
    }

    fn more(&mut self, text: &str, logprobs: Vec<Value>, told: &mut Told<'_>) {
        let index = self.output.len();
        if let Some(open) = &mut self.open {
            let one = |logprob: &Value| logprob.to_string().len();
            self.kept += STEP + text.len() + logprobs.iter().map(one).sum::<usize>();
            open.more(text, logprobs, index, told);
        }
    }

    fn close_as(&mut self, status: &str, told: &mut Told<'_>) {
        if let Some(open) = self.open.take() {
            let item = open.end(status, self.output.len(), told);
            self.output.push(item);
            self.steps.push(open.steps);
        }
    }
}
