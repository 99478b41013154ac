//! A response is told again, from any number on: by the numbers of the first telling where it is
//! known how each item was told, else as if each were said at once. Pure.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::gateway::chat::Page;
use crate::gateway::responses::item::{Open, Step, Told, text_of};

/// What there is of a response.
pub(super) struct Script<'a> {
    /// Whether it was queued before it began.
    pub(super) queued: bool,
    /// Whether it has begun.
    pub(super) begun: bool,
    /// The items that are whole.
    pub(super) items: &'a [Value],
    /// How each of them was told; `None` if nobody knows.
    pub(super) steps: Option<&'a [Vec<Step>]>,
    /// The item that is being said.
    pub(super) open: Option<&'a Open>,
    /// The response, once it is over.
    pub(super) ended: Option<&'a Value>,
}

impl Script<'_> {
    /// The events after the number `after`, and the number of the one that comes next. `empty` is
    /// the response before anything was said.
    pub(super) fn since(&self, empty: &dyn Fn() -> Value, after: Option<u64>) -> (Bytes, u64) {
        let mut sequence = 0;
        let mut told = Told {
            page: Page::default(),
            sequence: &mut sequence,
            after,
        };
        begin(self.queued, self.begun, empty, &mut told);
        for (index, item) in self.items.iter().enumerate() {
            let whole = Open::of(item);
            let once = [(whole.said.len(), whole.logprobs.len())];
            let steps = match self.steps {
                Some(steps) => steps.get(index).map_or(&[][..], Vec::as_slice),
                None => &once,
            };
            let (first, last) = whole.edges();
            if told.passes(first + steps.len() as u64 + last) {
                continue;
            }
            let open = tell(&whole, steps, index, &mut told);
            open.end(text_of(&item["status"]), index, &mut told);
        }
        if let Some(open) = self.open {
            tell(open, &open.steps, self.items.len(), &mut told);
        }
        if let Some(response) = self.ended {
            let name = format!("response.{}", text_of(&response["status"]));
            told.event(&name, json!({ "response": response }));
        }
        let page = told.page;
        (page.into(), sequence)
    }
}

/// The events before everything.
pub(super) fn begin(queued: bool, begun: bool, empty: &dyn Fn() -> Value, told: &mut Told<'_>) {
    let waits: &[&str] = match queued {
        true => &["response.created", "response.queued"],
        false => &["response.created"],
    };
    let first = waits.iter().map(|name| (*name, queued));
    let then = begun.then_some(("response.in_progress", false));
    for (name, queued) in first.chain(then) {
        if told.passes(1) {
            continue;
        }
        let mut response = empty();
        if queued {
            response["status"] = "queued".into();
        }
        told.event(name, json!({ "response": response }));
    }
}

/// Tells that an item begins and what was said of it: the item as it was then.
fn tell(whole: &Open, steps: &[Step], index: usize, told: &mut Told<'_>) -> Open {
    let mut open = whole.unsaid();
    open.begin(index, told);
    let (passed, due) = steps.split_at(told.passed(steps.len()));
    if let Some((text, logprobs)) = passed.last() {
        let said = whole.said.get(..*text).unwrap_or_default();
        open.said.push_str(said);
        let logprobs = whole.logprobs.get(..*logprobs).unwrap_or_default();
        open.logprobs.extend_from_slice(logprobs);
    }
    for (text, logprobs) in due {
        let more = whole.said.get(open.said.len()..*text).unwrap_or_default();
        let logprobs = whole.logprobs.get(open.logprobs.len()..*logprobs);
        let logprobs = logprobs.unwrap_or_default().to_vec();
        open.more(more, logprobs, index, told);
    }
    open
}

/// The events of a response that is over, without those up to the number `after`; `steps` says how
/// each item was told the first time.
#[must_use]
pub fn again(response: &Value, steps: Option<&[Vec<Step>]>, after: Option<u64>) -> Bytes {
    let empty = || {
        let mut empty = response.clone();
        empty["status"] = "in_progress".into();
        empty["output"] = json!([]);
        for field in ["usage", "error", "incomplete_details"] {
            empty[field] = Value::Null;
        }
        empty
    };
    let items = response["output"].as_array();
    let script = Script {
        queued: response["background"] == true,
        begun: true,
        items: items.map_or(&[], Vec::as_slice),
        steps,
        open: None,
        ended: Some(response),
    };
    script.since(&empty, after).0
}
