//! Which conversation a request belongs to, so that the seller that has read its beginning can be
//! asked again. Pure; a conversation's name is a hash, and nothing of it is kept.

use std::hash::{DefaultHasher, Hash, Hasher};

use farthing_protocol::body::{Body, BodyError};
use farthing_protocol::identity::NodeId;
use serde::{Deserialize, Serialize};

/// Prompts shorter than this, in bytes, are not worth a seller's cache.
const LONG: usize = 2048;
/// So much of the beginning tells conversations apart.
const PREFIX: usize = 1024;

/// A conversation's name: a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session(pub u64);

/// The seller that has the beginning of a prompt in its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// The seller.
    pub seller: NodeId,
    /// Tokens of the prompt that it has, about.
    pub tokens: u32,
}

impl Session {
    /// By `session_id` or `prompt_cache_key`; else, for a long prompt, by its beginning and `user`.
    pub(super) fn of(model: &str, body: &Body<'_>) -> Result<Option<Self>, BodyError> {
        let mut named = body.get::<String>("session_id")?;
        if named.is_none() {
            named = body.get::<String>("prompt_cache_key")?;
        }
        let mut hash = DefaultHasher::new();
        model.hash(&mut hash);
        if let Some(name) = named {
            (0_u8, name).hash(&mut hash);
            return Ok(Some(Self(hash.finish())));
        }
        let prompt = body.raw("messages").or_else(|| body.raw("prompt"));
        let Some(prompt) = prompt.filter(|prompt| prompt.len() >= LONG) else {
            return Ok(None);
        };
        (1_u8, &prompt.as_bytes()[..PREFIX], body.raw("user")).hash(&mut hash);
        Ok(Some(Self(hash.finish())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(text: &str) -> Option<Session> {
        let body = Body::parse(text.as_bytes()).expect("parses");
        Session::of("a/b", &body).expect("is read")
    }

    #[test]
    fn a_conversation_is_known_by_its_name_or_by_its_beginning() {
        let named = session(r#"{"session_id":"s","messages":[1]}"#);
        assert_eq!(named, session(r#"{"session_id":"s","messages":[1,2]}"#));
        assert_ne!(named, session(r#"{"session_id":"t","messages":[1]}"#));
        assert_eq!(session(r#"{"messages":["short"],"user":"u"}"#), None);
        let begin = "x".repeat(3000);
        let first = session(&format!(r#"{{"messages":["{begin}"]}}"#));
        assert!(first.is_some());
        assert_eq!(
            first,
            session(&format!(r#"{{"messages":["{begin}","more"]}}"#))
        );
        assert_ne!(
            first,
            session(&format!(r#"{{"user":"u","messages":["{begin}"]}}"#))
        );
        let body = Body::parse(br#"{"session_id":"s"}"#).expect("parses");
        assert_ne!(named, Session::of("c/d", &body).expect("is read"));
    }

    #[test]
    fn a_name_of_the_wrong_kind_is_refused() {
        let body = Body::parse(br#"{"session_id":7}"#).expect("parses");
        let error = Session::of("a/b", &body).expect_err("is refused");
        assert!(error.to_string().contains("`session_id`"));
    }
}
