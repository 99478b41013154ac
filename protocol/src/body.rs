//! A request's JSON body, read only at its top level.
//!
//! Fields we act on are read; everything else stays the bytes it was, so unknown fields pass and
//! nothing is re-serialised. A body with a duplicate key is refused: two readers could disagree
//! on what it says.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// So many fields are compared with each other; more are hashed.
const FEW: usize = 16;

/// Why a body is not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not a JSON object.
    #[error("the body is not a JSON object: {0}")]
    Malformed(String),
    /// A field has a value of the wrong kind.
    #[error("field `{field}` has a value of the wrong kind: {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What the reader says.
        reason: String,
    },
}

/// The top level of a JSON object; values are the bytes they were.
#[derive(Debug)]
pub struct Body<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Body<'a> {
    /// Reads the top level.
    ///
    /// # Errors
    /// [`BodyError::Malformed`] for anything but one JSON object with distinct keys.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BodyError> {
        serde_json::from_slice(bytes).map_err(|e| BodyError::Malformed(e.to_string()))
    }

    /// The raw value of a field, if present and not `null`.
    #[must_use]
    pub fn raw(&self, field: &str) -> Option<&'a str> {
        let (_, value) = self.fields.iter().find(|(name, _)| name == field)?;
        Some(value.get()).filter(|text| *text != "null")
    }

    /// A field's value, if present and not `null`.
    ///
    /// # Errors
    /// [`BodyError::Field`] when it is of another kind.
    pub fn get<T: DeserializeOwned>(&self, field: &'static str) -> Result<Option<T>, BodyError> {
        let parse = |text| {
            serde_json::from_str(text).map_err(|e| BodyError::Field {
                field,
                reason: e.to_string(),
            })
        };
        self.raw(field).map(parse).transpose()
    }

    /// The body with some fields replaced (in their place) or added (at the end). The values are
    /// raw JSON; all other fields keep their bytes and order.
    #[must_use]
    pub fn with(&self, changes: &[(&str, &str)]) -> Vec<u8> {
        self.rewritten(changes, &[])
    }

    /// The body with some fields replaced or added as in [`Self::with`], and others left out.
    #[must_use]
    pub fn rewritten(&self, changes: &[(&str, &str)], without: &[&str]) -> Vec<u8> {
        let size: usize = self
            .fields
            .iter()
            .map(|(k, v)| k.len() + v.get().len() + 8)
            .sum();
        let mut out = Vec::with_capacity(size + 128);
        let left = self.fields.iter();
        let left = left.filter(|(name, _)| !without.contains(&name.as_ref()));
        let kept = left.map(|(name, value)| {
            let change = changes.iter().find(|(field, _)| field == name);
            (name.as_ref(), change.map_or(value.get(), |(_, new)| *new))
        });
        let added = changes
            .iter()
            .filter(|(field, _)| !self.fields.iter().any(|(name, _)| name == field));
        for (name, value) in kept.chain(added.copied()) {
            out.push(if out.is_empty() { b'{' } else { b',' });
            out.extend_from_slice(quote(name).as_bytes());
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        if out.is_empty() {
            out.push(b'{');
        }
        out.push(b'}');
        out
    }
}

/// A string as JSON text.
#[must_use]
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TopLevel)
    }
}

struct TopLevel;

impl<'de> Visitor<'de> for TopLevel {
    type Value = Body<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Body<'de>, M::Error> {
        let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(FEW);
        let mut seen = HashSet::new();
        while let Some((Key(name), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            if fields.len() == FEW {
                seen.extend(fields.iter().map(|(name, _)| name.clone()));
            }
            let again = match fields.len() < FEW {
                true => fields.iter().any(|(known, _)| *known == name),
                false => !seen.insert(name.clone()),
            };
            if again {
                return Err(serde::de::Error::custom(format_args!(
                    "duplicate key `{name}`"
                )));
            }
            fields.push((name, value));
        }
        Ok(Body { fields })
    }
}

/// A key that borrows unless it contains escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Text).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_the_model_leaves_every_other_byte() {
        let text =
            br#"{"model":"a/b", "messages":[{"role" : "user","content":"h\u00e9"}],"x":1.50e3}"#;
        let body = Body::parse(text).expect("parses");
        let out = body.with(&[
            ("model", "\"m\""),
            ("stream_options", "{\"include_usage\":true}"),
        ]);
        let expected = r#"{"model":"m","messages":[{"role" : "user","content":"h\u00e9"}],"x":1.50e3,"stream_options":{"include_usage":true}}"#;
        assert_eq!(String::from_utf8(out).expect("utf8"), expected);
    }

    #[test]
    fn a_field_left_out_leaves_every_other_byte() {
        let text = br#"{"provider":{"sort":"price"}, "model":"a/b","n": 1,"models":["c"]}"#;
        let body = Body::parse(text).expect("parses");
        let out = body.rewritten(&[("model", "\"m\"")], &["provider", "models"]);
        assert_eq!(out, br#"{"model":"m","n":1}"#);
        assert_eq!(
            body.rewritten(&[], &["provider", "model", "n", "models"]),
            b"{}"
        );
    }

    #[test]
    fn fields_are_read_by_kind_and_null_is_absent() {
        let body = Body::parse(br#"{"stream":true,"max_tokens":null,"n":"two"}"#).expect("parses");
        assert_eq!(body.get::<bool>("stream"), Ok(Some(true)));
        assert_eq!(body.get::<u32>("max_tokens"), Ok(None));
        assert!(matches!(
            body.get::<u32>("n"),
            Err(BodyError::Field { field: "n", .. })
        ));
    }

    #[test]
    fn what_is_not_one_object_with_distinct_keys_is_refused() {
        for bad in [
            "",
            "[]",
            "{",
            "{\"a\":1}x",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}",
            "{\"a\":tru}",
        ] {
            assert!(
                matches!(Body::parse(bad.as_bytes()), Err(BodyError::Malformed(_))),
                "{bad}"
            );
        }
        assert_eq!(Body::parse(b"{}").expect("parses").with(&[]), b"{}");
    }

    #[test]
    fn a_second_key_of_the_same_name_is_seen_among_few_fields_and_many() {
        for count in 1..40 {
            let fields: Vec<_> = (0..count).map(|n| format!(r#""k{n}":{n}"#)).collect();
            let text = format!("{{{}}}", fields.join(","));
            assert!(Body::parse(text.as_bytes()).is_ok(), "{text}");
            for again in [0, count / 2, count - 1] {
                let text = format!(r#"{{{},"k{again}":1}}"#, fields.join(","));
                assert!(Body::parse(text.as_bytes()).is_err(), "{text}");
            }
        }
    }
}
