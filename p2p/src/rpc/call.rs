//! The caller's side of one request, once its stream is open.

use std::io;

use futures::AsyncWriteExt;
use libp2p::PeerId;
use libp2p::swarm::Stream;

use super::frame::{FrameError, read_frame, write_frame};
use super::{MAX_ERROR_TEXT, RpcError, STATUS_BUSY, STATUS_ERROR, STATUS_OK, cut_text};

/// Sends `request` and reads the answer, of at most `max_response` bytes. The caller sets the time limit.
pub(crate) async fn exchange(
    mut stream: Stream,
    peer: PeerId,
    request: &[u8],
    max_response: usize,
) -> Result<Vec<u8>, RpcError> {
    let broke = |source: io::Error| RpcError::Stream { peer, source };
    // A refusing server answers without reading, so a failed write is told only if there is no answer either.
    let sent = async {
        write_frame(&mut stream, &[request]).await?;
        stream.close().await
    }
    .await;
    // The status byte; and an error text may be longer than a small answer.
    let cap = 1 + max_response.max(MAX_ERROR_TEXT);
    let mut answer = match (read_frame(&mut stream, cap).await, sent) {
        (Ok(answer), _) => answer,
        (Err(FrameError::TooLarge(bytes)), _) => {
            return Err(RpcError::TooLarge { what: "answer", bytes, cap: max_response });
        }
        (Err(FrameError::Io(_)), Err(source)) => return Err(broke(source)),
        (Err(FrameError::Io(source)), Ok(())) => return Err(broke(source)),
    };
    if answer.is_empty() {
        return Err(broke(io::Error::new(io::ErrorKind::InvalidData, "the answer has no status")));
    }
    let status = answer.remove(0);
    if status == STATUS_OK {
        if answer.len() > max_response {
            return Err(RpcError::TooLarge { what: "answer", bytes: answer.len() as u64, cap: max_response });
        }
        return Ok(answer);
    }
    let message = cut_text(&String::from_utf8_lossy(&answer), MAX_ERROR_TEXT).to_owned();
    match status {
        STATUS_ERROR => Err(RpcError::Refused { peer, message }),
        STATUS_BUSY => Err(RpcError::Busy { peer, message }),
        other => Err(broke(io::Error::new(io::ErrorKind::InvalidData, format!("unknown status {other}")))),
    }
}
