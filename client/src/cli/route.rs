//! `farthing route`: why the router chose as it did, or would choose now; and whether recorded
//! decisions still come out the same.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::RequestId;
use serde_json::json;

use crate::cli::remote::Remote;
use crate::cli::render::View;
use crate::cli::{Failure, request_id};
use crate::client::{DECISIONS, OLDER_DECISIONS};
use crate::config::Config;
use crate::report::{RouteReport, RouteWish};
use crate::router::record::{Decision, Line};

/// The longest line of a record that is read.
const LINE: u64 = 16 * 1024 * 1024;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Shows whom the router asked for a purchase, or would ask now, and why
    Explain {
        /// The purchase: its `x-request-id`. It must be in the record (`router.decisions`)
        #[arg(value_parser = request_id, conflicts_with_all = ["model", "body"], required_unless_present_any = ["model", "body"])]
        request: Option<RequestId>,
        /// Would ask now: for this model
        #[arg(long, short)]
        model: Option<String>,
        /// Would ask now: for the request in this file
        #[arg(long, value_name = "FILE")]
        body: Option<PathBuf>,
        /// The endpoint of the request: chat, completions, embeddings or moderations
        #[arg(long, default_value = "chat", value_parser = endpoint)]
        endpoint: Endpoint,
    },
    /// Makes recorded decisions again, and says whether they come out the same
    Replay {
        /// The record [default: the one in the data directory]
        file: Option<PathBuf>,
    },
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// It is not in the record.
    #[error("no decision of {0} is recorded; set [router] decisions to record them from now on")]
    Unrecorded(String),
    /// A record that is none.
    #[error("{path}, line {line}: {reason}")]
    Record {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Some come out otherwise.
    #[error("{differ} of {all} decisions do not come out the same:\n{which}")]
    Differ {
        /// How many.
        differ: usize,
        /// Of how many.
        all: usize,
        /// Which, and where they differ.
        which: String,
    },
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let mut all = Endpoint::ALL.into_iter();
    let found = all.find(|endpoint| endpoint.to_string() == text);
    found.ok_or_else(|| "chat, completions, embeddings or moderations".to_owned())
}

impl RouteCommand {
    /// Runs it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, config: &Config, view: &View) -> Result<String, Failure> {
        match self {
            Self::Explain {
                request: Some(request),
                ..
            } => Ok(view.route(&recorded(config, request)?)),
            Self::Explain {
                model,
                body,
                endpoint,
                ..
            } => {
                let wish = wish(model, body, endpoint)?;
                Ok(view.route(&Remote::new(config)?.route(&wish).await?))
            }
            Self::Replay { file } => {
                let files = file.map_or_else(|| files(config), |file| vec![file]);
                replay(&files)
            }
        }
    }
}

fn files(config: &Config) -> Vec<PathBuf> {
    let names = [OLDER_DECISIONS, DECISIONS];
    let paths = names.map(|name| config.data_dir.join(name)).into_iter();
    paths.filter(|path| path.exists()).collect()
}

/// The request whose route is wanted.
fn wish(
    model: Option<String>,
    body: Option<PathBuf>,
    endpoint: Endpoint,
) -> Result<RouteWish, Failure> {
    let body = match body {
        Some(path) => std::fs::read_to_string(&path)
            .map_err(Failure::io(format!("cannot read {}", path.display())))?,
        None => match endpoint {
            Endpoint::Chat => json!({"messages": [{"role": "user", "content": ""}]}),
            Endpoint::Completions => json!({"prompt": ""}),
            Endpoint::Embeddings | Endpoint::Moderations => json!({"input": ""}),
        }
        .to_string(),
    };
    let Some(model) = model else {
        return Ok(RouteWish { endpoint, body });
    };
    // A body that is no object is refused by whoever reads it.
    let named = farthing_protocol::body::Body::parse(body.as_bytes()).map(|fields| {
        let name = farthing_protocol::body::quote(&model);
        String::from_utf8_lossy(&fields.with(&[("model", &name)])).into_owned()
    });
    let body = named.unwrap_or(body);
    Ok(RouteWish { endpoint, body })
}

/// Goes through the lines of a record.
fn lines(path: &Path, mut each: impl FnMut(Line)) -> Result<(), Failure> {
    let named = || path.display().to_string();
    let file = File::open(path).map_err(Failure::io(format!("cannot read {}", named())))?;
    let mut reader = BufReader::new(file);
    for line in 1.. {
        let mut text = Vec::new();
        let read = std::io::Read::take(&mut reader, LINE).read_until(b'\n', &mut text);
        if read.map_err(Failure::io(format!("cannot read {}", named())))? == 0 {
            break;
        }
        // The last line of a crash is half of one.
        if !text.ends_with(b"\n") {
            break;
        }
        let parsed = serde_json::from_slice(&text).map_err(|error| RouteError::Record {
            path: named(),
            line,
            reason: error.to_string(),
        })?;
        each(parsed);
    }
    Ok(())
}

/// The decision from which a purchase came.
fn recorded(config: &Config, wanted: RequestId) -> Result<RouteReport, Failure> {
    let mut seed = None;
    let files = files(config);
    for path in &files {
        lines(path, |line| match line {
            Line::Purchase {
                seed: from,
                request,
                ..
            } if request == wanted => seed = Some(from),
            _ => {}
        })?;
    }
    let mut found: Option<Box<Decision>> = None;
    for path in files.iter().filter(|_| seed.is_some()) {
        lines(path, |line| {
            if let Line::Decision(decision) = line
                && Some(decision.seed) == seed
            {
                found = Some(decision);
            }
        })?;
    }
    let decision = found.ok_or_else(|| RouteError::Unrecorded(wanted.to_string()))?;
    Ok(decision.explain())
}

fn replay(files: &[PathBuf]) -> Result<String, Failure> {
    let (mut all, mut which) = (0_usize, Vec::new());
    for path in files {
        lines(path, |line| {
            if let Line::Decision(decision) = line {
                all += 1;
                if let Err(differs) = decision.replay() {
                    which.push(format!("decision {:016x}: {differs}", decision.seed));
                }
            }
        })?;
    }
    if all == 0 {
        return Err(RouteError::Unrecorded("anything".to_owned()).into());
    }
    if which.is_empty() {
        return Ok(format!("{all} decisions come out the same\n"));
    }
    Err(RouteError::Differ {
        differ: which.len(),
        all,
        which: which.join("\n"),
    }
    .into())
}
