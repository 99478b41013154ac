//! All bytes that the vectors hold: what mutations begin with.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

/// Fields of a vector that hold a message, as hex or as text.
const FIELDS: [&str; 6] = ["bytes", "frame", "stream", "json", "body", "text"];

/// Every message in `protocol/vectors`, read once.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(read).clone()
}

fn read() -> Vec<Vec<u8>> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"));
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder of vectors") {
        let text = std::fs::read(entry.expect("an entry").path()).expect("a file");
        collect(&serde_json::from_slice(&text).expect("JSON"), &mut seeds);
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

fn collect(value: &Value, seeds: &mut Vec<Vec<u8>>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, seeds)),
        Value::Object(fields) => {
            seeds.extend(digest_and_signature(value));
            for (name, field) in fields {
                match field.as_str().filter(|_| FIELDS.contains(&name.as_str())) {
                    // What the property of streams reads: two numbers in front.
                    Some(text) if name == "stream" => {
                        seeds.push([vec![255, 7], message(text)].concat());
                    }
                    Some(text) => seeds.push(message(text)),
                    None => collect(field, seeds),
                }
            }
        }
        _ => {}
    }
}

/// What the property of signatures reads: a digest and a signature of it.
fn digest_and_signature(value: &Value) -> Option<Vec<u8>> {
    let digest = value.get("digest")?.as_str()?;
    let inner = value.get("voucher").or(value.get("deposit"));
    let signature = inner.unwrap_or(value).get("signature")?.as_str()?;
    Some([message(digest), message(signature)].concat())
}

fn message(text: &str) -> Vec<u8> {
    match text.strip_prefix("0x") {
        Some(hex) => alloy::hex::decode(hex).expect("hex"),
        None => text.into(),
    }
}
