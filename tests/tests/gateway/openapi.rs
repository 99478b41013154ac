//! What the gateway says of itself at `/openapi.json` holds: schemathesis makes requests of the
//! description, good and bad ones, and looks at every answer.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use farthing_tests::street::{MODEL, RunningGateway, TestNet};
use serde_json::{Value, json};
use tokio::process::Command;

/// The key that the endpoint accepts.
const KEY: &str = "sk-farthing-a-key-for-tests";
/// What is looked at in every answer: no 5xx, and nothing that the description does not say.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth";
/// Requests made of each path at random, beside those that go to the edges of each field.
const EXAMPLES: &str = "20";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The description with what is on offer on this street: else all but few requests would ask for
/// a model that nobody sells. And with the key, which not every gateway asks for.
fn with_offer(mut description: Value) -> Value {
    description["security"] = json!([{ "bearer": [] }, { "named": [] }]);
    let (author, slug) = MODEL.split_once('/').expect("two parts");
    let models = json!([MODEL, "no/such"]);
    for schema in description["components"]["schemas"]
        .as_object_mut()
        .expect("schemas")
        .values_mut()
    {
        if let Some(model) = schema.pointer_mut("/properties/model")
            && model.get("maxLength").is_some()
        {
            model["enum"] = models.clone();
        }
    }
    for path in description["paths"]
        .as_object_mut()
        .expect("paths")
        .values_mut()
    {
        let parameters = path
            .pointer_mut("/get/parameters")
            .and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            let wanted = match parameter["name"].as_str() {
                Some("author") => json!([author, "no"]),
                Some("slug") => json!([slug, "such"]),
                _ => continue,
            };
            parameter["schema"]["enum"] = wanted;
        }
    }
    description
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_5xx_and_nothing_undescribed() {
    let tool = root().join(".tools/schemathesis/bin/schemathesis");
    assert!(
        tool.exists(),
        "no {tool:?}: run tests/tools/setup.sh schemathesis"
    );
    let street = TestNet::new().start().await.expect("starts");
    let keys = street.buyers[0].dir().join("keys.txt");
    std::fs::write(&keys, format!("{KEY}\n")).expect("written");
    let mut settings = street.buyers[0].config.gateway.clone();
    settings.listen.set_port(0);
    settings.api_keys_file = Some(keys);
    let gateway = RunningGateway::open(&street.buyers[0], settings).await;
    let gateway = gateway.expect("listens");
    let url = format!("http://{}", gateway.address());
    let http = reqwest::Client::new().get(format!("{url}/openapi.json"));
    let described = http.bearer_auth(KEY).send().await.expect("answers");
    let description = with_offer(described.json().await.expect("JSON"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, description.to_string()).expect("written");
    let output = Command::new(tool)
        .arg("run")
        .arg(&file)
        .args([
            "--url",
            &url,
            "--checks",
            CHECKS,
            "--max-examples",
            EXAMPLES,
        ])
        .args(["--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--phases", "examples,coverage,fuzzing", "--workers", "1"])
        .arg("--generation-deterministic")
        .args([
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
            "--no-color",
        ])
        .current_dir(folder.path())
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = output.await.expect("starts");
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{wrong}");
    // It has bought something, and every purchase of it is in both books.
    assert!(!street.settled().await.expect("agrees").is_zero());
    gateway.stop().await;
    street.stop().await;
}
