//! What the demo and the development network share: a page to write on, a log that stays out of
//! sight, and the end that Ctrl-C brings.

mod page;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use farthing_protocol::amount::{Amount, Price};
use tempfile::TempDir;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use page::Page;
pub use table::{Table, shorten};

/// Digits of the payment token behind the point: as USDC has.
const DECIMALS: usize = 6;

/// An amount in atoms, as people read long numbers: `1 000 000`.
#[must_use]
pub fn atoms(amount: Amount) -> String {
    let digits = amount.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// An amount in units of the token, without its name: `0.000153`.
#[must_use]
pub fn usdc(amount: Amount) -> String {
    let digits = format!("{:0>width$}", amount.get(), width = DECIMALS + 1);
    let (whole, fraction) = digits.split_at(digits.len() - DECIMALS);
    format!("{whole}.{fraction}")
}

/// A price as people compare them: units of the token per million tokens of text, `0.50`.
#[must_use]
pub fn per_million(price: Price) -> String {
    // Micro-atoms per token are atoms per million tokens.
    let exact = usdc(Amount::atoms(u128::from(price.0)));
    let short = exact.trim_end_matches('0');
    let places = short.len() - short.find('.').map_or(short.len(), |point| point + 1);
    format!("{short}{}", "0".repeat(2_usize.saturating_sub(places)))
}

/// Where the logs of one run go. The folder is deleted with it, unless it is kept.
#[derive(Debug)]
pub struct Logs {
    dir: TempDir,
}

impl Logs {
    /// A fresh folder.
    ///
    /// # Errors
    /// When there is no room for temporary files.
    pub fn new() -> std::io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("farthing-").tempdir()?;
        Ok(Self { dir })
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sends what the program logs to a file in it, filtered as `RUST_LOG` would, and `extra`
    /// listens too. What was set up before stays.
    ///
    /// # Errors
    /// When the file cannot be made, or a subscriber is there already.
    pub fn listen<L>(&self, filter: &str, extra: L) -> Result<(), Box<dyn std::error::Error>>
    where
        L: Layer<Registry> + Send + Sync,
    {
        let file = std::fs::File::create(self.file("farthing.log"))?;
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Mutex::new(file))
            .with_filter(EnvFilter::try_new(filter)?);
        let subscriber = tracing_subscriber::registry().with(extra).with(lines);
        Ok(subscriber.try_init()?)
    }

    /// Leaves the folder where it is, for whoever looks for a cause.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Returns on Ctrl-C or SIGTERM.
///
/// # Errors
/// When signals cannot be waited for.
pub async fn interrupted() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Whether a port on loopback can be had; else 0, for any that is free.
#[must_use]
pub fn port_or_free(port: u16) -> u16 {
    let wanted = SocketAddr::from(([127, 0, 0, 1], port));
    match std::net::TcpListener::bind(wanted) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

/// What to try at an endpoint: the `curl`, and three lines of Python.
///
/// # Errors
/// When the page cannot be written on.
pub fn invite(page: &Page, base_url: &str, model: &str) -> std::io::Result<()> {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"What is a farthing?"}}]}}"#
    );
    page.line(&format!(
        "curl -N {base_url}/chat/completions -H 'content-type: application/json' \\"
    ))?;
    page.line(&format!("  -d '{body}'"))?;
    page.line("")?;
    page.line("from openai import OpenAI")?;
    page.line(&format!(
        r#"client = OpenAI(base_url="{base_url}", api_key="unused")"#
    ))?;
    page.line(&format!(
        r#"print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_prices_read_in_units_of_the_token() {
        assert_eq!(atoms(Amount::atoms(153)), "153");
        assert_eq!(atoms(Amount::atoms(1_234_567)), "1 234 567");
        assert_eq!(usdc(Amount::atoms(153)), "0.000153");
        assert_eq!(usdc(Amount::atoms(1_000_000_000)), "1000.000000");
        assert_eq!(per_million(Price(500_000)), "0.50");
        assert_eq!(per_million(Price(1_250_000)), "1.25");
        assert_eq!(per_million(Price(1)), "0.000001");
        assert_eq!(per_million(Price(0)), "0.00");
    }
}
