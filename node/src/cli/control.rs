//! Asking the running node: one HTTP request over its control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::SOCKET;
use farthing_protocol::x402::ChannelId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why the node did not tell.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no node runs on {}: start one with `farthing-node run`", .0.display())]
    NotRunning(PathBuf),
    /// The connection broke.
    #[error("the node's control socket broke: {0}")]
    Broken(#[from] io::Error),
    /// It took too long. What was asked may still happen.
    #[error("the node did not answer within {0:?}; what was asked may still happen")]
    Late(Duration),
    /// The node refuses.
    #[error("{0}")]
    Refused(String),
    /// The answer is not understood.
    #[error("the node's answer is not understood: is it of another version?")]
    Malformed,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    /// How are you?
    Status,
    /// What have you earned?
    Earnings,
    /// Claim it.
    Claim,
    /// What was sold last, so many purchases?
    Newest(usize),
    /// What was sold, after this place in the order of the books?
    After(ChannelId, u64),
}

impl Question {
    fn line(self) -> String {
        match self {
            Self::Status => "GET /status".to_owned(),
            Self::Earnings => "GET /earnings".to_owned(),
            Self::Claim => "POST /claim".to_owned(),
            Self::Newest(most) => format!("GET /receipts/newest/{most}"),
            Self::After(channel, seq) => format!("GET /receipts/after/{:#x}/{seq}", channel.0),
        }
    }

    /// A claim waits for blocks; the others for nothing.
    const fn patience(self) -> Duration {
        match self {
            Self::Status | Self::Earnings => Duration::from_secs(10),
            Self::Newest(_) | Self::After(..) => Duration::from_secs(60),
            Self::Claim => Duration::from_secs(300),
        }
    }
}

/// Asks the node that runs on this data directory.
pub(super) async fn ask<T: DeserializeOwned>(
    data_dir: &Path,
    question: Question,
) -> Result<T, ControlError> {
    let socket = data_dir.join(SOCKET);
    let (patience, line) = (question.patience(), question.line());
    let exchange = timeout(patience, exchange(&socket, &line));
    let answer = exchange.await.map_err(|_| ControlError::Late(patience))??;
    let (status, body) = split(&answer).ok_or(ControlError::Malformed)?;
    if status == 200 {
        return serde_json::from_slice(body).map_err(|_| ControlError::Malformed);
    }
    #[derive(Deserialize)]
    struct Fault {
        error: String,
    }
    let fault = serde_json::from_slice::<Fault>(body);
    Err(fault.map_or(ControlError::Malformed, |fault| {
        ControlError::Refused(fault.error)
    }))
}

async fn exchange(socket: &Path, line: &str) -> Result<Vec<u8>, ControlError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning(socket.to_owned())
            }
            _ => ControlError::Broken(error),
        })?;
    // HTTP/1.0: the body is not chunked and ends with the connection.
    let request = format!("{line} HTTP/1.0\r\nhost: node\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The status and body of an HTTP response.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.get(end + 4..)?))
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use serde_json::{Value, json};
    use tokio::net::UnixListener;

    use super::*;

    async fn node(dir: &Path) {
        let refuse = || async {
            let fault = json!({"error": "the chain is away"});
            (StatusCode::SERVICE_UNAVAILABLE, Json(fault))
        };
        let routes = Router::new()
            .route("/status", get(|| async { Json(json!({"a": 1})) }))
            .route("/claim", post(refuse));
        let listener = UnixListener::bind(dir.join(SOCKET)).expect("binds");
        tokio::spawn(axum::serve(listener, routes).into_future());
    }

    #[tokio::test]
    async fn a_running_node_is_asked_and_may_refuse() {
        let dir = tempfile::tempdir().expect("a directory");
        node(dir.path()).await;
        let status = ask::<Value>(dir.path(), Question::Status).await;
        assert_eq!(status.expect("told"), json!({"a": 1}));
        let claim = ask::<Value>(dir.path(), Question::Claim).await;
        let refused = claim.expect_err("refused").to_string();
        assert_eq!(refused, "the chain is away");
        let missing = ask::<Value>(dir.path(), Question::Earnings).await;
        assert!(matches!(missing, Err(ControlError::Malformed)));
    }

    #[tokio::test]
    async fn no_node_is_told_from_a_broken_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = ask::<Value>(dir.path(), Question::Status).await;
        let error = asked.expect_err("nobody");
        assert!(matches!(error, ControlError::NotRunning(_)), "{error}");
        assert!(error.to_string().contains("farthing-node run"), "{error}");
    }
}
