//! The line between a program and its chain node: a proxy on loopback that can be told to be bad.
//!
//! It knows nothing of what it carries. Ends, with every connection, when the value is dropped.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How it treats those who call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Carries everything both ways.
    Good,
    /// Answers with an error instead of asking.
    Errors,
    /// Takes the question and says nothing.
    Silent,
    /// Carries the question, and loses the answer.
    Deaf,
    /// Answers with something that is no answer.
    Garbage,
}

/// A bad or good line. Cut connections come with every change of manner.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    manner: watch::Sender<Manner>,
    met: watch::Sender<u64>,
    _stop: DropGuard,
}

/// What an overloaded or broken node says.
const ERRORS: [&str; 3] = [
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 77\r\nconnection: close\r\n\r\n\
     {\"jsonrpc\":\"2.0\",\"id\":0,\"error\":{\"code\":-32603,\"message\":\"internal trouble\"}}",
];

/// What is no answer.
const GARBAGE: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<html>no</html>",
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\nconnection: close\r\n\r\n{\"jsonrpc\":\"2.0\"",
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "\0\0\0 this is not even HTTP",
];

impl Line {
    /// A good line to whoever listens there.
    ///
    /// # Errors
    /// The system's.
    pub async fn to(end: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (manner, watched) = watch::channel(Manner::Good);
        let met = watch::Sender::new(0);
        let stop = CancellationToken::new();
        let counted = met.clone();
        let ended = stop.clone();
        tokio::spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    Some(_) = calls.join_next() => {}
                    accepted = listener.accept() => if let Ok((caller, _)) = accepted {
                        let call = Call {
                            end,
                            manner: watched.clone(),
                            met: counted.clone(),
                        };
                        calls.spawn(call.carry(caller));
                    },
                }
            }
        });
        Ok(Self {
            address,
            manner,
            met,
            _stop: stop.drop_guard(),
        })
    }

    /// Its near end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it is like this; what is under way is cut.
    pub fn be(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// How many calls were treated badly so far.
    #[must_use]
    pub fn met(&self) -> u64 {
        *self.met.borrow()
    }

    /// Waits until more than so many were.
    pub async fn meets(&self, count: u64) {
        let mut met = self.met.subscribe();
        // Its sender is here: it cannot end.
        met.wait_for(|met| *met > count).await.ok();
    }
}

/// One connection.
struct Call {
    end: SocketAddr,
    manner: watch::Receiver<Manner>,
    met: watch::Sender<u64>,
}

impl Call {
    async fn carry(mut self, caller: TcpStream) {
        let mut changes = self.manner.clone();
        let manner = *changes.borrow_and_update();
        tokio::select! {
            // Its sender lives as long as the line.
            _ = changes.changed() => {}
            // A line that breaks is what this is for.
            _ = self.treat(manner, caller) => {}
        }
    }

    async fn treat(&mut self, manner: Manner, mut caller: TcpStream) -> std::io::Result<()> {
        if manner == Manner::Good {
            let mut end = TcpStream::connect(self.end).await?;
            tokio::io::copy_bidirectional(&mut caller, &mut end).await?;
            return Ok(());
        }
        let mut question = vec![0; 64 * 1024];
        let length = caller.read(&mut question).await?;
        if length == 0 {
            return Ok(());
        }
        let mut count = 0;
        self.met.send_modify(|met| {
            count = *met;
            *met += 1;
        });
        let pick = |of: &[&'static str]| {
            let index = usize::try_from(count).unwrap_or(0) % of.len().max(1);
            of.get(index).copied().unwrap_or_default()
        };
        match manner {
            Manner::Good => {}
            Manner::Errors => caller.write_all(pick(&ERRORS).as_bytes()).await?,
            Manner::Garbage => caller.write_all(pick(&GARBAGE).as_bytes()).await?,
            Manner::Silent => std::future::pending().await,
            Manner::Deaf => {
                let mut end = TcpStream::connect(self.end).await?;
                end.write_all(question.get(..length).unwrap_or_default())
                    .await?;
                let (mut reads, mut writes) = end.split();
                let mut answer = [0; 1];
                tokio::select! {
                    // The rest of a long question.
                    _ = tokio::io::copy(&mut caller, &mut writes) => {}
                    // The node has done it.
                    _ = reads.read(&mut answer) => {}
                }
            }
        }
        caller.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn node() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut word = [0; 4];
                    while caller.read_exact(&mut word).await.is_ok() {
                        caller.write_all(b"yes!").await.expect("answers");
                    }
                });
            }
        });
        address
    }

    async fn ask(line: &Line) -> Vec<u8> {
        let mut caller = TcpStream::connect(line.address).await.expect("connects");
        caller.write_all(b"true").await.expect("asks");
        let mut answer = vec![0; 4];
        match caller.read_exact(&mut answer).await {
            Ok(_) => answer,
            Err(_) => Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_line_is_as_good_or_bad_as_it_was_told() {
        let line = Line::to(node().await).await.expect("listens");
        assert_eq!(ask(&line).await, b"yes!");
        line.be(Manner::Deaf);
        assert_eq!(ask(&line).await, b"");
        line.be(Manner::Errors);
        assert_eq!(ask(&line).await, b"HTTP");
        line.be(Manner::Garbage);
        assert_ne!(ask(&line).await, b"yes!");
        assert_eq!(line.met(), 3);
        line.be(Manner::Good);
        assert_eq!(ask(&line).await, b"yes!");
    }

    #[tokio::test]
    async fn a_silent_line_answers_nobody_until_it_changes() {
        let line = Line::to(node().await).await.expect("listens");
        line.be(Manner::Silent);
        let mut caller = TcpStream::connect(line.address).await.expect("connects");
        caller.write_all(b"true").await.expect("asks");
        line.meets(0).await;
        line.be(Manner::Good);
        assert!(caller.read_u8().await.is_err(), "it was cut");
    }
}
