//! A file of vectors: its form, how it is written, how it is held against the code.

use std::fmt::Debug;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One frozen example.
pub trait Vector: Serialize + DeserializeOwned + PartialEq + Debug + 'static {
    /// Its name, unique in its file.
    fn name(&self) -> &str;

    /// Checks what is written by itself, without the sample it was made from.
    fn check(&self);
}

/// The file's form.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page<V> {
    about: String,
    vectors: Vec<V>,
}

/// A file and what it must hold.
pub struct Sheet {
    pub file: &'static str,
    text: String,
    names: Vec<String>,
    read: Box<dyn Fn(&str)>,
}

impl Sheet {
    /// The sheet that holds these samples.
    pub fn of<V: Vector>(file: &'static str, about: &str, vectors: Vec<V>) -> Self {
        let page = Page {
            about: about.to_owned(),
            vectors,
        };
        let ours = serde_json::to_value(&page).expect("a page is JSON");
        Self {
            file,
            text: serde_json::to_string_pretty(&page).expect("a page is JSON") + "\n",
            names: page.vectors.iter().map(|v| v.name().to_owned()).collect(),
            read: Box::new(move |text| {
                let there: Page<V> =
                    serde_json::from_str(text).unwrap_or_else(|e| panic!("{file}: {e}"));
                there.vectors.iter().for_each(Vector::check);
                assert_eq!(there, page, "{file}");
                // And nothing is written that the form above does not read.
                let all: Value = serde_json::from_str(text).expect("it was JSON");
                assert_eq!(all, ours, "{file}");
            }),
        }
    }

    /// The names of its vectors.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// The Solidity types that are hashed in it.
    pub fn types(&self) -> Vec<String> {
        let page: Value = serde_json::from_str(&self.text).expect("it was JSON");
        let mut types = Vec::new();
        collect_types(&page, &mut types);
        types
    }

    /// Holds the file against the code; writes it first when blessed.
    pub fn hold(&self) {
        let path = folder().join(self.file);
        if std::env::var_os("FARTHING_BLESS").is_some() {
            std::fs::write(&path, &self.text).expect("the vectors can be written");
        }
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e} (FARTHING_BLESS=1 writes it)", self.file));
        (self.read)(&text);
    }
}

fn collect_types(value: &Value, types: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_types(item, types)),
        Value::Object(fields) => {
            types.extend(
                fields
                    .get("type")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields
                .values()
                .for_each(|field| collect_types(field, types));
        }
        _ => {}
    }
}

/// Where the vectors are.
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/vectors"))
}

/// Serde for values with byte fields: as text where they are text, so that people can read them.
pub mod readable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use super::{DeserializeOwned, Value};

    /// Fields that hold raw bytes.
    const RAW: [&str; 3] = ["body", "data", "offer"];

    pub fn serialize<T: Serialize, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(value).map_err(ser::Error::custom)?;
        speak(&mut value);
        value.serialize(to)
    }

    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        serde_json::from_value(Value::deserialize(from)?).map_err(de::Error::custom)
    }

    fn speak(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(speak),
            Value::Object(fields) => {
                for (name, field) in fields {
                    match text(field).filter(|_| RAW.contains(&name.as_str())) {
                        Some(text) => *field = text.into(),
                        None => speak(field),
                    }
                }
            }
            _ => {}
        }
    }

    fn text(value: &Value) -> Option<String> {
        let byte = |item: &Value| item.as_u64().and_then(|n| u8::try_from(n).ok());
        let bytes: Option<Vec<u8>> = value.as_array()?.iter().map(byte).collect();
        String::from_utf8(bytes?).ok()
    }
}
