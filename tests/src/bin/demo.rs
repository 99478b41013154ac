//! `make demo`: the whole street on real parts, told as a story and checked figure by figure.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use farthing_tests::demo::stage::Stage;
use farthing_tests::demo::story;
use farthing_tests::demo::watch::Watch;
use farthing_tests::llama::MODEL;
use farthing_tests::show::{self, Logs, Page};
use tokio::time::Instant;

/// Three sellers, a real model, a chain, one paid answer.
#[derive(Debug, Parser)]
struct Options {
    /// End after the story: 0 if every figure in it adds up.
    #[arg(long)]
    once: bool,
    /// Port of the buyer's endpoint; another free one if it is taken.
    #[arg(long, default_value_t = 8402)]
    port: u16,
    /// What is logged, to a file.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let logs = match Logs::new() {
        Ok(logs) => logs,
        Err(error) => return fail(&error.into(), None),
    };
    match run(&options, &logs).await {
        Ok(code) => code,
        Err(error) => fail(&error, Some(logs)),
    }
}

fn fail(error: &Failure, logs: Option<Logs>) -> ExitCode {
    let mut err = std::io::stderr();
    // Where standard error is closed, the exit code must do.
    writeln!(err, "\n\ndemo: {error}").ok();
    if let Some(logs) = logs {
        writeln!(err, "demo: the logs are in {}", logs.keep().display()).ok();
    }
    ExitCode::FAILURE
}

async fn run(options: &Options, logs: &Logs) -> Result<ExitCode, Failure> {
    let watch = Watch::default();
    logs.listen(&options.log, watch.layer())?;
    let page = Page::stdout();
    let began = Instant::now();
    page.title("Farthing: a real model is asked, paid by the token, and settled on a chain")?;
    let listen = SocketAddr::from(([127, 0, 0, 1], show::port_or_free(options.port)));
    let interrupted = show::interrupted();
    tokio::pin!(interrupted);
    let stage = tokio::select! {
        stage = Stage::set(&page, logs, listen) => stage?,
        ended = &mut interrupted => return ended.map(|()| ExitCode::FAILURE).map_err(Into::into),
    };
    let told = tokio::select! {
        told = story::tell(&stage, &watch, &page) => told.map(Some),
        ended = &mut interrupted => ended.map(|()| None).map_err(Into::into),
    };
    let Ok(Some(made)) = told else {
        stage.stop().await;
        return told.map(|_| ExitCode::FAILURE).map_err(Into::into);
    };
    page.title(&format!(
        "{made} checks, all of them hold. It took {:.1} s.",
        began.elapsed().as_secs_f64()
    ))?;
    if !options.once {
        linger(&page, &stage, logs)?;
        interrupted.await?;
        page.line("stopping")?;
    }
    stage.stop().await;
    Ok(ExitCode::SUCCESS)
}

fn linger(page: &Page, stage: &Stage, logs: &Logs) -> std::io::Result<()> {
    page.title("It stays up until Ctrl-C. Try it:")?;
    page.line("")?;
    show::invite(page, &stage.gateway.base_url(), MODEL)?;
    page.line("")?;
    page.aside(&format!("logs: {}", logs.path().display()))
}
