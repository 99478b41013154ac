//! Who asks a peer that answers every frame with itself.

use farthing_protocol::{
    identity::NodeId,
    net::{
        Net, Protocol,
        session::{Limits, Session},
    },
};
use tokio::time::Instant;

use crate::echo::PATIENCE;

/// Sends `frames` frames of 64 KiB on one stream and has them back.
pub(crate) async fn exchange(
    net: &Net,
    peer: NodeId,
    at: &[String],
    frames: usize,
) -> Result<(), String> {
    let stream = net.open(peer, at, Protocol::Purchase).await;
    let mut session = Session::new(stream.map_err(|e| e.to_string())?, Limits::default());
    for n in 0..frames {
        let frame = vec![n as u8; 64 * 1024];
        session
            .send(&frame)
            .await
            .map_err(|e| format!("{n}: {e}"))?;
        let back = session.recv(1 << 20, Instant::now() + PATIENCE).await;
        match back {
            Ok(Some(back)) if back == frame => {}
            other => return Err(format!("{n}: {:?}", other.map(|frame| frame.is_some()))),
        }
    }
    Ok(())
}
