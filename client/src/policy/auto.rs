//! `model: "auto"`: which models a request goes to, by the rules of the configuration. Pure.
//!
//! A rule fits when all its conditions do; the first that fits decides. What a request is about
//! is guessed from its last message by words alone, unless `metadata.task` says it.

use farthing_protocol::body::{Body, BodyError};
use farthing_protocol::purchase::Endpoint;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::{Auto, Task};
use crate::policy::needs::Needs;

/// So much of a message is looked at, from either end.
const LOOKED_AT: usize = 8 * 1024;

/// What the rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) task: Task,
    pub(super) prompt: u32,
    pub(super) needs: Needs,
}

/// The first rule that fits, and its place.
pub(super) fn choose<'a>(rules: &'a [Auto], facts: &Facts) -> Option<(usize, &'a Auto)> {
    rules.iter().enumerate().find(|(_, rule)| fits(rule, facts))
}

fn fits(rule: &Auto, facts: &Facts) -> bool {
    let is = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    (rule.tasks.is_empty() || rule.tasks.contains(&facts.task))
        && rule.min_prompt.is_none_or(|least| facts.prompt >= least)
        && rule.max_prompt.is_none_or(|most| facts.prompt <= most)
        && is(rule.tools, facts.needs.tools)
        && is(rule.images, facts.needs.vision)
        && is(rule.schema, facts.needs.json_schema)
}

/// What a request is about.
pub(super) fn task(body: &Body<'_>, endpoint: Endpoint) -> Result<Task, BodyError> {
    #[derive(Deserialize)]
    struct Metadata {
        task: Option<Task>,
    }
    if let Some(said) = body.get::<Metadata>("metadata")?.and_then(|m| m.task) {
        return Ok(said);
    }
    Ok(match endpoint {
        Endpoint::Embeddings | Endpoint::Moderations => Task::Chat,
        Endpoint::Completions => guess(body.raw("prompt").unwrap_or_default()),
        Endpoint::Chat => {
            let messages = body.raw("messages").unwrap_or_default();
            let messages: Vec<&RawValue> = serde_json::from_str(messages).unwrap_or_default();
            guess(messages.last().map_or("", |message| message.get()))
        }
    })
}

/// Words by which a task is known, and how many of them it takes.
const CODE: &[&str] = &[
    "fn ",
    "def ",
    "class ",
    "import ",
    "function",
    "return ",
    "compile",
    "stack trace",
    "refactor",
    "unit test",
    "select * from",
    "regex",
    "python",
    "rust",
    "javascript",
    "typescript",
    "bug",
];
const MATH: &[&str] = &[
    "prove",
    "theorem",
    "integral",
    "derivative",
    "equation",
    "solve for",
    "\\\\frac",
    "matrix",
    "probability",
];
const TRANSLATION: &[&str] = &["translate", "translation"];
const SUMMARY: &[&str] = &["summarize", "summarise", "summary", "tl;dr"];

fn guess(message: &str) -> Task {
    let text = ends(message).to_ascii_lowercase();
    let count = |words: &[&str]| words.iter().filter(|word| text.contains(**word)).count();
    if text.contains("```") || count(CODE) >= 2 {
        Task::Code
    } else if count(TRANSLATION) > 0 {
        Task::Translation
    } else if count(SUMMARY) > 0 {
        Task::Summary
    } else if count(MATH) >= 2 {
        Task::Math
    } else {
        Task::Chat
    }
}

/// The beginning and the end of a long text: what is wanted stands at either.
fn ends(text: &str) -> String {
    if text.len() <= 2 * LOOKED_AT {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(LOOKED_AT);
    let tail = text.ceil_char_boundary(text.len() - LOOKED_AT);
    format!("{} {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task_of(message: &str) -> Task {
        let body = serde_json::json!({"messages": [{"role": "user", "content": message}]});
        let text = body.to_string();
        let body = Body::parse(text.as_bytes()).expect("parses");
        task(&body, Endpoint::Chat).expect("is read")
    }

    #[test]
    fn a_task_is_guessed_by_words_or_said() {
        assert_eq!(task_of("Hello there"), Task::Chat);
        assert_eq!(task_of("why does this break? ```x = 1```"), Task::Code);
        assert_eq!(task_of("Refactor this Python function"), Task::Code);
        assert_eq!(task_of("Please translate: good morning"), Task::Translation);
        assert_eq!(task_of("TL;DR of the following"), Task::Summary);
        assert_eq!(task_of("Prove the theorem by induction"), Task::Math);
        let said = Body::parse(br#"{"metadata":{"task":"math"},"messages":[]}"#).expect("parses");
        assert_eq!(task(&said, Endpoint::Chat), Ok(Task::Math));
        let wrong = Body::parse(br#"{"metadata":{"task":"dance"}}"#).expect("parses");
        let error = task(&wrong, Endpoint::Chat).expect_err("is refused");
        assert!(error.to_string().contains("`metadata`"));
    }

    #[test]
    fn a_long_message_is_looked_at_from_both_ends() {
        let filler = "\u{e9}".repeat(50_000);
        assert_eq!(
            task_of(&format!("{filler} translate this")),
            Task::Translation
        );
        assert_eq!(
            task_of(&format!("translate this {filler}")),
            Task::Translation
        );
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |tasks: &[Task], min_prompt, tools, model: &str| Auto {
            tasks: tasks.to_vec(),
            min_prompt,
            tools,
            models: vec![model.to_owned()],
            ..Auto::default()
        };
        let rules = [
            rule(&[Task::Code], None, Some(true), "agent"),
            rule(&[Task::Code], None, None, "coder"),
            rule(&[], Some(10_000), None, "long"),
            rule(&[], None, None, "small"),
        ];
        let chosen = |task, prompt, tools| {
            let needs = Needs {
                tools,
                ..Needs::default()
            };
            let facts = Facts {
                task,
                prompt,
                needs,
            };
            let (place, rule) = choose(&rules, &facts).expect("fits");
            (place, rule.models[0].clone())
        };
        assert_eq!(chosen(Task::Code, 5, true), (0, "agent".into()));
        assert_eq!(chosen(Task::Code, 5, false), (1, "coder".into()));
        assert_eq!(chosen(Task::Chat, 20_000, false), (2, "long".into()));
        assert_eq!(chosen(Task::Chat, 5, false), (3, "small".into()));
        let facts = Facts {
            task: Task::Chat,
            prompt: 5,
            needs: Needs::default(),
        };
        assert_eq!(choose(&rules[..3], &facts), None);
    }
}
