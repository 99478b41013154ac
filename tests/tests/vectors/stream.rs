//! How frames lie on a stream: a length, then the frame.

use std::time::Duration;

use alloy::primitives::Bytes as Hex;
use farthing_protocol::net::session::{Limits, RecvError, Session};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::frames;
use super::sheet::Vector;

pub const ABOUT: &str = "A stream's bytes and the frames in them, read with a largest frame of `max` bytes; `ends` says how it ends.";

/// A stream and its frames.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamVector {
    name: String,
    max: usize,
    stream: Hex,
    frames: Vec<Hex>,
    ends: String,
}

impl Vector for StreamVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let (frames, ends) = read(&self.stream, self.max);
        assert_eq!(
            (&frames, &ends),
            (&self.frames, &self.ends),
            "{}",
            self.name
        );
        if ends == "done" {
            assert_eq!(write(&frames), self.stream, "{}", self.name);
        }
    }
}

pub fn streams() -> Vec<StreamVector> {
    let cancel = frames::to_seller().pop().expect("frames").into_bytes();
    let pay = frames::to_seller().swap_remove(4).into_bytes();
    let two = write(&[pay.clone(), cancel]);
    let all = [
        ("two-frames", 1024, two.clone()),
        ("empty-frame", 1024, Hex::from_static(&[0, 0, 0, 0])),
        ("nothing", 1024, Hex::new()),
        ("cut-off", 1024, Hex::copy_from_slice(&two[..two.len() - 1])),
        ("announced-too-large", pay.len() - 1, two),
    ];
    let vector = |(name, max, stream): (&str, usize, Hex)| {
        let (frames, ends) = read(&stream, max);
        StreamVector {
            name: name.to_owned(),
            max,
            stream,
            frames,
            ends,
        }
    };
    all.into_iter().map(vector).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn read(stream: &[u8], max: usize) -> (Vec<Hex>, String) {
    run(async {
        let (mut far, near) = duplex(1 << 16);
        far.write_all(stream).await.expect("room");
        far.shutdown().await.expect("open");
        let (mut reader, _writer) = Session::new(near, Limits::default()).split();
        let by = Instant::now() + Duration::from_secs(5);
        let mut frames = Vec::new();
        loop {
            let ends = match reader.recv(max, by).await {
                Ok(Some(frame)) => {
                    frames.push(Hex::from(frame));
                    continue;
                }
                Ok(None) => "done",
                Err(RecvError::TooLarge { .. }) => "too large",
                Err(RecvError::Truncated) => "cut off",
                Err(other) => panic!("{other}"),
            };
            return (frames, ends.to_owned());
        }
    })
}

fn write(frames: &[Hex]) -> Hex {
    run(async {
        let (mut far, near) = duplex(1 << 16);
        let (_reader, mut writer) = Session::new(near, Limits::default()).split();
        for frame in frames {
            writer.send(frame).await.expect("room");
        }
        writer.close().await.expect("open");
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.expect("open");
        bytes.into()
    })
}
