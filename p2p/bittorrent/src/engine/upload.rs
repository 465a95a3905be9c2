//! The writing half of a connection: control messages and blocks.
//!
//! Up to [`BATCH`] blocks go out in one vectored write: 13-byte headers beside slices of stored leaves, nothing copied.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

use super::Inner;
use super::link::Link;
use super::torrent::Torrent;
use crate::wire::{BlockRequest, Message, piece_header};

/// Blocks per write: 256 KiB, about what a socket buffer takes; more gains nothing (measured at 8 to 16).
const BATCH: usize = 16;
/// Silence after which a keep-alive goes out; peers give up after 120 s.
const KEEP_ALIVE: Duration = Duration::from_secs(100);
/// A peer that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// Slices of one vectored write; the kernel takes at most 1024.
const MAX_SLICES: usize = 256;

/// Writes until the connection ends.
pub async fn run(inner: Arc<Inner>, torrent: Arc<Torrent>, link: Arc<Link>, mut socket: OwnedWriteHalf) {
    let written = tokio::select! {
        () = link.cancel.cancelled() => Ok(()),
        written = write_all(&inner, &torrent, &link, &mut socket) => written,
    };
    if let Err(error) = written {
        tracing::debug!(torrent = %torrent.hash, conn = link.conn, %error, "peer connection broke while writing");
    }
    link.cancel.cancel();
}

async fn write_all(
    inner: &Inner,
    torrent: &Torrent,
    link: &Link,
    socket: &mut OwnedWriteHalf,
) -> io::Result<()> {
    loop {
        let mut chunks = Vec::with_capacity(2 * BATCH + 1);
        let Ok(work) = tokio::time::timeout(KEEP_ALIVE, link.work(BATCH)).await else {
            let mut keep_alive = BytesMut::new();
            Message::KeepAlive.encode(&mut keep_alive);
            send(socket, vec![keep_alive.freeze()]).await?;
            continue;
        };
        if !work.control.is_empty() {
            chunks.push(work.control);
        }
        let mut sent = 0;
        for request in &work.uploads {
            sent += gather(inner, torrent, link, request, &mut chunks).await;
        }
        send(socket, chunks).await?;
        link.uploaded.fetch_add(sent, Ordering::Relaxed);
        torrent.uploaded.fetch_add(sent, Ordering::Relaxed);
    }
}

/// Adds the header and slices of one block; a block that cannot be read is rejected. Answers the payload bytes.
async fn gather(
    inner: &Inner,
    torrent: &Torrent,
    link: &Link,
    request: &BlockRequest,
    chunks: &mut Vec<Bytes>,
) -> u64 {
    let Some(content) = torrent.content() else { return 0 };
    let BlockRequest { piece, begin, length } = *request;
    match content.read(&inner.config.store, &inner.windows, piece, begin, length).await {
        Ok(slices) => {
            chunks.push(Bytes::copy_from_slice(&piece_header(piece, begin, length)));
            chunks.extend(slices);
            u64::from(length)
        }
        Err(error) => {
            tracing::warn!(torrent = %torrent.hash, piece, %error, "a block could not be read for a peer");
            if link.fast {
                let mut reject = BytesMut::new();
                Message::Reject(*request).encode(&mut reject);
                chunks.push(reject.freeze());
            }
            0
        }
    }
}

/// Writes all chunks with as few calls as possible.
async fn send(socket: &mut OwnedWriteHalf, chunks: Vec<Bytes>) -> io::Result<()> {
    let mut chunks = std::collections::VecDeque::from(chunks);
    while !chunks.is_empty() {
        let slices: Vec<IoSlice<'_>> = chunks.iter().take(MAX_SLICES).map(|c| IoSlice::new(c)).collect();
        let write = tokio::time::timeout(WRITE_TIMEOUT, socket.write_vectored(&slices)).await;
        let mut written = write.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = chunks.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            chunks.pop_front();
        }
    }
    Ok(())
}
