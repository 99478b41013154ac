//! What a request needs of a model beyond text. Pure.

use farthing_protocol::body::Body;
use serde::{Deserialize, Serialize};

/// Features that a request asks for, by the names that offers state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one feature, and all go together"
)]
pub struct Needs {
    /// It brings tools.
    pub tools: bool,
    /// The answer must follow a schema.
    pub json_schema: bool,
    /// The probabilities of tokens are wanted.
    pub logprobs: bool,
    /// There are images in it.
    pub vision: bool,
    /// There is sound in it, or sound is wanted.
    pub audio: bool,
}

impl Needs {
    /// What this body asks for.
    pub(super) fn of(body: &Body<'_>) -> Self {
        let content = body.raw("messages").unwrap_or_default();
        let given = |field| body.raw(field).is_some_and(|text| !is_nothing(text));
        let format = body.raw("response_format").unwrap_or_default();
        Self {
            tools: given("tools") || given("functions"),
            json_schema: format.contains("\"json_schema\""),
            logprobs: given("logprobs"),
            // Within a text such a word would have its quotation marks escaped.
            vision: content.contains("\"image_url\"") || content.contains("\"input_image\""),
            audio: content.contains("\"input_audio\"")
                || body
                    .raw("modalities")
                    .is_some_and(|m| m.contains("\"audio\"")),
        }
    }

    /// Those without which there is no sensible answer: a model that cannot see answers about an
    /// image it has not seen.
    pub fn senses(self) -> impl Iterator<Item = &'static str> {
        let all = [(self.vision, "vision"), (self.audio, "audio")];
        all.into_iter().filter_map(|(is, name)| is.then_some(name))
    }

    /// The others: many sellers have them and do not say so.
    pub fn skills(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.tools, "tools"),
            (self.json_schema, "json_schema"),
            (self.logprobs, "logprobs"),
        ];
        all.into_iter().filter_map(|(is, name)| is.then_some(name))
    }
}

/// A field that is there and asks for nothing.
fn is_nothing(text: &str) -> bool {
    let bare: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .take(6)
        .collect();
    matches!(bare.as_str(), "[]" | "false" | "{}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(text: &str) -> Needs {
        Needs::of(&Body::parse(text.as_bytes()).expect("parses"))
    }

    #[test]
    fn what_a_body_asks_for_is_read_from_its_fields() {
        let none = needs(
            r#"{"messages":[],"tools":[ ],"logprobs":false,"response_format":{"type":"text"}}"#,
        );
        assert_eq!(none, Needs::default());
        let some = needs(
            r#"{"tools":[{"type":"function"}],"logprobs":true,"response_format":{"type":"json_schema"}}"#,
        );
        assert_eq!(
            some.skills().collect::<Vec<_>>(),
            ["tools", "json_schema", "logprobs"]
        );
        let image = needs(
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}"#,
        );
        assert_eq!(image.senses().collect::<Vec<_>>(), ["vision"]);
    }

    #[test]
    fn a_text_about_images_is_no_image() {
        let text = serde_json::json!({
            "messages": [{"role": "user", "content": "what does {\"image_url\": 1} mean?"}],
        });
        assert_eq!(needs(&text.to_string()), Needs::default());
    }
}
