//! An answer as a list of steps, and what each fault does to it.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use tokio::time::{Instant, sleep_until};

use super::behaviour::Fault;
use super::record::Visit;

/// One step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Send bytes that are not content.
    Send(Bytes),
    /// Send a chunk of content.
    Content(Bytes),
    /// Send a chunk of content with the time in it.
    Stamp(Bytes),
    /// Let this time pass since the step before was due.
    Wait(Duration),
    /// Do nothing more and stay.
    Stall,
    /// Break the connection.
    Cut,
}

/// What a stream is made of before anything goes wrong.
pub(super) struct Parts {
    /// What comes before the content.
    pub(super) head: Option<Bytes>,
    /// The content.
    pub(super) content: Vec<Bytes>,
    /// Chunks after the content: the finish, perhaps usage.
    pub(super) tail: Vec<Bytes>,
    /// The time between two chunks of content.
    pub(super) pace: Duration,
    /// Whether the first chunk goes out at once, and only the others are paced.
    pub(super) eager: bool,
    /// Whether the content says when it was sent.
    pub(super) stamp: bool,
}

/// How often one says nothing that prattles, and how many times.
const PRATTLE: Duration = Duration::from_millis(20);
const WORDS: usize = 1_000;

/// The end of every well-behaved stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// A piece of a second answer.
const SECOND: &[u8] = b"data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":null}]}\n\n";

/// A chunk that begins well and breaks off.
const MALFORMED: &[u8] = b"data: {\"id\":\"chatcmpl-mock\",\"choices\":[{\"delta\":\n\n";

/// The steps of a stream with this fault in it.
pub(super) fn stream(parts: Parts, fault: Option<&Fault>) -> Vec<Step> {
    let Parts {
        head,
        mut content,
        tail,
        pace,
        eager,
        stamp,
    } = parts;
    let keep = match fault {
        Some(Fault::CutAfter(chunks) | Fault::StallAfter(chunks)) => Some(*chunks),
        _ => None,
    };
    if let Some(Fault::MalformedChunk(number)) = fault
        && let Some(chunk) = number
            .checked_sub(1)
            .and_then(|index| content.get_mut(index))
    {
        *chunk = Bytes::from_static(MALFORMED);
    }
    if let (Some(Fault::Prattle), Some(head)) = (fault, &head) {
        let word = [Step::Wait(PRATTLE), Step::Send(head.clone())];
        return word
            .into_iter()
            .cycle()
            .take(2 * WORDS)
            .chain([Step::Stall])
            .collect();
    }
    let mut steps: Vec<Step> = head.map(Step::Send).into_iter().collect();
    match fault {
        Some(Fault::SlowFirstToken(delay)) => steps.push(Step::Wait(*delay)),
        Some(Fault::OneUnended) => steps.push(Step::Send(Bytes::from_static(SECOND))),
        _ => {}
    }
    let kept = content.into_iter().take(keep.unwrap_or(usize::MAX));
    for (number, chunk) in kept.enumerate() {
        let at_once = eager && number == 0;
        if !at_once && !pace.is_zero() {
            steps.push(Step::Wait(pace));
        }
        steps.push(if stamp {
            Step::Stamp(chunk)
        } else {
            Step::Content(chunk)
        });
    }
    match fault {
        Some(Fault::CutAfter(_)) => steps.push(Step::Cut),
        Some(Fault::StallAfter(_)) => steps.push(Step::Stall),
        Some(Fault::NoDone | Fault::OneUnended) => steps.extend(tail.into_iter().map(Step::Send)),
        _ => {
            steps.extend(tail.into_iter().map(Step::Send));
            steps.push(Step::Send(Bytes::from_static(DONE)));
        }
    }
    steps
}

/// The steps of an answer that is not streamed.
pub(super) fn whole(body: Bytes, takes: Duration, fault: Option<&Fault>) -> Vec<Step> {
    let delay = match fault {
        Some(Fault::SlowFirstToken(delay)) => takes.saturating_add(*delay),
        _ => takes,
    };
    let mut steps = Vec::new();
    if !delay.is_zero() {
        steps.push(Step::Wait(delay));
    }
    let half = body.slice(..body.len() / 2);
    match fault {
        Some(Fault::CutAfter(_)) => steps.extend([Step::Send(half), Step::Cut]),
        Some(Fault::StallAfter(_)) => steps.extend([Step::Send(half), Step::Stall]),
        Some(Fault::MalformedChunk(_)) => steps.push(Step::Send(half)),
        _ => steps.push(Step::Send(body)),
    }
    steps
}

/// Where an answer stands.
struct Play {
    steps: std::vec::IntoIter<Step>,
    visit: Visit,
    /// When the next wait counts from: pacing does not drift.
    due: Option<Instant>,
}

/// Carry out the steps as a body. Dropped early, it tells the visit that the client has gone.
pub(super) fn play(steps: Vec<Step>, visit: Visit) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let play = Play {
        steps: steps.into_iter(),
        visit,
        due: None,
    };
    stream::unfold(play, |mut play| async move {
        let sent = play.next().await?;
        Some((sent, play))
    })
}

impl Play {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match self.steps.next() {
                Some(Step::Send(bytes)) => return Some(Ok(bytes)),
                Some(Step::Content(bytes)) => {
                    self.visit.sent_chunk();
                    return Some(Ok(bytes));
                }
                Some(Step::Stamp(bytes)) => {
                    self.visit.sent_chunk();
                    return Some(Ok(stamped(&bytes)));
                }
                Some(Step::Wait(time)) => {
                    let due = self.due.unwrap_or_else(Instant::now) + time;
                    self.due = Some(due);
                    sleep_until(due).await;
                }
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Cut) => {
                    // Let the server flush what was sent before it breaks the connection.
                    tokio::task::yield_now().await;
                    self.visit.finish();
                    return Some(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                None => {
                    self.visit.finish();
                    return None;
                }
            }
        }
    }
}

/// A chunk with a field `sent` in front of its others.
fn stamped(chunk: &[u8]) -> Bytes {
    const START: &[u8] = b"data: {";
    let rest = chunk.strip_prefix(START).unwrap_or_default();
    let mut bytes = format!("data: {{\"sent\":{},", nanos()).into_bytes();
    bytes.extend_from_slice(rest);
    bytes.into()
}

/// Nanoseconds since the epoch, by the clock that all processes of a machine share: with it a
/// reader knows how long a chunk was on its way.
#[allow(
    clippy::disallowed_methods,
    reason = "measures a way, decides nothing; Clock counts milliseconds"
)]
pub fn nanos() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let content = vec![Bytes::from("1"), Bytes::from("2"), Bytes::from("3")];
        let tail = vec![Bytes::from("usage")];
        Parts {
            head: Some(Bytes::from("role")),
            content,
            tail,
            pace: Duration::ZERO,
            eager: false,
            stamp: false,
        }
    }

    #[test]
    fn a_healthy_stream_is_head_content_tail_and_done() {
        let steps = stream(parts(), None);
        assert_eq!(steps.len(), 6);
        assert_eq!(steps[0], Step::Send(Bytes::from("role")));
        assert_eq!(steps[3], Step::Content(Bytes::from("3")));
        assert_eq!(steps[5], Step::Send(Bytes::from_static(DONE)));
    }

    #[test]
    fn a_stamp_is_a_field_in_front_of_the_others() {
        let chunk = stamped(b"data: {\"id\":1}\n\n");
        let text = String::from_utf8_lossy(&chunk);
        assert!(text.starts_with("data: {\"sent\":1"), "{text}");
        assert!(text.ends_with(",\"id\":1}\n\n"), "{text}");
    }

    #[test]
    fn a_cut_stream_ends_after_its_chunks_without_tail_or_done() {
        let steps = stream(parts(), Some(&Fault::CutAfter(2)));
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[3], Step::Cut);
    }

    #[test]
    fn a_stalled_stream_waits_after_its_chunks() {
        let steps = stream(parts(), Some(&Fault::StallAfter(0)));
        assert_eq!(steps, [Step::Send(Bytes::from("role")), Step::Stall]);
    }

    #[test]
    fn a_pace_goes_before_every_chunk_of_content() {
        let pace = Duration::from_millis(3);
        let steps = stream(Parts { pace, ..parts() }, None);
        assert_eq!(
            steps
                .iter()
                .filter(|step| **step == Step::Wait(pace))
                .count(),
            3
        );
    }

    #[test]
    fn an_eager_stream_sends_its_first_chunk_at_once_and_paces_the_others() {
        let (pace, eager) = (Duration::from_millis(3), true);
        let parts = Parts {
            pace,
            eager,
            ..parts()
        };
        let steps = stream(parts, None);
        assert_eq!(steps[1], Step::Content(Bytes::from("1")));
        assert_eq!(steps[2], Step::Wait(pace));
    }

    #[test]
    fn a_malformed_chunk_takes_the_place_of_a_good_one() {
        let steps = stream(parts(), Some(&Fault::MalformedChunk(2)));
        assert_eq!(steps[2], Step::Content(Bytes::from_static(MALFORMED)));
        assert_eq!(steps.len(), 6);
    }
}
