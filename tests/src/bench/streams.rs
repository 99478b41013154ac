//! Streamed answers: the time to the first token, to the end, and each chunk's time on its way.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::bench::figures::{Pair, Sample};
use crate::bench::load::{Load, Route};
use crate::bench::{BenchError, Effort};
use crate::street::MODEL;
use crate::upstream::nanos;

/// What stands before a chunk's stamp.
const STAMP: &[u8] = b"\"sent\":";

/// Streams as fast as they go.
#[derive(Debug, Clone, Default)]
pub struct Burst {
    /// From the request to the first chunk of content.
    pub first: Pair<Sample>,
    /// From the request to the end.
    pub total: Pair<Sample>,
}

/// Streams at a pace.
#[derive(Debug, Clone, Default)]
pub struct Paced {
    /// From a chunk's leaving the model server to its arrival.
    pub way: Pair<Sample>,
    /// From the request to the first chunk of content, which comes after one pace.
    pub first: Pair<Sample>,
}

/// One stream's times.
#[derive(Debug, Default)]
struct Times {
    first: Duration,
    total: Duration,
    ways: Sample,
}

/// Streams without a pace.
///
/// # Errors
/// [`BenchError`].
pub async fn burst(load: &Load, effort: &Effort) -> Result<Burst, BenchError> {
    let body = body(effort.chunks, Duration::ZERO);
    let mut burst = Burst::default();
    for round in 0..=effort.rounds {
        for route in Route::BOTH {
            for _ in 0..effort.streams {
                let times = stream(load, route, &body, effort.chunks).await?;
                // The first round warms up.
                if round > 0 {
                    burst.first.of(route).push(times.first);
                    burst.total.of(route).push(times.total);
                }
            }
        }
    }
    Ok(burst)
}

/// Streams at a pace.
///
/// # Errors
/// [`BenchError`].
pub async fn paced(load: &Load, effort: &Effort) -> Result<Paced, BenchError> {
    let body = body(effort.chunks, effort.pace);
    let mut paced = Paced::default();
    for _ in 0..effort.paced {
        for route in Route::BOTH {
            let times = stream(load, route, &body, effort.chunks).await?;
            paced.way.of(route).extend(times.ways);
            paced.first.of(route).push(times.first);
        }
    }
    Ok(paced)
}

/// A stream of so many chunks at this pace, each of which says when it was sent.
pub(in crate::bench) fn body(chunks: usize, pace: Duration) -> Bytes {
    let pace = pace.as_micros();
    Bytes::from(format!(
        r#"{{"model":"{MODEL}","stream":true,"max_tokens":{chunks},"mock":{{"pace_us":{pace},"stamp":true}},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
    ))
}

async fn stream(
    load: &Load,
    route: Route,
    body: &Bytes,
    chunks: usize,
) -> Result<Times, BenchError> {
    let asked = Instant::now();
    let mut response = load.chat(route, body.clone()).await?;
    let mut times = Times::default();
    let mut seen = Vec::new();
    let mut last = Bytes::new();
    while let Some(bytes) = response.chunk().await? {
        let now = nanos();
        let since = asked.elapsed();
        seen.extend_from_slice(&bytes);
        let (used, stamps) = stamps(&seen);
        seen.drain(..used);
        if times.ways.is_empty() && !stamps.is_empty() {
            times.first = since;
        }
        for sent in stamps {
            let way = u64::try_from(now.saturating_sub(sent)).unwrap_or(u64::MAX);
            times.ways.push(Duration::from_nanos(way));
        }
        times.total = since;
        last = bytes;
    }
    let got = times.ways.len();
    if got != chunks {
        let last = String::from_utf8_lossy(&last);
        let text = format!("{route:?}: {got} chunks of {chunks} came; the last bytes: {last}");
        return Err(BenchError::Answer(text));
    }
    Ok(times)
}

/// The stamps in these bytes, and how many bytes need not be looked at again.
pub(in crate::bench) fn stamps(bytes: &[u8]) -> (usize, Vec<u128>) {
    let mut found = Vec::new();
    let mut used = 0;
    while let Some(line) = bytes[used..].iter().position(|byte| *byte == b'\n') {
        let event = &bytes[used..used + line];
        used += line + 1;
        let at = event.windows(STAMP.len()).position(|part| part == STAMP);
        let Some(at) = at else { continue };
        let digits = event[at + STAMP.len()..].split(|byte| *byte == b',').next();
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        found.extend(digits.and_then(|digits| digits.parse::<u128>().ok()));
    }
    (used, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_in_whole_lines_only() {
        let bytes = b"data: {\"sent\":12,\"id\":1}\n\ndata: {\"id\":1}\n\ndata: {\"sent\":3";
        let (used, found) = stamps(bytes);
        assert_eq!(found, [12]);
        assert!(bytes[used..].starts_with(b"data: {\"sent\":3"));
    }
}
