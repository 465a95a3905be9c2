//! What waits to be sent to one peer. Filled by whoever has something to say, drained by the connection's writer.
//!
//! Both queues are bounded: a peer that does not read its control messages is dropped, and requests beyond
//! [`MAX_UPLOADS`] are rejected, so a peer can make us hold a few hundred KiB and no more.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::picker::ConnId;
use crate::wire::{BlockRequest, Message};

/// Requests that one peer may queue; told to it as `reqq`.
pub const MAX_UPLOADS: usize = 2000;
/// Bytes of control messages waiting for one peer: some 60,000 `have`, or 64 metadata pieces.
const MAX_CONTROL: usize = 1 << 20;

/// The sending half of a connection, as others see it.
#[derive(Debug)]
pub struct Link {
    /// Its number.
    pub conn: ConnId,
    /// The peer speaks BEP 6.
    pub fast: bool,
    /// Ends the connection.
    pub cancel: CancellationToken,
    /// Payload bytes sent.
    pub uploaded: AtomicU64,
    out: Mutex<Outbox>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Outbox {
    control: BytesMut,
    uploads: VecDeque<BlockRequest>,
}

/// What the writer is to send next.
#[derive(Debug, Default)]
pub struct Work {
    /// Encoded messages, to go first.
    pub control: Bytes,
    /// Blocks to send.
    pub uploads: Vec<BlockRequest>,
}

impl Link {
    /// A link with nothing to send.
    pub fn new(conn: ConnId, fast: bool, cancel: CancellationToken) -> Link {
        let out = Mutex::new(Outbox::default());
        Link { conn, fast, cancel, uploaded: AtomicU64::new(0), out, wake: Notify::new() }
    }

    /// Queues messages.
    pub fn send_all<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) {
        let mut out = self.out.lock();
        messages.into_iter().for_each(|m| m.encode(&mut out.control));
        if out.control.len() > MAX_CONTROL {
            out.control.clear();
            self.cancel.cancel();
        }
        drop(out);
        self.wake.notify_one();
    }

    /// Queues one message.
    pub fn send(&self, message: &Message) {
        self.send_all([message]);
    }

    /// Whether control messages pile up because the peer does not read.
    pub fn congested(&self) -> bool {
        self.out.lock().control.len() > MAX_CONTROL / 4
    }

    /// Queues a block; a request beyond the bound is rejected.
    pub fn upload(&self, request: BlockRequest) {
        let mut out = self.out.lock();
        if out.uploads.len() < MAX_UPLOADS {
            out.uploads.push_back(request);
        } else if self.fast {
            Message::Reject(request).encode(&mut out.control);
        }
        drop(out);
        self.wake.notify_one();
    }

    /// Takes a queued block back.
    pub fn cancel_upload(&self, request: &BlockRequest) {
        let mut out = self.out.lock();
        let before = out.uploads.len();
        out.uploads.retain(|r| r != request);
        if self.fast && out.uploads.len() < before {
            Message::Reject(*request).encode(&mut out.control);
        }
        drop(out);
        self.wake.notify_one();
    }

    /// Chokes the peer: what it queued is dropped, and rejected if it speaks BEP 6.
    pub fn choke(&self) {
        let mut out = self.out.lock();
        Message::Choke.encode(&mut out.control);
        let dropped = std::mem::take(&mut out.uploads);
        if self.fast {
            dropped.into_iter().for_each(|r| Message::Reject(r).encode(&mut out.control));
        }
        drop(out);
        self.wake.notify_one();
    }

    /// Waits for something to send, and takes up to `max` blocks of it.
    pub async fn work(&self, max: usize) -> Work {
        loop {
            {
                let mut out = self.out.lock();
                if !out.control.is_empty() || !out.uploads.is_empty() {
                    let control = out.control.split().freeze();
                    let count = max.min(out.uploads.len());
                    return Work { control, uploads: out.uploads.drain(..count).collect() };
                }
            }
            self.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Frames;

    fn request(begin: u32) -> BlockRequest {
        BlockRequest { piece: 0, begin, length: 1 }
    }

    fn messages(control: Bytes) -> Vec<Message> {
        let mut buf = BytesMut::from(control);
        std::iter::from_fn(|| Frames { max_bitfield: 1 }.next(&mut buf).unwrap()).collect()
    }

    #[tokio::test]
    async fn requests_beyond_the_bound_are_rejected() {
        let link = Link::new(1, true, CancellationToken::new());
        (0..=MAX_UPLOADS as u32).for_each(|i| link.upload(request(i)));
        let work = link.work(usize::MAX).await;
        assert_eq!(work.uploads.len(), MAX_UPLOADS);
        assert_eq!(messages(work.control), [Message::Reject(request(MAX_UPLOADS as u32))]);
    }

    #[tokio::test]
    async fn choking_drops_what_was_queued() {
        let link = Link::new(1, true, CancellationToken::new());
        link.upload(request(0));
        link.upload(request(1));
        link.cancel_upload(&request(0));
        link.choke();
        let work = link.work(16).await;
        assert!(work.uploads.is_empty());
        let expected = [Message::Reject(request(0)), Message::Choke, Message::Reject(request(1))];
        assert_eq!(messages(work.control), expected);
    }

    #[test]
    fn a_peer_that_does_not_read_is_dropped() {
        let link = Link::new(1, true, CancellationToken::new());
        let have = Message::Have(1);
        (0..=MAX_CONTROL / 9).for_each(|_| link.send(&have));
        assert!(link.cancel.is_cancelled());
    }
}
