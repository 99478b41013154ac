//! Programs of others that buy, as `tests/tools/setup.sh` installs them and `tests/clients` uses
//! them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// # Panics
/// When it is not installed: a client that is left out has proven nothing.
#[allow(clippy::panic, reason = "a test without its tools is lost")]
fn installed(part: &str, path: &str) -> PathBuf {
    let path = root().join(".tools").join(part).join(path);
    if !path.exists() {
        panic!("no {}: run tests/tools/setup.sh", path.display());
    }
    path
}

fn script(name: &str) -> PathBuf {
    root().join("tests/clients").join(name)
}

/// A script of `tests/clients` in the Python environment of a part.
#[must_use]
pub fn python(part: &str, name: &str) -> Command {
    let mut command = Command::new(installed(part, "bin/python"));
    command.arg(script(name));
    command
}

/// A script of `tests/clients` that uses the packages of a part.
#[must_use]
pub fn node(part: &str, name: &str) -> Command {
    installed(part, "node_modules");
    let mut command = Command::new("node");
    command.arg(script(name));
    command
}

/// A program of a part's Python environment.
#[must_use]
pub fn tool(part: &str, name: &str) -> Command {
    Command::new(installed(part, &format!("bin/{name}")))
}

/// A program of a part's npm packages.
#[must_use]
pub fn npm_tool(part: &str, name: &str) -> Command {
    Command::new(installed(part, &format!("node_modules/.bin/{name}")))
}

/// Runs it to its end; what it printed.
///
/// # Panics
/// When it fails; what it said goes with it.
#[allow(clippy::panic, clippy::expect_used, reason = "for tests")]
pub async fn run(mut command: Command) -> String {
    let output = command
        // Whatever proxy the machine has, this is about loopback.
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = output.await.expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    said
}
