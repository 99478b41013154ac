//! Whether an answer is what was asked for: tools called by their names with arguments that are
//! theirs, JSON where JSON was wanted. Pure, bounded, and no judge of taste: what was cut short,
//! or is longer than is kept, is not judged.

use std::borrow::Cow;
use std::collections::BTreeMap;

use farthing_protocol::body::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The most bytes of an answer that are kept to be looked at.
const MOST_BYTES: usize = 256 * 1024;
/// The most calls of tools in one answer that are kept.
const MOST_CALLS: usize = 64;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::client) enum Fault {
    #[error("it calls a tool that was not offered")]
    UnknownTool,
    #[error("the arguments of a tool are no JSON object")]
    Arguments,
    #[error("the arguments of a tool lack what the tool requires")]
    Required,
    #[error("it is not the JSON that was asked for")]
    NotJson,
}

/// What an answer must be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::client) struct Expected {
    /// The tools on offer and what each requires.
    tools: BTreeMap<String, Vec<String>>,
    /// The members of the JSON object that is wanted; none wanted: no matter.
    json: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Tool {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Value,
}

impl Expected {
    /// What this request's answer must be; none if anything will do.
    pub(in crate::client) fn of(body: &Body<'_>) -> Option<Self> {
        let mut expected = Self::default();
        if let Ok(Some(tools)) = body.get::<Vec<Value>>("tools") {
            // A tool of another kind than a function leaves the list incomplete: none is judged.
            let read = |tool| serde_json::from_value::<Tool>(tool).ok();
            let tools: Option<Vec<_>> = tools.into_iter().map(read).collect();
            let named = tools.into_iter().flatten().map(|tool| {
                let Function { name, parameters } = tool.function;
                (name, required(&parameters))
            });
            expected.tools = named.collect();
        }
        if let Ok(Some(format)) = body.get::<Value>("response_format") {
            expected.json = match format.get("type").and_then(Value::as_str) {
                Some("json_object") => Some(Vec::new()),
                Some("json_schema") => object(&format["json_schema"]["schema"]),
                _ => None,
            };
        }
        (expected != Self::default()).then_some(expected)
    }
}

/// The members a schema requires, if it is one of an object.
fn object(schema: &Value) -> Option<Vec<String>> {
    let is_object = schema.get("type").and_then(Value::as_str) == Some("object");
    is_object.then(|| required(schema))
}

fn required(schema: &Value) -> Vec<String> {
    let names = schema.get("required").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    delta: Option<Part<'a>>,
    #[serde(borrow, default)]
    message: Option<Part<'a>>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<Call<'a>>>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    function: Option<Called<'a>>,
}

#[derive(Deserialize)]
struct Called<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    arguments: Option<Cow<'a, str>>,
}

/// An answer as it comes: of its first choice what is said, what is called, and how it ends.
#[derive(Debug, Default)]
pub(in crate::client) struct Spoken {
    text: String,
    calls: BTreeMap<u32, (String, String)>,
    finish: Option<String>,
    /// It thinks aloud, in words that are not kept.
    thinks: bool,
    /// Of another shape, or too long: not to be judged.
    strange: bool,
}

impl Spoken {
    /// Takes in one event, or the document.
    pub(in crate::client) fn hear(&mut self, event: &[u8]) {
        if self.strange {
            return;
        }
        let Ok(message) = serde_json::from_slice::<Message<'_>>(event) else {
            self.strange = true;
            return;
        };
        for choice in message.choices {
            if choice.index == 0 {
                self.take(choice);
            }
        }
        let called = |(name, arguments): &(String, String)| name.len() + arguments.len();
        let bytes = self.text.len() + self.calls.values().map(called).sum::<usize>();
        self.strange = bytes > MOST_BYTES || self.calls.len() > MOST_CALLS;
    }

    fn take(&mut self, choice: Choice<'_>) {
        if let Some(finish) = choice.finish_reason {
            self.finish = Some(finish.into_owned());
        }
        self.text += choice.text.as_deref().unwrap_or_default();
        let parts = [choice.delta, choice.message];
        for part in parts.into_iter().flatten() {
            self.text += part.content.as_deref().unwrap_or_default();
            self.thinks |= part.reasoning.or(part.reasoning_content).is_some();
            for (place, call) in part.tool_calls.into_iter().flatten().enumerate() {
                let place = call.index.or(u32::try_from(place).ok()).unwrap_or(u32::MAX);
                let (name, arguments) = self.calls.entry(place).or_default();
                if let Some(called) = call.function {
                    *name += called.name.as_deref().unwrap_or_default();
                    *arguments += called.arguments.as_deref().unwrap_or_default();
                }
            }
        }
    }

    /// What it says, if it came to its own end and calls nothing.
    pub(in crate::client) fn text(&self) -> Option<&str> {
        let ended = self.finish.as_deref() == Some("stop");
        (ended && !self.strange && self.calls.is_empty()).then_some(self.text.as_str())
    }

    /// Whether its text is all that it has written.
    pub(in crate::client) const fn is_all_said(&self) -> bool {
        !self.thinks
    }

    /// What is wrong with it, by what it must be.
    pub(in crate::client) fn fault(&self, expected: &Expected) -> Option<Fault> {
        let ended = matches!(self.finish.as_deref(), Some("stop" | "tool_calls"));
        if !ended || self.strange {
            return None;
        }
        if !expected.tools.is_empty() {
            let calls = self.calls.values();
            let fault = calls.filter_map(|(name, text)| misuse(&expected.tools, name, text));
            if let Some(fault) = fault.into_iter().next() {
                return Some(fault);
            }
        }
        let wanted = expected.json.as_ref().filter(|_| self.calls.is_empty())?;
        match serde_json::from_str::<Map<String, Value>>(&self.text) {
            Ok(object) if has_all(&object, wanted) => None,
            _ => Some(Fault::NotJson),
        }
    }
}

fn misuse(tools: &BTreeMap<String, Vec<String>>, name: &str, arguments: &str) -> Option<Fault> {
    let Some(required) = tools.get(name) else {
        return Some(Fault::UnknownTool);
    };
    // Of a tool that takes nothing, some servers send nothing.
    if arguments.trim().is_empty() && required.is_empty() {
        return None;
    }
    match serde_json::from_str::<Map<String, Value>>(arguments) {
        Err(_) => Some(Fault::Arguments),
        Ok(given) if has_all(&given, required) => None,
        Ok(_) => Some(Fault::Required),
    }
}

fn has_all(object: &Map<String, Value>, names: &[String]) -> bool {
    names.iter().all(|name| object.contains_key(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn expected(body: &Value) -> Option<Expected> {
        let text = body.to_string();
        Expected::of(&Body::parse(text.as_bytes()).expect("parses"))
    }

    fn tools() -> Value {
        let parameters = json!({"type": "object", "required": ["city"]});
        json!({"tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]})
    }

    fn fault(body: &Value, events: &[Value]) -> Option<Fault> {
        let mut spoken = Spoken::default();
        for event in events {
            spoken.hear(event.to_string().as_bytes());
        }
        spoken.fault(&expected(body).expect("something is expected"))
    }

    fn called(name: &str, arguments: &str) -> Value {
        let call = json!({"id": "1", "function": {"name": name, "arguments": arguments}});
        json!({"choices": [{"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})
    }

    #[test]
    fn a_tool_is_called_by_its_name_with_its_arguments() {
        let body = tools();
        assert_eq!(
            fault(&body, &[called("weather", r#"{"city":"Bern"}"#)]),
            None
        );
        assert_eq!(
            fault(&body, &[called("wether", r#"{"city":"Bern"}"#)]),
            Some(Fault::UnknownTool)
        );
        assert_eq!(
            fault(&body, &[called("weather", r#"{"city":"#)]),
            Some(Fault::Arguments)
        );
        assert_eq!(
            fault(&body, &[called("weather", r#"{"town":"Bern"}"#)]),
            Some(Fault::Required)
        );
    }

    #[test]
    fn arguments_that_come_in_pieces_are_put_together() {
        let piece = |name: Value, text: &str| {
            let call = json!({"index": 0, "function": {"name": name, "arguments": text}});
            json!({"choices": [{"index": 0, "delta": {"content": null, "tool_calls": [call]}}]})
        };
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
        let events = [
            piece(json!("weather"), r#"{"ci"#),
            piece(Value::Null, r#"ty":"Bern"}"#),
            end,
        ];
        assert_eq!(fault(&tools(), &events), None);
        assert_eq!(
            fault(&tools(), &[events[0].clone(), events[2].clone()]),
            Some(Fault::Arguments)
        );
    }

    #[test]
    fn json_is_json_where_it_was_asked_for() {
        let said = |text: &str, finish: &str| json!({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": finish}]});
        let schema = json!({"type": "object", "required": ["answer"]});
        let object = json!({"response_format": {"type": "json_object"}});
        let strict =
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
        assert_eq!(fault(&object, &[said("{\"a\":1}", "stop")]), None);
        assert_eq!(
            fault(&object, &[said("Sure! {\"a\":1}", "stop")]),
            Some(Fault::NotJson)
        );
        assert_eq!(
            fault(&strict, &[said("{\"a\":1}", "stop")]),
            Some(Fault::NotJson)
        );
        assert_eq!(fault(&strict, &[said("{\"answer\":1}", "stop")]), None);
        assert_eq!(
            fault(&object, &[said("{\"a\":", "length")]),
            None,
            "what was cut short is nobody's fault"
        );
    }

    #[test]
    fn what_asks_for_nothing_in_particular_is_not_looked_at() {
        assert_eq!(expected(&json!({"messages": []})), None);
        assert_eq!(
            expected(&json!({"response_format": {"type": "text"}, "tools": []})),
            None
        );
        assert_eq!(
            expected(&json!({"tools": [{"type": "web_search"}]})),
            None,
            "tools of the server's own"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_without_harm(events in proptest::collection::vec(".{0,80}", 0..8)) {
            let mut spoken = Spoken::default();
            for event in events {
                spoken.hear(event.as_bytes());
            }
            let expected = expected(&tools()).expect("tools");
            spoken.fault(&expected);
        }
    }
}
