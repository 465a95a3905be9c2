//! Bodies of bytes between the network, which is asynchronous, and the store, which is not.

use std::io;

use axum::body::Body;
use btfs_storage::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinError;

/// Pieces of a body between the two sides: the faster one waits after that.
const WAITING: usize = 16;
/// Bytes gathered into a piece of an answer.
const PIECE: usize = 64 << 10;

/// Gives `content` to `work`, which runs on a thread of its own, as a blocking reader. An error of the stream comes out
/// of the reader, and so does a stream that ends before it said that it is whole.
pub async fn blocking<S, T>(
    mut content: S,
    work: impl FnOnce(Pieces) -> T + Send + 'static,
) -> Result<T, JoinError>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
    T: Send + 'static,
{
    let (pieces, received) = mpsc::channel(WAITING);
    let work =
        tokio::task::spawn_blocking(move || work(Pieces { received, current: Bytes::new(), ended: false }));
    while let Some(piece) = content.next().await {
        // The reader is gone only when the work ended early, and what it returns says why.
        if pieces.send(Some(piece)).await.is_err() {
            break;
        }
    }
    // Only this says that the body is whole; a channel that closes without it is a broken upload.
    let _ = pieces.send(None).await;
    drop(pieces);
    work.await
}

/// Pieces of a body as a blocking reader.
pub struct Pieces {
    received: mpsc::Receiver<Option<io::Result<Bytes>>>,
    current: Bytes,
    ended: bool,
}

impl io::Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.received.blocking_recv() {
                Some(Some(piece)) => self.current = piece?,
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off")),
            }
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// What `work` writes, on a thread of its own, as the body of an answer. Its error breaks the body off, so that nobody
/// takes a part for the whole.
pub fn written<E>(work: impl FnOnce(&mut dyn io::Write) -> Result<(), E> + Send + 'static) -> Body
where
    E: std::error::Error + Send + Sync + 'static,
{
    let (pieces, received) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, Outgoing(pieces.clone()));
        let done = work(&mut out)
            .map_err(io::Error::other)
            .and_then(|()| out.into_inner().map_err(io::IntoInnerError::into_error));
        if let Err(error) = done {
            // A client that went away has nobody to tell.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    Body::from_stream(futures::stream::unfold(received, |mut received| async move {
        received.recv().await.map(|piece| (piece, received))
    }))
}

/// The writing end of a body.
struct Outgoing(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
