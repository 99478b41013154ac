//! What it can do beside saying its words: call tools and keep to a JSON schema.
//!
//! It does what the request asks for and nothing else. A tool is called when `tool_choice` forces
//! one, or when the last message is the user's and names one, whole or by a word of its name. An
//! answer is JSON when `response_format` asks for it. Values follow the schema: numbers and quoted
//! words come from the message, in order; where it has none left they are always the same.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// A part of a tool's name that is shorter names nothing.
const SHORTEST: usize = 5;
/// Characters that count as one token of JSON.
const CHARS: usize = 6;
/// How deep a schema is followed.
const DEPTH: usize = 16;

/// What of a request asks for a skill.
pub(super) struct Wanted<'a> {
    pub(super) messages: Option<&'a RawValue>,
    pub(super) tools: Option<&'a RawValue>,
    pub(super) tool_choice: Option<&'a RawValue>,
    pub(super) parallel: Option<bool>,
    pub(super) response_format: Option<&'a RawValue>,
}

/// An answer that is not the words: as deltas of its message, each of which is a token.
#[derive(Debug)]
pub(super) struct Skill {
    deltas: Vec<Value>,
    calls: bool,
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

impl Skill {
    /// What the request asks for, if it is more than words.
    pub(super) fn of(wanted: &Wanted<'_>) -> Option<Self> {
        if wanted.tools.is_none() && wanted.response_format.is_none() {
            return None;
        }
        let last = Last::of(wanted.messages);
        let called = called(wanted, &last);
        if !called.is_empty() {
            return Some(Self::calling(&called, &last));
        }
        let format: Value = serde_json::from_str(wanted.response_format?.get()).ok()?;
        let value = match format["type"].as_str()? {
            "json_schema" => {
                let schema = &format["json_schema"]["schema"];
                Filler::new(schema, &last.text).fill(schema, DEPTH)
            }
            // The keys that the prompt puts into quotes.
            "json_object" => {
                let keys = quoted(&last.text).into_iter();
                Value::Object(keys.map(|key| (key, json!("farthing"))).collect())
            }
            _ => return None,
        };
        let pieces = pieces(&value.to_string()).into_iter();
        let deltas = pieces.map(|piece| json!({"content": piece}));
        Some(Self {
            deltas: deltas.collect(),
            calls: false,
        })
    }

    fn calling(called: &[Function], last: &Last) -> Self {
        let mut deltas = Vec::new();
        for (index, function) in called.iter().enumerate() {
            let schema = &function.parameters;
            let values = Filler::new(schema, &last.text).fill(schema, DEPTH);
            let arguments = match values {
                Value::Object(_) => values.to_string(),
                _ => "{}".to_owned(),
            };
            let id = format!("call_mock_{index}");
            let begin = json!({"index": index, "id": id, "type": "function", "function": {"name": function.name, "arguments": ""}});
            deltas.push(json!({"tool_calls": [begin]}));
            deltas.extend(pieces(&arguments).into_iter().map(
                |piece| json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}),
            ));
        }
        Self {
            deltas,
            calls: true,
        }
    }

    /// How many tokens it has.
    pub(super) fn tokens(&self) -> usize {
        self.deltas.len()
    }

    /// Why it ends after so many tokens.
    pub(super) fn reason(&self, tokens: usize) -> &'static str {
        match self.calls {
            _ if tokens < self.deltas.len() => "length",
            true => "tool_calls",
            false => "stop",
        }
    }

    /// Its first tokens as deltas of a stream.
    pub(super) fn deltas(&self, tokens: usize) -> impl Iterator<Item = String> {
        self.deltas.iter().take(tokens).map(Value::to_string)
    }

    /// Its first tokens as one message.
    pub(super) fn message(&self, tokens: usize) -> Value {
        let mut text = String::new();
        let mut calls: Vec<Value> = Vec::new();
        for delta in self.deltas.iter().take(tokens) {
            text.push_str(delta["content"].as_str().unwrap_or_default());
            let Some(call) = delta["tool_calls"].get(0) else {
                continue;
            };
            let more = call["function"]["arguments"].as_str().unwrap_or_default();
            if call["id"].is_string() {
                let mut begun = call.clone();
                begun.as_object_mut().map(|call| call.remove("index"));
                calls.push(begun);
            } else if let Some(Value::String(arguments)) = calls
                .last_mut()
                .and_then(|call| call.pointer_mut("/function/arguments"))
            {
                arguments.push_str(more);
            }
        }
        match calls.is_empty() {
            true => json!({"role": "assistant", "content": text}),
            false => json!({"role": "assistant", "content": null, "tool_calls": calls}),
        }
    }
}

/// The last message.
struct Last {
    is_user: bool,
    text: String,
}

impl Last {
    fn of(messages: Option<&RawValue>) -> Self {
        let all: Vec<Value> = messages
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or_default();
        let last = all.last().cloned().unwrap_or_default();
        let parts = last["content"].as_array().into_iter().flatten();
        let parts = parts.filter_map(|part| part["text"].as_str());
        let whole = last["content"].as_str().into_iter();
        Self {
            is_user: last["role"] == "user",
            text: whole.chain(parts).collect::<Vec<_>>().join(" "),
        }
    }

    fn names(&self, tool: &str) -> bool {
        let text = self.text.to_lowercase();
        let tool = tool.to_lowercase();
        let words = tool.split(['_', '-', '.', ' ']);
        let mut long = words.filter(|word| word.len() >= SHORTEST);
        self.is_user && (text.contains(&tool) || long.any(|word| text.contains(word)))
    }
}

/// The functions to call.
fn called(wanted: &Wanted<'_>, last: &Last) -> Vec<Function> {
    let tools: Vec<Tool> = wanted
        .tools
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default();
    let choice: Value = wanted
        .tool_choice
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default();
    let functions = tools.into_iter().map(|tool| tool.function);
    if let Some(forced) = choice["function"]["name"].as_str() {
        return functions.filter(|one| one.name == forced).collect();
    }
    let (mut named, others): (Vec<_>, Vec<_>) = functions.partition(|one| last.names(&one.name));
    match choice.as_str() {
        Some("none") => Vec::new(),
        Some("required") if named.is_empty() => others.into_iter().take(1).collect(),
        _ => {
            if wanted.parallel == Some(false) {
                named.truncate(1);
            }
            named
        }
    }
}

/// Makes values that fit a schema.
struct Filler<'a> {
    root: &'a Value,
    numbers: std::vec::IntoIter<Value>,
    words: std::vec::IntoIter<String>,
}

impl<'a> Filler<'a> {
    fn new(root: &'a Value, text: &str) -> Self {
        let digits = text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-')));
        let numbers = digits.filter_map(|word| {
            let number: Value = serde_json::from_str(word.trim_matches('.')).ok()?;
            number.is_number().then_some(number)
        });
        Self {
            root,
            numbers: numbers.collect::<Vec<_>>().into_iter(),
            words: quoted(text).into_iter(),
        }
    }

    fn fill(&mut self, schema: &Value, depth: usize) -> Value {
        let Some(depth) = depth.checked_sub(1) else {
            return Value::Null;
        };
        let defined = schema["$ref"].as_str().and_then(|name| {
            let path = name.strip_prefix('#')?;
            self.root.pointer(path)
        });
        if let Some(defined) = defined {
            return self.fill(defined, depth);
        }
        if let Some(value) = schema.get("const").or_else(|| schema["enum"].get(0)) {
            return value.clone();
        }
        let ways = ["anyOf", "oneOf", "allOf"].iter();
        let mut ways = ways.filter_map(|name| schema[name].as_array()).flatten();
        if let Some(way) = ways.find(|way| way["type"] != "null") {
            return self.fill(way, depth);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null"),
            kind => Some(kind),
        };
        match kind.and_then(Value::as_str) {
            Some("string") => Value::from(self.words.next().unwrap_or_else(|| "farthing".into())),
            Some("integer" | "number") => self.numbers.next().unwrap_or_else(|| json!(1)),
            Some("boolean") => json!(true),
            Some("array") => json!([self.fill(&schema["items"], depth)]),
            Some("null") => Value::Null,
            _ => {
                let properties = schema["properties"].as_object().into_iter().flatten();
                let filled = properties.map(|(name, one)| (name.clone(), self.fill(one, depth)));
                Value::Object(filled.collect::<Map<_, _>>())
            }
        }
    }
}

/// The words in quotes; an apostrophe within a word is none.
fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(at) = rest.find(['\'', '"']) {
        before = rest[..at].chars().last().unwrap_or(before);
        let mark = &rest[at..=at];
        let inner = &rest[at + 1..];
        match inner.find(mark) {
            Some(end) if !before.is_alphanumeric() => {
                found.push(inner[..end].to_owned());
                rest = &inner[end + 1..];
            }
            _ => rest = inner,
        }
        before = mark.chars().next().unwrap_or(before);
    }
    found
}

/// A text in pieces of a few characters.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let pieces = chars.chunks(CHARS);
    pieces.map(|piece| piece.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).expect("JSON")
    }

    fn skill(request: &Value) -> Option<Skill> {
        let field = |name: &str| request.get(name).map(raw);
        let (messages, tools) = (field("messages"), field("tools"));
        let (choice, format) = (field("tool_choice"), field("response_format"));
        Skill::of(&Wanted {
            messages: messages.as_deref(),
            tools: tools.as_deref(),
            tool_choice: choice.as_deref(),
            parallel: request["parallel_tool_calls"].as_bool(),
            response_format: format.as_deref(),
        })
    }

    fn asking(text: &str, more: Value) -> Value {
        let weather = json!({"type": "object", "properties": {"place": {"type": "string"}}});
        let add = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["number", "null"]}}});
        let tool = |name: &str, schema: &Value| json!({"type": "function", "function": {"name": name, "parameters": schema}});
        let mut request = json!({
            "messages": [{"role": "user", "content": text}],
            "tools": [tool("get_weather", &weather), tool("add_up", &add)],
        });
        for (name, value) in more.as_object().expect("an object") {
            request[name] = value.clone();
        }
        request
    }

    fn calls(request: &Value) -> Vec<(String, String)> {
        let Some(skill) = skill(request) else {
            return Vec::new();
        };
        let message = skill.message(usize::MAX);
        let calls = message["tool_calls"].as_array().expect("calls").iter();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        calls
            .map(|call| {
                let function = &call["function"];
                (text(&function["name"]), text(&function["arguments"]))
            })
            .collect()
    }

    #[test]
    fn a_tool_is_called_that_the_prompt_names_with_what_it_says() {
        let said = |name: &str, arguments: &str| vec![(name.to_owned(), arguments.to_owned())];
        let asked = asking("What's the weather in 'Bath'?", json!({}));
        assert_eq!(calls(&asked), said("get_weather", r#"{"place":"Bath"}"#));
        let asked = asking("add_up 3 and 4.5.", json!({}));
        assert_eq!(calls(&asked), said("add_up", r#"{"a":3,"b":4.5}"#));
        assert!(calls(&asking("Hello!", json!({}))).is_empty());
        let both = asking("weather, then add_up", json!({}));
        assert_eq!(calls(&both).len(), 2);
        let one = asking(
            "weather, then add_up",
            json!({"parallel_tool_calls": false}),
        );
        assert_eq!(calls(&one).len(), 1);
    }

    #[test]
    fn a_choice_goes_before_the_prompt() {
        let forced = json!({"tool_choice": {"type": "function", "function": {"name": "add_up"}}});
        assert_eq!(calls(&asking("the weather", forced))[0].0, "add_up");
        let any = json!({"tool_choice": "required"});
        assert_eq!(calls(&asking("Hello!", any)).len(), 1);
        let none = json!({"tool_choice": "none"});
        assert!(calls(&asking("the weather", none)).is_empty());
        let after = json!({"messages": [{"role": "tool", "content": "the weather is fine"}]});
        assert!(calls(&asking("", after)).is_empty());
    }

    #[test]
    fn an_answer_fits_its_schema_and_a_short_one_says_so() {
        let schema = json!({
            "type": "object",
            "properties": {"who": {"$ref": "#/$defs/Who"}, "many": {"type": "array", "items": {"type": "boolean"}}},
            "$defs": {"Who": {"anyOf": [{"type": "null"}, {"enum": ["me", "you"]}]}},
        });
        let asked = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        });
        let skill = skill(&asked).expect("JSON");
        let text = r#"{"many":[true],"who":"me"}"#;
        assert_eq!(skill.message(usize::MAX)["content"], text);
        assert_eq!(skill.reason(skill.tokens()), "stop");
        assert_eq!(
            (skill.reason(1), &skill.message(1)["content"]),
            ("length", &json!("{\"many"))
        );
    }

    #[test]
    fn json_mode_takes_its_keys_from_the_prompt() {
        let asked = json!({
            "messages": [{"role": "user", "content": "JSON with 'setup' and \"end\" keys"}],
            "response_format": {"type": "json_object"},
        });
        let text = r#"{"end":"farthing","setup":"farthing"}"#;
        let skill = skill(&asked).expect("JSON");
        assert_eq!(skill.message(usize::MAX)["content"], text);
    }
}
